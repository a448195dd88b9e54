"""The options by which `casemate compare` evaluates two models: those of `casemate evaluate` for both."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from casemate.cli.evaluate.request import (
    DEFAULTS,
    IMAGES,
    BudgetOption,
    EvaluateRequest,
    Force,
    ImageCount,
    NoImages,
    NormOption,
    PrecisionOption,
    Radii,
    Thorough,
)
from casemate.cli.shared.options import (
    DataDir,
    DataFile,
    ModelOptions,
    Reading,
    Seed,
    Subset,
    TestSet,
    words_of_options,
)


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """How A and B are evaluated, if they are models; finished evaluations take none of these options."""

    dataset: TestSet = None
    data: DataFile = None
    data_dir: DataDir = None
    images: ImageCount = IMAGES
    subset: Subset = None
    norm: NormOption = DEFAULTS["norm"]
    eps: Radii = ()
    budget: BudgetOption = DEFAULTS["budget"]
    thorough: Thorough = False
    force: Force = False
    precision: PrecisionOption = DEFAULTS["precision"]
    seed: Seed = 0
    no_images: NoImages = False
    weights_b: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: those of --weights)")] = None
    """Weights for B, where --weights are those of A and both have the same code."""
    loading: ModelOptions = field(default_factory=ModelOptions)
    reading: Reading = field(default_factory=Reading)

    def of(self, model: str, *, second: bool = False) -> EvaluateRequest:
        """The evaluation of one of the two models; `second` for B."""
        own = ("weights_b", "loading")
        shared = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in own}
        loading = self.loading
        if second and self.weights_b is not None:
            loading = replace(loading, weights=self.weights_b)
        return EvaluateRequest(model=model, loading=loading, **shared)

    def given(self) -> list[str]:
        """The options that are not at their defaults, by name."""
        default = CompareRequest()
        plain = [each.name for each in fields(self) if each.name not in ("loading", "reading")]
        names = [f"--{name.replace('_', '-')}" for name in plain if getattr(self, name) != getattr(default, name)]
        words = [*words_of_options(self.loading), *words_of_options(self.reading)]
        return [*names, *(word for word in words if word.startswith("--"))]
