"""Names of torch that are not public: fastinit works, and draws the same, where one of them is missing."""

from __future__ import annotations

import pytest
import torch
from common import python

import fastinit
from fastinit import Stream
from fastinit.drawing import originals, torch_private

WITHOUT = """
import torch
import builtins, torch.nn.init, torch.utils._device
*parts, name = {path!r}.split(".")
owner = torch
for part in parts[1:]:
    owner = getattr(owner, part)
asked, kept = getattr, getattr(owner, name)
def hiding(thing, wanted, *default):
    if thing is owner and wanted == name and not default:
        raise AttributeError(name)
    return asked(thing, wanted, *default)
if isinstance(owner, type):  # of C, and nothing can be taken away from it
    builtins.getattr = hiding
else:
    delattr(owner, name)
import fastinit
builtins.getattr = asked
if not isinstance(owner, type):
    setattr(owner, name, kept)  # torch goes on needing it
from fastinit.drawing import torch_private
from fastinit.initialisers.quick import TYPES
stream = fastinit.Stream(5)
drawn = [
    fastinit.normal_(torch.empty(9), stream=stream),
    fastinit.kaiming_uniform_(torch.nn.Parameter(torch.empty(3, 3)), stream=stream),
    fastinit.trunc_normal_(torch.empty(9, 9).t(), stream=stream),
    fastinit.orthogonal_(torch.empty(3, 3), stream=stream),
    fastinit.zeros_(torch.empty(2)),
]
with torch.device("meta"):
    fastinit.normal_(torch.empty(9, device="cpu"))
x = torch.nn.Parameter(torch.ones(3)); y = (x * x).sum()
fastinit.normal_(x)
try:
    y.backward()
except RuntimeError:
    print("autograd knows")
print(sum(tensor.double().sum().item() for tensor in drawn))
try:
    with fastinit.accelerate() as report:
        made = torch.nn.init.normal_(torch.empty(9))
        same = made + 0
    print(torch.equal(made, same) and torch._C._len_torch_dispatch_stack() == 0)
except RuntimeError as error:
    print("this release of torch lacks" in str(error))
print([path for path, there in torch_private.names.items() if not there], len(TYPES))
"""


def total() -> float:
    """What the process prints, from this one's torch."""
    stream = Stream(5)
    drawn = [
        fastinit.normal_(torch.empty(9), stream=stream),
        fastinit.kaiming_uniform_(torch.empty(3, 3), stream=stream),
        fastinit.trunc_normal_(torch.empty(9, 9).t(), stream=stream),
        fastinit.orthogonal_(torch.empty(3, 3), stream=stream),
    ]
    return sum(tensor.double().sum().item() for tensor in drawn)


PATHS = [*torch_private.names, *(f"torch.nn.init.{name}" for name in originals.NAMES if name.startswith("_"))]


def test_torch_has_them_all():
    assert all(torch_private.names.values())
    assert torch_private.COMPLETE


@pytest.mark.parametrize("path", PATHS)
def test_without_one_of_them_all_is_drawn_the_same(path):
    printed = python(WITHOUT.format(path=path)).splitlines()
    assert printed[:3] == ["autograd knows", str(total()), "True"]
    missing = [path] if path in torch_private.names else []
    assert printed[3] == f"{missing} {0 if path in torch_private.QUICK else 3}"
