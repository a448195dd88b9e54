"""The base of all attacks: checks of the input before the algorithm, verification of its candidates after it.

`AbstractAttack.__call__` is the same for every attack; `run` is the algorithm. What a caller gave is checked first
(`inputs.py`), and the candidates that the algorithm returns are verified (`verify.py`).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from casemate.attacks.criterion import Criterion, Misclassification
from casemate.attacks.inputs import as_images, check_images, check_pixels
from casemate.attacks.levels import Grid
from casemate.attacks.masks import as_mask, free_share
from casemate.attacks.overriding import overridable
from casemate.attacks.prepare import group_size, prepare_for_attack, prepare_images
from casemate.attacks.result import AttackResult, Passes, RunResult, Status, status_of
from casemate.attacks.verify import Verified, restore_undone, run_in_turn, verify_candidates
from casemate.data import Array, as_labels, as_tensor
from casemate.errors import DataError, SettingError, ShapeError, kind_of
from casemate.functions import function_record
from casemate.losses import stable_cross_entropy
from casemate.memory import batched
from casemate.models import Classifier, Frozen, UserCall, as_model, model_of, normal_tensor, user_call
from casemate.norms import AnyNorm, Ball, parse_eps
from casemate.progress import NULL_OBSERVER, Advance, Observer, no_progress
from casemate.rng import Streams, derive
from casemate.settings import at_least, expect
from casemate.types import Images, Labels, PerExample


@final
class _CountingProgress:
    """An `Advance` that reports the progress of an attack to `advance`, and adds it up in `done`."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done = advance, 0.0

    def __call__(self, amount: float, note: str = "") -> None:
        self.done += amount
        self.advance(amount, note)


@dataclass(frozen=True, kw_only=True)
class AbstractAttack(ABC):
    """An attack: a frozen dataclass whose fields are its hyper-parameters. Call it on a model and images.

    A new attack needs fields and `run`. The values allowed for a field are stated in its annotation (see
    `casemate.settings`) and checked when the attack is created.
    """

    targetable: ClassVar[bool] = True
    """Whether the attack can be targeted, that is, called with target classes."""
    without_classes: ClassVar[str] = ""
    """For an attack that goes through the classes: what to take instead under a criterion without classes, such as
    `TopK`. Empty for an attack that works under any criterion."""
    stream: ClassVar[str] = ""
    """Name that keys the random draws together with the seed, so that renaming the class does not change them; the
    class's name if empty."""

    maskable: ClassVar[bool] = True
    """Whether a mask can say which values the attack may change; False where it moves pixels, not values."""

    supports_low_precision: ClassVar[bool] = True
    """Whether it may run on a bfloat16 copy of the model first; False for an attack that ends at the decision boundary,
    where rounding decides the class."""

    @overridable
    def __post_init__(self) -> None:
        """Check the fields by the rules in their annotations. Raises `SettingError`."""
        expect(self)

    @overridable
    def ball(self) -> Ball:
        """The ball in which the adversarial images lie: that of the fields `eps` and `norm`, or of the wrapped attack.

        Without `eps` its radius is infinite: all images within the bounds.
        """
        inner = innermost(self)
        if inner is not self:
            return inner.ball()
        eps = getattr(self, "eps", math.inf)
        return Ball(eps=parse_eps(eps) if isinstance(eps, str) else eps, norm=getattr(self, "norm", "linf"))

    @overridable
    def max_passes(self, classes: int) -> Passes | None:
        """The most forward and backward passes of an untargeted `run` for one image, with `classes` classes.

        None if unknown; estimates of the time that an evaluation takes then omit the attack.
        """
        del classes
        return None

    @abstractmethod
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Run the algorithm on one batch, and return candidates for adversarial images; `__call__` verifies them.

        Args:
            model: in evaluation mode, with frozen weights.
            clean: the images to attack, within the model's bounds, on its device, channels-last.
            criterion: which logits count as fooled, and the objective that leads there.
            streams: random draws, keyed by example.
            advance: to be called, if progress is reported, with the share of work done since the last call, times the
                number of images.
        """

    def _attack(
        self,
        prepared: Frozen,
        clean: Images,
        criterion: Criterion,
        streams: Streams,
        advance: Advance,
        grid: Grid | None,
    ) -> Verified:
        """Run the algorithm on one batch, on the models of `Frozen.precision_stages`, and verify the candidates.

        With a `grid` the candidates are rounded to it.
        """
        models = prepared.precision_stages(low_precision=innermost(self).supports_low_precision)
        ball = self.ball()

        def run(model: Classifier, at: Tensor | slice) -> Verified:
            part, first, last = criterion[at], model is models[0], model is models[-1]
            made = self._run_where_free(model, clean[at], part, streams[at], advance if first else no_progress)
            if not isinstance(made, RunResult):
                raise SettingError(f"{name_of(self)}.run returned {kind_of(made)}; expected a casemate.RunResult")
            found = verify_candidates(
                prepared.verifier, made.images, clean[at], ball, model.bounds, made.finite, mask=part.mask, grid=grid
            )
            if grid is not None:
                found = restore_undone(found, made.images, model, prepared.verifier, clean[at], ball, part, grid)
            made.passes.add(found.passes)
            found = replace(found, has_gradient=made.has_gradient, passes=made.passes)
            if last:
                return found
            made.passes.forward += len(found.images)
            with torch.no_grad():
                return replace(found, claimed=part.is_adversarial(model(found.images)))

        return run_in_turn(models, criterion, run)

    @final
    def _run_where_free(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Run the algorithm on the images whose mask lets some value change; the others have no gradient."""
        if criterion.mask is None or (free := criterion.mask.flatten(1).any(1)).all():
            return self.run(model, clean, criterion, streams, advance)
        rest = RunResult(clean.clone(), torch.ones_like(free), torch.zeros_like(free), Passes())
        at = free.nonzero().squeeze(1)
        if not len(at):
            return rest
        made = self.run(model, clean[at], criterion[at], streams[at], advance)
        return replace(rest.put(at, made), passes=made.passes)

    @final
    def record(self) -> dict[str, Any]:
        """The attack's class name ("name") and hyper-parameters as a dictionary, as written into results.

        An attack in a field is a dictionary too, and a function, such as a loss of one's own, its name and a hash
        (`function_record`). A field whose value JSON cannot express otherwise has a function in its metadata, under
        "record", that converts it.
        """
        found: dict[str, Any] = {"name": type(self).__name__}
        for each in fields(self):
            value, convert = getattr(self, each.name), each.metadata.get("record", _recorded)
            found[each.name] = value.record() if isinstance(value, AbstractAttack) else convert(value)
        return found

    @final
    def __call__(
        self,
        model: nn.Module | Frozen,
        images: Array,
        labels: Array | Criterion | None = None,
        *,
        targets: Array | None = None,
        mask: Array | None = None,
        levels: int | None = None,
        seed: int = 0,
        index: Labels | None = None,
        batch_size: int | None = None,
        observer: Observer = NULL_OBSERVER,
    ) -> AttackResult:
        """Attack `images` and return verified results.

        Args:
            model: a `Classifier`, or a module that maps images within [0, 1] to logits. It is attacked in evaluation
                mode with frozen weights, and left exactly as it was. An optimised copy is attacked (see
                `casemate.models.accel.freeze`); every success is verified on the model itself.
            images: `(n, channels, height, width)` within the model's bounds, as a tensor or array of any floating-point
                type, or as bytes (uint8), which are scaled to [0, 1].
            labels: the true classes, whole numbers `(n,)`, as a tensor, an array or a list; or a criterion, such as
                `TopK(labels, k=5)`, that says otherwise when an image counts as fooled.
            targets: the classes to reach, for a targeted attack, like `labels`; none of them may be the true one.
            mask: which values the attack may change: booleans, or 0 and 1, of any shape that broadcasts to that of the
                images, such as `(height, width)` or `(n, 1, height, width)`. The others keep their value exactly, and
                the ball is that of the values that may change. None: all may. An image whose mask is False everywhere
                is not attacked, and has the status ZERO_GRADIENT unless it is misclassified as it is.
            levels: the images returned have values on a grid from the lower to the upper bound with this number of
                levels, 256 for 8 bits; they are inside the ball, and verified so. An image around which no image on
                the grid lies in the ball, or whose fixed values are not on it, is returned as it is, with the status
                OFF_GRID and a warning. None: no grid.
            seed: of all random draws; they are keyed by example, so `batch_size` does not change them.
            index: the numbers of the images in their data set, which key their draws, int64 `(n,)`; from 0 if None.
            batch_size: images that pass through the network at a time, halved when memory runs out. If None, measured
                for a long attack, else a default. A model that is frozen already keeps its own.
            observer: receives the progress.

        Raises:
            ShapeError: images, labels or targets that the model does not take; a mask of another shape.
            DataError: images, labels, targets or a mask that are no numbers, or of a wrong type.
            ModelError: what is no module, or a network that fails or returns no logits.
            SettingError: a target that is the true class; targets for an attack that cannot be targeted, or with a
                criterion; a criterion for an attack that goes through the classes; a loss or a criterion of one's own
                that does not give one differentiable number per image; a mask for an attack that cannot have one; fewer
                than two levels; a batch size below 1.
            MachineError: not even one image at a time fits into memory.
        """
        model = as_model(model)
        known = model_of(model)
        if labels is None:
            raise DataError(
                f"{type(self).__name__} got images without labels; give the true classes too. A DataLoader or a "
                "Dataset is read by casemate.data.as_labelled: attack(model, *as_labelled(loader).tensors())"
            )
        images = as_images(images, known)
        if isinstance(labels, Criterion):
            check_pixels(known, images)
            whole = _own_criterion(self, labels, len(images), len(known.classes), targets)
            labels = whole.classes
        else:
            labels = as_labels(labels)
            check_images(known, images, labels)
            whole = Misclassification(normal_tensor(labels))
        ball = self.ball()
        batch_size = at_least(1).check_optional(batch_size, "batch_size")
        if targets is not None and not is_targetable(self):
            raise SettingError(f"{name_of(self)} cannot be targeted; leave out the targets, or use PGD or APGD")
        if targets is not None:
            targets = as_labels(targets)
            check_images(known, images, targets)
            if (targets.cpu() == labels.cpu()).any():
                raise SettingError("a target equals the true label; choose another class for every image")
            whole = Misclassification(normal_tensor(targets), targeted=True)
        numbers = torch.arange(len(images)) if index is None else as_tensor(index, "index")
        if numbers.shape != images.shape[:1] or numbers.dtype != torch.int64:
            raise ShapeError(
                f"index of type {numbers.dtype} and shape {tuple(numbers.shape)}; expected {len(images)} int64"
            )
        if not len(images):
            raise ShapeError("no images to attack; expected at least one")
        allowed = None
        if mask is not None:
            if not innermost(self).maskable:
                raise SettingError(f"{name_of(self)} moves all pixels of an image; leave out the mask, or use PGD")
            allowed = as_mask(mask, images)
        grid = None if levels is None else Grid(known.bounds, levels)
        labels = normal_tensor(labels)
        most = self.max_passes(len(known.classes))
        with (
            user_call(known, ball, seed=seed) as call,
            prepare_for_attack(
                model,
                images,
                pass_size=batch_size,
                passes=None if most is None else len(images) * most.total,
                observer=observer,
            ) as prepared,
            observer.work(type(self).__name__, len(images)) as advance,
        ):

            def attack(group: slice) -> tuple[tuple[Tensor, ...], Passes]:
                clean = prepare_images(images[group], known)
                truth = labels[group].to(known.device)
                criterion = whole[group].to(known.device)
                if allowed is not None:
                    criterion = criterion.with_changes(mask=allowed[group].to(known.device))
                streams = Streams(derive(seed, stream_key(self)), numbers[group].to(known.device))
                counted = _CountingProgress(advance)
                found = self._attack(prepared, clean, criterion, streams, counted, grid)
                success = criterion.is_adversarial(found.logits) & found.possible
                status = status_of(success, found.finite, found.has_gradient)
                status[~found.possible] = Status.OFF_GRID
                if criterion.by_class:
                    loss = stable_cross_entropy(found.logits, truth)
                else:
                    loss = criterion.checked_margin(found.logits)
                advance(len(clean) - counted.done, "")
                columns = (found.images, found.logits.argmax(1), success, status, loss, found.norm)
                return columns, found.passes

            parts = batched(len(images), group_size(known.input_shape), attack, observer)
        adversarial, prediction, success, status, loss, norms = (
            torch.cat(column).to(images.device) for column in zip(*(columns for columns, _ in parts), strict=True)
        )
        total = Passes()
        for _, passes in parts:
            total.add(passes)
        share = None if allowed is None else free_share(allowed)
        _warn_of(self, status, call, share)
        return AttackResult(
            adversarial=adversarial,
            prediction=prediction,
            success=success,
            status=status,
            loss=loss,
            norm=norms,
            passes=total,
            attack=self.record() | ({} if whole.by_class else {"criterion": whole.record()}),
            clean=images,
            labels=labels,
            free_share=share,
        )


def _recorded(value: Any) -> Any:
    """The value of a field as results record it, where the field says nothing else."""
    return function_record(value) if callable(value) else value


def _own_criterion(
    attack: AbstractAttack, given: Criterion, count: int, classes: int, targets: Array | None
) -> Criterion:
    """A criterion that a user gave, for the images of a call. Raises `SettingError` or `ShapeError`; see there."""
    name, instead = type(given).__name__, innermost(attack).without_classes
    if targets is not None:
        raise SettingError(
            f"targets together with the criterion {name}, which says alone what counts as fooled; leave one of them out"
        )
    if instead and not given.by_class:
        raise SettingError(
            f"{name_of(attack)} goes through the wrong classes one after the other, which the criterion {name} does "
            f"not have; take {instead}"
        )
    return given.for_images(count, classes)


def _warn_of(attack: AbstractAttack, status: Tensor, call: UserCall, share: PerExample | None) -> None:
    """Warn of images that count as robust only because the attack failed; see `UserCall.warn_of_failures`.

    Those whose mask lets no value change, by `share`, are not among them; and with a mask no attack is sure to find
    something at whatever distance.
    """
    if share is not None:
        status = status[share > 0]
    found = {each: int((status == each).sum()) for each in Status}
    call.warn_of_failures(
        name_of(attack),
        len(status),
        no_gradient=found[Status.ZERO_GRADIENT],
        not_finite=found[Status.NON_FINITE],
        not_found=found[Status.FAILED] if is_unlimited(attack) and share is None else 0,
        off_grid=found[Status.OFF_GRID],
    )


@dataclass(frozen=True, kw_only=True)
class AbstractMinimumNormAttack(AbstractAttack):
    """An attack that searches for the nearest adversarial image: one run gives the accuracy at every eps.

    Its result is `AttackResult.distance`. It returns the nearest adversarial image found, or the clean image if none
    was.
    """

    supports_low_precision: ClassVar[bool] = False

    norm: AnyNorm
    """The norm of the perturbation that is minimised."""


A = TypeVar("A", bound=AbstractAttack)


def as_attack(given: Any, kind: type[A] = AbstractAttack) -> A:
    """The attack that a caller gave, of a class derived from `kind`.

    Raises `SettingError` for anything else, such as an attack's class or name.
    """
    if isinstance(given, kind):
        return given
    expected = "an attack, such as PGD(eps='8/255')"
    if kind is not AbstractAttack:
        expected = "an attack that follows gradients within a ball, such as PGD(eps='8/255')"
    raise SettingError(f"{kind_of(given)} as an attack; expected {expected}")


def with_eps(attack: A, eps: float) -> A:
    """A copy of the attack with another eps, also in attacks that it wraps; default step sizes scale with eps.

    An attack without eps, such as a minimum-norm one, is returned unchanged.
    """
    values = {field.name: getattr(attack, field.name) for field in fields(attack)}
    inner = {name: with_eps(value, eps) for name, value in values.items() if isinstance(value, AbstractAttack)}
    if inner:
        return replace(attack, **inner)
    return replace(attack, eps=eps) if "eps" in values else attack  # type: ignore[call-arg]


def innermost(attack: AbstractAttack) -> AbstractAttack:
    """The attack that a wrapper such as `Restarts` wraps, at any depth; the attack itself if it wraps none."""
    inner = [
        value
        for value in (getattr(attack, field.name) for field in fields(attack))
        if isinstance(value, AbstractAttack)
    ]
    return innermost(inner[0]) if inner else attack


def name_of(attack: AbstractAttack) -> str:
    """Class name of the innermost attack, for messages."""
    return type(innermost(attack)).__name__


def stream_key(attack: AbstractAttack) -> str:
    """The name that keys an attack's random draws together with the seed; a wrapper has that of the wrapped attack."""
    return innermost(attack).stream or name_of(attack)


def is_targetable(attack: AbstractAttack) -> bool:
    """Whether an attack, and the one it wraps, can be targeted."""
    return attack.targetable and innermost(attack).targetable


def is_unlimited(attack: AbstractAttack) -> bool:
    """Whether it is a minimum-norm attack, with no limit on the distance, that does not use a substitute model.

    Such an attack should succeed on every image.
    """
    on_substitute = any(isinstance(getattr(attack, field.name), nn.Module) for field in fields(attack))
    return isinstance(innermost(attack), AbstractMinimumNormAttack) and not on_substitute
