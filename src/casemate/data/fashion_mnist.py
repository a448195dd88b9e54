"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from one of five sources, verified and parsed.

Sources, in order: a folder that the user names, the user's cache, Debian's package, the official files over HTTPS, and
Debian's package downloaded and unpacked without root. Debian recompresses the files, so the SHA-256 of the
*decompressed* bytes is verified; decompression stops one byte beyond the expected size.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import final

import numpy as np

from casemate.data.dataset import Dataset, LabelledImages, as_labels, as_tensor
from casemate.data.idx import parse_images, parse_labels
from casemate.errors import DataError
from casemate.files import write_bytes
from casemate.progress import NULL_OBSERVER, Observer

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@final
@dataclass(frozen=True)
class _File:
    """Name (without the ending .gz), size and checksum of one of the four files of Fashion-MNIST."""

    name: str
    size: int
    """Number of bytes of the decompressed file."""
    sha256: str
    """SHA-256 of the decompressed bytes, hexadecimal."""


FILES = (
    _File("train-images-idx3-ubyte", 47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    _File("train-labels-idx1-ubyte", 60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    _File("t10k-images-idx3-ubyte", 7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    _File("t10k-labels-idx1-ubyte", 10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
OFFICIAL_URLS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
"""Where the files are downloaded from, in this order: the authors' repository, and the copy that Keras downloads."""
_SLACK = 1 << 20
"""Bytes by which a downloaded .gz file may exceed its decompressed size; beyond that the download fails."""
_TIMEOUT = 15.0
"""Seconds without data from the server after which a download fails."""
_FIRST = Path(__file__).parent / "first_test_images.npz"


def first_test_images() -> LabelledImages:
    """The first 100 test images, which come with the package (MIT licence, Zalando SE, see NOTICE): bytes of shape
    (100, 1, 28, 28).
    """
    with np.load(_FIRST, allow_pickle=False) as held:
        return LabelledImages(pixels=as_tensor(held["images"], "images"), labels=as_labels(held["labels"]))


def read_verified(path: Path, file: _File) -> bytes:
    """Read the file at `path`, decompressed if it ends in .gz, and verify it; return the decompressed bytes.

    Raises `DataError` unless size and SHA-256 are those of `file`.
    """
    advice = "delete it and run `casemate data fetch`, or point --data-dir at a good copy"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            raw = stream.read(file.size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be decompressed ({error}); it is truncated or damaged: {advice}") from error
    if len(raw) != file.size:
        seen = "more" if len(raw) > file.size else f"only {len(raw):,}"
        raise DataError(f"{path} holds {seen} bytes once decompressed, expected {file.size:,}: {advice}")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{path} does not match its checksum once decompressed: SHA-256 {digest[:16]}..., expected "
            f"{file.sha256[:16]}...; it is damaged or another file: {advice}"
        )
    return raw


def _find(folder: Path, file: _File) -> Path | None:
    for candidate in (folder / f"{file.name}.gz", folder / file.name):
        if candidate.is_file():
            return candidate
    return None


def read_folder(folder: Path) -> Dataset:
    """Fashion-MNIST from four files, gzipped or not, in `folder`. Raises `DataError` if one is missing or damaged."""
    raws = []
    for file in FILES:
        path = _find(folder, file)
        if path is None:
            raise DataError(f"{folder} holds neither {file.name}.gz nor {file.name}; expected all four files")
        raws.append(read_verified(path, file))
    train_images, train_labels, test_images, test_labels = raws
    return Dataset(
        name="fashion-mnist",
        title="Fashion-MNIST",
        classes=CLASSES,
        train=LabelledImages(pixels=parse_images(train_images), labels=parse_labels(train_labels)),
        test=LabelledImages(pixels=parse_images(test_images), labels=parse_labels(test_labels)),
        origin=str(folder),
    )


def _fetch_https(target: Path, observer: Observer) -> None:
    """Download those of the four official files that `target` lacks; each is verified before it is written there."""
    for file in FILES:
        if _find(target, file):
            continue
        faults = []
        for base in OFFICIAL_URLS:
            url = f"{base}{file.name}.gz"
            try:
                with (
                    urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
                    observer.work(f"Fetching {file.name}", float(response.length or 0)) as advance,
                    tempfile.NamedTemporaryFile(suffix=".gz") as part,
                ):
                    while chunk := response.read(1 << 18):
                        part.write(chunk)
                        if part.tell() > file.size + _SLACK:
                            raise DataError("the server sends more bytes than the decompressed file has")
                        advance(len(chunk), "")
                    part.flush()
                    read_verified(Path(part.name), file)
                    write_bytes(target / f"{file.name}.gz", Path(part.name).read_bytes())
                break
            except (OSError, HTTPException, DataError) as error:
                faults.append(f"{url}: {error}")
        else:
            raise DataError(f"{file.name} could not be downloaded: " + "; ".join(faults))


def _fetch_debian(target: Path, observer: Observer) -> None:
    """Download and unpack Debian's package without root, verify its four files, and copy them into `target`."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DataError("this machine has no apt-get and dpkg-deb")
    with tempfile.TemporaryDirectory() as name, observer.work(f"Fetching {DEBIAN_PACKAGE}", 3) as advance:
        folder = Path(name)
        own_lists = ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache"]

        def run(*command: str) -> None:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise DataError(f"`{' '.join(command)}` failed: {done.stderr.strip().splitlines()[-1:]}")

        try:
            run("apt-get", "download", DEBIAN_PACKAGE)
        except DataError:  # no package lists, or outdated ones: download current lists into the temporary folder
            (folder / "state" / "lists" / "partial").mkdir(parents=True)
            (folder / "cache" / "archives" / "partial").mkdir(parents=True)
            run("apt-get", *own_lists, "update")
            run("apt-get", *own_lists, "download", DEBIAN_PACKAGE)
        advance(1, "unpacking")
        package = next(folder.glob(f"{DEBIAN_PACKAGE}*.deb"))
        run("dpkg-deb", "--extract", str(package), "unpacked")
        advance(1, "verifying")
        unpacked = folder / "unpacked" / DEBIAN_FOLDER.relative_to("/")
        for file in FILES:
            source = _find(unpacked, file)
            if source is None:
                raise DataError(f"Debian's package {DEBIAN_PACKAGE} holds no {file.name}")
            read_verified(source, file)
            write_bytes(target / source.name, source.read_bytes())
        advance(1, "done")


def named_folder(data_dir: Path | None) -> Path | None:
    """The folder that the user named: `data_dir`, or else the environment variable CASEMATE_DATA; None for neither."""
    from_environment = os.environ.get("CASEMATE_DATA")
    return data_dir or (Path(from_environment) if from_environment else None)


def load(data_dir: Path | None, cache: Path, *, offline: bool = False, observer: Observer = NULL_OBSERVER) -> Dataset:
    """Return Fashion-MNIST from the first source that is complete; downloads are kept in a subfolder of `cache`.

    A folder that the user names (`data_dir` or CASEMATE_DATA) is the only source tried, so that a damaged copy there is
    never silently replaced. With `offline` nothing is downloaded. Raises `DataError` listing what was tried.
    """
    named = named_folder(data_dir)
    if named is not None:
        return read_folder(named)
    target = cache / "fashion-mnist"
    attempts: list[tuple[str, Callable[[], Dataset]]] = [
        (str(target), lambda: read_folder(target)),
        (str(DEBIAN_FOLDER), lambda: read_folder(DEBIAN_FOLDER)),
    ]
    if not offline:

        def fetched(fetch: Callable[[Path, Observer], None]) -> Dataset:
            _discard_damaged(target)
            fetch(target, observer)
            return read_folder(target)

        attempts += [
            ("the official files over HTTPS", lambda: fetched(_fetch_https)),
            (f"apt-get download {DEBIAN_PACKAGE}", lambda: fetched(_fetch_debian)),
        ]
    faults = []
    for place, attempt in attempts:
        try:
            return attempt()
        except (DataError, OSError, subprocess.SubprocessError, StopIteration) as error:
            faults.append(f"  {place}: {error}")
            damaged = place == str(target) and target.is_dir() and any(target.iterdir())
            if damaged:
                observer.message(f"The cached copy of Fashion-MNIST is not usable and is ignored: {error}")
    raise DataError(
        "Fashion-MNIST was not found. Tried:\n" + "\n".join(faults) + "\n"
        f"Install Debian's package {DEBIAN_PACKAGE}, or put the four official .gz files into a folder and name it "
        "with --data-dir (or CASEMATE_DATA)."
    )


def _discard_damaged(target: Path) -> None:
    """Delete those files in the folder `target` that fail verification, so that they are downloaded again."""
    for file in FILES:
        path = _find(target, file)
        if path is not None:
            try:
                read_verified(path, file)
            except DataError:
                path.unlink()
