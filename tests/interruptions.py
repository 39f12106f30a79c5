"""Exceptions and calls between any two statements of a module, instead of by luck.

`instrumented` makes a module anew from its source with a call of `point` before each statement of its functions, and
behind the last one of each block. What `point` does is the test's: nothing, raise, or call something else.
"""

from __future__ import annotations

import ast
import inspect
import threading
from collections.abc import Callable, Iterable
from types import ModuleType

POINT = ast.parse("_point()").body[0]
PATIENCE = 20  # seconds after which a deadlock is one
LEAVING = (ast.Return, ast.Raise, ast.Break, ast.Continue)


class Instrument(ast.NodeTransformer):
    def __init__(self) -> None:
        self.depth = 0  # of functions; a module's own statements stay as they are

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.depth += 1
        visited = self.generic_visit(node)
        self.depth -= 1
        return visited

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if self.depth and isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                pointed = [each for statement in block for each in (POINT, statement)]
                setattr(node, field, pointed if isinstance(block[-1], LEAVING) else [*pointed, POINT])
        return node


def instrumented(module: ModuleType, point: Callable[[], None]) -> ModuleType:
    """A second one of `module`, independent of the first, that calls `point` between all statements."""
    tree = ast.fix_missing_locations(Instrument().visit(ast.parse(inspect.getsource(module))))
    made = ModuleType(module.__name__)
    made.__dict__.update(__package__=module.__package__, __file__=module.__file__, _point=point)
    exec(compile(tree, str(module.__file__), "exec"), made.__dict__)
    return made


class Interrupter:
    """Counts the points that the thread which made it passes, while armed, and raises at those with these numbers."""

    module: ModuleType  # for a subclass that calls it

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.armed = False
        self.passed, self.raised = 0, 0
        self.at: frozenset[int] = frozenset()

    def arm(self, at: Iterable[int] = ()) -> None:
        self.passed, self.raised, self.at = 0, 0, frozenset(at)
        self.armed = True

    def interrupt(self, number: int) -> None:
        raise KeyboardInterrupt(number)

    def __call__(self) -> None:
        if self.armed and threading.current_thread() is self.thread:
            number = self.passed
            self.passed += 1
            if number in self.at:
                self.raised += 1
                self.interrupt(number)


def in_time(body) -> None:
    """Run `body` in a thread that may hang, and fail if it does."""
    problems: list[BaseException] = []

    def guarded() -> None:
        try:
            body()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "a deadlock"
    if problems:
        raise problems[0]
