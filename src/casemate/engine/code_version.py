"""A hash of the code that computes a result, so that after a bug is fixed no stale numbers are read from the store.

The hash covers the syntax trees of a module and of every module of the same packages that it imports, directly or
indirectly. Comments, docstrings, layout and error messages are left out: none of them can change a number.

Source files are parsed, never imported. A name that a package's `__init__` only re-exports, by an import or lazily by
a stub (`__init__.pyi`), counts as an import of the module that defines it, not of the rest of the `__init__`.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import final

_NEUTRAL = tuple(
    f"casemate.{name}."
    for name in (
        "_version",
        "arrays",
        "errors",
        "files",
        "progress",
        "provenance",
        "tables",
        "types",
        "data.fashion_mnist",
        "engine",
    )
)
"""Prefixes of modules left out of the hash because they cannot change a number: error messages, reading and writing,
progress, annotations, scheduling, and the search for data whose bytes are verified by checksum."""


class _WithoutText(ast.NodeTransformer):
    """Replaces docstrings by `pass`, and every `raise` statement by a bare `raise`, in a syntax tree to be hashed."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.copy_location(ast.Raise(exc=None, cause=None), node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.copy_location(ast.Pass(), node) if is_text else self.generic_visit(node)


@final
@dataclass(frozen=True)
class _Import:
    """One name that a source file imports, as `from module import name as bound`; `module` is absolute."""

    module: str
    name: str | None
    """The name imported from the module; None if the module itself is imported."""
    bound: str
    """The name by which the importing file uses it."""


@final
@dataclass(frozen=True)
class _File:
    """What the hash needs to know of one source file, from its syntax tree."""

    digest: str
    """SHA-256 of its syntax tree without docstrings and error messages, in hex."""
    imports: tuple[_Import, ...]
    is_package: bool
    exports: Mapping[str, tuple[_Import, ...]]
    """For a package's `__init__`: the imports behind each name that it or its stub re-exports; else empty."""
    unused: tuple[_Import, ...]
    """For a package's `__init__`: imports that its own code does not use: re-exports, and imports for side effects."""


@final
class SourceTree:
    """The source files of some packages, each parsed when first needed, and hashes of their modules' code.

    Args:
        roots: the folders of the packages, which have the packages' names; those that do not exist are ignored.
    """

    def __init__(self, *roots: Path) -> None:
        self._roots = {root.name: root for root in roots if root.is_dir()}
        self._files: dict[str, _File] = {}
        self._versions: dict[str, str] = {}

    def version(self, module: str) -> str:
        """A hash (16 hex digits) that changes when the code of `module`, or of a module that it depends on, changes.

        Comments, docstrings and error messages do not count. Raises `ModuleNotFoundError`.
        """
        if module not in self._versions:
            parts = "".join(f"{name}={self._read(name).digest};" for name in sorted(self.dependencies(module)))
            self._versions[module] = hashlib.sha256(parts.encode()).hexdigest()[:16]
        return self._versions[module]

    def dependencies(self, module: str) -> Set[str]:
        """`module` and all modules of these packages that it imports, directly or not, except those in `_NEUTRAL`."""
        seen: set[str] = set()
        waiting = {module}
        while waiting:
            name = waiting.pop()
            seen.add(name)
            found = {each for imported in self._read(name).imports for each in self._defining(imported)}
            found |= self._registered(name)
            waiting |= {each for each in found if not f"{each}.".startswith(_NEUTRAL)} - seen
        return seen

    def _path_of(self, module: str) -> Path | None:
        """The source file of a module; None if it is not in these packages."""
        package, *parts = module.split(".")
        if package not in self._roots:
            return None
        base = self._roots[package].joinpath(*parts)
        places = (base / "__init__.py", base.with_suffix(".py")) if parts else (base / "__init__.py",)
        return next((path for path in places if path.is_file()), None)

    def _read(self, module: str) -> _File:
        if module not in self._files:
            path = self._path_of(module)
            if path is None:
                raise ModuleNotFoundError(f"{module} is not a module of {' or '.join(self._roots)}")
            self._files[module] = _parsed(module, path)
        return self._files[module]

    def _defining(self, imported: _Import, tried: Set[_Import] = frozenset()) -> set[str]:
        """The modules that define an imported name, found through re-exports; empty if it is not in these packages.

        `tried` holds the imports already followed, so that circular re-exports end.
        """
        if self._path_of(imported.module) is None or imported in tried:
            return set()
        if imported.name is None:
            return {imported.module}
        file = self._read(imported.module)
        if not file.is_package:
            return {imported.module}
        submodule = f"{imported.module}.{imported.name}"
        exported = file.exports.get(imported.name, ())
        found = {each for export in exported for each in self._defining(export, tried | {imported})}
        if not found and self._path_of(submodule) is not None:
            return {submodule}
        return found if exported else {imported.module}

    def _registered(self, module: str) -> set[str]:
        """Modules that the `__init__` of a package around `module` imports but does not use.

        Such imports are for side effects: importing the modules of networks registers the networks by name.
        """
        parts = module.split(".")
        packages = (".".join(parts[:count]) for count in range(1, len(parts)))
        unused = (each for package in packages if self._path_of(package) for each in self._read(package).unused)
        found: set[str] = set()
        for each in unused:
            name = each.module if each.name is None else f"{each.module}.{each.name}"
            if self._path_of(name) is not None and self._defining(each) == {name}:
                found.add(name)
        return found


INSTALLED = SourceTree(*(Path(__file__).resolve().parents[2] / name for name in ("casemate", "casemate_study")))


def code_version(module: str) -> str:
    """A hash (16 hex digits) of the installed code of `module` and of all modules that it depends on."""
    return INSTALLED.version(module)


def _parsed(module: str, path: Path) -> _File:
    tree = ast.parse(path.read_text())
    is_package = path.name == "__init__.py"
    inside = module if is_package else module.rpartition(".")[0]
    imports = tuple(_imports(ast.walk(tree), inside))
    exports: dict[str, tuple[_Import, ...]] = {}
    unused: tuple[_Import, ...] = ()
    if is_package:
        stub = path.with_suffix(".pyi")
        lazy = tuple(_imports(ast.walk(ast.parse(stub.read_text())), inside)) if stub.is_file() else ()
        imports += lazy
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        here = tuple(_imports(_outside_functions(tree), inside))
        unused = tuple(each for each in here if each.bound not in used)
        own = set(_defined(tree))
        for each in (*here, *lazy):
            if each.name not in (None, "*") and each.bound not in own:
                exports[each.bound] = (*exports.get(each.bound, ()), each)
    digest = hashlib.sha256(ast.dump(_WithoutText().visit(tree)).encode()).hexdigest()
    return _File(digest, imports, is_package, exports, unused)


def _imports(nodes: Iterable[ast.AST], inside: str) -> Iterator[_Import]:
    """The imports among the syntax nodes of a file; relative ones are resolved against the package `inside`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, None, alias.asname or alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                parts = inside.split(".")
                base = [*parts[: len(parts) - node.level + 1], *base]
            for alias in node.names:
                yield _Import(".".join(base), alias.name, alias.asname or alias.name)


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """All syntax nodes outside functions, which run when the module is imported; a function counts as one node."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _outside_functions(node)


def _defined(tree: ast.Module) -> Iterator[str]:
    """The names defined outside functions by `def`, `class` or assignment, class bodies included; not imports."""
    for node in _outside_functions(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
