"""What decides between epochs: the monitor of robust accuracy, the guard against collapses, averages of weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.data import UNLABELLED, keep_labels
from casemate.defenses import TRADES, AdversarialTraining, SeveralNorms
from casemate.errors import ModelError, SettingError, ShapeError, TrainingError
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.training import (
    CrossEntropy,
    Objective,
    PreparedObjective,
    SteppedObjective,
    TrainConfig,
    TrainingStep,
    TrainResult,
    fit,
    training_seconds,
)
from casemate.training.guard import commonest_share, has_collapsed
from casemate.training.objective import balls_of
from casemate.training.robust import withstand
from casemate.training.state import snapshot
from casemate.types import Images, Labels, Logits
from conftest import tiny_images, tiny_model
from oracles import linear_problem, room, steepest_descent
from test_train import EXTRA_STATE, counting

TRAIN, VALIDATION = tiny_images(120, 1), tiny_images(60, 2)
STEEP = TrainConfig(epochs=4, batch_size=30, optimizer="sgd", learning_rate=0.05, seed=1)
SETTINGS = TrainConfig(epochs=4, batch_size=30, learning_rate=0.01, seed=1)
PGD = AdversarialTraining(eps=0.08, steps=3)


@final
@dataclass(frozen=True, kw_only=True)
class Breaks:
    """Ordinary training that in some calls trains on wrong labels, and thereby destroys the network."""

    at: tuple[int, ...]
    calls: list[int] = field(default_factory=list, compare=False, repr=False)
    per_epoch: int = 4

    @property
    def ball(self) -> Ball:
        return Ball(eps=0.03, norm="linf")

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        epoch = len(self.calls) // self.per_epoch + 1
        self.calls.append(epoch)
        logits = model(images)
        wrong = (labels + 1) % 3 if epoch in self.at else labels
        return (20 if epoch in self.at else 1) * F.cross_entropy(logits, wrong), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        return CrossEntropy().validate(model, images, labels)


def robust_accuracies(done: TrainResult) -> list[float]:
    return [row["val_robust_accuracy"] for row in done.history]


# ----------------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("eps", [0.01, 0.02])
def test_withstanding_agrees_with_the_closed_form_of_a_linear_network(eps: float) -> None:
    problem = linear_problem(3)
    falls = steepest_descent(problem.slope, room(problem.images.flatten(1).double(), problem.slope), "linf", eps)
    margins = problem.margin(problem.images)
    clear = (margins - falls).abs() > 1e-4
    stands = withstand(problem.model, problem.images, problem.labels, (Ball(eps=eps, norm="linf"),), seed=0)
    assert torch.equal(stands[clear], (margins > falls)[clear])
    assert 0 < stands.sum() < len(stands)


def test_an_image_withstands_all_balls_or_does_not_count() -> None:
    model = fit(tiny_model(), TRAIN, VALIDATION, SETTINGS).model
    images, labels = VALIDATION.tensors()
    linf, l2 = Ball(eps=0.1, norm="linf"), Ball(eps=0.7, norm="l2")
    each = [withstand(model, images, labels, (ball,), seed=0) for ball in (linf, l2)]
    both = withstand(model, images, labels, (linf, l2), seed=0)
    right = model(images).argmax(1) == labels
    assert not (both & ~right).any()
    assert (both <= each[0]).all()
    assert both.sum() <= min(int(one.sum()) for one in each)
    assert 0 < each[0].sum() < right.sum()


def test_the_draws_belong_to_the_images_not_to_the_batch() -> None:
    model = fit(tiny_model(), TRAIN, VALIDATION, SETTINGS).model
    images, labels = VALIDATION.tensors()
    ball = (Ball(eps=0.05, norm="linf"),)
    whole = withstand(model, images, labels, ball, seed=4)
    halves = [
        withstand(model, images[part], labels[part], ball, seed=4, first=part.start)
        for part in (slice(0, 25), slice(25, 60))
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_the_balls_of_an_objective() -> None:
    assert balls_of(PGD, "x") == (PGD.ball,)
    assert balls_of(SeveralNorms(), "x") == SeveralNorms().balls
    with pytest.raises(SettingError, match="a guard with the objective CrossEntropy, which has no ball"):
        balls_of(CrossEntropy(), "a guard")


# --------------------------------------------------------------------------------------------------------- the monitor


def test_the_history_has_robust_accuracy_where_it_decides() -> None:
    done = fit(tiny_model(), TRAIN, VALIDATION, replace(SETTINGS, monitor="robust-accuracy"), objective=PGD)
    images, labels = VALIDATION.tensors()
    stands = withstand(done.model, images, labels, (PGD.ball,), seed=SETTINGS.seed)
    assert robust_accuracies(done)[-1] == pytest.approx(stands.double().mean().item())
    assert 0 < robust_accuracies(done)[-1] < done.history[-1]["val_accuracy"]
    plain = fit(tiny_model(), TRAIN, VALIDATION, SETTINGS, objective=PGD)
    assert "val_robust_accuracy" not in plain.history[0]
    for one, other in zip(snapshot(plain.model).values(), snapshot(done.model).values(), strict=True):
        assert torch.equal(one, other)  # measuring changes nothing in the training


def test_the_best_epoch_is_the_one_of_the_highest_robust_accuracy() -> None:
    breaks = Breaks(at=(3, 4))
    settings = replace(STEEP, monitor="robust-accuracy", keep_best=True)
    done = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=breaks)
    found = robust_accuracies(done)
    assert done.best_epoch == 1 + max(range(4), key=lambda epoch: found[epoch])
    assert done.epoch == done.best_epoch < 3
    assert len(done.history) == 4
    for name, tensor in snapshot(done.model).items():
        assert torch.equal(tensor, done.best[name])


@pytest.mark.parametrize("change", [{"monitor": "robust-accuracy"}, {"guard": True}])
def test_an_objective_without_a_ball_is_refused_before_training(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="which has no ball to measure robustness in"):
        fit(tiny_model(), TRAIN, VALIDATION, replace(SETTINGS, **change))


# ----------------------------------------------------------------------------------------------------------- the guard


def test_the_guard_undoes_an_epoch_that_destroys_the_network() -> None:
    without = fit(tiny_model(), TRAIN, VALIDATION, replace(STEEP, monitor="robust-accuracy"), objective=Breaks(at=(3,)))
    assert robust_accuracies(without)[2] < 0.5 * robust_accuracies(without)[1]
    guarded = fit(tiny_model(), TRAIN, VALIDATION, replace(STEEP, guard=True), objective=Breaks(at=(3,)))
    assert [row["rolled_back"] for row in guarded.history] == [False, False, True, False]
    assert robust_accuracies(guarded)[3] > 0.9 * robust_accuracies(guarded)[1]
    rates = [row["learning_rate"] for row in guarded.history]
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.025])


@pytest.mark.parametrize("change", [{}, {"ema": 0.99}, {"swa_start": 0.0}])
def test_after_a_collapse_in_the_last_epoch_the_weights_are_those_before_it(change: dict[str, Any]) -> None:
    """The guard watches the weights themselves: their average would hide the collapse, and keep it."""
    settings = replace(STEEP, guard=True, save_epochs=(2, 3), epochs=3, **change)
    done = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=Breaks(at=(3,)))
    assert [row["rolled_back"] for row in done.history] == [False, False, True]
    assert done.history[2]["guard_accuracy"] < 0.6 * done.history[1]["guard_accuracy"]
    assert done.epoch == 2
    for name, tensor in snapshot(done.model).items():
        assert torch.equal(tensor, done.kept[2][name]), name
        assert torch.equal(tensor, done.kept[3][name]), name


@pytest.mark.parametrize(
    ("now", "best", "images", "collapsed"),
    [
        (0.01, 0.02, 100, False),  # one image of a hundred
        (0.05, 0.09, 10_000, False),  # guessing is right in a tenth
        (0.0, 0.5, 20, True),
        (0.0, 0.5, 5, False),  # two or three images
        (0.30, 0.44, 200, False),  # within three standard errors
        (0.30, 0.46, 200, True),
        (0.70, 0.75, 6000, False),  # a significant fall, but an ordinary one
        (0.5, 0.5, 1, False),
        (0.8, 0.5, 1000, False),
    ],
)
def test_what_a_collapse_is(now: float, best: float, images: int, collapsed: bool) -> None:
    assert has_collapsed(now, best, images=images, guessing=0.1) is collapsed


def test_the_guard_judges_the_first_epoch_of_a_warm_start() -> None:
    model = fit(tiny_model(), TRAIN, VALIDATION, STEEP).model
    before = snapshot(model)
    breaks = Breaks(at=(1,))
    done = fit(model, TRAIN, VALIDATION, replace(STEEP, guard=True, epochs=2), objective=breaks)
    assert [row["rolled_back"] for row in done.history] == [True, False]
    assert done.epoch == 2

    model.load_state_dict(before)
    with pytest.raises(TrainingError, match="the guard undid every epoch: robust accuracy fell each time from"):
        fit(model, TRAIN, VALIDATION, replace(STEEP, guard=True, epochs=1), objective=Breaks(at=(1,)))
    for name, tensor in snapshot(model).items():
        assert torch.equal(tensor, before[name]), name


def test_a_first_epoch_that_is_no_better_than_guessing_does_not_end_the_training() -> None:
    settings = replace(STEEP, guard=True, epochs=6)
    done = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=Breaks(at=(1,)))
    assert not any(row["rolled_back"] for row in done.history)
    assert done.history[-1]["guard_accuracy"] > done.history[0]["guard_accuracy"] + 0.2


def test_what_a_constant_prediction_withstands_is_guessing_where_one_class_is_common() -> None:
    """Ninety of a hundred validation images have one label, which the network predicts for every image at first."""
    rare = [place for label in (0, 2) for place in (VALIDATION.labels == label).nonzero().flatten()[:3].tolist()]
    common = (VALIDATION.labels == 1).nonzero().flatten()
    validation = VALIDATION[torch.cat([common.repeat(3)[:54], torch.tensor(rare)])]
    assert commonest_share(validation.labels, 3) == 0.9
    assert commonest_share(VALIDATION.labels[VALIDATION.labels > 0], 10) == pytest.approx(0.5, abs=0.1)
    assert commonest_share(torch.arange(4), 3) == 1 / 3

    model = tiny_model()
    with torch.no_grad():
        last = model.network[-1]  # type: ignore[index]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    settings = replace(STEEP, guard=True, epochs=2)
    done = fit(model, TRAIN, validation, settings, objective=Breaks(at=(1,)))
    assert done.history[0]["guard_accuracy"] < 0.6
    assert not done.history[0]["rolled_back"]


def test_an_epoch_that_is_undone_takes_its_extra_state_with_it() -> None:
    model = fit(counting(), TRAIN, VALIDATION, STEEP).model
    assert model.state_dict()[EXTRA_STATE]["seen"] == 4 * len(TRAIN)
    done = fit(model, TRAIN, VALIDATION, replace(STEEP, guard=True, epochs=2, ema=0.5), objective=Breaks(at=(1,)))
    assert [row["rolled_back"] for row in done.history] == [True, False]
    assert model.state_dict()[EXTRA_STATE]["seen"] == 5 * len(TRAIN)


def test_patience_does_not_count_epochs_that_were_undone() -> None:
    settings = replace(STEEP, guard=True, epochs=5, patience=1)
    done = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=Breaks(at=(3,)))
    assert [row["rolled_back"] for row in done.history][:3] == [False, False, True]
    assert len(done.history) > 3


def test_the_even_average_does_not_count_steps_that_were_undone() -> None:
    settings = TrainConfig(epochs=8, swa_start=0.75)  # from step 25 of 32 on
    assert [settings.decay(step, 4) for step in (24, 25, 26, 27, 28)] == pytest.approx([0, 0, 1 / 2, 2 / 3, 3 / 4])
    assert settings.decay(29, 4, undone=[7]) == 0  # the first of the eighth epoch is the first that counts
    assert settings.decay(30, 4, undone=[3, 7]) == pytest.approx(1 / 2)


def test_a_guarded_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    def train(breaks: Breaks, stop_at: int | None = None) -> TrainResult:
        def stop(layer: nn.Module, given: Any) -> None:
            del given
            if layer.training and len(breaks.calls) == stop_at:
                raise InterruptedError

        model = tiny_model()
        model.network.register_forward_pre_hook(stop)  # in all runs, since networks with hooks are not optimised
        settings = replace(STEEP, guard=True, epochs=5)
        return fit(model, TRAIN, VALIDATION, settings, objective=breaks, checkpoint=tmp_path / f"{id(breaks)}")

    whole, breaks = train(Breaks(at=(3,))), Breaks(at=(3,))
    with pytest.raises(ModelError, match="InterruptedError"):
        train(breaks, stop_at=14)
    del breaks.calls[12:]  # the epoch that was interrupted begins again
    again = train(breaks)
    assert [row["rolled_back"] for row in again.history] == [row["rolled_back"] for row in whole.history]
    assert whole.history[2]["rolled_back"]
    for one, other in zip(snapshot(whole.model).values(), snapshot(again.model).values(), strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------------------ even averages


def test_the_even_average_is_the_mean_of_the_weights_after_each_step() -> None:
    settings = replace(SETTINGS, epochs=2, swa_start=0.5, optimizer="sgd")
    seen = list[Tensor]()

    @final
    class Records:
        """Cross-entropy that keeps the weights that it is called with."""

        def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
            if model.training:
                seen.append(next(model.parameters()).detach().clone())
            return CrossEntropy()(model, images, labels)

        validate = staticmethod(CrossEntropy().validate)

    plain = fit(tiny_model(), TRAIN, VALIDATION, replace(settings, swa_start=None), objective=Records())
    last = next(plain.model.parameters()).detach()
    done = fit(tiny_model(), TRAIN, VALIDATION, settings)
    mean = torch.stack([*seen[5:], last]).mean(0)  # after steps 5 to 8, of 8
    torch.testing.assert_close(next(done.model.parameters()).detach(), mean)
    assert not torch.allclose(mean, last)


def test_two_averages_or_two_ways_to_the_best_epoch_are_refused() -> None:
    with pytest.raises(SettingError, match="ema and swa_start"):
        TrainConfig(ema=0.9, swa_start=0.5)
    with pytest.raises(SettingError, match="keep_best with patience"):
        TrainConfig(keep_best=True, patience=3)


# ------------------------------------------------------------------------------- what objectives may know or do without


@final
@dataclass(frozen=True)
class Knows:
    """Records what it learns of the training; learns without labels."""

    takes_unlabelled = True
    steps: list[TrainingStep] = field(default_factory=list, repr=False)
    prepared: list[int] = field(default_factory=list, repr=False)

    def prepared_for(self, train: Any) -> "Knows":
        self.prepared.append(len(train))
        return self

    def at_step(self, step: TrainingStep) -> Objective:
        self.steps.append(step)
        return self

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        index = self.steps[-1].index
        assert torch.equal(images, TRAIN.tensors()[0][index])
        logits = model(images)
        return F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / len(labels), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        return CrossEntropy().validate(model, images, labels)


def test_an_objective_learns_the_step_its_images_and_all_of_them_before() -> None:
    objective = Knows()
    assert isinstance(objective, SteppedObjective)
    assert isinstance(objective, PreparedObjective)
    fit(tiny_model(), TRAIN, VALIDATION, replace(SETTINGS, epochs=2), objective=objective)
    assert objective.prepared == [120]
    assert [each.done for each in objective.steps] == pytest.approx([step / 8 for step in range(8)])
    assert sorted(torch.cat([each.index for each in objective.steps[:4]]).tolist()) == list(range(120))


def test_an_estimate_looks_at_an_objective_that_changes_at_several_times() -> None:
    """Linear bounds, among others, are computed during the first part of a training only."""
    objective = Knows()
    assert training_seconds(tiny_model(), objective, SETTINGS, TRAIN, VALIDATION) > 0
    assert objective.prepared == [120]
    done = [each.done for each in objective.steps]
    assert min(done) < 0.2
    assert max(done) > 0.8
    assert done == pytest.approx([1 - each for each in reversed(done)])


def test_unlabelled_images_are_accepted_where_the_objective_learns_without_and_not_counted() -> None:
    labels = TRAIN.labels.clone()
    labels[30:] = UNLABELLED
    some = replace(TRAIN, labels=labels)
    done = fit(tiny_model(), some, VALIDATION, replace(SETTINGS, epochs=15), objective=Knows())
    assert done.history[-1]["accuracy"] > 0.9  # of the 30 with a label
    with pytest.raises(ShapeError, match=r"training images without labels \(-1\); .* only objectives that learn"):
        fit(tiny_model(), some, VALIDATION, SETTINGS)
    with pytest.raises(ShapeError, match=r"validation images without labels \(-1\)"):
        fit(tiny_model(), TRAIN, some, SETTINGS, objective=Knows())


def test_trades_and_the_monitor_work_for_a_network_of_ones_own() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    done = fit(
        network, TRAIN, VALIDATION, replace(SETTINGS, monitor="robust-accuracy"), objective=TRADES(eps=0.05, steps=2)
    )
    assert done.history[-1]["val_robust_accuracy"] > 0.5


def test_labels_are_kept_for_a_sample_that_is_repeated() -> None:
    some = keep_labels(TRAIN, 6, 0)
    known = some.labels != UNLABELLED
    assert int((~known).sum()) == 114
    assert int(known.sum()) == 6 * 5  # a fifth of all, nearly
    assert [int((some.labels == label).sum()) for label in range(3)] == [10, 10, 10]
    assert len({bytes(each.numpy().tobytes()) for each in some.pixels[known]}) == 6
    assert keep_labels(TRAIN, 120, 0) is TRAIN
    half = keep_labels(TRAIN, 60, 0)
    assert int((half.labels != UNLABELLED).sum()) == 60
