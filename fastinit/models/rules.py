"""Rules that say how each parameter of a model is initialised, and the check that they cover every parameter."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..initialisers.parts import Value, get
from ..initialisers.values import Initializer
from .entries import Entry, Home, entries

Module = torch.nn.Module
Types = type[Module] | tuple[type[Module], ...]
Where = Types | str | tuple[Types, str] | Callable[[str, Module, Tensor], bool]
What = Value | Callable[[Tensor], object]
WILD = frozenset("*?[")
MOST_SHOWN = 12  # problems that an error lists


class RulesError(ValueError):
    """Rules that do not fit a model."""


class Rule(NamedTuple):
    """Which parameters, and how they are initialised. `optional`: no error if there are none, as in recipes.

    `where`: a module's class, or several, for all parameters of its own; (class, "bias") for those of that name, which
    may have wildcards; a pattern on the qualified name, as of `fnmatch`; or a function that is called with qualified
    name, module and parameter. Buffers are meant only by their own names: (class, "running_mean"), "*running_mean".
    `what`: an initialiser, as a value or whatever `fastinit.initialisers.get` takes; or a
    function that fills the tensor that it is called with.
    """

    where: Where
    what: Any
    optional: bool = False

    def __repr__(self) -> str:
        return f"({shown(self.where)}, {shown(self.what)})"


Pairs = Iterable[Rule | tuple[Any, Any]] | Mapping[Any, Any]
Rules = Pairs | Callable[[Module], Pairs] | str  # or a recipe, or a recipe's name


def shown(part: Any) -> str:
    """A part of a rule as it is written; the same in every process, for it stands in checkpoints."""
    if isinstance(part, tuple):
        return f"({', '.join(map(shown, part))})"
    if isinstance(part, functools.partial):
        named = [f"{key}={shown(value)}" for key, value in part.keywords.items()]
        return f"partial({', '.join([*map(shown, (part.func, *part.args)), *named])})"
    if callable(part) and not isinstance(part, Initializer):
        return str(getattr(part, "__qualname__", type(part).__qualname__))
    return repr(part)


# --- what rules are ------------------------------------------------------------------------------


def rules_of(given: Rules, model: Module) -> list[Rule]:
    """The rules that are given, for this model. Raises `TypeError` and `ValueError` for what are none, all at once."""
    from .recipe import found

    given = found(given)
    if callable(given):
        given = given(model)
    return judged(given)


def judged(given: Any) -> list[Rule]:
    """The same of a list of rules."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"rules are a list of pairs (where, initialiser), or a recipe; got {type(given).__name__}")
    found: list[Rule] = []
    problems: list[str] = []
    kinds = set()
    for number, rule in enumerate(given.items() if isinstance(given, Mapping) else given):
        try:
            found.append(read(rule))
        except (TypeError, ValueError) as error:
            kinds.add(TypeError if isinstance(error, TypeError) else ValueError)
            problems.append(f"rule {number}: {error}")
    if problems:
        raise (kinds.pop() if len(kinds) == 1 else TypeError)("; ".join(problems))
    return found


def read(rule: Any) -> Rule:
    if not isinstance(rule, Rule) and not (isinstance(rule, (tuple, list)) and len(rule) == 2):
        raise TypeError(f"expected a pair (where, initialiser), got {rule!r}")
    where, what = rule[:2]
    if not is_where(where):
        raise TypeError(
            'where is a class of modules, a pattern such as "*.bias", a pair of these as (torch.nn.Linear, "bias"), or '
            f"a function of name, module and parameter; got {shown(where)}"
        )
    return Rule(where, value_of(what), isinstance(rule, Rule) and rule.optional)


def is_where(where: Any) -> bool:
    if is_named(where):
        return is_types(where[0])
    return is_types(where) or isinstance(where, str) or is_function(where)


def is_named(where: Any) -> bool:
    """Whether it is a class or several, with the name of a parameter."""
    return isinstance(where, tuple) and len(where) == 2 and isinstance(where[1], str)


def is_function(part: Any) -> bool:
    return callable(part) and not isinstance(part, (type, Module))


def is_types(where: Any) -> bool:
    some = where if isinstance(where, tuple) else (where,)
    return bool(some) and all(isinstance(one, type) and issubclass(one, Module) for one in some)


def value_of(what: Any) -> What:
    """What a rule's initialiser means: a value, or a function of the user's."""
    try:
        return get(what)
    except TypeError:
        if not is_function(what):
            raise
    own: Callable[[Tensor], object] = what
    return own


# --- which rule is for what ----------------------------------------------------------------------


@dataclass(eq=False)
class Match:
    """A tensor of a model, the number of the rule that is for it, and what that says."""

    entry: Entry
    rule: int
    what: What


def matches(where: Where, home: Home, entry: Entry) -> bool:
    """Whether a rule's `where` is for a tensor, by one of its names."""
    if isinstance(where, str):
        fits = home.name == where or fnmatchcase(home.name, where)
        return fits and (not entry.aside or where.rpartition(".")[2].lstrip("*") == home.key)
    if isinstance(where, tuple) and is_named(where):
        types, pattern = where
        named = home.key == pattern if entry.aside else any(fnmatchcase(key, str(pattern)) for key in keys_of(home))
        return named and isinstance(home.module, types)
    if entry.aside:
        return False
    if isinstance(where, (type, tuple)):
        return isinstance(home.module, where)  # type: ignore[arg-type]
    return bool(where(home.name, home.module, entry.tensor))


def keys_of(home: Home) -> set[str]:
    """A parameter's names in its module: what a hook computes `weight` from, spectral norm's or pruning's, is both."""
    computed = home.key.removesuffix("_orig")
    return {home.key, computed} if computed in vars(home.module) else {home.key}


class Matched:
    """Rules, a model's tensors, and which are for which; and all that is wrong with that."""

    def __init__(
        self, rules: Sequence[Rule], found: Sequence[Entry], only: set[str] | None = None, saved: bool = False
    ) -> None:
        self.rules, self.entries, self.only, self.saved = rules, found, only, saved
        self.won = [0] * len(rules)  # of how many tensors a rule is the first
        # Rules for one name, of which recipes make many, and the others.
        self.exact: dict[str, list[int]] = {}
        self.others: list[int] = []
        for number, (where, *_) in enumerate(rules):
            plain = isinstance(where, str) and not WILD.intersection(where)
            (self.exact.setdefault(str(where), []) if plain else self.others).append(number)
        self.assigned: list[Match] = []
        self.problems: list[str] = []
        named = {id(entry): numbers for entry in found if (numbers := self.numbers(entry))}
        whole = [entry for entry in found if not any(id(part) in named for part in entry.parts)]
        self.computed = {id(part) for entry in whole for part in entry.parts}  # which are set with their weight
        for entry in whole:
            self.assign(entry, named.get(id(entry), []))
        self.problems[:0] = self.dead()

    def numbers(self, entry: Entry) -> list[int]:
        """The rules that come first for a tensor, by each of its names that any is for."""
        firsts: list[int] = []
        for home in entry.homes:
            possible = heapq.merge(self.exact.get(home.name, ()), self.others)
            firsts += islice((number for number in possible if matches(self.rules[number].where, home, entry)), 1)
        return firsts

    def assign(self, entry: Entry, numbers: list[int]) -> None:
        for number in numbers:
            self.won[number] += 1
        if self.only is not None and not self.is_asked_for(entry, self.only):
            return
        if not numbers:
            if not entry.aside or entry.why or self.is_lost(entry):
                self.problems.append(
                    f"{described(entry)}: no rule {'names' if entry.aside else 'matches'} it{entry.why}"
                )
            return
        what = [self.rules[number].what for number in numbers]
        if any(one != what[0] for one in what):
            names = ", ".join(home.name for home in entry.homes)
            self.problems.append(
                f"{described(entry)} is one tensor with the names {names}, on which rules {sorted({*numbers})} "
                "disagree; add an earlier rule that matches them all"
            )
            return
        self.assigned.append(Match(entry, numbers[0], what[0]))

    def is_asked_for(self, entry: Entry, only: set[str]) -> bool:
        """Whether `only` has all names of a tensor: one of a tied one's may be missing in a checkpoint that has it."""
        parts = [only.issuperset(home.name for home in part.homes) for part in entry.parts]
        if any(parts) and not all(parts):
            names = ", ".join(part.name for part in entry.parts)
            self.problems.append(
                f"{described(entry)} is computed from {names}, of which only= names some; rules may name these"
            )
            return False
        return (bool(parts) and all(parts)) or only.issuperset(home.name for home in entry.homes)

    def is_lost(self, entry: Entry) -> bool:
        """Whether a buffer, or what a weight is computed from, has no value, and gets none."""
        needed = bool(entry.saved_name) or not self.saved
        return entry.tensor.is_meta and id(entry) not in self.computed and needed

    def dead(self) -> Iterator[str]:
        """The rules that are for nothing."""
        for number, rule in enumerate(self.rules):
            if self.won[number] or rule.optional:
                continue
            text = f"rule {number}, {rule!r}, "
            if any(matches(rule.where, home, entry) for entry in self.entries for home in entry.homes):
                yield text + "never applies: earlier rules match every tensor that it matches"
            elif near := nearest(rule.where, self.entries):
                yield text + f"matches nothing; near it: {', '.join(near)}"
            else:
                yield text + "matches nothing"


def described(entry: Entry) -> str:
    try:
        shape = "" if torch.nn.parameter.is_lazy(entry.tensor) else f" {entry.shape}"
    except ValueError:  # which is told of it
        shape = f" {tuple(entry.tensor.shape)}"
    return f"{entry.name}{shape}"


def nearest(where: Where, found: Sequence[Entry]) -> list[str]:
    """What a rule that matches nothing may have meant."""
    import difflib

    homes = [home for entry in found for home in entry.homes]
    if isinstance(where, str):
        plain = where.replace("*", "").strip(".")
        depth = plain.count(".") + 1
        ends: dict[str, str] = {}
        for home in homes:
            ends.setdefault(".".join(home.name.split(".")[-depth:]), home.name)
        return [ends[end] for end in difflib.get_close_matches(plain, ends, 3, 0.6)]
    if isinstance(where, tuple) and is_named(where):
        types: Any = where[0]
        keys = {home.key: None for home in homes if isinstance(home.module, types)}
        if keys:
            return [f"{shown(where[0])} has {', '.join(keys)}"]
        where = where[0]
    if isinstance(where, (type, tuple)):
        classes = {type(home.module).__name__: None for home in homes}
        some = [where] if isinstance(where, type) else [*where]
        return [n for one in some if isinstance(one, type) for n in difflib.get_close_matches(one.__name__, classes, 3)]
    return []


# --- what is wrong with it -----------------------------------------------------------------------


def matched(model: Module, rules: Rules, only: Iterable[str] | None = None, saved: bool = False) -> Matched:
    """Which rule is for which tensor of a model, with the problems that this alone shows.

    `saved`: buffers that no `state_dict` has need no values.
    """
    if not isinstance(model, Module):
        raise TypeError(f"rules are for a torch.nn.Module, got {type(model).__name__}")
    found = entries(model)
    given = None if only is None else known(model, found, only)
    return Matched(rules_of(rules, model), found, given, saved)


def known(model: Module, found: Sequence[Entry], only: Any) -> set[str]:
    """These names without wrappers' prefixes, which those of a wrapped model's `state_dict` have."""
    asked: list[Any] = [only] if isinstance(only, str) or not isinstance(only, Iterable) else [*only]
    if isinstance(only, str) or not all(isinstance(name, str) for name in asked):
        raise TypeError(f"only is a list of names, such as load_state_dict(...).missing_keys; got {only!r}")
    names = {home.name: home.name for entry in found for home in entry.homes}
    first = {id(entry.tensor): entry.name for entry in found}
    for own in (model.named_parameters, model.named_buffers):
        names |= {name: first[id(one)] for name, one in own(remove_duplicate=False) if name not in names}
    if unknown := [name for name in asked if name not in names]:
        raise RulesError(
            f"{type(model).__name__} has no tensors of these names: "
            + ", ".join(f"{name!r}{near_name(name, names)}" for name in unknown[:MOST_SHOWN])
        )
    return {names[name] for name in asked}


def near_name(name: str, names: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, [*names], 1)
    return f" (near it: {near[0]})" if near else ""


def check(model: Module, problems: Sequence[str]) -> None:
    """Raise `RulesError` for these."""
    if problems:
        shown_ones = [*problems[:MOST_SHOWN]]
        shown_ones += [f"and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        title = f"{type(model).__name__} and its rules, {count}; nothing was written:"
        raise RulesError("\n  ".join([title, *shown_ones]))
