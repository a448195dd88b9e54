"""Files of arrays that are damaged or hostile: each ends in one error that names the file, and allocates nothing."""

import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import casemate
from casemate.arrays import (
    SIGNATURE,
    UnsoundError,
    is_archive,
    is_pickle,
    open_npz,
    parse_safetensors,
    read_safetensors,
)
from casemate.cli.main import main
from casemate.data import read_images
from casemate.errors import DataError
from casemate.evaluation import Evaluation, make_record, write_record
from casemate.models import ModelMetadata, open_model, save
from casemate.models.checkpoint import sidecar_of
from casemate.models.sources.formats import format_of
from casemate.models.sources.weights import read_weights
from conftest import tiny_images
from test_record import found as found
from test_record import thirds

IMAGES = tiny_images(12)
PIXELS, LABELS = IMAGES.pixels.numpy(), IMAGES.labels.numpy()
TERABYTES = 10**13
BOUND = 50_000_000
"""Bytes that no reader may allocate for the small files here."""


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _header(descr: object = "|u1", shape: object = (12, 1, 8, 8), *, fortran: object = False, text: str = "") -> bytes:
    """The beginning of an .npy file that says so."""
    said = text or f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}"
    padded = said.encode() + b" " * 20 + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def _npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _with(images: bytes | None = None, labels: bytes | None = None) -> dict[str, bytes]:
    return {"images.npy": _npy(PIXELS) if images is None else images, "labels.npy": labels or _npy(LABELS)}


def _patched(raw: bytes, at: int, value: int, size: int = 2) -> bytes:
    """A zip archive whose first entry has another field, in its own header (`at`) and in the directory (2 further)."""
    changed = bytearray(raw)
    own, listed = raw.index(b"PK\x03\x04"), raw.index(b"PK\x01\x02")
    for place in (own + at, listed + at + 2):
        changed[place : place + size] = value.to_bytes(size, "little")
    return bytes(changed)


def _refused(path: Path, words: str) -> None:
    """It ends in one error, for little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words) as caught:
            read_images(path)
        assert tracemalloc.get_traced_memory()[1] < BOUND
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 700


# .npz -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("at", "value", "size", "words"),
    [
        (4, 99, 2, "zip file version 9.9"),
        (8, 99, 2, "images are compressed by method 99"),
        (8, 14, 2, "images are compressed by method 14"),
        (6, 1, 2, "images are encrypted"),
        (6, 0x20, 2, "cannot read"),
        (14, 7, 4, "Bad CRC-32"),
        (18, 2**32 - 2, 4, "stated size of 4294967294 bytes in a file of"),
        (22, 2**32 - 2, 4, "are not compressed, but have stated sizes"),
    ],
)
def test_a_zip_entry_that_says_what_is_not_so(tmp_path: Path, at: int, value: int, size: int, words: str) -> None:
    path = _npz(tmp_path / "own.npz", _with())
    path.write_bytes(_patched(path.read_bytes(), at, value, size))
    _refused(path, words)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (_header(shape=(TERABYTES,)), "stated size of 0 bytes"),
        (_header(shape=(2**32, 2**32, 2**32)), "stated size of 0 bytes"),
        (_header(shape=(2**63, 2)) + bytes(100), "stated size of 100 bytes"),
        (_header(shape=(TERABYTES, 0)), "expected .n, channels, height, width."),
        (_header(shape=(-5, -5)) + bytes(25), "none below zero"),
        (_header(shape=(2.5, 2)) + bytes(5), "shape is not valid"),
        (_header(shape=(True, 5)) + bytes(5), "expected whole numbers"),
        (_header(shape=(1,) * 70) + bytes(1), "expected .n, channels, height, width."),
        (_header("|O", (3,)) + bytes(24), "images are of type object"),
        (_header([("a", "|u1"), ("b", "<f4")], (3,)) + bytes(15), "images are of type .*; expected numbers"),
        (_header("<f16", (3,)) + bytes(48), "images are of type float128"),
        (_header("|V100000000", (3,)) + bytes(3), "images are of type"),
        (_header("<U0", (TERABYTES,)), "images are of type"),
        (_header("gibberish", (3,)), "descr is not a valid dtype"),
        (_header(fortran="maybe") + bytes(768), "fortran_order is not a valid bool"),
        (_header(text="(" * 4000), "cannot read"),
        (_header(text="-" * 9000 + "1"), "cannot read"),
        (_header(text="__import__('sys').exit(7)"), "cannot read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "cannot read"),
        (b"\x93NUMPY\x07\x00" + bytes(200), "of version .7, 0. of NumPy's format"),
        (_npy(PIXELS)[:-1], "stated size of 767 bytes"),
        (_npy(PIXELS) + b"\0", "stated size of 769 bytes"),
        (_npy(PIXELS)[:40], "cannot read"),
        (b"", "cannot read"),
        (_npy(PIXELS[:, :, :0]), "have no pixels"),
        (_npy(PIXELS[:, :0]), "have no pixels"),
        (_npy(PIXELS[:0]), "holds 0 images and 12 labels"),
        (_npy(np.where(PIXELS[3, 0, 1, 1] == PIXELS, np.nan, PIXELS / 255)), "pixels that are not finite numbers"),
        (_npy(np.full(PIXELS.shape, 1e300)), "12 of 12 images have pixels that are not finite numbers"),
        (_npy(PIXELS.astype(np.uint16)), "images of type torch.uint16"),
        (_npy(PIXELS > 3), "images are of type bool"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_that_an_archive_only_claims(tmp_path: Path, images: bytes, words: str, method: int) -> None:
    _refused(_npz(tmp_path / "own.npz", _with(images=images), method), words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 1, 2, -1] * 3), "label -1 at position 3; labels count classes from 0"),
        (np.array([0, 2**63 + 5] * 6, dtype=np.uint64), "label 9223372036854775813 at position 1"),
        (LABELS.astype(float), "expected a whole number per image"),
        (LABELS > 1, "labels are of type bool"),
        (LABELS[:0], "12 images and 0 labels"),
        (np.array(3), "expected a whole number per image"),
    ],
)
def test_labels_that_number_no_class(tmp_path: Path, labels: np.ndarray, words: str) -> None:
    _refused(_npz(tmp_path / "own.npz", _with(labels=_npy(labels))), words)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as member:
        member.write(_header(shape=(400_000, 1, 28, 28)))
        for _ in range(400):
            member.write(bytes(784_000))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.npy", _npy(LABELS))
    assert path.stat().st_size < 1_000_000
    _refused(path, "state that 30.* bytes unpack to 313.*, more than 100 times .*numpy.savez, which does not compress")


def test_a_part_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    path = _npz(tmp_path / "own.npz", _with(_npy(PIXELS) + bytes(40_000_000)), zipfile.ZIP_DEFLATED)
    claimed = _npy(PIXELS)
    raw = _patched(path.read_bytes(), 22, len(claimed), 4)
    path.write_bytes(_patched(raw, 14, zlib.crc32(claimed), 4))  # so that what is said would be a whole, sound part
    _refused(path, "images unpack to more than their stated size of 896 bytes")


def test_two_arrays_of_one_name_and_parts_that_are_cut_short(tmp_path: Path) -> None:
    _refused(_npz(tmp_path / "own.npz", {"images": _npy(PIXELS), **_with()}), "contains 2 arrays called images")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raw = _npz(tmp_path / "own.npz", _with(), method).read_bytes()
        for length in range(0, len(raw), 97):
            (tmp_path / "own.npz").write_bytes(raw[:length])
            _refused(tmp_path / "own.npz", "cannot read")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [">f4", "<f2", "<f8", "|u1"])
@pytest.mark.parametrize("method", [np.savez, np.savez_compressed])
def test_sound_archives_are_read_as_numpy_reads_them(
    tmp_path: Path, order: Any, kind: str, method: Callable[..., None]
) -> None:
    array = np.asarray(PIXELS.astype(kind) / (1 if kind == "|u1" else 255), order=order, dtype=kind)
    method(tmp_path / "own.npz", images=array, labels=LABELS.astype(">u4"), scalar=np.array(3), text=np.array("a"))
    stored = open_npz(tmp_path / "own.npz", ["images", "labels", "scalar", "absent"])
    found = {name: each.whole() for name, each in stored.items()}
    assert found.keys() == {"images", "labels", "scalar"}
    assert np.array_equal(stored["images"].rows(np.array([5, 4, 5])), array[[5, 4, 5]])
    assert np.array_equal(found["images"], array)
    assert found["labels"].dtype == np.uint32
    assert found["scalar"].shape == ()
    assert np.array_equal(read_images(tmp_path / "own.npz").labels.numpy(), LABELS)


# .safetensors ---------------------------------------------------------------------------------------------------------
def _tensors(header: object, content: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + content


def _one(kind: object = "U8", shape: object = (4,), place: object = (0, 4), **more: object) -> dict[str, object]:
    return {"images": {"dtype": kind, "shape": shape, "data_offsets": place, **more}}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (bytes(7), "7 bytes"),
        (_tensors({}, length=TERABYTES), f"header states a length of {TERABYTES} bytes, but only 2 follow"),
        (_tensors({}, length=2**64 - 1), "states a length of 18446744073709551615 bytes"),
        (_tensors(_one(), b"123"), "has the offsets 0 to 4, but the file has 3 bytes"),
        (_tensors(_one(place=(0, TERABYTES), shape=(TERABYTES,)), b"1234"), "has the offsets 0 to 10000000000000"),
        (_tensors(_one(shape=(TERABYTES,)), b"1234"), "has offsets for 4 bytes"),
        (_tensors(_one(shape=(2**40, 2**40)), b"1234"), "has offsets for 4 bytes"),
        (_tensors(_one(place=(4, 0)), b"1234"), "has the offsets 4 to 0"),
        (_tensors(_one(place=(-4, 0)), b"1234"), "expected lists of whole numbers"),
        (_tensors(_one(shape=(4.0,)), b"1234"), "expected lists of whole numbers"),
        (_tensors(_one(shape=7), b"1234"), "expected lists of whole numbers"),
        (_tensors(_one("F8_E4M3"), b"1234"), "is of type F8_E4M3; supported are BOOL"),
        (_tensors(_one("F4"), b"1234"), "is of type F4"),
        (_tensors(_one(["U8"]), b"1234"), r"is of type \['U8'\]"),
        (_tensors(_one(), b"12345"), "cannot read"),
        (_tensors(b'{"images": 1, "images": 2}'), "'images' occurs twice"),
        (_tensors({"images": 3}), "is not described by dtype, shape and data_offsets"),
        (_tensors([1, 2]), "header is not a JSON object"),
        (_tensors({"__metadata__": {"a": 1}}), "metadata is not a JSON object of strings"),
        (_tensors(b"[" * 100_000), "cannot read"),
        (_tensors(b"\xff\xfe"), "cannot read"),
        (_tensors(_one(shape=(12, 1, 0, 28), place=(0, 0)) | {"labels": _one()["images"]}, b"1234"), "have no pixels"),
        (_tensors(_one(shape=(0, 1, 28, 28), place=(0, 0)) | {"labels": _one()["images"]}, b"1234"), "holds 0 images"),
    ],
)
def test_tensors_that_a_file_only_claims(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(raw)
    _refused(path, words)


def test_a_header_is_not_read_whatever_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little"))
        file.truncate(2 * 10**9)  # a hole in the file, which takes no room on the disk
    _refused(path, "its header takes 1000000000 bytes; expected at most 10000000")


def test_images_in_half_precision_and_labels_of_all_sizes(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        images = (IMAGES.pixels / 255).to(kind)
        safetensors.torch.save_file({"images": images, "labels": IMAGES.labels.to(torch.uint64)}, path)
        found = read_images(path)
        assert torch.equal(found.pixels, images.float())
        assert torch.equal(found.labels, IMAGES.labels)
    safetensors.torch.save_file({"images": images, "labels": torch.full((12,), 2**63, dtype=torch.uint64)}, path)
    _refused(path, "label 9223372036854775808 at position 0")
    with pytest.raises(UnsoundError, match="No such file"):
        read_safetensors(tmp_path / "absent")
    assert parse_safetensors(safetensors.torch.save({"a": torch.ones(2)}))["a"].tolist() == [1, 1]


# All of them, anywhere ------------------------------------------------------------------------------------------------
FUZZ = """
    import contextlib, gzip, random, resource, sys
    from pathlib import Path
    import torch
    from casemate.data import fashion_mnist, read_images
    from casemate.data.idx import parse_images, parse_labels
    from casemate.errors import CasemateError
    from casemate.evaluation import read_record
    from casemate.models import load

    import conftest  # registers the networks

    folder = Path(sys.argv[1])
    load(folder / "model.safetensors")  # what is loaded late must not count
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + 600_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def images(path):
        found = read_images(path)
        assert found.pixels.shape == (12, 1, 8, 8)
        assert found.tensors()[0].isfinite().all() and (found.labels >= 0).all()

    def record(path):
        found = read_record(folder / "record.json")
        assert found.clean.shape == found.adversarial.shape and len(found) == 40

    def model(path):
        assert load(folder / "model.safetensors")[0].input_shape == (1, 8, 8)

    def idx(path):
        raw = path.read_bytes()
        with contextlib.suppress(CasemateError):
            parse_labels(raw)
        assert parse_images(raw).shape == (12, 1, 8, 8)

    def packed(path):
        assert len(fashion_mnist.read_verified(path, fashion_mnist._File(path.name, 784, sys.argv[2]))) == 784

    targets = {
        "stored.npz": images, "deflated.npz": images, "unit.npz": images, "own.safetensors": images,
        "record.json": record, "adversarial.safetensors": record,
        "model.safetensors": model, "model.json": model, "images.idx": idx, "packed.gz": packed,
    }
    source = random.Random(0)
    for name, read in targets.items():
        path = folder / name
        good = path.read_bytes()
        read(path)
        refused = 0
        for attempt in range(int(sys.argv[3])):
            raw = bytearray(good)
            end = len(raw) if attempt % 2 else min(len(raw), 700)  # every other time in the header
            place = source.randrange(end)
            match attempt % 5:
                case 0:
                    raw[place] ^= 1 << source.randrange(8)
                case 1:
                    del raw[place:]
                case 2:
                    raw[place : place + 8] = source.randbytes(8)
                case 3:
                    raw[place : place + 1] = bytes([source.choice(b'09-[]{}".eN\\\\')])
                case 4:
                    raw[place : place + 4] = source.choice([b"\\xff" * 4, bytes(4), b"9999"])
            path.write_bytes(raw)
            try:
                read(path)
            except CasemateError as error:
                refused += 1
                assert "memory" not in str(error), (name, attempt, str(error))
            except BaseException as error:
                raise SystemExit(f"{name}, attempt {attempt}: {type(error).__name__}: {error}")
        path.write_bytes(good)
        print(name, refused)
"""


@pytest.mark.integration
def test_no_damage_anywhere_is_more_than_one_error(tmp_path: Path, found: Evaluation) -> None:
    """Bytes are flipped, cut off and written over: sound data of the same shape comes out, or casemate's own error."""
    np.savez(tmp_path / "stored.npz", images=PIXELS, labels=LABELS)
    np.savez_compressed(tmp_path / "deflated.npz", images=PIXELS, labels=LABELS)
    np.savez_compressed(tmp_path / "unit.npz", images=PIXELS.astype(np.float32) / 255, labels=LABELS.astype(np.uint8))
    safetensors.torch.save_file({"images": IMAGES.pixels, "labels": IMAGES.labels}, tmp_path / "own.safetensors")
    write_record(make_record(found, thirds(), name="thirds", data="tiny")[0], tmp_path)
    save(thirds(), tmp_path / "model.safetensors", ModelMetadata(architecture="linear", dataset="tiny"))
    (tmp_path / "images.idx").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 12, 0, 0, 0, 8, 0, 0, 0, 8]) + PIXELS.tobytes())
    packed = bytes(range(256)) * 3 + bytes(16)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(packed))
    program = [sys.executable, "-c", textwrap.dedent(FUZZ), str(tmp_path), hashlib.sha256(packed).hexdigest(), "400"]
    here = os.pathsep.join(map(str, (Path(casemate.__file__).parents[1], Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": here}
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    refused = dict(line.split() for line in done.stdout.splitlines())
    assert len(refused) == 10
    assert all(int(count) > 20 for count in refused.values()), refused


def test_the_command_line_shows_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(thirds(), tmp_path / "model.safetensors", ModelMetadata(architecture="linear", dataset="tiny"))
    bad = _npz(tmp_path / "own.npz", _with())
    bad.write_bytes(_patched(bad.read_bytes(), 8, 99))
    assert main(["evaluate", str(path), "--data", str(bad), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "images are compressed by method 99" in " ".join(err.split())
    assert "Traceback" not in err


# Safetensors or pickle ------------------------------------------------------------------------------------------------
def with_header_of(raw: bytes, length: int) -> bytes:
    """The .safetensors file with its header padded by spaces to `length` bytes."""
    before = int.from_bytes(raw[:8], "little")
    return length.to_bytes(8, "little") + raw[8 : 8 + before].ljust(length) + raw[8 + before :]


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_or_an_archive_is_read(tmp_path: Path, length: int) -> None:
    path = save(thirds(), tmp_path / "model.safetensors", ModelMetadata(architecture="linear", dataset="tiny"))
    raw = with_header_of(path.read_bytes(), length)
    assert raw[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")
    path.write_bytes(raw)
    sidecar = sidecar_of(path)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"sha256": hashlib.sha256(raw).hexdigest()}))
    assert format_of(path) == "safetensors"
    expected = thirds().state_dict()
    weights = read_weights(path)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert open_model(str(path)).model.state_dict().keys() == expected.keys()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("content", [{}, {"a": 1}, {"weights": "x" * 70_000}, list(range(300))])
def test_pickles_are_known_as_pickles(content: object, protocol: int) -> None:
    assert is_pickle(pickle.dumps(content, protocol)[:SIGNATURE])


@pytest.mark.parametrize("old", [False, True])
def test_files_of_torch_are_known(old: bool) -> None:
    file = io.BytesIO()
    torch.save(thirds().state_dict(), file, _use_new_zipfile_serialization=not old)
    head = file.getvalue()[:SIGNATURE]
    assert (is_archive(head), is_pickle(head)) == (not old, old)
