"""Training settings, and learning-rate schedules by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import nn

from casemate.errors import SettingError
from casemate.settings import at_least, between, expect, listed, not_negative, one_of, positive
from casemate.timing import TrainPrecision

Schedule = Callable[[float], float]
"""Maps the share of training steps done, in [0, 1), to a factor on the learning rate."""


def _one_cycle(done: float, rise: float = 0.25) -> float:
    """Factor on the learning rate after the share `done` of all steps: linear rise, then cosine decay to zero.

    It rises from 0.04 to 1 over the share `rise` of the steps (Smith and Topin 2019).
    """
    if done < rise:
        return 0.04 + 0.96 * done / rise
    return 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))


SCHEDULES: Mapping[str, Schedule] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "one-cycle": _one_cycle,
}


@final
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop; the defaults are Keras' (Adam at 1e-3), with batches of 128."""

    epochs: Annotated[int, at_least(1)] = 50
    """Passes over the training images."""
    batch_size: Annotated[int, at_least(2, "batch normalisation needs two")] = 128
    """Images per training step."""
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], one_of("adam", "adamw", "sgd")] = "adam"
    """Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov momentum 0.9."""
    learning_rate: Annotated[float, positive()] = 1e-3
    """Largest learning rate, scaled by the schedule."""
    schedule: str | Schedule = "constant"
    """A name (constant, linear, cosine, one-cycle), or in Python a function of the share of steps done."""
    weight_decay: Annotated[float, not_negative()] = 0.0
    """Weight decay of kernels, not biases or batch normalisation; decoupled with adamw, else part of the gradient."""
    patience: Annotated[int, at_least(1)] | None = None
    """Early stopping after this many epochs without a better value of `monitor`, with the best weights; None: never."""
    continue_after_stop: bool = False
    """With `patience`: train to the last epoch all the same, and only record where early stopping would have ended the
    training, and the best weights until then."""
    monitor: Annotated[Literal["loss", "robust-accuracy"], one_of("loss", "robust-accuracy")] = "loss"
    """By what the best epoch is chosen: the lowest validation loss, or the highest share of validation images that PGD
    with 10 steps does not fool in the ball of the objective (Rice, Wong and Kolter 2020)."""
    keep_best: bool = False
    """Train to the last epoch, and return the weights of the best one; not with `patience`, which does that too."""
    guard: bool = False
    """Against catastrophic overfitting (Wong, Rice and Kolter 2020): an epoch after which PGD fools far more validation
    images than before is undone, and training goes on at half the learning rate. `patience` does not count it."""
    ema: Annotated[float, between(0, 1, without_low=True, without_high=True)] | None = None
    """Decay per step (such as 0.999) of a moving average of the weights, to be validated and returned; None: no
    average."""
    swa_start: Annotated[float, between(0, 1, without_high=True)] | None = None
    """Share of all training steps (such as 0.75) from which on the weights after every step are averaged evenly, to be
    validated and returned (stochastic weight averaging, Izmailov et al. 2018); None: no average. Not with `ema`.
    Running statistics of batch normalisation are averaged too, where the paper computes them again."""
    precision: Annotated[TrainPrecision, one_of("float32", "bfloat16")] = "float32"
    """Precision of convolutions and matrix products in training steps (Micikevicius et al. 2018); weights, optimiser,
    losses and validation use float32. Some processors multiply bfloat16 several times as fast."""
    save_epochs: tuple[int, ...] = ()
    """Epochs, from 1, after which the weights are kept, to be returned besides the final ones (`TrainResult.kept`)."""
    seed: int = 0
    """Seed of shuffling, augmentation and dropout (initial weights have a seed of their own)."""

    def __post_init__(self) -> None:
        expect(self)
        if not (callable(self.schedule) or (isinstance(self.schedule, str) and self.schedule in SCHEDULES)):
            raise SettingError(f"schedule = {self.schedule!r}; expected {', '.join(SCHEDULES)}")
        if self.ema is not None and self.swa_start is not None:
            raise SettingError("ema and swa_start, two averages of the weights; expected one of them")
        if self.keep_best and self.patience is not None:
            raise SettingError("keep_best with patience, which returns the best weights too; expected one of them")
        kept = [at_least(1).check(each, "save_epochs") for each in listed(self.save_epochs, "save_epochs")]
        if any(epoch > self.epochs for epoch in kept):
            raise SettingError(f"save_epochs = {self.save_epochs!r}; expected epochs from 1 to {self.epochs}")

    def rate(self, done: float) -> float:
        """The learning rate, by the schedule, when the share `done` of all training steps, in [0, 1), is done."""
        factor = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        return self.learning_rate * factor(done)

    @property
    def averages(self) -> bool:
        """Whether the weights are averaged over steps, and the average is what counts."""
        return self.ema is not None or self.swa_start is not None

    def decay(self, step: int, per_epoch: int, undone: Sequence[int] = ()) -> float:
        """The weight that the average of the weights keeps at a step, from 1; the rest is that of the new weights.

        With `ema` it begins small, to forget the initial weights. With `swa_start` it is 0 until that share of the
        steps is done, and steps of the epochs `undone` do not count.
        """
        if self.ema is not None:
            return min(self.ema, step / (step + 9))
        start = int((self.swa_start or 0.0) * self.epochs * per_epoch)
        lost = sum(max(0, epoch * per_epoch - max(start, (epoch - 1) * per_epoch)) for epoch in undone)
        averaged = step - start - lost
        return (averaged - 1) / averaged if averaged > 1 else 0.0

    @property
    def measures_robustness(self) -> bool:
        """Whether each epoch ends with PGD on the validation images."""
        return self.guard or self.monitor == "robust-accuracy"

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser for `model`, with weight decay on kernels (two dimensions or more) only.

        Adam's epsilon is Keras' 1e-7. (Keras adds it before the bias correction and PyTorch after it, which makes no
        difference beyond the first few hundred steps.)
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=0.9, nesterov=True)
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.learning_rate, eps=1e-7)
