"""Images from damaged, missing, hostile and good places; splits; augmentation."""

import contextlib
import gzip
import hashlib
import shutil
import stat
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from casemate import data
from casemate.data import Dataset, LabelledImages, digits, fashion_mnist, readable, split, subset, to_float
from casemate.data.augment import AlternatingFlip, Augmentation, Shift
from casemate.data.idx import parse_images, parse_labels
from casemate.errors import DataError, SettingError
from conftest import Listener

# --- IDX ---------------------------------------------------------------------------------------------------------


def _idx(array: np.ndarray, *, magic: bytes | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    """The IDX file of `array`, written by hand; `magic` and `shape` lie about it."""
    shape = array.shape if shape is None else shape
    header = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    return header + struct.pack(f">{len(shape)}I", *shape) + array.astype(np.uint8).tobytes()


_IMAGES = np.arange(2 * 3 * 5).reshape(2, 3, 5)
_LABELS = np.array([3, 0, 9])


def test_idx_is_read_row_by_row() -> None:
    images = parse_images(_idx(_IMAGES))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 1, 3, 5)
    assert images[1, 0, 2].tolist() == [25, 26, 27, 28, 29]
    assert parse_labels(_idx(_LABELS)).tolist() == [3, 0, 9]


@pytest.mark.parametrize(
    ("parse", "raw", "message"),
    [
        (parse_images, b"", "images: 0 bytes, but an IDX header alone takes 16; the file is truncated"),
        (parse_images, _idx(_IMAGES)[:15], "15 bytes, but an IDX header alone takes 16"),
        (parse_labels, _idx(_LABELS)[:7], "labels: 7 bytes, but an IDX header alone takes 8"),
        (parse_images, _idx(_IMAGES)[:-1], "states 30 values of shape .2, 3, 5., but 29 follow"),
        (parse_images, _idx(_IMAGES)[:16], "states 30 values of shape .2, 3, 5., but 0 follow"),
        (parse_images, _idx(_IMAGES) + b"\0", "but 31 follow; the file is truncated or has extra bytes"),
        (parse_labels, _idx(_LABELS) + b"\0", "states 3 values of shape .3,., but 4 follow"),
        (parse_images, _idx(_IMAGES, magic=b"\1\0\x08\3"), "wrong magic number 01000803, expected 00000803"),
        (parse_images, gzip.compress(_idx(_IMAGES), mtime=0), "wrong magic number 1f8b"),
        (parse_images, _idx(_IMAGES, magic=b"\0\0\x0d\3"), "wrong magic number 00000d03.*unsigned bytes"),
        (parse_images, _idx(_LABELS) + bytes(8), "wrong magic number 00000801, expected 00000803.*3 dimensions"),
        (parse_labels, _idx(_IMAGES), "wrong magic number 00000803, expected 00000801.*1 dimensions"),
        (parse_images, _idx(_IMAGES, shape=(2, 5, 5)), "states 50 values"),
        (parse_images, _idx(_IMAGES, shape=(2**32 - 1,) * 3), "states 79228162458924105385300197375 values"),
        (parse_images, _idx(_IMAGES, shape=(0, 28, 28)), "the shape .0, 28, 28., which is empty"),
        (parse_images, _idx(_IMAGES[:0]), "which is empty"),
        (parse_labels, _idx(_LABELS[:0]), "which is empty"),
        (parse_labels, _idx(np.array([1, 2, 10, 3])), "label 10 at position 2, but with 10 classes labels run from 0"),
    ],
)
def test_a_faulty_idx_file_is_refused(parse: Callable[[bytes], Tensor], raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(raw)


@given(st.binary(max_size=64))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    for parse, header in ((parse_images, 16), (parse_labels, 8)):
        with contextlib.suppress(DataError):
            assert parse(raw).numel() == len(raw) - header


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


class Copy:
    """A small stand-in for Fashion-MNIST, and folders that hold it."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.root = root
        self.raws = {
            "train-images-idx3-ubyte": _idx(rng.integers(0, 256, (20, 4, 4))),
            "train-labels-idx1-ubyte": _idx(np.arange(20) % 10),
            "t10k-images-idx3-ubyte": _idx(rng.integers(0, 256, (10, 4, 4))),
            "t10k-labels-idx1-ubyte": _idx(np.arange(10)),
        }
        self.files = tuple(
            fashion_mnist._File(name, len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in self.raws.items()
        )

    def folder(self, name: str, *, gzipped: bool = True, without: str | None = None) -> Path:
        """A folder called `name` with all four files, or all but one."""
        folder = self.root / name
        folder.mkdir(parents=True)
        for file, raw in self.raws.items():
            if file != without:
                (folder / (f"{file}.gz" if gzipped else file)).write_bytes(gzip.compress(raw) if gzipped else raw)
        return folder

    def check(self, found: Dataset) -> None:
        """Every pixel and label is the one that was written."""
        raw = self.raws["train-images-idx3-ubyte"]
        assert found.train.pixels.numpy().tobytes() == raw[16:]
        assert found.train.labels.tolist() == [number % 10 for number in range(20)]
        assert found.test.pixels.numpy().tobytes() == self.raws["t10k-images-idx3-ubyte"][16:]
        assert found.test.labels.tolist() == list(range(10))
        assert found.classes[9] == "Ankle boot"
        assert found.image_shape == (1, 4, 4)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """A machine on which the small copy counts as Fashion-MNIST, and nothing is installed or reachable."""
    copy = Copy(tmp_path)
    monkeypatch.setattr(fashion_mnist, "FILES", copy.files)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "usr" / "share" / "datasets" / "fashion-mnist")
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URLS", ())
    monkeypatch.setenv("CASEMATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return copy


_IMAGE_FILE = "train-images-idx3-ubyte"


def _flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x10
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("gzipped", [True, False])
def test_a_good_folder_is_read(copy: Copy, gzipped: bool) -> None:
    folder = copy.folder("good", gzipped=gzipped)
    found = data.load("fashion-mnist", folder)
    copy.check(found)
    assert (found.name, found.origin, found.fallback_for) == ("fashion-mnist", str(folder), None)


@pytest.mark.parametrize("length", [0, 5, 12, 60, -9, -1])
def test_a_truncated_gzip_file_is_refused(copy: Copy, length: int) -> None:
    folder = copy.folder("bad")
    path = folder / f"{_IMAGE_FILE}.gz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=rf"{path}.*(truncated or damaged|only 0 bytes).*casemate data fetch"):
        data.load("fashion-mnist", folder)


@pytest.mark.parametrize("gzipped", [True, False])
def test_one_flipped_bit_anywhere_is_caught(copy: Copy, gzipped: bool) -> None:
    folder = copy.folder("bad", gzipped=gzipped)
    path = next(folder.glob("t10k-labels*"))
    good = path.read_bytes()
    for place in range(len(good)):
        _flip(path, place)
        try:  # gzip's header and padding hold bits that say nothing of the data
            assert gzipped
            assert gzip.decompress(path.read_bytes()) == copy.raws["t10k-labels-idx1-ubyte"]
        except (OSError, EOFError, zlib.error, AssertionError):
            with pytest.raises(DataError, match=r"t10k-labels.*(damaged|checksum|bytes once decompressed)"):
                fashion_mnist.read_folder(folder)
        else:
            copy.check(fashion_mnist.read_folder(folder))
        path.write_bytes(good)


def test_a_flipped_byte_before_compression_is_caught_by_the_checksum(copy: Copy) -> None:
    folder = copy.folder("bad", gzipped=False)
    _flip(folder / _IMAGE_FILE, 100)
    (folder / f"{_IMAGE_FILE}.gz").write_bytes(gzip.compress((folder / _IMAGE_FILE).read_bytes()))
    with pytest.raises(DataError, match="does not match its checksum once decompressed: SHA-256"):
        fashion_mnist.read_folder(folder)


@pytest.mark.parametrize("size", ["longer", "shorter", "endless"])
def test_a_file_of_the_wrong_size_is_refused(copy: Copy, size: str) -> None:
    folder = copy.folder("bad")
    raw = copy.raws[_IMAGE_FILE]
    wrong = {"longer": raw + b"\0", "shorter": raw[:-1], "endless": bytes(30_000_000)}[size]
    (folder / f"{_IMAGE_FILE}.gz").write_bytes(gzip.compress(wrong, 1))
    seen = "only 335" if size == "shorter" else "more"
    with pytest.raises(DataError, match=f"holds {seen} bytes once decompressed, expected 336"):
        fashion_mnist.read_folder(folder)


@pytest.mark.parametrize("missing", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_a_missing_file_is_named(copy: Copy, missing: str) -> None:
    with pytest.raises(DataError, match=rf"neither {missing}\.gz nor {missing}; expected all four files"):
        data.load("fashion-mnist", copy.folder("bad", without=missing))


def test_a_folder_that_is_not_there_is_refused(copy: Copy) -> None:
    with pytest.raises(DataError, match="holds neither"):
        data.load("fashion-mnist", copy.root / "nowhere")


@pytest.mark.usefixtures("unchecked")
def test_images_and_labels_of_different_number_are_refused(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.raws["train-labels-idx1-ubyte"] = raw = _idx(np.arange(19) % 10)
    file = fashion_mnist._File("train-labels-idx1-ubyte", len(raw), hashlib.sha256(raw).hexdigest())
    monkeypatch.setattr(fashion_mnist, "FILES", (copy.files[0], file, *copy.files[2:]))
    with pytest.raises(DataError, match="20 images, but labels"):
        fashion_mnist.read_folder(copy.folder("bad"))


def test_places_are_tried_in_order(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = copy.folder("usr/share/datasets/fashion-mnist")
    assert data.load(offline=True).origin == str(debian)
    cache = copy.folder("cache/data/fashion-mnist")
    assert data.load(offline=True).origin == str(cache)
    named = copy.folder("by environment")
    monkeypatch.setenv("CASEMATE_DATA", str(named))
    assert data.load(offline=True).origin == str(named)
    argument = copy.folder("by argument")
    assert data.load(data_dir=argument, offline=True).origin == str(argument)


def test_auto_falls_back_to_the_digits_and_says_so(copy: Copy, listener: Listener) -> None:
    found = data.load("auto", offline=True, observer=listener)
    assert (found.name, found.fallback_for) == ("digits", "Fashion-MNIST")
    assert len(listener.said) == 1
    assert listener.said[0].startswith("WARNING: using scikit-learn's digits instead")
    assert str(copy.root / "cache") in listener.said[0]


def test_fashion_mnist_by_name_never_falls_back(copy: Copy) -> None:
    with pytest.raises(DataError, match=r"Fashion-MNIST was not found. Tried:(?s:.*)--data-dir"):
        data.load("fashion-mnist", offline=True)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_bad_folder_that_the_user_named_is_never_replaced(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    copy.folder("usr/share/datasets/fashion-mnist")
    bad = copy.folder("bad")
    _flip(bad / f"{_IMAGE_FILE}.gz", 30)
    monkeypatch.setenv("CASEMATE_DATA", str(bad) if how == "environment" else "")
    with pytest.raises(DataError, match=str(bad)):
        data.load("auto", bad if how == "argument" else None)


def test_a_damaged_cache_is_passed_over(copy: Copy, listener: Listener) -> None:
    cache = copy.folder("cache/data/fashion-mnist")
    _flip(cache / f"{_IMAGE_FILE}.gz", 30)
    debian = copy.folder("usr/share/datasets/fashion-mnist")
    assert data.load(offline=True, observer=listener).origin == str(debian)
    assert len(listener.said) == 1
    assert "not usable and is ignored" in listener.said[0]


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(SettingError, match="unknown data set 'mnist'; known: auto, fashion-mnist, digits"):
        data.load("mnist")


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder; a path under /garbage/ answers what is not HTTP, one under /short/ hangs up halfway."""

    log: list[str]

    def do_GET(self) -> None:
        self.log.append(self.path)
        if self.path.startswith("/garbage/"):
            self.wfile.write(b"what is HTTP?\r\n\r\n")
        elif self.path.startswith("/short/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"\x1f\x8b\x08\0\0\0")
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


class Site:
    """A web server on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.log: list[str] = []
        handler = type("Handler", (_Handler,), {"log": self.log})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def url(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{folder}/"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A web server on this machine."""
    site = Site(tmp_path / "site")
    yield site
    site.close()


def test_the_official_files_are_fetched_verified_and_kept(
    copy: Copy, site: Site, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.folder("site/good")
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URLS", (site.url("good"),))
    for _ in range(2):
        found = data.load("fashion-mnist", observer=listener)
        copy.check(found)
        assert found.origin == str(copy.root / "cache" / "data" / "fashion-mnist")
    assert site.log == [f"/good/{name}.gz" for name in copy.raws]  # the second time they come from the cache
    assert listener.titles == [f"Fetching {name}" for name in copy.raws]
    assert listener.done == listener.total == sum(f.stat().st_size for f in (site.root / "good").iterdir())


def test_offline_means_offline(copy: Copy, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.folder("site/good")
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URLS", (site.url("good"),))
    with pytest.raises(DataError):
        data.load("fashion-mnist", offline=True)
    assert site.log == []


@pytest.mark.parametrize("first", ["absent", "garbage", "short", "damaged", "page", "closed"])
def test_a_bad_address_is_followed_by_the_next(
    copy: Copy, site: Site, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    copy.folder("site/good")
    for file in copy.folder("site/damaged").iterdir():
        _flip(file, 25)
    for file in copy.folder("site/page").iterdir():
        file.write_text("<html>Please log in to this network</html>")
    bad = "http://127.0.0.1:1/" if first == "closed" else site.url(first)
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URLS", (bad, site.url("good")))
    copy.check(data.load("fashion-mnist"))


@pytest.mark.parametrize("only", ["absent", "garbage", "short", "damaged"])
def test_a_bad_download_is_refused_and_not_kept(
    copy: Copy, site: Site, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    for file in copy.folder("site/damaged").iterdir():
        _flip(file, 25)
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URLS", (site.url(only),))
    with pytest.raises(DataError, match=rf"{_IMAGE_FILE} could not be downloaded: http://127.0.0.1"):
        data.load("fashion-mnist")
    assert data.load("auto").fallback_for == "Fashion-MNIST"
    assert not list((copy.root / "cache").rglob("*ubyte*"))


def test_a_fetch_replaces_what_is_damaged_and_keeps_what_is_good(
    copy: Copy, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.folder("site/good")
    cache = copy.folder("cache/data/fashion-mnist", without="t10k-labels-idx1-ubyte")
    _flip(cache / f"{_IMAGE_FILE}.gz", 30)
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URLS", (site.url("good"),))
    copy.check(data.load("fashion-mnist"))
    assert site.log == [f"/good/{_IMAGE_FILE}.gz", "/good/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
@pytest.mark.parametrize("package", ["good", "damaged", "incomplete"])
def test_debians_package_is_fetched_and_unpacked(copy: Copy, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.undo()  # the real PATH, to build a real package with
    tree = copy.root / "tree"
    inside = copy.folder(
        "tree/usr/share/datasets/fashion-mnist", without=_IMAGE_FILE if package == "incomplete" else None
    )
    if package == "damaged":
        _flip(inside / f"{_IMAGE_FILE}.gz", 30)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: none <none@localhost>\n"
        "Description: a small copy\n"
    )
    built = copy.root / "dataset-fashion-mnist_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(built)], check=True, capture_output=True)
    # an apt-get without package lists: it downloads only after an update into a folder of its own
    apt = copy.root / "bin" / "apt-get"
    apt.write_text(
        '#!/bin/sh\ncase "$*" in\n*update) touch updated ;;\n'
        f"*Dir::State=*download*) test -e updated && cp {built} . ;;\n"
        "*) echo 'E: Unable to locate package' >&2; exit 100 ;;\nesac\n"
    )
    apt.chmod(apt.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(fashion_mnist, "FILES", copy.files)
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_URLS", ())
    monkeypatch.setenv("PATH", f"{copy.root / 'bin'}:/usr/bin:/bin")
    target = copy.root / "target"
    if package == "good":
        fashion_mnist._fetch_debian(target, Listener())
        copy.check(fashion_mnist.read_folder(target))
    else:
        with pytest.raises(DataError, match=_IMAGE_FILE):
            fashion_mnist._fetch_debian(target, Listener())
        assert not target.exists()


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="Debian's package is not installed")
def test_the_real_fashion_mnist() -> None:
    found = fashion_mnist.read_folder(fashion_mnist.DEBIAN_FOLDER)
    assert found.train.pixels.shape == (60_000, 1, 28, 28)
    assert found.test.pixels.shape == (10_000, 1, 28, 28)
    assert found.train.labels.bincount().tolist() == [6000] * 10
    assert found.test.labels.bincount().tolist() == [1000] * 10
    assert found.train.labels[:8].tolist() == [9, 0, 0, 3, 0, 2, 7, 2]
    # mean and deviation as everyone quotes them
    unit = found.train.pixels.double() / 255
    assert float(unit.mean()) == pytest.approx(0.2860, abs=5e-5)
    assert float(unit.std()) == pytest.approx(0.3530, abs=5e-5)


# --- data sets as tensors ----------------------------------------------------------------------------------------


def test_the_digits() -> None:
    one, two = digits.load(), digits.load()
    for part, count in ((one.train, 1347), (one.test, 450)):
        assert part.pixels.shape == (count, 1, 28, 28)
        assert (int(part.pixels.min()), int(part.pixels.max())) == (0, 255)
        counts = part.labels.bincount()
        assert len(counts) == 10
        assert int(counts.max() - counts.min()) <= count // 100
    assert torch.equal(one.test.pixels, two.test.pixels)
    assert one.classes[7] == "7"
    assert data.load("digits").fallback_for is None


def test_a_digit_is_an_enlarged_original() -> None:
    from sklearn.datasets import load_digits

    found = digits.load()
    small = torch.as_tensor(load_digits(return_X_y=True)[0], dtype=torch.float32).view(-1, 8, 8)
    both = torch.cat([found.train.pixels, found.test.pixels]).float()
    shrunk = torch.nn.functional.interpolate(both, size=(8, 8), mode="area").squeeze(1) * (16 / 255)
    apart = torch.cdist(shrunk.flatten(1), small.flatten(1)).min(1)
    assert len(apart.indices.unique()) > 0.97 * len(small)


def test_pixels_become_their_share_of_255() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 4, 8, 8)
    unit = to_float(levels)
    assert unit.dtype == torch.float32
    assert unit.is_contiguous(memory_format=torch.channels_last)
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert np.array_equal(unit.numpy().ravel(), expected)
    assert levels[0, 3, 7, 7] == 255


def test_annotations_are_checked_in_tests() -> None:
    # the point of running the suite with jaxtyping: three dimensions where four are stated do not pass
    with pytest.raises(TypeError):
        to_float(torch.zeros(1, 2, 2))


def test_pixels_that_are_numbers_already_are_taken_as_they_are() -> None:
    images = LabelledImages(pixels=torch.rand(3, 1, 2, 2, dtype=torch.float64), labels=torch.arange(3))
    unit, _ = images.tensors()
    assert unit.dtype == torch.float32
    assert torch.equal(unit, images.pixels.float())


def _numbered(labels: list[int]) -> LabelledImages:
    """Images that carry their own number, so that they can be told apart after a split."""
    number = torch.arange(len(labels))
    pixels = torch.stack([number // 256, number % 256], 1).to(torch.uint8).view(-1, 1, 1, 2)
    return LabelledImages(pixels=pixels, labels=torch.tensor(labels, dtype=torch.int64))


def _numbers(images: LabelledImages) -> list[int]:
    high, low = images.pixels.flatten(1).long().unbind(1)
    return (high * 256 + low).tolist()


@given(st.lists(st.integers(0, 4), min_size=2, max_size=300), st.data())
def test_a_split_is_disjoint_exhaustive_and_balanced(labels: list[int], draw: st.DataObject) -> None:
    images = _numbered(labels)
    second = draw.draw(st.integers(1, len(labels) - 1))
    seed = draw.draw(st.integers(0, 2**31))
    one, two = split(images, second, seed)
    assert len(two) == second
    assert sorted(_numbers(one) + _numbers(two)) == list(range(len(labels)))
    for part in (one, two):
        assert part.labels.tolist() == [labels[number] for number in _numbers(part)]
        assert _numbers(part) == sorted(_numbers(part))
    classes = len(set(labels))
    for label in set(labels):
        share = labels.count(label) * second / len(labels)
        assert abs(int((two.labels == label).sum()) - share) <= (classes + 1) / 2
    again = split(images, second, seed)
    assert (_numbers(again[0]), _numbers(again[1])) == (_numbers(one), _numbers(two))


def test_a_split_of_equal_classes_is_equal() -> None:
    images = _numbered([number % 10 for number in range(600)])
    one, two = split(images, 60, 0)
    assert two.labels.bincount().tolist() == [6] * 10
    assert one.labels.bincount().tolist() == [54] * 10
    assert sorted(split(images, 65, 0)[1].labels.bincount().tolist()) == [6] * 5 + [7] * 5


def test_another_seed_splits_otherwise() -> None:
    images = _numbered([number % 10 for number in range(600)])
    draws = [set(_numbers(split(images, 300, seed)[1])) for seed in range(4)]
    for one in draws:
        for two in draws:
            assert one == two or len(one & two) == pytest.approx(150, abs=40)


@pytest.mark.parametrize("second", [-1, 0, 6, 7])
def test_a_split_needs_two_parts(second: int) -> None:
    with pytest.raises(SettingError, match=f"sets {second} of 6 images aside"):
        split(_numbered([0, 1] * 3), second, 0)


def test_a_subset_is_stratified_and_may_be_everything() -> None:
    images = _numbered([number % 5 for number in range(100)])
    part = subset(images, 20, 1)
    assert part.labels.bincount().tolist() == [4] * 5
    assert len(set(_numbers(part))) == 20
    assert _numbers(subset(images, 20, 1)) == _numbers(part) != _numbers(subset(images, 20, 2))
    assert subset(images, 100, 1) is images
    assert subset(images, 1000, 1) is images


def test_batches_come_in_order_and_whole() -> None:
    images = _numbered([0, 1, 2, 3, 4])
    batches = list(images.batches(2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    everything = images.tensors()
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), everything[0])
    assert torch.equal(torch.cat([labels for _, labels in batches]), everything[1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3).int(), torch.zeros(2, dtype=torch.int64), "images of type torch.int32"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "floating point of shape"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "2 images, but labels"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), r"labels\.long\(\)"),
    ],
)
def test_images_and_labels_must_fit(pixels: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelledImages(pixels=pixels, labels=labels)


# --- augmentation ------------------------------------------------------------------------------------------------


def _unit(count: int, channels: int = 1, side: int = 6) -> Tensor:
    return torch.rand(count, channels, side, side, generator=Generator().manual_seed(1))


@given(
    st.sampled_from([AlternatingFlip(), Shift(), Shift(pixels=0), Shift(pixels=3), Shift(pixels=9)]),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 50),
)
def test_augmentations_keep_shape_and_range_and_can_be_repeated(
    change: Augmentation, count: int, channels: int, epoch: int
) -> None:
    images, index = _unit(count, channels), torch.arange(count)
    before = images.clone()
    one = change(images, index, epoch, Generator().manual_seed(epoch))
    two = change(images, index, epoch, Generator().manual_seed(epoch))
    assert one.shape == images.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert torch.equal(one, two)
    assert torch.equal(images, before)


def test_a_flip_alternates_exactly() -> None:
    images, index, generator = _unit(1000, 3), torch.arange(1000), Generator()
    flip = AlternatingFlip()
    epochs = [flip(images, index, epoch, generator) for epoch in range(1, 5)]
    mirrored = [(shown == images.flip(3)).flatten(1).all(1) for shown in epochs]
    straight = [(shown == images).flatten(1).all(1) for shown in epochs]
    for epoch in range(4):
        assert torch.equal(mirrored[epoch], ~straight[epoch])
        assert torch.equal(mirrored[epoch], mirrored[epoch % 2])
        assert 0.4 < float(mirrored[epoch].float().mean()) < 0.6
    assert torch.equal(mirrored[0], ~mirrored[1])


def test_whose_turn_it_is_goes_by_the_number_not_by_the_place() -> None:
    images, index = _unit(1).expand(50, -1, -1, -1), torch.randperm(60_000, generator=Generator().manual_seed(0))[:50]
    order = torch.randperm(50, generator=Generator().manual_seed(1))
    shown = AlternatingFlip()(images, index, 3, Generator())
    assert torch.equal(AlternatingFlip()(images, index[order], 3, Generator()), shown[order])


@pytest.mark.parametrize("pixels", [0, 1, 2])
def test_a_shift_is_a_crop_of_the_padded_image(pixels: int) -> None:
    images = _unit(400, 3)
    moved = Shift(pixels=pixels)(images, torch.arange(400), 1, Generator().manual_seed(0))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    reach = range(2 * pixels + 1)
    crops = {(top, left): padded[:, :, top : top + 6, left : left + 6] for top in reach for left in reach}
    taken = {place: (moved.numpy() == crop).all((1, 2, 3)) for place, crop in crops.items()}
    assert (np.sum(list(taken.values()), axis=0) == 1).all()  # every image is exactly one of its crops
    for share in taken.values():  # every move occurs, about equally often: draws are per example
        assert share.mean() == pytest.approx(1 / len(crops), abs=0.06)


def test_a_shift_needs_a_size() -> None:
    with pytest.raises(SettingError, match="pixels = -1"):
        Shift(pixels=-1)


def test_generators_decide_shifts() -> None:
    images, index = _unit(50), torch.arange(50)
    draws = [Shift(pixels=2)(images, index, 1, Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("free", "kept"), [(10_000, True), (300, False)])
def test_a_gpu_keeps_images_as_bytes_if_they_are_small(free: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's `meta` device stands in for a GPU."""
    monkeypatch.setattr("casemate.data.dataset.free_memory", lambda device: free)
    images = LabelledImages(pixels=torch.zeros(3, 1, 4, 4, dtype=torch.uint8), labels=torch.arange(3))
    there = images.to_device_if_small(torch.device("meta"))
    assert (there.pixels.device.type, there.labels.device.type) == (("meta", "meta") if kept else ("cpu", "cpu"))
    assert there.pixels.dtype is torch.uint8
    assert images.to_device_if_small(torch.device("cpu")) is images


class _Counted(torch.utils.data.Dataset[Any]):
    """Nine images, and how often one is read."""

    reads = 0

    def __len__(self) -> int:
        return 9

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return torch.full((1, 4, 4), place / 10), place % 3


@pytest.mark.parametrize("loader", [False, True])
def test_a_large_data_set_is_read_when_its_images_are_needed(monkeypatch: pytest.MonkeyPatch, loader: bool) -> None:
    monkeypatch.setattr(readable, "MOST_NUMBERS", 9 * 16 - 1)
    counted = _Counted()
    found = readable.as_readable(torch.utils.data.DataLoader(counted, batch_size=2) if loader else counted)
    assert not isinstance(found, LabelledImages)
    before = counted.reads
    part = found.read(slice(4, 7))
    assert counted.reads == before + 3
    assert torch.equal(part.pixels[:, 0, 0, 0], torch.tensor([0.4, 0.5, 0.6]))
    assert found.labels.tolist() == [0, 1, 2] * 3
    monkeypatch.setattr(readable, "MOST_NUMBERS", 9 * 16)
    whole = readable.as_readable(counted)
    assert isinstance(whole, LabelledImages)
    assert torch.equal(whole.pixels[4:7], part.pixels)
