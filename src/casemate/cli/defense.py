"""The defences of `casemate train` as options: what each one has, its defaults, and what does not belong to it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from casemate.cli.options import Flag, number
from casemate.errors import SettingError

DefenseName = Literal["none", "adversarial-regularization", "adversarial-training", "at-temperature", "distillation"]
NEIGHBOURS: Mapping[str, Any] = {
    "multiplier": 0.5,
    "step_size": 0.2,
    "norm": "linf",
    "clip_min": 0.0,
    "clip_max": 1.0,
    "iterations": 1,
    "pgd_eps": None,
    "random_start": False,
}
"""What is not given: the paper's, but for its odd limits on pixels. (The library's defaults are those of Neural
Structured Learning, which barely move an image.)"""
WORST: Mapping[str, Any] = {"eps": 0.1, "steps": 7, "step_size": None, "norm": "linf", "random_start": True}
"""The library's defaults of adversarial training."""
TEMPERATURE = 20.0
"""The teacher's, if none is given: the paper names none, Papernot et al. 2016 take this one most often."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """With --defense adversarial-regularization; the defaults are the paper's, but for the limits on pixels. Early
    stopping then watches the neighbours' loss.
    """

    multiplier: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: 0.5)")] = None
    """Weight of the neighbours' loss."""
    step_size: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: 0.2; PGD: 2.5 eps / steps)")] = None
    """Length of the step to a neighbour, such as 0.2 or 8/255; with adversarial-training, of each of PGD's."""
    norm: Annotated[Literal["linf", "l2", "l1"] | None, arg(help_behavior_hint="(default: linf)")] = None
    """Norm in which steps are measured; with adversarial-training, eps too."""
    clip_min: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: 0; the paper: 0.25)")] = None
    """Smallest pixel of a neighbour; none: no limit."""
    clip_max: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: 1; the paper: none)")] = None
    """Largest pixel of a neighbour; none: no limit."""
    iterations: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Steps, each along a gradient of its own."""
    pgd_eps: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: no such limit)")] = None
    """Stay within X of the image, however many steps."""
    random_start: Flag = False
    """Step from a random point within PGD-EPS of the image, or else within STEP-SIZE."""


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """With --defense adversarial-training, which also takes --norm and --step-size. Early stopping then watches the
    loss of the images that PGD finds.
    """

    eps: Annotated[str | None, arg(metavar="EPS", help_behavior_hint="(default: 0.1)")] = None
    """Radius of the ball in which PGD looks, such as 0.1 or 8/255."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 7)")] = None
    """Its iterations, from a random start."""


@dataclass(frozen=True, kw_only=True)
class Distilling:
    """With --defense distillation, and with at-temperature, which trains its teacher."""

    teacher: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(distillation: required)")] = None
    """A model saved by casemate, best trained with at-temperature."""
    temperature: Annotated[
        float | None, arg(metavar="T", help_behavior_hint="(at-temperature: 20, distillation: that of the teacher)")
    ] = None
    """What logits are divided by while training."""


_OWN: Mapping[str, tuple[str, ...]] = {
    "none": ("label_smoothing",),
    "adversarial-regularization": tuple(field.name for field in fields(Neighbours)),
    "adversarial-training": (*(field.name for field in fields(WorstCase)), "norm", "step_size"),
    "at-temperature": ("temperature",),
    "distillation": ("teacher", "temperature"),
}
"""The options that each defence has."""
_NUMBERS = ("multiplier", "step_size", "clip_min", "clip_max", "pgd_eps", "eps")
"""Options that may be fractions."""


def objective_of(
    defense: DefenseName,
    neighbours: Neighbours,
    distilling: Distilling,
    label_smoothing: float,
    worst_case: WorstCase | None = None,
) -> dict[str, Any]:
    """The loss that is trained, as data: its name and all its settings (a temperature left to the teacher is None).

    Raises `SettingError` for what does not belong to the defence, what it lacks, and what is no number.
    """
    options = asdict(neighbours) | asdict(worst_case or WorstCase()) | asdict(distilling)
    options |= {"random_start": neighbours.random_start or None, "label_smoothing": label_smoothing or None}
    given = {name: value for name, value in options.items() if value is not None}
    _refuse_foreign(defense, given)
    if defense == "distillation" and distilling.teacher is None:
        raise SettingError(
            "--defense distillation without --teacher; name the file of a model to learn from, "
            "such as one trained with --defense at-temperature"
        )
    given |= {name: _limit(name, given[name]) for name in _NUMBERS if name in given}
    match defense:
        case "none":
            return {"name": "cross-entropy", "settings": {"label_smoothing": label_smoothing}}
        case "adversarial-regularization":
            return {"name": defense, "settings": {**NEIGHBOURS, **given}}
        case "adversarial-training":
            return {"name": defense, "settings": {**WORST, **given}}
        case "at-temperature":
            return {"name": defense, "settings": {"temperature": given.get("temperature", TEMPERATURE)}}
        case "distillation":
            return {"name": defense, "settings": {"temperature": given.get("temperature")}}


def _refuse_foreign(defense: str, given: Mapping[str, Any]) -> None:
    """Raise `SettingError` if an option is given that another defence has."""
    foreign = [name for name in given if name not in _OWN[defense]]
    if not foreign:
        return
    owners = " or ".join(name for name, own in _OWN.items() if foreign[0] in own)
    raise SettingError(
        f"--defense {defense} has no {', '.join(map(_flag, foreign))}; choose --defense {owners}, or leave it out"
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _limit(name: str, text: str) -> float | None:
    """A number; of a limit on pixels, `none` is the word for there being no limit."""
    if name in ("clip_min", "clip_max") and text.lower() == "none":
        return None
    return number(_flag(name), text)
