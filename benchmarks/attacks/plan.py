"""What is compared with what: each attack of ours, its settings, and the libraries that have it.

`settings` is the one place where the settings are: `Case.ours` builds our attack from them, and `runner.py` gives the
same numbers to the other library.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from casemate.attacks import (
    APGD,
    EAD,
    FAB,
    LBFGS,
    MIFGSM,
    PGD,
    AbstractAttack,
    CarliniWagner,
    DeepFool,
    HopSkipJump,
    Spatial,
    Square,
    TargetedAPGD,
    TargetedFAB,
    UniformNoise,
)
from casemate.norms import Norm

Settings = Mapping[str, Any]
Build = Callable[[Settings, Norm, float], AbstractAttack]
"""(settings, norm, eps) -> our attack; a minimum-norm attack does not look at eps."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A library that has the attack."""

    differs: str = ""
    """What could not be made equal."""
    images: int | None = None
    """Fewer images than the case has, for a slow one."""
    judged: bool = True
    """False: shown, but no verdict, because it is another attack."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack in one norm."""

    name: str
    kind: Literal["ball", "nearest"]
    """`ball`: how many images withstand it at eps. `nearest`: how near the images are that fool."""
    norm: Norm
    settings: Settings
    ours: Build
    peers: Mapping[str, Peer]
    random: bool = False
    """Both draw at random, so that a small difference can be luck."""
    images: int = 100
    unbounded: bool = False
    """The attack has no ball (`spatial`): its images are not held against one."""


def _pgd(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    step = settings["step"] * eps
    return PGD(eps=eps, norm=norm, steps=settings["steps"], step_size=step, loss="torch-ce", keep="last")


def _mifgsm(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    step = settings["step"] * eps
    decay = settings["decay"]
    return MIFGSM(
        eps=eps, norm=norm, steps=settings["steps"], step_size=step, decay=decay, loss="torch-ce", keep="last"
    )


def _apgd(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    loss = {"ce": "torch-ce", "dlr": "dlr"}[settings["loss"]]
    return APGD(eps=eps, norm=norm, steps=settings["steps"], loss=loss)


def _apgd_t(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    return TargetedAPGD(eps=eps, norm=norm, steps=settings["steps"], classes=settings["targets"])


def _fab(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    del eps
    return FAB(norm=norm, steps=settings["steps"])


def _fab_t(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    return TargetedFAB(norm=norm, steps=settings["steps"], classes=settings["targets"], stop_at_distance=eps)


def _square(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    # ours counts the query of the start, the others do not
    return Square(eps=eps, norm=norm, n_queries=settings["n_queries"] + 1, p_init=settings["p_init"])


def _carlini_wagner(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    del eps
    return CarliniWagner(norm=norm, **settings)


def _deepfool(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    del eps
    return DeepFool(norm=norm, **settings)


def _lbfgs(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    del settings, eps  # of Foolbox's Carlini & Wagner, beside which it is shown
    return LBFGS(norm=norm)


def _ead(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    del eps
    return EAD(norm=norm, rule="l1", **settings)


def _hopskipjump(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    del eps
    # no limit but the number of steps, as there
    return HopSkipJump(norm=norm, n_queries=10**6, **settings)


def _spatial(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    del norm, eps
    return Spatial(**settings)


def _noise(settings: Settings, norm: Norm, eps: float) -> AbstractAttack:
    return UniformNoise(eps=eps, norm=norm, num_samples=settings["num_samples"])


_MEAN = "ascends the mean of the batch's losses"
_PGD = {"steps": 20, "step": 0.1}
_MIFGSM = {"steps": 10, "step": 0.1, "decay": 1.0}
_SIGNS = "accumulates the gradients' signs, not the gradients over their L1 norm, as Dong et al. have it"
_CW = {"steps": 300, "binary_search_steps": 9, "learning_rate": 0.01, "initial_const": 1e-3}
_STOPS = "ends a round for the whole batch at once"
_LINE_SEARCH = "gradient descent with a line search in place of Adam"
_EAD = {"steps": 300, "binary_search_steps": 9, "learning_rate": 0.01, "initial_const": 1e-3, "beta": 0.01}
_EAD_LOOK = "also looks at the iterates between the gradients; no round is ended early"
_HOP = {"steps": 15, "evaluations": 100, "starts": 100}
_HOP_START = "another first image; each bisects to its own precision"
_PLACES = {"max_rotation": 15.0, "max_shift": 1.0, "rotations": 7, "shifts": 3}
"""Half of the paper's angles and a third of its shifts, which leave nothing of these networks to compare."""

CASES = (
    Case(
        name="PGD",
        kind="ball",
        norm="linf",
        settings=_PGD,
        ours=_pgd,
        random=True,
        images=200,
        peers={"torchattacks": Peer(differs=_MEAN), "foolbox": Peer(), "art": Peer(differs=_MEAN)},
    ),
    Case(
        name="PGD",
        kind="ball",
        norm="l2",
        settings=_PGD,
        ours=_pgd,
        random=True,
        images=200,
        peers={
            "torchattacks": Peer(differs="starts at a uniform distance, hence nearer"),
            "foolbox": Peer(),
            "art": Peer(differs=_MEAN),
        },
    ),
    Case(
        name="MI-FGSM",
        kind="ball",
        norm="linf",
        settings=_MIFGSM,
        ours=_mifgsm,
        images=200,
        peers={
            "torchattacks": Peer(differs=_MEAN),
            "foolbox": Peer(differs=_SIGNS, judged=False),
            "art": Peer(differs=_MEAN),
        },
    ),
    *(
        Case(
            name=f"APGD-{loss.upper()}",
            kind="ball",
            norm=norm,
            settings={"steps": 50, "loss": loss},
            ours=_apgd,
            random=True,
            images=200,
            peers={"autoattack": Peer(), **({} if norm == "l1" else {"torchattacks": Peer()})},
        )
        for loss, norm in (("ce", "linf"), ("ce", "l2"), ("ce", "l1"), ("dlr", "linf"), ("dlr", "l2"))
    ),
    *(
        Case(
            name="APGD-T",
            kind="ball",
            norm=norm,
            settings={"steps": 20, "targets": 9},
            ours=_apgd_t,
            random=True,
            images=200,
            peers={"autoattack": Peer(), "torchattacks": Peer()},
        )
        for norm in ("linf", "l2")
    ),
    *(
        Case(
            name="FAB",
            kind="nearest",
            norm=norm,
            settings={"steps": 30},
            ours=_fab,
            # torchattacks documents L1 and fails: it never measures it
            peers={"autoattack": Peer(), **({} if norm == "l1" else {"torchattacks": Peer()})},
        )
        for norm in ("linf", "l2", "l1")
    ),
    Case(
        name="FAB-T",
        kind="ball",
        norm="linf",
        settings={"steps": 30, "targets": 9},
        ours=_fab_t,
        peers={"autoattack": Peer(), "torchattacks": Peer()},
    ),
    *(
        Case(
            name="Square",
            kind="ball",
            norm=norm,
            settings={"n_queries": 1000, "p_init": 0.8},
            ours=_square,
            random=True,
            images=200,
            peers={
                library: Peer(differs="one window for the whole batch")
                for library in ("autoattack", "torchattacks")
                if not (norm == "l1" and library == "torchattacks")
            },
        )
        for norm in ("linf", "l2", "l1")
    ),
    Case(
        name="Carlini & Wagner",
        kind="nearest",
        norm="l2",
        settings=_CW,
        ours=_carlini_wagner,
        peers={"foolbox": Peer(differs=_STOPS), "art": Peer(differs=_LINE_SEARCH, images=30)},
    ),
    Case(
        name="Carlini & Wagner",
        kind="nearest",
        norm="linf",
        settings={"steps": 100, "binary_search_steps": 9, "learning_rate": 0.01, "initial_const": 1e-3},
        ours=_carlini_wagner,
        images=10,
        peers={"art": Peer(differs="a search of its own: c and tau step by step, as many steps each")},
    ),
    Case(
        name="DeepFool",
        kind="nearest",
        norm="l2",
        settings={"steps": 50, "overshoot": 0.02, "candidates": 10},
        ours=_deepfool,
        peers={
            "foolbox": Peer(),
            "torchattacks": Peer(differs="overshoots in every step, not in the sum of the steps", images=50),
            "art": Peer(differs="overshoots once, after the last step"),
        },
    ),
    Case(
        name="DeepFool",
        kind="nearest",
        norm="linf",
        settings={"steps": 50, "overshoot": 0.02, "candidates": 10},
        ours=_deepfool,
        peers={"foolbox": Peer()},
    ),
    Case(
        name="L-BFGS",
        kind="nearest",
        norm="l2",
        settings=_CW,
        ours=_lbfgs,
        peers={"foolbox": Peer(differs="Foolbox has no L-BFGS; this is its Carlini & Wagner", judged=False)},
    ),
    Case(
        name="EAD",
        kind="nearest",
        norm="l1",
        settings=_EAD,
        ours=_ead,
        peers={
            "foolbox": Peer(differs=_EAD_LOOK),
            "art": Peer(differs="as its authors' code; ends rounds early", images=30),
            "torchattacks": Peer(differs=_EAD_LOOK + "; rounds go on from one another", images=30),
        },
    ),
    *(
        Case(
            name="HopSkipJump",
            kind="nearest",
            norm=norm,
            settings=_HOP,
            ours=_hopskipjump,
            random=True,
            images=20,
            peers={"foolbox": Peer(differs=_HOP_START), "art": Peer(differs=_HOP_START)},
        )
        for norm in ("l2", "linf")
    ),
    Case(
        name="Spatial",
        kind="ball",
        norm="linf",
        settings=_PLACES,
        ours=_spatial,
        unbounded=True,
        peers={
            "foolbox": Peer(differs="shifts before it rotates, by 27 / 28 of the pixels"),
            "art": Peer(differs="shifts in one direction only (a bug, see the README), cubic interpolation", images=20),
        },
    ),
    Case(
        name="Uniform noise",
        kind="ball",
        norm="linf",
        settings={"num_samples": 200},
        ours=_noise,
        random=True,
        images=200,
        peers={"foolbox": Peer(differs="scaled to the edge of the ball")},
    ),
    Case(
        name="Uniform noise",
        kind="ball",
        norm="l2",
        settings={"num_samples": 200},
        ours=_noise,
        random=True,
        images=200,
        peers={"foolbox": Peer(differs="Gaussian, scaled to the edge of the ball")},
    ),
)
