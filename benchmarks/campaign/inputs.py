"""Damaged and hostile inputs to every loader: each is read, or is one error of casemate's, soon, in little memory.

Every loader runs in a process of its own with a limit on its memory, and is given valid files with one random damage
each: bytes that are flipped, cut or repeated, and lies where the format states sizes, types or names (tests/damage.py).
"""

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.inside import inside, write_result
from benchmarks.campaign.parts import Setting
from benchmarks.campaign.rooms import ROOT

TESTS = ROOT / "tests"
_SECONDS = 20
"""Of real time, after which an input hangs."""
_ADDRESSES = 4_000_000_000
"""Bytes that a loader may reserve; so that more than `_MEMORY` can be seen."""
_MEMORY = 1_000_000
"""KiB of memory that all inputs of a loader together may take beyond that of the imports."""
_ALL = 3600.0
"""Seconds for all inputs of a loader."""


def run(setting: Setting) -> list[Counts]:
    """Give damaged inputs to every loader."""
    names = [*NAMES][: setting.size.loaders]
    rows = []
    with setting.observer.work("Damaged inputs", len(names)) as advance:
        for name in names:
            rows.append(given(setting, name))
            advance(1, name)
    return rows


def given(setting: Setting, name: str) -> Counts:
    """Give damaged inputs to one loader."""
    room = setting.room()
    counts = Counts(f"damaged input: {NAMES[name]}")
    result = room.root / "result.json"
    ended = inside(
        room,
        attempts,
        *(name, str(room.work), str(result), setting.size.inputs, setting.seed),
        seconds=_ALL,
        memory=_ADDRESSES,
    )
    if not result.exists():
        raise RuntimeError(f"the loader of {name} cannot be tried: {ended.said[-2000:]}")
    found = json.loads(result.read_text())
    for each in found["trials"]:
        counts.add(Trial(**each))
    counts.numbers = {"longest input, s": found["longest"], "memory, MB": found["memory"] / 1024}
    if ended.code != 0:
        counts.add(Trial("the process", lost=[f"it ended with {ended.code}: {ended.last_line}"]))
    if found["memory"] > _MEMORY:
        counts.add(Trial("memory", lost=[f"{found['memory']} KiB, more than {_MEMORY}"]))
    room.remove()
    return counts


class TooLongError(BaseException):
    """Raised by the alarm in an input that takes too long."""


def attempts(name: str, folder: str, result: str, count: int, seed: int) -> int:
    """Damage the files of a loader `count` times; what came of it goes to `result`. Runs in a process of its own."""
    sys.path.insert(0, str(TESTS))
    os.chdir(folder)
    warnings.simplefilter("ignore")
    from casemate.errors import CasemateError

    damaged = import_module("damage").damaged

    def too_long(*_: Any) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, too_long)
    place = Path(folder) / "files"
    place.mkdir()
    opens = _maker(name)(place)
    with suppress(CasemateError):  # of formats that need trust
        opens()
    files = sorted(each for each in place.rglob("*") if each.is_file())
    sound, draw = {each: each.read_bytes() for each in files}, random.Random(f"{seed} {name}")
    before, longest, trials = _memory(), 0.0, []
    for attempt in range(count):
        file = draw.choice(files)
        file.write_bytes(damaged(sound[file], attempt, draw))
        trial: dict[str, Any] = {"what": f"{file.name}, attempt {attempt}"}
        start = time.monotonic()
        signal.alarm(_SECONDS)
        try:
            trial["ended"] = "noticed" if opens() is None else "read"
        except CasemateError as error:
            trial["ended"] = "refused"
            if not str(error).strip():
                trial["lost"] = ["an error without a message"]
        except TooLongError:
            trial["hung"] = True
        except BaseException as error:
            trial["lost"] = [f"{type(error).__name__}: {error}"[:300]]
            trial["traceback"] = True
            traceback.print_exc()
        signal.alarm(0)
        longest = max(longest, time.monotonic() - start)
        trials.append(trial)
        for each in place.rglob("*"):
            if each.is_file() and each not in sound:
                each.unlink()
        for each, raw in sound.items():
            each.write_bytes(raw)
    write_result(result, {"trials": trials, "longest": longest, "memory": _memory() - before})
    return 0


def _memory() -> int:
    """The most memory that this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


Opens = Callable[[], Any]
"""Reads what lies in a loader's folder; None where a damage is noticed and what was lost is computed again."""


def _maker(name: str) -> Callable[[Path], Opens]:
    """What writes sound files of a loader into a folder, and returns what reads them."""
    kind, _, rest = name.partition(":")
    if kind == "model":
        return import_module("test_damaged_models").CORE[rest]
    if kind == "extra":
        return import_module("test_damaged_models").EXTRAS[rest][0]
    if kind == "images":
        from casemate.data import open_images

        def make(folder: Path) -> Opens:
            path = import_module("test_damaged_sources").LOADERS[rest](folder)
            return lambda: open_images(path).read(slice(None)).tensors()

        return make
    from benchmarks.campaign import results

    return results.MAKERS[rest]


_EXTRAS = {
    "onnx": ("ONNX", "onnx2torch"),
    "onnx_external": ("ONNX with weights in another file", "onnx2torch"),
    "keras": ("Keras (.keras)", "keras"),
    "hdf5": ("Keras (HDF5), not trusted", "keras"),
    "hugging_face": ("folder of Hugging Face", "transformers"),
    "timm": ("weights of timm", "timm"),
}
"""Loaders that need a library of an extra: what they read, and the library."""

NAMES = {
    "result:record": "record of adversarial examples",
    "images:npz": "images (.npz)",
    "model:weights": "weights (.safetensors)",
    "result:hashed_record": "record without images",
    "result:evaluation": "finished evaluation and its table",
    "result:piece": "piece of an evaluation",
    "result:training": "training checkpoint",
    "result:artifact": "artifact of a study",
    "result:study": "summary and figures of a study",
    "result:benchmark": "folder of a benchmark",
    "result:steps": "steps of a hardening",
    "model:checkpoint": "model of casemate, its checksum made right",
    "model:state_dict": "weights (.pt)",
    "model:old_state_dict": "weights (.pth of old PyTorch)",
    "model:exported": "exported program (.pt2), not trusted",
    "model:exported_trusted": "exported program (.pt2), trusted",
    "model:torchscript": "TorchScript, not trusted",
    "model:torchscript_trusted": "TorchScript, trusted",
    "model:pickled": "pickled module, not trusted",
    "model:pickled_trusted": "pickled module, trusted",
    "images:packed_npz": "images (.npz, compressed)",
    "images:tensors": "images (.safetensors)",
    "images:idx": "images (IDX)",
    "images:packed_idx": "images (IDX, gzip)",
    "images:table": "images (CSV of paths)",
    "images:parquet": "images (Parquet)",
    "images:pictures": "images (folder of pictures)",
    "images:cifar": "images (CIFAR's binary files)",
} | {f"extra:{name}": words for name, (words, library) in _EXTRAS.items() if find_spec(library) is not None}
"""The loaders, and what they read; those of extras that are not installed are left out."""
