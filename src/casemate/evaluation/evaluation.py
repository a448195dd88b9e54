"""A whole evaluation in one call: attacks, robust accuracy, checks, and the verdict whether it can be trusted."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, final

import torch

from casemate.attacks import COMPARED_IMAGES, AbstractAttack, prepare_for_attack
from casemate.data import LabelledImages
from casemate.errors import SettingError
from casemate.evaluation.budgets import DRAWS, Budget, attacks_for
from casemate.evaluation.cascade import Cascade, most_work, run_cascade
from casemate.evaluation.clean import CleanResult, evaluate_clean
from casemate.evaluation.cost import checks_afterwards
from casemate.evaluation.findings import (
    CheckContext,
    Checked,
    Finding,
    refuse_pointless,
    run_checks,
    run_first_checks,
)
from casemate.evaluation.intervals import Estimate, share
from casemate.evaluation.probe import probe_model
from casemate.evaluation.verdict import CONVENTION, SCHEMA, Borders, Grade, Verdict, verdict_on
from casemate.models import (
    Classifier,
    Precision,
    full_precision,
    has_inference_tensors,
    mean_over_samples,
    preserve_state,
)
from casemate.norms import Norm, parse_eps
from casemate.progress import NULL_OBSERVER, Observer


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`: predictions, attacks, checks and verdicts for one model, with the settings used."""

    norm: Norm
    values: tuple[float, ...]
    """The values of eps, ascending."""
    budget: str
    seed: int
    randomised: bool
    """Whether the model is randomised; if so, it was judged by its mean logits over `draws` passes."""
    draws: int
    images: LabelledImages
    clean: CleanResult
    cascade: Cascade
    checks: list[Checked]
    verdicts: list[Verdict]
    """One verdict for each eps, in the order of `values`."""
    batch_size: int
    """Number of images that passed through the network at a time; 0 if it was never set."""
    precision: Precision
    """Precision of the gradients of attacks within a ball; whether an image fools was decided in float32."""
    changes: dict[str, int]
    """How often each optimization, by its name, was made in the copy of the model that the attacks ran on (see
    `casemate.models.accel.freeze`)."""
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The verdict at the largest eps."""
        return self.verdicts[-1]

    @property
    def findings(self) -> list[Finding]:
        """The findings of the checks that raised one, the gravest first."""
        raised = [each.finding for each in self.checks if each.finding is not None]
        return sorted(raised, key=lambda each: ("voids", "weakens", "note").index(each.severity))

    @property
    def robust(self) -> list[Estimate]:
        """Robust accuracy at each eps: share classified correctly under every attack at this and every smaller eps."""
        return [share(self.cascade.robust[:, column]) for column in range(len(self.values))]

    @property
    def per_class(self) -> list[Estimate | None]:
        """Robust accuracy at the largest eps within each class; None for a class without images."""
        labels, robust = self.clean.labels, self.cascade.robust[:, -1]
        picks = [labels == label for label in range(len(self.clean.classes))]
        return [share(robust[pick]) if pick.any() else None for pick in picks]

    @property
    def successes_by_attack(self) -> dict[str, int]:
        """By attack, in order: the number of images that it was the first to fool, at any eps."""
        return {
            name: int((self.cascade.first_success == place).sum()) for place, name in enumerate(self.cascade.attacks)
        }

    def as_json(self) -> dict[str, Any]:
        """All results except images and per-example values, for a result file."""
        classes = self.clean.classes
        return {
            "schema": SCHEMA,
            "norm": self.norm,
            "eps": list(self.values),
            "budget": self.budget,
            "seed": self.seed,
            "images": len(self.images),
            "randomised": self.randomised,
            "draws": self.draws,
            "clean_accuracy": self.clean.accuracy.as_json(),
            "robust_accuracy": [estimate.as_json() for estimate in self.robust],
            "per_class": [
                {"class": name, "clean_accuracy": clean.as_json(), "robust_accuracy": robust.as_json()}
                for name, clean, robust in zip(classes, self.clean.per_class, self.per_class, strict=True)
                if clean is not None and robust is not None
            ],
            "attacks": [
                {"attack": name, "first_to_fool": self.successes_by_attack[name], "settings": settings}
                for name, settings in self.cascade.attacks.items()
            ],
            "attempts": [asdict(attempt) for attempt in self.cascade.attempts],
            "passes": asdict(self.cascade.passes),
            "batch_size": self.batch_size,
            "precision": self.precision,
            "frozen": self.changes,
            "checks": [checked.as_json() for checked in self.checks],
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
            "verdict": self.verdict.word,
            "seconds": self.seconds,
        }


def evaluate(
    model: Classifier,
    images: LabelledImages,
    *,
    eps: float | str | Sequence[float | str],
    norm: Norm = "linf",
    budget: Budget = "standard",
    attacks: Mapping[str, AbstractAttack] | None = None,
    thorough: bool | None = None,
    force: bool = False,
    substitute: Classifier | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    borders: Borders = CONVENTION,
    observer: Observer = NULL_OBSERVER,
) -> Evaluation:
    """Check a model and its images, attack it with all attacks of a budget, check the result, and give a verdict.

    The checks that need no attack come first. If one of them finds that the robust accuracy would say nothing, nothing
    is attacked. Checks that could only find that the model looks more robust than it is are left out if it has fallen.

    Args:
        model: evaluated in evaluation mode; it does not change.
        images: with their true labels.
        eps: one radius or several, in the unit of the pixels; each gets a verdict, the checks are run at the largest.
        norm: in which eps is measured: linf, l2 or l1.
        budget: quick, standard (AutoAttack) or thorough.
        attacks: by name, to be run instead of the budget's.
        thorough: run every check, also those that take minutes; by default only with the budget of that name.
        force: attack even if the robust accuracy will say nothing, and keep the finding that says why.
        substitute: an undefended model for the same images, for the checks that need one.
        seed: of all random draws.
        batch_size: images per pass, halved if they do not fit into memory; measured if None.
        precision: of the gradients of attacks within a ball, used where it is faster on this machine. Whether an image
            fools is decided in float32, and images that fool in bfloat16 only are attacked again.
        borders: between the grades of the verdict.
        observer: is informed of the progress.

    Raises:
        SettingError: no eps, an unknown budget, an attack in another norm.
        ShapeError: no images, or images and labels that the model does not take.
        ModelError: a model that fails, or returns something other than one logit per class.
        EvaluationError: a finding voids the robust accuracy before any attack, and not `force`.
    """
    start = time.perf_counter()
    if thorough is None:
        thorough = budget == "thorough"
    given = [eps] if isinstance(eps, float | int | str) else list(eps)
    values = sorted({parse_eps(each) for each in given})
    if not values or values[0] <= 0:
        raise SettingError(f"eps = {given}; expected one or more, all above zero")
    images = LabelledImages(pixels=images.pixels, labels=images.labels.cpu())
    if has_inference_tensors(model):
        with torch.inference_mode(False):
            model = _copied(model) or model
    in_training = any(module.training for module in model.modules())
    as_given = _copied(model) if in_training else None
    with preserve_state(*(each for each in (model, substitute) if each is not None), seed=seed):
        randomised = probe_model(model, images)
        draws = DRAWS[budget] if randomised else 1
        judged = mean_over_samples(model, draws) if randomised else model
        chosen = dict(attacks) if attacks is not None else attacks_for(budget, norm, values[0], randomised=randomised)
        few, _ = images[:COMPARED_IMAGES].tensors(model.device)
        work = most_work(chosen, len(images), len(model.classes))
        with prepare_for_attack(
            judged, few, pass_size=batch_size, passes=work, precision=precision, observer=observer
        ) as prepared:
            with full_precision():
                clean = evaluate_clean(prepared.verifier, images, observer=observer)
            context = CheckContext(
                original_model=model,
                model=judged,
                images=images,
                norm=norm,
                eps=values[-1],
                clean=clean,
                frozen=prepared,
                as_given=as_given,
                in_training=in_training,
                randomised=randomised,
                substitute=substitute,
                seed=seed,
                batch_size=prepared.copy.pass_size,
                observer=observer,
            )
            spent = budget if attacks is None else "own"
            judge = partial(
                verdict_on,
                norm=norm,
                budget=spent,
                correct=clean.correct,
                labels=clean.labels,
                classes=len(model.classes),
                borders=borders,
            )
            first = run_first_checks(context)
            if not force:
                refuse_pointless(first.values())
            before = judge(values[-1], withstood=clean.correct, findings=[])
            if Grade.UNTRAINED in before.grades:
                observer.message(before.grade_sentence)  # which no attack can change
            cascade = context.attacked = run_cascade(
                prepared,
                chosen,
                images,
                values,
                norm=norm,
                correct=clean.correct,
                seed=seed,
                afterwards=checks_afterwards(len(images), thorough=thorough),
                observer=observer,
            )

        def verdicts(findings: Sequence[Finding]) -> list[Verdict]:
            return [
                judge(each, withstood=cascade.robust[:, column], findings=findings)
                for column, each in enumerate(values)
            ]

        fallen = all(each.fallen and not each.undecided for each in verdicts([]))
        checks = run_checks(context, first, thorough=thorough, fallen=fallen)
    return Evaluation(
        norm=norm,
        values=tuple(values),
        budget=spent,
        seed=seed,
        randomised=randomised,
        draws=draws,
        images=images,
        clean=clean,
        cascade=cascade,
        checks=checks,
        verdicts=verdicts([each.finding for each in checks if each.finding is not None]),
        batch_size=prepared.verifier.pass_size or 0,
        precision=prepared.precision,
        changes=prepared.changes,
        seconds=time.perf_counter() - start,
    )


def _copied(model: Classifier) -> Classifier | None:
    """A deep copy of a model, in training mode where the model is; None for a model that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:  # a model may hold a lock, an open file, a generator
        return None
