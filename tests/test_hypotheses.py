"""Hypotheses on the paper's accuracy under FGSM: each condition against a closed form, and their combination."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from casemate.attacks import FGSM
from casemate.data import Dataset, LabelledImages
from casemate.engine import Artifact, Context
from casemate.errors import CasemateWarning
from casemate.evaluation import Estimate, eps_curve, share
from casemate.losses import TITLES
from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER
from casemate.report import styled
from casemate_study.experiments.hypotheses import E2_CONDITIONS, HYPOTHESES, PREFIX, UNCHANGED, hypotheses_tasks
from casemate_study.experiments.scales import SCALES
from casemate_study.experiments.specs import LOSSES, Setup, Source
from casemate_study.report.hypotheses import hypotheses_section
from casemate_study.report.hypotheses_figure import hypotheses_figure
from casemate_study.results.hypotheses import explaining_trials, numbered
from casemate_study.tasks import hypotheses as tasks
from casemate_study.tasks.hypotheses import (
    Conditions,
    Trials,
    best_two,
    flushed_denormals,
    mean_gradient,
    try_hypotheses,
    zero_shares,
)
from casemate_study.tasks.inputs import batch_size
from conftest import TINY_CLASSES, tiny_images, tiny_model

CONTEXT = Context(device="cpu", observer=NULL_OBSERVER)
E2 = Conditions(**E2_CONDITIONS)


def changed(*names: str) -> Conditions:
    """E2's conditions with the changes of these hypotheses."""
    conditions = E2
    for name in names:
        conditions = replace(conditions, **HYPOTHESES[name].change)
    return conditions


class Line(nn.Module):
    """Logits of a single pixel: 0, and the pixel minus `border`, times `weight`."""

    def __init__(self, weight: float, border: float) -> None:
        super().__init__()
        self.weight, self.border = weight, border

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = self.weight * (images.flatten(1) - self.border)
        return torch.cat([torch.zeros_like(bright), bright], dim=1)


def line(weight: float, border: float = 0.5) -> Classifier:
    """Two classes of one pixel, bright above the border; the larger the weight, the more confident."""
    return Classifier(Line(weight, border), input_shape=(1, 1, 1), classes=("dark", "bright"))


def pixels(*values: float, labels: tuple[int, ...] | None = None) -> LabelledImages:
    """Images of one pixel; dark (below 0.5) or bright unless `labels` says otherwise."""
    tensor = torch.tensor(values).view(-1, 1, 1, 1)
    truth = (tensor.flatten() > 0.5).long() if labels is None else torch.tensor(labels)
    return LabelledImages(pixels=tensor, labels=truth)


def trials(model: Classifier, test: LabelledImages, training: LabelledImages | None = None) -> Trials:
    """Trials on these images."""
    return Trials(model, {"test": test, "training": test if training is None else training}, 0, CONTEXT)


@pytest.fixture(autouse=True)
def _no_state_is_left() -> Iterator[None]:
    """Denormals, threads and random numbers are afterwards as before."""
    before = torch.get_rng_state()
    assert not tasks._flushes_denormals()
    yield
    assert not tasks._flushes_denormals()
    assert torch.get_num_threads() == 1
    assert torch.equal(torch.get_rng_state(), before)


# One condition --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_change_it_is_e2_s_own_measure(loss: str) -> None:
    model, images = tiny_model(), tiny_images(40)
    attack = FGSM(eps=0.1, loss=loss, keep="last")  # pyright: ignore[reportArgumentType]
    curve = eps_curve(model, attack, images, [0.1], batch_size=batch_size(CONTEXT))
    assert curve.last is not None
    assert trials(model, images).accuracy(E2, loss) == share(curve.last.right[:, 0])


def test_training_images_are_those_of_the_training_split() -> None:
    """Far from the border no step of 0.1 reaches it; near it every one does."""
    found = trials(line(4.0), pixels(0.45, 0.55), pixels(0.1, 0.2, 0.9))
    assert found.accuracy(E2, "ce") == share(np.zeros(2, dtype=bool))
    assert found.accuracy(changed("training-images"), "ce") == share(np.ones(3, dtype=bool))


def test_the_predicted_class_is_the_true_one_where_the_model_is_right() -> None:
    """There the two attacks are one; where it is wrong, ascending the true label's loss keeps it wrong, but ascending
    the predicted label's loss moves it back, so that accuracy is never below.
    """
    right = trials(line(4.0), pixels(0.1, 0.45, 0.55, 0.9))
    assert right.clean["test"].correct.all()
    for loss in LOSSES:
        assert right.accuracy(changed("predicted-label"), loss) == right.accuracy(E2, loss)
    wrong = trials(line(4.0), pixels(0.45, 0.55, 0.9, labels=(1, 0, 1)))
    (true, predicted) = (wrong.accuracy(each, "ce") for each in (E2, changed("predicted-label")))
    assert true == share(np.array([False, False, True]))
    assert predicted == share(np.array([True, True, True]))


def test_scaled_images_halve_eps() -> None:
    """On [-1, 1] a step of 0.1 is 0.05 on [0, 1]: 0.43 and 0.57 keep their side, 0.46 does not."""
    found = trials(line(4.0), pixels(0.43, 0.57, 0.46))
    assert found.accuracy(E2, "ce") == share(np.zeros(3, dtype=bool))
    assert found.accuracy(changed("scaled-images"), "ce") == share(np.array([True, True, False]))


def test_among_the_correctly_classified_is_divided_by_clean_accuracy() -> None:
    """The attack turns no wrong image right here, so the two accuracies differ by that factor."""
    found = trials(line(4.0), pixels(0.1, 0.45, 0.9, 0.8, labels=(0, 0, 1, 0)))
    every, some = found.accuracy(E2, "ce"), found.accuracy(changed("correct-only"), "ce")
    assert every == share(np.array([True, False, True, False]))
    assert some is not None
    assert every is not None
    assert some.n == 3
    assert some.value == pytest.approx(every.value / found.clean["test"].accuracy.value)
    assert trials(line(4.0), pixels(0.1, labels=(1,))).accuracy(changed("correct-only"), "ce") is None


def test_a_step_that_is_not_clipped_leaves_the_range() -> None:
    """Logits that turn at a pixel of -0.05, which no clipped image reaches from 0.02."""
    model, images = line(-40.0, border=-0.05), pixels(0.02, labels=(0,))
    kept = trials(model, images)
    assert kept.clean["test"].correct.all()
    assert kept.accuracy(E2, "ce") == share(np.array([True]))
    assert kept.accuracy(changed("not-clipped"), "ce") == share(np.array([False]))
    for names in (("not-clipped", "batch-mean"), ("batch-mean",)):
        assert trials(model, images).accuracy(changed(*names), "ce") == share(np.array(["not-clipped" not in names]))
    assert model.bounds == (0.0, 1.0)


# The gradient of a mean -----------------------------------------------------------------------------------------------
def test_the_gradient_of_a_mean_is_each_image_s_own_divided_by_the_number_of_images() -> None:
    model, images = tiny_model(), tiny_images(5)
    model.train()
    states = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own, of_mean = (mean_gradient(model, images, "ce", count) for count in (1, 1000))
    assert own.abs().max() > 0
    torch.testing.assert_close(1000 * of_mean, own, rtol=1e-5, atol=1e-9)
    assert model.training
    assert all(torch.equal(tensor, states[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_denormals_are_flushed_inside_only() -> None:
    tiny = torch.tensor([torch.finfo(torch.float32).tiny])
    torch.set_num_threads(2)
    try:
        with flushed_denormals() as supported:
            assert supported
            assert torch.get_num_threads() == 1
            assert (tiny / 1000).item() == 0
        assert torch.get_num_threads() == 2
        assert (tiny / 1000).item() > 0
        with flushed_denormals():
            with flushed_denormals():
                pass
            assert (tiny / 1000).item() == 0  # what was on before stays on
        with pytest.raises(ZeroDivisionError), flushed_denormals():
            raise ZeroDivisionError
    finally:
        torch.set_num_threads(1)


def test_gradients_that_underflow_do_not_move_the_image() -> None:
    """A derivative of 1e-36 is a number of float32; a thousandth of it is a denormal."""
    model = line(1e-36)
    images = pixels(0.45, labels=(0,))
    with flushed_denormals():
        few, many = (mean_gradient(model, images, "torch-ce", count) for count in (1, 1000))
    unflushed = mean_gradient(model, images, "torch-ce", 1000)
    assert few.item() > 0
    assert many.item() == 0
    assert unflushed.item() > 0
    assert zero_shares(many) == {"images": share(np.ones(1, dtype=bool)).as_json(), "pixels": _exactly(1.0)}


def _exactly(value: float, n: int = 1) -> dict[str, float | int]:
    return Estimate(value, value, value, n).as_json()


@pytest.mark.filterwarnings("ignore::casemate.errors.CasemateWarning")
@pytest.mark.parametrize("loss", ["torch-ce", "prob-ce"])
def test_a_saturated_network_has_no_gradient(loss: str) -> None:
    """A logit gap of 40 and more: one minus the probability is zero in float32, and the attack moves nothing."""
    model, images = line(1000.0), pixels(0.54, 0.9, 0.99)
    assert zero_shares(mean_gradient(model, images, loss, 1000))["images"] == share(np.ones(3, dtype=bool)).as_json()
    assert trials(model, images).accuracy(changed("batch-mean"), loss) == share(np.ones(3, dtype=bool))
    assert trials(model, images).accuracy(changed("batch-mean"), "ce") == share(np.array([False, True, True]))


def test_zero_pixels_are_counted_per_image() -> None:
    gradient = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    found = zero_shares(gradient)
    assert found["images"] == share(np.array([False, True])).as_json()
    assert (found["pixels"]["value"], found["pixels"]["n"]) == (0.75, 2)


# Two together ---------------------------------------------------------------------------------------------------------
def _estimates(**values: float | None) -> dict[str, Estimate | None]:
    return {name: None if value is None else Estimate(value, value, value, 10) for name, value in values.items()}


def test_the_two_that_raise_accuracy_most_are_chosen_by_their_numbers() -> None:
    found = _estimates(none=0.3, a=0.4, b=0.2, c=0.6, d=0.5, e=None)
    assert best_two(found, "none") == ("c", "d")
    assert best_two(_estimates(none=0.3, a=0.4, b=0.4, c=0.4), "none") == ("a", "b")
    assert best_two(_estimates(none=0.3, a=0.3, b=0.4), "none") is None
    assert best_two(_estimates(none=None, a=0.3, b=0.4), "none") is None


def test_any_two_changes_can_be_combined() -> None:
    """Each changes a condition of its own, to something else than E2's."""
    conditions = [name for each in HYPOTHESES.values() for name in each.change]
    assert len(set(conditions)) == len(conditions) == len(HYPOTHESES) - 1
    assert HYPOTHESES[UNCHANGED].change == {}
    for name in HYPOTHESES:
        assert (changed(name) == E2) == (name == UNCHANGED)
    assert set(E2_CONDITIONS) == set(conditions) == set(vars(E2))


def test_an_attack_that_conditions_share_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, attack, calls = trials(line(4.0), pixels(0.1, 0.45)), tasks.attack_of, list[Mapping[str, Any]]()

    def counted(spec: Mapping[str, Any]) -> Any:
        calls.append(spec)
        return attack(spec)

    monkeypatch.setattr(tasks, "attack_of", counted)
    for conditions in (E2, changed("correct-only"), E2, changed("scaled-images")):
        found.accuracy(conditions, "ce")
    assert [spec["eps"] for spec in calls] == [0.1, 0.05]


# The task -------------------------------------------------------------------------------------------------------------
def _setup(scale: str, **sizes: Any) -> Setup:
    size = replace(SCALES[scale], **sizes)
    return Setup(scale=size, dataset="digits", train_size=1347, test_size=450, seed=0)


def test_every_kept_epoch_has_a_task_but_the_last_whose_weights_are_the_final_ones() -> None:
    source = Source(task="E1/train", weights="final")
    found = {task.name: task for task in hypotheses_tasks(_setup("smoke", epochs=3, kept_epochs=(1, 2, 3)), source)}
    assert {name: task.config["weights"] for name, task in found.items()} == {
        "E2/hypotheses": "final",
        "E2/hypotheses/epoch-001": "epoch-001",
        "E2/hypotheses/epoch-002": "epoch-002",
    }
    assert all(task.needs == {"model": "E1/train"} for task in found.values())
    assert hypotheses_tasks(_setup("quick"), source) == []


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the producer returns for a tiny, untrained network on tiny images."""
    (task,) = hypotheses_tasks(
        _setup("smoke", attacked_images=30, bim_images=30, train_images=60, validation_images=15, kept_epochs=()),
        Source(task="E1/train", weights="final"),
    )
    dataset = Dataset(
        name="digits",
        title="tiny",
        classes=TINY_CLASSES,
        train=tiny_images(90, seed=1),
        test=tiny_images(30, seed=2),
        origin="",
    )
    monkeypatch.setattr(tasks, "classifier_for", lambda *_: tiny_model(3))
    monkeypatch.setattr(tasks, "read", lambda *_: dataset)
    monkeypatch.setattr(tasks, "tested", lambda config, _: dataset.test[: config["images"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CasemateWarning)
        return try_hypotheses(task.config, dict[str, Artifact](), tmp_path, tmp_path, CONTEXT)


def test_the_producer_measures_every_hypothesis_under_every_loss(result: dict[str, Any]) -> None:
    assert list(result["single"]) == list(HYPOTHESES)
    for name, by_loss in result["single"].items():
        assert list(by_loss) == list(LOSSES)
        for estimate in by_loss.values():
            read = Estimate.from_json(estimate)
            assert 0 <= read.low <= read.value <= read.high <= 1
            assert read.n == (30 if name != "correct-only" else round(30 * result["clean"]["test"]["value"]))
    assert {name: each["n"] for name, each in result["clean"].items()} == {"test": 30, "training": 30}
    assert result["flushed"]
    for kind in ("own", "mean"):
        assert all(each["images"]["n"] == each["pixels"]["n"] == 30 for each in result["zero_gradients"][kind].values())


def test_the_combination_is_of_the_two_best_under_that_loss(result: dict[str, Any]) -> None:
    for loss in LOSSES:
        single = {name: by_loss[loss]["value"] for name, by_loss in result["single"].items()}
        above = sorted((name for name in single if single[name] > single[UNCHANGED]), key=lambda name: -single[name])
        combined = result["combined"][loss]
        assert (combined is None) == (len(above) < 2)
        if combined is not None:
            assert combined["hypotheses"] == above[:2]
            assert combined["accuracy"]["n"] > 0


# The report -----------------------------------------------------------------------------------------------------------
def _stored(accuracy: float, n: int = 1000, **others: float) -> dict[str, Any]:
    """What the producer returns where every hypothesis leaves this accuracy under every loss, but `others` (with _ for
    the hyphens of the names), and no combination was tried.
    """

    def estimate(value: float) -> dict[str, float | int]:
        return share(np.arange(n) < round(value * n)).as_json()

    numbers = {name.replace("-", "_"): accuracy for name in HYPOTHESES} | others
    zero = {"images": estimate(0.1), "pixels": estimate(0.2)}
    return {
        "clean": {"test": estimate(0.9), "training": estimate(0.99)},
        "single": {name: dict.fromkeys(LOSSES, estimate(numbers[name.replace("-", "_")])) for name in HYPOTHESES},
        "combined": dict.fromkeys(LOSSES),
        "zero_gradients": {way: dict.fromkeys(LOSSES, zero) for way in ("own", "mean")},
        "flushed": True,
    }


def _artifacts(folder: Path, **results: dict[str, Any]) -> dict[str, Artifact]:
    """Finished artifacts by the epoch's name ("final", "epoch_010")."""
    found: dict[str, Artifact] = {}
    for epoch, result in results.items():
        name = PREFIX if epoch == "final" else f"{PREFIX}/{epoch.replace('_', '-')}"
        found[name] = Artifact("0" * 20, folder, {"name": name, "result": result})
    return found


def _trained(folder: Path, epochs: int) -> Artifact:
    """A training of E1 that says how many epochs it had."""
    row = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5, "learning_rate": 0.1, "seconds": 1.0}
    sizes = {"parameters": 10, "train_images": 100, "validation_images": 10}
    history = [row | {"epoch": epoch, "processor_seconds": None} for epoch in range(1, epochs + 1)]
    result = sizes | {"best_epoch": 1, "stopped_at": None, "history": history}
    return Artifact("0" * 20, folder, {"name": "E1/train", "result": result})


def test_the_trials_that_give_the_paper_s_number_are_those_whose_interval_includes_it(tmp_path: Path) -> None:
    results = {"final": _stored(0.3, scaled_images=0.64), "epoch_010": _stored(0.5, none=0.62)}
    artifacts = _artifacts(tmp_path, **results)
    found = [(trial.hypotheses, trial.epoch, trial.loss) for trial in explaining_trials(artifacts)]
    assert found == [
        *((("none",), 10, loss) for loss in LOSSES),
        *((("scaled-images",), None, loss) for loss in LOSSES),
    ]
    assert explaining_trials(_artifacts(tmp_path, final=_stored(0.3, none=0.636))) == []
    assert explaining_trials({}) == []


def test_the_section_ends_in_what_explains_the_number_or_in_unexplained(tmp_path: Path) -> None:
    assert hypotheses_section({}) is None
    assert hypotheses_section(_artifacts(tmp_path, epoch_010=_stored(0.5))) is None
    section = hypotheses_section(_artifacts(tmp_path, final=_stored(0.3)))
    assert section is not None
    count = len(HYPOTHESES) * len(LOSSES)
    assert section.conclusion == (
        f"None of the {count} measures (hypotheses and pairs, losses, epochs) reproduces the paper's 63.6 % (section "
        "4.1.1): unexplained."
    )
    both = {"hypotheses": ["training-images", "predicted-label"], "accuracy": share(np.arange(1000) < 630).as_json()}
    result = _stored(0.3) | {"combined": {"ce": both, "torch-ce": None, "prob-ce": None}}
    section = hypotheses_section(_artifacts(tmp_path, final=result))
    assert section is not None
    assert section.conclusion.startswith(f"Of the {count + 1} measures (hypotheses and pairs, losses, epochs) 1 has an")
    assert "images of the training split; the loss of the predicted class" in section.conclusion
    assert "63.0 % (60.0 to 65.9, n = 1,000)" in section.conclusion


def test_the_tables_have_every_hypothesis_loss_and_epoch(tmp_path: Path) -> None:
    results = {"final": _stored(0.3, scaled_images=0.64), "epoch_010": _stored(0.5, correct_only=0.6)}
    artifacts = _artifacts(tmp_path, **results)
    assert hypotheses_section(artifacts) is not None
    artifacts["E1/train"] = _trained(tmp_path, 20)
    section = hypotheses_section(artifacts)
    assert section is not None
    final, epochs, zero = section.tables
    assert [row[0] for row in final.rows] == [f"{n}. {each.title}" for n, each in enumerate(HYPOTHESES.values(), 1)]
    assert {len(row) for row in final.rows} == {len(final.head)} == {1 + len(LOSSES)}
    assert final.rows[0][1] == "30.0 % (27.2 to 32.9, n = 1,000)"
    including = {row[0]: row[1] for row in final.rows if "includes" in row[1]}
    assert including == {numbered("scaled-images"): "64.0 % (61.0 to 66.9, n = 1,000), includes 63.6 %"}
    assert [row[0] for row in epochs.rows] == ["10", "20"]
    assert epochs.rows[0][1].startswith("90.0 % (")
    assert [cell[:6] for row in epochs.rows for cell in row[2:5]] == ["50.0 %"] * 3 + ["30.0 %"] * 3
    assert epochs.rows[0][5:] == ("6: 60.0 % (56.9 to 63.0)",) * len(LOSSES)
    assert epochs.rows[1][5:] == ("5: 64.0 % (61.0 to 66.9), includes 63.6 %",) * len(LOSSES)
    assert "n = 1,000; fewer with hypothesis 6." in epochs.note
    assert len(zero.rows) == 4
    assert {row[1][:6] for row in zero.rows} == {"10.0 %", "20.0 %"}


def test_the_figure_has_a_line_of_every_hypothesis_and_of_the_pair_over_the_epochs(tmp_path: Path) -> None:
    both = {"hypotheses": ["training-images", "scaled-images"], "accuracy": share(np.arange(1000) < 630).as_json()}
    last = _stored(0.3) | {"combined": {"ce": both, "torch-ce": None, "prob-ce": None}}
    artifacts = _artifacts(tmp_path, final=last, epoch_010=_stored(0.5, none=0.62))
    assert hypotheses_figure(artifacts) is None  # how long the final weights were trained is not known
    artifacts["E1/train"] = _trained(tmp_path, 20)
    with styled():
        figure = hypotheses_figure(artifacts)
    assert figure is not None
    assert {(row[0], row[1]) for row in figure.rows} == {(n, TITLES[loss]) for n in (10, 20) for loss in LOSSES}
    assert len(figure.rows) == 2 * len(HYPOTHESES) * len(LOSSES) + 1
    pair = "images of the training split; eps 0.1 on images scaled to [-1, 1], which is 0.05 here"
    assert [row[3:5] for row in figure.rows if row[2] == pair] == [(1000, 0.63)]
    assert f"{pair} after epoch 20, ascending stable cross-entropy: 63.0 %" in figure.alt
