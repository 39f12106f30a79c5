"""Where a team's helpers find their work: the team's memory, in bytes. See `team`."""

from __future__ import annotations

SLOT_BYTES = 128  # two cache lines: CPUs fetch pairs of them
# The first slot is the team's own:
SIZE = 0  # how many helpers there are
ALARM = 8  # a lock that nobody releases, to wait on for a time
MISSED = 16  # how many small jobs found helpers asleep since one woke them
# Each other one is a helper's:
MAILBOX = 0  # 0; the address of a job that is waiting for it; that address + 1 while it works; NOBODY
ASLEEP = 8  # whether somebody must release its lock
LOCK = 16

NOBODY = 1  # in a mailbox: there is no helper, or there will be none
