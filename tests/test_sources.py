"""Images from folders, tables, arrays, IDX, Parquet, CIFAR's files and PyTorch's data sets: read, refused, in parts."""

import gzip
import io
import json
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from casemate.data import UNLABELLED, LabelledImages, StreamedImages, as_labelled, open_images, read_images
from casemate.errors import DataError, SettingError
from casemate.evaluation.fingerprints import fingerprint_of_images
from conftest import tiny_images

IMAGES = tiny_images(12)
PIXELS, LABELS = IMAGES.pixels.numpy(), IMAGES.labels.numpy()
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
Write = Callable[[Path], Path]


def png(pixels: np.ndarray, kind: str = "png", **more: Any) -> bytes:
    """A picture file of an image `(channels, height, width)`."""
    stream = io.BytesIO()
    made = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    made.save(stream, kind, **more)
    return stream.getvalue()


def npz(folder: Path) -> Path:
    np.savez(folder / "own.npz", images=PIXELS, labels=LABELS)
    return folder / "own.npz"


def packed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "packed.npz", x_test=PIXELS[:, 0], y_test=LABELS[:, None].astype(np.uint8))
    return folder / "packed.npz"


def tensors(folder: Path) -> Path:
    safetensors.torch.save_file({"images": IMAGES.pixels, "labels": IMAGES.labels}, folder / "own.safetensors")
    return folder / "own.safetensors"


def idx(folder: Path) -> Path:
    raw = bytes([0, 0, 8, 3]) + struct.pack(">3I", 12, 8, 8) + PIXELS.tobytes()
    (folder / "t10k-images-idx3-ubyte").write_bytes(raw)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(
        bytes([0, 0, 8, 1, 0, 0, 0, 12]) + LABELS.astype(np.uint8).tobytes()
    )
    return folder / "t10k-images-idx3-ubyte"


def packed_idx(folder: Path) -> Path:
    for part in (idx(folder), folder / "t10k-labels-idx1-ubyte"):
        part.with_name(f"{part.name}.gz").write_bytes(gzip.compress(part.read_bytes()))
    return folder / "t10k-images-idx3-ubyte.gz"


def table(folder: Path) -> Path:
    (folder / "pictures").mkdir()
    rows = ["file,label,remark"]
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (folder / "pictures" / f"{number}.png").write_bytes(png(pixels))
        rows.append(f'pictures/{number}.png,{label},"a, b"')
    (folder / "own.csv").write_text("\n".join(rows))
    return folder / "own.csv"


def parquet(folder: Path) -> Path:
    pl = pytest.importorskip("polars")
    rows = {"image": [{"bytes": png(each), "path": None} for each in PIXELS], "label": LABELS}
    features = {"info": {"features": {"label": {"names": ["left", "middle", "right"], "_type": "ClassLabel"}}}}
    frame = pl.DataFrame(rows)
    frame.write_parquet(folder / "own.parquet", row_group_size=5, metadata={"huggingface": json.dumps(features)})
    return folder / "own.parquet"


SAME: dict[str, Write] = {each.__name__: each for each in (npz, packed_npz, tensors, idx, packed_idx, table, parquet)}
"""Formats in which the tiny images can be stored, in their order."""


@pytest.mark.parametrize("name", SAME)
def test_the_same_images_in_every_format(tmp_path: Path, name: str) -> None:
    found = open_images(SAME[name](tmp_path))
    assert torch.equal(found.labels, IMAGES.labels)
    assert found.image_shape == (1, 8, 8)
    assert torch.equal(found.read(slice(3, 9)).pixels, IMAGES.pixels[3:9])
    assert torch.equal(found.read(torch.tensor([7, 2, 2, 3])).pixels, IMAGES.pixels[[7, 2, 2, 3]])
    assert found.fingerprint == fingerprint_of_images(IMAGES)
    part = found.subset(5, seed=3)
    assert part.fingerprint == fingerprint_of_images(part.read(slice(None)))
    assert torch.equal(torch.cat([each for each, _ in found.batches(5)]), IMAGES.tensors()[0])
    assert found.classes == (("left", "middle", "right") if name == "parquet" else None)


@pytest.mark.parametrize("name", SAME)
def test_the_same_images_without_their_labels(tmp_path: Path, name: str) -> None:
    found = open_images(SAME[name](tmp_path), labelled=False)
    assert found.labels.tolist() == [UNLABELLED] * len(IMAGES)
    assert found.classes is None
    assert torch.equal(found.read(slice(None)).pixels, IMAGES.pixels)


def by_class(folder: Path) -> Path:
    """A folder of pictures with a subfolder for each class, named so that numbers and letters sort differently."""
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        place = folder / "photos" / ("10", "9", "b")[label] / "deeper" if number == 5 else None
        place = place or folder / "photos" / ("10", "9", "b")[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02}.png").write_bytes(png(pixels))
    (folder / "photos" / "notes.txt").write_text("no class")
    (folder / "photos" / "b" / "Thumbs.db").write_bytes(b"no picture")
    return folder / "photos"


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    found = open_images(by_class(tmp_path))
    assert found.classes == ("9", "10", "b")
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(found.read(slice(0, 4)).pixels, IMAGES.pixels[IMAGES.labels == 1])
    assert torch.equal(found.read(slice(4, 8)).pixels, IMAGES.pixels[IMAGES.labels == 0])
    assert found.is_sorted_by_class
    assert not open_images(npz(tmp_path)).is_sorted_by_class
    unlabelled = open_images(tmp_path / "photos", labelled=False)
    assert unlabelled.labels.tolist() == [UNLABELLED] * 12
    read = {bytes(each.numpy().tobytes()) for each in unlabelled.read(slice(None)).pixels}
    assert read == {bytes(each.numpy().tobytes()) for each in IMAGES.pixels}


def test_labels_count_the_classes_of_the_model(tmp_path: Path) -> None:
    folder = by_class(tmp_path)
    found = open_images(folder, classes=["B", "x", "10", "9"])
    assert found.labels.tolist() == [3] * 4 + [2] * 4 + [0] * 4
    found = open_images(folder, classes=["u", "v", "w"])
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert "taken in this order for the model's u, v, w" in found.notes[0]
    with pytest.raises(DataError, match=r"has the classes 9, 10, b, but the model b, 10, c; not among the model's: 9"):
        open_images(folder, classes=["b", "10", "c"])
    with pytest.raises(DataError, match=r"but the model 0, 1, 2, 3, ... .5."):
        open_images(folder, classes=["0", "1", "2", "3", "4"])
    with pytest.raises(DataError, match=r"label 2 at position 2, but there are 2 class names"):
        open_images(npz(tmp_path), classes=["u", "v"])


def test_a_sample_is_stratified_and_grows(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((90, 1, 1, 1), np.uint8), labels=np.repeat([0, 1, 2], [60, 20, 10]))
    found = open_images(tmp_path / "a.npz")
    small, large = found.subset(9, seed=4), found.subset(45, seed=4)
    assert small.chosen == "stratified, seed 4"
    assert small.labels.bincount().tolist() == [6, 2, 1]
    assert large.labels.bincount().tolist() == [30, 10, 5]
    assert small.positions is not None
    assert large.positions is not None
    assert torch.equal(large.positions[:9], small.positions)
    other = found.subset(9, seed=5).positions
    assert other is not None
    assert not torch.equal(other, small.positions)
    assert found.subset(1000) is found
    assert found.first(7).positions is not None
    with pytest.raises(SettingError, match="a sample of 0 images"):
        found.subset(0)


def test_parts_of_a_data_set_are_chosen(tmp_path: Path) -> None:
    by_class(tmp_path / "train")
    (tmp_path / "train" / "photos").rename(tmp_path / "test")
    by_class(tmp_path / "a")
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "test").rename(root / "test")
    (tmp_path / "a" / "photos").rename(root / "train")
    with pytest.raises(DataError, match="holds the parts test, train of a data set; choose one with --split"):
        open_images(root)
    assert open_images(root, split="test").classes == ("9", "10", "b")
    with pytest.raises(DataError, match=r"has no subfolder 'val' .--split val.; it has test, train"):
        open_images(root, split="val")
    np.savez(tmp_path / "m.npz", x_train=PIXELS[:8], y_train=LABELS[:8], x_test=PIXELS[8:], y_test=LABELS[8:])
    assert len(open_images(tmp_path / "m.npz", split="train")) == 8
    assert "used `x_test` as the images and `y_test` as the labels" in open_images(tmp_path / "m.npz").notes[0]


def test_a_table_of_paths_and_labels(tmp_path: Path) -> None:
    path = table(tmp_path)
    names = path.read_text().replace(",0,", ",zebra,").replace(",1,", ",ape,").replace(",2,", ",bee,")
    path.write_text(names.replace("remark", "split").replace('"a, b"', "test"))
    found = open_images(path, split="test")
    assert found.classes == ("ape", "bee", "zebra")
    assert found.labels.tolist() == [[2, 0, 1][label] for label in LABELS]
    with pytest.raises(DataError, match="lists no pictures of the split 'train'"):
        open_images(path, split="train")
    path.write_text("\n".join(f"{number}.png,{label}" for number, label in enumerate(LABELS)))
    found = open_images(tmp_path / "pictures", labels=path)
    assert torch.equal(found.read(slice(None)).pixels, IMAGES.pixels)
    path.rename(tmp_path / "pictures" / "labels.csv")
    assert open_images(tmp_path / "pictures").labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("/etc/passwd,1", "path '/etc/passwd' in row 1 leads out of"),
        ("../own.png,1", "path '../own.png' in row 1 leads out of"),
        ("a/../../own.png,1", "leads out of"),
        ("link.png,1", "is a link to .*, outside of"),
        ("absent.png,1", "absent.png: No such file"),
        ("pipe.png,1", "not a regular file"),
        ("0.png", "no value in column 2 of row 1"),
        (",1", "no value in column 1 of row 1"),
        ('0.png,"1', "cannot read"),
        ("\xff\xfe\x00", "cannot read|no value|columns"),
        ("text.png,1", "it is damaged, or no picture"),
        ("empty.png,1", "it is damaged, or no picture"),
        ("dir.png,1", "not a regular file|Is a directory"),
    ],
)
def test_a_table_that_leads_elsewhere(tmp_path: Path, row: str, words: str) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "0.png").write_bytes(png(PIXELS[0]))
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "dir.png").mkdir()
    (tmp_path / "own.png").write_bytes(png(PIXELS[0]))
    (folder / "link.png").symlink_to(tmp_path / "own.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "own.csv").write_text(f"path,label\n{row}\n", encoding="latin-1")
    with pytest.raises(DataError, match=words):
        open_images(folder / "own.csv").read(slice(None))


def test_links_in_a_folder_are_not_followed_out_of_it(tmp_path: Path) -> None:
    folder = by_class(tmp_path)
    (tmp_path / "secret.png").write_bytes(png(PIXELS[0]))
    (folder / "b" / "00.png").symlink_to(folder / "b" / "02.png")
    assert len(open_images(folder).read(slice(None))) == 13
    (folder / "b" / "000.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"000\.png: it is a link to .*secret\.png, outside of"):
        open_images(folder).read(slice(None))
    (folder / "c").symlink_to(folder / "b")
    with pytest.raises(DataError, match="is a link to a folder"):
        open_images(folder)


def _alone(tmp_path: Path, raw: bytes, **options: Any) -> StreamedImages:
    """One picture, in a table of its own."""
    (tmp_path / "one.img").write_bytes(raw)
    (tmp_path / "one.csv").write_text("one.img,0")
    return open_images(tmp_path / "one.csv", **options)


def test_colours_orientation_palettes_and_alpha(tmp_path: Path) -> None:
    colour = COLOUR[0]
    assert torch.equal(_alone(tmp_path, png(colour)).read(slice(None)).pixels[0], torch.from_numpy(colour))
    turned = Image.Exif()
    turned[274] = 6  # the picture is shown after a quarter turn
    found = _alone(tmp_path, png(colour, exif=turned.tobytes()))
    assert torch.equal(found.read(slice(None)).pixels[0], torch.from_numpy(np.rot90(colour, -1, (1, 2)).copy()))
    assert "turned by the orientation in the EXIF data (1 of the images read)" in found.notes[0]
    opaque = np.concatenate([colour, np.full((1, 32, 32), 255, np.uint8)])
    assert torch.equal(_alone(tmp_path, png(opaque)).read(slice(None)).pixels[0], torch.from_numpy(colour))
    opaque[3, 5, 5] = 254
    with pytest.raises(DataError, match="it is transparent in places"):
        _alone(tmp_path, png(opaque))
    stream = io.BytesIO()
    Image.fromarray(colour.transpose(1, 2, 0)).quantize(16).save(stream, "png")
    assert _alone(tmp_path, stream.getvalue()).image_shape == (3, 32, 32)
    stream = io.BytesIO()
    Image.fromarray(colour.transpose(1, 2, 0)).convert("CMYK").save(stream, "jpeg", quality=100)
    assert _alone(tmp_path, stream.getvalue()).image_shape == (3, 32, 32)
    for deep in (np.full((1, 8, 8), 40_000, np.uint16), np.full((1, 8, 8), 7, np.int32)):
        with pytest.raises(DataError, match="levels of more than 8 bits"):
            _alone(tmp_path, png(deep, "tiff"))
    grey = _alone(tmp_path, png(PIXELS[0]), channels=3)
    assert torch.equal(grey.read(slice(None)).pixels[0], IMAGES.pixels[0].expand(3, -1, -1))
    assert _alone(tmp_path, png(colour), channels=1).image_shape == (1, 32, 32)


def test_frames_bombs_and_programs_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    frames = [Image.fromarray(each[0]) for each in PIXELS[:2]]
    frames[0].save(stream, "gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="it has several frames"):
        _alone(tmp_path, stream.getvalue())
    with pytest.raises(DataError, match="no picture in JPEG"):
        _alone(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    tracemalloc.start()
    with pytest.raises(DataError, match="its size exceeds 51 million pixels"):
        _alone(tmp_path, bomb)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    scans = png(COLOUR[0], "jpeg", progressive=True)
    place = scans.index(b"\xff\xda")
    with pytest.raises(DataError, match=r"JPEG of .* scans"):
        _alone(tmp_path, scans[:place] + scans[place:-2] * 60_000 + scans[-2:])


@pytest.mark.usefixtures("unchecked")
def test_sizes_crops_and_what_pillow_makes_of_them(tmp_path: Path) -> None:
    tall = np.random.default_rng(2).integers(0, 256, (3, 40, 20), dtype=np.uint8)
    image = Image.fromarray(tall.transpose(1, 2, 0))
    found = _alone(tmp_path, png(tall), size=16, crop=12, interpolation="bicubic").read(slice(None)).pixels[0]
    expected = image.resize((16, 32), Image.Resampling.BICUBIC).crop((2, 10, 14, 22))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(expected))
    assert _alone(tmp_path, png(tall), size=(10, 30)).image_shape == (3, 10, 30)
    np.savez(tmp_path / "a.npz", images=tall[None], labels=np.zeros(1, int))
    array = open_images(tmp_path / "a.npz", size=16, crop=12, interpolation="bicubic").read(slice(None)).pixels[0]
    assert torch.equal(array, found)
    found = _alone(tmp_path, png(tall), size=16, crop=12).read(slice(None)).pixels[0]
    np.savez(tmp_path / "a.npz", images=tall[None] / 255, labels=np.zeros(1, int))
    unit = open_images(tmp_path / "a.npz", size=16, crop=12).read(slice(None)).pixels[0]
    assert (unit * 255 - found).abs().max() < 1.1
    np.savez(tmp_path / "a.npz", images=(tall[None] > 127) / 1.0, labels=np.zeros(1, int))
    sharp = open_images(tmp_path / "a.npz", size=30, interpolation="lanczos").read(slice(None)).pixels
    assert sharp.aminmax() == (0, 1)
    for wrong in ({"size": 0}, {"crop": 100_000}, {"size": (3, -1)}, {"interpolation": "best"}, {"channels": 2}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            open_images(tmp_path / "a.npz", **wrong)  # type: ignore[arg-type]


def test_pictures_of_other_shapes_and_colours_name_the_option(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(png(PIXELS[0]))
    (folder / "1.png").write_bytes(png(PIXELS[1][:, :5]))
    with pytest.raises(DataError, match=r"1\.png has 5 x 8 pixels, but the first picture 8 x 8; .*--resize SIDE and"):
        open_images(folder.parent).read(slice(None))
    assert open_images(folder.parent, size=(8, 8)).read(slice(None)).pixels.shape == (2, 1, 8, 8)
    (folder / "1.png").write_bytes(png(COLOUR[0][:, :8, :8]))
    with pytest.raises(DataError, match=r"1\.png is in colour, but the first picture is grey; .*--channels"):
        open_images(folder.parent).read(slice(None))
    (folder / "0.png").rename(folder / "2.png")
    found = open_images(folder.parent)
    assert found.read(slice(None)).pixels.shape == (2, 3, 8, 8)
    assert "converted from grey to three equal channels (1 of the images read)" in found.notes[0]


@pytest.mark.parametrize("extra", [1, 2])
def test_the_binary_form_of_cifar(tmp_path: Path, extra: int) -> None:
    files = {1: ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin")}
    names = files.get(extra, ("train.bin",))
    for number, name in enumerate(names):
        records = [bytes([9] * (extra - 1) + [number + place]) + each.tobytes() for place, each in enumerate(COLOUR)]
        (tmp_path / name).write_bytes(b"".join(records))
    (tmp_path / ("test_batch.bin" if extra == 1 else "test.bin")).write_bytes(bytes(extra) + COLOUR[3].tobytes())
    found = open_images(tmp_path, split="train")
    assert found.labels.tolist() == [number + place for number in range(len(names)) for place in range(6)]
    places = torch.tensor([len(found) - 1, 0, 5])
    assert torch.equal(found.read(places).pixels, torch.from_numpy(COLOUR[[5, 0, 5]]))
    test = open_images(tmp_path)
    assert torch.equal(test.read(slice(None)).pixels[0], torch.from_numpy(COLOUR[3]))
    assert "used the test images" in test.notes[0]
    (tmp_path / names[0]).write_bytes(bytes(5000))
    with pytest.raises(DataError, match="5000 bytes are no whole number of records of 3073 or 3074"):
        open_images(tmp_path, split="train")
    (tmp_path / names[0]).unlink()
    with pytest.raises(DataError, match="lacks"):
        open_images(tmp_path, split="train")


class Counted(torch.utils.data.Dataset[Any]):
    """A data set that counts how often an element is read."""

    def __init__(self, *, targets: bool) -> None:
        self.reads = 0
        if targets:
            self.targets = LABELS.tolist()

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return IMAGES.pixels[place], int(LABELS[place])


@pytest.mark.parametrize("targets", [True, False])
def test_data_sets_of_pytorch_are_read_when_needed(targets: bool) -> None:
    dataset = Counted(targets=targets)
    found = open_images(dataset)
    assert dataset.reads == (6 if targets else 14)
    assert torch.equal(found.labels, IMAGES.labels)
    assert torch.equal(found.read(slice(3, 5)).pixels, IMAGES.pixels[3:5])
    loader = DataLoader(dataset, batch_size=5, shuffle=True, drop_last=True)
    mixed = open_images(loader)
    assert len(mixed) == 10
    whole = mixed.read(slice(None))
    assert torch.equal(whole.pixels[3:7], mixed.read(slice(3, 7)).pixels)
    assert torch.equal(whole.labels, mixed.labels)
    assert mixed.labels.tolist() != LABELS[:10].tolist()


class Noisy(Counted):
    """A data set with random augmentation."""

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return torch.rand(1, 8, 8), int(LABELS[place])


@pytest.mark.usefixtures("unchecked")
def test_random_images_and_unknown_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives another image when it is read again"):
        open_images(Noisy(targets=True))
    assert len(open_images(TensorDataset(IMAGES.pixels, IMAGES.labels))) == 12
    for wrong, words in (
        (3, "an int as images; expected images and labels"),
        (tmp_path / "absent", "does not exist; expected a folder"),
        (tmp_path, "has no subfolders; expected one for each class"),
    ):
        with pytest.raises(DataError, match=words):
            open_images(wrong)
    (tmp_path / "own.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"ends in \.pkl"):
        open_images(tmp_path / "own.pkl")
    with pytest.raises(DataError, match="only a folder or an IDX file takes the labels from another file"):
        open_images(npz(tmp_path), labels=tmp_path / "own.csv")


def test_a_file_cut_short_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = npz(tmp_path)
    found = open_images(path)
    with path.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match="it has been changed or is truncated"):
        found.read(slice(None))


def test_images_in_memory_are_read_in_the_same_way() -> None:
    assert isinstance(IMAGES.read(slice(2)), LabelledImages)
    for given in (IMAGES, (IMAGES.pixels, IMAGES.labels)):
        assert open_images(given, subset=5).fingerprint == open_images(given, subset=5).fingerprint
        assert open_images(given).fingerprint == fingerprint_of_images(IMAGES)
    assert torch.equal(as_labelled(open_images(IMAGES)).pixels, IMAGES.pixels)
    assert torch.equal(IMAGES.read(torch.tensor([4, 1])).labels, IMAGES.labels[[4, 1]])


def test_a_million_images_take_the_memory_of_ten_thousand(tmp_path: Path) -> None:
    """Python's own memory; that of the process is measured by `benchmarks`."""
    peaks = []
    for count in (2_000, 100_000):
        np.savez(tmp_path / "many.npz", images=np.zeros((count, 1, 28, 28), np.uint8), labels=np.zeros(count, int))
        tracemalloc.start()
        found = open_images(tmp_path / "many.npz")
        for start in range(0, count, 1000):
            found.read(slice(start, start + 1000))
        peaks.append(tracemalloc.get_traced_memory()[1] - found.labels.nbytes)
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 2_000_000
    assert read_images(tmp_path / "many.npz").pixels.shape == (100_000, 1, 28, 28)
