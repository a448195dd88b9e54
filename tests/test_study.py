"""The study: its experiments as data, and what a run of it leaves behind after kills, faults and second runs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from casemate.cli.main import main
from casemate.engine import Store
from casemate.engine.task import keys, ordered
from casemate.errors import SettingError
from casemate.study.catalogue import EXPERIMENTS, choose, tasks_of
from casemate.study.paper import STATEMENTS
from casemate.study.producers import PRODUCERS
from casemate.study.scales import SCALES, Scale, scale_by_name, table
from casemate.study.tasks import Setup

TINY: dict[str, Any] = {
    "train_images": 96,
    "validation_images": 32,
    "epochs": 3,
    "kept_epochs": (1, 3),
    "tuned_epochs": 1,
    "test_images": 20,
    "fgsm_images": 8,
    "bim_images": 4,
    "steps_images": 4,
    "on_the_way_images": 4,
    "judged_images": 4,
    "targeted_images": 4,
    "step_counts": (0, 1, 2),
}
"""The smoke scale, smaller still."""
DRIVER = f"""
    import sys
    from dataclasses import replace
    from casemate.study.scales import SCALES
    from casemate.cli.main import main
    SCALES["smoke"] = replace(SCALES["smoke"], **{TINY!r})
    sys.exit(main())
"""
"""`casemate` with that scale, as a process of its own."""
SMOKE = ["study", "--scale", "smoke", "--threads", "1", "--device", "cpu", "--no-report"]
START = "pieces to compute"


def casemate(*arguments: object, driver: str = DRIVER, **options: Any) -> subprocess.Popen[str]:
    """Start the driver with `arguments`, one thread, stdout and stderr as pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(driver), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a process printed, once it has ended with `code`."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, f"ended with {process.returncode}: {err}"
    return out, err


def await_start(process: subprocess.Popen[str]) -> None:
    """Wait until a study begins to compute."""
    assert process.stderr is not None
    for line in process.stderr:
        if START in line:
            return
    raise AssertionError("ended before it began")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke scale in this process is the driver's."""
    monkeypatch.setitem(SCALES, "smoke", replace(SCALES["smoke"], **TINY))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a study that nothing disturbed."""
    store = tmp_path_factory.mktemp("undisturbed")
    finished(casemate(*SMOKE, "--store", store))
    return store


def _timeless(content: Any) -> Any:
    """The same without the seconds."""
    if isinstance(content, dict):
        return {name: _timeless(value) for name, value in content.items() if name != "seconds"}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def _contents(store: Path) -> dict[str, Any]:
    """Everything that finished pieces hold, but for times."""
    found = {}
    for piece in Store(store).pieces():
        facts = {name: _timeless(piece.facts[name]) for name in ("key", "kind", "config", "needs", "code", "result")}
        files = {path.name: path.read_bytes() for path in piece.folder.iterdir() if path.name != "piece.json"}
        found[piece.facts["name"]] = (facts, files)
    return found


def _assert_same(store: Path, other: Path) -> None:
    ours, theirs = _contents(store), _contents(other)
    assert ours.keys() == theirs.keys()
    for name, (facts, files) in ours.items():
        assert facts == theirs[name][0], name
        assert files.keys() == theirs[name][1].keys(), name
        differ = [file for file, content in files.items() if content != theirs[name][1][file]]
        assert differ == [], name


def _killed_study(store: Path, moments: list[float], driver: str) -> int:
    """Run a study, killed after each of `moments` (seconds of computing), then to its end; return the kills."""
    kills = 0
    for moment in moments:
        with casemate(*SMOKE, "--store", store, driver=driver) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if START in line:
                    time.sleep(moment)
                    break
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    finished(casemate(*SMOKE, "--store", store, driver=driver))
    return kills


def test_a_killed_study_goes_on_and_ends_in_the_same_results(undisturbed: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    kills = _killed_study(tmp_path, [draw.uniform(0.5, 1.5), draw.uniform(0.0, 2.0)], DRIVER)
    assert kills >= 1
    _assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_ten_kills_of_a_smoke_study(tmp_path: Path) -> None:
    """The same at the scale that users run, with ten kills at random moments."""
    driver = "import sys\nfrom casemate.cli.main import main\nsys.exit(main())"
    start = time.monotonic()
    finished(casemate(*SMOKE, "--store", tmp_path / "whole", driver=driver))
    whole = time.monotonic() - start
    draw = random.Random(10)
    kills = _killed_study(tmp_path / "killed", [draw.uniform(0, whole / 4) for _ in range(10)], driver)
    assert kills >= 3
    _assert_same(tmp_path / "killed", tmp_path / "whole")


def test_a_stopped_study_says_that_it_goes_on(tmp_path: Path) -> None:
    process = casemate(*SMOKE, "--store", tmp_path)
    await_start(process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = finished(process, code=130)
    lines = err.splitlines()
    assert lines[-1] == "stopped: what is finished is kept; the same command goes on from there."
    assert "Traceback" not in err
    with Store(tmp_path).producing("free"):  # and every lock is free
        assert all(path.parent.name == "working" for path in Store(tmp_path).unfinished())


Run = Callable[..., tuple[int, str, str]]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs a command in this process and returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([*map(str, arguments)])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.mark.usefixtures("tiny")
def test_a_finished_study_computes_nothing(undisturbed: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.parent.name != "locks"}

    def refuse(*args: object, **kwargs: object) -> dict[str, Any]:
        raise AssertionError("computed again")

    for kind, producer in PRODUCERS.items():
        monkeypatch.setitem(PRODUCERS, kind, replace(producer, load=lambda: refuse))
    code, out, err = run(*SMOKE, "--store", undisturbed, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["computed"] == 0
    assert len(found["pieces"]) > 20
    assert "nothing is computed" in err
    assert {row["what"] for row in found["results"]} >= {"test accuracy", "FGSM, eps 0.1, ce", "BIM ball, eps 0.05, ce"}
    assert all({"value", "low", "high", "n"} <= row["accuracy"].keys() for row in found["results"])
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.parent.name != "locks"}
    assert after == before


@pytest.mark.usefixtures("tiny")
def test_a_plan_computes_nothing(undisturbed: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run(*SMOKE, "--store", tmp_path / "store", "--out", tmp_path / "out", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert not any(piece["finished"] for piece in plan["pieces"])
    assert plan["seconds_left"] == pytest.approx(sum(piece["seconds_left"] for piece in plan["pieces"]))
    assert plan["seconds_left"] > 0
    assert Store(tmp_path / "store").pieces() == []
    assert Store(tmp_path / "store").unfinished() == []
    assert not (tmp_path / "out").exists()

    code, out, _ = run(*SMOKE, "--store", undisturbed, "--dry-run")
    assert code == 0
    assert "nothing left to compute" in out
    assert "E3/range/prob-ce" in out
    assert "to do" not in out


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that is taken for the code which makes the results."""
    module = sys.modules["casemate.engine.code_version"]
    copy = tmp_path / "casemate"
    shutil.copytree(module._ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "_ROOT", copy)

    def forget() -> None:
        module._module.cache_clear()
        module.code_version.cache_clear()

    forget()
    yield copy
    forget()


@pytest.mark.usefixtures("tiny")
def test_comments_in_the_code_make_nothing_stale(undisturbed: Path, edited: Path, run: Run) -> None:
    for path in edited.rglob("*.py"):
        text = path.read_text()
        assert text == "" or text.startswith('"""'), path
        path.write_text(text.replace('"""', '"""Now said better: ', 1) + "\n# a thought at the end\n")
    code, out, _ = run(*SMOKE, "--store", undisturbed, "--dry-run", "--json")
    assert code == 0
    assert [piece["name"] for piece in json.loads(out)["pieces"] if not piece["finished"]] == []
    _, out, _ = run("store", "list", "--store", undisturbed, "--json")
    assert all(piece["current"] for piece in json.loads(out)["pieces"])


@pytest.mark.usefixtures("tiny")
def test_another_attack_loss_leaves_the_trained_models(undisturbed: Path, edited: Path, run: Run) -> None:
    losses = edited / "losses.py"
    assert "_CLIP = 1e-7" in losses.read_text()
    losses.write_text(losses.read_text().replace("_CLIP = 1e-7", "_CLIP = 1e-6"))
    _, out, _ = run(*SMOKE, "--store", undisturbed, "--dry-run", "--json")
    assert [piece["name"] for piece in json.loads(out)["pieces"] if piece["finished"]] == ["E1/train", "E1+/train"]
    _, out, _ = run("store", "list", "--store", undisturbed, "--json")
    assert {piece["kind"] for piece in json.loads(out)["pieces"] if piece["current"]} == {"train"}
    store = edited.parent / "store"
    shutil.copytree(undisturbed, store)
    code, out, _ = run("store", "clean", "--store", store)
    assert code == 0
    assert [piece.facts["kind"] for piece in Store(store).pieces()] == ["train", "train"]


@pytest.mark.usefixtures("tiny", "unchecked")
def test_a_report_of_what_is_finished_so_far(tmp_path: Path, run: Run) -> None:
    store, out = tmp_path / "store", tmp_path / "report"
    code, _, err = run("report", "--scale", "smoke", "--store", store, "--out", out)
    assert code == 2
    assert "none of the" in err
    assert "run `casemate study` with the same options first" in err
    assert not out.exists()

    code, shown, err = run(*SMOKE, "--only", "E2", "--store", store)
    assert code == 0, err
    assert "FGSM, eps 0.1, torch-ce" in shown
    code, shown, err = run("report", "--scale", "smoke", "--store", store, "--out", out)
    assert code == 0, err
    done = len(Store(store).pieces())
    assert f"Report of {done} of " in shown
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not any(line.startswith("Study") for line in err.splitlines())

    code, shown, _ = run("report", "--scale", "smoke", "--only", "E2", "--store", store, "--out", out, "--json")
    assert code == 0
    assert json.loads(shown) == {"report": str(out / "report.html"), "finished": done, "pieces": done}


SETUPS = [
    Setup(scale=scale, dataset=name, train_size=train, test_size=test, seed=0)
    for scale in SCALES.values()
    for name, train, test in (("digits", 1347, 450), ("fashion-mnist", 60000, 10000))
]


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: f"{setup.scale.name}-{setup.dataset}")
def test_every_experiment_is_a_sound_graph_of_tasks(setup: Setup) -> None:
    tasks, wanted = tasks_of(choose([]), setup)
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    assert set(wanted) == set(names)
    assert {task.kind for task in tasks} <= PRODUCERS.keys()
    chosen = ordered(tasks, wanted)
    assert len(set(keys(chosen, PRODUCERS, {}).values())) == len(chosen)
    for task in tasks:
        assert task.work > 0, task.name
        assert set(task.needs.values()) <= set(names), task.name
        assert task.config["dataset"] == setup.dataset
        assert 0 < task.config.get("images", 1) <= setup.test_size
        assert json.loads(json.dumps(task.config)).keys() == task.config.keys()


def test_an_experiment_alone_brings_what_it_needs() -> None:
    tasks, wanted = tasks_of(choose(["E11"]), SETUPS[0])
    assert {name.split("/")[0] for name in wanted} == {"E11"}
    assert {task.name for task in ordered(tasks, wanted)} - set(wanted) == {"E1/train"}


def test_experiments_are_chosen_by_name_in_the_study_s_order() -> None:
    assert [experiment.name for experiment in choose(["E3", "E1"])] == ["E1", "E3"]
    assert [experiment.name for experiment in choose([])] == list(EXPERIMENTS)
    with pytest.raises(SettingError, match=r"unknown experiment 'e3'; known: E1, .*; did you mean E3\?"):
        choose(["e3"])
    with pytest.raises(SettingError, match=r"unknown experiment 'nonsense'; known: [^?]*$"):
        choose(["nonsense"])


def test_scales_are_found_by_name_and_shown_in_one_table() -> None:
    assert scale_by_name("full").decides
    assert not any(scale.decides for name, scale in SCALES.items() if name != "full")
    with pytest.raises(SettingError, match="unknown scale 'huge'; known: smoke, quick, full"):
        scale_by_name("huge")
    rows = table()
    assert len(rows) == len(fields(Scale)) - 1
    assert all(len(row) == 2 + len(SCALES) and row[-1] for row in rows)


def test_the_paper_s_accuracies_are_fractions() -> None:
    for statement in STATEMENTS:
        assert 0 < statement.value < 1
        assert statement.experiment in EXPERIMENTS
