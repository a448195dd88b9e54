"""Damaged and hostile images in every format: each loads, or ends in one error that names the file, soon, in 1 GB."""

import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import casemate
from casemate.data import open_images
from casemate.errors import CasemateError
from damage import damaged_bytes
from test_sources import COLOUR, idx, npz, packed_idx, packed_npz, parquet, png, table, tensors

KINDS = {"png": {}, "jpeg": {}, "gif": {}, "webp": {}, "tiff": {"compression": "tiff_lzw"}, "bmp": {}, "ppm": {}}
SECONDS = 2.0
"""Most processor seconds that one damaged file may take."""


def pictures(folder: Path) -> Path:
    """A folder with two classes, and a picture of every kind."""
    for number, (kind, options) in enumerate(KINDS.items()):
        place = folder / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.{kind.replace('jpeg', 'jpg')}").write_bytes(png(COLOUR[number % 6], kind, **options))
    stream = io.BytesIO()
    Image.fromarray(COLOUR[0].transpose(1, 2, 0)).save(stream, "jpeg", progressive=True)
    (folder / "photos" / "a" / "8.jpg").write_bytes(stream.getvalue())
    return folder / "photos"


def cifar(folder: Path) -> Path:
    (folder / "own").mkdir()
    (folder / "own" / "test_batch.bin").write_bytes(b"".join(bytes([3]) + each.tobytes() for each in COLOUR))
    (folder / "own" / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)))
    return folder / "own"


LOADERS: dict[str, Callable[[Path], Path]] = {
    each.__name__: each for each in (npz, packed_npz, tensors, idx, packed_idx, table, parquet, pictures, cifar)
}


def attack(folder: Path, name: str, attempts: int) -> tuple[int, float]:
    """Read a source `attempts` times with one of its files damaged: how many were refused, and the longest time."""
    path = LOADERS[name](folder)
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    if name == "packed_idx":
        files = [each for each in files if each.suffix == ".gz"]
    contents = {each: each.read_bytes() for each in files}
    shapes = {tuple(open_images(path).image_shape)}
    source, longest = random.Random(name), 0.0
    messages: list[str] = []
    for attempt in range(attempts):
        file = source.choice(files)
        file.write_bytes(damaged_bytes(contents[file], attempt, source))
        start = time.process_time()
        try:
            found = open_images(path)
            some = found.read(slice(None))
            assert len(some) == len(found) == len(found.labels)
            assert some.tensors()[0].isfinite().all()
            assert int(found.labels.min()) >= 0
            shapes.add(tuple(found.image_shape))
        except CasemateError as error:
            messages.append(str(error))
        longest = max(longest, time.process_time() - start)
        file.write_bytes(contents[file])
    assert all(str(folder) in message and len(message) < 1500 for message in messages), max(messages, key=len)
    return len(messages), longest


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("unchecked")
def test_a_damaged_file_is_read_or_is_one_error(tmp_path: Path, name: str) -> None:
    refused, longest = attack(tmp_path, name, 28)
    assert refused >= 3
    assert longest < SECONDS


PROGRAM = """
import resource, sys
from pathlib import Path
import conftest, test_damaged_sources as own
folder, name, attempts = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(folder / "before").mkdir()
own.open_images(own.LOADERS[name](folder / "before")).read(slice(None))  # what is loaded late must not count
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 1_000_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
(folder / "now").mkdir()
print(*own.attack(folder / "now", name, attempts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited as on Linux")
@pytest.mark.parametrize("name", LOADERS)
def test_a_thousand_damaged_files_of_each_format(tmp_path: Path, name: str) -> None:
    """In a process of its own, whose memory is limited to 1 GB beyond what it has once all modules are loaded."""
    here = os.pathsep.join(map(str, (Path(casemate.__file__).parents[1], Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": here}
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), name, "1000"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    refused, longest = done.stdout.split()[:2]
    assert int(refused) > 50
    assert float(longest) < SECONDS
