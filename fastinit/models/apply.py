"""Rules for one module at a time, as `model.apply` calls a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.utils.parametrize import ParametrizationList

from ..initialisers.parts import Gates, Keep
from ..initialisers.values import Initializer
from .entries import entries
from .initialize import judge, write
from .rules import Matched, Pairs, judged

Module = torch.nn.Module


def apply(rules: Pairs) -> Callable[[Module], None]:
    """What initialises a module's own parameters by rules, for `model.apply`.

    `model.apply` tells no qualified names, so rules are by class, by (class, name) and by functions; patterns are for
    names in the module, such as "bias*". Each call draws as the functions of fastinit do: from torch's generator, or,
    inside `accelerate(model, seed=0)`, by the names of the parameters: then the bits are those of `initialize` (but of
    weights that are computed from others). A parameter that no rule is for, and whatever else is wrong with a module's
    own, raises `RulesError` before anything of that module is written. Rules that match nothing are no error: nobody
    knows which module is the last. What a function leaves unwritten, and rules that disagree about a tied parameter,
    are not noticed.
    """
    given = [rule._replace(optional=True) for rule in judged(rules)]
    for number, rule in enumerate(given):
        if isinstance(rule.where, str) and "." in rule.where:
            raise ValueError(
                f"rule {number}, {rule!r}: model.apply tells no qualified names; use (class, name), or "
                "fastinit.initialize(model, rules, seed=seed)"
            )

    def init(module: Module) -> None:
        if isinstance(module, ParametrizationList):  # comes with the module whose weights it computes
            return
        found = Matched(given, entries(module, deep=False))
        judge(module, found)
        for one in found.assigned:
            what = one.what
            if not isinstance(what, Keep):
                write(one.entry, what.fill if isinstance(what, (Initializer, Gates)) else what)

    return init
