"""The verdict: whether the number can be trusted, the number, its grade; in words, in colour, in JSON."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from rich.console import Console

from casemate.cli.evaluate.show import verdict_box
from casemate.errors import RecordError, SettingError, ShapeError
from casemate.evaluation import Borders, Finding, Grade, Severity, Verdict, share
from casemate.evaluation.budgets import Budget
from casemate.evaluation.verdict import (
    CONVENTION,
    PUBLIC_MODELS,
    SCHEMA,
    Number,
    Trust,
    grade,
    read_verdicts,
    verdict_on,
)
from casemate.norms import format_eps
from scripts import imported

ROOT = Path(__file__).resolve().parents[1]
BROKEN, WEAK, PARTLY, ROBUST = Grade.BROKEN, Grade.WEAK, Grade.PARTLY_ROBUST, Grade.ROBUST
UNTRAINED, QUICK, OWN = Grade.UNTRAINED, Grade.NOT_BROKEN_QUICKLY, Grade.NOT_BROKEN_BY_THESE


def judged(
    n: int,
    right: int,
    held: int,
    *,
    budget: str = "standard",
    classes: int = 10,
    labels: np.ndarray | None = None,
    findings: tuple[Finding, ...] = (),
    eps: float = 8 / 255,
    borders: Borders = CONVENTION,
) -> Verdict:
    """Of `n` images so many are right, and of those so many withstood; classes are equally common."""
    place = np.arange(n)
    return verdict_on(
        eps,
        norm="linf",
        budget=budget,
        correct=place < right,
        withstood=place < held,
        labels=place % classes if labels is None else labels,
        classes=classes,
        findings=findings,
        borders=borders,
    )


def finding(severity: Severity, *, flatters: bool = True, check: str = "a-check", failed: bool = False) -> Finding:
    """A finding of a check."""
    return Finding(
        check=check,
        severity=severity,
        value=1,
        threshold=0,
        sentence=f"{check} saw it. Do this",
        flatters=flatters,
        failed=failed,
    )


VOID, WRONG = finding(Severity.VOIDS), finding(Severity.VOIDS, flatters=False, check="labels")


def test_a_grade_about_few_of_the_images_states_the_clean_accuracy() -> None:
    few, half, none = judged(1000, 310, 300, budget="quick"), judged(1000, 500, 480), judged(1000, 100, 50)
    stated = "; but without an attack only 31.0 % (28.2 to 33.9, n = 1,000) of all images are classified correctly."
    assert few.word == QUICK
    assert few.sentence.endswith(f"can call a model robust{stated}")
    assert few.grade_sentence.endswith(stated)
    assert "but without an attack" not in half.sentence
    assert none.grades == (UNTRAINED,)
    assert none.sentence.count("10.0 %") == 2  # the accuracy in the reason, and that of guessing


# The grade ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("right", "held", "grades"),
    [
        (1000, 0, (BROKEN,)),
        (940, 74, (BROKEN,)),
        (1000, 130, (WEAK,)),
        (1000, 450, (WEAK,)),
        (1000, 480, (WEAK, PARTLY)),
        (1000, 520, (WEAK, PARTLY)),
        (1000, 540, (PARTLY,)),
        (1000, 870, (PARTLY,)),
        (1000, 890, (PARTLY, ROBUST)),
        (1000, 910, (PARTLY, ROBUST)),
        (1000, 930, (ROBUST,)),
        (600, 300, (WEAK, PARTLY)),
        (600, 590, (ROBUST,)),
    ],
)
def test_the_grade_is_that_of_the_interval_of_the_right_images_that_withstood(
    right: int, held: int, grades: tuple[Grade, ...]
) -> None:
    found = judged(1000, right, held)
    assert found.grades == grades
    assert found.word == " or ".join(grades)
    assert found.number.withstood == share(np.arange(right) < held)
    assert found.undecided == (len(grades) > 1)
    assert ("more images would decide" in found.sentence) == (len(grades) > 1)


def test_borders_belong_to_the_better_grade() -> None:
    """An upper end of exactly a tenth is no longer broken; a lower end of exactly half is partly robust."""
    below = {border: float(np.nextafter(border, 0)) for border in (0.1, 0.5, 0.9)}
    assert CONVENTION.reached(0.0, below[0.1]) == (BROKEN,)
    assert CONVENTION.reached(0.1, 0.1) == (WEAK,)
    assert CONVENTION.reached(0.1, below[0.5]) == (WEAK,)
    assert CONVENTION.reached(0.5, below[0.9]) == (PARTLY,)
    assert CONVENTION.reached(0.9, 1.0) == (ROBUST,)
    assert CONVENTION.reached(0.0, 1.0) == (BROKEN, WEAK, PARTLY, ROBUST)


def test_all_of_ten_lie_across_a_border() -> None:
    """72.2 to 100 %: partly robust for sure, robust perhaps."""
    found = judged(10, 10, 10)
    assert found.grades == (PARTLY, ROBUST)
    assert found.word == "partly robust or robust as far as tested"
    assert found.undecided
    assert "lies across 90 %; more images would decide" in found.grade_sentence
    assert found.colour == "green"


def test_a_few_images_reach_many_grades() -> None:
    found = judged(20, 4, 3, classes=20)
    assert found.grades == (WEAK, PARTLY, ROBUST)
    assert found.word == "weak, partly robust or robust as far as tested"
    assert "across 50 % and 90 %" in found.grade_sentence
    assert found.colour == "yellow"


# Guessing -------------------------------------------------------------------------------------------------------------
def test_no_right_image_at_all() -> None:
    found = judged(100, 0, 0)
    assert found.number.withstood is None
    assert found.grades == (UNTRAINED,)
    assert not found.undecided
    assert found.colour == "red"
    assert "is classified correctly without an attack" in found.number_sentence
    guessing = "is not shown to be above guessing the commonest class, 10.0 %"
    assert f"0.0 % (0.0 to 3.7, n = 100), {guessing}" in found.sentence
    assert Verdict.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_no_image_is_an_error() -> None:
    with pytest.raises(ShapeError, match="no examples"):
        judged(0, 0, 0)


def test_one_image_shows_nothing() -> None:
    """Its class is the commonest, so a constant answer gets it right."""
    for right, held in ((1, 1), (1, 0), (0, 0)):
        found = judged(1, right, held)
        assert found.grades == (UNTRAINED,)
        assert found.number.guessing == 1
        assert "all images are of one class" in found.sentence
        assert found.colour == "red"


@pytest.mark.parametrize(("right", "untrained"), [(100, True), (118, True), (119, False)])
def test_a_clean_accuracy_at_guessing_is_untrained_or_mislabelled(right: int, untrained: bool) -> None:
    """Of 1,000 images of ten classes 118 right reach down to 10.0 %, 119 to 10.04."""
    found = judged(1000, right, 0)
    assert (found.grades == (UNTRAINED,)) == untrained
    assert found.undecided == (right == 118)
    assert found.fallen


@pytest.mark.parametrize(
    ("n", "held", "grades"),
    [(100, 55, (BROKEN,)), (1000, 520, (BROKEN,)), (1000, 540, (PARTLY,)), (100, 40, (BROKEN,))],
)
def test_two_classes_are_guessed_by_a_coin(n: int, held: int, grades: tuple[Grade, ...]) -> None:
    """55 of 100 are not shown above one half; how many right images withstood is not considered then."""
    found = judged(n, n, held, classes=2)
    assert found.grades == grades
    if grades == (BROKEN,):
        assert "is not shown to be above guessing the commonest class, 50.0 %" in found.grade_sentence
        assert found.undecided == (held > n / 2)


def test_the_commonest_class_is_a_guess() -> None:
    """Nine in ten images are of one of three classes: 88 % robust accuracy shows nothing there, and does elsewhere."""
    labels = np.where(np.arange(1000) < 900, 0, 1 + np.arange(1000) % 2)
    common, even = judged(1000, 990, 880, classes=3, labels=labels), judged(1000, 990, 880, classes=3)
    assert common.number.guessing == 0.9
    assert common.grades == (BROKEN,)
    assert even.number.guessing == pytest.approx(0.334)
    assert even.grades == (PARTLY, ROBUST)
    assert judged(1000, 905, 0, classes=3, labels=labels).grades == (UNTRAINED,)


def test_guessing_is_never_less_than_one_in_so_many_classes() -> None:
    assert judged(1000, 990, 880, classes=10).number.guessing == 0.1
    labels = np.arange(1000) % 1000
    assert judged(1000, 990, 880, classes=10, labels=labels).number.guessing == 0.1


# Trust ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("held", "findings", "word"),
    [
        (700, (), "partly robust"),
        (700, (finding(Severity.NOTE),), "partly robust"),
        (700, (finding(Severity.WEAKENS),), "partly robust"),
        (700, (VOID,), "not to be trusted"),
        (700, (WRONG,), "not to be trusted"),
        (300, (VOID,), "not to be trusted"),
        (10, (VOID,), "broken"),
        (10, (WRONG,), "not to be trusted"),
        (10, (VOID, WRONG), "not to be trusted"),
        (110, (VOID,), "not to be trusted"),
    ],
)
def test_a_void_in_either_direction_comes_first_and_one_that_flatters_saves_nothing(
    held: int, findings: tuple[Finding, ...], word: str
) -> None:
    found = judged(1000, 950, held, findings=findings)
    assert found.word == word
    assert found.trust.trusted == (word != "not to be trusted")
    assert (found.grades == ()) == (word == "not to be trusted")
    assert ("is not to be trusted, because " in found.sentence) == (word == "not to be trusted")
    assert "Do this" not in found.sentence
    if word == "broken":
        assert "a-check" in found.trust.sentence
        assert found.trust.flattered_by == ("a-check",)


def test_an_untrained_model_is_untrained_whatever_flattered_it() -> None:
    assert judged(1000, 90, 0, findings=(VOID,)).grades == (UNTRAINED,)
    assert judged(1000, 90, 0, findings=(WRONG,)).word == "not to be trusted"


def test_what_too_few_images_show_has_not_fallen() -> None:
    """55 of 100 in two classes may be more than guessing: with a void that flatters nothing can be said."""
    assert judged(100, 100, 55, classes=2).grades == (BROKEN,)
    assert judged(100, 100, 55, classes=2, findings=(VOID,)).word == "not to be trusted"
    assert judged(100, 100, 50, classes=2, findings=(VOID,)).word == "broken"


def test_doubts_and_failed_checks_are_named_with_every_verdict() -> None:
    failed = finding(Severity.WEAKENS, check="precision", failed=True)
    weak = finding(Severity.WEAKENS, check="draws")
    for held in (0, 700):
        found = judged(1000, 950, held, findings=(weak, failed))
        for words in (found.sentence, found.trust.sentence):
            assert "The number is less certain than its interval says: see draws." in words
            assert words.endswith("1 check could not be completed: precision.")
    untrusted = judged(1000, 950, 700, findings=(WRONG, failed, failed))
    assert untrusted.sentence.endswith(" 2 checks could not be completed: precision, precision.")
    assert untrusted.number_sentence.startswith("Not to be used: ")
    assert untrusted.grade_sentence == "No grade: the number is not to be trusted."


# Budgets and colours --------------------------------------------------------------------------------------------------
def test_a_quick_look_at_55_of_100_is_neither_robust_nor_green() -> None:
    found = judged(100, 92, 55, budget="quick")
    assert found.word == "weak or not broken by a quick look"
    assert found.colour == "yellow"
    assert "robust" not in found.word
    assert found.favourable


@pytest.mark.parametrize("budget", ["quick", "own"])
@pytest.mark.parametrize("held", [0, 50, 95, 300, 490, 600, 880, 1000])
def test_less_than_the_standard_budget_says_only_broken_weak_or_not_broken_by_it(budget: str, held: int) -> None:
    found, full = judged(1000, 1000, held, budget=budget), judged(1000, 1000, held)
    limit = QUICK if budget == "quick" else OWN
    assert set(found.grades) <= {BROKEN, WEAK, limit}
    assert found.grades[0] == (full.grades[0] if full.grades[0] in (BROKEN, WEAK) else limit)
    assert found.colour == ("red" if full.grades == (BROKEN,) else "yellow")
    if found.grades == (limit,):
        assert "only the budgets standard, autoattack and thorough can call a model robust" in found.grade_sentence


@pytest.mark.parametrize("budget", [*get_args(Budget), "own"])
@pytest.mark.parametrize("held", [0, 300, 500, 700, 890, 990])
@pytest.mark.parametrize("findings", [(), (VOID,), (WRONG,)])
def test_green_needs_trust_and_the_standard_budget_and_partly_robust(
    budget: str, held: int, findings: tuple[Finding, ...]
) -> None:
    found = judged(1000, 1000, held, budget=budget, findings=findings)
    assert (found.colour == "green") == (not findings and budget not in ("quick", "own") and held >= 700)
    assert (found.colour == "red") == (held == 0 or bool(findings))


def test_what_nothing_checked_is_never_green() -> None:
    found = judged(1000, 1000, 990)
    assert replace(found, trust=Trust(checked=False)).colour == "yellow"
    assert Trust(checked=False).sentence == "Not checked: only attacks were run."


# Borders --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "borders",
    [
        (0.5, 0.1, 0.9),
        (0.1, 0.9, 0.5),
        (0.1, 0.1, 0.9),
        (0.0, 0.5, 0.9),
        (0.1, 0.5, 1.0),
        (0.1, 0.5, 2.0),
    ],
)
def test_borders_that_do_not_ascend_within_0_and_1_are_refused(borders: tuple[float, float, float]) -> None:
    broken, weak, robust = borders
    with pytest.raises(SettingError, match="expected three shares that ascend strictly within 0 and 1"):
        Borders(broken=broken, weak=weak, robust=robust)
    with pytest.raises(SettingError):
        Borders(robust=float("nan"))


def test_borders_can_be_set_and_are_shown() -> None:
    mine = Borders(broken=0.2, weak=0.6, robust=0.8)
    found = judged(1000, 1000, 700, borders=mine)
    assert found.grades == (PARTLY,)
    assert judged(1000, 1000, 550, borders=mine).grades == (WEAK,)
    assert judged(1000, 1000, 150, borders=mine).grades == (BROKEN,)
    assert judged(1000, 1000, 850, borders=mine).grades == (ROBUST,)
    assert "20 %, 60 %, 80 % (set for this evaluation)" in found.convention
    assert "10 %, 50 %, 90 % (a convention)" in judged(1000, 1000, 700).convention
    assert PUBLIC_MODELS in found.convention
    assert found.as_json()["grade"]["borders"] == asdict(mine)


# In words and in files ------------------------------------------------------------------------------------------------
CASES = [
    judged(500, 471, 0),
    judged(100, 92, 55, budget="quick"),
    judged(500, 471, 300, findings=(finding(Severity.WEAKENS), finding(Severity.WEAKENS, failed=True))),
    judged(10, 10, 10),
    judged(500, 471, 330, findings=(WRONG,)),
    judged(500, 471, 0, findings=(VOID,)),
    judged(100, 0, 0),
    judged(1000, 1000, 700, borders=Borders(broken=0.2, weak=0.6, robust=0.8)),
    judged(1000, 990, 600, budget="own", eps=0.1),
]


@pytest.mark.parametrize("found", CASES, ids=lambda each: each.word)
def test_a_verdict_comes_back_from_its_json(found: Verdict) -> None:
    stored = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert list(stored) == ["eps", "verdict", "trust", "number", "grade", "sentence"]
    assert Verdict.from_json(stored) == found
    assert stored["trust"]["trusted"] == found.trust.trusted
    assert stored["verdict"] == found.word
    assert stored["grade"]["more_images_would_decide"] == found.undecided


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: stored.pop("number"), "KeyError: 'number'"),
        (lambda stored: stored["grade"].update(grades=["splendid"]), "splendid"),
        (lambda stored: stored["number"].update(clean_accuracy={}), "KeyError: 'value'"),
        (lambda stored: stored.update(trust=[]), "TypeError"),
    ],
)
def test_what_is_no_verdict_is_refused(change: Any, words: str) -> None:
    stored = json.loads(json.dumps(CASES[0].as_json()))
    change(stored)
    with pytest.raises(RecordError, match=f"a verdict cannot be read .*{words}.*evaluate again"):
        Verdict.from_json(stored)


def test_results_of_another_schema_say_what_they_are() -> None:
    stored = {"schema": SCHEMA, "verdicts": [each.as_json() for each in CASES[:2]]}
    assert read_verdicts(stored, "result.json") == tuple(CASES[:2])
    old = {"verdict": "robust", "verdicts": [{"eps": 0.1, "verdict": "robust", "sentence": "Robust."}]}
    with pytest.raises(RecordError, match=r"result\.json was written by an older casemate.*schema 1 .*schema 2"):
        read_verdicts(old, "result.json")
    with pytest.raises(RecordError, match=r"written by another casemate.*schema 3"):
        read_verdicts({**stored, "schema": 3}, "result.json")
    for empty in ({"schema": SCHEMA}, {"schema": SCHEMA, "verdicts": []}):
        with pytest.raises(RecordError, match="holds no verdicts"):
            read_verdicts(empty, "result.json")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("found", CASES, ids=lambda each: each.word)
def test_the_box_reads_without_colour(found: Verdict, width: int) -> None:
    console = Console(width=width, no_color=True, force_terminal=False, record=True, file=io.StringIO())
    smaller = replace(found, number=replace(found.number, eps=0.01))
    console.print(verdict_box([smaller, found]))
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    assert f"Verdict at eps {format_eps(found.eps)}: {found.word.upper()}" in text
    plain = " ".join(text.replace("│", " ").split())
    for words in (found.trust.sentence, found.number_sentence):
        assert " ".join(words.split()) in plain
    assert plain.index("Can it be trusted?") < plain.index("The number") < plain.index("The grade")
    assert ("a convention" in plain or "set for this evaluation" in plain) == bool(found.grades)
    assert "At eps 0.01" in plain


@pytest.mark.parametrize(
    ("eps", "words"),
    [(8 / 255, "8/255"), (1 / 255, "1/255"), (0.1, "0.1"), (51 / 255, "0.2"), (1.0, "1"), (0.3137, "0.3137")],
)
def test_eps_is_shown_as_it_is_written(eps: float, words: str) -> None:
    assert format_eps(eps) == words


def test_the_committed_results_are_migrated(tmp_path: Path) -> None:
    """A second run of the tool changes nothing; verdicts read back, and are those of the stored numbers."""
    tool = imported("tools/migrate_results.py")
    folders = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/summary.json"))
    assert len(folders) >= 4
    for folder in folders:
        copy = tmp_path / folder.name
        copy.mkdir()
        for name in ("summary.json", "summary.md", "results.md"):
            (copy / name).write_bytes((folder / name).read_bytes())
        assert tool.migrate(copy) == []
        summary = json.loads((folder / "summary.json").read_text())
        for name, artifact in summary["artifacts"].items():
            if name.endswith("/evaluation"):
                result = artifact["result"]
                stored = read_verdicts(result, name)
                assert [each.number.robust.as_json() for each in stored] == result["robust_accuracy"]
                assert artifact["provenance"]["commit"]
                del result["schema"]
                assert tool.migrate_evaluation(result)
                assert read_verdicts(result, name) == stored


def test_a_number_is_graded_by_one_function() -> None:
    number = judged(1000, 950, 700).number
    assert isinstance(number, Number)
    assert grade(number) == judged(1000, 950, 700).grades


def test_a_finding_prints_as_sentences() -> None:
    assert str(finding(Severity.WEAKENS)) == "weakens a-check: a-check saw it. Do this."
