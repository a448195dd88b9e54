"""The result of a hardening: three or more models on the same test images, their differences, and what follows."""

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, final

from casemate.data import LabelledImages
from casemate.errors import SettingError
from casemate.evaluation.comparison import ModelComparison, paired
from casemate.evaluation.intervals import percent
from casemate.files import as_path
from casemate.hardening.compared import ComparedModel
from casemate.hardening.weights import write_network_weights
from casemate.models import Classifier, ModelMetadata
from casemate.norms import Norm
from casemate.notebook import html_table
from casemate.progress import NULL_OBSERVER, Observer
from casemate.timing import duration
from casemate.units import eps_with_share

BEFORE, CONTROL = "before", "control"
_LEVEL = 0.05
"""Level of McNemar's test, divided by the number of recipes."""


@final
@dataclass(frozen=True, kw_only=True)
class Hardened:
    """The result of `harden`: the model as it was given, a control, and one hardened model for each recipe."""

    models: dict[str, ComparedModel]
    """By name: before, control, then hardened, or with several recipes their names."""
    eps: float
    norm: Norm
    budget: str
    seed: int
    test: LabelledImages
    """The test images."""
    plan: dict[str, Any]
    """All settings as JSON: recipes, training, numbers of images, hashes of model and images."""
    start: tuple[float, float]
    """Robust and clean accuracy of the model as it was given on the validation images, before the first epoch."""
    notes: tuple[str, ...] = ()
    """Remarks that a reader of the numbers has to know, such as test images that were trained on."""

    @property
    def before(self) -> ComparedModel:
        """The model as it was given."""
        return self.models[BEFORE]

    @property
    def control(self) -> ComparedModel:
        """The model fine-tuned for as many epochs as the hardened one, with the same settings, by ordinary training."""
        return self.models[CONTROL]

    @property
    def hardened(self) -> list[ComparedModel]:
        """The hardened models, one for each recipe."""
        return [each for name, each in self.models.items() if name not in (BEFORE, CONTROL)]

    @property
    def best(self) -> ComparedModel:
        """The hardened model; of several the one that is most robust on the validation images, not the test images."""
        return max(self.hardened, key=lambda each: each.training.robust if each.training is not None else 0.0)

    @property
    def model(self) -> Classifier:
        """The classifier of `best`, in evaluation mode."""
        return self.best.model

    def compare(self, first: str, second: str) -> ModelComparison:
        """Two of the models on the same test images, as `casemate.compare` compares evaluations.

        Raises `SettingError` for a name that is not in `models`.
        """
        unknown = [name for name in (first, second) if name not in self.models]
        if unknown:
            raise SettingError(f"no model called {unknown[0]!r}; expected one of {', '.join(self.models)}")
        one, other = self.models[first], self.models[second]
        return ModelComparison(
            names=(first, second),
            eps=self.eps,
            norm=self.norm,
            robust=paired(one.withstood, other.withstood),
            clean=paired(one.correct, other.correct),
            verdicts=(one.verdict, other.verdict),
            attacks=(f"budget {self.budget}", f"budget {self.budget}"),
        )

    @property
    def comparisons(self) -> list[ModelComparison]:
        """Each hardened model with the one given and with the control, and the control with the one given."""
        pairs = [(first, each.name) for each in self.hardened for first in (BEFORE, CONTROL)]
        return [self.compare(*pair) for pair in [*pairs, (BEFORE, CONTROL)]]

    @cached_property
    def helped(self) -> dict[str, bool | None]:
        """By hardened model: whether it is more robust than the one given and than the control, beyond chance.

        None where a number is not to be trusted. Both tests have to reject, each at 5 % divided by the number of
        recipes.
        """
        return {each.name: self._helped(each.name) for each in self.hardened}

    def _helped(self, name: str) -> bool | None:
        over = [self.compare(first, name) for first in (BEFORE, CONTROL)]
        if not all(each.trusted for each in over):
            return None
        level = _LEVEL / len(self.hardened)
        return all(each.robust.p_value < level and each.robust.difference.value > 0 for each in over)

    @property
    def conclusion(self) -> str:
        """One sentence for each recipe that says whether hardening helped, by how much, and at which price."""
        return " ".join(self.conclusions)

    @property
    def conclusions(self) -> list[str]:
        """The sentences of `conclusion`."""
        return [self._sentence(each) for each in self.hardened]

    def _sentence(self, found: ComparedModel) -> str:
        name, level = found.name, _LEVEL / len(self.hardened)
        who = "Hardening" if len(self.hardened) == 1 else f"Hardening by {name}"
        before, control = (self.compare(first, name) for first in (BEFORE, CONTROL))
        if not (before.trusted and control.trusted):
            compared = (self.before, self.control, found)
            untrusted = [each.name for each in compared if not each.verdict.trust.trusted]
            return (
                f"Whether {who[0].lower()}{who[1:]} helped cannot be said: the number of {' and of '.join(untrusted)} "
                "is not to be trusted."
            )
        gain, cost = before.robust, before.clean
        change = (
            f"robust accuracy at eps {eps_with_share(self.eps, found.verdict.number.bounds, self.norm)} went from "
            f"{percent(gain.first.value)} to {percent(gain.second.value)} ({gain.words}, n = {before.n:,})"
        )
        price = "" if cost is None else f"; clean accuracy changed by {cost.words}"
        if gain.p_value < level and gain.difference.value < 0:
            return f"{who} made it worse: {change}{price}."
        if gain.p_value >= level:
            return f"{who} did not help, as far as {before.n:,} images show: {change}{price}."
        if not self.helped[name]:
            return (
                f"{who} is not shown to have helped: {change}, but the control, fine-tuned for as many epochs "
                f"without the recipe, "
                f"has {percent(control.robust.first.value)} ({control.robust.words} between them){price}."
            )
        weak = "" if found.verdict.favourable else f"; even so its verdict is {found.verdict.word}"
        return (
            f"{who} helped: {change}, and {100 * control.robust.difference.value:+.1f} points over the control "
            f"(McNemar p = {control.robust.p_value:.2g}){price}{weak}."
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name} {percent(each.robust.value)}" for each in self.models.values())
        return f"Hardened(eps {self._radius} ({self.norm}): robust accuracy {shown}; n = {len(self.test):,})"

    def __str__(self) -> str:
        lines = [self.conclusion]
        width = max(map(len, self.models))
        for each in self.models.values():
            accuracies = f"clean {each.clean}  robust {each.robust}"
            lines.append(f"  {each.name:{width}}  {accuracies}  {each.verdict.word}")
        return "\n".join([*lines, f"  n = {len(self.test):,} test images, eps {self._radius} ({self.norm})"])

    def _repr_html_(self) -> str:
        rows = [(each.name, f"{each.clean}", f"{each.robust:n}", each.verdict.word) for each in self.models.values()]
        return html_table(self.conclusion, rows, ("model", "clean accuracy", "robust accuracy", "verdict"))

    def summary(self) -> str:
        """The result as text: what `print` shows, the paired differences, the price in seconds, and the notes."""
        lines = [str(self), "", "Differences on the same images, in points (95 % interval):"]
        for each in self.comparisons:
            lines.append(f"  {each.names[1]} minus {each.names[0]}")
            lines.append(f"    robust  {each.robust.words}")
            if each.clean is not None:
                lines.append(f"    clean   {each.clean.words}")
        lines += ["", "Fine-tuning:"]
        for each in self.models.values():
            if (trained := each.training) is not None:
                lines.append(
                    f"  {each.name}: {len(trained.history)} epochs in {duration(trained.seconds)}, epoch "
                    f"{trained.epoch} kept, robust accuracy on the validation images {percent(trained.robust)}"
                )
        lines += [f"Note: {note}." for note in (*self.notes, self.seed_note)]
        return "\n".join(lines)

    @property
    def seed_note(self) -> str:
        """The remark that the intervals are about images and not about trainings."""
        return (
            f"each model was trained once (seed {self.seed}); the intervals are about the choice of the test images, "
            "and another seed of the training gives other numbers"
        )

    @property
    def _radius(self) -> str:
        return eps_with_share(self.eps, self.before.verdict.number.bounds, self.norm)

    def save(self, path: Path | str, name: str | None = None) -> str:
        """Write the weights of a hardened model as safetensors; return the SHA-256 of the file.

        They are the network's own state dict, so that `network.load_state_dict(safetensors.torch.load_file(path))`
        restores them in plain PyTorch.

        Args:
            path: the file.
            name: which of `models`; None for `best`.

        Raises:
            StoreError: the file cannot be written.
        """
        return write_network_weights((self.best if name is None else self.models[name]).model, as_path(path))

    def as_json(self) -> dict[str, Any]:
        """All results except images and per-image values, for a result file."""
        return {
            **self.plan,
            "conclusion": self.conclusion,
            "helped": self.helped,
            "notes": [*self.notes, self.seed_note],
            "start": {"val_robust": self.start[0], "val_accuracy": self.start[1]},
            "models": {name: _as_json(each) for name, each in self.models.items()},
            "comparisons": [
                {
                    "first": each.names[0],
                    "second": each.names[1],
                    "robust": each.robust.difference.as_json() | {"p_value": each.robust.p_value},
                    **(
                        {}
                        if each.clean is None
                        else {"clean": each.clean.difference.as_json() | {"p_value": each.clean.p_value}}
                    ),
                    "conclusion": each.conclusion,
                }
                for each in self.comparisons
            ],
        }

    def report(
        self,
        folder: Path | str,
        *,
        name: str | None = None,
        data: str = "images",
        source: str | None = None,
        metadata: ModelMetadata | None = None,
        images: bool = True,
        overwrite: bool = False,
        options: dict[str, Any] | None = None,
        evaluate: str = "",
        observer: Observer = NULL_OBSERVER,
    ) -> Path:
        """Write report.html, harden.json and the weights of the trained models into `folder`; return the report's path.

        Args:
            folder: is created; the files of the same hardening in it are replaced.
            name: of the model, as the report states it; by default the class of its network.
            data: name of the images.
            source: package.module:function that makes the network, for the command that loads the weights.
            metadata: of the checkpoint that the model was loaded from: the weights are then saved as checkpoints, which
                `casemate.load` and all commands take; None writes the network's own state dict.
            images: whether the report shows test images.
            overwrite: also replace the results of another hardening.
            options: further settings as JSON, which harden.json states.
            evaluate: options for the command that evaluates the hardened model, such as "--data photos --eps 8/255";
                by default those of eps and norm.
            observer: is informed of the progress.

        Raises:
            SettingError: the folder holds the results of another hardening.
        """
        # named and not imported, since reports are built on results: an import would make a circle
        write = import_module("casemate.report.hardening").write_hardening
        shown = type(self.before.model.network).__name__ if name is None else name
        return write(
            as_path(folder, "folder"),
            self,
            name=shown,
            data=data,
            source=source,
            metadata=metadata,
            images=images,
            overwrite=overwrite,
            options=options,
            evaluate=evaluate,
            observer=observer,
        )


def _as_json(found: ComparedModel) -> dict[str, Any]:
    """A model of a hardening as JSON, its history included."""
    about: dict[str, Any] = {
        "clean_accuracy": found.clean.as_json(),
        "robust_accuracy": found.robust.as_json(),
        "verdict": found.verdict.word,
        "evaluation": dict(found.evaluation),
    }
    if found.training is not None:
        about |= {
            "epoch": found.training.epoch,
            "seconds": found.training.seconds,
            "processor_seconds": found.training.processor_seconds,
            "history": found.training.history,
        }
    return about
