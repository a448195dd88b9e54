"""The report's tables of all models and of the paper's claims, from stored numbers and the rules that judge
the claims.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from casemate.evaluation import BUDGETS_IN_WORDS, Estimate, Verdict, percent
from casemate.losses import TITLES
from casemate_study.claims import ClaimEvidence, Judgement, judge
from casemate_study.claims.verdicts import EPS, Advice, advise
from casemate_study.experiments.catalogue import EXPERIMENTS, models_of
from casemate_study.experiments.defended import searched
from casemate_study.experiments.models import TABLE_EPS
from casemate_study.experiments.specs import LOSSES, Setup
from casemate_study.reference import Reference
from casemate_study.results.models import ModelResults
from casemate_study.results.stored import Artifacts, StoredCheckpoint, StoredTraining, find_result


@final
@dataclass(frozen=True)
class Table:
    """A table of the report as text: column headings, rows of cells, and a note to print under it."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def measured_models(setup: Setup, artifacts: Artifacts) -> dict[str, ModelResults]:
    """All models of the study, at this setup, whose measures without an attack are finished: their results by name."""
    every = [ModelResults(model, artifacts) for model in models_of(list(EXPERIMENTS.values()), setup)]
    return {each.model.name: each for each in every if each.clean is not None}


def cell(estimate: Estimate | None) -> str:
    """Text of a table cell: the share in percent with its interval, "62.0 % (58.9 to 65.0)"; "-" for None."""
    return "-" if estimate is None else f"{estimate}"


def withstood(verdict: Verdict) -> str:
    """Text of a table cell: the share of the correctly classified images that withstood all attacks, from which the
    verdict's grade follows; "-" if no image was classified correctly.
    """
    return cell(verdict.number.withstood)


def sizes_in_words(estimates: Sequence[Estimate | None]) -> str:
    """Text with the different sample sizes of the estimates, ascending: "400 or 1,000"; empty if there are none."""
    return " or ".join(f"{size:,}" for size in sorted({each.n for each in estimates if each is not None}))


def _time(model: ModelResults) -> tuple[str, str]:
    seconds = model.seconds
    return ("-", "-") if seconds is None else (f"{seconds[1]:.1f}", f"{seconds[0]:,.0f}")


def model_table(models: Mapping[str, ModelResults], reference: Reference | None) -> Table:
    """A table with one row per model: accuracy without an attack, under FGSM and BIM, and in the worst case; loss and
    training time.

    With `reference`, also the accuracies in our committed runs at larger scales.
    """
    head = ("model", "clean")
    head += tuple(f"{name} {eps:g}" for name in ("FGSM", "BIM") for eps in TABLE_EPS)
    head += (f"worst case {EPS:g}",)
    if reference is not None:
        head += (f"at scale {reference.scales}: clean", f"FGSM {EPS:g}", f"BIM {EPS:g}", f"worst case {EPS:g}")
    head += ("loss", "s/epoch", "s in all")
    rows: list[tuple[str, ...]] = []
    for name, each in models.items():
        clean = each.clean
        if clean is None:
            continue
        cells = (each.title, cell(clean.accuracy))
        cells += tuple(cell(each.accuracy_under(measure, eps)) for measure in ("fgsm", "ball") for eps in TABLE_EPS)
        cells += (cell(each.worst_case(EPS)),)
        if reference is not None:
            cells += tuple(reference.accuracy(name, kind) or "-" for kind in ("clean", "fgsm", "ball", "worst"))
        rows.append((*cells, f"{clean.loss.value:.3f}", *_time(each)))
    sizes = sizes_in_words([each.accuracy_under("ball", EPS) for each in models.values()])
    of = f"n = {sizes} under BIM" if sizes else "no attack finished"
    return Table(
        head,
        rows,
        "Accuracy with 95 % intervals. FGSM, and BIM with 10 iterations of eps / 4 and clip ball: last iterate, stable "
        f"cross-entropy, {of}. Worst case: share of images that withstand every iterate of FGSM and BIM under every "
        "loss, and PGD-40 with restarts ascending the stable cross-entropy and the logit margin; randomised models: "
        "accuracy at the last iterate of BIM over averaged gradients. Seconds of the processor (all threads), "
        "or of the clock where it was not measured; those of different machines do not compare.",
    )


def whole_evaluation_table(models: Mapping[str, ModelResults]) -> Table | None:
    """A table with one row per model that has a whole evaluation (`casemate.evaluate`): accuracy under attacks,
    verdict, and the checks whose findings weaken or void the number. None if no model has one.
    """
    head = ("model", "clean", f"FGSM {EPS:g}", f"PGD {EPS:g}", f"all attacks {EPS:g}", "of right images", "verdict")
    head += ("raised",)
    rows: list[tuple[str, ...]] = []
    budgets: set[str] = set()
    robust: list[Estimate] = []
    for each in models.values():
        found = each.whole_evaluation(EPS)
        if found is None:
            continue
        budgets.add(found.verdict.number.budget)
        robust.append(found.robust)
        grave = [name for name, severity in found.raised.items() if severity != "note"]
        row = (
            each.title,
            cell(each.clean.accuracy if each.clean else None),
            cell(each.accuracy_under("fgsm", EPS)),
            cell(each.under_strongest(EPS)),
            cell(found.robust),
            withstood(found.verdict),
        )
        rows.append((*row, found.verdict.word, ", ".join(grave) or "-"))
    if not rows:
        return None
    tried = " and ".join(f"{budget} ({words})" for budget, words in BUDGETS_IN_WORDS.items() if budget in budgets)
    return Table(
        head,
        rows,
        f"All attacks: correct under every attack of the budget {tried}, n = {sizes_in_words(robust)}; randomised "
        "models by their mean prediction. Of right images: the share of those classified correctly without an attack "
        "that withstand all attacks; the grade follows from its interval (docs/findings.md). Raised: the checks whose "
        "findings weaken or void the number. PGD: PGD-40 with restarts under two losses, or BIM over averaged "
        "gradients.",
    )


def summary_table(models: Mapping[str, ModelResults]) -> Table:
    """A short table of the models: accuracy without an attack, under FGSM, BIM, in the worst case and in the whole
    evaluation; the share of correctly classified images that withstood, and the verdict that follows from it.

    The last column says whether the model helps against E1, the undefended network, by the paired test.
    """
    helps = {name: advice.helps for name, advice in advices(models)}
    whole = {name: found for name, each in models.items() if (found := each.whole_evaluation(EPS)) is not None}
    head = ("model", "clean", f"FGSM {EPS:g}", f"BIM {EPS:g}", f"worst case {EPS:g}")
    head += ("evaluation",) if whole else ()
    rows: list[tuple[str, ...]] = []
    for name, each in models.items():
        cells = (each.title, cell(each.clean.accuracy if each.clean else None))
        cells += (*(cell(each.accuracy_under(measure, EPS)) for measure in ("fgsm", "ball")),)
        cells += (cell(each.worst_case(EPS)),)
        cells += (cell(whole[name].robust if name in whole else None),) if whole else ()
        verdict = each.verdict(EPS)
        cells += ("-", "not measured") if verdict is None else (withstood(verdict), verdict.word)
        rows.append((*cells, helps.get(name, "")))
    return Table((*head, "of right images", "verdict", "against E1"), rows, "")


def diagnosis_table(models: Mapping[str, ModelResults]) -> Table:
    """A table with one row per model of measures that explain why an attack misleads: calibration, logit gaps, zero
    gradients, angles between nearby gradients, and accuracy by the loss that FGSM and PGD ascend.
    """
    head = ("model", "loss", "calibration error", "logit gap: 5 %", "median", "95 %")
    head += tuple(f"zero gradient, {TITLES[loss]}" for loss in LOSSES)
    head += ("angle at 0.01", "at 0.1", *(f"FGSM {EPS:g}, {TITLES[loss]}" for loss in LOSSES))
    head += (f"PGD {EPS:g}, stable", "margin")
    rows: list[tuple[str, ...]] = []
    for each in models.values():
        clean = each.clean
        if clean is None:
            continue
        by_loss: Mapping[str, Estimate] = each.pgd.points[-1].each if each.pgd else {}
        left = [each.accuracy_under("fgsm", EPS, loss) for loss in LOSSES]
        left += [by_loss.get(loss) for loss in ("ce", "margin")]
        angles = [clean.alignment[radius] for radius in ("0.01", "0.1")]
        rows.append(
            (
                each.title,
                f"{clean.loss.value:.3f}",
                percent(clean.calibration_error),
                *(f"{clean.gap_quantiles[q]:.1f}" for q in ("0.05", "0.5", "0.95")),
                *(percent(clean.zero_gradients[loss].value) for loss in LOSSES),
                *("-" if angle is None else f"{angle.value:.0f}\N{DEGREE SIGN}" for angle in angles),
                *("-" if estimate is None else percent(estimate.value) for estimate in left),
            )
        )
    return Table(
        head,
        rows,
        "Zero gradient: share of images whose input gradient is exactly zero in every pixel. An attack that follows it "
        "does not move, and counts them as withstanding. Angle: between the gradients at an image and at a random "
        "point within that distance; one step can be trusted only where it is small.",
    )


def distillation_table(models: Mapping[str, ModelResults]) -> Table | None:
    """A table that tests whether distilled students are robust: BIM on their logits as they are, and on the logits
    divided by the temperature. One row per student with a temperature other than 1; None if none was measured.
    """
    eps = 0.05
    rows: list[tuple[str, ...]] = []
    for each in models.values():
        curve, clean = each.curve("divided", None), each.clean
        point = None if curve is None else curve.at(eps)
        if clean is None or curve is None or point is None:
            continue
        row = (each.zero_gradient_share("prob-ce"), curve.zero_gradients, each.accuracy_under("ball", eps, "prob-ce"))
        row = (*row, point.last, each.accuracy_under("ball", eps))
        rows.append((each.title, f"{clean.gap_quantiles['0.5']:.0f}", *map(cell, row)))
    if not rows:
        return None
    return Table(
        ("student", "median gap", "zero gradient", "divided", f"BIM {eps:g}, softmax", "divided", "stable"),
        rows,
        "Logits divided by the temperature give the same classes, and only a loss that saturates changes. Where the "
        "attack on softmax probabilities leaves more than that on divided logits, the difference was not robustness.",
    )


def search_table(setup: Setup, artifacts: Artifacts) -> Table | None:
    """A table of the search over student networks (E13): one row per network, the best validation accuracy first.

    None if no network of it is trained and measured.
    """
    rows: list[tuple[str, ...]] = []
    for network, dropout, source in searched(setup):
        trained = find_result(artifacts, source.task, StoredTraining)
        found = find_result(artifacts, source.task.replace("/search/", "/found/"), StoredCheckpoint)
        if trained is None or found is None:
            continue
        attacks = sorted(found.attacks.items(), reverse=True)
        rows.append(
            (
                network,
                f"{dropout:g}",
                f"{trained.parameters:,}",
                percent(trained.best.val_accuracy),
                cell(found.accuracy),
                f"{found.loss.value:.3f}",
                *(cell(by_loss["ce"].last) for _, by_loss in attacks),
                f"{sum(row.cost for row in trained.history) / len(trained.history):.1f}",
            )
        )
    if not rows:
        return None
    rows.sort(key=lambda row: float(row[3].split()[0]), reverse=True)
    head = ("network", "dropout times", "parameters", "validation", "test", "loss", "FGSM 0.1", "BIM 0.05", "s/epoch")
    return Table(
        head,
        rows,
        "Students distilled at T = 20, best validation accuracy first (the test part chose nothing). Networks: "
        "channels of the first block x number of blocks.",
    )


def _at_that_scale(verdict: str) -> str:
    """The verdict of a committed run with "this scale" and "here" replaced, for the report of a run at
    another scale.
    """
    return verdict.replace("this scale", "that scale").replace("(here:", "(there:")


def claim_table(judgements: Sequence[Judgement], reference: Reference | None) -> Table:
    """A table of the paper's claims: our verdict on each, that of our committed runs at larger scales, those with
    further seeds (if any rule could be applied to one), and the reason.
    """
    head = ("experiment", "the paper says", "verdict")
    head += (f"at scale {reference.scales}",) if reference is not None else ()
    repeated = any(each.by_seed for each in judgements)
    head += ("with further seeds",) if repeated else ()
    head += ("because",)
    rows = [
        (
            f"{each.claim.experiment} ({each.claim.where})",
            each.claim.says,
            each.verdict,
            *(() if reference is None else (_at_that_scale(reference.claim(each.claim.says) or "-"),)),
            *((each.seeds_sentence or "-",) if repeated else ()),
            each.because,
        )
        for each in judgements
    ]
    return Table(head, rows, "")


def judged_claims(models: Mapping[str, ModelResults], artifacts: Artifacts, *, decides: bool) -> list[Judgement]:
    """Judge every claim of the paper by these results; `decides` says whether the scale and the data can decide."""
    return judge(ClaimEvidence(models, artifacts), decides=decides)


def advices(models: Mapping[str, ModelResults]) -> list[tuple[str, Advice]]:
    """The advice on every model but E1 (undefended) that has a verdict, each with the name of its model."""
    return [(name, advice) for name, advice in advise(models) if advice.verdict is not None]
