"""The release, which checkpoints say that they were drawn by."""

VERSION = "0.1.0"
