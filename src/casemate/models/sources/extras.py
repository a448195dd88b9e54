"""Libraries of the extras: imported where they are needed, with one error for each way in which that fails."""

import importlib
from importlib import metadata
from typing import Any, Literal

import torch

from casemate.errors import MachineError, missing_extra

Use = Literal["never", "if installed", "always"]


def import_extra(name: str, what: str, extra: str, *, torchvision: Use = "never") -> Any:
    """Import the module `name` for the feature `what`; `torchvision` says when the module imports that.

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
        MachineError: it, or a torchvision that it needs, is installed but cannot be imported.
    """
    if torchvision != "never":
        _check_torchvision(what, extra, torchvision)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise missing_extra(what, extra) from error
    except Exception as error:
        raise MachineError(
            f"{what} needs {name}, which is installed but fails when it is imported: {type(error).__name__}: {error}; "
            f"install it again: pip install --force-reinstall {name}"
        ) from error


def _check_torchvision(what: str, extra: str, use: Use) -> None:
    """Raise `MissingExtraError` without a torchvision that is needed, `MachineError` if it fits another PyTorch."""
    try:
        installed = metadata.version("torchvision")
    except metadata.PackageNotFoundError as error:
        if use == "if installed":
            return
        raise missing_extra(what, extra) from error
    wanted = _torch_of_torchvision()
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        belongs = f", which belongs to torch {wanted}" if wanted else ""
        raise MachineError(
            f"{what} needs a torchvision that fits the installed PyTorch: torchvision is {installed}{belongs}, torch "
            f"is {torch.__version__}; install the pair: pip install --upgrade torch torchvision"
        ) from error


def _torch_of_torchvision() -> str | None:
    """The version of PyTorch that the installed torchvision names as its own, if it names one."""
    for each in metadata.requires("torchvision") or []:
        name, _, version = each.partition("==")
        if name.strip() == "torch":
            return version.strip()
    return None
