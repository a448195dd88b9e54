"""Models trained with further seeds: the verdict on each claim by seed, and the table of what survives."""

from collections.abc import Mapping, Sequence

import pytest

from artifacts import N, Numbers, World, world
from casemate.engine import Artifact
from casemate_study.claims import CLAIMS, ClaimEvidence, Judgement, artifacts_by_seed, judge, judging
from casemate_study.report import comparison
from casemate_study.report.seeds import seeds_table

NAMES = ("E1", "E6", "E9-1", "E9-20", "E9-teacher-20", "E11")
HELPS = "Adversarial regularisation helps against FGSM."
STUDENT = "The student is more accurate than the teacher under FGSM."
SEED_CURVES = ("clean", "fgsm/ce", "ball/ce", "pgd")
GOOD, BAD = (Numbers(left=dict.fromkeys(("fgsm", "ball", "pgd"), level)) for level in (0.9, 0.2))
EVEN = Numbers()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which no model differs from another."""
    return world(tmp_path_factory.mktemp("artifacts"), NAMES)


def _seed(of: World, seed: int, numbers: Mapping[str, Numbers], *missing: str) -> dict[str, Artifact]:
    """The fewer artifacts of a further seed, with these numbers; without those of the models that are missing."""
    other = of.but(numbers)
    found: dict[str, Artifact] = {}
    for name in set(other.models) - {"E9-1", *missing}:
        model = other.models[name].model
        names = [model.source.task, *(model.artifact(*each.split("/")) for each in SEED_CURVES)]
        found |= {f"seed-{seed}/{each}": other.artifacts[each] for each in names if each in other.artifacts}
    return found


def _judged(
    of: World, *seeds: Mapping[str, Artifact], decides: bool = True, only: Sequence[str] = ()
) -> dict[str, Judgement]:
    """The judgements by the claim; of all claims, or of `only` those that say this."""
    artifacts = dict(of.artifacts)
    for each in seeds:
        artifacts |= each
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "CLAIMS", [claim for claim in CLAIMS if not only or claim.says in only])
        found = judge(ClaimEvidence(of.models, artifacts), decides=decides)
    return {each.claim.says: each for each in found}


def test_artifacts_are_grouped_by_their_seed(start: World) -> None:
    """Names without a seed are this run's own; seeds are sorted as numbers."""
    artifacts = {**start.artifacts, **_seed(start, 10, {}), **_seed(start, 2, {}, "E6")}
    found = artifacts_by_seed(artifacts)
    assert list(found) == [2, 10]
    assert "E6/clean" in found[10]
    assert "E6/clean" not in found[2]
    assert not any(name.startswith("seed-") for each in found.values() for name in each)
    assert artifacts_by_seed(start.artifacts) == {}


def test_without_further_seeds_nothing_is_added(start: World) -> None:
    for each in _judged(start).values():
        assert (each.by_seed, each.survives, each.seeds_sentence) == ({}, None, "")
    assert seeds_table(start.models, start.artifacts, 0) is None
    claims = comparison.judged_claims(start.models, start.artifacts, decides=True)
    assert comparison.claim_table(claims, None).head == ("experiment", "the paper says", "verdict", "because")


def test_a_verdict_survives_if_every_seed_gives_it(start: World) -> None:
    here = start.but({"E6": GOOD})
    between = Numbers(left={"fgsm": {0.1: 0.5}})  # 10 points above E1, as much as the claim needs
    good, even, bad = (_seed(here, seed, {"E6": each}) for seed, each in ((1, GOOD), (2, between), (3, BAD)))
    same = _judged(here, good, only=[HELPS])[HELPS]
    assert (same.verdict, same.survives) == ("holds", True)
    assert same.seeds_sentence == "with seed 1: holds. The verdict survives all seeds."
    twice = _judged(here, good, _seed(here, 2, {"E6": GOOD}), only=[HELPS])[HELPS]
    assert twice.seeds_sentence == "with seeds 1 and 2: holds. The verdict survives all seeds."
    other = _judged(here, good, even, bad, only=[HELPS])[HELPS]
    assert (other.verdict, other.survives) == ("holds", False)
    assert other.seeds_sentence == (
        "with seed 1: holds; with seed 2: no difference shown; with seed 3: does not hold. The verdict does not "
        "survive all seeds."
    )
    assert other.because == same.because == _judged(here, only=[HELPS])[HELPS].because


def test_a_rule_whose_artifacts_a_seed_lacks_says_nothing_of_it(start: World) -> None:
    """Clip range is not run with further seeds, and E6 is missing with seed 2."""
    clippings = (
        "Under BIM, both clippings, E1 is better than it.",
        "BIM with clip ball is more effective than with clip range.",
    )
    accuracy = "93.7 % test accuracy."
    found = _judged(start, _seed(start, 1, {}), _seed(start, 2, {}, "E6"), only=[HELPS, *clippings, accuracy])
    assert list(found[HELPS].by_seed) == [1]
    assert [found[each].by_seed for each in clippings] == [{}, {}]
    assert list(found[accuracy].by_seed) == [1, 2]


def test_a_seed_with_fewer_models_is_compared_with_this_run_on_the_same(start: World) -> None:
    """E9-1, which no further seed trains, refutes here what E9-20 bears out at every seed."""
    here = start.but({"E9-1": BAD, "E9-20": GOOD})
    found = _judged(here, _seed(here, 1, {"E9-20": GOOD}), only=[STUDENT])[STUDENT]
    assert found.verdict == "does not hold"
    assert found.survives is True
    assert found.seeds_sentence == (
        "with seed 1: holds (this run on the same measures: holds). The verdict survives all seeds."
    )


def test_a_scale_that_cannot_decide_has_the_words_of_the_numbers_by_seed(start: World) -> None:
    found = _judged(start, _seed(start, 1, {"E6": GOOD}), decides=False, only=[HELPS])[HELPS]
    assert found.verdict == "cannot be decided at this scale (here: does not hold)"
    assert found.seeds_sentence == "with seed 1: holds. The verdict does not survive all seeds."


def test_the_table_of_claims_has_the_verdicts_by_seed(start: World) -> None:
    here = start.but({"E6": GOOD})
    judged = list(_judged(here, _seed(here, 1, {"E6": GOOD})).values())
    table = comparison.claim_table(judged, None)
    assert table.head == ("experiment", "the paper says", "verdict", "with further seeds", "because")
    by_claim = {row[1]: row[3] for row in table.rows}
    assert by_claim[HELPS] == "with seed 1: holds. The verdict survives all seeds."
    assert by_claim["BIM with clip ball is more effective than with clip range."] == "-"
    assert len(table.rows) == len(CLAIMS)


def test_the_table_of_seeds_says_which_differences_survive(start: World) -> None:
    here = start.but({"E6": GOOD, "E9-20": GOOD})
    artifacts = {
        **here.artifacts,
        **_seed(here, 1, {"E6": GOOD, "E9-20": EVEN}),
        **_seed(here, 2, {"E6": GOOD, "E9-20": BAD}, "E11"),
    }
    table = seeds_table(here.models, artifacts, 0)
    assert table is not None
    assert table.head == ("model", "accuracy", "seed 0", "seed 1", "seed 2", "spread", "against baseline")
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    titles = {name: here.models[name].title for name in NAMES}
    assert len(rows) == 6 * 5 - 2  # PGD runs on the teacher at 0.1 only
    assert not any(title == titles["E9-1"] for title, _ in rows)
    assert rows[titles["E1"], "FGSM 0.1"] == (*["40.0 % (35.3 to 44.9, n = 400)"] * 3, "0.0 points", "")
    for words in ("FGSM 0.1", "BIM 0.1", "worst case 0.1"):
        e6, student = rows[titles["E6"], words], rows[titles["E9-20"], words]
        assert e6[0].startswith("90.0 % (86.7 to 92.6, n = 400); above, +50.0 points (")
        assert e6[3:] == ("0.0 points", "above with all 3")
        assert student[3] == "70.0 points"
        assert student[4] == "differs: above with seed 0, no difference shown with seed 1, below with seed 2"
    assert rows[titles["E6"], "without an attack"][4] == "no difference shown with any of 3"
    assert rows[titles["E11"], "FGSM 0.1"][2:] == ("-", "0.0 points", "no difference shown with any of 2")
    assert rows[titles["E6"], "PGD-40 0.025"][0].startswith("90.0 % (86.7 to 92.6, n = 400); above, +20.0 points (")


def test_the_worst_case_is_taken_over_the_attacks_that_all_seeds_have(start: World) -> None:
    """Attacks under other losses leave less in this run; the further seed has none of them."""
    here = start.but({"E6": Numbers(left={"fgsm": 0.9, "ball": 0.9, "pgd": 0.9, "fgsm/prob-ce": 0.1})})
    assert here.models["E6"].worst_case(0.1) is not None
    table = seeds_table(here.models, {**here.artifacts, **_seed(here, 1, {"E6": GOOD})}, 0)
    assert table is not None
    (row,) = [row for row in table.rows if row[0] == here.models["E6"].title and row[1].startswith("worst")]
    assert row[2] == row[3]
    assert row[2].startswith(f"90.0 % (86.7 to 92.6, n = {N})")
