"""`assert_robust` and `assert_not_worse`: an evaluation as an assertion in a test.

What fails is an `AssertionError` with a short message. Wrong use, such as an eps in another unit or no images, raises
the error that `casemate.evaluate` raises.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from casemate.attacks.named import Attacks
from casemate.data import Array, ImageSource, ReadableImages, as_readable, first_of
from casemate.errors import CasemateError, SettingError
from casemate.evaluation import Budget, Evaluation, ModelComparison, Severity, compare, evaluate
from casemate.evaluation.comparison import expect_enough_images, images_for_margin, judge_regression
from casemate.intervals import Estimate
from casemate.models import Precision
from casemate.rng import all_forked, seed_all
from casemate.settings import parse_share
from casemate.testing.running_test import Call, active

_NORMAL = 1.96
"""Quantile of the normal distribution for a 95 % interval."""
_BUDGET: Budget = "quick"


def assert_robust(
    model: nn.Module,
    images: ImageSource | ReadableImages,
    labels: Array | None = None,
    *,
    eps: float | str | Sequence[float | str],
    at_least: float | str,
    norm: str = "linf",
    budget: Budget | None = None,
    attacks: Attacks | None = None,
    n: int | None = None,
    fail_by: Literal["lower", "estimate"] = "lower",
    seed: int = 0,
    precision: Precision = "float32",
    threads: int | None = None,
    **settings: Any,
) -> Evaluation:
    """Assert that a model is at least so robust, and that this result can be trusted; return the evaluation.

    Args:
        model, images, labels: as for `casemate.evaluate`: a `Classifier` or any module that maps images within [0, 1]
            to logits, and a DataLoader, a Dataset, or images with their labels.
        eps: the radius, in the unit of the pixels; of several, robustness is demanded at the largest.
        at_least: the robust accuracy demanded, such as 0.6 or "60%".
        norm: linf, l2, l1 or l0.
        budget: quick, autoattack, standard or thorough. None: that of pytest's option --casemate-budget, else quick.
        attacks: to be run instead of the budget's, as for `casemate.evaluate`.
        n: use the first n images; None: all.
        fail_by: what is compared: the lower end of the 95 % interval, or the estimate itself.
        seed: of all random draws, also of a loader that shuffles.
        precision: of the gradients, as for `casemate.evaluate`.
        threads: CPU threads of PyTorch during the evaluation; None: as many as now.
        settings: further arguments of `casemate.evaluate`, such as checks, thorough, batch_size or store.

    Raises:
        AssertionError: the robust accuracy is below, or not to be trusted.
        CasemateError: wrong use, as for `casemate.evaluate`; the evaluation was stopped since it would say nothing.
    """
    __tracebackhide__ = True
    try:
        least = parse_share("at_least", at_least)
        if fail_by not in ("lower", "estimate"):
            raise SettingError(f"fail_by {fail_by!r}; expected lower or estimate")
        shared = {"eps": eps, "norm": norm, "attacks": attacks, "seed": seed, "precision": precision, **settings}
        read = _read(images, labels, n, seed)
        with _threads(threads):
            found = evaluate(model, read, budget=_budget(budget), **shared)
    except CasemateError as error:
        raise error.with_traceback(None)  # noqa: B904  # its own causes are kept
    failure = _untrusted(found) or _shortfall(found, least, str(at_least), fail_by)
    _record_robust(found, str(at_least), passed=failure is None)
    if failure is not None:
        raise AssertionError(failure)
    return found


def assert_not_worse(
    new: nn.Module,
    old: nn.Module,
    images: ImageSource | ReadableImages,
    labels: Array | None = None,
    *,
    eps: float | str | Sequence[float | str],
    margin: float | str | None = None,
    norm: str = "linf",
    budget: Budget | None = None,
    attacks: Attacks | None = None,
    n: int | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    threads: int | None = None,
    **settings: Any,
) -> ModelComparison:
    """Assert that a new model is not less robust than an old one, on the same images; return the comparison.

    Without a margin it fails if the robust accuracy is lower beyond chance (McNemar's test at the 5 % level). With one
    it fails unless the 95 % interval of the paired difference shows that it is lower by less than the margin.

    Args:
        new, old: the models, evaluated with the same settings.
        margin: a share such as 0.02 or "2%", or None.
        images, labels, eps, norm, budget, attacks, n, seed, precision, threads, settings: as for `assert_robust`.

    Raises:
        AssertionError: the new model is worse, or one of the numbers is not to be trusted.
        CasemateError: as for `assert_robust`; so few images that no model could meet the margin.
    """
    __tracebackhide__ = True
    start = time.perf_counter()
    try:
        allowed = None if margin is None else parse_share("margin", margin)
        shared = {"eps": eps, "norm": norm, "attacks": attacks, "seed": seed, "precision": precision, **settings}
        read = _read(images, labels, n, seed)
        if allowed is not None:
            expect_enough_images(len(read), allowed)
        with _threads(threads):
            before, after = (evaluate(each, read, budget=_budget(budget), **shared) for each in (old, new))
        found = compare(before, after, names=("the old model", "the new model"))
    except CasemateError as error:
        raise error.with_traceback(None)  # noqa: B904  # its own causes are kept
    name = f"robust accuracy at eps {after.verdict.number.shown_eps}"
    judged = judge_regression({name: found.robust}, names=found.names, margin=allowed)
    untrusted = [
        f"{which}: {failure}"
        for which, each in zip(found.names, (before, after), strict=True)
        if (failure := _untrusted(each)) is not None
    ]
    worse = [
        judged.sentence,
        _compared(found),
        *([] if allowed is None else [f"to do: {_margin_advice(found, allowed)}"]),
    ]
    failure = "\n".join(untrusted) or ("\n  ".join(worse) if judged.worse else None)
    _record_not_worse(found, margin, time.perf_counter() - start, passed=failure is None)
    if failure is not None:
        raise AssertionError(failure)
    return found


def _read(images: ImageSource | ReadableImages, labels: Array | None, n: int | None, seed: int) -> ReadableImages:
    """The images to evaluate on; those of a loader that shuffles are the same in every run."""
    if n is not None and n < 1:
        raise SettingError(f"n = {n}; expected at least 1, or None for all images")
    with all_forked():
        seed_all(seed, seed)
        read = as_readable(images, labels)
    return read if n is None else first_of(read, n)


def _budget(given: Budget | None) -> Any:
    """The budget: as given, or that of the running pytest, or quick."""
    test = active()
    return given or (test.budget if test is not None else None) or _BUDGET


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """A context in which PyTorch uses `count` CPU threads."""
    if count is not None and count < 1:
        raise SettingError(f"threads = {count}; expected at least 1")
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _untrusted(found: Evaluation) -> str | None:
    """The message if the result is not to be trusted, with every finding that voids it; else None."""
    if found.verdict.trust.trusted:
        return None
    voids = [each for each in found.findings if each.severity is Severity.VOIDS]
    lines = [f"robust accuracy {_setting(found)} is not to be trusted (computed: {found.robust[-1]:n})"]
    return "\n".join([*lines, *(f"  finding {each.check}: {each.sentence}" for each in voids)])


def _shortfall(found: Evaluation, least: float, text: str, fail_by: str) -> str | None:
    """The message if the robust accuracy is below what is demanded; else None."""
    robust = found.robust[-1]
    lower = fail_by == "lower"
    if (robust.low if lower else robust.value) >= least:
        return None
    what = "the lower end of the 95 % interval" if lower else "the estimate"
    lines = [
        f"robust accuracy {_setting(found)} is {robust:n}: {what} is below {text}",
        f"without an attack: {found.clean.accuracy}",
    ]
    fooled = found.successes_by_attack
    if total := sum(fooled.values()):
        name = max(fooled, key=lambda each: fooled[each])
        lines.append(f"fooled most: {name}, first on {fooled[name]:,} of {total:,} fooled images")
    if doubts := found.verdict.trust.doubts + found.verdict.trust.unmade:
        lines.append(doubts.strip())
    return "\n  ".join([*lines, f"to do: {_advice(robust, least)}"])


def _advice(robust: Estimate, least: float) -> str:
    """What to do about a robust accuracy that falls short."""
    if robust.value > least:
        needed = math.ceil(_NORMAL**2 * least * (1 - least) / (robust.value - least) ** 2)  # Wilson's interval, solved
        return f"use more images, about {needed:,} for this estimate; or demand less"
    return "train for robustness (casemate harden, casemate.AdversarialTraining), or demand less"


def _margin_advice(found: ModelComparison, margin: float) -> str:
    """What to do about a drop of the margin or more that is not excluded."""
    needed = images_for_margin(found.robust, margin)
    if needed is None:
        return "keep the old model, or allow a larger margin: the difference itself is as large, or nearly"
    return f"use more images, about {needed:,} for this difference; or allow a larger margin"


def _compared(found: ModelComparison) -> str:
    """Which images decide a comparison, in a few words."""
    one = found.robust
    return (
        f"{one.only_first:,} images are correct with {found.names[0]} only, {one.only_second:,} with the new one only"
    )


def _setting(found: Evaluation) -> str:
    return f"at {found.verdict.number.setting}"


def _record_robust(found: Evaluation, at_least: str, *, passed: bool) -> None:
    """Leave the result of `assert_robust` in the running test, if there is one."""
    robust, number = found.robust[-1], found.verdict.number
    _record(
        f"{robust:n} robust at eps {number.shown_eps} ({number.norm}, {number.budget}), at least {at_least}: "
        f"{found.verdict.word}, {found.seconds:.1f} s",
        passed=passed,
        facts={
            **_as_texts(robust, "robust_accuracy"),
            "clean_accuracy": f"{found.clean_accuracy:.6g}",
            "n": str(robust.n),
            "eps": number.shown_eps,
            "norm": number.norm,
            "budget": number.budget,
            "at_least": at_least,
            "verdict": found.verdict.word,
            "seconds": f"{found.seconds:.3f}",
        },
    )


def _record_not_worse(found: ModelComparison, margin: float | str | None, seconds: float, *, passed: bool) -> None:
    """Leave the result of `assert_not_worse` in the running test, if there is one."""
    allowed = "no margin" if margin is None else f"margin {margin}"
    _record(
        f"new minus old {found.robust.words}, n = {found.n:,}, {allowed}, {seconds:.1f} s",
        passed=passed,
        facts={
            **_as_texts(found.robust.difference, "difference"),
            "p_value": f"{found.robust.p_value:.6g}",
            "n": str(found.n),
            "seconds": f"{seconds:.3f}",
        },
    )


def _as_texts(found: Estimate, name: str) -> dict[str, str]:
    """The value and the ends of its interval, as texts by name."""
    return {each: f"{value:.6g}" for each, value in found.as_numbers(name).items()}


def _record(line: str, *, passed: bool, facts: dict[str, str]) -> None:
    test = active()
    if test is not None:
        word = "passed" if passed else "FAILED"
        test.record(Call(line=f"{word}: {line}", facts={**facts, "passed": str(passed).lower()}))
