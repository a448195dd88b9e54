"""AutoAttack: a fixed list of attacks, each on what the ones before left (Croce and Hein 2020, arXiv 2003.01690).

Budgets and parameters are those of the original code (github.com/fra31/auto-attack, commit a392200): `standard` and
`plus` for Linf, L2 and L1, `rand` for models that answer at random. It differs in three things: APGD's cross-entropy
is the stable form unless `loss` says otherwise, an example leaves as soon as it is fooled, and draws are per example.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch

from casemate.attacks.apgd import APGD, TargetedAPGD
from casemate.attacks.base import Attack, Criterion, Passes, stream_key, verify
from casemate.attacks.fab import FAB, TargetedFAB
from casemate.attacks.square import Square
from casemate.errors import SettingError
from casemate.losses import LossName
from casemate.models import Classifier
from casemate.norms import Ball, Norm, parse_eps
from casemate.progress import Advance
from casemate.rng import Streams, derive
from casemate.types import Flags, Images

Version = Literal["standard", "plus", "rand"]

DRAWS = 20
"""Passes whose gradients `rand` averages (the original's eot_iter)."""


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """The list of attacks that the field reports robust accuracy by."""

    stream: ClassVar[str] = "AutoAttack"
    targetable: ClassVar[bool] = False

    eps: float
    """Radius of the ball, in pixel units."""
    norm: Norm = "linf"
    """Linf, L2 or L1."""
    version: Version = "standard"
    """`standard`: APGD-CE, APGD-T, FAB-T, Square. `plus`: more restarts, APGD-DLR and FAB besides (Linf and L2 only).
    `rand`: APGD-CE and APGD-DLR with the mean gradient of 20 draws."""
    loss: LossName = "ce"
    """Of APGD-CE: `ce` is the stable form, `torch-ce` the original's."""

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise SettingError(f"version {self.version!r}; expected one of {', '.join(get_args(Version))}")
        self.attacks()

    @property
    def bears_rounding(self) -> bool:
        """FAB among them does not; in `casemate.evaluation` each of the attacks is run by itself."""
        return False

    def ball(self) -> Ball:
        """The ball that all of them share."""
        return Ball(eps=parse_eps(self.eps), norm=self.norm)

    def attacks(self) -> dict[str, Attack]:
        """The attacks by name, in the order in which they run. Raises `SettingError` for `plus` with L1."""
        eps, norm = parse_eps(self.eps), self.norm
        if self.version == "rand":
            return {
                "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss, draws=DRAWS),
                "apgd-dlr": APGD(eps=eps, norm=norm, loss="dlr", draws=DRAWS),
            }
        square = Square(eps=eps, norm=norm, queries=5001)  # the original does not count the start's
        fab_t = TargetedFAB(norm=norm, radius=eps, enough=eps)
        if self.version == "plus":
            if norm == "l1":
                raise SettingError("version plus is defined for linf and l2; take standard for l1")
            return {
                "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss, restarts=5),
                "apgd-dlr": APGD(eps=eps, norm=norm, loss="dlr", restarts=5),
                "fab": FAB(norm=norm, restarts=5, radius=eps, enough=eps),
                "square": square,
                "apgd-t": TargetedAPGD(eps=eps, norm=norm),
                "fab-t": fab_t,
            }
        if norm == "l1":  # Croce and Hein 2021, arXiv 2103.01208
            return {
                "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss, restarts=5, wide=True),
                "apgd-t": TargetedAPGD(eps=eps, norm=norm, classes=5, wide=True),
                "fab-t": fab_t,
                "square": square,
            }
        return {
            "apgd-ce": APGD(eps=eps, norm=norm, loss=self.loss),
            "apgd-t": TargetedAPGD(eps=eps, norm=norm),
            "fab-t": fab_t,
            "square": square,
        }

    def most_passes(self, classes: int) -> Passes:
        """All attacks, and a look after each."""
        total = Passes()
        for attack in self.attacks().values():
            total.add(attack.most_passes(classes))
            total.forward += 1
        return total

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """Each attack on those that the ones before left; what it claims is verified before it counts."""
        ball = self.ball()
        found, passes = clean.clone(), Passes()
        steered = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        left = torch.arange(len(clean), device=clean.device)
        attacks = self.attacks()
        for attack in attacks.values():
            if not len(left):
                break
            own = Streams(derive(streams.seed, stream_key(attack)), streams.index[left])
            share = len(left) / len(clean) / len(attacks)
            candidates, moved, cost = attack.run(
                model,
                clean[left],
                criterion.take(left),
                own,
                lambda amount, note="", share=share: advance(amount * share, note),
            )
            passes.add(cost)
            steered[left] |= moved
            checked = verify(model, candidates, clean[left], ball, model.bounds)
            passes.add(checked.passes)
            found[left] = checked.images.where(checked.finite.view(-1, 1, 1, 1), torch.nan)
            left = left[~criterion.take(left).met(checked.logits)]
        return found, steered, passes
