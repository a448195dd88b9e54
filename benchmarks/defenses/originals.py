"""Modules of the cloned repositories, imported as they are. Runs in the environment of the peers.

The clones lie in the folder that the environment variable DEFENSES_SRC names, each under its repository's name. They
were written for a GPU, so `.cuda()` and `device="cuda"` do nothing here; what only their scripts need (TensorBoard,
Weights & Biases, torchvision's data sets) is replaced by empty modules.
"""

import importlib
import os
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

URLS: Mapping[str, str] = {
    name: f"https://github.com/{owner}/{name}"
    for name, owner in {
        "TRADES": "yaodongyu",
        "MART": "YisenWang",
        "AWP": "csdongxian",
        "fast_adversarial": "locuslab",
        "N-FGSM": "pdejorge",
        "robust_union": "locuslab",
        "RSLAD": "zibojia",
        "Fast-Certified-Robust-Training": "shizhouxing",
        "expressive-losses": "alessandrodepalma",
        "auto_LiRPA": "Verified-Intelligence",
        "smoothing": "locuslab",
        "smoothing-adversarial": "Hadisalman",
        "smoothing-consistency": "jh-jeong",
        "VAT-pytorch": "lyakaap",
    }.items()
}
"""The repositories, by the names that their clones have."""

_EMPTY = ("wandb", "ipdb", "IPython", "torchvision", "torchvision.datasets", "torchvision.transforms")


class NotHereError(Exception):
    """A repository that is needed and not there."""


def clone(name: str) -> Path:
    """The folder of a clone. Raises `NotHereError` if it is not there."""
    root = os.environ.get("DEFENSES_SRC")
    if not root or not (found := Path(root, name)).is_dir():
        raise NotHereError(f"no clone of {URLS[name]} in DEFENSES_SRC = {root}; clone it there as {name}")
    return found


def has(name: str) -> bool:
    """Whether a clone is there."""
    try:
        return clone(name).is_dir()
    except NotHereError:
        return False


def commit(name: str) -> str:
    """The commit of a clone, and whether its files were changed."""
    text = ["git", "-C", str(clone(name)), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    return subprocess.run(text, check=True, capture_output=True, text=True).stdout.strip()


def on_cpu() -> None:
    """Make `.cuda()` and `device="cuda"` do nothing, for the rest of this process."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # pyright: ignore[reportAttributeAccessIssue]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # pyright: ignore[reportAttributeAccessIssue]
    randn_like = torch.randn_like

    def plain(like: torch.Tensor, **options: Any) -> torch.Tensor:
        return randn_like(like, **{key: value for key, value in options.items() if key != "device"})

    torch.randn_like = plain  # pyright: ignore[reportAttributeAccessIssue]


def module(
    name: str,
    path: str,
    *,
    folder: str = ".",
    stubs: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> types.ModuleType:
    """Import a module of a clone; those of other clones, which may have the same names, are forgotten.

    Args:
        name: the repository.
        path: the module, as its repository imports it.
        folder: where in the clone it lies.
        stubs: modules to put in place of others, besides the empty ones.
        arguments: the command line that a script reads while it is imported.
    """
    on_cpu()
    others = [str(clone(each)) for each in URLS if each != "auto_LiRPA" and has(each)]
    sys.path[:] = [each for each in sys.path if not each.startswith(tuple(others))]
    for known, loaded in list(sys.modules.items()):
        spec = getattr(loaded, "__spec__", None)
        places = [getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or [])]
        if any(str(place).startswith(tuple(others)) for place in places):
            del sys.modules[known]
    for empty in _EMPTY:
        sys.modules.setdefault(empty, MagicMock(name=empty))
    sys.modules.update(stubs or {})
    if name in ("Fast-Certified-Robust-Training", "expressive-losses"):
        sys.path.insert(0, str(clone("auto_LiRPA")))
    sys.path.insert(0, str(clone(name) / folder))
    with command_line(path, arguments):
        return importlib.import_module(path)


@contextmanager
def command_line(name: str, arguments: Sequence[str]) -> Iterator[None]:
    """Set the command line that a script sees."""
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def smoothing_core() -> types.ModuleType:
    """`core.py` of Cohen et al.; SciPy's `binom_test`, which it imports, is now called `binomtest`."""
    from scipy import stats

    if not hasattr(stats, "binom_test"):
        stats.binom_test = lambda k, n, p: stats.binomtest(int(k), int(n), p).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    return module("smoothing", "core", folder="code")
