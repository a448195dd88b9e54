"""Folders of results: what another run left in one is never replaced unasked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from casemate.errors import CasemateError, SettingError, StoreError
from casemate.files import read_json
from casemate.progress import Observer

RESULT = "result.json"
"""Says what an evaluation or an attack was, and what it found."""
SUMMARY = "summary.json"
"""Says the same of a study."""
CONTACT_SHEET = "contact-sheet.png"
"""Shows images before and after an attack."""
FILES = (
    "report.html",
    "record.json",
    "adversarial.safetensors",
    "examples.parquet",
    "examples.csv",
    CONTACT_SHEET,
    RESULT,
)
"""What evaluations and attacks write; in a folder that holds one of them stands a result."""
Overwrite = Annotated[
    bool, FlagCreatePairsOff, arg(help="Replace the results of another run in OUT.", help_behavior_hint="")
]

WAY_OUT = "choose another --out, or give --overwrite to replace it"
"""What to do where a result is in the way."""

_APART = ("device", "seconds_at_most", "notes")
"""What may differ between two runs of the same."""
_HASHES = {
    "fingerprint": "other weights",
    "images_sha256": "other images or labels",
    "substitute_fingerprint": "another substitute",
}


def check_results(folder: Path, about: Mapping[str, Any], *, overwrite: bool, observer: Observer) -> None:
    """Make sure, before anything is computed, that no other results in `folder` are lost; the same may be replaced.

    Args:
        folder: where the results are to go.
        about: what the run is, as its result.json will say.
        overwrite: replace them whatever they are.

    Raises:
        SettingError: the folder holds results of another run, or some that cannot be told to be of the same.
    """
    held = _held(folder)
    if overwrite or not held:
        return
    old = _read(folder, RESULT)
    if isinstance(old, str):
        raise SettingError(
            f"{folder} holds {', '.join(held)}, {old}; {_title(about)} would be written over it: {WAY_OUT}"
        )
    wanted = {name: value for name, value in json.loads(json.dumps(about)).items() if name not in _APART}
    other = [_difference(name, old.get(name), value) for name, value in wanted.items() if old.get(name) != value]
    if other:
        raise SettingError(
            f"{folder} holds {_title(old)}, and {_title(about)} would be written over it ({'; '.join(other)}): "
            f"{WAY_OUT}"
        )
    observer.message(f"{folder} holds the results of the same run; they are replaced.")


def check_report(folder: Path, about: Mapping[str, Any], *, overwrite: bool, observer: Observer) -> None:
    """The same for the report of a study, which may replace one of the same scale, data set and seed.

    It may also replace that of a data set which only stood in for another.

    Raises:
        SettingError: the folder holds results of another run, or some that cannot be told to be of the same.
    """
    held = _held(folder)
    if overwrite or not held:
        return
    old = _read(folder, SUMMARY)
    title = f"the report of a study at {about['scale']} scale ({about['dataset']}, seed {about['seed']})"
    if isinstance(old, str):
        raise SettingError(f"{folder} holds {', '.join(held)}, {old}; {title} would be written over it: {WAY_OUT}")
    stood_in = old.get("fallback_for") is not None
    other = [
        _difference(name, old.get(name), value)
        for name, value in about.items()
        if old.get(name) != value and not (name == "dataset" and stood_in)
    ]
    if other:
        raise SettingError(
            f"{folder} holds the report of another study, and {title} would be written over it ({'; '.join(other)}): "
            f"{WAY_OUT}"
        )
    observer.message(f"{folder} holds a report of this study; it will be replaced.")


def _held(folder: Path) -> list[str]:
    """The files in a folder that are results of casemate."""
    return [name for name in (*FILES, SUMMARY) if (folder / name).exists()]


def _read(folder: Path, name: str) -> dict[str, Any] | str:
    """What a folder says of its results, or why it says nothing."""
    if not (folder / name).exists():
        return f"but no {name} that says of what"
    try:
        found = read_json(folder / name, StoreError)
    except CasemateError:
        found = None
    return found if isinstance(found, dict) else f"but its {name} cannot be read"


def _title(about: Mapping[str, Any]) -> str:
    """A run in a few words; what is held may be of any form."""
    data = about.get("data", about.get("dataset"))
    eps = about.get("eps")
    radii = ", ".join(f"{each:g}" for each in eps) if isinstance(eps, list) and all(map(_is_number, eps)) else eps
    where = f"{about.get('model')} ({data}, eps {radii}, seed {about.get('seed')})"
    attack = about.get("attack")
    return f"an attack on {where}" if isinstance(attack, Mapping) else f"an evaluation of {where}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _difference(name: str, old: Any, new: Any) -> str:
    """In what two runs differ."""
    return _HASHES.get(name, f"{name.replace('_', ' ')} {_short(old)}, now {_short(new)}")


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
