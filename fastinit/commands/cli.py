"""The command `fastinit`: compare, audit, init, doctor, warmup."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import io
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..kernels.cpu.forms import Kernel

OK, FAILED, MISUSED = 0, 1, 2
CALLABLE, RULES = "a callable", "rules, or a function that takes the module and returns them"
EXAMPLE = "fastinit compare torch.nn:Transformer --set d_model=256"


class Misuse(Exception):
    """The command line asks for what cannot be; the message is the one line that the user gets to see."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command. Returns the exit code: 0, 1 for a failed check, 2 for a command that makes no sense."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # or a narrow code page would lose the report
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except Misuse as misuse:
        print(f"fastinit {arguments.command}: {misuse}", file=sys.stderr)
        return MISUSED


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="fastinit", description="torch.nn.init, compiled.")
    commands = root.add_subparsers(dest="command", required=True)
    add_models(commands)
    doctor = commands.add_parser("doctor", help="engines, processor, threads, cache, and why something is slow")
    doctor.set_defaults(run=run_doctor)
    warmup = commands.add_parser("warmup", help="compile kernels of the CPU engine and keep them on disk")
    warmup.add_argument(
        "laws",
        nargs="*",
        metavar="LAW",
        help="those of a law: uniform, normal, truncated_normal, ...; without, of all",
    )
    warmup.add_argument("--into", metavar="DIR", help="keep them there, readable by all users, as for an image")
    warmup.set_defaults(run=run_warmup)
    return root


def add_models(commands: Any) -> None:
    """The commands that construct a module of the user's."""
    compare = commands.add_parser(
        "compare",
        help="torch.nn.init against fastinit on a module of yours: time, memory, statistics",
        description="Replays the initialisers that a module's construction calls, with torch.nn.init and with "
        "fastinit. Exits with 1 if a sample of fastinit's does not fit its law.",
        epilog=f"example: {EXAMPLE}",
    )
    compare.add_argument("--repeat", type=positive, metavar="N", help="timed passes (enough for a stable median)")
    compare.set_defaults(run=run_compare)
    audit = commands.add_parser(
        "audit",
        help="what is in a module's parameters, beside what its initialisers promise",
        description="Constructs a module, each parameter drawn by its name as fastinit.build does, and looks at every "
        "one. Exits with 1 if something is wrong with one.",
        epilog="example: fastinit audit transformers:GPT2LMHeadModel --set 'config=transformers:GPT2Config(n_layer=2)'",
    )
    init = commands.add_parser(
        "init",
        help="write a module's initial weights as a checkpoint, however large",
        description="Constructs a module without memory for its parameters, and writes what a recipe makes of them as "
        "safetensors files, part by part. The same command resumes what was interrupted.",
        epilog="example: fastinit init transformers:LlamaForCausalLM --set "
        "'config=transformers:LlamaConfig(num_hidden_layers=2)' --recipe llama --dtype bfloat16 --out llama",
    )
    for command in (compare, audit, init):
        command.add_argument(
            "target", metavar="MODULE:CALLABLE", help="what to call for the module, as torch.nn:Linear"
        )
        command.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="K=V",
            help="its arguments, by name; an object as K=MODULE:CALLABLE(NAME=VALUE, ...)",
        )  # fmt: skip
        if command is not init:
            command.add_argument("--plot", metavar="FILE", help="write a picture, report.png for one")
        command.add_argument("--seed", type=seed, default=0, help="for torch.manual_seed and streams (0)")
    audit.add_argument("--json", metavar="FILE", help="write the table as JSON")
    audit.set_defaults(run=run_audit)
    how = init.add_mutually_exclusive_group(required=True)
    how.add_argument("--recipe", metavar="RECIPE", help="llama, 'gpt2(n_layer=12)', ...: see fastinit.recipes")
    how.add_argument("--rules", metavar="MODULE:NAME", help=f"of your own: {RULES}")
    init.add_argument("--out", metavar="DIR", required=True, help="the folder, created if missing")
    init.add_argument("--dtype", metavar="DTYPE", help="of all floating-point parameters, as bfloat16")
    init.add_argument("--shard-size", metavar="SIZE", default="5GB", help="of a file at most (5GB)")
    init.set_defaults(run=run_init)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"expected a whole number in [0, 2**62), got {text!r}")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


# --- compare -----------------------------------------------------------------------------------


def run_compare(arguments: argparse.Namespace) -> int:
    from .compare import compare
    from .table import new_console, show

    settings = dict(setting(text) for text in arguments.set)
    draw_picture = picture_drawer(arguments.plot) if arguments.plot is not None else None
    make = functools.partial(built, arguments.target, settings)
    comparison = compare(make, seed=arguments.seed, repeat=arguments.repeat)
    if not comparison.rows:
        raise Misuse(f"{arguments.target}: none of its parameters is what a single call of an initialiser made it")
    show(comparison, arguments.target, new_console())
    if draw_picture is not None:
        draw_picture(comparison, arguments.target)
    return FAILED if comparison.failures else OK


# --- audit -------------------------------------------------------------------------------------


def run_audit(arguments: argparse.Namespace) -> int:
    from ..models.audit import audit
    from ..models.build import constructed_by_name
    from ..models.show import plural
    from .table import new_console

    settings = dict(setting(text) for text in arguments.set)
    if arguments.plot is not None:
        picture_drawer(arguments.plot)  # or an error now, before the work
    if arguments.json is not None and not Path(arguments.json).absolute().parent.is_dir():
        raise Misuse(f"--json {arguments.json}: its folder does not exist")
    model, problems, report = constructed_by_name(
        functools.partial(built, arguments.target, settings), seed=arguments.seed
    )
    found = audit(model, problems=problems)
    console = new_console()
    console.print(found)
    for name, count in report.escaped.items():
        console.print(f"drawn by torch: {name}, {plural(count, 'time')}", soft_wrap=True)
    if arguments.plot is not None:
        found.plot(arguments.plot)
    if arguments.json is not None:
        Path(arguments.json).write_text(found.to_json(), encoding="utf-8")
    return FAILED if found.errors else OK


# --- init --------------------------------------------------------------------------------------


def run_init(arguments: argparse.Namespace) -> int:
    from ..models.build import constructed_by_name
    from ..models.checkpoint import bytes_in, write_checkpoint
    from ..models.initialize import floating
    from ..models.meta import meta
    from ..models.recipe import named
    from ..models.show import plural

    settings = dict(setting(text) for text in arguments.set)
    try:
        dtype, size = floating(arguments.dtype), bytes_in(arguments.shard_size)
        rules = named(arguments.recipe) if arguments.recipe is not None else found(arguments.rules, RULES)
    except (ValueError, TypeError) as error:
        raise Misuse(one_line(error)) from error
    make = functools.partial(built, arguments.target, settings)
    with meta():
        model, problems, _ = constructed_by_name(make, seed=arguments.seed, device=torch.device("meta"))
    if problems:
        raise Misuse("; ".join(f"{name} {what}" for name, what in problems))
    begin = time.perf_counter()
    try:
        written = write_checkpoint(model, rules, arguments.out, seed=arguments.seed, dtype=dtype, shard_size=size)
    except (ValueError, TypeError, OSError) as error:
        print(f"fastinit init: {error}", file=sys.stderr)
        return FAILED
    except Exception as error:  # a function in the rules can raise anything
        print(f"fastinit init: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return FAILED
    total, taken = sum(path.stat().st_size for path in written), time.perf_counter() - begin
    print(f"{plural(len(written), 'file')}, {total / 1e9:,.2f} GB, in {taken:.1f} s: {arguments.out}")
    return OK


# --- a module from the command line ------------------------------------------------------------


def setting(text: str) -> tuple[str, Any]:
    """`name=value`: a Python literal, a dtype such as torch.bfloat16, `MODULE:CALLABLE(...)`, or the string itself."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise Misuse(f"--set takes name=value, as d_model=256; got {text!r}")
    dtype = getattr(torch, value.removeprefix("torch."), None) if value.startswith("torch.") else None
    if isinstance(dtype, torch.dtype):
        return name, dtype
    with contextlib.suppress(ValueError, SyntaxError):
        return name, ast.literal_eval(value)
    return name, made(value) if re.fullmatch(r"[\w.]+:[\w.]+\(.*\)", value, re.DOTALL) else value


def made(text: str) -> Any:
    """The object of `MODULE:CALLABLE(name=value, ...)`, whose values are Python literals. Raises `Misuse`."""
    from ..models.recipe import literal_call

    module_name, _, call = text.partition(":")
    try:
        path, arguments, keywords = literal_call(call)
    except ValueError as error:
        raise Misuse(f"expected MODULE:CALLABLE(NAME=VALUE, ...) with Python literals, got {text!r}") from error
    make = found(f"{module_name}:{path}")
    try:
        return make(*arguments, **keywords)
    except Exception as error:  # somebody else's code can raise anything
        raise Misuse(f"{text} raised {type(error).__name__}: {one_line(error)}") from error


def built(target: str, settings: dict[str, Any]) -> torch.nn.Module:
    """What the callable makes of its settings. Raises `Misuse` where that is no module."""
    make = found(target)
    call = f"{target}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"
    try:
        module = make(**settings)
    except Exception as error:  # somebody else's code can raise anything
        raise Misuse(
            f"{call} raised {type(error).__name__}: {one_line(error)}; give its arguments with --set"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise Misuse(f"{call} must return a torch.nn.Module, got {type(module).__name__}")
    return module


def found(target: str, wanted: str = CALLABLE) -> Any:
    """The object of `MODULE:NAME`. Raises `Misuse` where there is none, or no callable where a module is to be made."""
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        example = f", as in `{EXAMPLE}`" if wanted is CALLABLE else ""
        raise Misuse(f"expected MODULE:CALLABLE{example}; got {target!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # what lies in the current folder counts, as it does for `python -m`
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise Misuse(
            f"cannot import {module_name!r} ({type(error).__name__}: {one_line(error)}); "
            "expected the name of a Python module"
        ) from error
    try:
        result = functools.reduce(getattr, path.split("."), module)
    except AttributeError as error:
        raise Misuse(f"{module_name!r} has no {path!r}; expected {wanted} of that module") from error
    if wanted is CALLABLE and not callable(result):
        raise Misuse(f"{target} is not callable but {type(result).__name__}; expected what makes a torch.nn.Module")
    return result


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def picture_drawer(path: str) -> Callable[[Any, str], None]:
    """What draws to `path`, once it is known that it can. Raises `Misuse` before the work, not after it."""
    try:
        from . import plot as picture
    except ImportError as error:
        raise Misuse("--plot needs matplotlib: pip install 'torch-fastinit[plot]'") from error
    reason = picture.why_not(path)
    if reason is not None:
        raise Misuse(f"--plot {path}: {reason}")
    return functools.partial(picture.draw, path)


# --- doctor and warmup -------------------------------------------------------------------------


def run_doctor(arguments: argparse.Namespace) -> int:
    from .doctor import examine
    from .table import new_console

    examine(new_console())
    return OK


def run_warmup(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..drawing import engines
    from ..kernels.contract import KernelMissing
    from ..laws import BY_NAME

    cpu = engines.load("cpu")
    if isinstance(cpu, str):
        print(
            f"fastinit warmup: there is nothing to compile, the CPU engine does not work here: {cpu}", file=sys.stderr
        )
        return FAILED
    if unknown := sorted(set(arguments.laws) - set(BY_NAME)):
        raise Misuse(f"there is no law {', '.join(unknown)}; expected some of {', '.join(BY_NAME)}")
    begin, kernels = time.perf_counter(), engines.every_kernel(arguments.laws)
    keep = keeper(arguments.into)
    try:
        for wanted in tqdm(kernels, desc="compiling", unit="kernel", disable=None):
            keep(wanted)
    except (KernelMissing, OSError) as error:
        print(f"fastinit warmup: {one_line(error)}", file=sys.stderr)
        return FAILED
    took = f"{len(kernels)} kernels ready in {time.perf_counter() - begin:.1f} s"
    if arguments.into is not None:
        print(f"{took}, kept in {arguments.into}; to use them there, set FASTINIT_CACHE_DIR={arguments.into}")
        return OK
    from ..kernels.cpu.cache import places

    if (folder := places().writing) is None:
        print(
            f"{took}, in vain: no cache folder can be written. Set FASTINIT_CACHE_DIR to one that only you can write",
            file=sys.stderr,
        )
        return FAILED
    print(f"{took}, kept in {folder.path}")
    return OK


def keeper(into: str | None) -> Callable[[Kernel], object]:
    """What has a kernel on disk: in the folder `into`, else where fills keep it. Raises `Misuse` before the work."""
    from ..kernels.cpu import loading
    from ..kernels.cpu.trust import Folder

    if into is None:
        return lambda wanted: loading.kernel(*wanted)
    folder = Folder(Path(into), shared=True)
    try:
        writable = folder.prepare()
    except OSError as error:
        raise Misuse(f"--into {into}: {one_line(error)}; expected a folder that only you or root can write") from error
    if not writable:
        raise Misuse(f"--into {into}: it cannot be written; expected a folder that only you or root can write")
    return functools.partial(loading.keep, folder)
