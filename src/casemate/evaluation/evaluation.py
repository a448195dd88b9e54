"""A whole evaluation in one call: attacks, robust accuracy, checks, and the verdict whether it can be trusted."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from casemate.attacks import COMPARED_IMAGES
from casemate.attacks.named import Attacks, named_attacks
from casemate.data import Array, ImageSource, LabelledImages, ReadableImages, as_readable
from casemate.engine import Engine
from casemate.errors import RecordError, SettingError, kind_of
from casemate.evaluation.budgets import DRAWS, Budget, attacks_for
from casemate.evaluation.cascade import most_work, run_cascade
from casemate.evaluation.cascade_result import Cascade
from casemate.evaluation.clean import CleanResult, evaluate_clean
from casemate.evaluation.cost import checks_afterwards
from casemate.evaluation.findings import (
    CHECKS,
    Check,
    CheckContext,
    Checked,
    Finding,
    Severity,
    refuse_pointless,
    run_checks,
    run_first_checks,
)
from casemate.evaluation.fingerprints import fingerprint
from casemate.evaluation.intervals import Estimate, share
from casemate.evaluation.preparation import keeping_pieces, prepared_model
from casemate.evaluation.probe import probe_model, within_bounds
from casemate.evaluation.run_time import seconds_in_words
from casemate.evaluation.tracked import track_evaluation
from casemate.evaluation.verdict import CONVENTION, SCHEMA, Borders, Grade, Verdict, verdict_on
from casemate.files import as_path
from casemate.float32_precision import full_precision
from casemate.models import (
    Classifier,
    Precision,
    as_classifier,
    copied,
    has_inference_tensors,
    is_in_training,
    mean_over_samples,
    preserve_state,
)
from casemate.norms import Norm, format_eps, parse_norm, parse_radii
from casemate.notebook import html_table
from casemate.progress import NULL_OBSERVER, Observer, Tracked, track
from casemate.settings import at_least
from casemate.waiting_threads import mention_spinning


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
    images: ReadableImages
    clean: CleanResult
    cascade: Cascade
    model: Classifier
    """The model that was evaluated, for `report`."""
    fingerprint: str
    """SHA-256 of its weights at that time, see `casemate.evaluation.fingerprints`."""
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
    """How long it took; a piece of an earlier evaluation that was in the store counts with the seconds it took then."""
    run_seconds: float
    """How long this call took."""

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
    def robust_accuracy(self) -> float:
        """Robust accuracy at the largest eps, from 0 to 1; `robust` has all, with intervals."""
        return self.robust[-1].value

    @property
    def clean_accuracy(self) -> float:
        """Accuracy without an attack, from 0 to 1; `clean.accuracy` has its interval."""
        return self.clean.accuracy.value

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

    def __repr__(self) -> str:
        return (
            f"Evaluation(eps {self._radii} ({self.norm}), budget {self.budget}: clean {self.clean.accuracy}, robust "
            f"{self.robust[-1]:n}; {self.verdict.word}; {self._passes})"
        )

    def __str__(self) -> str:
        lines = [self.verdict.sentence, f"  clean accuracy   {self.clean.accuracy:n}"]
        lines += [f"  robust accuracy  {each.number.robust:n} at eps {each.number.shown_eps}" for each in self.verdicts]
        grave = [f"{each.check} ({each.severity})" for each in self.findings if each.severity is not Severity.NOTE]
        notes = [each.check for each in self.findings if each.severity is Severity.NOTE]
        lines.append(f"  findings         {', '.join(grave) or 'none that weaken or void the number'}")
        if notes:
            lines.append(f"  notes            {', '.join(notes)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [("0", f"{self.clean.accuracy:n}", "without an attack")]
        rows += [(each.number.shown_eps, f"{each.number.robust:n}", each.word) for each in self.verdicts]
        return html_table(self.verdict.sentence, rows, (f"eps ({self.norm})", "accuracy, 95 % interval", "verdict"))

    def summary(self) -> str:
        """The result as text: what `print` shows, what each finding says, the outcome of the checks, and the classes.

        Findings come with their sentences; classes without images are left out.
        """
        lines = [str(self)]
        lines += [f"  {each}" for each in self.findings]
        states = [each.state for each in self.checks]
        raised = len(states) - states.count("passed") - states.count("not run")
        counts = f"{raised} raised, {states.count('passed')} passed, {states.count('not run')} not run"
        lines.append(f"  checks           {counts}")
        names = self.clean.classes
        width = max(len("class"), *map(len, names))
        lines += ["", f"{'class':{width}}  {'without an attack':26}  under attack, eps {format_eps(self.values[-1])}"]
        for name, clean, robust in zip(names, self.clean.per_class, self.per_class, strict=True):
            if clean is not None and robust is not None:
                lines.append(f"{name:{width}}  {clean!s:26}  {robust:n}")
        return "\n".join(
            [*lines, "", f"{self._passes}; {seconds_in_words(self.seconds, self.run_seconds)}; seed {self.seed}."]
        )

    def report(
        self,
        folder: Path | str,
        *,
        name: str | None = None,
        data: str = "images",
        images: bool = True,
        overwrite: bool = False,
        observer: Observer = NULL_OBSERVER,
    ) -> Path:
        """Write report.html into `folder` with the files that `casemate evaluate` writes; return the report's path.

        The report, and the record beside it, contain images: some as pictures, all of them as numbers. Without
        `images` both hold hashes only, and others can check the record by hash only.

        Args:
            folder: is created; the files of the same evaluation in it are replaced.
            name: of the model, as report and record state it; by default the class of its network.
            data: name of the images.
            images: whether images are written.
            overwrite: also replace the results of another evaluation.
            observer: is informed of the progress; every image that fooled is classified once more, by itself.

        Raises:
            RecordError: the weights of the model have changed since the evaluation.
            SettingError: the folder holds the results of another evaluation.
        """
        folder = as_path(folder, "folder")
        if fingerprint(self.model) != self.fingerprint:
            raise RecordError(
                "the weights of the model have changed since it was evaluated, so its examples cannot be checked "
                "again; write the report before training goes on, or evaluate again"
            )
        # named and not imported, since reports are built on evaluations: an import would make a circle
        write = import_module("casemate.report.evaluation_files").write_evaluation
        shown = type(self.model.network).__name__ if name is None else name
        return write(folder, self, name=shown, data=data, images=images, overwrite=overwrite, observer=observer)

    @property
    def _radii(self) -> str:
        return ", ".join(format_eps(each) for each in self.values)

    @property
    def _passes(self) -> str:
        passes = self.cascade.passes
        return f"{passes.forward:,} forward and {passes.backward:,} backward passes of the attacks"

    def as_json(self) -> dict[str, Any]:
        """All results except images and per-example values, for a result file."""
        classes = self.clean.classes
        return {
            "schema": SCHEMA,
            "norm": self.norm,
            "eps": list(self.values),
            "eps_text": [format_eps(each) for each in self.values],
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
            "run_seconds": self.run_seconds,
        }


def evaluate(
    model: nn.Module,
    images: ImageSource | ReadableImages,
    labels: Array | None = None,
    *,
    eps: float | str | Sequence[float | str],
    norm: str = "linf",
    budget: Budget = "standard",
    attacks: Attacks | None = None,
    checks: Check | Sequence[Check] = (),
    thorough: bool | None = None,
    force: bool = False,
    substitute: nn.Module | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    borders: Borders = CONVENTION,
    store: Path | str | None = None,
    fresh: bool = False,
    engine: Engine | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Evaluation:
    """Check a model and its images, attack it with all attacks of a budget, check the result, and give a verdict.

    The checks that need no attack come first. If one of them finds that the robust accuracy would say nothing, nothing
    is attacked. Checks that could only find that the model looks more robust than it is are left out if it has fallen.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits. It is evaluated in evaluation
            mode, and does not change.
        images: `LabelledImages`, a DataLoader or Dataset of (image, label) pairs, or the images alone, as a tensor or
            an array; see `casemate.data.as_labelled`. Images with a method `read` (`casemate.data.ReadableImages`) are
            read part by part, and need not fit into memory.
        labels: the true classes of images given alone.
        eps: one radius or several, in the unit of the pixels; each gets a verdict, the checks are run at the largest.
        norm: in which eps is measured: linf, l2, l1 or l0.
        budget: quick, autoattack (exactly its list), standard (with minimum-norm attacks) or thorough.
        attacks: to be run instead of the budget's; the library's or your own (`casemate.Attack`). One, several in
            order, which are named after their classes ("pgd", "pgd-2"), or several by name. Each runs at every
            `eps` of the evaluation in place of its own.
        checks: your own, made with the decorator `casemate.check`, in addition to the library's.
        thorough: run every check, also those that take minutes; by default only with the budget of that name.
        force: attack even if the robust accuracy will say nothing, and keep the finding that says why.
        substitute: an undefended model for the same images, for the checks that need one.
        seed: of all random draws.
        batch_size: images per pass, halved if they do not fit into memory; measured if None.
        precision: of the gradients of attacks within a ball, used where it is faster on this machine. Whether an image
            fools is decided in float32, and images that fool in bfloat16 only are attacked again.
        borders: between the grades of the verdict.
        store: a folder, or the URL of shared storage such as s3://bucket/prefix, that keeps every finished piece of the
            evaluation. If it is stopped, the same call goes on from there, with the same result to the bit on the same
            processor; more images, or another eps or attack at the end, use the pieces again. None: nothing is written.
        fresh: with `store`, use no pieces of earlier calls.
        engine: where the attacks run: `casemate.engine.Processes(workers=2)` or `casemate.engine.Ray()`, whose workers
            attack parts of the images side by side, each on PyTorch's number of threads here; None: this process. The
            result is the same to the bit on the same processor.
        observer: is informed of the progress; `casemate.progress_bars()` shows it.

    Raises:
        SettingError: no eps, an unknown budget, an attack in another norm, a check whose name is taken.
        ShapeError: no images, or images and labels that the model does not take.
        DataError: images or labels of a kind or type that is not understood.
        ModelError: a model that fails, or returns something other than one logit per class.
        EvaluationError: a finding voids the robust accuracy before any attack, and not `force`.
        StoreError: the store cannot be written, or is in use and `fresh`.
        MachineError: the engine's workers cannot be started, or keep dying.
    """
    start = time.perf_counter()
    if thorough is None:
        thorough = budget == "thorough"
    model, images, norm = as_classifier(model), as_readable(images, labels), parse_norm(norm)
    substitute = None if substitute is None else as_classifier(substitute)
    values = sorted(set(parse_radii(eps)))
    checks = list(checks) if isinstance(checks, Iterable) else [checks]
    _expect_checks(checks)
    batch_size = at_least(1).check_optional(batch_size, "batch_size")
    own = None if attacks is None else named_attacks(attacks)
    if isinstance(images, LabelledImages):
        images = LabelledImages(pixels=images.pixels, labels=images.labels.cpu())
    if has_inference_tensors(model):
        with torch.inference_mode(False):
            model = copied(model) or model
    in_training = is_in_training(model)
    as_given = copied(model) if in_training else None
    if as_given is not None:
        as_given.training = False  # not its network: what is compared are the logits before a softmax at its end
    preserved = preserve_state(*(each for each in (model, substitute) if each is not None), seed=seed)
    with preserved, ExitStack() as stack:
        mention_spinning(observer)
        randomised = probe_model(model, images)
        images = within_bounds(images, model)
        draws = DRAWS[budget] if randomised else 1
        judged = mean_over_samples(model, draws) if randomised else model
        chosen = own if own is not None else attacks_for(budget, norm, values[0], randomised=randomised)
        used = {"eps": values, "norm": norm, "budget": "own" if own is not None else budget, "attacks": list(chosen)}
        track(observer, Tracked(settings={**used, "images": len(images), "seed": seed, "precision": precision}))
        few = images.read(slice(0, COMPARED_IMAGES))
        work = most_work(chosen, len(images), len(model.classes))
        kept = stack.enter_context(
            keeping_pieces(judged, few, store, seed, norm, draws, precision, batch_size, observer, fresh=fresh)
        )
        with prepared_model(judged, few, kept, work, precision, batch_size, observer) as prepared:
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
                draws=draws,
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
                bounds=model.bounds,
            )
            first = run_first_checks(context, checks)
            if not force:
                refuse_pointless(first.values())
            before = judge(values[-1], withstood=clean.correct, findings=[])
            if Grade.UNTRAINED in before.grades:
                observer.message(before.grade_sentence)  # which no attack can change

            def falls(robust: int) -> bool:
                rank = np.where(clean.correct, np.cumsum(clean.correct), len(images) + 1)
                found = judge(values[-1], withstood=rank <= robust, findings=[])
                return found.fallen and not found.undecided

            cascade = context.attacked = run_cascade(
                prepared,
                chosen,
                images,
                values,
                norm=norm,
                correct=clean.correct,
                seed=seed,
                afterwards=checks_afterwards(falls, len(images), thorough=thorough),
                pieces=kept,
                engine=engine,
                observer=observer,
            )

        def verdicts(findings: Sequence[Finding]) -> list[Verdict]:
            return [
                judge(each, withstood=cascade.robust[:, column], findings=findings)
                for column, each in enumerate(values)
            ]

        fallen = all(each.fallen and not each.undecided for each in verdicts([]))
        checked = run_checks(context, first, checks, thorough=thorough, fallen=fallen)
    took = time.perf_counter() - start
    found = Evaluation(
        norm=norm,
        values=tuple(values),
        budget=spent,
        seed=seed,
        randomised=randomised,
        draws=draws,
        images=images,
        clean=clean,
        cascade=cascade,
        model=model,
        fingerprint=fingerprint(model),
        checks=checked,
        verdicts=verdicts([each.finding for each in checked if each.finding is not None]),
        batch_size=prepared.verifier.pass_size or 0,
        precision=prepared.precision,
        changes=prepared.changes,
        seconds=took + cascade.resumed_seconds,
        run_seconds=took,
    )
    track_evaluation(observer, model, images, cascade, found.findings, found.verdicts, found.seconds)
    return found


def _expect_checks(own: Sequence[Check]) -> None:
    """Raise `SettingError` unless each of a caller's own checks is a `Check` with a name that no other has."""
    names = list(CHECKS)
    for each in own:
        if not isinstance(each, Check):
            raise SettingError(
                f"checks has {kind_of(each)}; expected functions with the decorator casemate.check, such as "
                '@check("my-check", "What holds if it passes", weakens=0.1, why="...", advice="...")'
            )
        if each.name in names:
            raise SettingError(
                f"checks: the name {each.name!r} is taken; choose another. Checks of the library stay on"
            )
        names.append(each.name)
