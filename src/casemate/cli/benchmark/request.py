"""What `casemate benchmark` compares: which models, and how they are measured."""

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from casemate.benchmark import plan_benchmark
from casemate.cli.shared.options import DataDir
from casemate.evaluation import Budget

_DEFAULTS: dict[str, Any] = {name: each.default for name, each in inspect.signature(plan_benchmark).parameters.items()}
_NAMES = arg(metavar="MODEL ...", help_behavior_hint="(default: all)")


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """Which models are compared, and how they are measured."""

    models: Annotated[Positional[tuple[str, ...]], _NAMES] = ()
    """Models of the benchmark; `--list` shows them. The teachers of distilled models are added."""
    eps: Annotated[str, arg(metavar="EPS")] = str(_DEFAULTS["eps"])
    """The radius in Linf at which the models are compared, for pixels in [0, 1]; fractions such as 8/255 are fine."""
    others: Annotated[tuple[str, ...], arg(metavar="EPS ...")] = tuple(map(str, _DEFAULTS["others"]))
    """Further radii, measured on the first test images only."""
    images: Annotated[int, arg(metavar="N")] = _DEFAULTS["images"]
    """Measure every model on the first N test images."""
    headline: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: none)")] = ()
    """Measure these models on all test images too, at EPS."""
    seeds: Annotated[int, arg(metavar="N")] = _DEFAULTS["seeds"]
    """How often these are measured on all test images, each time with another seed."""
    budget: Budget = _DEFAULTS["budget"]
    """How many and which attacks are run, as in `casemate evaluate`."""
    dataset: Annotated[str, arg(metavar="NAME")] = "fashion-mnist"
    """The data set, one of `casemate data list`."""
    data_dir: DataDir = None
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Use a stratified random sample of N training images, of which a fifth, at most 6,000, is set aside for
    validation."""
