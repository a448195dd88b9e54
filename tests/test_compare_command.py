"""`casemate compare`: the numbers are those of the library, the gate decides as it says, and the wrong is refused."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casemate import Classifier, Evaluation, compare, evaluate
from casemate.attacks import PGD, Square
from casemate.cli.compare.request import CompareRequest
from casemate.cli.compare.show import picture_of
from casemate.cli.shared.options import ModelOptions
from casemate.errors import RecordError, SettingError
from casemate.evaluation.comparison import Paired, expect_enough_images, images_for_margin, judge_regression, paired
from casemate.evaluation.intervals import percent
from casemate.report.comparison import compare_finished
from casemate.report.finished_evaluation import read_finished
from casemate.settings import parse_share
from casemate.tables import read_table, write_table_as
from conftest import tiny_images
from test_record import thirds
from test_report import Page
from test_study import Run, runner

IMAGES = tiny_images(60, noise=90.0)
ATTACKS = {"pgd": PGD(eps=0.1, steps=5), "square": Square(eps=0.1, n_queries=20)}
EPS = ("0.04", "0.1")
Edit = Callable[[dict[str, Any]], object]


def weaker() -> Classifier:
    """The model of `thirds`, whose weights are spoiled by noise."""
    model = thirds()
    with torch.no_grad():
        weight = model.network[1].weight  # type: ignore[index]
        weight += 1.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture(scope="module")
def evaluations() -> dict[str, Evaluation]:
    """Two models evaluated on the same images."""
    return {
        name: evaluate(model, IMAGES, eps=EPS, attacks=ATTACKS)
        for name, model in (("strong", thirds()), ("weak", weaker()))
    }


@pytest.fixture(scope="module")
def folders(evaluations: dict[str, Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of both."""
    root = tmp_path_factory.mktemp("finished")
    for name, each in evaluations.items():
        each.report(root / name, name=f"{name} model", data="tiny", images=False)
    return root


@pytest.fixture
def edited(folders: Path, tmp_path: Path) -> Callable[[str, Edit], Path]:
    """Copies the files of an evaluation and changes its result.json."""

    def change(name: str, edit: Edit) -> Path:
        folder = shutil.copytree(folders / name, tmp_path / f"{name}-edited")
        path = folder / "result.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return folder

    return change


def in_numbers(**values: Any) -> Edit:
    """An edit of the numbers of all verdicts."""
    return lambda content: [each["number"].update(values) for each in content["verdicts"]]


def distrusted(content: dict[str, Any]) -> None:
    """Declare the number void."""
    for each in content["verdicts"]:
        each["trust"].update(trusted=False, because=["the gradient is zero"])
        each["grade"]["grades"] = []


# Numbers --------------------------------------------------------------------------------------------------------------
def test_the_numbers_are_those_of_the_library(evaluations: dict[str, Evaluation], folders: Path, run: Run) -> None:
    code, out, err = run("compare", folders / "strong", folders / "weak" / "result.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    strong, weak = evaluations["strong"], evaluations["weak"]
    expected = compare(strong, weak)
    assert expected.clean is not None
    assert found["schema"] == "casemate/comparison/1"
    assert found["images"] == 60
    assert found["clean"] == expected.clean.as_json()
    assert [each["eps_text"] for each in found["robust"]] == [*EPS]
    for column, each in enumerate(found["robust"]):
        both = paired(strong.cascade.robust[:, column], weak.cascade.robust[:, column])
        assert {name: each[name] for name in both.as_json()} == both.as_json()
    assert found["robust"][-1]["difference"]["value"] < -0.1
    worse = strong.cascade.robust[:, -1] & ~weak.cascade.robust[:, -1]
    better = weak.cascade.robust[:, -1] & ~strong.cascade.robust[:, -1]
    assert [each["index"] for each in found["worse"]] == np.flatnonzero(worse).tolist()
    assert [each["index"] for each in found["better"]] == np.flatnonzero(better).tolist()
    for each in found["worse"]:
        place, of = each["index"], weak
        assert each["label"] == of.clean.classes[of.clean.labels[place]] != each["prediction"]
        first = of.cascade.first_success[place]
        assert each["attack"] == ([*of.cascade.attacks][first] if first >= 0 else None)
    assert sum(each["only_a"] for each in found["per_class"]) == worse.sum()
    differences = [each["difference"]["value"] for each in found["per_class"]]
    assert differences == sorted(differences)
    assert found["regression"] is None


def test_the_screen_shows_both_models_and_what_got_worse(folders: Path, run: Run) -> None:
    code, out, _ = run("compare", folders / "strong", folders / "weak")
    assert code == 0
    text = " ".join(out.split())
    for words in (
        "strong model",
        "weak model",
        "The same 60 images (tiny), linf, budget own, seed 0.",
        "robust accuracy at eps 0.04",
        "robust accuracy at eps 0.1",
        "Robust accuracy by class at eps 0.1",
        "got worse (correct under attack with A only)",
        "A is more robust than B, beyond chance.",
        "─●",
    ):
        assert words in text
    assert text.count("more; --json lists all") == 1


def test_a_model_is_not_worse_than_itself(folders: Path, run: Run) -> None:
    code, out, err = run("compare", folders / "weak", folders / "weak", "--fail-if-worse", "--worse-in", "both")
    assert code == 0
    assert "Note: A and B have the same weights." in out
    assert "0 got worse" in out
    assert "within chance" in out
    assert "passes: --fail-if-worse: B is not worse than A beyond chance" in err
    assert "a drop of up to 4.5 points cannot be excluded" in err


def test_a_table_in_csv_is_read_too(folders: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, _ = run("compare", folders / "strong", folders / "weak", "--json")
    for name in ("strong", "weak"):
        folder = shutil.copytree(folders / name, tmp_path / name)
        write_table_as("csv", read_table(folder / "examples", RecordError), folder / "examples.csv")
        (folder / "examples.parquet").unlink()
    monkeypatch.setitem(sys.modules, "polars", None)
    code, out, err = run("compare", tmp_path / "strong", tmp_path / "weak", "--json")
    assert code == 0, err
    assert json.loads(out.replace(str(tmp_path), str(folders))) == json.loads(expected)
    code, _, err = run("compare", folders / "strong", folders / "weak")
    assert code == 2
    assert "needs the extra 'tables'" in err


# The gate -------------------------------------------------------------------------------------------------------------
def test_worse_beyond_chance_fails(folders: Path, run: Run) -> None:
    code, out, err = run("compare", folders / "strong", folders / "weak", "--fail-if-worse", "--json")
    assert code == 3
    assert "falls short: --fail-if-worse: B is worse than A beyond chance: robust accuracy at eps" in err
    found = json.loads(out)["regression"]
    assert found["worse"] is True
    assert found["sentence"] in err
    code, _, err = run("compare", folders / "weak", folders / "strong", "--fail-if-worse")
    assert code == 0
    assert "passes" in err


def test_a_margin_wants_proof(folders: Path, run: Run) -> None:
    strong, weak = folders / "strong", folders / "weak"
    code, _, err = run("compare", strong, weak, "--fail-if-worse", "--margin", "5%")
    assert code == 3
    assert "B may be worse than A by 5 points or more" in err
    assert run("compare", strong, strong, "--fail-if-worse", "--margin", "0.05")[0] == 0
    assert run("compare", weak, strong, "--fail-if-worse", "--margin", "0.05")[0] == 0
    code, _, err = run("compare", strong, strong, "--fail-if-worse", "--margin", "2%")
    assert code == 2
    assert "60 images: even a model compared with itself would not pass" in err
    assert "at least 137 images" in err


def test_a_number_that_is_not_to_be_trusted_fails(folders: Path, edited: Callable[[str, Edit], Path], run: Run) -> None:
    lying = edited("strong", distrusted)
    for given in ((folders / "weak", lying), (lying, folders / "weak")):
        code, out, err = run("compare", *given, "--fail-if-worse")
        assert code == 3
        name = "B" if given[1] is lying else "A"
        assert f"Nothing follows: the number of {name} is not to be trusted." in out
        assert f"{name}: the gradient is zero" in err
    assert run("compare", folders / "weak", lying)[0] == 0


def test_the_level_is_shared_by_the_comparisons() -> None:
    ones = np.ones(100, dtype=bool)
    fewer = ones.copy()
    fewer[:6] = False  # p = 2 / 2**6 = 0.031: below 0.05, above 0.05 / 2
    drop, same = paired(ones, fewer), paired(ones, ones)
    assert judge_regression({"one": drop}).worse
    two = judge_regression({"one": drop, "other": same})
    assert not two.worse
    assert not judge_regression({"one": paired(fewer, ones)}).worse
    fewer[6] = False
    found = judge_regression({"one": paired(ones, fewer), "other": same}, names=("A", "B"))
    assert found.worse
    assert found.sentence == (
        "B is worse than A beyond chance: one from 100.0 % to 93.0 %, -7.0 points (-12.5 to -1.3), McNemar p = 0.016, "
        "n = 100, each of 2 comparisons at the level 0.025"
    )


def test_a_drop_within_the_margin_passes_even_beyond_chance() -> None:
    ones = np.ones(1000, dtype=bool)
    fewer = ones.copy()
    fewer[:10] = False
    assert judge_regression({"it": paired(ones, fewer)}).worse
    assert not judge_regression({"it": paired(ones, fewer)}, margin=0.03).worse
    assert judge_regression({"it": paired(ones, fewer)}, margin=0.01).worse


def test_a_model_that_is_better_without_doubt_cannot_have_dropped() -> None:
    worse, better = np.arange(100) < 40, np.arange(100) < 60
    assert judge_regression({"it": paired(worse, better)}).sentence.endswith(
        "; the 95 % interval of the difference holds no drop"
    )
    assert judge_regression({"it": paired(worse, worse)}).sentence.endswith(
        "; a drop of up to 2.7 points cannot be excluded"
    )


@pytest.mark.parametrize(("lost", "won", "margin"), [(6, 2, 0.05), (20, 19, 0.02), (10, 0, 0.11), (0, 0, 0.01)])
def test_as_many_images_as_a_margin_needs_decide_it_and_fewer_do_not(lost: int, won: int, margin: float) -> None:
    def of(count: int) -> Paired:
        """The same shares of `count` images differ, of 100 `lost` and `won`."""
        losses, wins = (round(count * each / 100) for each in (lost, won))
        place = np.arange(count)
        return paired(place >= wins, place < count - losses)

    needed = images_for_margin(of(100), margin)
    assert needed is not None
    assert not judge_regression({"it": of(math.ceil(1.1 * needed))}, margin=margin).worse
    assert of(math.floor(0.9 * needed)).difference.low <= -margin
    assert images_for_margin(of(100), (lost - won) / 100) is None  # the difference itself is as large


@pytest.mark.parametrize("margin", [0.5, 0.1, 0.02, 0.013])
def test_the_number_of_images_that_a_margin_needs(margin: float) -> None:
    with pytest.raises(SettingError, match="at least") as caught:
        expect_enough_images(1, margin)
    needed = int(str(caught.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    expect_enough_images(needed, margin)
    same = np.ones(needed, dtype=bool)
    assert not judge_regression({"it": paired(same, same)}, margin=margin).worse
    with pytest.raises(SettingError):
        expect_enough_images(needed - 1, margin)


# What is refused ------------------------------------------------------------------------------------------------------
def _other_steps(content: dict[str, Any]) -> None:
    content["attacks"][0]["settings"]["steps"] = 50


def _larger_eps(content: dict[str, Any]) -> None:
    """The same numbers, as if for radii of ten times the size."""
    for each in (*content["verdicts"], *content["attempts"]):
        each.update(eps=10 * each["eps"])
        each.pop("eps_text", None)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda content: content.update(images_sha256="0"), "other images or labels"),
        (
            lambda content: content.update(images_sha256="0", classes=content["classes"][::-1]),
            "their classes are in another order",
        ),
        (in_numbers(norm="l2"), "norm linf and l2"),
        (in_numbers(budget="quick"), "budget own and quick"),
        (in_numbers(bounds=[0, 255]), "range of the pixels"),
        (_other_steps, "attacks with other settings (pgd)"),
        (lambda content: content.pop("images_sha256"), "does not identify its images"),
        (lambda content: content.update(schema=1), "Evaluate again"),
        (lambda content: content.pop("verdicts"), "is no result of an evaluation"),
        (lambda content: content.update(attack={}), "is no result of an evaluation"),
        (lambda content: content["provenance"].clear() or content.pop("checks"), "cannot be read"),
        (lambda content: content.update(images=59), "contradict each other"),
        (_larger_eps, "contradict each other"),
        (in_numbers(clean_accuracy={"value": 1.0, "low": 0.9, "high": 1.0, "n": 60}), "contradict each other"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    folders: Path, edited: Callable[[str, Edit], Path], run: Run, edit: Edit, words: str
) -> None:
    code, out, err = run("compare", folders / "strong", edited("weak", edit), "--fail-if-worse")
    assert code == 2
    assert out == ""
    assert words in err


def test_other_images_and_other_radii_are_refused(evaluations: dict[str, Evaluation], folders: Path, run: Run) -> None:
    root = folders
    evaluate(thirds(), IMAGES[:59], eps="0.05", attacks=ATTACKS).report(root / "other", images=False)
    code, _, err = run("compare", root / "strong", root / "other")
    assert code == 2
    assert "60 and 59 images" in err
    assert "no eps in common (0.04, 0.1 and 0.05)" in err
    evaluate(thirds(), IMAGES, eps="0.1", attacks=ATTACKS, seed=3).report(root / "one-eps", images=False)
    found = compare_finished(read_finished(root / "strong"), read_finished(root / "one-eps"))
    assert [each.eps for each in found.at] == [0.1]
    assert [note.split(":")[0] for note in found.notes] == [
        "A and B have the same weights",
        "the seed differs",
        "A was attacked at more values of eps (0.04), and an image fooled at one counts as fooled at every larger one",
    ]


@pytest.mark.parametrize("name", ["examples.parquet", "result.json"])
def test_missing_and_damaged_files(folders: Path, tmp_path: Path, run: Run, name: str) -> None:
    folder = shutil.copytree(folders / "weak", tmp_path / "weak")
    (folder / name).write_bytes(b"{}" if name == "result.json" else b"PAR1")
    assert run("compare", folders / "strong", folder)[0] == 2
    (folder / name).unlink()
    code, _, err = run("compare", folders / "strong", folder)
    assert code == 2
    assert ("holds no result.json" if name == "result.json" else "cannot read") in err


@pytest.mark.parametrize("eps", ["x", []])
@pytest.mark.usefixtures("unchecked")
def test_an_eps_that_is_no_number_is_refused(folders: Path, tmp_path: Path, run: Run, eps: object) -> None:
    folder = shutil.copytree(folders / "weak", tmp_path / "weak")
    content = json.loads((folder / "result.json").read_text())
    content["verdicts"][0]["eps"] = eps
    (folder / "result.json").write_text(json.dumps(content))
    code, _, err = run("compare", folders / "strong", folder)
    assert code == 2
    assert f"{folder / 'result.json'} cannot be read" in err


def test_a_table_of_another_evaluation_is_noticed(folders: Path, tmp_path: Path, run: Run) -> None:
    folder = shutil.copytree(folders / "weak", tmp_path / "weak")
    shutil.copy(folders / "strong" / "examples.parquet", folder)
    code, _, err = run("compare", folders / "strong", folder)
    assert code == 2
    assert "contradict each other" in err


@pytest.mark.parametrize("column", ["label", "fooled_at", "index", None])
def test_a_table_that_is_none_is_refused(folders: Path, tmp_path: Path, column: str | None) -> None:
    folder = shutil.copytree(folders / "weak", tmp_path / "weak")
    table = dict(read_table(folder / "examples", RecordError))
    if column is None:
        del table["first_success"]
    else:
        table[column] = np.array(["much"] * len(table[column]), dtype=object)
    (folder / "examples.parquet").unlink()
    write_table_as("csv", table, folder / "examples.csv")
    with pytest.raises(RecordError, match="table of examples"):
        read_finished(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--margin", "2%"), "--margin says how --fail-if-worse decides"),
        (("--worse-in", "clean"), "--worse-in says how --fail-if-worse decides"),
        (("--fail-if-worse", "--margin", "0"), "expected more than 0"),
        (("--fail-if-worse", "--margin", "60"), "expected a fraction from 0 to 1"),
        (("--eps", "8/255", "--mean", "0.5", "--crop", "3"), "--eps, --mean, --crop with finished evaluations"),
        (("--overwrite",), "--overwrite with finished evaluations"),
        (("--workers", "2", "--eps", "0.1"), "--eps, --workers with finished evaluations"),
        (("--engine", "ray", "--ray-address", "auto"), "--engine, --ray-address with finished evaluations"),
        (("--ray-address", "auto"), "give --engine ray too"),
        (("--images", "0"), "images = 0"),
    ],
)
def test_options_that_say_nothing_here(folders: Path, run: Run, words: tuple[str, ...], message: str) -> None:
    code, _, err = run("compare", folders / "strong", folders / "weak", *words)
    assert code == 2
    assert message in err


def test_finished_evaluations_get_a_page_where_a_folder_is_named(folders: Path, run: Run, tmp_path: Path) -> None:
    """Another pair is not written over it without --overwrite."""
    out = tmp_path / "out"
    code, _, err = run("compare", folders / "strong", folders / "weak", "--out", out)
    assert code == 0, err
    assert {each.name for each in out.iterdir()} == {"report.html", "comparison.json"}
    page, found = Page((out / "report.html").read_text()), json.loads((out / "comparison.json").read_text())
    text = " ".join(page.text.split())
    assert found["conclusion"] in text
    assert all(each.startswith(("data:", "#")) for each in page.addresses)
    shown = {row[0]: row[2:4] for row in page.table("accuracy")}
    for row in found["robust"]:
        wanted = [percent(row[side]["value"]) for side in ("a", "b")]
        assert shown[f"robust accuracy at eps {row['eps_text']}"] == wanted
    assert f"{len(found['worse'])} worse, {len(found['better'])} better" in text
    assert run("compare", folders / "strong", folders / "weak", "--out", out)[0] == 0
    code, _, err = run("compare", folders / "weak", folders / "strong", "--out", out)
    assert code == 2
    assert "holds the comparison of" in err
    assert json.loads((out / "comparison.json").read_text()) == found
    assert run("compare", folders / "weak", folders / "strong", "--out", out, "--overwrite")[0] == 0


def test_a_model_and_a_finished_evaluation_are_not_compared(folders: Path, run: Run, tmp_path: Path) -> None:
    code, _, err = run("compare", folders / "strong", "mine.py:Net")
    assert code == 2
    assert "mine.py:Net is none; evaluate that model too" in err
    code, _, err = run("compare", folders / "strong", folders / "strnog")
    assert code == 2
    assert "strnog does not exist; expected a finished evaluation" in err
    code, _, err = run("compare", tmp_path, folders / "strong")
    assert code == 2
    assert "holds no result.json; expected the folder of a finished evaluation" in err


# Parts ----------------------------------------------------------------------------------------------------------------
def test_both_models_are_evaluated_alike() -> None:
    request = CompareRequest(eps=("8/255",), weights_b=Path("new"), loading=ModelOptions(weights=Path("old")))
    a, b = request.of("net.py:Net"), request.of("net.py:Net", second=True)
    assert (a.loading.weights, b.loading.weights) == (Path("old"), Path("new"))
    assert a.eps == b.eps == ("8/255",)
    assert request.given() == ["--eps", "--weights-b", "--weights"]
    assert CompareRequest().given() == []


def test_the_picture_has_zero_in_the_middle() -> None:
    def drawn(wins: int, defeats: int, n: int = 100) -> Paired:
        first, second = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        second[:wins] = True
        first[n - defeats :] = defeats > 0
        return paired(first, second)

    for each in (drawn(0, 0), drawn(9, 0), drawn(0, 30), drawn(20, 20), drawn(100, 0)):
        for scale in (0.05, 0.5, 1.0):
            line = picture_of(each, scale)
            assert len(line) == 41
            assert line.count("●") == 1
            assert (line.index("●") < 20) == (each.difference.value < -scale / 40)
            assert line[20] in "│┼●"


@pytest.mark.usefixtures("unchecked")
def test_shares_are_read_as_numbers_and_as_text() -> None:
    given: tuple[Any, ...] = ("60%", "0.6", 0.6, "3/5", np.float32(0.5), 1)
    assert [parse_share("x", each) for each in given] == [0.6, 0.6, 0.6, 0.6, 0.5, 1.0]
    for wrong in (60, "60", -0.1, float("nan"), None, "much", [0.5]):
        with pytest.raises(SettingError, match=r"^x "):
            parse_share("x", wrong)  # type: ignore[arg-type]


def test_a_comparison_is_not_written_over_the_report_of_an_evaluation(folders: Path, run: Run) -> None:
    page = (folders / "strong" / "report.html").read_bytes()
    code, _, err = run("compare", folders / "strong", folders / "weak", "--out", folders / "strong")
    assert code == 2
    assert "report.html" in err
    assert "of another command" in err
    assert (folders / "strong" / "report.html").read_bytes() == page
