"""Results as users see them in Python: reprs, summaries, reports, comparisons, eps as written, own checks."""

import copy
import json
import math
import pickle
import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import casemate
from casemate.attacks import (
    EOT,
    FGSM,
    PGD,
    AttackResult,
    Passes,
    Restarts,
    Square,
    Transfer,
    sweep_eps,
    sweep_steps,
)
from casemate.cli.shared import observers
from casemate.data import LabelledImages
from casemate.errors import RecordError, SettingError, ShapeError
from casemate.evaluation import (
    Evaluation,
    compare,
    eps_curve,
    evaluate,
    evaluation,
    make_record,
    mcnemar,
    paired_difference,
    read_hashed_record,
    read_record,
    steps_curve,
    targeted_matrix,
    verify_hashes,
    verify_record,
    worst_case,
    write_record,
)
from casemate.evaluation.findings import CHECKS
from casemate.evaluation.fingerprints import fingerprint
from casemate.evaluation.record import is_hashed
from casemate.evaluation.verdict import Borders, Grade, Trust, Verdict, verdict_on
from casemate.models import Classifier
from casemate.norms import WrittenEps, format_eps, parse_eps, with_text
from casemate.report.advice import NextStep, steps_after
from casemate.report.evaluation_result import EvaluationResult
from casemate.report.filing import filing
from casemate.training import TrainConfig, fit
from casemate.units import eps_with_share, share_of_range
from conftest import TINY_CLASSES, TINY_SHAPE, Listener, tiny_images
from test_public import ROOT, private_uses
from test_record import thirds
from test_report import Page

EPS = "20/255"
IMAGES = tiny_images(40, noise=90.0)
ATTACKS = {"pgd": PGD(eps=0.1, steps=5), "square": Square(eps=0.1, n_queries=20)}


def judged(model: Classifier | None = None, **options: Any) -> Evaluation:
    """A quick evaluation of a model for tiny images."""
    return evaluate(thirds() if model is None else model, IMAGES, **{"eps": EPS, "attacks": ATTACKS, **options})


@pytest.fixture(scope="module")
def found() -> Evaluation:
    """A model judged."""
    return judged(eps=["0.040", EPS])


@pytest.fixture(scope="module")
def result() -> AttackResult:
    """A model attacked."""
    images, labels = IMAGES.tensors()
    return PGD(eps=parse_eps(EPS), steps=5)(thirds(), images, labels)


# eps as written -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["8/255", "0.030", "2/51", "1e-2", " 8/255 "])
def test_eps_keeps_its_text_and_is_a_number_in_all_else(text: str) -> None:
    eps = parse_eps(text)
    number = parse_eps(parse_eps(float(eps)))
    assert isinstance(eps, WrittenEps)
    assert not isinstance(number, WrittenEps)
    assert eps == number
    assert hash(eps) == hash(number)
    assert format_eps(eps) == text.strip()
    assert parse_eps(eps) is eps
    assert json.dumps([eps]) == json.dumps([number])
    for copied in (copy.copy(eps), copy.deepcopy(eps), pickle.loads(pickle.dumps(eps))):
        assert format_eps(copied) == text.strip()
        assert copied == number
    assert type(2 * eps) is float
    assert torch.equal(torch.zeros(2) + eps, torch.zeros(2) + number)


def test_the_text_in_a_file_is_believed_only_where_it_is_that_number() -> None:
    assert format_eps(with_text(0.03125, "1/32")) == "1/32"
    for text in ("8/255", "x", "", None, 3, ["1/32"], "nan", "-1"):
        assert format_eps(with_text(0.03125, text)) == "0.03125"


def test_attacks_show_eps_as_it_was_written() -> None:
    images, labels = IMAGES.tensors()
    attack = PGD(eps=parse_eps("2/51"), steps=2)
    assert attack.eps == 2 / 51
    assert "PGD, eps 2/51 (linf)" in repr(attack(thirds(), images, labels))
    curve = eps_curve(thirds(), FGSM(eps=0.1), IMAGES, ["0.010", "2/51"])
    assert [format_eps(value) for value in curve.values] == ["0.010", "2/51"]
    assert "at eps 2/51" in repr(curve)


def test_an_evaluation_shows_eps_as_it_was_written(found: Evaluation, tmp_path: Path) -> None:
    stored = found.as_json()
    assert stored["eps"] == [0.04, 20 / 255]
    assert stored["eps_text"] == ["0.040", EPS]
    assert f"at eps {EPS} (linf" in found.verdict.sentence
    assert "at eps 0.040 (linf" in found.verdicts[0].sentence
    read = Verdict.from_json(json.loads(json.dumps(found.verdicts[0].as_json())))
    assert read.sentence == found.verdicts[0].sentence
    old = json.loads(json.dumps(found.verdicts[0].as_json()))
    del old["eps_text"]
    assert "at eps 0.04 (linf" in Verdict.from_json(old).sentence
    record, _ = make_record(found, thirds(), name="thirds", data="tiny")
    content = json.loads(write_record(record, tmp_path).read_text())
    assert (content["eps"], content["eps_text"]) == (stored["eps"], stored["eps_text"])
    assert [format_eps(each) for each in read_record(tmp_path / "record.json").eps] == stored["eps_text"]
    (tmp_path / "record.json").write_text(json.dumps(content | {"eps_text": ["0.9", EPS]}))
    assert [format_eps(each) for each in read_record(tmp_path / "record.json").eps] == ["0.04", EPS]


@pytest.mark.parametrize(
    ("bounds", "eps", "share"),
    [
        ((0.0, 1.0), 8 / 255, ""),
        ((0.0, 255.0), 8.0, "3.14 % of the range 0 to 255"),
        ((-1.0, 1.0), 8 / 255, "1.57 % of the range -1 to 1"),
    ],
)
def test_eps_is_a_share_of_another_range(bounds: tuple[float, float], eps: float, share: str) -> None:
    assert share_of_range(eps, bounds, "linf") == share
    assert share_of_range(eps, bounds, "l0") == ""
    assert eps_with_share(eps, bounds, "linf") == (f"{format_eps(eps)} ({share})" if share else format_eps(eps))
    right = np.ones(50, dtype=bool)
    verdict = verdict_on(
        eps,
        norm="linf",
        budget="standard",
        correct=right,
        withstood=right,
        labels=np.arange(50) % 10,
        classes=10,
        findings=(),
        bounds=bounds,
    )
    assert share in verdict.sentence
    assert share in verdict.number_sentence
    assert ("of the range" in verdict.sentence) == bool(share)
    assert Verdict.from_json(json.loads(json.dumps(verdict.as_json()))).number == verdict.number


def test_the_range_is_that_of_the_model() -> None:
    network = nn.Sequential(_Divide(255.0), thirds())
    model = Classifier(network, input_shape=TINY_SHAPE, classes=TINY_CLASSES, bounds=(0.0, 255.0))
    images = LabelledImages(pixels=IMAGES.pixels.float(), labels=IMAGES.labels)
    made = evaluate(model, images, eps="20", attacks={"pgd": PGD(eps=20.0, steps=5)})
    assert "at eps 20 (7.84 % of the range 0 to 255, linf" in made.verdict.sentence
    assert "7.84 % of the range 0 to 255" in str(made)


class _Divide(nn.Module):
    """Divides images by a number."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Divide."""
        return images / self.by


# One line -------------------------------------------------------------------------------------------------------------
def test_reprs_are_one_line_with_n_interval_eps_and_passes(found: Evaluation, result: AttackResult) -> None:
    curve = eps_curve(thirds(), FGSM(eps=0.1), IMAGES, [0.05, EPS])
    for each, robust in ((found, found.robust[-1]), (result, result.robust), (curve, None)):
        text = repr(each)
        assert "\n" not in text
        assert len(text) < 300
        assert "n = 40" in text
        assert EPS in text
        assert "passes" in text
        assert robust is None or f"{robust:n}" in text
    assert repr(result).startswith(f"AttackResult(PGD, eps {EPS} (linf); robust accuracy ")


def test_other_results_have_a_repr_of_one_line_too(found: Evaluation) -> None:
    model = thirds()
    record, _ = make_record(found, model, name="thirds", data="dots")
    trained = fit(thirds(), IMAGES, IMAGES, TrainConfig(epochs=1))
    n = len(IMAGES)
    reprs = {
        repr(IMAGES): f"LabelledImages({n} images of shape ",
        repr(found.clean): f"CleanResult(accuracy {found.clean.accuracy:n}",
        repr(found.verdict): f"Verdict({found.verdict.word} at eps {EPS}",
        repr(record): f"Record(thirds, dots, n = {n}; ",
        repr(verify_record(record, model)): "Verification(",
        repr(trained): "TrainResult(epoch 1 of 1; validation accuracy ",
        repr(targeted_matrix(model, PGD(eps=0.1, steps=2), IMAGES)): "Targeted(",
        repr(worst_case(model, [FGSM(eps=0.1)], IMAGES, [0.05, EPS])): "WorstCase(fgsm; robust accuracy ",
    }
    for text, start in reprs.items():
        assert text.startswith(start)
        assert "\n" not in text
        assert len(text) < 200


def test_attacks_without_names_get_those_of_their_classes() -> None:
    attack = PGD(eps=0.1, steps=2)
    alone = evaluate(thirds(), IMAGES, eps=EPS, attacks=attack)
    assert list(alone.cascade.attacks) == ["pgd"]
    several = evaluate(thirds(), IMAGES, eps=EPS, attacks=[attack, FGSM(eps=0.1), replace(attack, steps=3)])
    assert list(several.cascade.attacks) == ["pgd", "fgsm", "pgd-2"]
    named = evaluate(thirds(), IMAGES, eps=EPS, attacks={"pgd": attack})
    assert np.array_equal(alone.cascade.robust, named.cascade.robust)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", [PGD, "pgd", 3, IMAGES, None], ids=["class", "name", "number", "images", "None"])
def test_what_is_no_attack_is_refused(given: Any) -> None:
    model = thirds()
    calls = [
        lambda: evaluate(model, IMAGES, eps=EPS, attacks={"it": given}),
        lambda: evaluate(model, IMAGES, eps=EPS, attacks=[given]),
        lambda: eps_curve(model, given, IMAGES, [0.1]),
        lambda: steps_curve(model, given, IMAGES, [1]),
        lambda: sweep_eps(given, model, *IMAGES.tensors(), [0.1]),
        lambda: sweep_steps(given, model, *IMAGES.tensors(), [1]),
        lambda: worst_case(model, {"it": given}, IMAGES, [0.1]),
        lambda: targeted_matrix(model, given, IMAGES),
        lambda: Transfer(attack=given, substitute=model),
        lambda: Restarts(attack=given),
        lambda: EOT(attack=given),
    ]
    for call in calls:
        with pytest.raises(SettingError, match=r"as an attack; expected an attack.*PGD\(eps='8/255'\)"):
            call()


def test_tables_for_notebooks_are_small_and_without_scripts(found: Evaluation, result: AttackResult) -> None:
    curve = eps_curve(thirds(), FGSM(eps=0.1), IMAGES, [0.05, EPS])
    strange = replace(result, attack={"name": "<script>alert(1)</script>", "eps": 0.1})
    for each in (found, result, curve, strange, compare(found, found)):
        html = each._repr_html_()
        page = Page(html)
        assert len(html) < 3000
        assert {name for name, _ in page.tags} <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert all(not attributes for _, attributes in page.tags)
    assert "alert(1)" in Page(strange._repr_html_()).text


def test_robust_accuracy_is_the_nearest_float(result: AttackResult) -> None:
    success = torch.arange(100) >= 59
    some = replace(result[torch.arange(100) % 40], success=success)
    assert str(some.robust_accuracy) == "0.59"
    assert str(some[:7].robust_accuracy) == "1.0" or some[:7].robust_accuracy == 1
    assert math.isnan(result[:0].robust_accuracy)
    assert "no images" in repr(result[:0])


def test_a_repr_names_images_that_only_the_attack_failed_on(result: AttackResult) -> None:
    status = result.status.clone()
    status[:3] = 3
    assert "zero gradient 3 images" in repr(replace(result, status=status))
    assert "zero gradient" not in repr(replace(result, status=torch.zeros_like(status)))


# Summary and report ---------------------------------------------------------------------------------------------------
def test_printing_an_evaluation_takes_a_few_lines(found: Evaluation) -> None:
    lines = str(found).splitlines()
    assert len(lines) == 6
    assert lines[0] == found.verdict.sentence
    assert f"{found.clean.accuracy:n}" in lines[1]
    assert [f"{each:n}" in line for each, line in zip(found.robust, lines[2:4], strict=True)] == [True, True]
    assert "findings" in lines[4]
    assert lines[5].split() == ["notes", "sample-size"]


def test_a_summary_has_the_findings_and_the_classes(found: Evaluation) -> None:
    only = judged(eps=0.05, checks=[_always(voids=0.5)])
    text = only.summary()
    assert "voids always: it is so. Do something." in text
    assert "always (voids)" in str(only)
    for name, estimate in zip(TINY_CLASSES, only.per_class, strict=True):
        assert re.search(rf"^{name} .*{re.escape(f'{estimate:n}')}$", text, re.MULTILINE)
    some = LabelledImages(pixels=IMAGES.pixels, labels=IMAGES.labels)[torch.arange(0, 40, 3)]
    left = evaluate(thirds(), some, eps=0.05, attacks=ATTACKS).summary()
    assert not re.search(r"^(middle|right) ", left, re.MULTILINE)
    assert "\nleft " in left
    assert "2 passed" not in left
    assert str(found) in found.summary()


@pytest.fixture(scope="module")
def report(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an evaluation, written from Python."""
    return found.report(tmp_path_factory.mktemp("report") / "new", name="thirds", data="tiny.npz")


def test_a_report_from_python_is_that_of_the_command_line(found: Evaluation, report: Path) -> None:
    assert {path.stem for path in report.parent.iterdir()} == {
        "report", "result", "examples", "record", "adversarial",
    }  # fmt: skip
    text = " ".join(Page(report.read_text()).text.split())
    assert found.verdict.number_sentence in text
    assert "How robust is the model “thirds”?" in text
    assert "casemate verify record.json thirds --data tiny.npz" in text
    stored = json.loads((report.parent / "result.json").read_text())
    assert stored["robust_accuracy"] == found.as_json()["robust_accuracy"]
    record = read_record(report.parent / "record.json")
    assert casemate.verify_record(record, thirds(), images=IMAGES).holds


def test_a_report_replaces_its_own_only(found: Evaluation, report: Path, listener: Listener) -> None:
    before = report.read_text()
    found.report(str(report.parent), name="thirds", data="tiny.npz", observer=listener)
    assert any("they are replaced" in each for each in listener.said)
    other = judged(thirds(19.0))
    with pytest.raises(SettingError, match="overwrite=True"):
        other.report(report.parent)
    minute = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert minute.sub("", report.read_text()) == minute.sub("", before)
    other.report(report.parent, overwrite=True)
    assert fingerprint(thirds(19.0)) in report.read_text()


def test_a_report_is_refused_after_the_weights_have_changed(tmp_path: Path) -> None:
    model = thirds()
    made = judged(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RecordError, match="have changed since"):
        made.report(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Without images -------------------------------------------------------------------------------------------------------
@pytest.fixture
def private(found: Evaluation, tmp_path: Path) -> Path:
    """The folder of a report without images, in place of one that had them."""
    found.report(tmp_path, name="thirds", data="tiny")
    assert (tmp_path / "adversarial.safetensors").exists()
    return found.report(tmp_path, name="thirds", data="tiny", images=False).parent


def test_without_images_nothing_written_holds_one(private: Path) -> None:
    assert {path.stem for path in private.iterdir()} == {"report", "result", "examples", "record"}
    page = Page((private / "report.html").read_text())
    assert len(page.figures) == 1
    assert not [name for name, _ in page.tags if name in ("img", "image")]
    assert "figure-examples" not in {attributes.get("id") for _, attributes in page.tags}
    assert "checked by hash only" in " ".join(page.text.split())
    content = json.loads((private / "record.json").read_text())
    assert content["file"] is None
    assert not [name for name, value in content.items() if isinstance(value, list) and len(value) >= 40]


def test_a_record_without_images_is_checked_by_hash(private: Path, found: Evaluation) -> None:
    path = private / "record.json"
    assert is_hashed(path)
    with pytest.raises(RecordError, match="hashes in the place of images"):
        read_record(path)
    record = read_hashed_record(path)
    assert record.fingerprint == fingerprint(thirds())
    assert [format_eps(each) for each in record.eps] == ["0.040", EPS]
    for images in (IMAGES, LabelledImages(pixels=IMAGES.tensors()[0], labels=IMAGES.labels)):
        checked = verify_hashes(record, thirds(), images=images)
        assert checked.holds
        assert [claim.holds for claim in checked.claims] == [True, True, True, None, None]
        assert checked.clean_accuracy == pytest.approx(found.clean.accuracy.value)
        assert all("hashes only" in claim.sentence for claim in checked.claims[-2:])
    assert [claim.holds for claim in verify_hashes(record, thirds()).claims] == [True, None, None, None]
    assert [claim.holds for claim in verify_hashes(record, thirds(19.0)).claims][:1] == [False]
    other = LabelledImages(pixels=IMAGES.pixels.roll(1, 0), labels=IMAGES.labels)
    assert [claim.holds for claim in verify_hashes(record, thirds(), images=other).claims][1] is False


def test_a_record_without_images_that_claims_too_much_is_found_out(private: Path) -> None:
    path = private / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"clean_accuracy": 1.0}))
    claims = verify_hashes(read_hashed_record(path), thirds(), images=IMAGES).claims
    assert [claim.title for claim in claims if claim.holds is False] == ["Clean accuracy as claimed"]


@pytest.mark.parametrize(
    "change",
    [
        {"images": 0}, {"images": 1.5}, {"clean_accuracy": 2}, {"clean_accuracy": "x"}, {"eps": []}, {"eps": 3},
        {"robust_accuracy": [0.5]}, {"model": None}, {"draws": 10**9}, {"eps": [-1, 2]},
    ],
)  # fmt: skip
def test_a_damaged_record_without_images_is_refused(private: Path, change: dict[str, Any]) -> None:
    path = private / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError):
        read_hashed_record(path)


def test_a_record_with_images_is_no_record_of_hashes(report: Path) -> None:
    assert not is_hashed(report.parent / "record.json")
    with pytest.raises(RecordError, match="hashes only"):
        read_hashed_record(report.parent / "record.json")


# Comparison -----------------------------------------------------------------------------------------------------------
def test_a_comparison_is_paired(found: Evaluation) -> None:
    better = judged(thirds(), eps=["0.040", EPS], attacks={"pgd": PGD(eps=0.1, steps=1, step_size=0.001)})
    made = compare(found, better, names=("before", "after"))
    before, after = found.cascade.robust[:, -1], better.cascade.robust[:, -1]
    assert after.sum() > before.sum()
    assert made.robust.difference == paired_difference(after, before)
    assert made.robust.p_value == mcnemar(before, after) < 0.05
    assert made.robust.only_first == 0
    assert made.robust.only_second == after.sum() - before.sum()
    assert made.n == 40
    assert made.verdicts == (found.verdict, better.verdict)
    text = made.summary()
    assert f"{found.robust[-1]}" in text
    assert f"{better.robust[-1]}" in text
    assert EPS in text
    assert found.verdict.word in text
    assert "\n" not in repr(made)
    assert "n = 40" in repr(made)


def test_evaluations_are_compared_at_the_largest_eps_that_both_have(found: Evaluation) -> None:
    more = judged(eps=["0.02", "0.040", "0.3"])
    made = compare(found, more)
    assert made.eps == parse_eps("0.040")
    assert (made.robust.first, made.robust.second) == (found.robust[0], more.robust[1])
    assert made.verdicts == (found.verdicts[0], more.verdicts[1])


def test_nothing_follows_from_numbers_that_are_not_to_be_trusted(found: Evaluation) -> None:
    better = judged(eps=["0.040", EPS], attacks={"pgd": PGD(eps=0.1, steps=1, step_size=0.001)})
    void = _with_checks(better, _always(voids=0.5, flatters=False))
    assert not void.verdict.trust.trusted
    assert "not to be trusted" in compare(found, void).conclusion
    assert "within chance" in compare(found, found).conclusion


def _with_checks(made: Evaluation, check: casemate.Check) -> Evaluation:
    """The evaluation of the same with one more check."""
    attacks = {"pgd": PGD(eps=0.1, steps=1, step_size=0.001)}
    return judged(made.model, eps=[*made.values], attacks=attacks, checks=[check])


def test_results_of_attacks_are_compared_too(result: AttackResult) -> None:
    images, labels = IMAGES.tensors()
    other = FGSM(eps=parse_eps(EPS))(thirds(19.0), images, labels)
    made = compare(result, other)
    assert made.robust.first == result.robust
    assert made.robust.second == other.robust
    assert made.verdicts is None
    assert made.clean is None
    assert "PGD and FGSM" in made.summary()


def test_what_cannot_be_compared_is_refused(found: Evaluation, result: AttackResult) -> None:
    other = replace(found, images=LabelledImages(pixels=IMAGES.pixels.roll(1, 0), labels=IMAGES.labels))
    with pytest.raises(ShapeError, match="40 of 40 images differ"):
        compare(found, other)
    labels = replace(found, images=LabelledImages(pixels=IMAGES.pixels, labels=IMAGES.labels.roll(1, 0)))
    with pytest.raises(ShapeError, match="labels differ"):
        compare(found, labels)
    with pytest.raises(ShapeError, match="40 and 39 images"):
        compare(found, replace(found, images=IMAGES[:39]))
    with pytest.raises(SettingError, match=r"eps 0\.040, 20/255 and 0\.01; expected one that both have"):
        compare(found, judged(eps=["0.01"]))
    with pytest.raises(SettingError, match="norm linf and l2"):
        compare(found, replace(found, norm="l2"))
    with pytest.raises(SettingError, match="Evaluation and AttackResult"):
        compare(found, result)
    images, labels_of = IMAGES.tensors()
    with pytest.raises(SettingError, match=r"eps 20/255 and 0\.1"):
        compare(result, PGD(eps=0.1, steps=1)(thirds(), images, labels_of))
    with pytest.raises(ShapeError, match="images differ"):
        compare(result, PGD(eps=parse_eps(EPS), steps=1)(thirds(), images.roll(1, 0), labels_of))
    with pytest.raises(SettingError, match="two"):
        compare(found, found, names=("one",))


# Own attacks and checks -----------------------------------------------------------------------------------------------
def _always(*, flatters: bool = True, weakens: float | None = None, voids: float | None = None) -> casemate.Check:
    """A check of the user's own that is always raised."""

    @casemate.check(
        "always", "Nothing is wrong", why="For the test.", advice="Do something", weakens=weakens, voids=voids
    )
    def always(context: casemate.CheckContext) -> casemate.Measured:
        """One."""
        return casemate.Measured(float(len(context.images) > 0), "it is so", flatters=flatters)

    return always


def test_own_checks_come_after_those_of_the_library(found: Evaluation) -> None:
    made = judged(checks=[_always(weakens=0.5)])
    assert [each.check for each in made.checks] == [*CHECKS, "always"]
    assert made.verdict.trust.weakened_by[-1] == "always"
    assert [each.check for each in found.checks] == [*CHECKS]


def test_own_checks_cannot_replace_those_of_the_library() -> None:
    taken = replace(_always(weakens=0.5), name="labels")
    with pytest.raises(SettingError, match="'labels' is taken"):
        judged(checks=[taken])
    with pytest.raises(SettingError, match="is taken"):
        judged(checks=[_always(weakens=0.5)] * 2)


@pytest.mark.usefixtures("unchecked")
def test_a_function_without_the_decorator_is_refused() -> None:
    with pytest.raises(SettingError, match=r"casemate\.check"):
        judged(checks=[lambda context: None])


@pytest.mark.usefixtures("unchecked")
def test_the_page_on_evaluating_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks, one after the other; they take public names only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "attacks_for", lambda *given, **options: ATTACKS)
    text = (ROOT / "docs" / "evaluating.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    assert private_uses("\n".join(blocks), ROOT / "src") == []
    names: dict[str, Any] = {"model": thirds(), "hardened": thirds(19.0), "test": IMAGES, "__name__": "page"}
    monkeypatch.setitem(__import__("sys").modules, "page", type(casemate)("page"))
    for block in blocks:
        exec(compile(block, "evaluating.md", "exec"), names)
    assert (tmp_path / "report" / "report.html").exists()
    assert names["comparison"].n == 40
    assert list(names["own"].cascade.attacks) == ["brighten", "pgd"]
    assert names["own"].cascade.attempts[0].tried > 0
    assert names["checked"].checks[-1].check == "dark-images"


def test_an_attack_of_ones_own_needs_public_names_only() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nothing(casemate.Attack):
        eps: float

        def run(
            self, model: Classifier, clean: Any, criterion: casemate.Criterion, streams: casemate.Streams, advance: Any
        ) -> casemate.RunResult:
            known = torch.ones(len(clean), dtype=torch.bool)
            return casemate.RunResult(clean, known, known, Passes())

    made = judged(attacks={"nothing": Nothing(eps=0.1)})
    assert made.robust[-1].value == made.clean.accuracy.value


# Progress -------------------------------------------------------------------------------------------------------------
def test_progress_bars_are_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "_NEXT_LINE", 0.0)
    monkeypatch.setattr(observers, "_FIRST_LINE", 0.0)
    observer = casemate.progress_bars()
    for _ in range(2):
        judged(observer=observer)
    err = capsys.readouterr().err
    assert err.count("Attacking: done in") == 2


# --- what to do, and what to file ------------------------------------------------------------------------------------


def test_every_topic_of_the_documents_is_answered(report: Path) -> None:
    """Each item of each document gets facts, or says what was not tested; none is silent."""
    result = EvaluationResult.from_json(json.loads((report.parent / "result.json").read_text()), "result.json")
    documents = filing(result)
    assert [each.name for each in documents] == ["EU AI Act", "NIST AI RMF", "NIST AI 100-2", "MITRE ATLAS"]
    for document in documents:
        assert date.fromisoformat(document.read) <= datetime.now(UTC).date()
        for item in document.items:
            assert item.facts or item.untested, item
            assert "complies" not in item.content
    (evasion,) = [item for item in documents[0].items if item.reference == "Article 15(5)"]
    said = " ".join(evasion.facts)
    assert f"{result.verdict.number.robust:n} at eps" in said
    assert "manipulated training data" in evasion.untested
    assert "attacks by a substitute model" in evasion.untested
    with_substitute = filing(replace(result, substitute="other.safetensors"))[0].items
    (evasion,) = [item for item in with_substitute if item.reference == "Article 15(5)"]
    assert "Attacks made on the substitute model other.safetensors." in evasion.facts
    assert "substitute" not in evasion.untested


def _advised(result: EvaluationResult, **changes: Any) -> list[NextStep]:
    verdict = replace(result.verdict, **changes)
    return steps_after(replace(result, verdicts=(verdict,), from_command_line=True))


def test_what_to_do_follows_from_the_verdict(report: Path) -> None:
    result = EvaluationResult.from_json(json.loads((report.parent / "result.json").read_text()), "result.json")
    full = replace(result.verdict.number, budget="standard")
    first, again = _advised(result, number=full, trust=Trust(because=("gradients are zero",)), grades=())
    assert "Do not use the number" in first.words
    assert again.command.startswith("casemate evaluate ")
    (only,) = _advised(result, grades=(Grade.UNTRAINED,))
    assert "no better than guessing" in only.words
    words = " ".join(each.words for each in _advised(result, number=full, grades=(Grade.BROKEN,)))
    assert "Do not rely on this model" in words
    assert "more robust" in words
    quick = replace(full, budget="quick")
    found = _advised(result, number=quick, grades=(Grade.NOT_BROKEN_QUICKLY,), trust=Trust(weakened_by=("losses",)))
    assert "losses" in found[0].words
    assert "--budget standard" in found[1].command
    *_, last = _advised(result, number=full, grades=(Grade.ROBUST,))
    assert last.command.endswith(f"--fail-under {full.robust.low:.2f}")
    between = _advised(result, number=full, grades=(Grade.WEAK, Grade.PARTLY_ROBUST))
    assert [each for each in between if "decide the grade" in each.words or "border of two grades" in each.words]


def test_commands_of_a_report_are_those_that_made_it(report: Path) -> None:
    """A result from Python names no command, since none could load its model."""
    result = EvaluationResult.from_json(json.loads((report.parent / "result.json").read_text()), "result.json")
    assert not result.from_command_line
    assert (result.evaluate_command(), result.harden_command()) == ("", "")
    made = replace(
        result, from_command_line=True, model="mine:load", model_options=("--mean", "0.5"), data_path="test.npz"
    )
    number = replace(made.verdict.number, budget="quick")
    made = replace(made, verdicts=tuple(replace(each, number=replace(number, eps=each.eps)) for each in made.verdicts))
    shown = " ".join(format_eps(each.eps) for each in made.verdicts)
    assert made.evaluate_command() == (
        f"casemate evaluate mine:load --mean 0.5 --data test.npz --images {made.images} --eps {shown} --budget quick "
        f"--seed {made.seed}"
    )
    assert "--data TRAINING-IMAGES --test test.npz" in made.harden_command()
    read = replace(
        made, data_options=("--labels", "a.csv", "--resize", "40", "30", "--subset", "first", "--crop", "28")
    )
    assert "--test test.npz --resize 40 30 --crop 28 --eps" in read.harden_command()
    own = tuple(replace(each, borders=Borders(broken=0.2)) for each in made.verdicts)
    assert " --borders 0.2 0.5 0.9 " in replace(made, verdicts=own).evaluate_command()
    assert replace(made, model_options=("--black-box",)).harden_command() == ""
