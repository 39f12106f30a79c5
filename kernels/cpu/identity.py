"""A digest of a package's code, so that kernels made from other code are told apart.

Works for packages in folders, with sources or .pyc files only, in zip files, and frozen into a program, because each
module's own loader is asked, and none of them is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import CodeType
from typing import Any

from ..arithmetic.bind import ByWidth, Function, names_in, reached_from


def package_digest(package: ModuleSpec) -> bytes | None:
    """Of every module in a package and in the packages inside it; None where the code of one is not available."""
    digest = hashlib.sha256()
    with contextlib.suppress(ImportError):
        for spec in sorted(specs_in(package), key=lambda spec: spec.name):
            content = content_of(spec)
            digest.update(f"{spec.name} {len(content)} ".encode() + content)
        return digest.digest()
    return None


def module_content(package: str, module: str) -> bytes | None:
    """The content of a module of a package that need not have been imported; None where it is not available."""
    with contextlib.suppress(ImportError, ValueError):  # ValueError: something in the package's place has no spec
        spec = importlib.util.find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            return content_of(spec_in(pkgutil.get_importer(location), f"{package}.{module}"))
    return None


def specs_in(package: ModuleSpec) -> Iterator[ModuleSpec]:
    """A package, its modules, and those of the packages inside it. Raises `ImportError` where one cannot be found."""
    yield package
    for found in pkgutil.iter_modules(package.submodule_search_locations, f"{package.name}."):
        spec = spec_in(found.module_finder, found.name)
        if spec.submodule_search_locations is None:
            yield spec
        else:
            yield from specs_in(spec)


def spec_in(finder: Any, name: str) -> ModuleSpec:
    spec: ModuleSpec | None = None if finder is None else finder.find_spec(name)
    if spec is None:
        raise ImportError(f"{finder} does not find {name}")
    return spec


def content_of(spec: ModuleSpec) -> bytes:
    """The bytes of the file that a module is loaded from; where it has none of its own, its code.

    Raises `ImportError` where there is neither.
    """
    loader: Any = spec.loader
    with contextlib.suppress(AttributeError, OSError):
        content: bytes = loader.get_data(spec.origin)
        return content
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None:
        raise ImportError(f"{loader} does not tell the code of {spec.name}")
    return text_of(code).encode()


def text_of(code: CodeType) -> str:
    """What a code object does, the same in every process; `marshal` tells objects from equal ones, and reads flags."""
    head = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_code.hex())
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    table = getattr(code, "co_exceptiontable", b"")
    return f"code{(*head, *names, table)}{constant_text(code.co_consts)}"


def arithmetic_text(function: Function) -> str:
    """What a function of the arithmetic does, with all that it calls and the numbers that these use."""
    lines = []
    for reached in reached_from(function):
        used = [f"{name}={value_text(value)}" for name, value in names_in(reached)]
        lines.append(f"{reached.__qualname__}: {text_of(reached.__code__)} {' '.join(used)}")
    return "\n".join(lines)


def value_text(value: Any) -> str:
    if isinstance(value, Function):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, ByWidth):
        return f"({value_text(value.narrow)}, {value_text(value.wide)})"
    return constant_text(value)


def constant_text(constant: Any) -> str:
    if isinstance(constant, CodeType):
        return text_of(constant)
    if isinstance(constant, tuple):
        return f"({','.join(map(constant_text, constant))})"
    if isinstance(constant, frozenset):  # whose order is another in every process
        return f"{{{','.join(sorted(map(constant_text, constant)))}}}"
    return repr(constant)
