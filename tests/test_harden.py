"""Hardening: three models on the same images, an honest sentence, steps that are kept, and what is refused."""

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import casemate
from casemate.attacks import PGD
from casemate.cli.harden.request import HardenImages
from casemate.cli.harden.run import _test_words
from casemate.cli.shared.options import Reading
from casemate.data import UNLABELLED, LabelledImages
from casemate.data.augment import AlternatingFlip, Shift
from casemate.data.noise import GaussianNoise
from casemate.defenses import TRADES, AdversarialTraining, Recipe, RobustDistillation
from casemate.errors import CasemateError, DataError, EvaluationError, ModelError, SettingError, ShapeError
from casemate.evaluation import Finding, Severity, Verdict, evaluate
from casemate.evaluation.verdict import verdict_on
from casemate.hardening import (
    FINE_TUNING,
    HARDENING_RECIPES,
    ComparedModel,
    Hardened,
    HardeningPlan,
    harden,
    hardening_recipe,
    hardening_seconds,
    plan_hardening,
    run_hardening,
)
from casemate.hardening import plan as plan_module
from casemate.hardening import run as run_module
from casemate.hardening.compared import FineTuning
from casemate.hardening.selection import SelectedByRobustness
from casemate.models import Classifier, ModelMetadata, load, save
from casemate.report.folder import check_replaceable
from casemate.training import CrossEntropy, TrainConfig, fit
from casemate.training.state import Weights, snapshot
from conftest import TINY_CLASSES, Listener, tiny_images, tiny_model
from oracles import as_installed, untyped
from published import problems
from test_monitor import Breaks
from test_study import Run, runner
from test_train import EXTRA_STATE, counting

EPS = "0.1"
SHORT = replace(FINE_TUNING, epochs=2, batch_size=32)
TRAIN, TEST = tiny_images(200, 3), tiny_images(60, 4)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A trained network as a user has it: bare, with batch normalisation and dropout, in evaluation mode."""
    model = tiny_model()
    fit(model, tiny_images(300, 1), tiny_images(60, 2), TrainConfig(epochs=5, learning_rate=5e-3))
    return model.network.eval()


@pytest.fixture(scope="module")
def cheap() -> Iterator[None]:
    """Evaluations run one short attack."""
    with pytest.MonkeyPatch.context() as patch:
        attack = PGD(eps=0.1, steps=5)
        patch.setattr("casemate.hardening.run.evaluate", partial(evaluate, attacks=attack))
        yield


@pytest.fixture(scope="module")
def hardened(network: nn.Module, cheap: None) -> Hardened:
    return harden(network, TRAIN, test=TEST, eps=EPS, settings=SHORT)


def _weights(found: Hardened) -> dict[str, Weights]:
    return {name: snapshot(each.model) for name, each in found.models.items()}


def _same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


# --- what a hardening is -----------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.slow
def test_it_helps_and_says_so(network: nn.Module) -> None:
    """Adversarial training gives what ordinary training lacks, on images whose classes are further apart than 2 eps."""
    train, test = tiny_images(400, 3), tiny_images(150, 4)
    found = harden(network, train, test=test, eps="0.15", budget="quick", settings=replace(SHORT, epochs=8))
    assert found.helped == {"hardened": True}, found.summary()
    assert found.conclusion.startswith("Hardening helped: robust accuracy at eps 0.15 went from ")
    assert found.compare("before", "hardened").robust.difference.low > 0
    assert found.best.robust.value > found.control.robust.value


def test_all_models_share_images_seed_and_start(hardened: Hardened) -> None:
    assert list(hardened.models) == ["before", "control", "hardened"]
    hashes = {each.evaluation["seed"] for each in hardened.models.values()}
    assert hashes == {0}
    for each in hardened.models.values():
        assert len(each.correct) == len(each.withstood) == len(TEST)
        assert (each.correct | ~each.withstood).all()
        assert each.evaluation["images"] == len(TEST)
        assert not any(module.training for module in each.model.modules())
    assert hardened.before.training is None
    assert len(hardened.control.training.history) == len(hardened.best.training.history) == SHORT.epochs  # type: ignore[union-attr]


def test_the_numbers_are_those_of_the_models(hardened: Hardened) -> None:
    """What is stated of each model is what the model that is returned does."""
    pixels, labels = TEST.tensors()
    for each in hardened.models.values():
        with torch.no_grad():
            right = each.model(pixels).argmax(1) == labels
        assert np.array_equal(each.correct, right.numpy())
        again = PGD(eps=0.1, steps=5)(each.model, pixels, labels)
        assert abs(again.robust_accuracy - each.robust.value) < 0.05


def test_the_users_network_does_not_change(network: nn.Module, cheap: None) -> None:
    network.train()
    before = snapshot(network)
    draws = torch.get_rng_state()
    found = harden(network, TRAIN, test=TEST, eps=EPS, settings=replace(SHORT, epochs=1))
    assert _same(snapshot(network), before)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), draws)
    network.eval()
    assert _same(snapshot(found.before.model.network), before)
    assert not _same(snapshot(found.model.network), before)
    assert not _same(snapshot(found.control.model.network), snapshot(found.model.network))


def test_the_epoch_is_the_first_of_the_highest_robust_validation_accuracy(hardened: Hardened) -> None:
    for each in (hardened.control, hardened.best):
        assert each.training is not None
        robust = [row["val_robust"] for row in each.training.history]
        assert each.training.epoch == 1 + int(np.argmax(robust))
        assert each.training.robust == max(robust)


@pytest.mark.integration
def test_the_kept_weights_are_those_of_the_chosen_epoch(network: nn.Module, cheap: None) -> None:
    """A rate that ruins the network after the first epoch: the weights that are kept are not the last ones."""
    settings = replace(SHORT, schedule=lambda done: 0.01 if done < 0.5 else 300.0, ema=None, weight_decay=0.0)
    plan = plan_hardening(network, TRAIN, test=TEST, eps=EPS, settings=settings)
    found = run_hardening(plan)
    kept = found.best
    assert kept.training is not None
    assert kept.training.epoch == 1
    robust, clean = plan.selected(CrossEntropy()).accuracies(kept.model, plan.parts.validation)
    assert robust == pytest.approx(kept.training.history[0]["val_robust"])
    assert clean == pytest.approx(kept.training.history[0]["val_accuracy"])


@pytest.mark.integration
def test_test_images_choose_nothing(hardened: Hardened, network: nn.Module, cheap: None) -> None:
    other = harden(network, TRAIN, test=tiny_images(40, 9), eps=EPS, settings=SHORT)
    for name, weights in _weights(other).items():
        assert _same(weights, _weights(hardened)[name])


def test_the_attack_that_selects_is_the_same_in_every_epoch(network: nn.Module) -> None:
    model, rule = Classifier(network), SelectedByRobustness(objective=CrossEntropy(), eps=0.1)
    torch.manual_seed(1)
    first = rule.accuracies(model, TEST)
    torch.manual_seed(2)
    assert rule.accuracies(model, TEST) == first
    robust, clean = first
    attacked = PGD(eps=0.1, steps=10)(model, *TEST.tensors())
    assert robust == pytest.approx(attacked.robust_accuracy, abs=0.05)
    with torch.no_grad():
        assert clean == pytest.approx((model(TEST.tensors()[0]).argmax(1) == TEST.labels).float().mean().item())


@pytest.mark.integration
@pytest.mark.slow
def test_each_recipe_makes_a_model(network: nn.Module, cheap: None) -> None:
    needs = {"several-norms": {"eps_l2": 1.0}}
    recipes = {
        name: hardening_recipe(name, 0.1, "linf", (0.0, 1.0), needs.get(name), tiny_model(5))
        for name in HARDENING_RECIPES
    }
    found = harden(network, TRAIN, test=TEST, eps=EPS, settings=replace(SHORT, epochs=1), recipe=recipes)
    assert list(found.models) == ["before", "control", *HARDENING_RECIPES]
    assert set(found.helped) == set(HARDENING_RECIPES)
    assert all(f"Hardening by {name} " in found.conclusion for name in HARDENING_RECIPES)
    assert len(found.comparisons) == 2 * len(HARDENING_RECIPES) + 1
    assert found.best.name in HARDENING_RECIPES
    own = {"virtual-adversarial", "graph-regularization"}  # these have lengths of their own
    assert all(repr(0.1) in text for name, text in found.plan["recipes"].items() if name not in own)


def test_the_guard_watches_what_may_collapse_and_never_the_control(network: nn.Module) -> None:
    plan = plan_hardening(network, TRAIN, test=TEST, eps=EPS, recipe=["fgsm-rs", "n-fgsm", "trades"], settings=SHORT)
    assert {name: plan.settings_of(name).guard for name in plan.trainings} == {
        "control": False,
        "fgsm-rs": True,
        "n-fgsm": True,
        "trades": False,
    }
    assert plan.about()["guarded"] == ["fgsm-rs", "n-fgsm"]


@pytest.mark.integration
def test_a_collapse_is_undone_and_stated(
    network: nn.Module, cheap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "needs_guard", lambda objective: isinstance(objective, Breaks))
    settings = replace(SHORT, epochs=3, ema=None, learning_rate=0.05, schedule="constant")
    breaks = Recipe(objective=Breaks(at=(2,), per_epoch=5))
    found = harden(network, TRAIN, test=TEST, eps=EPS, recipe=breaks, settings=settings)
    training = found.models["hardened"].training
    assert training is not None
    assert [row["rolled_back"] for row in training.history] == [False, True, False]
    assert training.epoch != 2
    assert any("the guard undid epoch 2 of hardened" in note for note in found.notes)
    control = found.models["control"].training
    assert control is not None
    assert "rolled_back" not in control.history[0]
    found.report(tmp_path)
    assert problems(json.loads((tmp_path / "harden.json").read_text())) == []


@pytest.mark.integration
def test_names_of_recipes_may_be_given_names_too(network: nn.Module) -> None:
    planned = plan_hardening(network, TRAIN, test=TEST, eps=EPS, recipe={"one": "trades", "two": Recipe()})
    trades = planned.recipes["one"].objective
    assert (type(trades), trades.eps) == (TRADES, 0.1)  # type: ignore[attr-defined]
    assert planned.recipes["two"] == Recipe()


def test_own_recipes_have_the_names_that_they_are_given(network: nn.Module, cheap: None) -> None:
    recipes = {
        name: Recipe(objective=AdversarialTraining(eps=0.1, steps=steps)) for name, steps in (("one", 1), ("three", 3))
    }
    found = harden(network, TRAIN, test=TEST, eps=EPS, settings=replace(SHORT, epochs=1), recipe=recipes)
    assert list(found.models) == ["before", "control", "one", "three"]


def test_images_are_set_aside_and_notes_say_so(network: nn.Module) -> None:
    plan = plan_hardening(network, TRAIN, eps=EPS)
    parts = plan.parts
    assert [len(each) for each in (parts.train, parts.validation, parts.test)] == [120, 40, 40]
    whole = torch.cat([each.pixels for each in (parts.train, parts.validation, parts.test)]).flatten(1)
    assert len(whole.unique(dim=0)) == len(TRAIN.pixels.flatten(1).unique(dim=0))
    assert "set aside from the images given" in parts.notes[0]
    assert plan_hardening(network, TRAIN, test=TEST, eps=EPS).parts.notes == ()
    leaked = LabelledImages(
        pixels=torch.cat([TEST.pixels, TRAIN.pixels[:7]]), labels=torch.cat([TEST.labels, TRAIN.labels[:7]])
    )
    (note,) = plan_hardening(network, TRAIN, test=leaked, eps=EPS).parts.notes
    assert note.startswith("7 of the 67 test images are also among the images to train on")
    assert len(plan_hardening(network, TRAIN, test=TEST, images=30, eps=EPS).parts.test) == 30


def _plan_unlabelled(network: nn.Module, unlabelled: Any, *recipes: str) -> HardeningPlan:
    return plan_hardening(
        network, TRAIN, test=TEST, unlabelled=unlabelled, eps=EPS, recipe=recipes, settings=replace(SHORT, epochs=1)
    )


def test_images_without_labels_are_for_recipes_that_learn_from_them(network: nn.Module) -> None:
    others = tiny_images(130, 8)
    plan = _plan_unlabelled(network, others, "trades", "virtual-adversarial")
    taken = {name: plan.parts.train_of(recipe.objective) for name, recipe in plan.trainings.items()}
    assert taken["control"] is taken["trades"] is plan.parts.train
    more = taken["virtual-adversarial"]
    unknown = more.labels == UNLABELLED
    assert torch.equal(more.pixels[unknown], others.pixels)
    assert torch.equal(more.pixels[~unknown], plan.parts.train.pixels)
    assert torch.equal(more.labels[~unknown], plan.parts.train.labels)
    about = plan.about()
    assert (about["train_images"], about["unlabelled_images"]) == (len(plan.parts.train), 130)
    assert plan.parts.notes == (
        "130 images without labels: used by virtual-adversarial only, whose epochs have more images than those of the "
        "control and trades",
    )
    for alike in (others.pixels, others.pixels.numpy(), list(others.pixels)):
        assert _plan_unlabelled(network, alike, "trades", "virtual-adversarial").about() == about
    assert set(hardening_seconds(plan)) == {"control", "trades", "virtual-adversarial", "evaluations, at most"}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (tiny_images(9, 8).pixels[:0], SettingError, "no images without labels; expected some, or None instead"),
        (tiny_images(9, 8).pixels[:, :, :4], ShapeError, "unlabelled images of shape"),
        (tiny_images(9, 8).pixels.float(), ShapeError, "unlabelled"),
        (tiny_images(9, 8).pixels[0, 0, 0, 0], DataError, "images of type"),
        ("photos", DataError, "unlabelled images are"),
    ],
)
def test_images_without_labels_that_do_not_fit_are_errors(
    network: nn.Module, given: Any, error: type[CasemateError], words: str
) -> None:
    with as_installed(), pytest.raises(error, match=words):
        _plan_unlabelled(network, given, "virtual-adversarial")


def test_images_without_labels_for_no_recipe_are_an_error(network: nn.Module) -> None:
    with pytest.raises(SettingError, match="9 images without labels, but no recipe here learns without labels; ") as no:
        _plan_unlabelled(network, tiny_images(9, 8), "trades", "mart")
    takes = "adversarial-regularization, robust-distillation, virtual-adversarial, graph-regularization"
    assert f"expected one of {takes}, or" in str(no.value)


def test_test_images_without_labels_are_leaked_too(network: nn.Module) -> None:
    """Also as numbers of another type."""
    for leaked in (TEST[:7], TEST.tensors()[0][:7]):
        first, second = _plan_unlabelled(network, leaked, "virtual-adversarial").parts.notes
        assert first.startswith("7 of the 60 test images are also among the images to train on")
        assert second.startswith("7 images without labels: used by hardened only")


@pytest.mark.integration
def test_images_without_labels_change_the_recipe_and_not_the_control(
    network: nn.Module, cheap: None, tmp_path: Path
) -> None:
    plain, more = (
        run_hardening(_plan_unlabelled(network, each, "virtual-adversarial", "adversarial-training"))
        for each in (None, tiny_images(130, 8))
    )
    assert {name: _same(each, _weights(more)[name]) for name, each in _weights(plain).items()} == {
        "before": True,
        "control": True,
        "virtual-adversarial": False,
        "adversarial-training": True,
    }
    more.report(tmp_path)
    assert problems(json.loads((tmp_path / "harden.json").read_text())) == []
    assert (
        "40 to choose the epoch, 60 to test on; 130 without labels to train on"
        in (tmp_path / "report.html").read_text()
    )


def test_the_time_of_each_step_is_estimated(network: nn.Module) -> None:
    plan = plan_hardening(network, TRAIN, test=TEST, eps=EPS, settings=SHORT, budget="quick")
    before = snapshot(network)
    seconds = hardening_seconds(plan)
    assert list(seconds) == ["control", "hardened", "evaluations, at most"]
    assert all(each > 0 for each in seconds.values())
    assert seconds["hardened"] > seconds["control"]
    assert _same(snapshot(network), before)


# --- networks as users have them ---------------------------------------------------------------------------------


class _OneLogit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.last = nn.Linear(4 * 64, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.layers(images)).squeeze(1)


def _residual() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, images: Tensor) -> Tensor:
            return images + self.inside(images)

    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        Block(),
        nn.Dropout(0.2),
        Block(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def _colour(count: int, seed: int, classes: int = 3) -> LabelledImages:
    grey = tiny_images(count, seed)
    pixels = grey.pixels.repeat(1, 3, 1, 1)
    pixels[:, 1] //= 2
    return LabelledImages(pixels=pixels, labels=grey.labels.clamp(max=classes - 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "one logit": (_OneLogit, 2),
    "residual with dropout": (_residual, 3),
    "normalised, pixels to 255": (lambda: Classifier(_residual(), mean=120.0, std=60.0, bounds=(0, 255)), 3),
    "layer normalisation": (lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 3)), 3),
}


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each == "one logit" else pytest.mark.slow) for each in NETWORKS]
)
def test_networks_of_users_are_hardened(name: str, cheap: None) -> None:
    make, classes = NETWORKS[name]
    torch.manual_seed(0)
    model, train, test = make(), _colour(200, 3, classes), _colour(60, 4, classes)
    eps: Any = EPS
    if "255" in name:
        train, test = (LabelledImages(pixels=each.pixels.float(), labels=each.labels) for each in (train, test))
        eps = 25.5
    fit(model, train, test, TrainConfig(epochs=12, batch_size=32, learning_rate=1e-2))
    found = harden(model.eval(), train, test=test, eps=eps, settings=SHORT)
    assert len(found.before.correct) == 60
    assert found.before.clean.value > 0.6
    assert found.best.clean.value > 0.5
    assert repr(found).startswith("Hardened(eps ")


# --- what follows from the numbers -------------------------------------------------------------------------------


def _stated(name: str, held: int, *, right: int = 180, n: int = 200, void: bool = False) -> ComparedModel:
    """A model of which the first images are right, and of those the first withstood."""
    place = np.arange(n)
    findings = (
        [Finding(check="gradients", severity=Severity.VOIDS, value=1.0, threshold=0.5, sentence="its gradients vanish")]
        if void
        else []
    )
    verdict: Verdict = verdict_on(
        0.1,
        norm="linf",
        budget="standard",
        correct=place < right,
        withstood=place < held,
        labels=place % 3,
        classes=3,
        findings=findings,
    )
    trained = None if name == "before" else FineTuning(history=[_ROW], epoch=1)
    return ComparedModel(
        name=name,
        model=tiny_model(),
        correct=place < right,
        withstood=place < held,
        verdict=verdict,
        evaluation={"seconds": 2.0},
        training=trained,
    )


_ROW = {"epoch": 1, "learning_rate": 0.01, "loss": 1.0, "accuracy": 0.5, "val_robust": 0.4, "val_accuracy": 0.8} | {
    "seconds": 12.0,
    "processor_seconds": 20.0,
}


def _stated_result(before: int, control: int, hardened: int, **other: Any) -> Hardened:
    models = [_stated("before", before), _stated("control", control), _stated("hardened", hardened, **other)]
    images = LabelledImages(pixels=torch.zeros(200, 1, 8, 8, dtype=torch.uint8), labels=torch.arange(200) % 3)
    return Hardened(
        models={each.name: each for each in models},
        eps=casemate.parse_eps("0.1"),
        norm="linf",
        budget="standard",
        seed=0,
        test=images,
        plan={},
        start=(0.1, 0.9),
    )


@pytest.mark.parametrize(
    ("numbers", "helped", "begins", "says"),
    [
        ((10, 20, 120), True, "Hardening helped: ", "+50.0 points over the control"),
        (
            (10, 118, 120),
            False,
            "Hardening is not shown to have helped: ",
            "the control, fine-tuned for as many epochs without",
        ),
        ((10, 12, 13), False, "Hardening did not help, as far as 200 images show: ", "5.0 % to 6.5 %"),
        ((100, 100, 40), False, "Hardening made it worse: ", "50.0 % to 20.0 %"),
        ((0, 0, 12), True, "Hardening helped: ", "even so its verdict is broken"),
    ],
)
def test_the_sentence_says_what_the_tests_show(
    numbers: tuple[int, int, int], helped: bool, begins: str, says: str
) -> None:
    found = _stated_result(*numbers)
    assert found.helped == {"hardened": helped}
    assert found.conclusion.startswith(begins)
    assert says in found.conclusion
    assert "clean accuracy changed by +0.0 points" in found.conclusion
    assert found.conclusion in str(found)
    assert "\n" not in repr(found)
    assert "another seed of the training gives other numbers" in found.summary()


def test_nothing_is_said_of_numbers_that_are_not_to_be_trusted() -> None:
    found = _stated_result(10, 12, 150, void=True)
    assert found.helped == {"hardened": None}
    assert found.conclusion == ("Whether hardening helped cannot be said: the number of hardened is not to be trusted.")


def test_a_model_that_is_not_there_cannot_be_compared() -> None:
    with pytest.raises(SettingError, match="no model called 'after'; expected one of before, control, hardened"):
        _stated_result(1, 2, 3).compare("before", "after")


# --- nothing is lost ---------------------------------------------------------------------------------------------


class _Stops(Listener):
    """An observer that interrupts when it hears a title or a message for the `times`th time."""

    def __init__(self, words: str, times: int = 1) -> None:
        super().__init__()
        self.words, self.left = words, times

    def message(self, message: str) -> None:
        super().message(message)
        self._stop(message)

    def advance(self, amount: float, note: str = "") -> None:
        super().advance(amount, note)
        self._stop(note)

    def _stop(self, said: str) -> None:
        if self.words in said:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "repeated"),
    [
        ("Step 2 of 5", {"before": False}),
        ("epoch 2, loss", {"before": False}),
        ("Step 4 of 5", {"before": False, "control": False}),
        ("Step 5 of 5", {"before": False, "control": False}),
    ],
)
def test_a_stopped_hardening_continues(
    hardened: Hardened, network: nn.Module, cheap: None, tmp_path: Path, words: str, repeated: dict[str, bool]
) -> None:
    again = partial(harden, network, TRAIN, test=TEST, eps=EPS, settings=SHORT, checkpoint=tmp_path / "steps")
    with pytest.raises(KeyboardInterrupt):
        again(observer=_Stops(words))
    observer = Listener()
    found = again(observer=observer)
    attacked = sum(title.startswith("Checking model and images") for title in observer.titles)
    assert attacked == 3 - len(repeated)
    for name, weights in _weights(hardened).items():
        assert _same(_weights(found)[name], weights)
        assert np.array_equal(found.models[name].withstood, hardened.models[name].withstood)
        assert np.array_equal(found.models[name].correct, hardened.models[name].correct)
    assert found.conclusion == hardened.conclusion
    finished = Listener()
    again(observer=finished)
    assert not any(title.startswith(("Checking", "Training")) for title in finished.titles)


@pytest.mark.integration
@pytest.mark.slow
def test_a_damaged_step_is_made_again(hardened: Hardened, network: nn.Module, cheap: None, tmp_path: Path) -> None:
    again = partial(harden, network, TRAIN, test=TEST, eps=EPS, settings=SHORT, checkpoint=tmp_path)
    again()
    for name in ("trained-hardened", "evaluated-control"):
        path = tmp_path / f"{name}.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
    observer = Listener()
    found = again(observer=observer)
    assert sum("is damaged (" in said for said in observer.said) == 2
    assert _same(snapshot(found.model), snapshot(hardened.model))
    assert np.array_equal(found.control.withstood, hardened.control.withstood)


@pytest.mark.integration
def test_steps_of_another_hardening_are_not_taken(network: nn.Module, cheap: None, tmp_path: Path) -> None:
    settings = replace(SHORT, epochs=1)
    again = partial(harden, network, TRAIN, test=TEST, settings=settings, checkpoint=tmp_path)
    again(eps=EPS)
    with pytest.raises(SettingError, match=r"holds the steps of another hardening: it differs in eps, eps_text, recip"):
        again(eps="0.05")
    with pytest.raises(SettingError, match="it differs in seed, train_images, training, training_sha256, valid"):
        harden(network, TRAIN[:150], test=TEST, eps=EPS, settings=settings, checkpoint=tmp_path, seed=1)


@pytest.mark.integration
def test_a_network_with_an_extra_state_is_hardened_and_continues(cheap: None, tmp_path: Path) -> None:
    given = tiny_images(300, 1), tiny_images(60, 2)
    trained = fit(counting(), *given, TrainConfig(epochs=8, batch_size=32, learning_rate=5e-3)).model
    seen = trained.state_dict()[EXTRA_STATE]["seen"]
    again = partial(harden, trained, TRAIN, test=TEST, eps=EPS, settings=SHORT, checkpoint=tmp_path)
    first, second = again(), again()
    for found in (first, second):
        model = found.models["control"].model
        assert model.state_dict()[EXTRA_STATE]["seen"] > seen
    assert trained.state_dict()[EXTRA_STATE]["seen"] == seen
    found = first.models["hardened"].model.state_dict(), second.models["hardened"].model.state_dict()
    assert found[0][EXTRA_STATE]["seen"] == found[1][EXTRA_STATE]["seen"]


class _Own:
    """An objective of a user's plain class, whose text names its place in memory."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = CrossEntropy()(model, images, labels)
        return self.weight * loss, logits

    def validate(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return CrossEntropy().validate(model, images, labels)


def test_own_objectives_and_functions_are_the_same_at_the_next_call(network: nn.Module) -> None:
    def described(weight: float, by: float) -> str:
        change = partial(lambda images, index, epoch, generator, by: images * by, by=by)
        recipe = Recipe(objective=_Own(weight), augment=(change,))
        return plan_hardening(network, TRAIN, test=TEST, eps=EPS, recipe=recipe).about()["recipes"]["hardened"]

    assert described(1.0, 0.5) == described(1.0, 0.5)
    assert len({described(1.0, 0.5), described(2.0, 0.5), described(1.0, 0.6)}) == 3
    assert described(1.0, 0.5).startswith(f"Recipe(objective={__name__}._Own ")


# --- what is refused ---------------------------------------------------------------------------------------------


def _frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False)


def _frozen_norm() -> nn.Module:
    network = tiny_model().network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return network


WIDE = Classifier(tiny_model().network, bounds=(-1, 1))
WIDE_IMAGES = {
    name: LabelledImages(pixels=2 * part.tensors()[0] - 1, labels=part.labels)
    for name, part in (("train", TRAIN), ("test", TEST))
}


class _NoWeights(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"model": _NoWeights()}, ModelError, "the network has no parameters, so there is nothing to train"),
        ({"model": _frozen(tiny_model().network)}, ModelError, "unfreeze those that may change"),
        ({"model": _frozen_norm()}, ModelError, r"the batch normalisation 1\.?.* is frozen"),
        (
            {"train": (TRAIN.pixels, TRAIN.labels + 5)},
            ShapeError,
            "a label 5 in the training images, but the model has 3",
        ),
        ({"test": (TEST.pixels, TEST.labels + 1)}, ShapeError, "a label 3 in the test images"),
        (
            {"train": (TRAIN.pixels, TRAIN.labels - 1), "recipe": "virtual-adversarial"},
            ShapeError,
            r"training images without labels \(-1\); expected a label for each",
        ),
        ({"validation": TEST[:9]}, SettingError, "9 validation images; expected at least 10"),
        ({"test": _colour(60, 4)}, ShapeError, r"test images of shape \(3, 8, 8\), but the model expects \(1, 8, 8\)"),
        ({"eps": 8}, SettingError, "For 8 grey levels of 255 write 8/255"),
        ({"eps": "0.00001"}, SettingError, "almost nothing can change"),
        ({"eps": 0}, SettingError, "expected a radius above zero to harden against"),
        ({"train": TRAIN[:40]}, SettingError, "would be set aside as validation images; expected at least 10"),
        ({"train": (255 * TRAIN.tensors()[0], TRAIN.labels)}, ShapeError, "images: pixels from 0 to .* bounds are"),
        ({"test": None, "train": TRAIN[:30]}, SettingError, "would be set aside as test images"),
        ({"images": 3}, SettingError, "images = 3; expected at least 10 \\(to test on\\)"),
        (
            {"settings": replace(SHORT, guard=True)},
            SettingError,
            "guard = True; expected False: the epoch is chosen by",
        ),
        ({"settings": replace(SHORT, patience=2)}, SettingError, "expected None: the epoch is chosen by robust"),
        (
            {"settings": replace(SHORT, monitor="robust-accuracy")},
            SettingError,
            "monitor = robust-accuracy; expected loss",
        ),
        ({"recipe": "several-norms"}, SettingError, "with a radius in linf only; expected eps_l1 or eps_l2 too"),
        ({"recipe": "several-norms", "norm": "l0", "eps": 3}, SettingError, "it is defined in Linf, L2 and L1 only"),
        ({"recipe": "robust-distillation"}, SettingError, "robust-distillation without a teacher"),
        ({"recipe": "fgsm-rs", "norm": "l2"}, SettingError, "recipe fgsm-rs in l2; it is defined in Linf only"),
        ({"recipe": "cross-entropy"}, SettingError, "is what the control is trained by; expected one of"),
        ({"recipe": "distillation"}, SettingError, "trains a student, by a teacher; expected one of"),
        ({"recipe": "adversarial-trainin"}, SettingError, "did you mean adversarial-training"),
        ({"recipe": ["adversarial-training"] * 2}, SettingError, "each of another name"),
        ({"recipe": []}, SettingError, "recipes none; expected one or more"),
        ({"recipe": {"control": Recipe()}}, SettingError, "none called before or control"),
        (
            {"recipe": {"mine": untyped(AdversarialTraining(eps=0.1))}},
            SettingError,
            "a recipe is an AdversarialTraining",
        ),
        ({"recipe": [untyped(AdversarialTraining(eps=0.1))]}, SettingError, "a recipe is an AdversarialTraining"),
        ({"recipe": {"mine": "trade"}}, SettingError, "did you mean trades"),
        ({"recipe": {untyped(1): "trades"}}, SettingError, "a recipe is named 1; expected a name that a file can have"),
        ({"recipe": {"a/b": "trades"}}, SettingError, "a recipe is named 'a/b'; expected a name"),
        ({"norm": "l3"}, SettingError, "l3"),
        (
            {"model": WIDE, **WIDE_IMAGES, "recipe": Recipe(augment=(Shift(),))},
            ModelError,
            r"the augmentation Shift for a model with bounds \(-1.0, 1.0\); expected \(0, 1\)",
        ),
        (
            {"model": WIDE, **WIDE_IMAGES, "recipe": Recipe(extra=(AlternatingFlip(), GaussianNoise()))},
            ModelError,
            "the augmentation GaussianNoise for a model with bounds",
        ),
        (
            {"recipe": Recipe(objective=RobustDistillation(teacher=Classifier(tiny_model(3).network, bounds=(-1, 1))))},
            ShapeError,
            r"a teacher of 3 classes .* within \[-1, 1\] for a student",
        ),
    ],
)
def test_bad_input_is_one_error(change: dict[str, Any], kind: type[CasemateError], says: str) -> None:
    given: dict[str, Any] = {"model": tiny_model().network, "train": TRAIN, "test": TEST, "eps": EPS} | change
    with as_installed(), pytest.raises(kind, match=says):
        harden(**given)


def test_the_results_of_another_hardening_are_named_by_what_differs(tmp_path: Path) -> None:
    old = {"model": "m", "data": "pictures", "eps": [0.1], "seed": 0, "guarded": ["n-fgsm"]}
    old |= {"recipes": {"n-fgsm": "Recipe(one)"}, "training": {"epochs": 3, "batch_size": 8}}
    (tmp_path / "harden.json").write_text(json.dumps(old))
    (tmp_path / "report.html").write_text("")

    def refused(**change: Any) -> str:
        with pytest.raises(SettingError, match="holds a hardening of m") as caught:
            check_replaceable(
                tmp_path, old | change, overwrite=False, observer=Listener(), advice="x", file="harden.json"
            )
        return str(caught.value)

    assert "(guarded n-fgsm, now none)" in refused(guarded=[])
    assert "(recipes n-fgsm, now trades)" in refused(recipes={"trades": "Recipe(one)"})
    assert "(other settings of n-fgsm)" in refused(recipes={"n-fgsm": "Recipe(two)"})
    assert "(epochs 3, now 4)" in refused(training={"epochs": 4, "batch_size": 8})


def test_a_function_is_no_recipe() -> None:
    function: Any = lambda model, images, labels: None  # noqa: E731
    with as_installed(), pytest.raises(SettingError, match="a recipe is a function; expected a name, or a casemate"):
        harden(tiny_model().network, TRAIN, test=TEST, eps=EPS, recipe=function)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    network = tiny_model().network
    network.lock = iter([1])  # type: ignore[assignment]
    network.opened = (each for each in [1])  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be copied"):
        harden(network, TRAIN, test=TEST, eps=EPS)


def test_labels_in_another_order_stop_it_before_any_training(network: nn.Module) -> None:
    observer = Listener()
    moved = LabelledImages(pixels=TEST.pixels, labels=(TEST.labels + 1) % 3)
    with pytest.raises(EvaluationError, match="nothing was attacked"):
        harden(network, TRAIN, test=moved, eps=EPS, budget="quick", observer=observer)
    assert not any(title.startswith("Training") for title in observer.titles)


# --- the files ---------------------------------------------------------------------------------------------------


def test_the_report_is_one_file_that_says_it(hardened: Hardened, tmp_path: Path) -> None:
    path = hardened.report(tmp_path / "out", name="mine", data="bright thirds", source="mine:load")
    page = path.read_text()
    assert sorted(each.name for each in path.parent.iterdir()) == [
        *("control.safetensors", "harden.json", "hardened.safetensors", "report.html")
    ]
    assert hardened.conclusion.replace("'", "&#39;") in page
    assert "<script" not in page
    assert page.count("<svg ") == 3
    for words in ("before", "control", "hardened", "McNemar p", "mine:load --weights", "bright thirds"):
        assert words in page
    result = json.loads((path.parent / "harden.json").read_text())
    assert result["conclusion"] == hardened.conclusion
    assert result["models"]["hardened"]["robust_accuracy"]["n"] == len(TEST)
    assert result["models"]["control"]["history"] == hardened.control.training.history  # type: ignore[union-attr]
    assert [(each["first"], each["second"]) for each in result["comparisons"]] == [
        *(("before", "hardened"), ("control", "hardened"), ("before", "control"))
    ]
    bare = hardened.report(tmp_path / "bare", images=False).read_text()
    assert bare.count("<svg ") == 2
    assert "What the attack sees" not in bare


def test_results_of_another_hardening_stay(hardened: Hardened, tmp_path: Path) -> None:
    hardened.report(tmp_path)
    hardened.report(tmp_path)
    other = replace(hardened, plan=hardened.plan | {"seed": 5})
    with pytest.raises(SettingError, match="seed 0, now 5"):
        other.report(tmp_path)
    other.report(tmp_path, overwrite=True)


def test_the_weights_are_those_of_the_network(hardened: Hardened, network: nn.Module, tmp_path: Path) -> None:
    """Plain PyTorch loads them into the user's own network."""
    hardened.save(tmp_path / "mine.safetensors")
    own = tiny_model(seed=5).network
    own.load_state_dict(safetensors.torch.load_file(tmp_path / "mine.safetensors"))
    pixels = TEST.tensors()[0]
    with torch.no_grad():
        assert torch.equal(own.eval()(pixels), hardened.model(pixels))
        assert not torch.equal(own(pixels), network.eval()(pixels))


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture
def mine(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the current folder, with a function that loads a network, and images in files."""
    safetensors.torch.save_file(snapshot(network), tmp_path / "mine.safetensors")
    source = """
        from pathlib import Path
        from safetensors.torch import load_file
        from conftest import tiny_model

        def load():
            network = tiny_model(seed=3).network
            network.load_state_dict(load_file(Path(__file__).with_name("mine.safetensors")))
            return network
    """
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    for file, images in (("train", TRAIN), ("test", TEST)):
        np.savez(tmp_path / f"{file}.npz", images=images.pixels.numpy(), labels=images.labels.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:load"


COMMAND = ["--data", "train.npz", "--test", "test.npz", "--eps", EPS, "--epochs", 1, "--batch-size", 32, "--steps", 2]


@pytest.mark.integration
def test_the_command_hardens_an_own_network(run: Run, mine: str, cheap: None, tmp_path: Path) -> None:
    code, shown, err = run("harden", mine, *COMMAND, "--out", "out")
    assert code == 0, err
    assert "Hardening " in shown
    assert f"casemate evaluate {mine} --weights out/hardened.safetensors" in shown
    assert "About " in err
    assert "Step 5 of 5: evaluating hardened." in err
    assert not (tmp_path / "out" / "steps").exists()
    own = tiny_model(seed=5).network
    own.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / "hardened.safetensors"))
    code, shown, err = run("harden", mine, *COMMAND, "--out", "out", "--json")
    assert code == 0, err
    assert json.loads(shown)["models"]["hardened"]["epoch"] == 1
    code, _, err = run("harden", mine, *COMMAND, "--out", "out", "--seed", 1)
    assert code == 2
    assert "give --overwrite" in err


def test_the_command_that_evaluates_the_result_is_about_the_same_attacks(
    run: Run, mine: str, hardened: Hardened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the norm of the hardening, and for a shell: the folder's name has a space."""
    monkeypatch.setattr("casemate.cli.harden.run.run_hardening", lambda *_, **__: hardened)
    for norm, said in (("l2", "--eps 0.5 --norm l2"), ("linf", "--eps 0.5")):
        line = [*COMMAND, "--eps", 0.5, "--norm", norm, "--out", f"an {norm}", "--mean", 0.5, "--std", 0.5]
        code, shown, err = run("harden", mine, *line, "--recipe", "adversarial-training")
        assert code == 0, err
        expected = (
            f"casemate evaluate {mine} --mean 0.5 --std 0.5 --weights 'an {norm}/hardened.safetensors' "
            f"--data test.npz {said} --out 'an {norm}/evaluated'"
        )
        assert f"Use it: {expected}\n" in shown
        assert json.loads(Path(f"an {norm}", "harden.json").read_text())["load"][0] == expected


def test_a_report_from_python_evaluates_in_the_ball_of_the_hardening(hardened: Hardened, tmp_path: Path) -> None:
    for norm, words in (("linf", "--eps 0.1"), ("l2", "--eps 0.1 --norm l2")):
        replace(hardened, norm=norm).report(tmp_path / norm, source="mine:load", images=False)
        command = json.loads((tmp_path / norm / "harden.json").read_text())["load"][0]
        assert command == f"casemate evaluate mine:load --weights {tmp_path / norm / 'hardened.safetensors'} {words}"


def test_the_command_only_plans(run: Run, mine: str, tmp_path: Path) -> None:
    code, shown, err = run("harden", mine, *COMMAND, "--out", "out", "--dry-run")
    assert code == 0, err
    assert "evaluations, at most" in shown
    assert "steps=2" in shown
    assert not (tmp_path / "out").exists()
    code, shown, _ = run("harden", mine, *COMMAND, "--recipe", "trades", "mart", "fgsm-rs", "--dry-run")
    assert code == 0
    assert shown.count("steps=2") == 2
    chosen = "trades:beta=3,weight_perturbation=0.005,steps=4", "mart:step_size=0.02", "n-fgsm:noise=1"
    code, shown, _ = run("harden", mine, *COMMAND, "--recipe", *chosen, "--dry-run", "--json")
    assert code == 0
    recipes = json.loads(shown)["recipes"]
    assert "TRADES(eps=0.1, beta=3.0, steps=4" in recipes["trades"]
    assert "weight_perturbation=0.005" in recipes["trades"]
    assert "steps=2, step_size=0.02" in recipes["mart"]
    assert "NFGSM(eps=0.1, noise=1.0" in recipes["n-fgsm"]
    others = "several-norms:eps_l2=0.5", "virtual-adversarial:eps=2", "graph-regularization", "robust-distillation"
    code, shown, _ = run("harden", mine, *COMMAND, "--recipe", *others, "--teacher", mine, "--dry-run", "--json")
    assert code == 0
    recipes = json.loads(shown)["recipes"]
    assert "SeveralNorms(eps_linf=0.1, eps_l2=0.5, eps_l1=None, combine='worst', steps=2" in recipes["several-norms"]
    assert "VirtualAdversarial(eps=2.0" in recipes["virtual-adversarial"]
    assert "GraphRegularization(" in recipes["graph-regularization"]
    # a teacher is stated by its fingerprint, since its layers do not say which weights it has
    assert f"RobustDistillation(teacher={json.loads(shown)['fingerprint']}, eps=0.1" in recipes["robust-distillation"]
    code, shown, _ = run("harden", mine, "--data", "train.npz", "--eps", EPS, "--dry-run", "--json")
    planned = json.loads(shown)
    assert code == 0
    assert planned["training"]["epochs"] == FINE_TUNING.epochs
    assert planned["training"]["optimizer"] == "sgd"
    assert "set aside from the images given" in planned["notes"][0]
    assert (planned["training"]["ema"], planned["training"]["swa_start"]) == (FINE_TUNING.ema, None)


def test_the_command_takes_images_without_labels(run: Run, mine: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "more.npz", images=tiny_images(50, 8).pixels.numpy())
    more = "--unlabelled", "more.npz", "--dry-run"
    code, shown, err = run("harden", mine, *COMMAND[:-2], "--recipe", "virtual-adversarial", *more, "--json")
    assert code == 0, err
    planned = json.loads(shown)
    assert problems(planned) == []
    assert planned["unlabelled_images"] == 50
    assert "50 images without labels: used by hardened only" in planned["notes"][0]
    assert "data_options" not in planned
    code, _, err = run("harden", mine, *COMMAND, *more)
    assert code == 2
    assert "50 images without labels, but no recipe here learns without labels" in err


def test_options_that_read_images_are_for_those_without_labels_beside_a_data_set(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tens.py").write_text(
        "from torch import nn\nload = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))"
    )
    np.savez(tmp_path / "more.npz", images=torch.rand(5, 1, 16, 16).numpy())
    line = ["harden", tmp_path / "tens.py:load", "--eps", EPS, "--dataset", "digits"]
    line += ["--train-images", 200, "--images", 20]
    line += ["--recipe", "virtual-adversarial", "--unlabelled", tmp_path / "more.npz", "--dry-run", "--json"]
    code, shown, err = run(*line, "--resize", 28, 28)
    assert code == 0, err
    planned = json.loads(shown)
    assert problems(planned) == []
    assert planned["data"] == "digits"
    assert (planned["unlabelled"], planned["unlabelled_images"]) == (str(tmp_path / "more.npz"), 5)
    assert planned["unlabelled_options"] == ["--resize", "28", "28"]
    assert "data_options" not in planned
    code, _, err = run(*line)
    assert code == 2
    assert "give --resize 28 28" in err


def test_an_even_average_replaces_the_moving_one(run: Run, mine: str) -> None:
    code, shown, err = run("harden", mine, *COMMAND, "--swa-start", 0.5, "--dry-run", "--json")
    assert code == 0, err
    planned = json.loads(shown)["training"]
    assert (planned["ema"], planned["swa_start"]) == (None, 0.5)
    code, _, err = run("harden", mine, *COMMAND, "--swa-start", 0.5, "--ema", 0.9, "--dry-run")
    assert code == 2
    assert "ema and swa_start" in err


def test_images_that_were_trained_on_are_not_named_as_test_images(tmp_path: Path) -> None:
    """Where the test images were set aside from the file, the rest of it was trained on."""
    own, tested = tmp_path / "own.npz", tmp_path / "tested.npz"
    for path in (own, tested):
        np.savez(path, images=TRAIN.pixels.numpy(), labels=TRAIN.labels.numpy())
    assert _test_words(HardenImages(data=own), Reading()) == ["--data", "TEST-IMAGES"]
    assert _test_words(HardenImages(data=own, test=tested), Reading()) == ["--data", str(tested)]


@pytest.mark.integration
@pytest.mark.slow
def test_a_checkpoint_becomes_a_checkpoint(
    run: Run, network: nn.Module, mine: str, cheap: None, tmp_path: Path
) -> None:
    given = tiny_model()
    given.network.load_state_dict(network.state_dict())
    save(given, tmp_path / "given.safetensors", ModelMetadata(architecture="tiny", dataset="digits"))
    code, shown, err = run("harden", "given.safetensors", *COMMAND, "--out", "out")
    assert code == 0, err
    assert "Use it: casemate evaluate out/hardened.safetensors" in shown
    model, metadata = load(tmp_path / "out" / "hardened.safetensors")
    assert metadata.architecture == "tiny"
    assert metadata.metrics["eps"] == 0.1
    assert model.classes == TINY_CLASSES


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--eps", "8"], "For 8 grey levels of 255 write 8/255"),
        (["--eps", "0.1", "--recipe", "distillation"], "trains a student, by a teacher"),
        (["--eps", "0.1", "--recipe", "trades:gamma=1"], "trades has no setting 'gamma'; it has beta (6.0)"),
        (["--eps", "0.1", "--recipe", "trades:beta"], "'beta' is not SETTING=VALUE"),
        (["--eps", "0.1", "--recipe", "trades:beta=-1"], "beta = -1"),
        (["--eps", "0.1", "--recipe", "trades:beta=many"], "many"),
        (["--eps", "0.1", "--recipe", "trades:eps=0.2"], "recipe trades with eps, which follows from eps"),
        (["--eps", "0.1", "--recipe", "adversarial-regularization:step_size=0.2"], "with step_size, which follows"),
        (["--eps", "0.1", "--recipe", "adversarial-training:random_start=2"], "random_start = 2; expected true or"),
        (["--eps", "0.1", "--recipe", "trades:beta=true"], "true"),
        (["--eps", "0.1", "--recipe", "trades:beta=1,beta=2"], "beta twice"),
        (["--eps", "0.1", "--recipe", "trades:steps=2.5"], "steps = 2.5"),
        (["--eps", "0.1", "--recipe", "mtl-ibp"], "trains for bounds"),
        (["--eps", "0.1", "--recipe", "several-norms"], "with a radius in linf only; expected eps_l1 or eps_l2 too"),
        (["--eps", "0.1", "--recipe", "several-norms:eps_linf=0.2,eps_l2=1"], "with eps_linf, which follows from eps"),
        (["--eps", "0.1", "--recipe", "robust-distillation"], "give a robust model by --teacher MODEL"),
        (["--eps", "0.1", "--teacher", "nothing.py:made"], "no recipe given learns from a teacher"),
        (["--eps", "0.1", "--recipe", "fgsm-rs", "n-fgsm", "--steps", "3"], "is no setting of fgsm-rs, n-fgsm"),
        (["--eps", "0.1", "--images", "0"], "images = 0; expected at least 1"),
        (["--eps", "0.1", "--train-images", "20"], "would be set aside"),
    ],
)
def test_the_command_refuses_on_one_screen(run: Run, mine: str, arguments: list[str], says: str) -> None:
    code, shown, err = run("harden", mine, "--data", "train.npz", *arguments, "--out", "out")
    assert (code, shown) == (2, "")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.integration
def test_the_command_continues(
    run: Run, mine: str, cheap: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C after the evaluation of the control: the same command goes on with the next training."""
    kept = run_module.evaluate  # type: ignore[attr-defined]
    calls: list[int] = []

    def stop_at_the_third(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return kept(*given, **options)

    monkeypatch.setattr("casemate.hardening.run.evaluate", stop_at_the_third)
    code, _, err = run("harden", mine, *COMMAND, "--out", "out")
    assert code == 130
    assert "run the same command again to continue" in err
    assert (tmp_path / "out" / "steps" / "trained-hardened.safetensors").exists()
    code, _, err = run("harden", mine, *COMMAND, "--out", "out")
    assert code == 0, err
    assert "Continuing from the steps in out/steps." in err
    assert len(calls) == 4
