"""The commands that the campaign disturbs: small runs, what they write, and what of it is finished at a moment."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import safetensors
import torch
from benchmarks.campaign import nets
from benchmarks.campaign.outputs import contents, marks

MODEL = "nets.py:net"
DATA = "tiny.npz"
_IMAGES, _NOISE = 600, 90.0


@final
@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, what it writes, and what may not be lost."""

    name: str
    argv: tuple[str, ...]
    writes: tuple[str, ...]
    """Names of what it may write in the folder where it runs."""
    results: tuple[str, ...]
    """Patterns of the files whose content two runs must share."""
    finished: Callable[[Path], Mapping[str, Any]]
    """What of the run in a folder is finished, each with a mark that changes if it is computed again."""
    done: Callable[[Path], Mapping[str, Any]]
    """The same of a run that ended."""
    forks: bool = True
    """Whether it may be forked from a process that has imported everything, which saves seconds."""

    def outputs(self, work: Path) -> dict[str, Any]:
        """What the run in a folder found, without times."""
        return contents(work, *self.results)


def write_inputs(folder: Path) -> Path:
    """Write the network and the images that the commands take; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(nets.__file__, folder)
    images, labels = tiny_images(_IMAGES)
    np.savez(folder / DATA, images=images, labels=labels)
    return folder


def tiny_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of 8 x 8 pixels whose class is the third that is bright, under noise; bytes, and classes from 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    bright = torch.zeros(count, 1, 8, 8)
    for place in range(3):
        bright[labels == place, :, :, 2 * place : 2 * place + 2] = 120.0
    pixels = bright + 60 + _NOISE * torch.randn(bright.shape, generator=generator)
    return pixels.round().clamp(0, 255).to(torch.uint8).numpy(), labels.numpy()


def _pieces(work: Path) -> Mapping[str, Any]:
    return marks(work, "store/evaluations/*/*/*.safetensors")


def _artifacts(work: Path) -> Mapping[str, Any]:
    return marks(work, "store/artifacts/*/artifact.json")


def _epochs(work: Path) -> Mapping[str, Any]:
    """The finished epochs of an unfinished training, each with the seconds that it took."""
    path = work / "model.safetensors.training"
    if not path.is_file():
        return _history(work)
    try:
        with safetensors.safe_open(path, "np") as file:  # pyright: ignore[reportPrivateImportUsage]
            rows = json.loads(file.metadata()["state"])["history"]
    except safetensors.SafetensorError:
        return {}  # `broken` says so
    return {f"epoch {row['epoch']}": float(row["seconds"]) for row in rows}


def _history(work: Path) -> Mapping[str, Any]:
    """The epochs of a finished training, each with the seconds that it took."""
    path = work / "model.history.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {f"epoch {row['epoch']}": float(row["seconds"]) for row in csv.DictReader(file)}


_EVALUATE = ("evaluate", MODEL, "--data", DATA, "--threads", "1", "--images", "40", "--budget", "quick")
EVALUATE = Command(
    name="casemate evaluate",
    argv=(*_EVALUATE, "--eps", "0.05", "0.1", "--store", "store", "--out", "out"),
    writes=("store", "out"),
    results=("out/result.json", "out/record.json", "out/adversarial.safetensors", "out/examples.parquet"),
    finished=_pieces,
    done=_pieces,
)
TRAIN = Command(
    name="casemate train",
    argv=(
        *("train", "--data", DATA, "--architecture", "student-8x1", "--epochs", "25", "--batch-size", "32"),
        *("--threads", "1", "--out", "model.safetensors"),
    ),
    writes=("model.safetensors", "model.json", "model.history.csv", "model.safetensors.training"),
    results=("model.safetensors", "model.json", "model.history.csv"),
    finished=_epochs,
    done=_history,
)
_STUDY = ("study", "--scale", "smoke", "--dataset", "digits", "--only", "E2", "--precision", "float32")
STUDY = Command(
    name="casemate study --scale smoke",
    argv=(*_STUDY, "--threads", "1", "--workers", "1", "--store", "store", "--out", "out"),
    writes=("store", "out"),
    results=("store/artifacts/*/*", "out/summary.json", "out/figures/*.csv"),
    finished=_artifacts,
    done=_artifacts,
)
STUDY_2 = replace(STUDY, name="casemate study --workers 2", argv=(*STUDY.argv, "--workers", "2"), forks=False)
