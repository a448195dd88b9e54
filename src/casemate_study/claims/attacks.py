"""The rules of the paper's claims about the undefended network and the two attacks."""

import numpy as np

from casemate.losses import TITLES
from casemate_study.claims.rules import NOTHING, ClaimEvidence, Found, counted, number, tally
from casemate_study.claims.verdicts import interval, percent
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E4_STEP_SIZES, e4_prefix
from casemate_study.results import Estimate, compare_accuracy, compare_flags, point_at, right


def test_accuracy(evidence: ClaimEvidence) -> Found:
    e1 = evidence.models.get("E1")
    if e1 is None or e1.clean is None:
        return NOTHING
    estimate = e1.clean["accuracy"]
    inside = estimate["low"] <= paper.TEST_ACCURACY.value <= estimate["high"]
    return Found("holds" if inside else "unexplained", f"Ours: {interval(estimate)}.")


def fgsm(evidence: ClaimEvidence) -> Found:
    e1 = evidence.models.get("E1")
    found = {TITLES[loss]: e1.left("fgsm", 0.1, loss) for loss in LOSSES} if e1 else {}
    return number(evidence, paper.FGSM_AT_01, {name: each for name, each in found.items() if each})


def iterations(evidence: ClaimEvidence) -> Found:
    settings: dict[str, Estimate] = {}
    for size in E4_STEP_SIZES:
        for loss in LOSSES:
            artifact = evidence.artifacts.get(f"{e4_prefix(size)}/{loss}")
            point = None if artifact is None else point_at(artifact, "steps", 25)
            if point is not None:
                settings[f"step {size}, {TITLES[loss]}"] = point["last"]
    return number(evidence, paper.BIM_AT_25, settings)


def level(evidence: ClaimEvidence) -> Found:
    """Rule: from 25 iterations to the most, no change of accuracy by the paired test, and a larger loss."""
    verdicts: dict[str, tuple[bool, bool]] = {}
    words: list[str] = []
    for size in E4_STEP_SIZES:
        for loss in LOSSES:
            artifact = evidence.artifacts.get(f"{e4_prefix(size)}/{loss}")
            if artifact is None or not point_at(artifact, "steps", 25):
                continue
            first, last = point_at(artifact, "steps", 25), artifact.result["points"][-1]
            if first is None or first["loss"] is None or last["loss"] is None:
                continue
            changed = compare_flags(right(artifact, "steps", 25), right(artifact, "steps", last["steps"]))
            level = changed is not None and changed.order == 0
            grows = last["loss"]["value"] > first["loss"]["high"]
            before = verdicts.get(loss, (True, True))
            verdicts[loss] = (level and before[0], grows and before[1])
            words.append(
                f"step {size}, {TITLES[loss]}: {percent(first['last']['value'])} at 25, "
                f"{percent(last['last']['value'])} at {last['steps']:g}, loss {first['loss']['value']:.2f} to "
                f"{last['loss']['value']:.2f}"
            )
    if "ce" not in verdicts:
        return NOTHING
    text = "; ".join(words) + "."
    if all(verdicts["ce"]):
        return Found("holds", text)
    elsewhere = [TITLES[loss] for loss in LOSSES[1:] if all(verdicts.get(loss, (False, False)))]
    if elsewhere:
        text += f" Level with a growing loss only where the attack ascends {' or '.join(elsewhere)}."
    return Found("does not hold", text)


def clipping(evidence: ClaimEvidence) -> Found:
    """Ball against range at equal steps, and against range with an equal total; accuracy, lower is more effective."""
    e1 = evidence.models.get("E1")
    if e1 is None:
        return NOTHING
    words, orders = [], {}
    for other, setting in (("range", "equal steps"), ("range-4", "equal total")):
        for loss in LOSSES:
            ball, wide = e1.artifact("ball", loss), e1.artifact(other, loss)
            if ball is None or wide is None:
                continue
            values = [p["eps"] for p in ball.result["points"] if p["eps"]]
            found = [compare_accuracy(ball, wide, "eps", value) for value in values]
            known = [each for each in found if each is not None]
            orders[setting, loss] = tally(known, -1)
            words.append(f"{setting}, {TITLES[loss]}: {counted(known, -1)}")
    if ("equal steps", "ce") not in orders:
        return NOTHING
    reproduced = [f"{setting} and {TITLES[loss]}" for (setting, loss), verdict in orders.items() if verdict == "holds"]
    text = "Ball leaves fewer right: " + "; ".join(words) + "."
    text += (
        f" The paper's order appears with {', '.join(reproduced)}."
        if reproduced
        else " No setting of ours reproduces the paper's order."
    )
    return Found(orders["equal steps", "ce"], text)


def background(evidence: ClaimEvidence) -> Found:
    """Rule: BIM with clip ball changes less than 1 % of the black pixels of the stored pictures."""
    artifact = evidence.artifacts.get("E3/pictures")
    if artifact is None:
        return NOTHING
    images = artifact.arrays("images.safetensors")
    black = images["clean"] == 0
    shares = {
        name: float((np.abs(images[name] - images["clean"])[black] > 1e-6).mean()) for name in images if name != "clean"
    }
    ball = next((share for name, share in shares.items() if name.endswith("ball")), None)
    if ball is None or not black.any():
        return NOTHING
    text = "; ".join(f"{name} changes {percent(share)} of the black pixels" for name, share in shares.items())
    return Found("holds" if ball < 0.01 else "does not hold", f"{text}.")
