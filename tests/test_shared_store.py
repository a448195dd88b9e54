"""Stores on shared storage: several machines, clients that die, storage that is slow, fails or holds damaged objects.

A machine is stood in for by a cache directory of its own, a client by a thread or a process.
"""

import errno
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from casemate.arrays import UnsoundError
from casemate.attacks import Passes
from casemate.cli.main import main
from casemate.cli.store.run import clean_store, list_store
from casemate.engine import Artifact, Context, Processes, Producer, Store, Task, make_plan, run_plan
from casemate.engine import objects as objects_module
from casemate.engine.bundle import files_in, pack, unpack
from casemate.engine.objects import Objects
from casemate.errors import CasemateError, MissingExtraError, StoreError
from casemate.evaluation import pieces as pieces_module
from casemate.evaluation.pieces import Measurements, Piece, open_pieces
from casemate.models.accel import freeze as freeze_module
from casemate.progress import NULL_OBSERVER, Observer
from conftest import Listener
from damage import damaged_bytes
from test_evaluation_pieces import ATTACKS, IMAGES, Stops, content, judged, resumed

PRODUCERS = {"first": Producer("casemate.losses", "engine_tasks:produce")}
TASKS = [
    Task(name="a", kind="first", config={"value": 1}),
    Task(name="b", kind="first", config={"value": 10}, needs={"model": "a"}),
    Task(name="c", kind="first", config={"value": 100}, needs={"model": "b", "other": "a"}),
]
FACTS: dict[str, Any] = {"kind": "first", "name": "E9/x", "config": {"dataset": "digits"}, "code": "0"}
MADE = {"finished": "2026-01-01T00:00:00+00:00", "seconds": 65.0}
Machine = Callable[..., Store]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(objects_module, "_AGAIN", 0.0)
    monkeypatch.setattr(pieces_module, "_LISTED_FOR", 0.0)
    monkeypatch.setattr("casemate.evaluation.shards._FIRST", 20)
    monkeypatch.setattr("casemate.attacks.prepare._WORTH_COPYING", 0)


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Opens a store on the machine with a name."""

    def opened(name: str, url: str, observer: Observer = NULL_OBSERVER) -> Store:
        monkeypatch.setenv("CASEMATE_CACHE", str(tmp_path / name))
        return Store(url, observer=observer)

    return opened


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a store on each file system that needs no server."""
    return place_in_memory() if request.param == "memory" else f"file://{tmp_path}/shared/store"


def place_in_memory() -> str:
    return f"memory://{uuid.uuid4().hex}/store"


def put(store: Store, key: str, text: str = "text", size: int = 100) -> Artifact:
    """Compute and store an artifact."""
    with store.lock_for(key):
        with store.put(key, FACTS | {"key": key, "result": {"text": text}, "provenance": MADE}) as folder:
            (folder / "parts").mkdir()
            (folder / "parts" / "empty").touch()
            (folder / "data.bin").write_bytes(text.encode() * size)
        found = store.find(key)
    assert found is not None
    return found


def is_whole(found: Artifact, size: int = 100) -> bool:
    """Whether all files of an artifact are those of one client."""
    return found.path("data.bin").read_bytes() == found.result["text"].encode() * size


def remote(store: Store, name: str) -> str:
    """The path of an object within its file system."""
    assert store.objects is not None
    return store.objects._path(name)


def system(store: Store) -> Any:
    assert store.objects is not None
    return store.objects._fs


# One client after another ---------------------------------------------------------------------------------------------
def test_what_one_machine_finished_another_finds(on: Machine, url: str) -> None:
    first = put(on("one", url), "k1")
    store = on("two", url)
    assert store.root != first.folder.parent.parent
    found = store.find("k1")
    assert found is not None
    assert (found.facts, files_of(found)) == (first.facts, files_of(first))
    assert is_whole(found)
    assert store.find("k2") is None
    assert Store(store.location).find("k1") == found


def files_of(artifact: Artifact) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_in(artifact.folder).items()}


def test_the_first_client_wins(on: Machine, url: str) -> None:
    one, two = on("one", url), on("two", url)
    with two.lock_for("k1"), two.put("k1", FACTS | {"result": {"text": "late"}, "provenance": MADE}) as folder:
        put(one, "k1", "early")
        (folder / "data.bin").write_bytes(b"late" * 100)
    for store in (one, two, on("three", url)):
        found = store.find("k1")
        assert found is not None
        assert found.result == {"text": "early"}
        assert is_whole(found)
        assert store.unfinished() == []


def test_a_plan_lists_shared_storage_once(on: Machine, monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    url = place_in_memory()
    plan = make_plan(TASKS, ["c"], PRODUCERS, on("one", url), "cpu")
    assert len(plan.missing) == 3
    run_plan(plan, PRODUCERS, on("one", url), Context("cpu", listener))
    asked: list[str] = []
    find = MemoryFileSystem.find
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda self, path, **how: asked.append(path) or find(self, path, **how)
    )
    again = make_plan(TASKS, ["c"], PRODUCERS, on("two", url), "cpu", to_run=False)
    assert again.missing == []
    assert len(asked) == 1
    values = {name: artifact.result["value"] for name, artifact in again.artifacts.items()}
    assert values == {"a": 1, "b": 11, "c": 112}


@pytest.mark.integration
def test_worker_processes_share_a_store(on: Machine, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    store = on("one", url)
    run_plan(
        make_plan(TASKS, ["c"], PRODUCERS, store, "cpu"),
        PRODUCERS,
        store,
        Context("cpu", NULL_OBSERVER),
        engine=Processes(workers=2),
    )
    assert make_plan(TASKS, ["c"], PRODUCERS, on("two", url), "cpu").missing == []


def test_what_clients_agree_on_is_the_choice_of_the_first(on: Machine, url: str, tmp_path: Path) -> None:
    assert on("one", url).agreed("precision / here", lambda: "bfloat16") == "bfloat16"
    assert on("two", url).agreed("precision / here", lambda: "float32") == "bfloat16"
    assert on("two", url).agreed("precision / there", lambda: "float32") == "float32"
    assert Store(tmp_path / "folder").agreed("precision / here", lambda: "float32") == "float32"


# Several clients at once ----------------------------------------------------------------------------------------------
def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls in threads that start together."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(number: int) -> None:
        barrier.wait()
        results[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_two_clients_that_store_the_same_artifact_at_once(on: Machine, url: str) -> None:
    stores = [on("one", url), on("two", url)]
    for number in range(20):
        key = f"k{number}"
        found = at_once(*(lambda each=each, key=key: put(each, key, each.root.parent.parent.name) for each in stores))
        assert all(each is not None and is_whole(each) for each in found)
        if url.startswith("file"):  # fsspec's memory cannot refuse a second object at that moment
            assert found[0].result == found[1].result
    assert len(on("three", url).held()) == 20


@contextmanager
def half_written(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> Iterator[None]:
    """Context in which fsspec's memory gets each object in two parts, between which something happens."""
    whole = MemoryFileSystem.pipe_file

    def in_parts(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite", **how: Any) -> None:
        if "artifacts" in path:
            whole(self, path, value[: len(value) // 2], mode=mode, **how)
            then()
        whole(self, path, value, mode="overwrite", **how)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", in_parts)
        yield


def test_a_reader_during_a_write_finds_a_whole_artifact_or_none(
    on: Machine, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    url = place_in_memory()
    writer, reader = on("one", url), on("two", url, listener)
    seen: list[Artifact | None] = []
    with half_written(monkeypatch, lambda: seen.append(reader.find("k1"))):
        put(writer, "k1")
    assert seen == [None]
    assert "is damaged" in listener.said[0]
    found = reader.find("k1")
    assert found is not None
    assert is_whole(found)


def test_a_client_that_dies_while_it_writes_leaves_nothing_that_counts(
    on: Machine, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    url = place_in_memory()

    def die() -> None:
        raise SystemExit

    with half_written(monkeypatch, die), pytest.raises(SystemExit):
        put(on("one", url), "k1", "dead")
    store = on("two", url, listener)
    assert store.find("k1") is None
    assert [words.split(" ", 1)[1].split(" (")[0] for words in listener.said] == ["is damaged"]
    assert list_store(url)["artifacts"] == []
    assert put(store, "k1", "alive").result == {"text": "alive"}
    found = on("three", url).find("k1")
    assert found is not None
    assert found.result == {"text": "alive"}
    assert is_whole(found)


KILLED = """
    import shutil, sys, time
    from pathlib import Path
    from casemate.engine import Store

    store = Store(sys.argv[1])
    copyfile = shutil.copyfile
    def slow(source, target):
        raw = Path(source).read_bytes()
        Path(target).write_bytes(raw[: len(raw) // 2])
        print("half", flush=True)
        time.sleep(60)
    shutil.copyfile = slow
    facts = dict(kind="first", name="E9/x", config={}, code="0", result={}, provenance={})
    with store.lock_for("k1"), store.put("k1", facts) as folder:
        (folder / "data.bin").write_bytes(bytes(100_000))
"""


def test_a_killed_process_leaves_no_half_written_file(on: Machine, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    killed = client(KILLED, url, cache=tmp_path / "one")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half\n"
    killed.kill()
    killed.communicate()
    store = on("two", url)
    assert store.find("k1") is None
    assert store.held() == []
    assert is_whole(put(store, "k1"))
    late = on("one", url)  # the killed client kept its result, but the other's was stored first
    late.share(["k1"])
    found = late.find("k1")
    assert found is not None
    assert found.result == {"text": "text"}
    assert list((late.root / "locks").glob("*.pid"))


def client(code: str, *arguments: object, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """A process of its own on the machine with that cache directory."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    own = os.environ | {"CASEMATE_CACHE": str(cache), "OMP_NUM_THREADS": "1"} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=own)


# Storage that fails, or is slow ---------------------------------------------------------------------------------------
def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str], BaseException | None]) -> None:
    """Let requests to fsspec's memory fail: `fails` returns the error of a request, by the name of its method."""
    for name in ("pipe_file", "get_file", "find", "cat_file", "exists", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, _request(name, getattr(MemoryFileSystem, name), fails))


def _request(name: str, call: Any, fails: Callable[[str], BaseException | None]) -> Any:
    def request(self: Any, *given: Any, **how: Any) -> Any:
        error = fails(name)
        if error is not None:
            raise error
        return call(self, *given, **how)

    return request


def test_requests_that_fail_now_and_then_are_repeated(
    on: Machine, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    url, source = place_in_memory(), random.Random(19)
    failing(monkeypatch, lambda name: ConnectionError("the line is busy") if source.random() < 0.25 else None)
    store = on("one", url, listener)
    run_plan(make_plan(TASKS, ["c"], PRODUCERS, store, "cpu"), PRODUCERS, store, Context("cpu", NULL_OBSERVER))
    assert make_plan(TASKS, ["c"], PRODUCERS, on("two", url), "cpu").missing == []
    assert any("the line is busy); trying again in 0 s" in words for words in listener.said)


def test_storage_that_is_away_loses_no_result(on: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    url = place_in_memory()
    store = on("one", url)
    plan = make_plan(TASKS, ["b"], PRODUCERS, store, "cpu")
    with monkeypatch.context() as patch:
        failing(patch, lambda name: ConnectionError("no route to host") if name == "pipe_file" else None)
        with pytest.raises(
            StoreError, match=r"cannot store memory://.*: no route to host; check the network"
        ) as raised:
            run_plan(plan, PRODUCERS, store, Context("cpu", NULL_OBSERVER))
    assert "a is kept in " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert on("two", url).find_all(plan.keys.values()) == {}
    assert list(make_plan(TASKS, ["b"], PRODUCERS, on("one", url), "cpu").artifacts) == ["a"]
    assert list(on("two", url).find_all(plan.keys.values())) == [plan.keys["a"]]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Access Denied."), "Access Denied; check the credentials"),
        (FileNotFoundError("The specified bucket does not exist"), "does not exist; create the bucket first"),
        (OSError(30, "Read-only file system"), "Read-only file system; check the URL"),
        (OSError(28, "No space left on device"), "No space left on device; free some space there"),
    ],
    ids=["permission", "bucket", "read-only", "full"],
)
def test_storage_that_cannot_be_written_is_an_error_before_anything_is_computed(
    error: OSError, words: str, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, requests = place_in_memory(), []
    failing(monkeypatch, lambda name: error if name == "pipe_file" and not requests.append(name) else None)
    with pytest.raises(StoreError, match=f"^cannot store {url}/store.safetensors: .*{words}"):
        make_plan(TASKS, ["c"], PRODUCERS, on("one", url), "cpu")
    with pytest.raises(StoreError, match=words):
        evaluated(url)
    assert len(requests) == 2  # none is repeated
    assert make_plan(TASKS, ["c"], PRODUCERS, on("one", url), "cpu", to_run=False).artifacts == {}


def test_slow_storage_shows_what_is_transferred(
    on: Machine, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    url = place_in_memory()

    def slow(name: str) -> None:
        time.sleep(0.01)

    failing(monkeypatch, slow)
    put(on("one", url, listener), "k1")
    assert is_whole(put(on("two", url, listener), "k1"))
    assert {"Storing artifacts/k1", "Fetching artifacts/k1"} <= set(listener.titles)
    assert any(note.endswith(" MB") for note in listener.notes)


def test_without_hard_links_the_first_client_wins_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*places: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("first")
    objects_module._write_file(source, target, replace=False)
    source.write_text("second")
    with pytest.raises(FileExistsError):
        objects_module._write_file(source, target, replace=False)
    assert target.read_text() == "first"
    objects_module._write_file(source, target, replace=True)
    assert target.read_text() == "second"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_object_larger_than_the_disk_is_refused(on: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    url = place_in_memory()
    put(on("one", url), "k1")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 10}))
    with pytest.raises(StoreError, match="does not fit on this machine's disk"):
        on("two", url).find("k1")


# Damaged and hostile objects ------------------------------------------------------------------------------------------
def test_a_damaged_object_is_missing_or_whole_and_is_replaced(on: Machine, listener: Listener) -> None:
    url, source = place_in_memory(), random.Random(19)
    first = put(on("one", url), "k1")
    store = on("two", url, listener)
    name = remote(store, "artifacts/k1")
    good = system(store).cat_file(name)
    missing = 0
    for attempt in range(60):
        system(store).pipe_file(name, damaged_bytes(good, attempt, source))
        reader = on(f"reader {attempt}", url, listener)
        found = reader.find("k1")
        missing += found is None
        assert found is None or files_of(found) == files_of(first)
    assert missing > 50
    assert len(listener.said) == missing
    system(store).pipe_file(name, good[:-1])
    assert put(store, "k1", "again").result == {"text": "again"}
    assert on("three", url).find("k1") == put(on("three", url), "k1", "late")


def lies(name: str) -> bytes:
    """A bundle with one file, whose checksums are right."""
    folder = Path(os.environ["CASEMATE_CACHE"]) / "made"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(b"content")
    pack({name: folder / "file"}, folder / "bundle", {"object": "artifacts/k1"})
    return (folder / "bundle").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["../outside", "a/../../outside", "/tmp/outside", "a//b", "./a", "a\\b", "a\nb", "", "x" * 300, "a/" * 20 + "b"],
)
def test_a_bundle_cannot_write_outside_its_folder(name: str, on: Machine, listener: Listener, tmp_path: Path) -> None:
    url = place_in_memory()
    store = on("one", url, listener)
    system(store).pipe_file(remote(store, "artifacts/k1"), lies(name))
    assert store.find("k1") is None
    assert "is damaged" in listener.said[0]
    assert not list(tmp_path.rglob("outside"))
    assert list((store.root / "moving").iterdir()) == []


def test_a_bundle_with_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    pack({"a": tmp_path / "file", "a/b": tmp_path / "file"}, tmp_path / "bundle", {})
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsoundError, match="'a/b' is no name of a file"):
        unpack(tmp_path / "bundle", tmp_path / "out")


def test_another_artifact_under_the_same_key_is_missing(on: Machine, listener: Listener) -> None:
    url = place_in_memory()
    store = on("one", url)
    put(store, "k1")
    system(store).copy(remote(store, "artifacts/k1"), remote(store, "artifacts/k2"))
    assert on("two", url, listener).find("k2") is None
    assert "it is another object, under this name" in listener.said[0]


def test_a_damaged_copy_is_fetched_again(on: Machine, url: str) -> None:
    store = on("one", url)
    folder = put(store, "k1").folder
    (folder / "artifact.json").write_text("{")
    found = store.find("k1")
    assert found is not None
    assert is_whole(found)


# URLs -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("location", "error", "words"),
    [
        ("s3://", StoreError, "no place for a store"),
        ("://x", StoreError, "no place for a store"),
        ("simplecache::s3://b/x", StoreError, "no place for a store"),
        ("sftp://user:secret@host/x", StoreError, "contains a password"),
        ("nonsense://b/x", StoreError, "unknown protocol nonsense"),
        (Path("s3://b/x"), StoreError, "looks like a URL.*give it as text"),
        ("file:/x", StoreError, "two slashes after the colon; expected file://"),
        ("s3:/bucket/x", StoreError, "two slashes after the colon; expected s3://"),
        ("file://x", StoreError, "its path is relative; expected file:///x with three slashes.* the plain path x"),
        ("local://./x", StoreError, "its path is relative"),
        ("", StoreError, "empty text, ''; expected a folder"),
        ("  ", StoreError, "empty text"),
    ],
)
def test_a_bad_url_is_refused(location: Any, error: type[CasemateError], words: str, on: Machine) -> None:
    with pytest.raises(error, match=words) as raised:
        on("one", location).find("k1")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("protocol", "words"), [("s3", r"pip install 'casemate\[s3\]'"), ("gs", "install gcsfs")], ids=["s3", "gs"]
)
def test_a_missing_package_is_named(protocol: str, words: str, on: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=words):
        on("one", f"{protocol}://bucket/x").find("k1")


def test_a_url_is_one_store_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = (f"file://{tmp_path}/x", f"file://{tmp_path}/x//", f"file://{tmp_path}/y/../x")
    assert {Objects(each).url for each in written} == {f"file://{tmp_path}/x"}
    monkeypatch.setenv("CASEMATE_STORE", "memory://somewhere/x")
    assert Store().location == "memory://somewhere/x"


def test_a_folder_of_other_files_is_said_to_be_one_until_it_is_a_store(tmp_path: Path, listener: Listener) -> None:
    Store(tmp_path / "new", observer=listener)
    (tmp_path / "other").mkdir()
    for name in ("thesis.tex", "photo.jpg"):
        (tmp_path / "other" / name).touch()
    assert listener.said == []
    for _ in range(2):
        Store(tmp_path / "other", observer=listener)
    (said,) = listener.said
    assert said.endswith("other, also holds other files, such as photo.jpg, thesis.tex")


# The command line -----------------------------------------------------------------------------------------------------
def test_shared_storage_is_listed_and_cleaned(on: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    url = place_in_memory()
    put(on("one", url), "k1")
    evaluated(url)
    other = on("two", url)
    system(other).pipe_file(remote(other, "artifacts/broken"), b"half")
    held = list_store(url)
    (row,), (pieces,) = held["artifacts"], held["evaluations"]
    assert (row["name"], row["dataset"], row["current"], row["folder"]) == (
        "E9/x",
        "digits",
        False,
        f"{url}/artifacts/k1.safetensors",
    )
    assert (pieces["norm"], pieces["seed"], pieces["pieces"], pieces["current"]) == ("linf", 0, 8, True)
    assert held["unfinished"] == [f"{url}/artifacts/broken.safetensors"]
    assert main(["store", "list", "--store", url]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"1 artifacts (1 stale), {row['bytes'] / 1000:.1f} kB, in {url}" in shown
    planned = clean_store(url, everything=False, dry_run=True)
    assert [each["name"] for each in planned["removed"]] == ["E9/x", "damaged"]
    clean_store(url, everything=False, dry_run=False)
    assert list_store(url)["artifacts"] == []
    assert list_store(url)["evaluations"] == [pieces]
    assert clean_store(url, everything=True, dry_run=False)["bytes"] == pieces["bytes"]
    assert list_store(url)["evaluations"] == []
    assert on("one", url).find("k1") is not None  # this machine's copy is left on the other machines


def test_a_url_where_nothing_was_stored_is_no_store(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "list", "--store", url]) == 2
    assert f"{url} is no store, since nothing was ever stored there; check the URL" in capsys.readouterr().err


# Evaluations ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Goes on as the machine with a name."""
    return lambda name: monkeypatch.setenv("CASEMATE_CACHE", str(tmp_path / name))


def evaluated(url: str | None, **options: Any) -> Any:
    """An evaluation in eight pieces: of two shards, two values of eps and two attacks."""
    attacks = {name: ATTACKS[name] for name in ("fgsm", "square")}
    return judged(url, images=IMAGES[:40], attacks=attacks, **options)  # type: ignore[arg-type]


def test_an_evaluation_goes_on_on_another_machine(machine: Callable[[str], None], listener: Listener) -> None:
    url = place_in_memory()
    whole = content(evaluated(None))
    machine("one")
    with pytest.raises(KeyboardInterrupt):
        evaluated(url, observer=Stops(5))
    machine("two")
    assert content(evaluated(url, observer=listener)) == whole
    assert resumed(listener)[0].startswith("Resumed: 5 of 8 pieces are there already, which took ")
    machine("three")
    listener.said.clear()
    assert content(evaluated(url, observer=listener)) == whole
    assert resumed(listener)[0].startswith("Resumed: 8 of 8 pieces are there already, which took ")


def test_all_machines_use_what_the_first_measured(
    machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/shared"
    monkeypatch.setattr("casemate.attacks.prepare._WORTH_MEASURING", 0)
    nested: list[int] = []

    def measured(model: Any, images: Any) -> int:
        if nested:
            return 16
        nested.append(1)
        machine("one")
        assert evaluated(url).batch_size == 16  # while the other machine measures
        machine("two")
        return 64

    monkeypatch.setattr(freeze_module, "fastest_pass_size", measured)
    machine("two")
    assert evaluated(url).batch_size == 16
    machine("three")
    monkeypatch.setattr(freeze_module, "fastest_pass_size", lambda model, images: 64)
    assert evaluated(url).batch_size == 16


@pytest.mark.integration
def test_pieces_of_another_measurement_do_not_mix(
    machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    url = place_in_memory()
    monkeypatch.setattr("casemate.attacks.prepare._WORTH_MEASURING", 0)
    monkeypatch.setattr(freeze_module, "fastest_pass_size", lambda model, images: 16)
    machine("one")
    evaluated(url)
    clean_store(url, everything=True, dry_run=False)
    machine("two")
    monkeypatch.setattr(freeze_module, "fastest_pass_size", lambda model, images: 64)
    found = evaluated(url)
    machine("one")
    again = evaluated(url, observer=listener)
    assert again.batch_size == found.batch_size == 64
    assert content(again) == content(found)


def test_damaged_pieces_on_shared_storage_are_computed_again(
    machine: Callable[[str], None], listener: Listener
) -> None:
    url = place_in_memory()
    machine("one")
    whole = content(evaluated(url))
    store = Store(url)
    assert store.objects is not None
    names = [name for name in store.objects.listing("evaluations") if not name.endswith("plan")]
    for name in names[::3]:
        path = remote(store, name)
        system(store).pipe_file(path, system(store).cat_file(path)[:-1])
    machine("two")
    assert content(evaluated(url, observer=listener)) == whole
    assert (
        sum("is damaged" in words for words in listener.said) == 6
    )  # three are read, and read again before they are replaced
    machine("three")
    listener.said.clear()
    assert content(evaluated(url, observer=listener)) == whole
    assert resumed(listener)[0].startswith("Resumed: 8 of 8")


def piece(seconds: float = 1.0) -> Piece:
    """A piece in which no image was fooled."""
    none = torch.zeros(0)
    images = torch.zeros(0, 1, 8, 8)
    return Piece(
        tried=2,
        places=none.long(),
        adversarial=images,
        distance=none,
        status={},
        passes=Passes(2, 2),
        seconds=seconds,
        pass_size=16,
    )


@pytest.mark.parametrize("shared", [False, True])
def test_two_evaluations_at_once_that_measure_differently_do_not_mix(
    machine: Callable[[str], None], tmp_path: Path, *, shared: bool
) -> None:
    machine("one")
    location = place_in_memory() if shared else tmp_path / "store"
    small, large = (Measurements(pass_size=size, precision="float32") for size in (16, 64))
    with open_pieces(location, {"seed": 0}) as first, open_pieces(location, {"seed": 0}) as second:
        assert first.measured is second.measured is None
        assert first.begin(small) == small
        first.put("before", piece(2.0))
        assert second.begin(large) == small
        second.put("after", piece(3.0))
        assert [each.seconds for each in map(first.find, ["before", "after"]) if each] == [2.0, 3.0]
    with open_pieces(location, {"seed": 0}) as third:
        assert third.measured == small
        assert third.has("before")
        assert third.has("after")


def test_a_machine_that_measured_without_its_storage_takes_what_the_others_did(
    machine: Callable[[str], None],
) -> None:
    url = place_in_memory()
    small, large = (Measurements(pass_size=size, precision="float32") for size in (16, 64))
    machine("one")
    with open_pieces(url, {"seed": 0}) as pieces:
        pieces.begin(large)
        pieces.put("a", piece(1.0))
        kept = pieces.path("a")
        clean_store(url, everything=True, dry_run=False)
        machine("two")
        with open_pieces(url, {"seed": 0}) as others:
            others.begin(small)
            others.put("a", piece(2.0))
    machine("one")
    with open_pieces(url, {"seed": 0}) as pieces:
        assert pieces.begin(pieces.measured or large) == small
        found = pieces.find("a")
        assert found is not None
        assert found.seconds == 2.0
    assert kept.is_file()  # that of the other measurement does nobody harm


def test_a_damaged_piece_of_one_machine_reaches_no_other(machine: Callable[[str], None]) -> None:
    url = place_in_memory()
    measured = Measurements(pass_size=16, precision="float32")
    machine("one")
    with open_pieces(url, {"seed": 0}) as pieces:
        pieces.begin(measured)
        pieces.put("a", piece())
        damaged = pieces.path("b")
        damaged.write_bytes(pieces.path("a").read_bytes()[:-1])
        pieces.begin(measured)
        assert listed_pieces(url) == 1
        store = Store(url)
        assert store.objects is not None
        name = next(name for name in store.objects.listing("evaluations") if name.endswith("/a"))
        with store.objects.stored(name, {"a.safetensors": damaged}, {}, is_usable=lambda found: False):
            pass  # a sound object with a damaged file
    machine("two")
    with open_pieces(url, {"seed": 0}) as pieces:
        pieces.begin(measured)
        assert pieces.find("a") is None
        pieces.put("a", piece(5.0))
    machine("three")
    with open_pieces(url, {"seed": 0}) as pieces:
        found = pieces.find("a")
        assert found is not None
        assert found.seconds == 5.0


@pytest.mark.integration
def test_a_fresh_evaluation_leaves_shared_storage_as_it_is(machine: Callable[[str], None], listener: Listener) -> None:
    url = place_in_memory()
    machine("one")
    whole = content(evaluated(url))
    store = Store(url)
    assert store.objects is not None
    before = store.objects.listing("evaluations")
    held = {name: system(store).cat_file(remote(store, name)) for name in before}
    assert content(evaluated(url, fresh=True, observer=listener)) == whole
    assert resumed(listener) == []
    assert {name: system(store).cat_file(remote(store, name)) for name in before} == held


@pytest.mark.integration
def test_pieces_that_could_not_be_stored_are_stored_later(
    machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    url, count = place_in_memory(), iter(range(10**6))
    machine("one")
    with monkeypatch.context() as patch:
        away = ConnectionError("no route to host")
        failing(patch, lambda name: away if name == "pipe_file" and next(count) > 3 else None)
        with pytest.raises(StoreError, match=r"no route to host.*The piece is kept in"):
            evaluated(url)
    evaluated(url, observer=listener)
    assert resumed(listener)[0].startswith("Resumed: 3 of 8 pieces")
    machine("two")
    listener.said.clear()
    evaluated(url, observer=listener)
    assert resumed(listener)[0].startswith("Resumed: 8 of 8 pieces")


@pytest.mark.integration
@pytest.mark.parametrize("what", ["processor", "instruction set"])
def test_why_pieces_of_another_machine_are_not_used(
    what: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    url = place_in_memory()
    machine("one")
    evaluated(url)
    machine("two")
    monkeypatch.setattr(pieces_module, what.replace(" ", "_"), lambda: "another")
    evaluated(url, observer=listener)
    assert any(f"store are not used: computed with {what} " in words for words in listener.said)
    machine("three")  # new, but shared storage has pieces that it can use
    listener.said.clear()
    evaluated(url, observer=listener)
    assert not any("not used" in words for words in listener.said)


# An object store of its own -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server, which keeps its objects in memory."""
    moto = pytest.importorskip("moto.server", reason="needs moto's S3 server")
    found = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    app, one_at_a_time = found._server.app, threading.Lock()

    def atomic(*request: Any) -> Any:
        """S3 looks and writes at once where a write has a condition; moto does not, and its threads take turns."""
        with one_at_a_time:
            return app(*request)

    found._server.app = atomic
    host, port = found.get_host_and_port()
    yield f"http://{host}:{port}"
    found.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a new bucket."""
    s3fs = pytest.importorskip("s3fs", reason="needs the extra s3")
    for name, value in {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}/some/prefix"
    s3fs.S3FileSystem.clear_instance_cache()


RIVAL = """
    import json, sys
    from casemate.arrays import UnsoundError  # now, since it takes a while
    from casemate.engine import Store
    from test_shared_store import is_whole, put

    store = Store(sys.argv[1])
    store.share([])
    print("ready", flush=True)
    for number in range(int(sys.argv[3])):
        sys.stdin.readline()
        found = put(store, f"k{number}", sys.argv[2], 5000)
        assert is_whole(found, 5000)
        print(found.result["text"], flush=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["file", "s3"])
def test_two_processes_that_store_the_same_artifacts_at_once(
    kind: str, request: pytest.FixtureRequest, on: Machine, tmp_path: Path
) -> None:
    url, count = request.getfixturevalue("bucket") if kind == "s3" else f"file://{tmp_path}/shared", 25
    winners = []
    with ExitStack() as running:  # also where the test fails
        both = [running.enter_context(rival(url, name, count, cache=tmp_path / name)) for name in ("one", "two")]
        assert [answer(each) for each in both] == ["ready", "ready"]
        for _ in range(count):
            for each in both:
                assert each.stdin is not None
                each.stdin.write("go\n")
                each.stdin.flush()
            one, two = (answer(each) for each in both)
            assert one == two
            winners.append(one)
        for each in both:
            assert each.communicate()[1] == ""
    store = on("three", url)
    assert len(store.held()) == count
    for number, winner in enumerate(winners):
        found = store.find(f"k{number}")
        assert found is not None
        assert found.result == {"text": winner}
        assert is_whole(found, 5000)


def rival(url: str, name: str, count: int, cache: Path) -> subprocess.Popen[str]:
    """A process that stores an artifact for each line it is sent, and answers with the text of the one that counts."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + textwrap.dedent(RIVAL)
    return client(code, url, name, count, cache=cache)


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line or process.stderr is None, process.communicate()[1]
    return line


MULTIPART = """
    import asyncio, sys
    import s3fs
    from casemate.engine import Store, objects

    objects._SMALL = 1 << 20
    s3fs.core.calculate_chunksize = lambda size, chunksize=None: 5 << 20
    call = s3fs.S3FileSystem._call_s3
    async def slow(self, method, *given, **how):
        if method == sys.argv[2]:
            print("now", flush=True)
            await asyncio.sleep(60)
        return await call(self, method, *given, **how)
    store = Store(sys.argv[1])
    store.share([])
    s3fs.S3FileSystem._call_s3 = slow
    facts = dict(kind="first", name="E9/x", config={}, code="0", result={"text": "x"}, provenance={})
    with store.lock_for("k1"), store.put("k1", facts) as folder:
        (folder / "data.bin").write_bytes(b"x" * (11 << 20))
"""


@pytest.mark.integration
@pytest.mark.parametrize("method", ["upload_part", "complete_multipart_upload"])
def test_a_client_killed_during_an_upload_in_parts(
    method: str, bucket: str, on: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = client(MULTIPART, bucket, method, cache=tmp_path / "one")
    assert answer(killed) == "now"
    killed.kill()
    killed.communicate()
    store = on("two", bucket)
    assert store.find("k1") is None
    assert store.held() == []
    assert is_whole(put(store, "k1", "y"))
    late = on("one", bucket)  # the killed client's machine has its result, but the other's was stored first
    late.share(["k1"])
    assert late.find_all(["k1"])["k1"].result == {"text": "y"}


@pytest.mark.integration
def test_a_large_object_is_stored_and_fetched_in_parts(
    bucket: str, on: Machine, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    import s3fs

    monkeypatch.setattr(objects_module, "_SMALL", 1 << 20)
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    put(on("one", bucket, listener), "k1", "0123456789", 1_100_000)
    assert is_whole(put(on("two", bucket, listener), "k1", "late"), 1_100_000)
    assert listener.done > 22_000_000


@pytest.mark.integration
def test_a_slow_object_store(bucket: str, on: Machine, monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    import asyncio

    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def slow(self: Any, *given: Any, **how: Any) -> Any:
        await asyncio.sleep(0.1)
        return await call(self, *given, **how)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", slow)
    stores = [on("one", bucket, listener), on("two", bucket, listener)]
    found = at_once(*(lambda each=each: put(each, "k1", each.root.parent.parent.name) for each in stores))
    assert found[0].result == found[1].result
    assert all(is_whole(each) for each in found)
    assert {"Storing artifacts/k1", "Fetching artifacts/k1"} <= set(listener.titles)


@pytest.mark.integration
def test_an_evaluation_goes_on_on_another_machine_through_s3(
    machine: Callable[[str], None], bucket: str, listener: Listener
) -> None:
    whole = content(judged())
    machine("one")
    with pytest.raises(KeyboardInterrupt):
        judged(bucket, observer=Stops(11))  # type: ignore[arg-type]
    machine("two")
    assert content(judged(bucket, observer=listener)) == whole  # type: ignore[arg-type]
    assert resumed(listener)[0].startswith("Resumed: 11 of 18 pieces are there already, which took ")
    assert listed_pieces(bucket) == 18


def listed_pieces(url: str) -> int:
    (found,) = list_store(url)["evaluations"]
    return found["pieces"]


STUDY = """
    import sys
    from casemate.cli.main import main

    sys.exit(main(["study", "--scale", "smoke", "--dataset", "digits", "--only", "E2", "--workers", "1", "--precision",
        "float32", "--overwrite", "--store", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.mark.integration
@pytest.mark.slow
def test_two_studies_share_an_object_store(bucket: str, on: Machine, tmp_path: Path) -> None:
    both = [client(STUDY, bucket, tmp_path / "out" / name, cache=tmp_path / name) for name in ("one", "two")]
    for each in both:
        out, err = each.communicate(timeout=300)
        assert each.returncode == 0, out + err
    third = client(STUDY, bucket, tmp_path / "out" / "three", cache=tmp_path / "three")
    assert "All 7 artifacts were finished before; nothing is computed." in third.communicate(timeout=300)[1]
    contents = [{each.key: files_of(each) for each in on(name, bucket).artifacts()} for name in ("one", "two", "three")]
    assert len(contents[0]) == 7
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.integration
@pytest.mark.parametrize("wrong", ["bucket", "credentials", "network"])
def test_what_is_wrong_with_an_object_store_is_one_line_before_anything_is_computed(
    wrong: str, bucket: str, on: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "check the network"
    if wrong == "bucket":
        bucket, words = "s3://no-such-bucket/prefix", "The specified bucket does not exist; create the bucket first"
    elif wrong == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        words = "Unable to locate credentials; check AWS_ACCESS_KEY_ID"
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=words) as raised:
        make_plan(TASKS, ["c"], PRODUCERS, on("one", bucket), "cpu")
    assert "\n" not in str(raised.value)
