"""The stored results of `benchmarks/defenses`, and the page that is made of them."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from casemate.defenses import make_objective
from casemate.defenses.registry import RECIPES

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "defenses"


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    """`page.py`, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("page")
        for name in ("page", "plan"):
            del sys.modules[name]


def test_the_page_is_of_its_files(page: ModuleType) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_every_stored_file_is_a_cell_of_the_plan(page: ModuleType) -> None:
    plan = {page.path_of(pair, side, seed) for pair in page.PAIRS for side in page.SIDES for seed in page.SEEDS}
    stored = set(page.RESULTS.glob("*"))
    assert stored
    assert stored <= plan
    for pair in page.PAIRS:
        for side in page.SIDES:
            for seed in page.SEEDS:
                found = page.read(pair, side, seed)
                assert found is not None or page.path_of(pair, side, seed) not in stored, "of other settings"
                if found is not None:
                    assert (found["pair"], found["side"], found["seed"]) == (pair.name, side, seed)
                    assert all(0 <= share <= 1 for share in found["measured"].values())


def test_both_sides_are_measured_alike(page: ModuleType) -> None:
    for pair in page.PAIRS:
        known = page.cells(pair)
        if known is not None:
            assert len({tuple(each["measured"]) for rows in known.values() for each in rows}) == 1, pair.name


def test_the_single_steps_agree_as_far_as_is_stated(page: ModuleType) -> None:
    rows = json.loads(page.STEPS_FILE.read_text(encoding="utf-8"))["rows"]
    assert rows
    for row in rows:
        assert max(row["difference"], row["gradient_difference"] or 0) <= row["allowed"], row["what"]
        assert row["allowed"] <= 1e-5 or row["note"], row["what"]
        assert all(commit and not commit.endswith("-dirty") for commit in row["commits"].values()), row["what"]


def test_pairs_are_recipes_with_settings_that_they_take(page: ModuleType) -> None:
    for pair in page.PAIRS:
        assert pair.recipe in RECIPES
        if pair.teacher is None:
            make_objective({"name": pair.recipe, "settings": dict(pair.settings)})
        else:
            assert RECIPES[pair.recipe].teacher is not None


def test_only_what_the_seeds_do_not_explain_stands_out(page: ModuleType) -> None:
    assert page.noise([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]) == pytest.approx((0.02 / 3) ** 0.5)
    assert not page.stands_out([0.50, 0.60, 0.70], [0.60, 0.70, 0.80])
    assert page.stands_out([0.50, 0.51, 0.52], [0.60, 0.61, 0.62])
    assert page.stands_out([0.60, 0.61, 0.62], [0.50, 0.51, 0.52])
    assert not page.stands_out([0.5, 0.5, 0.5], [0.505, 0.505, 0.505])
