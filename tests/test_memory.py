"""Peak memory of an evaluation of 1,000,000 images: within 1.2 times that of 10,000, wherever the images come from."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import casemate
from casemate.attacks import FGSM
from casemate.data import LabelledImages, ReadableImages, open_images
from casemate.evaluation import evaluate
from casemate.models import Classifier

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is read as on Linux")]

FEW, MANY = 10_000, 1_000_000
RATIO = 1.2
EPS = 0.3


def _bank() -> Tensor:
    """A thousand images in which one of ten bands is bright, uint8 `(1000, 1, 28, 28)`."""
    noise = torch.randint(42, (1000, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bands = torch.arange(784) // 79 == (torch.arange(1000) % 10)[:, None]
    return (noise + 180 * bands.to(torch.uint8)).view(-1, 1, 28, 28)


BANK = _bank()


def drawn(places: Tensor) -> Tensor:
    """The images at some positions, uint8 `(k, 1, 28, 28)`; little memory is taken to make them."""
    return BANK[places % len(BANK)]


class Generated:
    """Images that are made when they are read."""

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count) % 10

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, positions: slice | Tensor) -> LabelledImages:
        at = positions
        places = torch.arange(*at.indices(len(self))) if isinstance(at, slice) else at
        return LabelledImages(pixels=drawn(places), labels=self.labels[positions])


def generated(count: int, folder: Path) -> ReadableImages:
    """A data set of a user's own class."""
    return Generated(count)


def table(count: int, folder: Path) -> ReadableImages:
    """A table of paths and labels; a million pictures are drawn, since decoding them three times takes ten minutes."""
    for place, pixels in enumerate(drawn(torch.arange(10)).numpy()):
        (folder / str(place)).mkdir(exist_ok=True)
        Image.fromarray(pixels[0]).save(folder / str(place) / "picture.png")
    with (folder / "table.csv").open("w") as file:
        file.write("path,label\n")
        file.writelines(f"{place % 10}/picture.png,{place % 10}\n" for place in range(count))
    found = open_images(folder / "table.csv")
    assert found.read(torch.tensor([0, count - 1])).labels.tolist() == [0, (count - 1) % 10]
    read = found.reader

    def reader(places: Tensor) -> Tensor:
        return read(places) if len(places) < 10 else drawn(places)

    return replace(found, reader=reader)


def idx(count: int, folder: Path) -> ReadableImages:
    """IDX files, of which one holds all images."""
    head = bytes([0, 0, 8])
    with (folder / "t10k-images-idx3-ubyte").open("wb") as file:
        file.write(head + bytes([3]) + b"".join(each.to_bytes(4, "big") for each in (count, 28, 28)))
        for start in range(0, count, 5000):
            file.write(drawn(torch.arange(start, min(start + 5000, count))).numpy().tobytes())
    labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
    (folder / "t10k-labels-idx1-ubyte").write_bytes(head + bytes([1]) + count.to_bytes(4, "big") + labels)
    return open_images(folder)


SOURCES: dict[str, Callable[[int, Path], ReadableImages]] = {each.__name__: each for each in (generated, table, idx)}


def network() -> Classifier:
    """A small network that finds the bright band."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        for place in range(10):
            made[1].weight[place] = 0.1 * (torch.arange(784) // 79 == place)  # type: ignore[index]
    return Classifier(made, input_shape=(1, 28, 28), classes=10).eval()


def evaluated(name: str, count: int, folder: Path) -> None:
    """Evaluate the network on images of a source, with accuracy without an attack and FGSM."""
    torch.set_num_threads(1)
    images = SOURCES[name](count, folder)
    found = evaluate(network(), images, eps=EPS, attacks={"fgsm": FGSM(eps=EPS)}, store=folder / "store", force=True)
    assert found.clean.accuracy.n == count
    assert found.clean_accuracy > 0.9
    assert found.cascade.attempts[0].tried > 0.9 * count


PROGRAM = """
import resource, sys
from pathlib import Path
import test_memory
test_memory.evaluated(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(name: str, count: int, folder: Path) -> int:
    """Kilobytes of memory that a process of its own takes at most for an evaluation."""
    folder.mkdir()
    here = os.pathsep.join(map(str, (Path(casemate.__file__).parents[1], Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM, name, str(count), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=3600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


@pytest.mark.parametrize("name", SOURCES)
def test_a_million_images_take_the_memory_of_ten_thousand(name: str, tmp_path: Path) -> None:
    few = peak(name, FEW, tmp_path / "few")
    many = peak(name, MANY, tmp_path / "many")
    assert many < RATIO * few, f"{many / 1024:.0f} MB for {MANY:,} images, {few / 1024:.0f} MB for {FEW:,}"
