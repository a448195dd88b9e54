"""The device to compute on, as a user names it."""

from typing import Any

import torch

from casemate.errors import SettingError


def as_device(given: Any) -> torch.device:
    """The device of a name such as "cpu", "cuda" or "cuda:1".

    Raises `SettingError` for one that PyTorch does not know or cannot use on this machine.
    """
    try:
        device = torch.device(given)
        torch.zeros(1, device=device).item()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise SettingError(
            f"device = {given!r}; expected one that PyTorch can use here, such as 'cpu': {why}"
        ) from error
    return device
