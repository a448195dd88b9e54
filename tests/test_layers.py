"""The floor plan: imports run downward only, nothing imports in a circle, and only the shells speak to the user."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent.parent / "src" / "casemate"

_ROOMS = (
    "cli",
    "play",
    "report",
    "selftest",
    "engine",
    "evaluation",
    "defenses",
    "training",
    "attacks",
    "models",
    "data",
)
"""From top to bottom; below them lies the ground."""
_GROUND = (
    ("losses",),
    ("logits",),
    ("norms", "units"),
    ("rng", "memory", "compiled", "arrays", "geometry", "provenance"),
    ("types", "files", "progress", "rows", "settings"),
    ("_version",),
    ("errors",),
)
"""The modules below all rooms, from top to bottom too."""
_DOORS = ("__main__", "__init__")
"""What is seen from outside lies above everything: nothing inside goes through it."""
_SHELLS = ("cli", "play")


def _level(module: str) -> int:
    """How high a module lies; `module` is its path below the package, such as "training.loop"."""
    first = module.split(".")[0]
    floors = [_DOORS, *((room,) for room in _ROOMS), *_GROUND]
    for height, names in enumerate(reversed(floors)):
        if first in names:
            return height
    raise KeyError(f"{module} lies in no room of the floor plan")


def _modules(source: Path) -> dict[str, str]:
    """The text of every module below `source`, by its path with dots; a package goes by its own name."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path.read_text()
    return found


def _imports(module: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules of the package that `module` imports, anywhere in its text."""

    def inside(name: str) -> str:
        """The module that an absolute name means: the longest part of it that is one."""
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in modules:
            parts.pop()
        return ".".join(parts) or "__init__"

    is_package = any(other.startswith(f"{module}.") for other in modules)
    here = ["casemate", *([] if module == "__init__" else module.split("."))]
    for node in ast.walk(ast.parse(modules[module])):
        if isinstance(node, ast.Import):
            yield from (inside(alias.name) for alias in node.names if alias.name.split(".")[0] == "casemate")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = len(here) - node.level + (is_package or module == "__init__")
                base = ".".join([*here[:kept], *([node.module] if node.module else [])])
            if base.split(".")[0] == "casemate":
                yield from (inside(f"{base}.{alias.name}") for alias in node.names)


def _upward(modules: Mapping[str, str]) -> list[str]:
    """Every import that runs upward."""
    return [
        f"{module} imports {target}"
        for module in modules
        for target in _imports(module, modules)
        if _level(target) > _level(module)
    ]


def _circle(modules: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle; nothing if there are none."""
    graph = {module: set(_imports(module, modules)) - {module} for module in modules}
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := follow(target, [*path, module]):
                return found
        done.add(module)
        return []

    for module in graph:
        if found := follow(module, []):
            return found
    return []


def _speaking(modules: Mapping[str, str]) -> list[str]:
    """Every place outside the shells that prints or takes hold of the standard streams."""
    found = []
    for module, text in modules.items():
        if module.split(".")[0] in _SHELLS:
            continue
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Name(id="print") | ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"):
                    found.append(f"{module}:{node.lineno}")
    return found


def test_every_module_lies_in_a_room() -> None:
    modules = _modules(_SOURCE)
    assert len(modules) > 20
    for module in modules:
        _level(module)


def test_imports_run_downward_only() -> None:
    assert _upward(_modules(_SOURCE)) == []


def test_nothing_imports_in_a_circle() -> None:
    assert _circle(_modules(_SOURCE)) == []


def test_only_the_shells_speak_to_the_user() -> None:
    assert _speaking(_modules(_SOURCE)) == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("data.dataset", "from casemate.models import Classifier", ["data.dataset imports models"]),
        ("data.dataset", "import casemate.training.loop", ["data.dataset imports training.loop"]),
        ("data.dataset", "from casemate import attacks", ["data.dataset imports attacks"]),
        ("data.dataset", "from ..training import loop", ["data.dataset imports training.loop"]),
        ("data.dataset", "from .. import training", ["data.dataset imports training"]),
        ("data.dataset", "def late():\n    from casemate.cli.main import main", ["data.dataset imports cli.main"]),
        ("data", "from ..training.loop import fit", ["data imports training.loop"]),
        ("data", "from .dataset import split", []),
        ("rng", "from casemate.norms import Ball", ["rng imports norms"]),
        ("norms", "from .losses import margin", ["norms imports losses"]),
        ("files", "from casemate.rng import derive", ["files imports rng"]),
        ("errors", "import casemate.files", ["errors imports files"]),
        ("data.dataset", "from casemate import fit", ["data.dataset imports __init__"]),
        ("training.loop", "from .. import fit", ["training.loop imports __init__"]),
        ("training.loop", "import casemate", ["training.loop imports __init__"]),
        ("__init__", "from . import errors, cli", []),
        ("losses", "from casemate.norms import Ball\nimport torch", []),
        ("training.loop", "from casemate.models import create\nfrom casemate.training.config import Training", []),
        ("attacks", "import casemates.training\nfrom training import loop", []),
    ],
)
def test_the_check_finds_a_planted_import(module: str, text: str, expected: list[str]) -> None:
    plain = ["__init__", "errors", "files", "rng", "norms", "losses", "data", "data.dataset", "models", "attacks"]
    modules = dict.fromkeys([*plain, "training", "training.loop", "training.settings", "cli", "cli.main"], "")
    assert _upward(modules | {module: text}) == expected


def test_the_check_finds_an_unknown_room() -> None:
    with pytest.raises(KeyError, match=r"attic\.trunk lies in no room"):
        _upward({"__init__": "", "data": "import casemate.attic.trunk", "attic.trunk": ""})


def test_the_check_finds_a_planted_circle() -> None:
    modules = {
        "files": "from casemate import progress",
        "progress": "from casemate.types import Labels",
        "types": "import casemate.files",
    }
    assert _upward(modules) == []
    assert _circle(modules) == ["files", "progress", "types", "files"]
    assert _circle(modules | {"types": ""}) == []


def test_the_check_finds_a_planted_print() -> None:
    texts = {
        "training.loop": "x = 1\nif x:\n    print(x)",
        "data": "import sys\nsys.stderr.write('')",
        "cli": "print(1)",
    }
    assert _speaking(texts) == ["training.loop:3", "data:2"]
    assert _speaking({"data": "'print(1)'  # print(1)\nobject().print()"}) == []
