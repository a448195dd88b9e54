"""Folders of results: which files an evaluation or an attack writes, and what may be replaced there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.errors import CasemateError, SettingError, StoreError
from casemate.files import read_json
from casemate.progress import Observer

RESULT = "result.json"
"""Name of the file with the settings and results of an evaluation or an attack."""
SUMMARY = "summary.json"
"""Name of the file with the settings and results of a study."""
COMPARISON_FILE = "comparison.json"
"""Name of the file with the comparison of two models."""
CONTACT_SHEET = "contact-sheet.png"
"""Name of the picture of images before and after an attack."""
FILES = (
    "report.html",
    "record.json",
    "adversarial.safetensors",
    "examples.parquet",
    "examples.csv",
    CONTACT_SHEET,
    RESULT,
)
"""The files that evaluations and attacks write; a folder with any of them holds a result."""

_IGNORED = ("device", "seconds_at_most", "notes", "eps_text", "data_path")
"""Entries of a run's settings that are not compared: two runs that differ only in these count as the same run."""
_BY_NAME = ("recipes", "training")
"""Entries that are settings by name, of a hardening: only those that differ are stated."""
_HASHES = {
    "fingerprint": "other weights",
    "images_sha256": "other images or labels",
    "substitute_fingerprint": "another substitute",
}


def check_replaceable(
    folder: Path,
    about: Mapping[str, Any],
    *,
    overwrite: bool,
    observer: Observer,
    advice: str,
    file: str = RESULT,
) -> None:
    """Raise, before anything is computed, if the run would replace results of a run with other settings.

    Results of the same settings may be replaced; the observer then receives a message that they are.

    Args:
        folder: where the results are to go.
        about: the settings of the run, as `file` will state them.
        overwrite: raise nothing, so that any results are replaced.
        observer: receives the message.
        advice: what to do if they may not be replaced, the end of the error's message.
        file: the file that states the settings of the results in `folder`.

    Raises:
        SettingError: the folder holds results of another run, or results whose settings are unknown.
    """
    files = [name for name in (*FILES, SUMMARY) if (folder / name).exists()]
    if overwrite or not files:
        return
    old = _read(folder, file)
    if isinstance(old, str):
        raise SettingError(
            f"{folder} holds {', '.join(files)}, {old}; {_title(about)} would be written over it: {advice}"
        )
    ignored = (*_IGNORED, "dataset") if old.get("fallback_for") is not None else _IGNORED
    wanted = {name: value for name, value in json.loads(json.dumps(about)).items() if name not in ignored}
    other = [
        _HASHES.get(name) or _difference(old, wanted, about, name)
        for name, value in wanted.items()
        if old.get(name) != value
    ]
    if other:
        raise SettingError(
            f"{folder} holds {_title(old)}, and {_title(about)} would be written over it ({'; '.join(other)}): {advice}"
        )
    observer.message(f"{folder} holds the results of the same run; they are replaced.")


def _read(folder: Path, name: str) -> dict[str, Any] | str:
    """The content of the file `name` in a folder; if it is missing or damaged, a text that says so."""
    if not (folder / name).exists():
        return f"but no {name} with their settings"
    try:
        found = read_json(folder / name, StoreError)
    except CasemateError:
        found = None
    return found if isinstance(found, dict) else f"but its {name} cannot be read"


def _title(about: Mapping[str, Any]) -> str:
    """A run in a few words, for error messages, from its settings.

    These may come from a file that another program wrote, so their types are not relied on.
    """
    if "scale" in about:
        return f"the report of a study at {about['scale']} scale ({about.get('dataset')}, seed {about.get('seed')})"
    data = about.get("data", about.get("dataset"))
    eps = about.get("eps")
    if isinstance(eps, list) and all(isinstance(each, int | float) for each in eps):
        texts = about.get("eps_text")
        eps = ", ".join(map(str, texts)) if isinstance(texts, list) else ", ".join(f"{each:g}" for each in eps)
    where = f"{about.get('model')} ({data}, eps {eps}, seed {about.get('seed')})"
    if isinstance(about.get("recipes"), Mapping):
        return f"a hardening of {where}"
    return f"an attack on {where}" if isinstance(about.get("attack"), Mapping) else f"an evaluation of {where}"


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], about: Mapping[str, Any], name: str) -> str:
    """In what way a setting is another one, in a few words; `about` has values as they were written."""
    held, wanted = old.get(name), new[name]
    if name not in _BY_NAME or not isinstance(held, Mapping):
        return f"{name.replace('_', ' ')} {_setting(old, name)}, now {_setting(about, name)}"
    if held.keys() != wanted.keys():
        return f"{name} {_short(list(held))}, now {_short(list(wanted))}"
    changed = [each for each in wanted if held[each] != wanted[each]]
    if all(isinstance(wanted[each], int | float) for each in changed):
        return "; ".join(f"{each.replace('_', ' ')} {held[each]}, now {wanted[each]}" for each in changed)
    return f"other settings of {', '.join(changed)}"


def _setting(settings: Mapping[str, Any], name: str) -> str:
    """A setting in a few characters, for error messages; values of eps as they were written."""
    if name == "eps":
        return _short(settings.get("eps_text", settings.get("eps")))
    return _short(settings.get(name))


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
