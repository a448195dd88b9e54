"""Artifacts of the study with numbers of one's choosing, as its producers write them, and models made of them.

Images are right in one order: if two curves leave different shares right, the images of the smaller are among those of
the larger. So with n = 400 a difference of six images is significant, and one of five is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from casemate.attacks import Passes, Status
from casemate.engine import Artifact
from casemate.engine.task import Task
from casemate.evaluation import CleanResult, Curve, WorstCase, mean, share
from casemate.evaluation.curves import LastIterates
from casemate.evaluation.examples import clean_table, curve_table, worst_table
from casemate.tables import Table, write_table
from casemate_study.claims import ClaimEvidence
from casemate_study.experiments.catalogue import choose_experiments, models_of, tasks_of
from casemate_study.experiments.models import StudyModel
from casemate_study.experiments.scales import SCALES
from casemate_study.experiments.specs import LOSSES, Setup
from casemate_study.results.models import ModelResults
from casemate_study.tasks.inputs import attack_of

N = 400
"""Images of every measure."""
CLASSES = tuple("ABCDEFGHIJ")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
"""The paper's classes."""
SETUP = Setup(
    scale=replace(
        SCALES["smoke"],
        name="synthetic",
        test_images=N,
        fgsm_images=N,
        bim_images=N,
        steps_images=N,
        attacked_images=N,
        targeted_images=N,
        checkpoint_images=N,
        step_counts=(0, 1, 10, 25, 50),
        decays=(1e-4, 1e-3),
        temperatures=(1.0, 20.0, 100.0),
    ),
    dataset="fashion-mnist",
    train_size=60000,
    test_size=10000,
    seed=0,
)
RANDOM = "E5-stochastic-affine"
"""The model that answers at random."""
NAMES = (
    *("E1", "E5", RANDOM, "E6", "E7", "E8", "E9-1", "E9-100", "E10-1", "E10-100", "E11", "E12-0.0001"),
    *("E13-regularised", "E13-resnet", "E9-teacher-100", "E6-stopped"),
)
MEASURES = ("clean", "clean-best", "fgsm", "ball", "range", "range-4", "pgd", "eot", "divided")
LEFT = {0.01: 0.85, 0.025: 0.7, 0.05: 0.55, 0.1: 0.4, 0.15: 0.35, 0.2: 0.3}
"""What every attack leaves of every model, unless a test says otherwise."""
LOST = {0.01: 0.5, 0.025: 0.75, 0.05: 1.0, 0.1: 1.5, 0.15: 2.0, 0.2: 2.5}
"""The mean cross-entropy that goes with it."""

Level = float | Mapping[float, float]
"""A number at every eps (or count of iterations) but 0, or one at some; at others the default stands."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What the measures of one model shall say."""

    clean: float = 0.9
    loss: float = 0.3
    best_loss: float = 0.1
    """Likewise with a student's weights of the lowest validation loss."""
    left: Mapping[str, Level] = field(default_factory=dict[str, Level])
    """Accuracy that an attack leaves, by measure ("fgsm", "ball", "pgd") or measure and loss ("fgsm/prob-ce")."""
    lost: Mapping[str, Level] = field(default_factory=dict[str, Level])
    """Mean cross-entropy after it, likewise."""
    zero: Mapping[str, float] = field(default_factory=dict[str, float])
    """Share of images without a gradient, by loss."""
    angle: float | None = 25.0
    """Mean between gradients 0.01 apart; its interval is one degree to either side."""
    calibration: float = 0.05
    order: int = 0
    """Which images are the easy ones; models of different orders are independent."""
    seconds: float = 4.0
    """Of an epoch."""
    processor_seconds: float | None = None
    """Likewise; results of earlier versions have none."""
    accuracy: float = 0.95
    """In training, at the epoch kept; so the next two on the validation split."""
    val_accuracy: float = 0.91
    val_loss: float = 0.3
    end: tuple[float, float, float] | None = None
    """After the last epoch: accuracy in training and on the validation split, and the loss on that."""
    stopped_at: int | None = None
    parameters: int = 1000
    confidence: float = 0.9
    """Of every image that nobody attacked."""


@cache
def tasks() -> Mapping[str, Task]:
    """Every task of the study at the scale of the synthetic artifacts, by name."""
    return {task.name: task for task in tasks_of(choose_experiments([]), SETUP)[0]}


@cache
def catalogued() -> Mapping[str, StudyModel]:
    """Every model of the study, by name."""
    return {model.name: model for model in models_of(choose_experiments([]), SETUP)}


@lru_cache(maxsize=64)
def _places(order: int, n: int) -> np.ndarray:
    return np.random.default_rng(order).permutation(n)


def easiest(accuracy: float, n: int = N, order: int = 0) -> np.ndarray:
    """Which images are right, booleans `(n,)`: the easiest, as many as the accuracy says."""
    return _places(order, n) < round(accuracy * n)


def losses(level: float, n: int = N) -> np.ndarray:
    """Losses of this mean, float32 `(n,)`; any two levels differ by exactly the same on every image."""
    spread = (_places(99, n) - (n - 1) / 2) / 2048
    return (round(level * 4096) / 4096 + spread).astype(np.float32)


@cache
def _share(count: int, n: int) -> dict[str, float | int]:
    return share(np.arange(n) < count).as_json()


@cache
def _mean(level: float, n: int) -> dict[str, float | int]:
    return mean(losses(level, n)).as_json()


def estimate(hits: np.ndarray) -> dict[str, float | int]:
    """A share as producers write it."""
    return dict(_share(int(np.count_nonzero(hits)), hits.size))


def _labels(n: int) -> np.ndarray:
    return np.arange(n) % len(CLASSES)


class Shelf:
    """Makes artifacts in a folder. Every artifact has its own, so nothing that was read once is taken for another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = 0

    def artifact(
        self, task: Task, result: Mapping[str, Any], table: Table | None = None, *, seconds: float = 1.0
    ) -> Artifact:
        """A finished piece of a task."""
        self._made += 1
        key = f"{self._made:020d}"
        folder = self.root / key
        folder.mkdir(parents=True)
        if table is not None:
            write_table(table, folder / "examples")
        facts = {
            "kind": task.kind,
            "name": task.name,
            "config": task.config,
            "needs": dict(task.needs),
            "code": "0" * 16,
            "key": key,
            "result": dict(result),
            "provenance": {
                "casemate": "0",
                "commit": "0123456789ab",
                "cores": 2,
                "device": "cpu",
                "finished": "2026-01-01T00:00:00+00:00",
                "instruction_set": "AVX2",
                "libraries": {"torch": "2"},
                "processor": "a processor",
                "python": "3",
                "seconds": seconds,
                "system": "Linux",
                "threads": 1,
            },
        }
        return Artifact(key, folder, facts)

    def clean(self, task: Task, numbers: Numbers, taken: Mapping[tuple[str, str], int] | None = None) -> Artifact:
        """Results on images that nobody attacked; `taken`: how many images of one class are taken for another, of the
        paper's classes, instead of the accuracy.
        """
        n: int = task.config["images"]
        few: int = task.config["gradient_images"]
        classes = CLASSES if taken is None else FASHION
        labels, right = _labels(n), easiest(numbers.clean, n, numbers.order)
        prediction = np.where(right, labels, (labels + 1) % len(classes))
        if taken is not None:
            prediction = labels.copy()
            for (source, target), count in taken.items():
                place = np.flatnonzero((labels == classes.index(source)) & (prediction == labels))[:count]
                prediction[place] = classes.index(target)
            right = prediction == labels
        found = CleanResult(
            classes=classes,
            labels=labels,
            prediction=prediction,
            loss=losses(numbers.loss, n),
            confidence=np.full(n, numbers.confidence),
            gap=np.linspace(0, 20, n, dtype=np.float32),
        )
        angle = numbers.angle
        near = None if angle is None else {"value": angle, "low": angle - 1, "high": angle + 1, "n": few}
        result = {
            "classes": list(classes),
            "accuracy": estimate(right),
            "loss": dict(_mean(numbers.loss, n)),
            "confusion": found.confusion.tolist(),
            "per_class": [each.as_json() if each else None for each in found.per_class],
            "calibration_error": numbers.calibration,
            "gap_quantiles": found.gap_quantiles,
            "zero_gradients": {
                loss: estimate(easiest(numbers.zero.get(loss, 0.0), few)) for loss in (*LOSSES, "margin")
            },
            "alignment": {"0.01": near, "0.1": near},
        }
        return self.artifact(task, result, clean_table(found))

    def curve(self, task: Task, right: Sequence[np.ndarray], loss: Sequence[np.ndarray], zero: float = 0.0) -> Artifact:
        """One attack over eps or iterations, from what became of each image at each value."""
        n, axis = len(right[0]), task.config["axis"]
        hits, lost = np.stack(list(right), axis=1), np.stack(list(loss), axis=1).astype(np.float32)
        labels = _labels(n)
        columns = labels[:, None]
        last = LastIterates(
            right=hits,
            prediction=np.where(hits, columns, (columns + 1) % len(CLASSES)),
            loss=lost,
            norm=np.broadcast_to(np.array(task.config["values"], dtype=np.float32), hits.shape),
            status=np.where(hits, int(Status.FAILED), int(Status.SUCCESS)),
        )
        curve = Curve(
            axis=axis,
            attack=attack_of(task.config["attack"]).record(),
            values=tuple(float(value) for value in task.config["values"]),
            worst=np.logical_and.accumulate(hits, axis=1),
            last=last,
            passes=Passes(),
        )
        points = [
            {
                axis: value,
                "worst": estimate(curve.worst[:, column]),
                "last": estimate(hits[:, column]),
                "loss": _known_mean(lost[:, column]),
            }
            for column, value in enumerate(curve.values)
        ]
        result = {
            "axis": axis,
            "attack": curve.attack,
            "points": points,
            "zero_gradients": estimate(easiest(zero, n)),
            "forward": 0,
            "backward": 0,
        }
        return self.artifact(task, result, curve_table(curve, labels))

    def worst(self, task: Task, each: Mapping[str, Sequence[np.ndarray]]) -> Artifact:
        """A worst case, from which images withstood which attack at each eps."""
        hits = {name: np.stack(list(columns), axis=1) for name, columns in each.items()}
        values = tuple(float(value) for value in task.config["values"])
        found = WorstCase(values=values, each=hits, passes=Passes())
        result = {
            "points": [
                {
                    "eps": eps,
                    "every": estimate(found.every[:, column]),
                    "each": {name: estimate(columns[:, column]) for name, columns in hits.items()},
                }
                for column, eps in enumerate(values)
            ],
            "attacks": {name: attack_of(spec).record() for name, spec in task.config["attacks"].items()},
            "forward": 0,
            "backward": 0,
        }
        return self.artifact(task, result, worst_table(found, _labels(len(found.every))))

    def training(self, task: Task, numbers: Numbers, *, epochs: int = 3, best_epoch: int = 2) -> Artifact:
        """A training, whose best epoch has the numbers."""
        history = [
            {
                "epoch": epoch,
                "learning_rate": 1e-3,
                "loss": 0.2,
                "accuracy": numbers.accuracy if epoch == best_epoch else 0.5,
                "val_loss": numbers.val_loss if epoch == best_epoch else numbers.val_loss + 1,
                "val_accuracy": numbers.val_accuracy if epoch == best_epoch else 0.5,
                "seconds": numbers.seconds,
                "processor_seconds": numbers.processor_seconds,
            }
            for epoch in range(1, epochs + 1)
        ]
        if numbers.end is not None:
            history[-1] |= dict(zip(("accuracy", "val_accuracy", "val_loss"), numbers.end, strict=True))
        result = {
            "history": history,
            "best_epoch": best_epoch,
            "stopped_at": numbers.stopped_at,
            "versions": {"final": epochs, "best": best_epoch},
            "fingerprints": {"final": "0" * 64, "best": "1" * 64},
            "parameters": numbers.parameters,
            "train_images": task.config["train_images"],
            "validation_images": task.config["validation_images"],
        }
        if task.kind == "defend":
            result["original_images"] = result["train_images"]
        return self.artifact(task, result, seconds=epochs * numbers.seconds)

    def targets(self, task: Task, between: float, elsewhere: float) -> Artifact:
        """Targeted attacks on 40 images of each of the paper's classes: success from T-shirt to shirt and back, and
        of all other pairs.
        """
        pair = {FASHION.index("T-shirt/top"), FASHION.index("Shirt")}

        def rate(source: int, target: int) -> dict[str, float | int] | None:
            return (
                None if source == target else estimate(easiest(between if {source, target} == pair else elsewhere, 40))
            )

        result = {
            "classes": list(FASHION),
            "attack": task.config["attack"],
            "rates": [[rate(source, target) for target in range(10)] for source in range(10)],
            "overall": estimate(easiest(elsewhere, 3600)),
        }
        return self.artifact(task, result)

    def pictures(self, task: Task, changed: Mapping[str, float], count: int = 2, grey: float = 0.5) -> Artifact:
        """Images before and after attacks, whose upper half is black and whose lower half `grey`: `changed` is the
        share of the upper half that they change.
        """
        clean = np.full((count, 20, 20), grey, dtype=np.float32)
        clean[:, :10] = 0
        images = {"clean": clean}
        for title, portion in changed.items():
            after = clean.copy()
            after[:, 10:] += 0.05
            touched = np.zeros((count, 200), dtype=np.float32)
            touched[:, : round(portion * 200)] = 0.05
            after[:, :10] = touched.reshape(count, 10, 20)
            images[title] = after
        result = {
            "index": list(range(count)),
            "label": list(CLASSES[:count]),
            "clean_taken_for": list(CLASSES[:count]),
            "attacks": {title: [{"adversarial_prediction": "J", "norm": 0.05}] * count for title in changed},
        }
        artifact = self.artifact(task, result)
        (artifact.folder / "images.safetensors").write_bytes(safetensors.numpy.save(images))
        return artifact


def _known_mean(values: np.ndarray) -> dict[str, float | int] | None:
    """The mean of the finite ones as producers write it; of the levels of `losses` it is computed once."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    level = float(finite.astype(np.float64).mean())
    if finite.size == values.size and np.array_equal(values, losses(level, len(values))):
        return dict(_mean(level, len(values)))
    return mean(finite).as_json()


def _level(stated: Mapping[str, Level], measure: str, loss: str | None, at: float, otherwise: float) -> float:
    level = stated.get(f"{measure}/{loss}", stated.get(measure, otherwise))
    return level.get(at, otherwise) if isinstance(level, Mapping) else float(level)


def curve_of(shelf: Shelf, task: Task, measure: str, numbers: Numbers) -> Artifact:
    """A curve of a model's numbers."""
    n, loss = task.config["images"], task.config["attack"]["loss"]
    kept: list[np.ndarray] = []
    lost: list[np.ndarray] = []
    for at in task.config["values"]:
        accuracy = _level(numbers.left, measure, loss, at, LEFT.get(at, 0.4)) if at else numbers.clean
        mean_loss = _level(numbers.lost, measure, loss, at, LOST.get(at, 1.5)) if at else numbers.loss
        kept.append(easiest(accuracy, n, numbers.order))
        lost.append(losses(mean_loss, n))
    return shelf.curve(task, kept, lost, numbers.zero.get(loss, 0.0))


def measured(shelf: Shelf, model: StudyModel, numbers: Numbers) -> dict[str, Artifact]:
    """Every piece of a model, its training included."""
    found: dict[str, Artifact] = {}
    every = tasks()
    for measure in MEASURES:
        for name in (model.artifact(measure, loss) for loss in (None, *LOSSES)):
            task = every.get(name)
            if task is None or task.kind == "masking":
                continue
            if measure == "clean-best":
                found[name] = shelf.clean(task, replace(numbers, loss=numbers.best_loss))
            elif task.kind == "clean":
                found[name] = shelf.clean(task, numbers)
            elif task.kind == "curve":
                found[name] = curve_of(shelf, task, measure, numbers)
            else:
                n = task.config["images"]
                each = {
                    attack: [
                        easiest(_level(numbers.left, measure, attack, eps, LEFT[eps]), n, numbers.order)
                        for eps in task.config["values"]
                    ]
                    for attack in task.config["attacks"]
                }
                found[name] = shelf.worst(task, each)
    training = every[model.source.task]
    if training.name.split("/")[0] == model.name:
        found[training.name] = shelf.training(training, numbers)
    return found


@dataclass(frozen=True)
class World:
    """Artifacts, and the models that they measure."""

    shelf: Shelf
    models: Mapping[str, ModelResults]
    artifacts: Mapping[str, Artifact]

    @property
    def evidence(self) -> ClaimEvidence:
        """What claims are judged by."""
        return ClaimEvidence(self.models, self.artifacts)

    def _of(self, artifacts: Mapping[str, Artifact]) -> "World":
        return World(
            self.shelf, {name: ModelResults(each.model, artifacts) for name, each in self.models.items()}, artifacts
        )

    def but(self, numbers: Mapping[str, Numbers]) -> "World":
        """The same world where some models have other numbers."""
        changed: dict[str, Artifact] = {}
        for name, each in numbers.items():
            changed |= measured(self.shelf, self.models[name].model, each)
        return self._of({**self.artifacts, **changed})

    def given(self, artifacts: Mapping[str, Artifact]) -> "World":
        """The same world with these artifacts in place of its own of those names."""
        return self._of({**self.artifacts, **artifacts})

    def without(self, *starts: str) -> "World":
        """The same world without the artifacts whose names begin like that."""
        return self._of({name: artifact for name, artifact in self.artifacts.items() if not name.startswith(starts)})

    def only(self, *names: str) -> "World":
        """The same world with only these models; all artifacts stay."""
        return World(self.shelf, {name: self.models[name] for name in names if name in self.models}, self.artifacts)

    def swapped(self, first: str, second: str) -> "World":
        """The same world where each of two models has the pieces of the other, as far as both have them."""
        artifacts = dict(self.artifacts)
        one, other = self.models[first].model, self.models[second].model
        names = [(one.source.task, other.source.task)]
        names += [(one.artifact(m, loss), other.artifact(m, loss)) for m in MEASURES for loss in (None, *LOSSES)]
        for mine, theirs in names:
            if mine in artifacts and theirs in artifacts:
                artifacts[mine], artifacts[theirs] = self.artifacts[theirs], self.artifacts[mine]
        return self._of(artifacts)


def iterations(shelf: Shelf, left: Mapping[str, Level], lost: Mapping[str, Level]) -> dict[str, Artifact]:
    """E4's curves, by step size and loss ("1-255/ce"); by default 40 % and a loss of 1.5 after any iterations."""
    found: dict[str, Artifact] = {}
    for name, task in tasks().items():
        if name.startswith("E4/"):
            _, size, _ = name.split("/")
            found[name] = curve_of(shelf, task, size, Numbers(left=left, lost=lost))
    return found


def world(root: Path, names: Sequence[str] = NAMES) -> World:
    """A world in which all models are alike, so that no order can be decided, and every measure is there."""
    shelf = Shelf(root)
    artifacts = iterations(shelf, {}, {})
    artifacts["E3/pictures"] = shelf.pictures(tasks()["E3/pictures"], {"BIM 0.05, range": 0.5, "BIM 0.05, ball": 0.5})
    models = {name: catalogued()[name] for name in names}
    for model in models.values():
        artifacts |= measured(shelf, model, Numbers())
    return World(shelf, {name: ModelResults(model, artifacts) for name, model in models.items()}, artifacts)
