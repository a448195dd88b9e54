"""The tables of all models and of the paper's claims, from stored numbers and the rules of the study's room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from casemate.evaluation import BUDGETS_IN_WORDS, Verdict
from casemate.losses import TITLES
from casemate_study.claims import ClaimEvidence, Judgement, judge
from casemate_study.claims.verdicts import EPS, Advice, advise, percent
from casemate_study.experiments.catalogue import EXPERIMENTS, models_of
from casemate_study.experiments.defended import searched
from casemate_study.experiments.models import TABLE_EPS
from casemate_study.experiments.specs import LOSSES, Setup
from casemate_study.reference import Reference
from casemate_study.results import Artifacts, Estimate, ModelResults, point_at


@final
@dataclass(frozen=True)
class Table:
    """A heading, rows, and what a reader must know of them."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def judged_models(setup: Setup, artifacts: Artifacts) -> dict[str, ModelResults]:
    """Every model of the study of which something is known, by name."""
    every = [ModelResults(model, artifacts) for model in models_of(list(EXPERIMENTS.values()), setup)]
    return {each.model.name: each for each in every if each.clean is not None}


def short(estimate: Estimate | None) -> str:
    """A share in percent with its interval; a dash for none."""
    if estimate is None:
        return "-"
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def withstood(verdict: Verdict) -> str:
    """The share of right images that withstood, on which a verdict rests; a dash if none was right."""
    found = verdict.number.withstood
    return short(None if found is None else found.as_json())


def _time(judged: ModelResults) -> tuple[str, str]:
    seconds = judged.seconds
    return ("-", "-") if seconds is None else (f"{seconds[1]:.1f}", f"{seconds[0]:,.0f}")


def defences(models: Mapping[str, ModelResults], reference: Reference | None) -> Table:
    """One row per model: clean, under FGSM and BIM, in the worst case; in the committed runs; loss, time."""
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
        cells = (each.title, short(clean["accuracy"]))
        cells += tuple(short(each.left(measure, eps)) for measure in ("fgsm", "ball") for eps in TABLE_EPS)
        cells += (short(each.worst(EPS)),)
        if reference is not None:
            kinds = ("clean", "fgsm", "ball", "worst")
            cells += tuple(reference.entry(short, "models", name, kind) or "-" for kind in kinds)
        rows.append((*cells, f"{clean['loss']['value']:.3f}", *_time(each)))
    sizes = sorted({int(point["n"]) for each in models.values() if (point := each.left("ball", EPS))})
    of = f"n = {' or '.join(f'{size:,}' for size in sizes)} under BIM" if sizes else "no attack finished"
    return Table(
        head,
        rows,
        "Accuracy in %, with 95 % intervals. FGSM, and BIM with 10 iterations of eps / 4 and clip ball: last iterate, "
        f"stable cross-entropy, {of}. Worst case: withstood every iterate of FGSM and BIM under every loss, and PGD-40 "
        "with restarts ascending the stable cross-entropy and the logit margin; randomised models: the last answer to "
        "BIM over averaged gradients. Seconds as measured.",
    )


def evaluated(models: Mapping[str, ModelResults]) -> Table | None:
    """One row per model that was evaluated as a whole: robust accuracy, verdict, and what was raised."""
    head = ("model", "clean", f"FGSM {EPS:g}", f"PGD {EPS:g}", f"all attacks {EPS:g}", "of right images", "verdict")
    head += ("raised",)
    rows: list[tuple[str, ...]] = []
    budgets: set[str] = set()
    sizes: set[int] = set()
    for each in models.values():
        found = each.evaluated(EPS)
        if found is None:
            continue
        budgets.add(found.verdict.number.budget)
        sizes.add(int(found.robust["n"]))
        grave = [name for name, severity in found.raised.items() if severity != "note"]
        row = (
            each.title,
            short(each.clean["accuracy"] if each.clean else None),
            short(each.left("fgsm", EPS)),
            short(each.strongest(EPS)),
            short(found.robust),
            withstood(found.verdict),
        )
        rows.append((*row, found.verdict.word, ", ".join(grave) or "-"))
    if not rows:
        return None
    tried = " and ".join(f"{budget} ({words})" for budget, words in BUDGETS_IN_WORDS.items() if budget in budgets)
    return Table(
        head,
        rows,
        f"All attacks: right under every attack of the budget {tried}, n = "
        f"{' or '.join(f'{size:,}' for size in sorted(sizes))}; randomised models by their mean answer. Of right "
        "images: the share of those classified correctly without an attack that held, by whose interval the verdict is "
        "reached (docs/findings.md). Raised: checks that weaken or void the number. PGD: PGD-40 with restarts under "
        "two losses, or BIM over averaged gradients.",
    )


def brief(models: Mapping[str, ModelResults]) -> Table:
    """The models in one short table: clean, two attacks, worst case, evaluation, the verdict and what it rests on.

    The last column is the paired test against the baseline.
    """
    helps = {name: advice.helps for name, advice in advices(models)}
    whole = {name: found for name, each in models.items() if (found := each.evaluated(EPS)) is not None}
    head = ("model", "clean, %", f"FGSM {EPS:g}, %", f"BIM {EPS:g}, %", f"worst case {EPS:g}, %")
    head += ("evaluation, %",) if whole else ()
    rows: list[tuple[str, ...]] = []
    for name, each in models.items():
        cells = (each.title, short(each.clean["accuracy"] if each.clean else None))
        cells += (*(short(each.left(measure, EPS)) for measure in ("fgsm", "ball")), short(each.worst(EPS)))
        cells += (short(whole[name].robust if name in whole else None),) if whole else ()
        verdict = each.verdict(EPS)
        cells += ("-", "not measured") if verdict is None else (withstood(verdict), verdict.word)
        rows.append((*cells, helps.get(name, "")))
    return Table((*head, "of right images, %", "verdict", "against E1"), rows, "")


def diagnosis(models: Mapping[str, ModelResults]) -> Table:
    """One row per model: what is known to make attacks misleading."""
    head = ("model", "loss", "calibration error", "logit gap: 5 %", "median", "95 %")
    head += tuple(f"zero gradient, {TITLES[loss]}" for loss in LOSSES)
    head += ("angle at 0.01", "at 0.1", *(f"FGSM {EPS:g}, {TITLES[loss]}" for loss in LOSSES))
    head += (f"PGD {EPS:g}, stable", "margin")
    rows: list[tuple[str, ...]] = []
    for each in models.values():
        clean = each.clean
        if clean is None:
            continue
        angles = [clean["alignment"][radius] for radius in ("0.01", "0.1")]
        pgd = each.artifact("pgd")
        point: Mapping[str, Any] = {} if pgd is None else pgd.result["points"][-1]["each"]
        rows.append(
            (
                each.title,
                f"{clean['loss']['value']:.3f}",
                percent(clean["calibration_error"]),
                *(f"{clean['gap_quantiles'][q]:.1f}" for q in ("0.05", "0.5", "0.95")),
                *(percent(clean["zero_gradients"][loss]["value"]) for loss in LOSSES),
                *("-" if angle is None else f"{angle['value']:.0f}\N{DEGREE SIGN}" for angle in angles),
                *(percent(left["value"]) if (left := each.left("fgsm", EPS, loss)) else "-" for loss in LOSSES),
                *(percent(point[loss]["value"]) if loss in point else "-" for loss in ("ce", "margin")),
            )
        )
    return Table(
        head,
        rows,
        "Zero gradient: images whose input gradient is exactly zero in every pixel; an attack that follows it does not "
        "move, and counts them as withstanding. Angle: between the gradients at an image and at a random point within "
        "that distance; one step can only be trusted where it is small.",
    )


def temperature_scaled(models: Mapping[str, ModelResults]) -> Table | None:
    """The deciding test on distillation: the same attack with the logits divided by the temperature."""
    eps = 0.05
    rows: list[tuple[str, ...]] = []
    for each in models.values():
        artifact = each.artifact("divided")
        point = None if artifact is None else point_at(artifact, "eps", eps)
        if each.clean is None or artifact is None or point is None:
            continue
        rows.append(
            (
                each.title,
                f"{each.clean['gap_quantiles']['0.5']:.0f}",
                short(each.zero("prob-ce")),
                short(artifact.result["zero_gradients"]),
                short(each.left("ball", eps, "prob-ce")),
                short(point["last"]),
                short(each.left("ball", eps)),
            )
        )
    if not rows:
        return None
    return Table(
        ("student", "median gap", "zero gradient, %", "divided", f"BIM {eps:g}, softmax, %", "divided", "stable, %"),
        rows,
        "Logits divided by the temperature classify alike, and only a loss that saturates sees a difference. Where the "
        "attack on softmax probabilities leaves more than that on divided logits, the difference was no robustness.",
    )


def search(setup: Setup, artifacts: Artifacts) -> Table | None:
    """The search over student networks."""
    rows: list[tuple[str, ...]] = []
    for network, dropout, source in searched(setup):
        trained, found = artifacts.get(source.task), artifacts.get(source.task.replace("/search/", "/found/"))
        if trained is None or found is None:
            continue
        history = trained.result["history"]
        best = history[trained.result["best_epoch"] - 1]
        attacks = found.result["attacks"]
        rows.append(
            (
                network,
                f"{dropout:g}",
                f"{trained.result['parameters']:,}",
                percent(best["val_accuracy"]),
                short(found.result["accuracy"]),
                f"{found.result['loss']['value']:.3f}",
                *(short(attacks[attack]["ce"]["last"]) for attack in sorted(attacks, reverse=True)),
                f"{sum(row['seconds'] for row in history) / len(history):.1f}",
            )
        )
    if not rows:
        return None
    rows.sort(key=lambda row: row[3], reverse=True)
    return Table(
        (
            "network",
            "dropout times",
            "parameters",
            "validation",
            "test, %",
            "loss",
            "FGSM 0.1, %",
            "BIM 0.05, %",
            "s/epoch",
        ),
        rows,
        "Students distilled at T = 20, best validation accuracy first (the test part chose nothing). Networks: "
        "channels of the first block x number of blocks.",
    )


def _of_there(verdict: str) -> str:
    """A verdict of a committed run, read from another scale."""
    return verdict.replace("this scale", "that scale").replace("(here:", "(there:")


def claims(judgements: Sequence[Judgement], reference: Reference | None) -> Table:
    """The paper's claims with their verdicts, here and in the committed runs."""
    head = ("experiment", "the paper says", "verdict")
    head += (f"at scale {reference.scales}",) if reference is not None else ()
    head += ("because",)
    rows = [
        (
            f"{each.claim.experiment} ({each.claim.where})",
            each.claim.says,
            each.verdict,
            *(() if reference is None else (reference.entry(_of_there, "claims", each.claim.says) or "not measured",)),
            each.because,
        )
        for each in judgements
    ]
    return Table(head, rows, "")


def judged_claims(models: Mapping[str, ModelResults], artifacts: Artifacts, *, decides: bool) -> list[Judgement]:
    """Every claim, judged."""
    return judge(ClaimEvidence(models, artifacts), decides=decides)


def advices(models: Mapping[str, ModelResults]) -> list[tuple[str, Advice]]:
    """The verdict on every measured defence."""
    return [(name, advice) for name, advice in advise(models) if advice.verdict is not None]
