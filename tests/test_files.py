"""Whole-or-nothing writes, shown with real faults: exceptions, kills, full disks, folders in the way."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import DataError, StoreError
from casemate.files import (
    cache_folder,
    filling,
    make_folder,
    read_file,
    read_json,
    write_bytes,
    write_json,
    write_text,
    writing,
    writing_folder,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_write_makes_the_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    assert write_text(path, "grüße") == path
    assert path.read_bytes() == "grüße".encode()
    assert _names(path.parent) == ["file.txt"]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_bytes(tmp_path / "ours", b"")
    with writing_folder(tmp_path / "folder"):
        pass
    (tmp_path / "ordinary folder").mkdir()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "ordinary folder").stat().st_mode


def test_an_exception_inside_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError, match="halfway"), writing(path) as temporary:  # noqa: PT012
        temporary.write_text("new, but only ha")
        raise RuntimeError("halfway")
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_an_exception_inside_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writing(tmp_path / "file"):
        raise RuntimeError
    assert _names(tmp_path) == []


@pytest.mark.integration
def test_a_kill_inside_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file", "old")
    done = _python(
        """
        import os, signal, sys
        from pathlib import Path
        from casemate.files import writing
        with writing(Path(sys.argv[1])) as temporary:
            temporary.write_text("new, but only ha")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.integration
def test_a_full_disk_is_a_store_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "file", "old")
    done = _python(
        """
        import resource, signal, sys
        from pathlib import Path
        from casemate.errors import StoreError
        from casemate.files import write_bytes, writing_folder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        path = Path(sys.argv[1])
        for attempt in ("file", "folder"):
            try:
                if attempt == "file":
                    write_bytes(path, bytes(100_000))
                else:
                    with writing_folder(path.parent / "folder") as temporary:
                        (temporary / "large").write_bytes(bytes(100_000))
            except StoreError as error:
                print(error)
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    for message in done.stdout.splitlines():
        assert "File too large" in message
        assert "free some space" in message
    assert len(done.stdout.splitlines()) == 2
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StoreError, match="is a folder, but a file is to be written there"):
        write_bytes(tmp_path / "file", b"")
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("below", ["file", "file/deeper", "file/deeper/still"])
def test_a_file_in_the_way_of_a_folder(tmp_path: Path, below: str) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(StoreError, match=r"is a file|Not a directory"):
        make_folder(tmp_path / below)
    with pytest.raises(StoreError, match=r"is a file|Not a directory"):
        write_text(tmp_path / below / "new", "new")
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with writing_folder(tmp_path / "folder") as temporary:
            write_text(temporary / content / "part", content)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "folder",
        "folder/new",
        "folder/new/part",
    ]


def test_an_exception_inside_leaves_the_old_folder(tmp_path: Path) -> None:
    with writing_folder(tmp_path / "folder") as temporary:
        write_text(temporary / "part", "old")
    with pytest.raises(RuntimeError), writing_folder(tmp_path / "folder") as temporary:  # noqa: PT012
        write_text(temporary / "part", "new")
        raise RuntimeError
    assert (tmp_path / "folder" / "part").read_text() == "old"
    assert _names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing_folder(tmp_path / "folder") as temporary:
        write_text(temporary / "part", "old")
    rename = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with pytest.raises(StoreError, match="Input/output error"), writing_folder(tmp_path / "folder"):
        monkeypatch.setattr(Path, "replace", refuse)
    assert (tmp_path / "folder" / "part").read_text() == "old"
    assert _names(tmp_path) == ["folder"]


def test_a_file_in_the_way_of_a_written_folder_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "folder", "old")
    with pytest.raises(StoreError, match="is a file, but a folder"), writing_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder").read_text() == "old"


def test_a_folder_is_filled_whole_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    for content in ("old", "new"):
        with filling(folder, ["left"], "facts") as temporary:
            write_text(temporary / "facts", content)
            write_text(temporary / content, content)
            assert not (folder / content).exists()
        if content == "old":
            write_text(folder / "left", "of a run before")
            write_text(folder / "mine", "of the user")
    assert _names(folder) == ["facts", "mine", "new", "old"]
    assert (folder / "facts").read_text() == "new"
    assert _names(tmp_path / "deep") == ["folder"]


@pytest.mark.parametrize("exists", [True, False])
def test_an_exception_inside_fills_nothing(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "deep" / "folder"
    if exists:
        write_text(folder / "facts", "old")
    with pytest.raises(KeyboardInterrupt), filling(folder, ["facts"], "facts") as temporary:  # noqa: PT012
        write_text(temporary / "facts", "new")
        raise KeyboardInterrupt
    assert _names(tmp_path) == (["deep"] if exists else [])
    assert not exists or _names(folder) == ["facts"]
    assert not exists or (folder / "facts").read_text() == "old"


def test_a_kill_while_a_folder_is_filled_leaves_no_facts_beside_files_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    for name in ("a", "b", "facts"):
        write_text(folder / name, "old")
    rename = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise KeyboardInterrupt
        return rename(self, target)

    with pytest.raises(KeyboardInterrupt), filling(folder, [], "facts") as temporary:  # noqa: PT012
        for name in ("a", "b", "facts"):
            write_text(temporary / name, "new")
        monkeypatch.setattr(Path, "replace", killed)
    assert _names(folder) == ["a", "b"]
    assert (folder / "a").read_text() == "new"
    assert (folder / "b").read_text() == "old"


def test_a_file_in_the_way_of_a_filled_folder_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "folder", "old")
    with pytest.raises(StoreError, match="is a file, but a folder"), filling(tmp_path / "folder", [], "facts"):
        pass
    assert (tmp_path / "folder").read_text() == "old"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 200_000
    write_bytes(path, b"a" * size)
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        for letter in (b"b", b"a"):
            write_bytes(path, letter * size)
    stop.set()
    reader.join()
    assert seen <= {b"a" * size, b"b" * size}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [1, {"er": float("-inf")}]}])
def test_json_has_no_nan(tmp_path: Path, value: object) -> None:
    path = write_json(tmp_path / "file.json", {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, value)
    assert json.loads(path.read_text()) == {"old": 1}
    assert _names(tmp_path) == ["file.json"]


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@pytest.mark.integration
@given(st.dictionaries(st.text(), _PLAIN | st.lists(_PLAIN)))
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    assert read_json(write_json(path, content), DataError) == content


def test_json_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    one = write_json(tmp_path / "1", {"a": 1, "b": {"c": 2, "d": 3}})
    two = write_json(tmp_path / "2", {"b": {"d": 3, "c": 2}, "a": 1})
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"{",
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"a": NaN}',
        b"[-Infinity]",
        b"[1e999]",
        b'{"a": 1, "a": 2}',
        '"grüße"'.encode("latin-1"),
    ],
)
def test_unreadable_json_raises_the_error_asked_for(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.json( as JSON| does not exist)"):
        read_json(path, DataError)


def test_json_is_read_as_utf_8_whatever_the_locale_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.json").write_bytes('"grüße"'.encode())
    monkeypatch.setattr("io.text_encoding", lambda *given: "ascii")
    assert read_json(tmp_path / "file.json", DataError) == "grüße"


def test_a_file_that_cannot_be_read_raises_the_error_asked_for(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "does not exist"), (tmp_path / ("a" * 300), "File name too long")):
        with pytest.raises(DataError, match=rf"{words}; expected a good one"):
            read_file(path, DataError, "a good one")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("CASEMATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "casemate"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space or choose another place"),
        (errno.EACCES, "make the place writable for you"),
        (errno.EROFS, "choose another place"),
        (errno.ENAMETOOLONG, "correct the path"),
    ],
)
def test_the_advice_fits_the_error(code: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(StoreError) as raised:
        make_folder(tmp_path / "new")
    assert f"; {advice}" in str(raised.value)
    assert ("space" in str(raised.value)) == (code == errno.ENOSPC)


def test_a_path_through_a_file_is_to_be_corrected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"Not a directory\. .* correct the path"):
        make_folder(tmp_path / "file" / "folder")
