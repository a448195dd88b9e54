"""The repository's scripts as modules: tools and benchmarks belong to no package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).resolve().parents[1]


def imported(place: str) -> ModuleType:
    """The script at a place in the repository, run anew as a module."""
    spec = importlib.util.spec_from_file_location(Path(place).stem, _ROOT / place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks there for its module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module
