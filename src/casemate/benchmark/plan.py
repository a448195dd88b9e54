"""The plan of a benchmark: which models are trained, on which images, and what is measured of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from casemate.benchmark.entries import ENTRIES
from casemate.benchmark.entry import Entry
from casemate.benchmark.measures import AbstractMeasure, Attacked, Certified
from casemate.data import Dataset, LabelledImages, split, subset
from casemate.errors import SettingError
from casemate.evaluation import Budget
from casemate.evaluation.fingerprints import fingerprint_of_images
from casemate.settings import at_least, positive, unknown_name

_VALIDATION = 6000
_SPLIT_SEED = 0


@final
@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """A benchmark that is ready to run."""

    entries: Mapping[str, Entry]
    """By name, teachers before their students."""
    dataset: Dataset
    train: LabelledImages
    validation: LabelledImages
    eps: float
    """The radius that the models are compared at."""
    others: tuple[float, ...]
    """Further radii, measured on fewer images."""
    images: int
    """Number of test images of what is measured of every model."""
    headline: tuple[str, ...]
    """Names of the models that are measured on all test images too."""
    seeds: int
    """Number of evaluations on all test images, with the seeds from 0."""
    budget: Budget

    @property
    def radii(self) -> tuple[float, ...]:
        """All radii of what is measured of every model, ascending."""
        return tuple(sorted({self.eps, *self.others}))

    def measures(self, name: str) -> list[AbstractMeasure]:
        """What is measured of the model `name`, in this order."""
        entry = self.entries[name]
        some = {"images": min(self.images, len(self.dataset.test)), "budget": self.budget}
        found: list[AbstractMeasure] = [Attacked(eps=self.radii, seed=0, **some)]
        if entry.certificate is not None:
            found.append(Certified(eps=self.radii, seed=0, method=entry.certificate, **some))
        whole: dict[str, Any] = {"eps": (self.eps,), "images": None, "budget": self.budget}
        for seed in range(self.seeds if name in self.headline else 0):
            if entry.certificate is None:
                found.append(Attacked(seed=seed, **whole))
            else:  # far cheaper: what is proven robust is not attacked
                found.append(Certified(seed=seed, method=entry.certificate, **whole))
        return found

    def data(self) -> dict[str, Any]:
        """What identifies the images."""
        return {
            "dataset": self.dataset.name,
            "train": fingerprint_of_images(self.train),
            "validation": fingerprint_of_images(self.validation),
            "test": fingerprint_of_images(self.dataset.test),
        }

    def about(self) -> dict[str, Any]:
        """The settings as JSON."""
        return {
            "dataset": self.dataset.name,
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            "test_images": len(self.dataset.test),
            "models": list(self.entries),
            "headline": list(self.headline),
            "eps": self.eps,
            "other_eps": list(self.others),
            "images": self.images,
            "seeds": self.seeds,
            "budget": self.budget,
        }


def plan_benchmark(
    dataset: Dataset,
    names: Sequence[str] = (),
    *,
    entries: Mapping[str, Entry] = ENTRIES,
    eps: float = 0.1,
    others: Sequence[float] = (0.05, 0.2),
    images: int = 1000,
    headline: Sequence[str] = (),
    seeds: int = 3,
    budget: Budget = "standard",
    train_images: int | None = None,
) -> BenchmarkPlan:
    """Check a benchmark without training anything.

    Args:
        dataset: its training images are split into those to train on and those for validation.
        names: of the entries; all if there are none. The teachers of students are added.
        entries: the models to choose from.
        eps: the radius in Linf that all models are compared at.
        others: further radii, measured on the first `images` test images.
        images: number of test images for what is measured of every model.
        headline: names of the entries that are measured on all test images at `eps` too.
        seeds: number of these evaluations, with the seeds 0, 1, ...
        budget: of the evaluations.
        train_images: a stratified sample of the training images, validation included; None for all.

    Raises:
        SettingError: an unknown name, or a number outside its range.
    """
    at_least(1).check(images, "images")
    at_least(0).check(seeds, "seeds")
    positive().check(eps, "eps")
    if any(each <= 0 for each in others):
        raise SettingError(f"other eps = {list(others)}; expected numbers above 0")
    chosen: dict[str, Entry] = {}
    for name in names or entries:
        for each in _with_teacher(name, entries):
            chosen[each] = entries[each]
    for name in headline:
        if name not in chosen:
            raise unknown_name("model of the benchmark", name, chosen)
    pool = dataset.train if train_images is None else subset(dataset.train, train_images, _SPLIT_SEED)
    train, validation = split(pool, min(_VALIDATION, len(pool) // 5), _SPLIT_SEED)
    return BenchmarkPlan(
        entries=chosen,
        dataset=dataset,
        train=train,
        validation=validation,
        eps=eps,
        others=tuple(others),
        images=images,
        headline=tuple(headline),
        seeds=seeds,
        budget=budget,
    )


def _with_teacher(name: str, entries: Mapping[str, Entry]) -> list[str]:
    """The name of an entry after that of its teacher. Raises `SettingError` for an unknown one."""
    if name not in entries:
        raise unknown_name("model of the benchmark", name, entries)
    teacher = entries[name].teacher
    return [name] if teacher is None else [*_with_teacher(teacher, entries), name]
