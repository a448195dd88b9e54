"""The benchmark of defences: what it trains and measures, that it goes on where it was, and its table."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from casemate import data
from casemate.benchmark import (
    ENTRIES,
    Entry,
    benchmark_rows,
    benchmark_seconds,
    plan_benchmark,
    recipe_in_words,
    run_benchmark,
)
from casemate.benchmark import run as benchmark_run
from casemate.benchmark.folder import BenchmarkFolder
from casemate.benchmark.measures import Attacked
from casemate.benchmark.published import PUBLISHED
from casemate.cli.benchmark.options import parse
from casemate.cli.benchmark.request import BenchmarkRequest
from casemate.cli.benchmark.run import prepare
from casemate.data import Dataset
from casemate.defenses import initialize_for_bounds, recipe_type
from casemate.errors import SettingError, StoreError
from casemate.evaluation import evaluate, evaluate_clean
from casemate.evaluation.fingerprints import fingerprint
from casemate.models import Classifier, create, load
from casemate.progress import NULL_OBSERVER
from casemate.report.benchmark import as_document, columns_of, page, write_benchmark
from casemate.report.benchmark_figure import benchmark_figure, letter
from test_study import Run, runner

pytestmark = pytest.mark.filterwarnings("ignore:.*had no gradient to follow")  # after one epoch of bounds

SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 32}
MODELS = {
    "plain": Entry(network="strided-cnn", training=SMALL),
    "student": Entry(
        network="strided-cnn", recipe="distillation", settings={"temperature": 2.0}, teacher="plain", training=SMALL
    ),
    "bounds": Entry(network="strided-cnn", recipe="ibp", certificate="interval", training=SMALL, seed=3),
}


@pytest.fixture(scope="module")
def images() -> Dataset:
    found = data.load("digits")
    return replace(found, test=found.test[:60])


@pytest.fixture(scope="module")
def quick(images: Dataset) -> Any:
    return plan_benchmark(
        images,
        entries=MODELS,
        others=(0.05,),
        images=20,
        headline=("bounds",),
        seeds=2,
        budget="quick",
        train_images=150,
    )


@pytest.fixture(scope="module")
def finished(quick: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    run_benchmark(quick, folder, finished=lambda rows: write_benchmark(folder, quick, rows))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.mark.integration
def test_the_rows_say_what_an_evaluation_of_the_stored_weights_says(quick: Any, finished: Path) -> None:
    rows = {row.name: row for row in benchmark_rows(quick, BenchmarkFolder(finished, quick.data()))}
    for name, row in rows.items():
        model, about = load(finished / name / "model.safetensors")
        test = quick.dataset.test
        assert row.training is not None
        assert row.training["fingerprint"] == fingerprint(model)
        assert row.clean() == evaluate_clean(model, test).accuracy
        assert (about.architecture, about.seed) == ("strided-cnn", MODELS[name].seed)
        found = evaluate(model, test[:20], eps=(0.05, 0.1), budget="quick", force=True)
        assert [row.robust(0.05), row.robust(0.1)] == [[each] for each in found.robust]
        assert [row.verdict(0.05), row.verdict(0.1)] == [each.word for each in found.verdicts]
    assert [len(each.robust(0.1, whole=True)) for each in rows.values()] == [0, 0, 2]
    for measure in quick.measures("bounds"):
        held = json.loads((finished / "bounds" / f"{measure.name}.json").read_text())
        first = held["first_to_fool"]
        assert sum(first.values()) == sum(digit not in f"0{1 + len(measure.eps)}" for digit in held["correct"])
        assert all(each <= first["square"] for each in held["only_without_gradients"])
    certified, robust = (rows["bounds"].widest(0.1, what) for what in ("certified", "robust"))
    assert certified is not None
    assert robust is not None
    assert robust == rows["bounds"].robust(0.1, whole=True)[0]
    assert certified.value <= robust.value
    assert certified.n == robust.n == len(quick.dataset.test)
    assert rows["bounds"].widest(0.05, "robust") == rows["bounds"].robust(0.05)[0]


def test_a_student_of_a_teacher_that_was_trained_again_is_refused(images: Dataset, tmp_path: Path) -> None:
    folder = BenchmarkFolder(tmp_path, {"dataset": images.name})
    teacher, student = MODELS["plain"], MODELS["student"]
    model = teacher.make_model(images.image_shape, images.classes)
    folder.keep_training("plain", teacher, model, {"fingerprint": "one"})
    folder.keep_training("student", student, model, {"fingerprint": "two"})
    assert folder.training("student", student) == {"fingerprint": "two"}

    (tmp_path / "plain" / "training.json").unlink()
    assert folder.training("student", student) is None  # nothing is known of it before its teacher is there again
    folder.keep_training("plain", teacher, model, {"fingerprint": "another"})
    with pytest.raises(SettingError, match=r"differs in teacher\. Give another folder, or delete .*student to make"):
        folder.training("student", student)


def test_a_recipe_is_described_with_its_augmentations_and_teacher() -> None:
    found = {name: recipe_in_words(entry.as_json()) for name, entry in ENTRIES.items()}
    assert found["augmentation"] == "cross-entropy, affine and flip in every batch, gaussian-blur as more images"
    assert found["distilled"] == "distillation, teacher at-temperature"
    assert found["undefended"] == "cross-entropy"


def test_settings_that_a_recipe_comes_with_are_recorded() -> None:
    assert ENTRIES["n-fgsm"].config().guard
    assert ENTRIES["n-fgsm"].as_json()["training"]["guard"] is True
    assert "guard" not in ENTRIES["fast"].as_json()["training"]


@pytest.mark.integration
def test_a_second_run_computes_nothing(quick: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to compute")

    before = benchmark_rows(quick, BenchmarkFolder(finished, quick.data()))
    monkeypatch.setattr(benchmark_run, "_train", never)
    for kind in {type(each) for name in MODELS for each in quick.measures(name)}:
        monkeypatch.setattr(kind, "compute", never)
    assert run_benchmark(quick, finished) == before


@pytest.mark.integration
def test_a_missing_measurement_is_made_again_with_the_same_result(quick: Any, finished: Path) -> None:
    measure = quick.measures("bounds")[-1]
    path = finished / "bounds" / f"{measure.name}.json"
    kept = json.loads(path.read_text())
    path.unlink()
    run_benchmark(quick, finished, finished=lambda rows: write_benchmark(finished, quick, rows))
    again = json.loads(path.read_text())
    timed = ("seconds", "provenance")
    assert {key: again[key] for key in again if key not in timed} == {
        key: kept[key] for key in kept if key not in timed
    }


@pytest.mark.integration
def test_trained_again_from_its_seed_a_model_has_the_same_weights(
    quick: Any, finished: Path, images: Dataset, tmp_path: Path
) -> None:
    alone = plan_benchmark(images, ("bounds",), entries=MODELS, images=1, seeds=0, budget="quick", train_images=150)
    run_benchmark(alone, tmp_path)
    one, other = (load(each / "bounds" / "model.safetensors")[0] for each in (finished, tmp_path))
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.integration
def test_table_and_figure_have_every_model(quick: Any, finished: Path) -> None:
    rows = benchmark_rows(quick, BenchmarkFolder(finished, quick.data()))
    text = (finished / "benchmark.md").read_text()
    heads = [each.head for each in columns_of(quick)]
    assert heads[:4] == ["Model", "Recipe", "Clean", "Clean, first 20"]
    assert heads[4:6] == ["Robust 0.05, first 20", "Robust 0.1, first 20"]
    assert "Robust 0.1, all 60" in heads
    assert "Certified 0.1" in heads
    for row in rows:
        line = next(each for each in text.splitlines() if each.startswith(f"| {row.name} |"))
        assert str(row.clean()) in line
    assert "seeds: " in text
    assert "of 2 seeds" not in text
    one_more = page(replace(quick, seeds=quick.seeds + 1), rows, benchmark_figure(quick, rows, ()))
    assert f"; {quick.seeds} of {quick.seeds + 1} seeds" in one_more
    assert "What others published" not in text  # other images
    assert (finished / "benchmark.svg").read_bytes().startswith(b"<?xml")
    held = json.loads((finished / "benchmark.json").read_text())
    assert held == {"schema": "casemate/benchmark/1", **json.loads(json.dumps(as_document(quick, rows)))}


@pytest.mark.integration
def test_the_figure_shows_what_is_measured_and_what_is_published(quick: Any, finished: Path) -> None:
    rows = benchmark_rows(quick, BenchmarkFolder(finished, quick.data()))
    figure = benchmark_figure(quick, rows, PUBLISHED)
    found = {(sign, what): (model, value, low, high) for sign, model, _, _, what, value, low, high in figure.rows}
    of = {sign: images for sign, _, images, *_ in figure.rows}
    assert [of["1"], of["2"], of["3"], of["a"]] == ["first 20", "first 20", "60", PUBLISHED[0].images]
    for number, row in enumerate(rows, 1):
        clean = row.clean() if row.robust(0.1, whole=True) else row.clean_of_first()
        for what, estimate in (("clean", clean), ("attacked", row.widest(0.1, "robust"))):
            assert estimate is not None
            assert found.pop((str(number), what)) == (row.name, estimate.value, estimate.low, estimate.high)
    assert found.pop(("3", "certified"))[0] == "bounds"
    for number, each in enumerate(PUBLISHED):
        for what, value in (("clean", each.clean), ("attacked", each.attacked), ("certified", each.certified)):
            if value is not None:
                assert found.pop((letter(number), what)) == (each.model, value, None, None)
    assert not found
    assert f"{PUBLISHED[0].model} (10,000): 79.2 % certified" in figure.alt


@pytest.mark.integration
def test_other_definitions_are_refused_and_nothing_is_lost(quick: Any, finished: Path, images: Dataset) -> None:
    changed = MODELS | {"plain": Entry(network="strided-cnn", training={**SMALL, "epochs": 2})}
    other = plan_benchmark(images, ("plain",), entries=changed, images=20, budget="quick", train_images=150)
    before = (finished / "plain" / "training.json").read_bytes()
    with pytest.raises(SettingError, match=r"it differs in entry. Give another folder, or delete .*plain"):
        run_benchmark(other, finished)
    fewer = plan_benchmark(images, ("plain",), entries=MODELS, images=20, budget="quick", train_images=140)
    with pytest.raises(SettingError, match="it differs in data"):
        run_benchmark(fewer, finished)
    assert (finished / "plain" / "training.json").read_bytes() == before


@pytest.mark.integration
def test_the_command_goes_on_and_prints_the_table(
    finished: Path, quick: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.cli.benchmark.run.plan_benchmark", lambda *given, **named: quick)
    code, out, _ = run("benchmark", "--dataset", "digits", "--out", finished, "--json")
    assert code == 0
    assert [each["model"] for each in json.loads(out)["rows"]] == list(MODELS)
    code, out, _ = run("benchmark", "--dataset", "digits", "--out", finished)
    assert code == 0
    assert "Certified" in out


def test_a_damaged_file_is_named(quick: Any, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "training.json").write_text("[]")
    with pytest.raises(StoreError, match=r"training\.json is not a file of a benchmark"):
        benchmark_rows(quick, BenchmarkFolder(tmp_path, quick.data()))


def test_nothing_measured_is_an_empty_table(quick: Any, tmp_path: Path) -> None:
    rows = benchmark_rows(quick, BenchmarkFolder(tmp_path, quick.data()))
    write_benchmark(tmp_path, quick, rows)
    text = (tmp_path / "benchmark.md").read_text()
    assert "| plain | cross-entropy |  |" in text
    assert "No model is measured yet." in text


def test_published_numbers_stand_beside_those_of_the_same_images_and_radius(
    monkeypatch: pytest.MonkeyPatch, quick: Any, tmp_path: Path
) -> None:
    rows = benchmark_rows(quick, BenchmarkFolder(tmp_path, quick.data()))
    monkeypatch.setattr("casemate.report.benchmark._is_comparable", lambda plan: True)
    write_benchmark(tmp_path, quick, rows)
    text = (tmp_path / "benchmark.md").read_text()
    assert all(each.model in text and each.source in text for each in PUBLISHED)
    for each in PUBLISHED:
        assert each.certified is None or each.attacked is None or each.certified <= each.attacked
        assert each.attacked is None or each.clean is None or each.attacked <= each.clean


def test_teachers_come_first(images: Dataset) -> None:
    plan = plan_benchmark(images, ("student",), entries=MODELS)
    assert list(plan.entries) == ["plain", "student"]


def test_every_entry_can_be_built(images: Dataset) -> None:
    for entry in ENTRIES.values():
        model = entry.make_model(images.image_shape, images.classes)
        teacher = None if entry.teacher is None else model
        assert entry.make_recipe(teacher).objective is not None
        assert entry.config().seed == entry.seed
        assert entry.teacher is None or entry.teacher in ENTRIES


def test_certified_models_start_with_narrow_intervals(images: Dataset) -> None:
    entry = MODELS["bounds"]
    expected = create("strided-cnn", input_shape=images.image_shape, classes=images.classes, seed=3)
    usual = {key: value.clone() for key, value in expected.state_dict().items()}
    state = torch.get_rng_state()
    made = entry.make_model(images.image_shape, images.classes)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    initialize_for_bounds(expected)
    assert fingerprint(made) == fingerprint(expected)
    recipe_type("trades").initialize(made, 0)  # has no need of others
    assert fingerprint(made) == fingerprint(expected)
    assert any(not torch.equal(value, usual[key]) for key, value in made.state_dict().items())


def test_weights_are_rounded_before_they_are_measured() -> None:
    model = create("strided-cnn", input_shape=(1, 28, 28), classes=tuple("ab"))
    rounded = benchmark_run._rounded(model)
    for value in rounded.state_dict().values():
        assert not value.is_floating_point() or torch.equal(value, value.half().to(value.dtype))


@pytest.mark.integration
def test_only_a_model_without_gradients_has_images_that_square_alone_fools(images: Dataset, tmp_path: Path) -> None:
    """All gradients through the steps are zero; without the steps in front, gradients fool all that Square does."""

    class Steps(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images > 0.5).to(images.dtype)

    pixels, labels = images.train.tensors()
    classes = images.classes
    linear = nn.Linear(784, len(classes))
    with torch.no_grad():  # a template for each class
        means = torch.stack([pixels[labels == each].mean(0).flatten() for each in range(len(classes))])
        linear.weight.copy_(means)
        linear.bias.copy_(-means.square().sum(1) / 2)
    measure = Attacked(eps=(0.2,), images=10, seed=0, budget="quick")
    for front, masked in ((Steps(), True), (nn.Identity(), False)):
        model = Classifier(nn.Sequential(front, nn.Flatten(), linear), input_shape=(1, 28, 28), classes=classes)
        found = measure.compute(model, images.test, tmp_path, NULL_OBSERVER)
        assert any(found["only_without_gradients"]) == masked
        assert sum(found["only_without_gradients"]) <= found["first_to_fool"]["square"]


def test_the_time_beforehand_names_every_step(quick: Any) -> None:
    found = benchmark_seconds(quick)
    assert list(found) == [f"{what} {name}" for name in MODELS for what in ("training", "measuring")]
    assert all(np.isfinite(list(found.values())))
    assert all(value > 0 for value in found.values())


@pytest.mark.integration
def test_the_time_beforehand_leaves_out_what_is_finished(quick: Any, finished: Path, tmp_path: Path) -> None:
    assert benchmark_seconds(quick, finished) == {}
    shutil.copytree(finished / "plain", tmp_path / "plain")
    (tmp_path / "plain" / f"{quick.measures('plain')[0].name}.json").unlink()
    assert list(benchmark_seconds(quick, tmp_path)) == [
        "measuring plain",
        *(f"{what} {name}" for name in ("student", "bounds") for what in ("training", "measuring")),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": ("robot",)}, "robot"),
        ({"headline": ("student",), "names": ("plain",)}, "student"),
        ({"images": 0}, "images = 0"),
        ({"seeds": -1}, "seeds = -1"),
        ({"eps": 0.0}, "eps = 0.0"),
        ({"others": (0.1, -1.0)}, "expected numbers above 0"),
    ],
)
def test_bad_plans_are_refused_in_words(images: Dataset, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        plan_benchmark(images, **{"entries": MODELS, **given})


def test_the_command_lists_its_models_and_plans(run: Run) -> None:
    code, out, _ = run("benchmark", "--list", "--json")
    assert code == 0
    assert list(json.loads(out)["models"]) == list(ENTRIES)
    code, out, _ = run("benchmark", "--list")
    assert code == 0
    assert "undefended" in out
    code, _, err = run("benchmark", "nobody", "--dataset", "digits", "--dry-run")
    assert code == 2
    assert "nobody" in err


@pytest.mark.integration
def test_a_dry_run_trains_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(
        "benchmark", "undefended", "--dataset", "digits", "--images", "20", "--budget", "quick", "--dry-run", "--json"
    )
    assert code == 0
    assert set(json.loads(out)["seconds"]) == {"training undefended", "measuring undefended"}
    assert not any(tmp_path.iterdir())


def test_options_have_the_defaults_of_the_function() -> None:
    request = BenchmarkRequest()
    assert (request.eps, request.others, request.images, request.seeds) == ("0.1", ("0.05", "0.2"), 1000, 3)


def test_the_page_names_the_split(quick: Any, tmp_path: Path) -> None:
    rows = benchmark_rows(quick, BenchmarkFolder(tmp_path, quick.data()))
    write_benchmark(tmp_path, quick, rows)
    assert (tmp_path / "benchmark.md").read_text().startswith("# Benchmark of defences: scikit-learn digits, Linf")
    assert (
        f"{len(quick.train)} images to train on, {len(quick.validation)} set aside for validation"
        in (tmp_path / "benchmark.md").read_text()
    )


def test_the_page_has_the_command_that_makes_it(tmp_path: Path) -> None:
    plan = plan_benchmark(
        data.load("digits"), ["distilled"], eps=0.08, others=(), headline=["distilled"], seeds=2, train_images=500
    )
    write_benchmark(tmp_path, plan, benchmark_rows(plan, BenchmarkFolder(tmp_path, plan.data())))
    _, command, *_ = (tmp_path / "benchmark.md").read_text().split("```")
    first, second, *given = command.split()
    assert (first, second) == ("casemate", "benchmark")
    request = parse(given).request
    again = prepare(request, NULL_OBSERVER)
    assert again.about() == plan.about()
    assert again.data() == plan.data()
