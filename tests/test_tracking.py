"""Experiment trackers: what is in MLflow's store and in TensorBoard's files after a run, and what failures leave."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import casemate
from casemate.attacks import PGD
from casemate.cli.shared import tracking as option
from casemate.engine.answers import packed, unpacked
from casemate.engine.reports import Relay, Replay
from casemate.errors import CasemateWarning, MissingExtraError, TrackingError, TrainingError
from casemate.evaluation import evaluate
from casemate.models import ModelMetadata, save
from casemate.progress import NULL_OBSERVER, Tracked, TrackingObserver, observers, part_of, side_by_side, track
from casemate.torchrun import VARIABLES
from casemate.tracking import MLflow, TensorBoard, tracker
from casemate.tracking.flat import clean_name, flat
from casemate.training import TrainConfig, fit
from casemate.training.state import snapshot
from conftest import Listener, tiny_images, tiny_model
from test_study import Run, runner

TRAIN, VALIDATION = tiny_images(90, noise=90), tiny_images(45, seed=1, noise=90)
SMALL = ["train", "--dataset", "digits", "--architecture", "tiny", "--train-images", 120, "--validation-images", 40]


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a store of MLflow in a folder, which MLflow uses unless another is named."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    return f"file:{tmp_path / 'store'}"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


class Recorder(Listener):
    """An observer that remembers what it is to track."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Tracked] = []

    def track(self, entry: Tracked) -> None:
        self.entries.append(entry)

    def numbers(self) -> dict[str, float]:
        """The latest numbers by part and name."""
        return {f"{each.part}/{name}": value for each in self.entries for name, value in each.numbers.items()}


def client() -> Any:
    """MLflow's own client for the store."""
    from mlflow import MlflowClient

    return MlflowClient()


def runs() -> list[Any]:
    """All runs in the store of MLflow."""
    made = client()
    return list(made.search_runs([each.experiment_id for each in made.search_experiments()]))


def only_run() -> Any:
    (found,) = runs()
    return found


def series(run_id: str, name: str) -> list[tuple[int, float]]:
    """All that MLflow stores of a metric, by step."""
    return sorted((each.step, each.value) for each in client().get_metric_history(run_id, name))


def events(folder: Path) -> Any:
    """What TensorBoard reads from a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in events(folder).Scalars(name)]


def text(folder: Path, name: str) -> str:
    """The latest text of TensorBoard by that name."""
    return events(folder).Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()


# What is passed on ----------------------------------------------------------------------------------------------------


def test_a_training_passes_on_its_settings_and_each_epoch() -> None:
    recorder = Recorder()
    found = fit(tiny_model(), TRAIN, VALIDATION, TrainConfig(epochs=3), observer=recorder)
    rows = [entry for entry in recorder.entries if entry.numbers]
    assert [entry.step for entry in rows] == [1, 2, 3]
    for entry, row in zip(rows, found.history, strict=True):
        assert entry.numbers == {f"epoch/{name}": value for name, value in row.items() if name != "epoch"}
    (settings,) = [entry.settings for entry in recorder.entries if entry.settings]
    assert settings["epochs"] == 3
    assert settings["objective"] == {"name": "CrossEntropy", "label_smoothing": 0.0}


def test_an_evaluation_passes_on_what_its_result_says() -> None:
    recorder = Recorder()
    found = evaluate(tiny_model(), TRAIN[:20], eps=[0.01, 0.2], attacks=PGD(eps=1.0, steps=2), observer=recorder)
    numbers = recorder.numbers()
    for name, estimate in {
        "clean_accuracy": found.clean.accuracy,
        "robust_accuracy": found.robust[-1],
        "robust_accuracy_at_0.01": found.robust[0],
        "robust_accuracy_at_0.2": found.robust[1],
    }.items():
        ends = [numbers[f"/evaluation/{name}{end}"] for end in ("", "_low", "_high")]
        assert ends == [estimate.value, estimate.low, estimate.high]
    assert numbers["/attacks/left_after_pgd_at_0.2"] == found.robust_accuracy == numbers["/attacks/left"]
    left = {entry.step: entry.numbers["attacks/left"] for entry in recorder.entries if "attacks/left" in entry.numbers}
    assert left == {1: found.robust[0].value, 2: found.robust[1].value}
    texts = {name: words for entry in recorder.entries for name, words in entry.texts.items()}
    assert texts["verdict"] == found.verdict.word
    assert all(f"- {each.check} ({each.severity}): " in texts["findings"] for each in found.findings)
    (picture,) = [each for entry in recorder.entries for each in entry.pictures.values()]
    fooled = min(8, int((found.cascade.first_success >= 0).sum()))
    assert fooled
    assert picture.shape == (2 * 10, fooled * 10, 3)
    assert picture.dtype == np.uint8
    place = int(np.flatnonzero(found.cascade.first_success >= 0)[0])
    assert np.array_equal(picture[1:9, 1:9, 0], TRAIN.pixels[place, 0].numpy())
    assert not np.array_equal(picture[11:19, 1:9, 0], TRAIN.pixels[place, 0].numpy())


def test_nothing_changes_in_results_or_random_numbers(tmp_path: Path) -> None:
    def outcome(observer: Any) -> tuple[Any, ...]:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        model = tiny_model()
        fit(model, TRAIN, VALIDATION, TrainConfig(epochs=2), observer=observer)
        found = evaluate(model, TRAIN[:12], eps=0.1, attacks=PGD(eps=1.0, steps=2), observer=observer)
        return snapshot(model), found.cascade.adversarial, torch.get_rng_state(), np.random.rand(9)  # noqa: NPY002

    plain = outcome(NULL_OBSERVER)
    with TensorBoard(tmp_path / "tb") as one, MLflow() as two:
        tracked = outcome(observers(one, two))
    assert all(torch.equal(plain[0][name], tracked[0][name]) for name in plain[0])
    assert torch.equal(plain[1], tracked[1])
    assert torch.equal(plain[2], tracked[2])
    assert np.array_equal(plain[3], tracked[3])


def test_several_observers_are_one(listener: Listener) -> None:
    recorder = Recorder()
    both = observers(listener, recorder)
    assert isinstance(both, TrackingObserver)
    with both.work("Work", 2) as advance:
        advance(1, "half")
    both.message("done")
    track(both, Tracked(numbers={"x": 1.0}))
    assert (listener.notes, recorder.notes) == (["half"], ["half"])
    assert (listener.said, recorder.said) == (["done"], ["done"])
    assert recorder.numbers() == {"/x": 1.0}
    first, second = side_by_side(both, 2)
    track(part_of(part_of(first, "a"), "b"), Tracked(numbers={"y": 2.0}))
    track(second, Tracked(numbers={"z": 3.0}, part="c"))
    assert recorder.numbers() == {"/x": 1.0, "a/b/y": 2.0, "c/z": 3.0}
    assert part_of(listener, "a") is listener


def test_a_worker_process_passes_entries_to_its_parent() -> None:
    sent: list[bytes] = []
    relay = Relay(lambda *content: sent.append(packed(content)), 0.0)
    track(part_of(relay, "model"), Tracked(numbers={"x": 1.0}, step=3))
    recorder = Recorder()
    Replay(recorder).replay(*unpacked(sent[0]))
    assert recorder.entries == [Tracked(part="model", numbers={"x": 1.0}, step=3)]


def test_names_and_settings_are_those_that_trackers_take() -> None:
    assert clean_name("E1+ (a)", "x/..//loss, at 8%") == "E1___a_/x/loss__at_8_"
    assert clean_name("", "epoch/loss") == "epoch/loss"
    assert len(clean_name("a" * 300)) == 250
    settings = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": [{"f": 0.5}], "g": [], "h": Path("x")}
    assert flat(settings) == {"a.b": 1, "a.c": "1, 2", "d": "none", "e.0.f": 0.5, "g": "none", "h": "x"}


# What is stored -------------------------------------------------------------------------------------------------------


def test_mlflow_has_the_whole_run(tmp_path: Path) -> None:
    recorder = Recorder()
    (tmp_path / "report.html").write_text("<html>")
    with MLflow(experiment="robustness", run_name="first") as mlflow:
        both = observers(recorder, mlflow)
        fit(tiny_model(), TRAIN, VALIDATION, TrainConfig(epochs=3), observer=both)
        evaluate(tiny_model(), TRAIN[:12], eps=0.3, attacks=PGD(eps=1.0, steps=2), observer=both)
        track(both, Tracked(settings={f"many{number}": "x" * 9000 for number in range(250)}))
        track(both, Tracked(settings={"epochs": 4}, texts={"long": "y" * 9000}))
        track(both, Tracked(files=[tmp_path / "report.html"]))
    found = only_run()
    assert found.info.run_id == mlflow.run_id
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
    assert client().get_experiment(found.info.experiment_id).name == "robustness"
    rows = [
        (entry.step, entry.numbers["epoch/val_loss"]) for entry in recorder.entries if entry.step and not _left(entry)
    ]
    assert series(mlflow.run_id, "epoch/val_loss") == rows
    latest = {clean_name(name): value for name, value in recorder.numbers().items()}
    assert dict(found.data.metrics) == latest
    assert found.data.params["epochs"] == "3"  # the first value stays
    assert found.data.params["objective.name"] == "CrossEntropy"
    assert sum(name.startswith("many") for name in found.data.params) == 250
    assert found.data.tags["verdict"] in ("broken", "untrained or mislabelled", "weak")
    files = [each.path for each in client().list_artifacts(mlflow.run_id)]
    assert files == ["pictures", "report.html"]


def _left(entry: Tracked) -> bool:
    return "attacks/left" in entry.numbers


def test_tensorboard_has_the_whole_run(tmp_path: Path) -> None:
    with TensorBoard(tmp_path / "tb") as board:
        found = fit(tiny_model(), TRAIN, VALIDATION, TrainConfig(epochs=3), observer=board)
        for name in ("before", "after"):
            evaluate(tiny_model(), TRAIN[:12], eps=0.3, attacks=PGD(eps=1.0, steps=2), observer=part_of(board, name))
    assert [step for step, _ in scalars(board.folder, "epoch/loss")] == [1, 2, 3]
    written = [value for _, value in scalars(board.folder, "epoch/loss")]
    assert written == pytest.approx([row["loss"] for row in found.history])
    assert "| objective.name | CrossEntropy |" in text(board.folder, "settings")
    for name in ("before", "after"):
        ((step, _),) = scalars(board.folder / name, "evaluation/robust_accuracy")
        assert step == 0
        assert text(board.folder / name, "verdict_sentence").endswith(".")
        (image,) = events(board.folder / name).Images("clean_above_adversarial")
        assert image.height == 20
        assert "_hparams_/session_start_info" in events(board.folder / name).summary_metadata
    assert json.loads((board.folder / "casemate.json").read_text())["status"] == "FINISHED"


def test_pictures_are_left_out_where_they_are_not_wanted(tmp_path: Path) -> None:
    with TensorBoard(tmp_path / "tb", pictures=False) as board, MLflow(pictures=False) as mlflow:
        evaluate(tiny_model(), TRAIN[:12], eps=0.1, attacks=PGD(eps=1.0, steps=2), observer=observers(board, mlflow))
    assert events(board.folder).Tags()["images"] == []
    assert client().list_artifacts(mlflow.run_id) == []


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (TrainingError("no"), "FAILED"), (None, "FINISHED")]
)
def test_a_run_ends_as_the_work_did(error: BaseException | None, status: str, tmp_path: Path) -> None:
    def work() -> None:
        with MLflow() as mlflow, TensorBoard(tmp_path / "tb"):
            track(mlflow, Tracked(numbers={"x": 1.0}))
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert only_run().info.status == status
    assert json.loads((tmp_path / "tb" / "casemate.json").read_text())["status"] == status


def test_the_active_run_of_mlflow_is_used_and_not_ended() -> None:
    import mlflow

    with mlflow.start_run() as active:
        with MLflow() as tracked:
            track(tracked, Tracked(numbers={"x": 1.0}))
        assert tracked.run_id == active.info.run_id
        assert only_run().info.status == "RUNNING"
        mlflow.log_metric("own", 2.0)
    assert only_run().data.metrics == {"x": 1.0, "own": 2.0}


def test_a_resumed_training_has_every_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainConfig(epochs=4)

    def train() -> None:
        with MLflow(resume="mine") as mlflow, TensorBoard(tmp_path / "tb") as board:
            both = observers(mlflow, board)
            fit(tiny_model(), TRAIN, VALIDATION, settings, checkpoint=tmp_path / "state", observer=both)

    from casemate.training import loop

    real = loop.track_epoch

    def interrupted(observer: Any, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:  # its checkpoint is written, and no tracker has it
            raise KeyboardInterrupt
        real(observer, row)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "track_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert only_run().info.status == "KILLED"
    train()
    found = only_run()
    assert found.info.status == "FINISHED"
    for name in ("epoch/loss", "epoch/val_accuracy", "epoch/seconds"):
        assert [step for step, _ in series(found.info.run_id, name)] == [1, 2, 3, 4], name
        assert [step for step, _ in scalars(tmp_path / "tb", name)] == [1, 2, 3, 4], name
    train()  # the finished run stays as it is
    assert sorted(each.info.status for each in runs()) == ["FINISHED", "FINISHED"]
    assert [step for step, _ in scalars(tmp_path / "tb-2", "epoch/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(tmp_path / "tb", "epoch/loss")] == [1, 2, 3, 4]


def test_another_run_in_the_folder_of_tensorboard_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TensorBoard(tmp_path / "tb", resume="one") as one:
        raise KeyboardInterrupt
    with TensorBoard(tmp_path / "tb", resume="two") as two:
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "events.out.tfevents.1").touch()
    with TensorBoard(tmp_path / "other") as three:
        pass
    with TensorBoard(tmp_path / "tb", resume="one") as four:
        pass
    folders = [each.folder.name for each in (one, two, three, four)]
    assert folders == ["tb", "tb-2", "other-2", "tb"]


# Failures -------------------------------------------------------------------------------------------------------------


def _broken(*given: object, **named: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_failing_tracker_loses_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with TensorBoard(tmp_path / "tb", on_failure=said.append) as board:
        monkeypatch.setattr(board, "_writer_type", _broken)
        found = fit(tiny_model(), TRAIN, VALIDATION, TrainConfig(epochs=3), observer=board)
        assert len(found.history) == 3
        assert len(said) == 1
        assert "No space left on device" in said[0]
        assert "the work goes on" in said[0]
    assert said[1:] == [
        f"TensorBoard run {tmp_path / 'tb'} lacks a part of this run: 4 of its entries could not be stored."
    ]


def test_what_could_not_be_stored_is_stored_later(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with MLflow(on_failure=said.append) as mlflow:
        with monkeypatch.context() as patch:
            patch.setattr(type(mlflow._client), "log_batch", _broken)
            found = fit(tiny_model(), TRAIN, VALIDATION, TrainConfig(epochs=3), observer=mlflow)
        assert only_run().data.metrics == {}
    assert [step for step, _ in series(mlflow.run_id, "epoch/loss")] == [1, 2, 3]
    assert series(mlflow.run_id, "epoch/loss")[-1][1] == found.history[-1]["loss"]
    assert len(said) == 2
    assert said[1].endswith("has the whole run now.")


def test_an_entry_that_is_always_refused_holds_up_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracker, "_PAUSE", 0.0)
    said: list[str] = []
    with MLflow(on_failure=said.append) as mlflow:
        track(mlflow, Tracked(files=[tmp_path / "missing"]))
        for step in range(1, 5):
            track(mlflow, Tracked(numbers={"x": 1.0}, step=step))
    assert [step for step, _ in series(mlflow.run_id, "x")] == [1, 2, 3, 4]
    assert "1 of its entries" in said[-1]


def test_an_entry_that_is_refused_at_the_end_holds_up_no_other(tmp_path: Path) -> None:
    said: list[str] = []
    with MLflow(on_failure=said.append) as mlflow:
        track(mlflow, Tracked(files=[tmp_path / "missing"]))
        track(mlflow, Tracked(numbers={"x": 1.0}))
    assert only_run().data.metrics == {"x": 1.0}
    assert "1 of its entries" in said[-1]


def test_a_failure_warns_without_a_place_for_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = MLflow()
    monkeypatch.setattr(type(mlflow._client), "log_batch", _broken)
    with pytest.warns(CasemateWarning, match="No space left on device"):
        track(mlflow, Tracked(numbers={"x": 1.0}))
    with pytest.warns(CasemateWarning, match="lacks a part of this run"):
        mlflow.close()
    track(mlflow, Tracked(numbers={"x": 1.0}))  # after the end nothing is stored, and nothing raised


def test_a_server_that_is_down_is_refused_at_once(run: Run) -> None:
    start = time.process_time()
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9 .*Connection refused"):
        MLflow(uri="http://user:secret@127.0.0.1:9")
    code, out, err = run("evaluate", "missing.safetensors", "--track", "mlflow:http://user:secret@127.0.0.1:9")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "MLflow cannot use http://127.0.0.1:9 (" in err
    assert "secret" not in err
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert time.process_time() - start < 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("wandb", "unknown tracker 'wandb'; known: mlflow, tensorboard"),
        ("tensorbord", "did you mean tensorboard?"),
        ("mlflow:", "names no place after the colon; write mlflow or mlflow:URI"),
        ("mlflow:foo://bar", "MLflow cannot use foo://bar ("),
        ("mlflow:sqlite:///x.db", "pip install mlflow"),
        ("tensorboard:file/x", "expected there: name another folder in --track"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_tracker_is_refused_before_any_work(words: str, message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in (["train"], ["evaluate", "no"], ["attack", "fgsm", "no"], ["harden", "no", "--eps", "1"], ["study"]):
        code, out, err = run(*command, "--track", words)
        assert (code, out) == (2, ""), command
        assert message in err
        assert "Traceback" not in err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"]


def test_a_tracker_given_twice_is_refused(run: Run) -> None:
    code, _, err = run("train", "--track", "tensorboard:a", "--track", "tensorboard:a")
    assert code == 2
    assert "--track tensorboard:a is given twice" in err


def test_a_folder_is_no_store_of_mlflow_unless_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(TrackingError, match="Set MLFLOW_ALLOW_FILE_STORE=true"):
        MLflow()


@pytest.mark.parametrize("extra", ["mlflow", "tensorboard"])
@pytest.mark.usefixtures("unchecked")
def test_a_missing_extra_is_named_at_once(
    extra: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'casemate\[{extra}\]'"):
        MLflow() if extra == "mlflow" else TensorBoard(tmp_path / "tb")
    code, out, err = run("train", "--dataset", "digits", "--track", extra)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"pip install 'casemate[{extra}]'" in err


def test_without_track_neither_package_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys, casemate, casemate.tracking, casemate.cli.main, casemate.cli.train.run, casemate.cli.harden.run\n"
        "casemate.evaluate, casemate.harden, casemate.tracking.MLflow, casemate.tracking.TensorBoard\n"
        "assert not {'mlflow', 'tensorboard'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


# The option -----------------------------------------------------------------------------------------------------------


def test_a_tracked_training_by_command(run: Run, tmp_path: Path) -> None:
    arguments = [*SMALL, "--epochs", 2, "--out", "m.safetensors", "--track", "mlflow", "--track", "tensorboard"]
    code, _, err = run(*arguments)
    assert code == 0, err
    found = only_run()
    assert (found.info.run_name, found.info.status) == ("train-m", "FINISHED")
    assert found.data.params["command"] == "train"
    assert found.data.params["train_images"] == "120"
    assert [step for step, _ in series(found.info.run_id, "epoch/val_accuracy")] == [1, 2]
    assert found.data.metrics["test/accuracy_low"] < found.data.metrics["test/accuracy"]
    files = [each.path for each in client().list_artifacts(found.info.run_id)]
    assert files == ["m.history.csv", "m.json", "m.safetensors"]
    assert [step for step, _ in scalars(tmp_path / "m.tensorboard", "epoch/loss")] == [1, 2]
    assert "Tracked in TensorBoard run m.tensorboard." in err


@pytest.mark.integration
def test_a_tracked_evaluation_by_command(run: Run, tmp_path: Path) -> None:
    pixels = tiny_images(30).pixels.numpy()
    np.savez(tmp_path / "own.npz", images=pixels, labels=tiny_images(30).labels.numpy())
    save(tiny_model(), tmp_path / "m.safetensors", ModelMetadata(architecture="tiny", dataset="own", recipe={}, seed=0))
    arguments = ["evaluate", "m.safetensors", "--data", "own.npz", "--budget", "quick", "--images", 30, "--force"]
    trackers = ["--track", "mlflow", "--track", "tensorboard:tb"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CasemateWarning)
        code, _, err = run(*arguments, "--out", "out", "--no-images", *trackers)
    assert code == 0, err
    found, result = only_run(), json.loads((tmp_path / "out" / "result.json").read_text())
    assert found.data.params["fingerprint"] == result["fingerprint"]
    assert found.data.metrics["evaluation/robust_accuracy"] == result["robust_accuracy"][-1]["value"]
    assert found.data.tags["verdict"] == result["verdict"]
    files = {each.path for each in client().list_artifacts(found.info.run_id)}
    assert {"report.html", "result.json", "record.json"} <= files
    assert files == {each.name for each in (tmp_path / "out").iterdir()}  # no pictures with --no-images
    assert text(tmp_path / "tb" / "evaluate-m", "verdict") == result["verdict"]
    assert events(tmp_path / "tb" / "evaluate-m").Tags()["images"] == []


def test_only_the_first_of_several_processes_tracks(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "2" if name == "WORLD_SIZE" else "1")
    with option.tracking(["mlflow"], listener, name="train-m", folder=Path("x"), settings={}) as observer:
        assert observer is listener
    assert runs() == []


@pytest.fixture
def killed_and_repeated(tmp_path: Path) -> Path:
    """The folder of a tracked training that was killed after its second epoch, and then repeated."""
    words = [*map(str, SMALL), "--epochs", "4", "--out", "m.safetensors", "--track", "mlflow", "--track", "tensorboard"]
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import conftest
from casemate.cli.main import main
from casemate.training import loop
real = loop.track_epoch
def dying(observer, row):
    real(observer, row)
    if row["epoch"] == 2 and sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
loop.track_epoch = dying
sys.exit(main({words!r}))
"""
    for how, code in (("die", -signal.SIGKILL), ("live", 0)):
        done = subprocess.run(
            [sys.executable, "-c", program, how], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    return tmp_path


@pytest.mark.integration
@pytest.mark.slow
def test_a_killed_training_goes_on_in_the_same_run(killed_and_repeated: Path) -> None:
    found = only_run()
    assert found.info.status == "FINISHED"
    assert [step for step, _ in series(found.info.run_id, "epoch/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(killed_and_repeated / "m.tensorboard", "epoch/loss")] == [1, 2, 3, 4]


def test_the_names_are_public() -> None:
    assert casemate.tracking.MLflow is MLflow
    assert casemate.observers is observers
