"""What `casemate certify` certifies: the model, the images, how, and what is attacked."""

import inspect
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import arg

from casemate.certification import Smoothing
from casemate.certification.certificate import Method
from casemate.cli.evaluate.request import BUDGET_HELP, EPS, IMAGES, ImageCount
from casemate.cli.shared.options import (
    DataDir,
    DataFile,
    ModelName,
    ModelOptions,
    Reading,
    Seed,
    Subset,
    TestSet,
    parse_number,
)
from casemate.errors import SettingError
from casemate.evaluation import Budget
from casemate.evaluation.certified import evaluate_certified
from casemate.settings import at_least

CertifiedNorm = Literal["linf", "l2", "l1"]
"""The norms in which there are certificates."""
DEFAULTS: dict[str, Any] = {
    name: each.default for name, each in inspect.signature(evaluate_certified).parameters.items()
}
"""The defaults of the arguments of `casemate.evaluate_certified`."""
_EPS_WORDS = ", ".join(f"{eps} {norm}" for norm, eps in EPS.items() if norm != "l0")
_SMOOTHING = Smoothing()
_SMOOTHED_EPS = (0.5, 1.0, 2.0)
"""The radii of a smoothed model if none are given, in units of sigma."""


@dataclass(frozen=True, kw_only=True)
class SmoothingOptions:
    """Randomised smoothing, which certifies the smoothed model in l2."""

    smoothing: Annotated[str | None, arg(metavar="SIGMA", help_behavior_hint="(default: none)")] = None
    """Certify the smoothed model, by normal noise with this standard deviation, in the unit of the pixels."""
    draws: Annotated[
        tuple[int, ...],
        arg(metavar="N0 N", help_behavior_hint=f"(default: {_SMOOTHING.n0} {_SMOOTHING.n})"),
    ] = ()
    """Noisy copies of each image: N0 to select the class, N more to certify it. A larger N can certify larger
    radii."""
    alpha: Annotated[str | None, arg(metavar="P", help_behavior_hint=f"(default: {_SMOOTHING.alpha:g})")] = None
    """Probability, at most, that the certificate of one image is false."""

    def settings(self) -> Smoothing | None:
        """The settings of the smoothing; None without. Raises `SettingError`."""
        if self.smoothing is None:
            given = {"--draws": bool(self.draws), "--alpha": self.alpha is not None}
            for name, is_given in given.items():
                if is_given:
                    raise SettingError(f"{name} is about randomised smoothing; give --smoothing SIGMA too")
            return None
        if len(self.draws) not in (0, 2):
            raise SettingError(
                f"--draws {' '.join(map(str, self.draws))}; expected two numbers: N0 draws to select the class, N to "
                "certify it"
            )
        n0, n = self.draws or (_SMOOTHING.n0, _SMOOTHING.n)
        alpha = _SMOOTHING.alpha if self.alpha is None else parse_number("--alpha", self.alpha)
        return Smoothing(sigma=parse_number("--smoothing", self.smoothing), n0=n0, n=n, alpha=alpha)


@dataclass(frozen=True, kw_only=True)
class CertifyRequest:
    """What to certify, on which images, and what to attack."""

    model: ModelName
    dataset: TestSet = None
    data: DataFile = None
    data_dir: DataDir = None
    images: ImageCount = IMAGES
    subset: Subset = None
    norm: Annotated[CertifiedNorm | None, arg(help_behavior_hint="(default: linf; l2 with --smoothing)")] = None
    """The norm in which eps is measured."""
    eps: Annotated[
        tuple[str, ...],
        arg(metavar="EPS ...", help_behavior_hint=f"(default: {_EPS_WORDS}; with --smoothing, 0.5 1 2 times SIGMA)"),
    ] = ()
    """Radii in pixel units, for pixels in [0, 1]; fractions such as 8/255 are fine."""
    method: Annotated[Method | None, arg(help_behavior_hint=f"(default: {DEFAULTS['method']})")] = None
    """How bounds are computed: interval is fast and loose, crown slow and tight. Cheaper ones are tried first."""
    attack: bool = True
    """Attack the images that are not certified, and a sample of those that are."""
    budget: Annotated[Budget | None, arg(help=BUDGET_HELP, help_behavior_hint=f"(default: {DEFAULTS['budget']})")] = (
        None
    )
    sample: Annotated[int | None, arg(metavar="N", help_behavior_hint=f"(default: {DEFAULTS['sample']})")] = None
    """Attack N of the certified images too, as a check of the certificate."""
    seed: Seed = 0
    smoothed: SmoothingOptions = field(default_factory=SmoothingOptions)
    loading: ModelOptions = field(default_factory=ModelOptions)
    reading: Reading = field(default_factory=Reading)

    def check(self) -> None:
        """Raise `SettingError` for options that do not go together, or a number outside its range."""
        smoothed = self.smoothed.settings() is not None
        given = {"--method": self.method, "--budget": self.budget, "--sample": self.sample}
        for name, value in given.items():
            if value is not None and smoothed:
                raise SettingError(
                    f"{name} with --smoothing: the smoothed model is certified by its noise, and nothing is attacked; "
                    "leave it out"
                )
            if value is not None and not self.attack and name != "--method":
                raise SettingError(f"{name} with --no-attack, with which nothing is attacked; give one of the two")
        if smoothed and self.norm not in (None, "l2"):
            raise SettingError(f"--norm {self.norm} with --smoothing, whose certificates are in l2; leave --norm out")
        if self.sample is not None:
            at_least(0, "certified images that are attacked").check(self.sample, "sample")
        if self.loading.black_box and not smoothed:
            raise SettingError(
                "--black-box: bounds need the layers of the network, which a black box does not show; give a model in "
                "PyTorch or ONNX, or certify the smoothed one with --smoothing SIGMA"
            )

    @property
    def measured_in(self) -> CertifiedNorm:
        """The norm in which eps is measured."""
        return self.norm or ("linf" if self.smoothed.smoothing is None else "l2")

    @property
    def radii(self) -> tuple[str, ...]:
        """The values of eps as the user wrote them; if there are none, the defaults. Raises `SettingError`."""
        chosen = self.smoothed.settings()
        if self.eps:
            return self.eps
        return (EPS[self.measured_in],) if chosen is None else tuple(f"{n * chosen.sigma:g}" for n in _SMOOTHED_EPS)
