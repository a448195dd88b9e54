"""The training loop: it learns, resumes bit for bit, stops early, and refuses what it cannot use."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from casemate.arrays import read_safetensors
from casemate.attacks import PGD
from casemate.data import LabelledImages, digits, split
from casemate.data.augment import Affine, AlternatingFlip, Augmentation, Flip, GaussianBlur, RandomApply, Shift
from casemate.data.noise import GaussianNoise, SaltAndPepper, Speckle
from casemate.defenses import AdversarialTraining, Recipe
from casemate.errors import CasemateError, ModelError, SettingError, ShapeError, StoreError, TrainingError
from casemate.evaluation import evaluate_clean
from casemate.hardening.selection import SelectedByRobustness
from casemate.models import Classifier, ModelMetadata, create, save
from casemate.models.accel.dropout import HashDropout
from casemate.training import CrossEntropy, Objective, TrainConfig, TrainResult, fit
from casemate.training.config import SCHEDULES
from casemate.training.loop import _batches
from casemate.training.state import Weights, checksum, snapshot
from conftest import TINY_CLASSES, TINY_SHAPE, Listener, tiny_images, tiny_model
from oracles import as_installed

_TRAIN, _VALIDATION = split(tiny_images(150, noise=90, wrong=0.2), 50, 0)
_KEYS = ["epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "processor_seconds"]


def _fit(settings: TrainConfig, *, model: Classifier | None = None, **other: Any) -> TrainResult:
    return fit(tiny_model() if model is None else model, _TRAIN, _VALIDATION, settings, **other)


def _assert_same(one: Weights, two: Weights) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def _differ(one: Weights, two: Weights) -> bool:
    return any(not torch.equal(tensor, two[name]) for name, tensor in one.items())


def _untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in history]


def _assert_same_training(one: TrainResult, two: TrainResult) -> None:
    _assert_same(snapshot(one.model), snapshot(two.model))
    _assert_same(one.best, two.best)
    assert one.kept.keys() == two.kept.keys()
    for epoch, weights in one.kept.items():
        _assert_same(weights, two.kept[epoch])
    assert _untimed(one.history) == _untimed(two.history)
    assert (one.best_epoch, one.stopped_at) == (two.best_epoch, two.stopped_at)


def _loss_and_accuracy(model: Classifier, images: LabelledImages) -> tuple[float, float]:
    with torch.no_grad():
        pixels, labels = images.tensors()
        logits = model.eval()(pixels)
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


# --- what a training does ----------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_it_learns_the_digits(optimizer: Any) -> None:
    found = digits.load()
    train, validation = split(found.train, 200, 0)
    model = create("tiny", input_shape=found.image_shape, classes=found.classes)
    rate = 0.02 if optimizer == "sgd" else 0.01
    done = fit(
        model, train, validation, TrainConfig(epochs=8, batch_size=64, optimizer=optimizer, learning_rate=rate)
    )  # fmt: skip
    loss, accuracy = _loss_and_accuracy(done.model, found.test)
    assert accuracy > 0.8  # chance is 0.1
    assert loss < 0.8  # and log(10) = 2.3
    assert done.model is model
    assert not model.training


@pytest.mark.integration
@pytest.mark.parametrize(
    "objective",
    [CrossEntropy(), pytest.param(AdversarialTraining(eps=0.05, steps=2), marks=pytest.mark.slow)],
    ids=lambda each: type(each).__name__,
)
def test_in_bfloat16_it_learns_the_digits_too_and_keeps_float32_weights(objective: Objective) -> None:
    found = digits.load()
    train, validation = split(found.train, 200, 0)
    settings = TrainConfig(epochs=4, batch_size=64, learning_rate=0.01)
    exact, coarse = (
        fit(
            create("tiny", input_shape=found.image_shape, classes=found.classes, seed=1),
            train,
            validation,
            replace(settings, precision=precision),
            objective=objective,
        )
        for precision in ("float32", "bfloat16")
    )
    weights = coarse.model.state_dict()
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
    assert not all(torch.equal(tensor, exact.model.state_dict()[name]) for name, tensor in weights.items())
    for model in (exact.model, coarse.model):
        assert _loss_and_accuracy(model, found.test)[1] > 0.6  # chance is 0.1


def test_the_history_says_what_happened() -> None:
    done = _fit(TrainConfig(epochs=3, batch_size=40, learning_rate=0.02, schedule="linear"))
    assert [list(row) for row in done.history] == [_KEYS] * 3
    assert [row["epoch"] for row in done.history] == [1, 2, 3]
    assert [row["learning_rate"] for row in done.history] == pytest.approx([0.02, 0.02 * 2 / 3, 0.02 / 3])
    assert all(row["seconds"] > 0 and row["processor_seconds"] > 0 for row in done.history)
    assert (done.stopped_at, done.kept) == (None, {})
    # the model holds the weights of the last epoch, and they are what the last row measured
    loss, accuracy = _loss_and_accuracy(done.model, _VALIDATION)
    assert loss == pytest.approx(done.history[-1]["val_loss"], rel=1e-5)
    assert accuracy == pytest.approx(done.history[-1]["val_accuracy"])
    assert done.best_epoch == 1 + int(np.argmin([row["val_loss"] for row in done.history]))


def test_loss_and_accuracy_are_means_over_images() -> None:
    # with a step of nothing and no dropout, the epoch's means are those of the untouched network
    model = tiny_model(name="linear")
    expected = _loss_and_accuracy(model, _TRAIN), _loss_and_accuracy(model, _VALIDATION)
    row = _fit(TrainConfig(epochs=1, batch_size=33, optimizer="sgd", learning_rate=1e-30), model=model).history[0]
    assert (row["loss"], row["accuracy"]) == pytest.approx(expected[0], rel=1e-5)
    assert (row["val_loss"], row["val_accuracy"]) == pytest.approx(expected[1], rel=1e-5)


def test_one_step_is_the_one_computed_by_hand() -> None:
    model = tiny_model(name="linear")
    images, labels = _TRAIN.tensors()
    x, y = images.flatten(1).double().numpy(), labels.numpy()
    weight, bias = (snapshot(model)[f"network.1.{name}"].double().numpy() for name in ("weight", "bias"))
    exponent = np.exp(x @ weight.T + bias)
    wrong = exponent / exponent.sum(1, keepdims=True) - np.eye(3)[y]
    step = 0.1 * 1.9  # Nesterov: gradient + 0.9 * momentum, which is the gradient itself in the first step
    done = _fit(TrainConfig(epochs=1, batch_size=200, optimizer="sgd", learning_rate=0.1), model=model)
    weights = snapshot(done.model)
    expected = weight - step * wrong.T @ x / len(x)
    np.testing.assert_allclose(weights["network.1.weight"].numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights["network.1.bias"].numpy(), bias - step * wrong.mean(0), rtol=1e-4, atol=1e-6)


def test_the_observer_hears_of_all_epochs(listener: Listener) -> None:
    _fit(TrainConfig(epochs=3, batch_size=4), observer=listener)
    assert listener.titles == ["Training, 3 epochs"]
    assert listener.done == pytest.approx(3)
    assert listener.total == 3
    assert listener.notes[-1].startswith("epoch 3, loss ")


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    _fit(TrainConfig(epochs=1), augment=(Shift(),))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentations_see_numbers_of_the_data_set_in_order() -> None:
    seen: list[tuple[int, list[int]]] = []

    @dataclass(frozen=True)
    class Look:
        def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
            del generator
            assert torch.equal(images, _TRAIN[index].tensors()[0])
            seen.append((epoch, index.tolist()))
            return images

    _fit(TrainConfig(epochs=2, batch_size=30), augment=(Look(),))
    for epoch in (1, 2):
        order = [number for when, numbers in seen if when == epoch for number in numbers]
        assert sorted(order) == list(range(100))
        assert order != sorted(order)
    assert seen[0][1] != seen[4][1]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (4, 9, [4]), (5, 4, [5]), (3, 2, [3]), (2, 2, [2])],
)
def test_a_last_batch_of_one_joins_the_one_before(count: int, size: int, sizes: list[int]) -> None:
    batches = _batches(count, size, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(count))


def test_batch_norm_survives_one_image_too_many() -> None:
    # batch norm over flat features refuses a batch of one, which 9 images in batches of 4 would leave
    model = create("paper-cnn", input_shape=TINY_SHAPE, classes=TINY_CLASSES)
    done = fit(model, _TRAIN[:9], _VALIDATION, TrainConfig(epochs=1, batch_size=4))
    assert math.isfinite(done.history[0]["loss"])


# --- weight decay, moving average, schedules ---------------------------------------------------------------------


@dataclass(frozen=True)
class Flat:
    """An objective without a slope: nothing moves the weights but their decay."""

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        del labels
        logits = model(images)
        return logits.sum() * 0, logits

    validate = __call__


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adam"])
def test_weight_decay_pulls_on_kernels_only(optimizer: Any) -> None:
    model = tiny_model()
    with torch.no_grad():  # batch norm and biases start at 0 and 1; make them all something
        for parameter in model.parameters():
            parameter.add_(0.5)
    before = snapshot(model)
    settings = TrainConfig(epochs=2, batch_size=50, optimizer=optimizer, learning_rate=0.01, weight_decay=0.1)
    after = snapshot(_fit(settings, model=model, objective=Flat()).model)
    kernels = {"network.0.weight", "network.3.weight", "network.8.weight"}
    for name, _ in model.named_parameters():
        if name not in kernels:
            assert torch.equal(after[name], before[name]), name
        elif optimizer == "adamw":  # decoupled: four steps of w - lr * decay * w
            torch.testing.assert_close(after[name], before[name] * (1 - 0.01 * 0.1) ** 4)
        else:
            assert (after[name].abs() < before[name].abs()).all()


def test_without_weight_decay_nothing_pulls() -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _fit(TrainConfig(epochs=1), model=model, objective=Flat())
    _assert_same(dict(model.named_parameters()), before)


def test_the_moving_average_is_the_one_computed_by_hand() -> None:
    # one step an epoch, so that the weights kept without averaging are those after every single step
    plain = TrainConfig(
        epochs=12,
        batch_size=200,
        optimizer="sgd",
        learning_rate=0.5,
        save_epochs=tuple(range(1, 13)),
        schedule="cosine",
    )
    steps = _fit(plain, model=tiny_model(name="linear")).kept
    averaged = _fit(replace(plain, ema=0.4), model=tiny_model(name="linear"))
    expected = {name: tensor.double() for name, tensor in snapshot(tiny_model(name="linear")).items()}
    for step in range(1, 13):
        decay = min(0.4, step / (step + 9))  # 1/10, 2/11, 3/12, 4/13, 5/14, 6/15 = 0.4, and 0.4 from then on
        for name, tensor in steps[step].items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
            torch.testing.assert_close(averaged.kept[step][name].double(), expected[name], rtol=1e-5, atol=1e-6)
    _assert_same(snapshot(averaged.model), averaged.kept[12])


def test_what_is_validated_is_the_average() -> None:
    done = _fit(TrainConfig(epochs=2, ema=0.9, batch_size=20))
    assert _loss_and_accuracy(done.model, _VALIDATION)[0] == pytest.approx(done.history[-1]["val_loss"], rel=1e-5)
    assert _differ(snapshot(done.model), snapshot(_fit(TrainConfig(epochs=2, batch_size=20)).model))


def test_schedules_at_their_corners() -> None:
    expected = {
        "constant": {0.0: 1, 0.5: 1, 1.0: 1},
        "linear": {0.0: 1, 0.25: 0.75, 0.5: 0.5, 1.0: 0},
        "cosine": {0.0: 1, 0.5: 0.5, 1.0: 0, 1 / 3: 0.75},
        "one-cycle": {0.0: 0.04, 0.125: 0.52, 0.25: 1, 0.625: 0.5, 1.0: 0},
    }
    assert SCHEDULES.keys() == expected.keys()
    for name, corners in expected.items():
        settings = TrainConfig(learning_rate=0.3, schedule=name)
        for done, factor in corners.items():
            assert settings.rate(done) == pytest.approx(0.3 * factor, abs=1e-12), (name, done)
    before, after = SCHEDULES["one-cycle"](0.25 - 1e-9), SCHEDULES["one-cycle"](0.25 + 1e-9)
    assert before == pytest.approx(after, abs=1e-6)


def test_every_step_has_its_own_rate() -> None:
    asked: list[float] = []

    def schedule(done: float) -> float:
        asked.append(done)
        return 1.0

    _fit(TrainConfig(epochs=2, batch_size=25, schedule=schedule))
    in_steps = [done for done in asked if done in {number / 8 for number in range(8)}]
    assert set(in_steps) == {number / 8 for number in range(8)}
    assert max(asked) < 1


# --- the same training again -------------------------------------------------------------------------------------

_PLAIN = TrainConfig(epochs=4, batch_size=16, learning_rate=0.01)
_EVERYTHING = TrainConfig(
    epochs=6,
    batch_size=16,
    optimizer="adamw",
    learning_rate=0.03,
    schedule="one-cycle",
    weight_decay=0.01,
    patience=2,
    continue_after_stop=True,
    ema=0.8,
    save_epochs=(1, 3, 6),
    seed=5,
)
_CHANGES = (AlternatingFlip(), Shift(pixels=1))


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(1)
    one = _fit(_EVERYTHING, augment=_CHANGES)
    torch.manual_seed(2)
    _assert_same_training(one, _fit(_EVERYTHING, augment=_CHANGES))


@pytest.mark.parametrize("hooked", [True, False])
def test_every_epoch_and_step_has_its_own_dropout(hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []
    model = tiny_model()

    def note(layer: nn.Module, out: Tensor) -> None:
        if layer.training or len(masks) % 3 == 2:  # not when it is first examined
            masks.append(out[:, :, 0, 0] == 0)

    if hooked:  # then the model is trained as it is, else with less work (`optimized_training`)
        dropout = next(layer for layer in model.modules() if isinstance(layer, nn.Dropout))
        dropout.register_forward_hook(lambda layer, given, out: note(layer, out))  # pyright: ignore[reportArgumentType]
    else:
        own = HashDropout.forward

        def looked_at(layer: HashDropout, values: Tensor) -> Tensor:
            kept = own(layer, values)
            note(layer, kept)
            return kept

        monkeypatch.setattr(HashDropout, "forward", looked_at)
    ones = replace(_TRAIN, pixels=torch.full_like(_TRAIN.pixels, 255))
    with torch.no_grad():  # what reaches the dropout is positive everywhere, so that its zeros are the mask
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.fill_(0.1)
    fit(model, ones, ones, TrainConfig(epochs=2, batch_size=50, learning_rate=1e-9, optimizer="sgd"))
    trained = [masks[place] for place in (0, 1, 3, 4)]  # each epoch: two batches to train, one to validate
    for number, mask in enumerate(trained):
        assert 0.1 < float(mask.float().mean()) < 0.4
        assert all(not torch.equal(mask, other) for other in trained[:number])


def test_another_seed_gives_other_weights() -> None:
    one, two = _fit(_PLAIN), _fit(replace(_PLAIN, seed=1))
    assert _differ(snapshot(one.model), snapshot(two.model))


class _Killed(BaseException):
    """What a signal does to a process."""


class _KillsIn(Listener):
    """An observer that ends the process in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def advance(self, amount: float, note: str = "") -> None:
        super().advance(amount, note)
        if note.startswith(f"epoch {self.epoch}, "):
            raise _Killed


def _killed_and_resumed(settings: TrainConfig, epochs: list[int], checkpoint: Path, **other: Any) -> TrainResult:
    for epoch in epochs:
        with pytest.raises(_Killed):
            _fit(settings, checkpoint=checkpoint, observer=_KillsIn(epoch), **other)
    listener = Listener()
    done = _fit(settings, checkpoint=checkpoint, observer=listener, **other)
    assert listener.notes[0] == (f"resumed after epoch {epochs[-1] - 1}" if epochs[-1] > 1 else "")
    assert listener.done == pytest.approx(settings.epochs)
    return done


@pytest.mark.parametrize("epochs", [[1], [2], [4], [2, 2, 3]])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resuming_ends_in_the_same_weights(tmp_path: Path, epochs: list[int], optimizer: Any) -> None:
    settings = replace(_PLAIN, optimizer=optimizer)
    resumed = _killed_and_resumed(settings, epochs, tmp_path / "state")
    _assert_same_training(_fit(settings), resumed)


def test_resuming_in_bfloat16_ends_in_the_same_weights(tmp_path: Path) -> None:
    settings = replace(_PLAIN, precision="bfloat16")
    _assert_same_training(_fit(settings), _killed_and_resumed(settings, [2], tmp_path / "state"))


@pytest.mark.parametrize("epochs", [[2], [4], [6], [2, 4, 5]])
def test_resuming_with_everything_on_ends_in_the_same_weights(tmp_path: Path, epochs: list[int]) -> None:
    whole = _fit(_EVERYTHING, augment=_CHANGES)
    resumed = _killed_and_resumed(_EVERYTHING, epochs, tmp_path / "state", augment=_CHANGES)
    _assert_same_training(whole, resumed)
    assert set(whole.kept) == {1, 3, 6}


def test_a_checkpoint_changes_nothing(tmp_path: Path) -> None:
    _assert_same_training(_fit(_EVERYTHING), _fit(_EVERYTHING, checkpoint=tmp_path / "state"))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = _fit(_EVERYTHING, checkpoint=tmp_path / "state")
    written = (tmp_path / "state").stat().st_mtime_ns
    again = _fit(_EVERYTHING, checkpoint=tmp_path / "state")
    _assert_same_training(first, again)
    assert again.history == first.history  # seconds too
    assert (tmp_path / "state").stat().st_mtime_ns == written


@pytest.mark.integration
def test_a_training_killed_by_a_signal_resumes_in_another_process(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import test_train as t
        class Kills(t._KillsIn):
            def advance(self, amount, note=""):
                if note.startswith(f"epoch {self.epoch}, "):
                    os.kill(os.getpid(), signal.SIGKILL)
        t._fit(t._EVERYTHING, augment=t._CHANGES, checkpoint=Path(sys.argv[2]), observer=Kills(3))
    """
    checkpoint = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent), str(checkpoint)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = _fit(_EVERYTHING, augment=_CHANGES, checkpoint=checkpoint)
    _assert_same_training(_fit(_EVERYTHING, augment=_CHANGES), resumed)


class _Counts(nn.Module):
    """Counts the images that it was trained on, in an object that its state dict holds and shares."""

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {"seen": 0, "by": torch.zeros(2), "kept": kept}

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.kept["seen"] += len(images)
            self.kept["by"] += 1
        return images

    def get_extra_state(self) -> dict[str, Any]:
        return self.kept

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.kept = state


def counting(kept: Any = None) -> Classifier:
    model = tiny_model()
    return Classifier(nn.Sequential(_Counts(kept), model.network), **model.interface)


EXTRA_STATE = "network.0._extra_state"


@pytest.mark.parametrize(
    "settings",
    [
        TrainConfig(epochs=3, batch_size=50),
        TrainConfig(epochs=3, batch_size=50, ema=0.9, save_epochs=(1, 2), keep_best=True),
    ],
)
def test_an_extra_state_of_any_kind_is_copied_and_resumed(settings: TrainConfig, tmp_path: Path) -> None:
    whole = _fit(settings, model=counting())
    assert whole.model.state_dict()[EXTRA_STATE]["seen"] == 100 * whole.epoch
    assert whole.best[EXTRA_STATE]["seen"] == 100 * whole.best_epoch
    assert {epoch: weights[EXTRA_STATE]["seen"] for epoch, weights in whole.kept.items()} == {
        epoch: 100 * epoch for epoch in settings.save_epochs
    }
    with pytest.raises(_Killed):
        _fit(settings, model=counting(), checkpoint=tmp_path / "state", observer=_KillsIn(2))
    resumed = _fit(settings, model=counting(), checkpoint=tmp_path / "state")
    for one, two in ((snapshot(whole.model), snapshot(resumed.model)), (whole.best, resumed.best)):
        assert one[EXTRA_STATE].keys() == two[EXTRA_STATE].keys()
        assert one[EXTRA_STATE]["seen"] == two[EXTRA_STATE]["seen"]
        assert torch.equal(one.pop(EXTRA_STATE)["by"], two.pop(EXTRA_STATE)["by"])
        _assert_same(one, two)


def test_an_extra_state_that_no_file_can_hold_is_refused_where_one_is_written(tmp_path: Path) -> None:
    settings = TrainConfig(epochs=1, batch_size=50)
    assert _fit(settings, model=counting(kept=_Killed)).best[EXTRA_STATE]["kept"] is _Killed
    says = r"the extra state 0\._extra_state \(a dict\) cannot be kept in a file"
    with pytest.raises(ModelError, match=says):
        _fit(settings, model=counting(kept=_Killed), checkpoint=tmp_path / "state")
    with pytest.raises(ModelError, match=r"the extra state 0\._extra_state is no tensor, and cannot be saved"):
        save(counting(), tmp_path / "model.safetensors", ModelMetadata(architecture="tiny", dataset="digits"))


# --- early stopping ----------------------------------------------------------------------------------------------

# few images, a fifth of them mislabelled, and large steps: the validation loss soon rises
_STOPPING = TrainConfig(epochs=40, batch_size=10, learning_rate=0.02, patience=3)


def test_early_stopping_restores_the_best_weights() -> None:
    done = _fit(_STOPPING)
    losses = [row["val_loss"] for row in done.history]
    assert done.stopped_at == len(losses) < 40
    assert done.best_epoch == 1 + int(np.argmin(losses)) == len(losses) - 3
    _assert_same(snapshot(done.model), done.best)
    assert _loss_and_accuracy(done.model, _VALIDATION)[0] == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.integration
def test_running_on_notes_where_it_would_have_stopped() -> None:
    stopped = _fit(_STOPPING)
    on = _fit(replace(_STOPPING, continue_after_stop=True, epochs=40, save_epochs=(stopped.best_epoch,)))
    assert (on.stopped_at, on.best_epoch) == (stopped.stopped_at, stopped.best_epoch)
    assert len(on.history) == 40
    _assert_same(on.best, snapshot(stopped.model))
    _assert_same(on.kept[stopped.best_epoch], snapshot(stopped.model))
    assert _untimed(on.history[: len(stopped.history)]) == _untimed(stopped.history)
    assert _differ(snapshot(on.model), on.best)
    assert _loss_and_accuracy(on.model, _VALIDATION)[0] == pytest.approx(on.history[-1]["val_loss"], rel=1e-5)


def test_a_stopped_training_stays_stopped_when_resumed(tmp_path: Path) -> None:
    first = _fit(_STOPPING, checkpoint=tmp_path / "state")
    _assert_same_training(first, _fit(_STOPPING, checkpoint=tmp_path / "state"))


def test_patience_counts_epochs_without_a_lower_loss() -> None:
    # nothing moves, so that no epoch after the first is better: 1 + patience epochs
    for patience in (1, 2, 4):
        settings = TrainConfig(epochs=9, patience=patience, optimizer="sgd", learning_rate=1e-30)
        done = _fit(settings, model=tiny_model(name="linear"))
        assert (done.best_epoch, done.stopped_at, len(done.history)) == (1, 1 + patience, 1 + patience)


@dataclass(frozen=True)
class LikesFirst:
    """An objective that is validated by something else than it trains: how unsure the first class is."""

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return CrossEntropy()(model, images, labels)

    def validate(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        assert not model.training
        with torch.no_grad():
            logits = model(images)
        return -logits.log_softmax(1)[:, 0].mean(), logits


def test_early_stopping_watches_what_the_objective_validates() -> None:
    done = _fit(replace(_STOPPING, epochs=12), objective=LikesFirst())
    images, labels = _VALIDATION.tensors()
    losses = [row["val_loss"] for row in done.history]
    assert float(LikesFirst().validate(done.model, images, labels)[0]) == pytest.approx(min(losses), rel=1e-5)
    assert done.best_epoch == 1 + int(np.argmin(losses))
    plain = _fit(replace(_STOPPING, epochs=12))
    assert done.history[0]["loss"] == plain.history[0]["loss"]
    assert done.history[0]["val_loss"] != plain.history[0]["val_loss"]


@dataclass(frozen=True)
class Taught:
    """An objective that holds a network of its own."""

    teacher: Classifier

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        del labels
        logits = model(images)
        with torch.no_grad():
            target = self.teacher(images).softmax(1)
        return F.cross_entropy(logits, target), logits

    def validate(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return CrossEntropy().validate(model, images, labels)


def test_a_training_is_known_by_its_teachers_weights(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"
    with pytest.raises(_Killed):
        _fit(_PLAIN, checkpoint=checkpoint, observer=_KillsIn(3), objective=Taught(tiny_model(1).eval()))
    with pytest.raises(TrainingError, match="belongs to a training with other"):
        _fit(_PLAIN, checkpoint=checkpoint, objective=Taught(tiny_model(2).eval()))
    resumed = _fit(_PLAIN, checkpoint=checkpoint, objective=Taught(tiny_model(1).eval()))
    _assert_same_training(_fit(_PLAIN, objective=Taught(tiny_model(1).eval())), resumed)


class _Plain:
    """An objective of a plain class, which has no text of its own."""

    def __init__(self, weight: float, teacher: Classifier | None = None) -> None:
        self.weight = torch.tensor([weight])
        self.attack = PGD(eps=0.01, steps=1)
        self.teacher = teacher

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(self.attack(model, images, labels).adversarial)
        return self.scaled(F.cross_entropy(logits, labels)), logits

    def scaled(self, loss: Tensor) -> Tensor:
        return self.weight.squeeze() * loss

    def validate(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return CrossEntropy().validate(model, images, labels)


class _Doubled(_Plain):
    def scaled(self, loss: Tensor) -> Tensor:
        return 2 * super().scaled(loss)


@dataclass(frozen=True, slots=True)
class _Slotted:
    weight: float

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return self.weight * F.cross_entropy(logits, labels), logits

    def validate(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return CrossEntropy().validate(model, images, labels)


def _brighter(images: Tensor, index: Tensor, epoch: int, generator: Generator, by: float = 0.1) -> Tensor:
    del index, epoch
    return (images + by * torch.rand(1, generator=generator)).clamp(0, 1)


def _by(by: float) -> Augmentation:
    return lambda images, index, epoch, generator: _brighter(images, index, epoch, generator, by=by)


class _Brighter:
    def __init__(self, by: float) -> None:
        self.by = {"amount": [by]}

    def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
        return _brighter(images, index, epoch, generator, by=self.by["amount"][0])


_OWN: list[Callable[[float], dict[str, Any]]] = [
    lambda value: {"objective": _Plain(value)},
    lambda value: {"objective": _Plain(1.0, teacher=tiny_model(int(10 * value)))},
    lambda value: {"objective": _Slotted(value)},
    lambda value: {"objective": _Doubled(1.0) if value == 0.2 else _Plain(1.0)},
    lambda value: {"objective": SelectedByRobustness(objective=_Plain(value), eps=0.1)},
    lambda value: {"objective": _Plain(value).__call__},
    lambda value: {"augment": [_by(value)]},
    lambda value: {"augment": [partial(_brighter, by=value)]},
    lambda value: {"augment": [_Brighter(value)]},
    lambda value: {"augment": [Flip(), RandomApply(change=_Brighter(value))]},
]


@pytest.mark.parametrize("own", _OWN)
def test_a_training_is_known_by_what_its_own_functions_and_objects_do(
    own: Callable[[float], dict[str, Any]], tmp_path: Path
) -> None:
    """Each call makes them anew, at another place in memory, as another process does."""
    checkpoint, settings = tmp_path / "state", replace(_PLAIN, epochs=2)
    with pytest.raises(_Killed):
        _fit(settings, checkpoint=checkpoint, observer=_KillsIn(2), **own(0.1))
    with pytest.raises(TrainingError, match="belongs to a training with other"):
        _fit(settings, checkpoint=checkpoint, **own(0.2))
    listener = Listener()
    _fit(settings, checkpoint=checkpoint, observer=listener, **own(0.1))
    assert listener.notes[0] == "resumed after epoch 1"


def test_what_cannot_be_compared_is_not_resumed(tmp_path: Path) -> None:
    change, settings = _Brighter(0.1), TrainConfig(epochs=1)
    change.by["lock"] = threading.Lock()  # type: ignore[assignment]
    _fit(settings, checkpoint=tmp_path / "state", augment=[change])
    with pytest.raises(TrainingError, match="or with functions that cannot be compared"):
        _fit(settings, checkpoint=tmp_path / "state", augment=[change])


# --- trouble -----------------------------------------------------------------------------------------------------


def _explodes_at(share: float, width: float = 1.0) -> Callable[[float], float]:
    return lambda done: 1e38 if share <= done < share + width else 1.0


@pytest.mark.parametrize(
    "schedule",
    [_explodes_at(0.5), _explodes_at(0.5 + 6 / 28, 1 / 28)],
    ids=["from the third epoch on", "in the last step of the third epoch"],
)
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(
    tmp_path: Path, schedule: Callable[[float], float]
) -> None:
    settings = TrainConfig(epochs=4, batch_size=16, optimizer="sgd", learning_rate=1.0, schedule=schedule)
    checkpoint = tmp_path / "state"
    with pytest.raises(TrainingError, match=r"loss \(epoch 3.* is not finite.*after epoch 2. Lower the learning rate"):
        _fit(settings, model=tiny_model(name="linear"), checkpoint=checkpoint)
    # what is on the disk is the whole and finite state after epoch 2: a resume starts from there and meets the same end
    listener = Listener()
    with pytest.raises(TrainingError, match="epoch 3"):
        _fit(settings, model=tiny_model(name="linear"), checkpoint=checkpoint, observer=listener)
    assert listener.notes[0] == "resumed after epoch 2"


def test_a_state_after_trouble_can_be_loaded(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"
    settings = replace(_PLAIN, schedule=_explodes_at(0.5), optimizer="sgd")
    with pytest.raises(TrainingError):
        _fit(settings, checkpoint=checkpoint)
    from safetensors.torch import load_file

    tensors = load_file(checkpoint)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert {name for name in tensors if name.startswith("model/")} == {f"model/{n}" for n in tiny_model().state_dict()}


@pytest.mark.parametrize(
    "other",
    [
        {"settings": replace(_PLAIN, seed=1)},
        {"settings": replace(_PLAIN, learning_rate=0.011)},
        {"settings": replace(_PLAIN, epochs=5)},
        {"settings": replace(_PLAIN, schedule="linear")},
        {"settings": replace(_PLAIN, schedule=lambda done: 1 - done / 2)},
        {"model": tiny_model(seed=1)},
        {"train": _TRAIN[:99]},
        {"train": LabelledImages(pixels=_TRAIN.pixels, labels=_TRAIN.labels.flip(0))},
        {"validation": _VALIDATION[:49]},
        {"objective": CrossEntropy(label_smoothing=0.1)},
        {"augment": _CHANGES},
        {"augment": _CHANGES[:1]},
    ],
    ids=lambda other: " ".join(other),
)
def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    checkpoint = tmp_path / "state"
    with pytest.raises(_Killed):
        _fit(_PLAIN, checkpoint=checkpoint, observer=_KillsIn(2))
    before = checkpoint.read_bytes()
    given = {"model": tiny_model(), "train": _TRAIN, "validation": _VALIDATION, "settings": _PLAIN} | other
    with pytest.raises(TrainingError, match="belongs to a training with other settings, model, data or functions"):
        fit(**given, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


def test_a_schedule_is_known_by_what_it_returns(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"
    with pytest.raises(_Killed):
        _fit(replace(_PLAIN, schedule=lambda done: 1 - done), checkpoint=checkpoint, observer=_KillsIn(3))
    resumed = _fit(replace(_PLAIN, schedule=lambda done: 1.0 - 1.0 * done), checkpoint=checkpoint)
    _assert_same_training(_fit(replace(_PLAIN, schedule="linear")), resumed)


@pytest.mark.integration
def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"
    with pytest.raises(_Killed):
        _fit(_EVERYTHING, checkpoint=checkpoint, observer=_KillsIn(3))
    good = checkpoint.read_bytes()
    model = tiny_model()
    before = snapshot(model)
    damaged = [b"", b"{}", b"\x80\x04N.", good[:7], good[:500], good[:-1], good + b"\0"]
    for place in [*range(0, 40, 3), *range(40, len(good), len(good) // 60)]:
        damaged.append(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
    for raw in damaged:
        checkpoint.write_bytes(raw)
        with pytest.raises(
            TrainingError, match=r"is not a complete training checkpoint \(.*delete it to train from the start"
        ):
            _fit(_EVERYTHING, model=model, checkpoint=checkpoint)
        _assert_same(snapshot(model), before)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "2"},
        {"epoch": -1},
        {"history": None},
        {"history": []},
        {"best_value": "low"},
        {"stopped_at": 1.5},
        None,
    ],
)
def test_a_checkpoint_that_says_what_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any] | None) -> None:
    """Its checksum fits all the same."""
    checkpoint = tmp_path / "state"
    with pytest.raises(_Killed):
        _fit(_EVERYTHING, checkpoint=checkpoint, observer=_KillsIn(3))
    tensors, metadata = read_safetensors(checkpoint)
    facts = json.loads(metadata["state"])
    if change is None:
        tensors["no title"] = tensors.pop(next(iter(tensors)))
    text = json.dumps(facts | (change or {}))
    write = {"state": text, "sha256": checksum(text, tensors)}
    checkpoint.write_bytes(safetensors.torch.save(tensors, metadata=write))
    with pytest.raises(TrainingError, match="is not a complete training checkpoint"):
        _fit(_EVERYTHING, checkpoint=checkpoint)


def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    checkpoint = tmp_path / "state"
    with pytest.raises(_Killed):
        _fit(_PLAIN, checkpoint=checkpoint, observer=_KillsIn(3))
    good = checkpoint.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, limits[1]))
        with pytest.raises(StoreError, match=f"cannot write {checkpoint}: .*File too large.*free some space"):
            _fit(_PLAIN, checkpoint=checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert checkpoint.read_bytes() == good


def test_a_folder_as_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CasemateError, match=str(tmp_path)):
        _fit(_PLAIN, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0; expected at least 1"),
        ({"epochs": -1}, "epochs = -1"),
        ({"batch_size": 1}, "batch_size = 1; expected at least 2"),
        ({"optimizer": "lion"}, "optimizer = 'lion'; expected adam, adamw or sgd"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0; expected positive and finite"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"learning_rate": math.inf}, "learning_rate = inf"),
        ({"learning_rate": math.nan}, "learning_rate = nan"),
        ({"schedule": "step"}, "schedule = 'step'; expected constant, linear, cosine, one-cycle"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1; expected zero or more"),
        ({"weight_decay": math.nan}, "weight_decay = nan"),
        ({"weight_decay": math.inf}, "weight_decay = inf"),
        ({"patience": 0}, "patience = 0; expected at least 1"),
        ({"precision": "float16"}, "precision = 'float16'; expected float32 or bfloat16"),
        ({"ema": 0.0}, "ema = 0.0; expected between 0 and 1"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"ema": math.nan}, "ema = nan"),
        ({"save_epochs": (0,)}, "save_epochs = 0; expected at least 1"),
        ({"save_epochs": (3, 51)}, r"save_epochs = .3, 51."),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_setting_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_a_bad_label_smoothing_is_refused_by_name(smoothing: float) -> None:
    with pytest.raises(SettingError, match=f"label_smoothing = {smoothing}"):
        CrossEntropy(label_smoothing=smoothing)


def test_label_smoothing_is_the_mix_with_the_mean_over_classes() -> None:
    model, (images, labels) = tiny_model(name="linear"), _TRAIN.tensors()
    loss, logits = CrossEntropy(label_smoothing=0.3)(model, images, labels)
    log_p = logits.log_softmax(1)
    expected = -(0.7 * log_p.gather(1, labels.unsqueeze(1)).squeeze(1) + 0.3 * log_p.mean(1)).mean()
    torch.testing.assert_close(loss, expected)


_EMPTY = LabelledImages(pixels=_TRAIN.pixels[:0], labels=_TRAIN.labels[:0])
_WIDE = LabelledImages(pixels=torch.zeros(4, 1, 8, 9, dtype=torch.uint8), labels=torch.tensor([0, 1, 2, 0]))


def _labelled(label: int) -> LabelledImages:
    return LabelledImages(pixels=_TRAIN.pixels[:2], labels=torch.tensor([0, label]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (_EMPTY, "0 {part} images; expected at least"),
        (_WIDE, r"{part} images of shape .1, 8, 9., but the model expects .1, 8, 8."),
        (_labelled(3), "a label 3 in the {part} images, but the model has 3 classes; expected labels from 0 to 2"),
        (_labelled(-1), r"{part} images without labels \(-1\); expected a label for each: only objectives"),
    ],
    ids=["empty", "wide", "label 3", "label -1"],
)
@pytest.mark.parametrize("part", ["training", "validation"])
def test_images_that_the_model_does_not_take_are_refused(bad: LabelledImages, message: str, part: str) -> None:
    model = tiny_model()
    before = snapshot(model)
    parts = (bad, _VALIDATION) if part == "training" else (_TRAIN, bad)
    with pytest.raises(ShapeError, match=message.format(part=part)):
        fit(model, *parts, TrainConfig(epochs=1))
    _assert_same(snapshot(model), before)


def test_one_image_is_not_a_training() -> None:
    with pytest.raises(ShapeError, match="1 training images; expected at least 2"):
        fit(tiny_model(), _TRAIN[:1], _VALIDATION, TrainConfig(epochs=1))


# ------------------------------------------------------------------------------- objectives and images of the caller's


def _mean_loss(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(images)
    return F.cross_entropy(logits, labels), logits


def test_a_function_is_an_objective_and_its_loss_that_of_the_validation(tmp_path: Path) -> None:
    settings = TrainConfig(epochs=2, batch_size=25)
    plain, own = _fit(settings), _fit(settings, objective=_mean_loss)
    _assert_same_training(plain, own)
    with as_installed():
        _fit(replace(settings, epochs=1), objective=_mean_loss, checkpoint=tmp_path / "kept")
    again = _fit(replace(settings, epochs=1), objective=_mean_loss, checkpoint=tmp_path / "kept")
    assert len(again.history) == 1


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("trades", "the objective is a str; expected an object such as casemate.defenses.TRADES"),
        (AdversarialTraining, r"is the class AdversarialTraining; expected an object of it: AdversarialTraining\(\)"),
        (nn.CrossEntropyLoss(), "the objective is a CrossEntropyLoss; expected an object such as"),
        (
            lambda model, images, labels: F.cross_entropy(model(images), labels),
            "returned a Tensor; expected two tensors",
        ),
        (
            lambda model, images, labels: (F.cross_entropy(model(images), labels, reduction="none"), model(images)),
            r"returned a loss of shape \(25,\); expected the mean over the batch",
        ),
        (
            lambda model, images, labels: _mean_loss(model, images, labels)[::-1],
            r"returned a loss of shape \(25, 3\); expected the mean over the batch",
        ),
    ],
)
def test_what_is_no_objective_is_refused_in_words(objective: Any, message: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=message):
        _fit(TrainConfig(epochs=1, batch_size=25), objective=objective)


_OF_UNIT_PIXELS: list[Augmentation] = [
    *(Shift(), Affine(), GaussianBlur(), GaussianNoise(std=0.01), Speckle(), SaltAndPepper()),
    RandomApply(change=Shift()),
]


@pytest.mark.parametrize("change", _OF_UNIT_PIXELS, ids=lambda each: type(each).__name__)
def test_augmentations_of_pixels_within_the_unit_interval_need_such_bounds(change: Augmentation) -> None:
    model = Classifier(tiny_model().network, bounds=(-1, 1))
    says = rf"the augmentation {type(change).__name__} for a model with bounds \(-1.0, 1.0\); expected \(0, 1\)"
    settings = TrainConfig(epochs=1)
    with pytest.raises(ModelError, match=says):
        fit(model, _TRAIN, _VALIDATION, settings, augment=[change])
    for recipe in (Recipe(extra=(change,)), Recipe(augment=(change,))):
        with pytest.raises(ModelError, match=says):
            recipe.fit(model, _TRAIN, _VALIDATION, settings)


def test_flips_and_functions_of_a_users_own_take_any_bounds() -> None:
    model = Classifier(tiny_model().network, bounds=(-1, 1))
    images, labels = _TRAIN.tensors()
    wide = 2 * images - 1, labels

    def darker(images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
        del index, epoch, generator
        return images - 0.1

    flips = [AlternatingFlip(), Flip(), RandomApply(change=Flip()), darker]
    fit(model, wide, wide, TrainConfig(epochs=1), augment=flips)


def test_lazy_layers_without_weights_are_refused_before_their_first_call() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    says = r"the network's 1\.weight has no values yet.*call the network once on a few images first"
    with pytest.raises(ModelError, match=says):
        fit(network, _TRAIN, _VALIDATION, TrainConfig(epochs=1))
    with pytest.raises(ModelError, match=says):
        AdversarialTraining(eps=0.1)(Classifier(network), *_TRAIN[:4].tensors())
    network(_TRAIN[:2].tensors()[0])
    fit(network, _TRAIN, _VALIDATION, TrainConfig(epochs=1))


def test_weights_on_the_device_meta_are_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to("meta")
    says = r"the network's 1\.weight has no values, since it is on the device meta"
    with pytest.raises(ModelError, match=says):
        fit(network, _TRAIN, _VALIDATION, TrainConfig(epochs=1))
    for attack in (PGD(eps=0.1, steps=2), evaluate_clean):
        with pytest.raises(ModelError, match=says):
            attack(network, *_TRAIN[:4].tensors())


@pytest.mark.parametrize("change", [lambda x: 255 * x, lambda x: (x - 0.5) / 0.25, lambda x: x * math.nan])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_images_outside_the_bounds_of_the_model_are_refused(change: Callable[[Tensor], Tensor], part: str) -> None:
    images, labels = _TRAIN.tensors()
    moved = change(images)
    wrong = (moved, labels)
    given = (wrong, _VALIDATION) if part == "training" else (_TRAIN, wrong)
    with pytest.raises(ShapeError, match=f"{part} images: .*(but the model's bounds are|not finite)"):
        fit(tiny_model(), *given, TrainConfig(epochs=1))
    if not moved.isnan().any():
        with pytest.raises(ShapeError, match="but the model's bounds are"):
            AdversarialTraining(eps=0.1)(tiny_model(), moved, labels)
