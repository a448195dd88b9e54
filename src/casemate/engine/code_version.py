"""A hash of the code that makes a result, so that a mended bug cannot leave stale numbers in the store.

The hash runs over the syntax trees of a module and of every module of the two packages that it imports, directly or
not. Comments, docstrings, layout and the wording of errors do not enter it: none of them can change a number.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

_PACKAGES = ("casemate", "casemate_study")
_SOURCE = Path(__file__).resolve().parents[2]
_NEUTRAL = tuple(
    f"casemate.{name}"
    for name in ("arrays", "errors", "files", "progress", "provenance", "types", "data.fashion_mnist", "engine")
)
"""Modules and rooms that cannot change a number: messages, reading and writing, progress, annotations, scheduling, and
the finding of data whose bytes are verified by checksum."""


def _is_neutral(module: str) -> bool:
    return module == "casemate" or any(module == name or module.startswith(f"{name}.") for name in _NEUTRAL)


class _WithoutWords(ast.NodeTransformer):
    """Drops docstrings and what is raised."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.copy_location(ast.Raise(exc=None, cause=None), node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.copy_location(ast.Pass(), node) if is_text else self.generic_visit(node)


def _path_of(module: str) -> Path | None:
    """The source file of a dotted module name within the packages, found without importing it."""
    base = _SOURCE.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(tree: ast.AST) -> set[str]:
    """Full names of the modules that `tree` imports (a name taken from a package may be a module itself)."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in _PACKAGES and _path_of(name)}


@cache
def _module(module: str) -> tuple[str, frozenset[str]]:
    """The hash of one module's own code, and the modules it imports."""
    path = _path_of(module)
    if path is None:
        raise ModuleNotFoundError(f"{module} is not a module of {' or '.join(_PACKAGES)}")
    tree = ast.parse(path.read_text())
    imports = frozenset(name for name in _imports(tree) if not _is_neutral(name))
    return hashlib.sha256(ast.dump(_WithoutWords().visit(tree)).encode()).hexdigest(), imports


@cache
def code_version(module: str) -> str:
    """16 hex digits that change when the code of `module`, or of anything it rests on, changes."""
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= _module(name)[1] - seen
    digest = hashlib.sha256("".join(f"{name}={_module(name)[0]};" for name in sorted(seen)).encode())
    return digest.hexdigest()[:16]
