"""Give committed results the field names and verdicts of schema 2 (`casemate.evaluation.verdict`), from their numbers.

    python tools/migrate_results.py [FOLDER ...]

FOLDER: as `casemate report` writes them; by default all of docs/results. In summary.json fields, settings of attacks
and checks get today's names, and the evaluations get trust, number and grade; in summary.md and results.md the tables
and sentences on models get the new words, and docs/results.md repeats the summaries. Nothing is computed anew:
provenance, the commits in it included, and all other numbers stay as they are. What is of schema 2 already is left
alone, so a second run changes nothing.

Of the study's own attacks some numbers are not stored, since they take the tables of single images. How many of the
attacked images are right without an attack is taken from BIM's curve at eps 0 (without one, from the clean accuracy);
their classes count as equally common. Of a model that answers at random, all that withstood count as right.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from casemate.errors import RecordError
from casemate.evaluation import Finding, Severity, Verdict, mcnemar
from casemate.evaluation.verdict import SCHEMA, verdict_on
from casemate.files import read_json, write_json, write_text
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments.catalogue import EXPERIMENTS, models_of
from casemate_study.experiments.models import StudyModel
from casemate_study.experiments.scales import SCALES
from casemate_study.experiments.specs import Setup
from casemate_study.report.comparison import withstood

ROOT = Path(__file__).resolve().parents[1]
EITHER_WAY = (
    "batch-dependence",
    "labels",
    "normalisation",
    "re-checked",
    "sample-size",
    "training-mode",
    "stateful-model",
)
"""Checks whose findings spoil the number in either direction; schema 1 did not store it."""
UNKNOWN = ("non-finite", "eps-unit")
"""Checks of which only some findings do."""
FAILED = "this check could not be made"

Artifacts = Mapping[str, Mapping[str, Any]]

FIELDS = {"pieces": "artifacts", "stands_in_for": "fallback_for", "run_on": "continue_after_stop"}
"""Fields by their names of schema 1."""
PICTURE = {"taken_for": "adversarial_prediction"}
TRAINING = {"keep": "save_epochs"}
SETTINGS = {
    "step": "step_size",
    "track": "keep",
    "binary_steps": "binary_search_steps",
    "wide": "use_larger_eps",
    "rescale": "rescale_schedule",
    "radius": "restart_eps",
    "enough": "stop_at_distance",
    "queries": "n_queries",
    "p": "p_init",
    "draws": "eot_samples",
}
"""Settings of attacks, likewise."""
NOISE = {"UniformNoise", "CornerNoise", "Spatial"}
"""Attacks whose `draws` are tries, not samples of a mean."""
CHECKS = {
    "alone": "batch-dependence",
    "by-decisions": "decision-based",
    "draws": "eot-samples",
    "learnt-by-heart": "label-leaking",
    "much-noise": "noise-10k",
    "optimises-inside": "inference-time-optimization",
    "passed-by": "best-not-last",
    "repeatable": "randomized",
    "same-draws": "fixed-randomness",
    "unchanged": "stateful-model",
    "unlimited": "unbounded-attack",
    "without-gradients": "black-box-stronger",
}


def rename(value: Any) -> Any:
    """A JSON value under today's names; of one that has them, the same."""
    if isinstance(value, list):
        return [rename(each) for each in value]
    if not isinstance(value, dict):
        return value
    names = FIELDS | PICTURE
    if "name" in value and ({"eps", "norm", "loss"} & value.keys() or "num_samples" in value):
        names = SETTINGS | ({"draws": "num_samples"} if value["name"] in NOISE else {})
    elif "epochs" in value:
        names = FIELDS | TRAINING
    made = {names.get(name, name): rename(each) for name, each in value.items()}
    if made.get("keep") == "worst":
        made["keep"] = "first_success"
    if made.get("check") in CHECKS:
        made["check"] = CHECKS[made["check"]]
    return made


def findings_of(checks: Sequence[dict[str, Any]]) -> list[Finding]:
    """What stored checks raised; `flatters` is added to each of them."""
    found: list[Finding] = []
    for check in checks:
        if check["sentence"] is None:
            check["flatters"] = None
            continue
        flatters = check["flatters"] = check["check"] not in EITHER_WAY
        if check["state"] == Severity.VOIDS and check["check"] in UNKNOWN:
            raise RecordError(f"{check['check']} voids in an unknown direction; expected a result to evaluate again")
        found.append(
            Finding(
                check=check["check"],
                severity=Severity(check["state"]),
                value=check["value"],
                threshold=check["threshold"],
                sentence=check["sentence"],
                failed=check["sentence"].startswith(FAILED),
                flatters=flatters,
            )
        )
    return found


def migrate_evaluation(result: dict[str, Any]) -> bool:
    """Give a stored evaluation its verdicts; False if that changes nothing."""
    if result.get("schema") == SCHEMA and "migrated_from_schema" not in result:
        return False
    before = dict(result)
    images, findings = result["images"], findings_of(result["checks"])
    place, sizes = np.arange(images), [each["clean_accuracy"]["n"] for each in result["per_class"]]
    verdicts = [
        verdict_on(
            eps,
            norm=result["norm"],
            budget=result["budget"],
            correct=place < round(images * result["clean_accuracy"]["value"]),
            withstood=place < round(images * robust["value"]),
            labels=np.repeat(np.arange(len(sizes)), sizes),
            classes=len(sizes),
            findings=findings,
        )
        for eps, robust in zip(result["eps"], result["robust_accuracy"], strict=True)
    ]
    result |= {
        "schema": SCHEMA,
        "migrated_from_schema": 1,
        "verdicts": [each.as_json() for each in verdicts],
        "verdict": verdicts[-1].word,
    }
    return result != before


@dataclass(frozen=True)
class Row:
    """What the tables say of a model."""

    verdict: Verdict
    whole: Verdict | None
    helps: str


def study_of(summary: Mapping[str, Any]) -> dict[str, StudyModel]:
    """The models of a committed study by title."""
    setup = Setup(
        scale=SCALES[summary["scale"]],
        dataset=summary["dataset"],
        train_size=60_000,
        test_size=10_000,
        seed=summary["seed"],
    )
    return {model.title: model for model in models_of(list(EXPERIMENTS.values()), setup)}


def _last(artifacts: Artifacts, name: str, eps: float) -> Mapping[str, Any] | None:
    point = None if name not in artifacts else _point(artifacts[name]["result"]["points"], eps)
    return None if point is None else point.get("last", point.get("every"))


def _point(points: Sequence[Mapping[str, Any]], eps: float) -> Mapping[str, Any] | None:
    return next((each for each in points if abs(each["eps"] - eps) < 1e-9), None)


def _attacked(model: StudyModel, artifacts: Artifacts, held: float) -> tuple[int, Verdict] | None:
    """How many images withstood the study's own attacks, of which `held` is the share, and the verdict on it."""
    randomised = model.source.inference is not None
    strongest = _last(artifacts, model.artifact("eot" if randomised else "pgd"), EPS)
    start = (
        _last(artifacts, model.artifact("ball", "ce"), 0.0) or artifacts[model.artifact("clean")]["result"]["accuracy"]
    )
    if strongest is None:
        return None
    n, classes = strongest["n"], len(artifacts[model.artifact("clean")]["result"]["classes"])
    place, count = np.arange(n), round(held * n)
    found = verdict_on(
        EPS,
        norm="linf",
        budget="own",
        correct=place < round(start["value"] * n),
        withstood=place < count,
        labels=place % classes,
        classes=classes,
        findings=(),
        checked=False,
    )
    return count, found


def _helps(mine: int, theirs: int, n: int, before: str) -> str:
    """The paired test from how many images withstood of each model, where it is the same whichever they are."""
    if mine <= theirs:
        return "no better"
    place = np.arange(n)
    overlaps = (place < theirs, place >= n - theirs)  # as many as can be, as few as can be
    significant = {mcnemar(place < mine, each) < 0.05 for each in overlaps}
    if len(significant) == 1:
        return "helps" if significant == {True} else "no better"
    return {"helps so far": "helps", "no better": "no better"}.get(before, "not stored")


def rows_of(lines: Sequence[Sequence[str]], models: Mapping[str, StudyModel], artifacts: Artifacts) -> dict[str, Row]:
    """What a summary's table will say, by title, from its cells of schema 1 and the stored results."""
    head, _, *body = lines
    held = {row[0]: float(row[head.index(f"worst case {EPS:g}, %")].split(" ")[0]) / 100 for row in body}
    found: dict[str, Row] = {}
    counts: dict[str, int] = {}
    for title, *_, before in body:
        model = models[title]
        own, name = _attacked(model, artifacts, held[title]), model.artifact("evaluation")
        stored = [] if name not in artifacts else map(Verdict.from_json, artifacts[name]["result"]["verdicts"])
        whole = next((each for each in stored if abs(each.eps - EPS) < 1e-9), None)
        if own is None:
            raise RecordError(f"{title}: no strongest attack is stored; expected a study that measured it")
        counts[title], attacked = own
        broken_by_own = attacked.fallen and (whole is None or not whole.fallen)
        baseline = next(iter(counts))
        helps = "" if title == baseline else _helps(counts[title], counts[baseline], attacked.number.robust.n, before)
        found[title] = Row(attacked if whole is None or broken_by_own else whole, whole, helps)
    return found


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"


def brief(lines: Sequence[Sequence[str]], rows: Mapping[str, Row]) -> list[str]:
    """A summary's table with the number, the verdict and the paired test."""
    head, _, *body = lines
    made = [[*head[:-1], "of right images, %", "verdict", "against E1"]]
    made.append(["---"] * len(made[0]))
    for *row, _ in body:
        found = rows[row[0]]
        made.append([*row, withstood(found.verdict).replace(" %", ""), found.verdict.word, found.helps])
    return [_line(row) for row in made]


def evaluated(lines: Sequence[Sequence[str]], rows: Mapping[str, Row]) -> list[str]:
    """The table of whole evaluations with the number and the verdict."""
    head, _, *body = lines
    made = [[*head[:-2], "of right images", *head[-2:]]]
    made.append(["---"] * len(made[0]))
    for *row, _, raised in body:
        whole = rows[row[0]].whole
        if whole is None:
            raise RecordError(f"{row[0]}: the evaluation in the table is not stored")
        made.append([*row, withstood(whole).replace(" %", ""), whole.word, raised])
    return [_line(row) for row in made]


OLD_NOTE = "Robust: at least half of the correctly classified images held. "
NEW_NOTE = (
    "Of right images: the share of those classified correctly without an attack that held, by whose interval the "
    "verdict is reached (docs/findings.md). "
)
HELPED = re.compile(
    r"^- (?P<title>.*?) helps against what was tried: (?P<left>.*? at eps [\d.]+)(?P<against>, against .*)$"
)


def sentence(line: str, rows: Mapping[str, Row]) -> str:
    """A sentence on a defence that helped, with what follows from its verdict."""
    found = HELPED.match(line)
    if found is None:
        return line
    row = rows[found["title"]]
    if row.verdict.fallen:
        suggested = re.search(r", although FGSM alone suggested [\d.]+ %", found["against"])
        why = re.search(r" \([^()]*\)(?=\.)", found["against"])
        reasons = "".join(each[0] for each in (suggested, why) if each)
        return f"- Do not rely on {found['title']}: {found['left']}{reasons}."
    if row.whole is None:
        return line
    words = row.whole.sentence
    kept = re.sub(r" (It is not robust, though: |Robust at eps |Broken at eps ).*$", "", line)
    if row.whole.trust.trusted:
        return f"{kept} The whole evaluation: {words[0].lower()}{words[1:]}"
    words = words.replace("This evaluation is", "But the whole evaluation is")
    return f"{kept.replace(' helps against', ' seems to help against', 1)} {words}"


def migrate_text(text: str, rows: Mapping[str, Row]) -> str:
    """summary.md or results.md."""
    made: list[str] = []
    lines, at = text.split("\n"), 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        if end == at:
            line = lines[at]
            if OLD_NOTE in line:
                line = line.replace(OLD_NOTE, NEW_NOTE).replace(" (docs/findings.md). PGD:", ". PGD:")
            made.append(sentence(line, rows))
            at += 1
            continue
        table = [cells(line) for line in lines[at:end]]
        if table[0][0] == "model" and table[0][-1] == "verdict":
            made += brief(table, rows)
        elif table[0][-2:] == ["verdict", "raised"] and "of right images" not in table[0]:
            made += evaluated(table, rows)
        else:
            made += lines[at:end]
        at = end
    return "\n".join(made)


def migrate(folder: Path) -> list[Path]:
    """Migrate the files of one report; return those that changed."""
    changed: list[Path] = []
    before = read_json(folder / "summary.json", RecordError)
    summary = rename(before)
    artifacts: Artifacts = summary["artifacts"]
    moved = [migrate_evaluation(each["result"]) for name, each in artifacts.items() if name.endswith("/evaluation")]
    if any(moved) or summary != before:
        changed.append(write_json(folder / "summary.json", summary))
    text = (folder / "summary.md").read_text()
    table = [cells(line) for line in text.split("\n") if line.startswith("|")]
    if table[0][-1] != "verdict":
        return changed
    rows = rows_of(table, study_of(summary), artifacts)
    for name in ("summary.md", "results.md"):
        before = (folder / name).read_text()
        after = migrate_text(before, rows)
        if after != before:
            changed.append(write_text(folder / name, after))
    return changed


def repeat_on_page(page: Path, results: Path) -> list[Path]:
    """Put the summaries of the committed results into their places on the page of results."""
    before = page.read_text()

    def block(found: re.Match[str]) -> str:
        text = (results / found[1] / "summary.md").read_text().strip()
        return f"<!-- results: {found[1]} -->\n{text}\n<!-- end of results -->"

    after = re.sub(r"<!-- results: (\S+) -->\n.*?<!-- end of results -->", block, before, flags=re.DOTALL)
    return [write_text(page, after)] if after != before else []


def main() -> None:
    """Migrate and say what changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    results = ROOT / "docs" / "results"
    folders: list[Path] = parser.parse_args().folders
    changed = [path for folder in folders or sorted(results.iterdir()) for path in migrate(folder)]
    if not folders:
        changed += repeat_on_page(ROOT / "docs" / "results.md", results)
    print("\n".join(map(str, changed)) or "nothing to migrate")


if __name__ == "__main__":
    main()
