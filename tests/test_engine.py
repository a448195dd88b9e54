"""Keys, the store and the runner: what is computed again and what is not, and what survives kills and rivals."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from casemate.engine import Artifact, Context, Producer, Store, Task, code_version, is_current, make_plan, run_plan
from casemate.engine.code_version import SourceTree
from casemate.engine.store import size_of
from casemate.engine.task import keys, ordered
from casemate.errors import StoreError
from casemate.files import write_json
from casemate.provenance import surroundings
from casemate.tables import read_table
from conftest import Listener

FACTS = {"kind": "curve", "name": "A/b", "config": {}, "needs": {}, "code": "0", "result": {"x": 1}, "provenance": {}}
CODE = {
    "__init__": "",
    "study/__init__": "",
    "study/measure": "from casemate import losses\nfrom casemate.files import write\n\nX = losses.ce()\n",
    "losses": '''"""The losses."""

def ce():
    """Cross-entropy."""
    if False:
        raise ValueError("bad")
    return 1.5
''',
    "files": "def write():\n    return 0\n",
    "unrelated": "X = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., str]:
    """Writes a small package, with some modules exchanged; returns the version of the code of one of them."""

    def version(module: str = "casemate.study.measure", changed: Mapping[str, str] | None = None) -> str:
        for name, text in (CODE | dict(changed or {})).items():
            path = tmp_path / "casemate" / (name if name.endswith(".pyi") else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return SourceTree(tmp_path / "casemate").version(module)

    return version


@pytest.mark.parametrize(
    ("changed", "is_new"),
    [
        ({"losses": CODE["losses"].replace("1.5", "1.6")}, True),
        ({"losses": CODE["losses"].replace("if False", "if 0")}, True),
        ({"study/measure": CODE["study/measure"].replace("losses.ce()", "losses.ce() + 0")}, True),
        ({"losses": "# a comment\n" + CODE["losses"].replace("1.5", "1.5  # why")}, False),
        ({"losses": CODE["losses"].replace("The losses.", "All the losses.").replace("Cross-entropy.", "CE.")}, False),
        ({"losses": CODE["losses"].replace('"bad"', '"bad value; expected a good one"')}, False),
        ({"losses": CODE["losses"].replace("return 1.5", "return (\n        1.5\n    )")}, False),
        ({"unrelated": "X = 2\n"}, False),
        ({"files": "def write():\n    return 1\n"}, False),
    ],
    ids=["constant", "condition", "caller", "comment", "docstring", "wording", "layout", "unrelated", "neutral"],
)
def test_only_code_that_can_change_a_number_changes_the_version(
    package: Callable[..., str], changed: dict[str, str], is_new: bool
) -> None:
    before = package()
    assert (package(changed=changed) != before) == is_new


def test_the_version_follows_imports_of_imports(package: Callable[..., str]) -> None:
    through = {"losses": "from casemate.unrelated import X\n" + CODE["losses"]}
    before = package(changed=through)
    assert package(changed=through | {"unrelated": "X = 2\n"}) != before


def test_a_module_that_is_not_there_has_no_version(package: Callable[..., str]) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"casemate\.nothing is not a module of casemate$"):
        package("casemate.nothing")


REEXPORTED = {
    "__init__": "import lazy_loader\n\nfrom casemate._version import V as V\n",
    "__init__.pyi": "from .attacks import PGD as PGD, FAB as FAB\nfrom .losses import ce as ce\n",
    "_version": "V = 1\n",
    "attacks/__init__": """
from casemate.attacks import listed
from casemate.attacks import noise as noise
from casemate.attacks.fab import FAB
from .pgd import PGD as PGD, _LOOP as LOOP

ALL = [FAB, *listed.MORE]

def find():
    from casemate.attacks.late import LATE
    return LATE
""",
    "attacks/fab": "FAB = 1\n",
    "attacks/late": "LATE = 1\n",
    "attacks/listed": "MORE = []\n",
    "attacks/noise": "from casemate import losses as _losses\n",
    "attacks/pgd": "from ..loop import run as _LOOP\n\nPGD = 1\n",
    "loop": "from . import unrelated\n\ndef run(): ...\n",
    "engine/__init__": "from casemate.engine.keys import keys as keys\n",
    "engine/keys": "def keys(): ...\n",
}
PGD_ALONE = {"attacks.pgd", "loop", "unrelated"}
REGISTERED = {"attacks.noise", "losses"}
"""What `attacks` imports whole and does not use, and what that rests on."""
ALL_OF_ATTACKS = {"attacks", "attacks.fab", "attacks.late", "attacks.listed"} | PGD_ALONE | REGISTERED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from casemate import PGD", PGD_ALONE | REGISTERED),
        ("from casemate.attacks import PGD", PGD_ALONE | REGISTERED),
        ("from casemate.attacks import LOOP", PGD_ALONE | REGISTERED),
        ("from casemate.attacks.pgd import PGD", PGD_ALONE | REGISTERED),
        ("from ..attacks import PGD as attack", PGD_ALONE | REGISTERED),
        ("from .. import PGD", PGD_ALONE | REGISTERED),
        ("def late():\n    from casemate import FAB", {"attacks.fab"} | REGISTERED),
        ("from casemate.attacks import fab", {"attacks.fab"} | REGISTERED),
        ("from casemate.attacks import ALL", ALL_OF_ATTACKS),
        ("from casemate.attacks import find", ALL_OF_ATTACKS),
        ("from casemate.attacks import unknown", ALL_OF_ATTACKS),
        ("from casemate.attacks import *", ALL_OF_ATTACKS),
        ("from casemate import attacks", ALL_OF_ATTACKS),
        ("import casemate.attacks", ALL_OF_ATTACKS),
        ("import casemate.attacks as them", ALL_OF_ATTACKS),
        ("import casemate", {"", "attacks.fab", "losses"} | PGD_ALONE | REGISTERED),
        ("import casemate.loop", {"loop", "unrelated"}),
        ("from casemate import ce", {"losses"}),
        ("from casemate import unrelated", {"unrelated"}),
        ("from casemate.engine import keys", set()),
        ("from casemate._version import V", set()),
        ("import torch\nfrom numpy import array\nfrom casemates import PGD", set()),
    ],
)
def test_a_name_leads_to_the_module_that_defines_it(
    package: Callable[..., str], tmp_path: Path, text: str, expected: set[str]
) -> None:
    package(changed=REEXPORTED | {"study/measure": text})
    found = SourceTree(tmp_path / "casemate").dependencies("casemate.study.measure")
    assert {name.removeprefix("casemate").removeprefix(".") for name in found} == {"study.measure"} | expected


def test_a_circle_of_re_exports_has_an_end(package: Callable[..., str]) -> None:
    circle = {"a/__init__": "from casemate.b import X as X", "b/__init__": "from casemate.a import X as X"}
    assert package(changed=circle | {"study/measure": "from casemate.a import X"})


def test_names_are_followed_from_one_package_into_another(tmp_path: Path, package: Callable[..., str]) -> None:
    package()
    study = tmp_path / "casemate_study"
    study.mkdir()
    (study / "__init__.py").touch()
    (study / "measure.py").write_text("from casemate.losses import ce\nfrom casemate_study.scale import SCALE\n")
    (study / "scale.py").write_text("SCALE = 1\n")
    tree = SourceTree(tmp_path / "casemate", study, tmp_path / "nothing")
    expected = {"casemate.losses", "casemate_study.measure", "casemate_study.scale"}
    assert tree.dependencies("casemate_study.measure") == expected
    before = tree.version("casemate_study.measure")
    (study / "scale.py").write_text("SCALE = 2\n")
    assert SourceTree(tmp_path / "casemate", study).version("casemate_study.measure") != before


PRODUCERS = {kind: Producer("casemate.losses", "engine_tasks:produce") for kind in ("first", "second")}
TASKS = [
    Task(name="a", kind="first", config={"value": 1}, work=3),
    Task(name="b", kind="second", config={"value": 10}, needs={"model": "a"}, work=5),
    Task(name="c", kind="second", config={"value": 100}, needs={"model": "b"}),
]
HERE = {"torch": "2", "device": "cpu"}


def test_a_key_depends_on_kind_configuration_environment_and_needs() -> None:
    before = keys(TASKS, PRODUCERS, HERE)
    assert len(set(before.values())) == 3

    def changed(index: int, **fields: Any) -> set[str]:
        tasks = [replace(task, **fields) if place == index else task for place, task in enumerate(TASKS)]
        after = keys(tasks, PRODUCERS, HERE)
        return {name for name in before if after[name] != before[name]}

    assert changed(0, config={"value": 2}) == {"a", "b", "c"}
    assert changed(1, config={"value": 11}) == {"b", "c"}
    assert changed(2, kind="first") == {"c"}
    assert changed(1, needs={"teacher": "a"}) == {"b", "c"}
    assert changed(0, work=99.0) == set()
    assert set(keys(TASKS, PRODUCERS, {**HERE, "device": "cuda"}).values()).isdisjoint(before.values())
    assert keys(TASKS, PRODUCERS, dict(reversed(HERE.items()))) == before


def test_a_configuration_that_json_cannot_hold_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        keys([replace(TASKS[0], config={"value": float("nan")})], PRODUCERS, HERE)


def test_wanted_tasks_come_after_what_they_need() -> None:
    assert [task.name for task in ordered(list(reversed(TASKS)), ["c"])] == ["a", "b", "c"]
    assert [task.name for task in ordered(TASKS, ["b", "a"])] == ["a", "b"]
    circle = [replace(TASKS[0], needs={"model": "c"}), *TASKS[1:]]
    with pytest.raises(ValueError, match="circle: c -> b -> a -> c"):
        ordered(circle, ["c"])


def test_a_plan_computes_what_is_missing_and_keeps_it(tmp_path: Path, listener: Listener) -> None:
    store, context = Store(tmp_path), Context("cpu", listener)
    plan = make_plan(TASKS, ["c"], PRODUCERS, store, "cpu")
    assert [task.name for task in plan.missing] == ["a", "b", "c"]
    assert plan.work_left == 9
    artifacts = run_plan(plan, PRODUCERS, store, context)
    assert {name: artifact.result["value"] for name, artifact in artifacts.items()} == {"a": 1, "b": 11, "c": 111}
    assert artifacts["b"].path("out.txt").read_text() == "10"
    assert artifacts["b"].facts["needs"] == {"model": artifacts["a"].key}
    assert {"commit", "libraries", "seconds", "finished", "threads"} <= artifacts["a"].facts["provenance"].keys()
    with pytest.raises(StoreError, match="missing from a finished artifact"):
        artifacts["b"].path("nothing.txt")

    again = make_plan(TASKS, ["c"], PRODUCERS, store, "cpu")
    listener.titles.clear()
    assert again.missing == []
    assert run_plan(again, PRODUCERS, store, context).keys() == artifacts.keys()
    assert listener.titles == []


def test_what_finished_before_a_failure_is_kept(tmp_path: Path, listener: Listener) -> None:
    store, context = Store(tmp_path), Context("cpu", listener)
    failing = [TASKS[0], replace(TASKS[1], config={"value": 10, "fails": "store"})]
    plan = make_plan(failing, ["b"], PRODUCERS, store, "cpu")
    with pytest.raises(StoreError, match="this one fails"):
        run_plan(plan, PRODUCERS, store, context)
    assert list(make_plan(failing, ["b"], PRODUCERS, store, "cpu").artifacts) == ["a"]
    assert [path.parent.name for path in store.unfinished()] == ["working"]


def test_a_piece_that_somebody_else_finished_meanwhile_is_taken(tmp_path: Path, listener: Listener) -> None:
    store, context = Store(tmp_path), Context("cpu", listener)
    early = make_plan(TASKS, ["a"], PRODUCERS, store, "cpu")
    run_plan(make_plan(TASKS, ["a"], PRODUCERS, store, "cpu"), PRODUCERS, store, context)
    listener.titles.clear()
    assert run_plan(early, PRODUCERS, store, context)["a"].result == {"value": 1}
    assert listener.titles == ["Study"]


class Totals(Listener):
    """Remembers how far each work got."""

    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, list[float]] = {}

    @contextmanager
    def work(self, title: str, total: float) -> Iterator[Callable[[float, str], None]]:
        steps = self.got.setdefault(title, [])
        yield lambda amount, note: steps.append(amount)


def test_the_whole_moves_along_with_its_pieces(tmp_path: Path) -> None:
    observer = Totals()
    plan = make_plan(TASKS, ["b"], PRODUCERS, Store(tmp_path), "cpu")
    run_plan(plan, PRODUCERS, Store(tmp_path), Context("cpu", observer))
    assert observer.got["Study"] == [0, 1.5, 1.5, 0, 0, 2.5, 2.5, 0]


def test_a_piece_made_by_other_code_is_stale(tmp_path: Path, listener: Listener) -> None:
    store = Store(tmp_path)
    plan = make_plan(TASKS, ["a"], PRODUCERS, store, "cpu")
    artifact = run_plan(plan, PRODUCERS, store, Context("cpu", listener))["a"]
    assert is_current(artifact, PRODUCERS)
    assert not is_current(replace(artifact, facts=artifact.facts | {"code": "0123456789abcdef"}), PRODUCERS)
    assert not is_current(artifact, {"second": PRODUCERS["second"]})


def test_code_version_is_that_of_the_installed_code() -> None:
    assert re.fullmatch("[0-9a-f]{16}", code_version("casemate.losses"))


def _put(store: Store, key: str = "k1", **facts: Any) -> None:
    with store.put(key, FACTS | facts) as folder:
        (folder / "data.bin").write_bytes(b"x" * 1000)


def test_a_piece_is_in_the_store_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="halfway"), store.lock_for("k1") as working:  # noqa: PT012
        (working / "checkpoint").write_text("epoch 3")
        with store.put("k1", dict(FACTS)) as folder:
            (folder / "data.bin").write_bytes(b"x")
            raise RuntimeError("halfway")
    assert store.find("k1") is None
    assert store.artifacts() == []
    with store.lock_for("k1") as working:
        assert (working / "checkpoint").read_text() == "epoch 3"
        _put(store)
    found = store.find("k1")
    assert found is not None
    assert found.result == {"x": 1}
    assert found.size > 1000
    assert store.unfinished() == []


def test_a_piece_is_replaced_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _put(store, result={"x": 1})
    _put(store, result={"x": 2})
    assert [artifact.result for artifact in store.artifacts()] == [{"x": 2}]


def test_pieces_come_in_the_order_they_were_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key, when in (("k1", "2026-03-01"), ("k2", "2026-01-01"), ("k3", "2026-02-01")):
        _put(store, key, provenance={"finished": when})
    assert [artifact.key for artifact in store.artifacts()] == ["k2", "k3", "k1"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"kind": "cur',
        "[1, 2]",
        '{"kind": "curve"}',
        "[" * 100_000,
        *(
            json.dumps(FACTS | change)
            for change in (
                {"provenance": []},
                {"provenance": {"finished": 3}},
                {"provenance": {"finished": "yesterday"}},
                {"provenance": {"seconds": "long"}},
                {"config": None},
                {"kind": ["curve"]},
                {"result": "good"},
            )
        ),
    ],
)
def test_a_damaged_piece_is_named_and_can_be_cleaned(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    _put(store)
    (tmp_path / "artifacts" / "k1" / "artifact.json").write_text(content)
    with pytest.raises(StoreError, match="damaged; run `casemate store clean`"):
        store.find("k1")
    assert store.artifacts() == []
    assert store.unfinished() == [tmp_path / "artifacts" / "k1"]
    assert store.discard(tmp_path / "artifacts" / "k1") >= 1000
    assert store.find("k1") is None


def test_damaged_files_of_a_piece_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _put(store)
    artifact = store.find("k1")
    assert artifact is not None
    with pytest.raises(StoreError, match=r"data.bin is damaged: its header states a length of \d+ bytes"):
        artifact.arrays("data.bin")
    artifact.path("data.bin").rename(artifact.folder / "examples.parquet")
    with pytest.raises(StoreError, match=r"cannot read .*examples.parquet as a table"):
        read_table(artifact.folder / "examples", StoreError)


def test_another_artifact_s_arrays_are_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "images.safetensors").write_bytes(safetensors.numpy.save({"samples": np.zeros(3)}))
    artifact = Artifact("k1", tmp_path, {})
    assert list(artifact.arrays("images.safetensors", ["samples"])) == ["samples"]
    with pytest.raises(StoreError, match=r"images\.safetensors is damaged: it has no array called clean; delete its"):
        artifact.arrays("images.safetensors", ["clean", "samples"])


def test_a_file_in_the_way_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(StoreError, match="is a file, but a folder is expected"):
        Store(tmp_path / "store")


def test_a_removal_that_is_cut_off_leaves_no_half_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    _put(store)
    (artifact,) = store.artifacts()
    with monkeypatch.context() as patch:

        def refuse(path: Path, ignore_errors: bool = False) -> None:
            if not ignore_errors:
                raise PermissionError(13, "Permission denied")

        patch.setattr("shutil.rmtree", refuse)
        with pytest.raises(StoreError, match=r"cannot remove .*Permission denied"):
            store.remove(artifact)
    assert store.find("k1") is None
    assert len(store.unfinished()) == 1
    assert sum(store.discard(path) for path in store.unfinished()) > 1000
    assert store.unfinished() == []
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_store_without_permission_to_lock_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def refuse(self: object, timeout: float) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(StoreError, match=r"cannot lock .*Permission denied; make .* writable"), store.lock_for("k1"):
        pass


@contextmanager
def _rival(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process, waited for until it prints a line; killed with -9 at the end of the block."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
            yield process
        finally:
            process.kill()


HOLD = """
    import sys, time
    from pathlib import Path
    from casemate.engine import Store
    with Store(Path(sys.argv[1])).lock_for(sys.argv[2]) as working:
        (working / "checkpoint").write_text("epoch 1")
        print("ready", flush=True)
        time.sleep(60)
"""
HALF_A_PUT = """
    import sys, time
    from pathlib import Path
    from casemate.engine import Store
    store = Store(Path(sys.argv[1]))
    with store.lock_for("k1") as working:
        (working / "checkpoint").write_text("epoch 1")
        with store.put("k1", {}) as folder:
            (folder / "data.bin").write_bytes(b"x" * 5000)
            print("ready", flush=True)
            time.sleep(60)
"""


@pytest.mark.integration
def test_one_process_at_a_time_computes_a_piece(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _put(store, "k2")
    (other,) = store.artifacts()
    with _rival(HOLD, tmp_path, "k1") as rival:
        with pytest.raises(StoreError, match=rf"another process \(pid {rival.pid}\) is computing this artifact"):
            store.lock_for("k1").__enter__()
        assert store.unfinished() == []  # what is being worked on is not left over
        with pytest.raises(StoreError, match="in use by another process"):
            store.discard(tmp_path / "working" / "k1")
        with store.lock_for("k2"):
            pass
    with store.lock_for("k1") as working:  # a lock dies with its holder
        assert (working / "checkpoint").read_text() == "epoch 1"
    with _rival(HOLD, tmp_path, "k2"), pytest.raises(StoreError, match=r"A/b \(k2\) is in use by another process"):
        store.remove(other)
    assert store.find("k2") is not None
    assert store.remove(other) > 1000
    assert store.find("k2") is None


@pytest.mark.integration
def test_a_kill_during_a_put_leaves_no_half_piece(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with _rival(HALF_A_PUT, tmp_path) as rival:
        os.kill(rival.pid, signal.SIGKILL)
        rival.wait()
    assert store.find("k1") is None
    assert store.artifacts() == []
    left = store.unfinished()
    assert sorted(path.parent.name for path in left) == ["artifacts", "working"]
    assert sum(size_of(path) for path in left) == 5000 + len("epoch 1")
    with store.lock_for("k1") as working:
        assert (working / "checkpoint").read_text() == "epoch 1"
        _put(store)
    assert store.find("k1") is not None
    assert store.unfinished() == []  # `put` removed what the killed process had written
    assert store.unfinished() == []
    assert store.find("k1") is not None


def test_stray_files_in_the_store_are_left_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "artifacts" / ".stray").write_text("12345")
    write_json(tmp_path / "working" / "notes.json", {})
    assert len(store.unfinished()) == 2
    for path in store.unfinished():
        store.discard(path)
    assert store.unfinished() == []


def test_on_a_gpu_its_name_and_its_coarser_rounding_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = surroundings("cuda", 1)
    with torch.backends.cudnn.flags(allow_tf32=True):
        found = surroundings("cuda", 1)
    assert found["gpu"] == "some GPU"
    assert [each["tf32"]["convolutions"] for each in (exact, found)] == [False, True]
    assert found["tf32"]["products"] == torch.backends.cuda.matmul.allow_tf32
    assert "gpu" not in surroundings("cpu", 1)
