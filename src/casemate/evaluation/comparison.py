"""Comparison of two evaluations, or of two results of attacks, on the same images: which of two models is more robust.

Both are measured on the same images, so the difference is paired: McNemar's test, and the interval of Bonett and Price.
Two intervals that overlap say nothing about a difference on the same images.

`judge_regression` decides whether a model has become worse, in one of two ways. Without a margin it is worse if that is
beyond chance, so few images find few regressions. With a margin it is worse unless a drop of the margin or more can be
excluded, so few images pass no model.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor

from casemate.attacks import AttackResult
from casemate.data import LabelledImages, ReadableImages
from casemate.errors import SettingError, ShapeError
from casemate.evaluation.evaluation import Evaluation
from casemate.evaluation.intervals import (
    Estimate,
    mcnemar,
    only_one,
    paired_difference,
    percent,
    share,
)
from casemate.evaluation.shards import shards_of
from casemate.evaluation.verdict import Verdict
from casemate.norms import format_eps
from casemate.notebook import html_table
from casemate.settings import listed

_LEVEL = 0.05
"""The p-value of McNemar's test below which a difference is more than chance."""


_MOST_IMAGES = 1_000_000
"""Nobody is advised to attack more."""


@final
@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two accuracies on the same images, and their difference."""

    first: Estimate
    second: Estimate
    difference: Estimate
    """The second minus the first, with the 95 % interval of a paired difference."""
    p_value: float
    """p-value of McNemar's test that both are equal."""
    only_first: int
    """Number of images that only the first classifies correctly."""
    only_second: int
    """Number of images that only the second classifies correctly."""

    @property
    def is_significant(self) -> bool:
        """Whether McNemar's test finds a difference at the 5 % level."""
        return self.p_value < _LEVEL

    @property
    def words(self) -> str:
        """The difference in percentage points, with its interval and the p-value, as text."""
        return f"{_points(self.difference.value)} points ({_points(self.difference.low)} to " + (
            f"{_points(self.difference.high)}), McNemar p = {self.p_value:.2g}"
        )

    @property
    def drop(self) -> str:
        """Both accuracies and the difference, as text: "from 60.0 % to 52.0 %, -8.0 points (...)"."""
        return f"from {percent(self.first.value)} to {percent(self.second.value)}, {self.words}, n = {self.first.n:,}"

    def as_json(self) -> dict[str, Any]:
        """All fields, for a file: the first as `a`, the second as `b`."""
        return {
            "a": self.first.as_json(),
            "b": self.second.as_json(),
            "difference": self.difference.as_json(),
            "p_value": self.p_value,
            "only_a": self.only_first,
            "only_b": self.only_second,
        }


@final
@dataclass(frozen=True, kw_only=True)
class Regression:
    """The answer to whether a second model is worse than a first, from `judge_regression`."""

    worse: bool
    """Whether it is worse beyond chance; with a margin, whether a drop of that or more cannot be excluded."""
    sentence: str
    """The answer with the accuracies that decide it."""
    margin: float | None
    """The share by which the second may be worse; None if only chance may explain a difference."""
    failing: tuple[str, ...] = ()
    """The names of the accuracies by which it is worse."""
    judged: tuple[str, ...] = ()
    """The names of the accuracies that were judged."""


def judge_regression(
    compared: Mapping[str, Paired], *, names: tuple[str, str] = ("the first", "the second"), margin: float | None = None
) -> Regression:
    """Whether the second of two models is worse than the first, by accuracies on the same images.

    Without a margin it is if McNemar's test finds, for one of the accuracies, a drop at the 5 % level divided by the
    number of accuracies (Bonferroni). With one it is unless the lower end of the interval of every difference is above
    -margin (non-inferiority).

    Args:
        compared: the accuracies, by what they are called in the sentence, at least one.
        names: of the models, for the sentence.
        margin: a share from 0 to 1, such as 0.02.

    Raises:
        SettingError: so few images that even a model compared with itself would not pass with this margin.
    """
    _, second = names
    judged = tuple(compared)
    if margin is not None:
        expect_enough_images(min(each.difference.n for each in compared.values()), margin)
        short = {name: each for name, each in compared.items() if each.difference.low <= -margin}
        if short:
            return Regression(
                worse=True,
                sentence=f"{worse_in_words(names, margin)}: {_drops(short)}",
                margin=margin,
                failing=tuple(short),
                judged=judged,
            )
        return Regression(
            worse=False,
            sentence=(
                f"{second} is worse than {names[0]} by less than {_points_of(margin)}, if at all: {_drops(compared)}"
            ),
            margin=margin,
            judged=judged,
        )
    level = _LEVEL / len(compared)
    worse = {name: each for name, each in compared.items() if each.difference.value < 0 and each.p_value < level}
    if worse:
        each_of = "" if len(compared) == 1 else f", each of {len(compared)} comparisons at the level {level:.2g}"
        return Regression(
            worse=True,
            sentence=f"{worse_in_words(names, None)}: {_drops(worse)}{each_of}",
            margin=None,
            failing=tuple(worse),
            judged=judged,
        )
    name, least = min(compared.items(), key=lambda each: each[1].difference.low)
    if least.difference.low >= 0:
        allowed = "; the 95 % interval of the difference holds no drop"
    else:
        allowed = f"; a drop of up to {-100 * least.difference.low:.1f} points cannot be excluded"
    return Regression(
        worse=False,
        sentence=f"{second} is not worse than {names[0]} beyond chance: {_drops({name: least})}{allowed}",
        margin=None,
        judged=judged,
    )


def worse_in_words(names: tuple[str, str], margin: float | None) -> str:
    """The words for a second model that `judge_regression` finds worse than a first, without the accuracies."""
    first, second = names
    if margin is None:
        return f"{second} is worse than {first} beyond chance"
    return f"{second} may be worse than {first} by {_points_of(margin)} or more"


def images_for_margin(compared: Paired, margin: float) -> int | None:
    """On how many images a drop of `margin` or more would be excluded, if as large a share of them differed each way.

    None if not even a million would do, since the difference itself is such a drop or nearly one.
    """
    n = compared.difference.n
    if compared.difference.value <= -margin:
        return None

    def excludes(count: int) -> bool:
        wins, defeats = (round(count * each / n) for each in (compared.only_second, compared.only_first))
        place = np.arange(count)
        return paired_difference(place < count - defeats, place >= wins).low > -margin

    enough = n
    while not excludes(enough):
        enough *= 2
        if enough > _MOST_IMAGES:
            return None
    return bisect_left(range(enough), True, lo=1, key=excludes)


def expect_enough_images(count: int, margin: float) -> None:
    """Raise `SettingError` if on so few images even a model compared with itself is not worse by less than `margin`."""
    if margin <= 0:
        raise SettingError(f"margin {margin:g}; expected a share above 0, such as 0.02 or 2%")
    same = np.zeros(count, dtype=bool)
    if paired_difference(same, same).low <= -margin:
        # the interval of equal results is z * sqrt(2) / (n + 2) on each side
        width = -paired_difference(same, same).low * (count + 2)
        raise SettingError(
            f"margin {margin:g} with {count:,} images: even a model compared with itself would not pass, since the "
            f"interval is too wide; expected at least {math.floor(width / margin - 2) + 1:,} images, or a larger margin"
        )


def _points_of(margin: float) -> str:
    return f"{100 * margin:.3g} points"


def _drops(compared: Mapping[str, Paired]) -> str:
    """The accuracies with their differences, as part of a sentence."""
    return "; ".join(f"{name} {each.drop}" for name, each in compared.items())


@final
@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """The result of `compare`: the accuracies of two models on the same images, paired, and both verdicts."""

    names: tuple[str, str]
    eps: float | None
    """The radius at which they are compared, the largest of the evaluations; None for attacks without one."""
    norm: str | None
    robust: Paired
    """Accuracies under attack."""
    clean: Paired | None
    """Accuracies without an attack; None for results of attacks."""
    verdicts: tuple[Verdict, Verdict] | None
    """Both verdicts at `eps`; None for results of attacks."""
    attacks: tuple[str, str]
    """What each was attacked with: the budget, or the attack."""

    @property
    def n(self) -> int:
        """Number of images."""
        return self.robust.difference.n

    @property
    def trusted(self) -> bool:
        """Whether the numbers of both can be trusted, as far as checks were run."""
        return self.verdicts is None or all(each.trust.trusted for each in self.verdicts)

    @property
    def conclusion(self) -> str:
        """A sentence that says which is more robust, or why that is not shown."""
        first, second = self.names
        if not self.trusted:
            untrusted = [n for n, v in zip(self.names, self.verdicts or (), strict=True) if not v.trust.trusted]
            return f"Nothing follows: the number of {' and of '.join(untrusted)} is not to be trusted."
        if self.attacks[0] != self.attacks[1]:
            return f"Nothing follows: they were attacked differently, {self.attacks[0]} and {self.attacks[1]}."
        if not self.robust.is_significant:
            return "No difference in robust accuracy is shown: it is within chance."
        better, worse = (second, first) if self.robust.difference.value > 0 else (first, second)
        return f"{better} is more robust than {worse}, beyond chance."

    def __repr__(self) -> str:
        return (
            f"ModelComparison({self.names[1]} minus {self.names[0]}, {self._setting}: robust accuracy "
            f"{self.robust.words}, n = {self.n:,})"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return html_table(f"{self.conclusion} ({self._setting}, n = {self.n:,})", self._rows(), self._head())

    def summary(self) -> str:
        """The comparison as text: both accuracies with intervals, the paired differences, verdicts, conclusion."""
        rows = [self._head(), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        wins = f"Under attack {self.robust.only_second} images are correct with {self.names[1]} only, "
        wins += f"{self.robust.only_first} with {self.names[0]} only."
        head = f"The same {self.n:,} images, {self._setting}; ranges are 95 % intervals."
        return "\n".join([head, *lines, wins, self.conclusion])

    @property
    def _setting(self) -> str:
        if self.eps is None:
            return "no eps"
        return f"eps {format_eps(self.eps)}{f' ({self.norm})' if self.norm else ''}"

    def _head(self) -> tuple[str, str, str, str]:
        return ("", *self.names, "difference")

    def _rows(self) -> list[tuple[str, str, str, str]]:
        named = (("clean accuracy", self.clean), ("robust accuracy", self.robust))
        rows = [(name, f"{each.first}", f"{each.second}", each.words) for name, each in named if each is not None]
        if self.verdicts is not None:
            rows.append(("verdict", self.verdicts[0].word, self.verdicts[1].word, ""))
        return rows


def compare(
    first: Evaluation | AttackResult,
    second: Evaluation | AttackResult,
    *,
    names: Sequence[str] = ("first", "second"),
) -> ModelComparison:
    """Compare two models, such as one before and after training, by evaluations or attacks on the same images.

    Args:
        first, second: two results of `evaluate`, or two of an attack; evaluations are compared at the largest eps that
            both have.
        names: what the summary calls them.

    Raises:
        SettingError: they are not of one kind, or have no eps in common or another norm.
        ShapeError: they are about other images, labels, or another number of them.
    """
    if len(listed(names, "names")) != 2:
        raise SettingError(f"names = {names!r}; expected two, one for each result")
    if isinstance(first, Evaluation) and isinstance(second, Evaluation):
        shared = set(first.values) & set(second.values)
        if not shared:
            raise SettingError(
                f"eps {_shown(first.values)} and {_shown(second.values)}; expected one that both have: evaluate both "
                "with it"
            )
        _expect_equal("norm", first.norm, second.norm)
        _expect_the_same_images(first.images, second.images)
        eps = max(shared)
        place, other = first.values.index(eps), second.values.index(eps)
        return ModelComparison(
            names=(names[0], names[1]),
            eps=first.values[place],
            norm=first.norm,
            robust=paired(first.cascade.robust[:, place], second.cascade.robust[:, other]),
            clean=paired(first.clean.correct, second.clean.correct),
            verdicts=(first.verdicts[place], second.verdicts[other]),
            attacks=(f"budget {first.budget}", f"budget {second.budget}"),
        )
    if isinstance(first, AttackResult) and isinstance(second, AttackResult):
        _expect_equal("eps", first.eps, second.eps)
        _expect_equal("norm", first.ball_norm, second.ball_norm)
        _expect_the_same((first.clean.cpu(), first.labels.cpu()), (second.clean.cpu(), second.labels.cpu()))
        return ModelComparison(
            names=(names[0], names[1]),
            eps=first.eps,
            norm=first.ball_norm,
            robust=paired((~first.success).cpu().numpy(), (~second.success).cpu().numpy()),
            clean=None,
            verdicts=None,
            attacks=(str(first.attack["name"]), str(second.attack["name"])),
        )
    raise SettingError(
        f"{type(first).__name__} and {type(second).__name__}; expected two evaluations (casemate.evaluate) or two "
        "results of attacks"
    )


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Two accuracies on the same images, from whether each image is classified correctly: two arrays `(n,)`."""
    only_first, only_second = only_one(first, second)
    return Paired(
        first=share(first),
        second=share(second),
        difference=paired_difference(second, first),
        p_value=mcnemar(first, second),
        only_first=only_first,
        only_second=only_second,
    )


def _expect_equal(what: str, first: object, second: object) -> None:
    """Raise `SettingError` if a setting that must be the same in both differs."""
    if first != second:
        raise SettingError(
            f"{what} {_shown(first)} and {_shown(second)}; expected the same in both: evaluate both with one {what}"
        )


def _expect_the_same_images(first: ReadableImages, second: ReadableImages) -> None:
    """`_expect_the_same` for images that need not be in memory, of which a shard is read at a time."""
    if len(first) != len(second):
        raise ShapeError(f"{len(first):,} and {len(second):,} images; expected the same images in both")
    in_memory = isinstance(first, LabelledImages) and isinstance(second, LabelledImages)
    for at in [slice(0, len(first))] if in_memory else shards_of(first):
        _expect_the_same(first.read(at).tensors(), second.read(at).tensors())


def _expect_the_same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    """Raise `ShapeError` unless both are the same images with the same labels, in the same order."""
    if len(first[1]) != len(second[1]):
        raise ShapeError(f"{len(first[1]):,} and {len(second[1]):,} images; expected the same images in both")
    for what, one, other in zip(("images", "labels"), first, second, strict=True):
        if one.shape != other.shape:
            raise ShapeError(f"{what} of shapes {tuple(one.shape)} and {tuple(other.shape)}; expected the same {what}")
        unlike = int((one != other).flatten(1).any(1).sum()) if one.ndim > 1 else int((one != other).sum())
        if unlike:
            raise ShapeError(
                f"{unlike:,} of {len(one):,} {what} differ; expected the same {what} in the same order in both"
            )


def _shown(value: object) -> str:
    """A setting as text; a radius as it was written."""
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return format_eps(value) if isinstance(value, float) else str(value)


def _points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"
