"""Adversarial training: its loss against PGD written out, what it leaves of the model, what it buys, its options."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import PGD
from casemate.cli import main
from casemate.data import digits, split, subset
from casemate.defenses import RECIPES, Recipe, make_objective
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.engine.task import Context
from casemate.errors import SettingError, TrainingError
from casemate.models import Classifier, create, load
from casemate.norms import Norm
from casemate.progress import NULL_OBSERVER
from casemate.timing import relative_step_cost
from casemate.training import CrossEntropy, Objective, TrainConfig, fit
from casemate.training.state import Weights, snapshot
from casemate_study.tasks.defended_training import defend_model
from conftest import tiny_images, tiny_model
from oracles import as_installed, check_inside, classifier, distance, linear_problem, network, small_task

TRAIN, VALIDATION = split(tiny_images(150, noise=90, wrong=0.2), 50, 0)
IMAGES, LABELS = TRAIN[:20].tensors()
STILL = AdversarialTraining(eps=0.1, steps=4, random_start=False)
SETTINGS = TrainConfig(epochs=2, batch_size=30, seed=3)


def plain_pgd(model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, steps: int, step: float) -> Tensor:
    """Linf, written out, on the mean of PyTorch's own cross-entropy."""
    moved = start
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), labels), moved)
        moved = (moved + step * gradient.sign()).detach()
        moved = (images + (moved - images).clamp(-0.1, 0.1)).clamp(0, 1)
    return moved


@cache
def _statistics() -> Weights:
    model = tiny_model().train()
    with torch.no_grad():
        for _ in range(300):
            model(IMAGES)
    return snapshot(model)


def settled() -> Classifier:
    """A tiny model in training mode, whose running averages are nearly those of the images."""
    model = tiny_model()
    model.load_state_dict(_statistics())
    return model.train()


# ---------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("step", [None, 0.03])
def test_the_images_are_those_of_pgd_on_the_model_in_evaluation_mode(step: float | None) -> None:
    model = settled()
    moved, logits = replace(STILL, step_size=step).adversarial(model, IMAGES, LABELS)
    quiet = settled().eval()
    length = 2.5 * 0.1 / 4 if step is None else step
    expected = plain_pgd(quiet, IMAGES, LABELS, IMAGES, 4, length)
    assert torch.allclose(moved, expected, atol=1e-6)
    assert torch.allclose(logits, quiet(IMAGES), atol=1e-6)
    assert not torch.allclose(plain_pgd(settled(), IMAGES, LABELS, IMAGES, 4, length), expected, atol=1e-3)


def test_loss_and_weight_gradients_are_those_of_these_images_in_training_mode() -> None:
    """One batch goes through in training mode: the one learnt from. Dropout draws as it would for that alone."""
    model, twin = settled(), settled()
    torch.manual_seed(4)
    seed = torch.randint(1 << 62, ())  # what the random starts would take, drawn here too
    assert seed >= 0
    torch.manual_seed(4)
    loss, logits = STILL(model, IMAGES, LABELS)
    loss.backward()

    moved = plain_pgd(twin.eval(), IMAGES, LABELS, IMAGES, 4, 2.5 * 0.1 / 4)
    clean = twin(IMAGES)
    torch.manual_seed(4)
    torch.randint(1 << 62, ())
    expected = F.cross_entropy(twin.train()(moved), LABELS)
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(logits, clean, atol=1e-6)
    assert not logits.requires_grad
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert other.grad is not None, name
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-3, atol=1e-6), name
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(buffer.float(), other.float(), rtol=1e-5), name


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_images_lie_in_the_ball_and_the_bounds_and_are_worse(norm: Norm) -> None:
    task = small_task(dtype=torch.float32, scale=2.0)
    eps = {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm]
    moved, logits = AdversarialTraining(eps=eps, norm=norm).adversarial(task.model, task.images, task.labels)
    assert distance(moved, task.images, norm).max() <= eps * (1 + 1e-5)
    assert moved.min() >= 0
    assert moved.max() <= 1
    before, after = (F.cross_entropy(each, task.labels, reduction="none") for each in (logits, task.model(moved)))
    assert (after > before).double().mean() > 0.95


def test_other_bounds_are_kept() -> None:
    model = Classifier(network(dtype=torch.float32), input_shape=(1, 6, 6), classes=tuple("abcd"), bounds=(-1, 2))
    images = 3 * torch.rand(20, 1, 6, 6) - 1
    moved, _ = AdversarialTraining(eps=0.5).adversarial(model, images, torch.arange(20) % 4)
    assert -1 <= moved.min() < -0.5
    assert 1.5 < moved.max() <= 2


def test_on_a_linear_classifier_the_worst_images_are_found() -> None:
    problem = linear_problem(0)
    images = problem.images.detach()
    moved, _ = AdversarialTraining(eps=0.1).adversarial(problem.model, images, problem.labels)
    best, _ = AdversarialTraining(eps=0.1, steps=1, step_size=0.1, random_start=False).adversarial(
        problem.model, images, problem.labels
    )
    assert torch.allclose(moved, best, atol=1e-6)


def test_starts_are_random_and_those_of_pytorch_s_seed() -> None:
    objective = AdversarialTraining(eps=0.1, steps=1, step_size=0.0)
    model = settled()
    torch.manual_seed(1)
    first, second = (objective.adversarial(model, IMAGES, LABELS)[0] for _ in range(2))
    torch.manual_seed(1)
    again = objective.adversarial(model, IMAGES, LABELS)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    inner = (IMAGES > 0.1) & (IMAGES < 0.9)
    delta = (first - IMAGES)[inner]
    assert delta.abs().max() <= 0.1 + 1e-6
    assert abs(float(delta.mean())) < 0.01
    assert float(delta.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
    still = replace(objective, random_start=False)
    assert torch.equal(still.adversarial(model, IMAGES, LABELS)[0], IMAGES)


def test_validation_is_the_loss_of_the_images_found_and_changes_nothing() -> None:
    model = settled().eval()
    before = snapshot(model)
    loss, logits = STILL.validate(model, IMAGES, LABELS)
    moved = plain_pgd(model, IMAGES, LABELS, IMAGES, 4, 2.5 * 0.1 / 4)
    assert loss.item() == pytest.approx(F.cross_entropy(model(moved), LABELS).item(), rel=1e-5)
    assert torch.allclose(logits, model(IMAGES), atol=1e-6)
    assert not loss.requires_grad
    assert not model.training
    for name, tensor in snapshot(model).items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_flags_are_left_as_they_were(training: bool) -> None:
    model = settled().train(training)
    model.network[1].eval()  # type: ignore[index]
    first = next(model.parameters())
    first.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    AdversarialTraining(eps=0.1, steps=2)(model, IMAGES, LABELS)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_are_not_finite_leave_the_image_as_it_is() -> None:
    class Trouble(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) + (images[:, :1, 0, 0] - 0.5).square().sqrt() * torch.tensor([1.0, 0, 0, 0])

    images = torch.rand(6, 1, 6, 6)
    images[:, 0, 0, 0] = 0.9
    images[:3, 0, 0, 0] = 0.5
    model = classifier(Trouble(network(dtype=torch.float32)), classes=4)
    moved, _ = STILL.adversarial(model, images, torch.arange(6) % 4)
    assert torch.equal(moved[:3], images[:3])
    assert (moved[3:] - images[3:]).abs().flatten(1).amax(1).min() > 0.05


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: AdversarialTraining(eps=-0.1), "eps = -0.1; expected zero or more"),
    (lambda: AdversarialTraining(eps=math.inf), "eps = inf"),
    (lambda: AdversarialTraining(steps=0), "steps = 0; expected at least 1"),
    (lambda: AdversarialTraining(step_size=-1.0), "step_size = -1.0"),
    (lambda: AdversarialTraining(norm="l3"), "norm = 'l3'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "words"), BAD)
def test_settings_outside_their_values_are_refused(make: Callable[[], object], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        make()


# ------------------------------------------------------------------------------------------------------ the training


@pytest.mark.integration
def test_a_few_epochs_make_a_model_more_robust_than_the_undefended_one() -> None:
    found = digits.load()
    train, validation = split(subset(found.train, 540, 0), 40, 0)
    images, labels = found.test[:100].tensors()
    settings = TrainConfig(epochs=6, batch_size=32, learning_rate=1e-2, schedule="one-cycle")
    shares, clean = [], []
    for objective in (CrossEntropy(), AdversarialTraining(eps=0.1, steps=3)):
        model = create("tiny", input_shape=found.image_shape, classes=found.classes, seed=0)
        fit(model, train, validation, settings, objective=objective)
        attack = PGD(eps=0.1, steps=20)
        result = attack(model, images, labels)
        check_inside(attack, result, images)
        shares.append(result.robust_accuracy)
        clean.append(float((model(images).argmax(1) == labels).float().mean()))
    assert min(clean) > 0.8
    assert shares[0] < 0.2
    assert shares[1] > shares[0] + 0.25


def test_training_is_a_function_of_its_seed_and_tells_the_clean_accuracy() -> None:
    objective = AdversarialTraining(eps=0.1, steps=2)
    done = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        done.append(fit(tiny_model(), TRAIN, VALIDATION, SETTINGS, objective=objective))
        assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in snapshot(done[0].model).items():
        assert torch.equal(tensor, snapshot(done[1].model)[name]), name
    model, (images, labels) = done[0].model, VALIDATION.tensors()
    accuracy = float((model(images).argmax(1) == labels).float().mean())
    assert done[0].history[-1]["val_accuracy"] == pytest.approx(accuracy)
    assert done[0].history[-1]["val_loss"] > F.cross_entropy(model(images), labels).item()


def test_a_checkpoint_is_known_by_the_settings(tmp_path: Path) -> None:
    place = tmp_path / "state"
    objective = AdversarialTraining(eps=0.1, steps=1)
    whole = fit(tiny_model(), TRAIN, VALIDATION, SETTINGS, objective=objective, checkpoint=place)
    again = fit(tiny_model(), TRAIN, VALIDATION, SETTINGS, objective=objective, checkpoint=place)
    assert again.history == whole.history
    other = replace(objective, eps=0.2)
    with pytest.raises(TrainingError, match="belongs to a training with other"):
        fit(tiny_model(), TRAIN, VALIDATION, SETTINGS, objective=other, checkpoint=place)


def test_the_study_s_producer_knows_it(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "dataset": "digits",
        "architecture": "tiny",
        "dropout": 1.0,
        "train_images": 60,
        "validation_images": 15,
        "seed": 2,
        "training": {"epochs": 1, "batch_size": 30},
        "weights": {},
        "extra": [],
        "augment": [],
        "objective": {"name": "adversarial-training", "settings": {"eps": 0.05, "steps": 2}},
    }
    found = digits.load()
    train, validation = split(subset(found.train, 75, 2), 15, 2)
    expected = Recipe(objective=AdversarialTraining(eps=0.05, steps=2)).fit(
        create("tiny", input_shape=found.image_shape, classes=found.classes, seed=2),
        train,
        validation,
        TrainConfig(epochs=1, batch_size=30, seed=2),
    )
    defend_model(config, {}, tmp_path, tmp_path, Context(device="cpu", observer=NULL_OBSERVER))
    trained = load(tmp_path / "final.safetensors")[0]
    for name, tensor in snapshot(trained).items():
        assert torch.equal(tensor, snapshot(expected.model)[name]), name


def test_it_costs_a_gradient_a_step() -> None:
    def cost(**settings: object) -> float:
        return relative_step_cost({"name": "adversarial-training", "settings": settings})

    assert cost() == cost(steps=7) > cost(steps=2) > 2
    assert cost(steps=3) - cost(steps=2) == pytest.approx(
        relative_step_cost({"name": "adversarial-regularization", "settings": {"iterations": 3}})
        - relative_step_cost({"name": "adversarial-regularization", "settings": {"iterations": 2}})
    )


# -------------------------------------------------------------------------------------------------- the command line

TRAINING = ["train", "--dataset", "digits", "--train-images", "60", "--validation-images", "20", "--epochs", "2"]
TRAINING += ["--batch-size", "30", "--architecture", "tiny", "--recipe", "adversarial-training"]


def test_the_command_trains_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "robust.safetensors"
    own = ["--eps", "8/255", "--steps", "2", "--norm", "linf"]
    assert main.main([*TRAINING, *own, "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    settings = {"eps": 8 / 255, "steps": 2, "step_size": None, "norm": "linf", "random_start": True}
    settings |= {"label_smoothing": 0.0, "weight_perturbation": 0.0}
    recipe = json.loads(out.with_suffix(".json").read_text())["recipe"]
    assert recipe["objective"] == shown["objective"] == {"name": "adversarial-training", "settings": settings}

    found = digits.load()
    parts = split(subset(found.train, 80, 0), 20, 0)
    by_hand = fit(
        create("tiny", input_shape=found.image_shape, classes=found.classes, seed=0),
        *parts,
        TrainConfig(epochs=2, batch_size=30),
        objective=AdversarialTraining(**settings),
    )
    for name, tensor in snapshot(load(out)[0]).items():
        assert torch.equal(tensor, snapshot(by_hand.model)[name]), name


@pytest.mark.parametrize("name", ["fgsm-rs", "n-fgsm"])
def test_the_command_guards_a_training_that_may_collapse(name: str, tmp_path: Path) -> None:
    out = tmp_path / "robust.safetensors"
    command = [*TRAINING[:-1], name, "--out", str(out), "--overwrite"]
    assert main.main(command) == 0
    assert "rolled_back" in out.with_suffix(".history.csv").read_text().splitlines()[0]
    assert main.main([*command, "--no-guard"]) == 0
    assert "rolled_back" not in out.with_suffix(".history.csv").read_text().splitlines()[0]


def test_the_command_says_what_its_losses_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "robust.safetensors")
    assert main.main([*TRAINING, "--eps", "0.05", "--steps", "1", "--out", out]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Val. adv. loss" in shown
    assert "Loss and val. adv. loss: of the images that 1 steps of PGD find within 0.05 of the clean ones." in shown
    assert "Lowest adversarial validation loss after epoch" in shown


def test_what_is_not_given_is_the_library_s() -> None:
    recipe = RECIPES["adversarial-training"]
    assert recipe.defaults == vars(AdversarialTraining())
    made = make_objective({"name": "adversarial-training", "settings": recipe.defaults})
    assert made == AdversarialTraining()
    assert isinstance(made, Objective)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--recipe", "cross-entropy", "--eps", "0.1"],
            "--recipe cross-entropy has no --eps; choose --recipe adversarial-training",
        ),
        (
            ["--recipe", "adversarial-regularization", "--steps", "3"],
            "has no --steps; choose --recipe adversarial-tr",
        ),
        (["--multiplier", "0.3"], "--recipe adversarial-training has no --multiplier; choose"),
        (["--clip-min", "0"], "--recipe adversarial-training has no --clip-min"),
        (["--sigma", "0.1"], "has no --sigma"),
        (
            ["--recipe", "cross-entropy", "--norm", "l2"],
            "choose --recipe adversarial-regularization or adversarial-training",
        ),
        (["--eps", "much"], "Error parsing --eps: 'much' is not a number; write 0.2 or 8/255"),
        (["--eps=-1/255"], "eps = -0.0039"),
        (["--steps", "0"], "steps = 0; expected at least 1"),
        (["--step-size", "x"], "Error parsing --step-size: 'x' is not a number"),
    ],
)
def test_options_that_do_not_belong_or_are_wrong_are_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main.main([*TRAINING, *arguments, "--out", str(tmp_path / "m.safetensors")])
    except SystemExit as left:  # of an option that cannot be read
        code = left.code
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
