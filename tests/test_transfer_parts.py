"""Parts of the gradient loop for transfer: each against a few lines of plain PyTorch, alone and together."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    EOT,
    FGSM,
    MIFGSM,
    PARTS,
    PGD,
    AbstractGradientAttack,
    InputDiversity,
    Momentum,
    Nesterov,
    Restarts,
    ScaledCopies,
    Transferable,
    TranslationKernel,
    VarianceTuning,
    sweep_eps,
    sweep_steps,
    with_eps,
)
from casemate.attacks.gradient import to_last_iterate, with_steps
from casemate.attacks.parts import Part
from casemate.errors import SettingError
from casemate.models import Classifier
from casemate.norms import Ball, Norm
from casemate.rng import Streams, derive
from oracles import (
    PIXELS,
    SHAPE,
    Counting,
    as_installed,
    check_approaches_target,
    check_inside,
    check_nothing_at_zero,
    classifier,
    generator,
    network,
    small_task,
)

TASK = small_task(1, count=12)
EPS, STEPS, SEED = 0.2, 4, 3
INNER = MIFGSM(eps=EPS, steps=STEPS, loss="torch-ce", keep="last")
ALL: tuple[Part, ...] = (
    Nesterov(),
    ScaledCopies(copies=3),
    InputDiversity(probability=0.7, smallest=0.5),
    TranslationKernel(size=3),
    VarianceTuning(samples=3),
)
CHOICES: dict[str, tuple[Part, ...]] = {
    "nesterov": (Nesterov(),),
    "copies": (ScaledCopies(copies=3),),
    "diversity": (InputDiversity(probability=0.7, smallest=0.5),),
    "kernel": (TranslationKernel(size=3, sigma=0.8),),
    "variance": (VarianceTuning(samples=3),),
    "si-ni": (ScaledCopies(), Nesterov()),
    "vni": (VarianceTuning(samples=2, beta=0.5), Nesterov()),
    "all": ALL,
}


def run(attack: AbstractGradientAttack, **options: Any) -> Tensor:
    """The adversarial images of the task, with a fixed seed."""
    options.setdefault("seed", SEED)
    return attack(TASK.model, TASK.images, TASK.labels, **options).adversarial


# ------------------------------------------------------------------------------------------------------- by hand


def shrunk(images: Tensor, part: InputDiversity, draws: Tensor) -> Tensor:
    """One image after the other, by PyTorch's own resizing and padding."""
    changed = []
    for image, (applied, size, top, left) in zip(images, draws.double().tolist(), strict=True):
        height, width = image.shape[1:]
        least = max(1, int(part.smallest * height)), max(1, int(part.smallest * width))
        inner = tuple(low + int(size * (side - low)) for low, side in zip(least, (height, width), strict=True))
        above, before = int(top * (height - inner[0] + 1)), int(left * (width - inner[1] + 1))
        small = F.interpolate(image.unsqueeze(0), size=inner, mode="nearest")[0]
        padded = F.pad(small, (before, width - inner[1] - before, above, height - inner[0] - above))
        changed.append(padded if applied < part.probability else image)
    return torch.stack(changed)


def by_hand(
    parts: tuple[Part, ...],
    *,
    decay: float | None = 1.0,
    step: float = EPS / STEPS,
    targets: Tensor | None = None,
    stream: str = "MIFGSM",
) -> Tensor:
    """The attack written down as in the papers, without the library's loop; it shares only the random numbers."""
    streams = Streams(derive(SEED, stream), torch.arange(len(TASK.images)))
    chosen = {type(each): each for each in parts}
    copies: Any = chosen.get(ScaledCopies, ScaledCopies(copies=1))
    sign, classes = (1, TASK.labels) if targets is None else (-1, targets)

    def gradient_at(images: Tensor, *key: int | str) -> Tensor:
        total = torch.zeros_like(images)
        for number in range(copies.copies):
            leaf = images.clone().requires_grad_(True)
            seen = leaf / 2**number
            diversity: Any = chosen.get(InputDiversity)
            if diversity is not None:
                seen = shrunk(seen, diversity, streams.uniform((4,), "diversity", *key, number))
            loss = sign * F.cross_entropy(TASK.model.network(seen), classes, reduction="sum")
            total += torch.autograd.grad(loss, leaf)[0] / copies.copies
        kernel: Any = chosen.get(TranslationKernel)
        if kernel is None:
            return total
        radius = kernel.size // 2
        sigma = radius / 3**0.5 if kernel.sigma is None else kernel.sigma
        rows, columns = torch.meshgrid(*[torch.arange(-radius, radius + 1).double()] * 2, indexing="ij")
        weights = torch.exp(-(rows**2 + columns**2) / (2 * sigma**2))
        return F.conv2d(total, (weights / weights.sum()).view(1, 1, kernel.size, kernel.size), padding=radius)

    images, momentum = TASK.images.clone(), torch.zeros_like(TASK.images)
    variance = torch.zeros_like(images)
    tuning: Any = chosen.get(VarianceTuning)
    for number in range(STEPS):
        # mean absolute value 1 per gradient
        ahead = images + step * (decay or 0) * momentum * PIXELS if Nesterov in chosen else images
        gradient = gradient_at(ahead, "step", 0, number)
        corrected = gradient + variance
        if tuning is not None:
            around = torch.zeros_like(images)
            for sample in range(tuning.samples):
                key = "around", 0, number, sample
                noise = 2 * streams.uniform(SHAPE, *key) - 1
                around += gradient_at(images + tuning.beta * EPS * noise, *key) / tuning.samples
            variance = around - gradient
        if decay is not None:
            length = corrected.abs().sum((1, 2, 3), keepdim=True)
            momentum = decay * momentum + corrected / length
            corrected = momentum
        moved = images + step * corrected.sign()
        images = torch.minimum(torch.maximum(moved, TASK.images - EPS), TASK.images + EPS).clamp(0, 1)
    return images


def check_by_hand(name: str, *, targeted: bool = False) -> None:
    """The library's images are those made by hand."""
    targets = (TASK.labels + 2) % 4 if targeted else None
    found = run(Transferable(attack=INNER, parts=CHOICES[name]), targets=targets)
    assert torch.allclose(found, by_hand(CHOICES[name], targets=targets), rtol=0, atol=1e-7)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", CHOICES)
def test_every_part_and_all_together_are_what_was_written_by_hand(name: str, targeted: bool) -> None:
    check_by_hand(name, targeted=targeted)


@pytest.mark.parametrize("name", CHOICES)
def test_every_part_changes_the_images(name: str) -> None:
    assert not torch.equal(run(Transferable(attack=INNER, parts=CHOICES[name])), run(INNER))


def test_without_momentum_too() -> None:
    parts = tuple(each for each in ALL if not isinstance(each, Nesterov))
    inner = BIM(eps=EPS, steps=STEPS, step_size=0.07, loss="torch-ce", keep="last")
    found = run(Transferable(attack=inner, parts=parts))
    assert torch.allclose(found, by_hand(parts, decay=None, step=0.07, stream="BIM"), rtol=0, atol=1e-7)


def test_momentum_makes_mifgsm_of_bim() -> None:
    bim = BIM(eps=EPS, steps=STEPS, step_size=EPS / STEPS, loss="torch-ce", keep="last")
    assert torch.equal(run(Transferable(attack=bim, parts=(Momentum(),))), run(INNER))
    found = run(Transferable(attack=bim, parts=(Momentum(decay=0.5), Nesterov())))
    assert torch.allclose(found, by_hand((Nesterov(),), decay=0.5), rtol=0, atol=1e-7)


# --------------------------------------------------------------------------------------------------- single parts


def test_a_shrunk_image_is_pytorchs_own() -> None:
    part = InputDiversity(probability=0.6, smallest=0.3)
    images = torch.rand(200, 2, 9, 13, generator=generator(0))
    streams = Streams(5, torch.arange(200))
    found = part.transform(images, (0.0, 1.0), streams, "x")
    assert torch.equal(found, shrunk(images, part, streams.uniform((4,), "x")))
    changed = (found != images).flatten(1).any(1).double().mean()
    assert 0.45 < changed < 0.75
    lower = part.transform(images - 2, (-2.0, 1.0), streams, "x")
    assert torch.allclose(lower, found - 2, atol=1e-6)


def test_a_shrunk_image_is_everywhere_and_of_every_size() -> None:
    part = InputDiversity(probability=1.0, smallest=0.7)
    found = part.transform(torch.ones(3000, 1, 10, 10), (0.0, 1.0), Streams(1, torch.arange(3000)), "x")[:, 0]
    sizes = found.amax(2).sum(1)
    assert set(sizes.tolist()) == {7, 8, 9}
    first = found.amax(2).argmax(1)
    assert set(first[sizes == 7].tolist()) == {0, 1, 2, 3}
    assert {int((sizes == size).sum()) // 100 for size in (7, 8, 9)} <= set(range(8, 12))


def test_copies_are_darker_in_any_bounds() -> None:
    images = torch.rand(3, 1, 4, 4, generator=generator(1))
    part = ScaledCopies()
    assert torch.equal(part.scaled(images, 3, (0.0, 1.0)), images / 8)
    assert torch.allclose(part.scaled(2 * images - 1, 3, (-1.0, 1.0)), 2 * images / 8 - 1)


def test_the_kernel_spreads_a_single_pixel_as_a_gaussian_and_channels_stay_apart() -> None:
    gradient = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    gradient[0, 1, 4, 4] = 1
    found = TranslationKernel(size=5, sigma=1.5).smooth(gradient)
    assert found[0, 0].eq(0).all()
    assert found.sum() == pytest.approx(1)
    assert float(found[0, 1, 4, 4] / found[0, 1, 3, 6]) == pytest.approx(2.718281828459045 ** ((1 + 4) / (2 * 1.5**2)))
    assert found[0, 1, 1].eq(0).all()
    paper = TranslationKernel(size=5).smooth(gradient)
    assert torch.allclose(paper, TranslationKernel(size=5, sigma=2 / 3**0.5).smooth(gradient))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_look_ahead_is_one_step_for_every_gradient(norm: Norm) -> None:
    """Of two equal gradients, accumulated: two steps, in the mean of absolute values, the L2 or the L1 norm."""
    gradient = torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator(2))
    velocity = 2 * gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
    moved = Nesterov().look_ahead(torch.zeros_like(gradient), velocity, Ball(eps=1, norm=norm), 0.1).flatten(1)
    length = moved.abs().mean(1) if norm == "linf" else moved.norm(p=int(norm[1]), dim=1)
    assert torch.allclose(length, torch.full((3,), 0.2, dtype=torch.float64))
    assert torch.allclose(F.cosine_similarity(moved, gradient.flatten(1)), torch.ones(3, dtype=torch.float64))
    still = Nesterov().look_ahead(gradient, torch.zeros_like(gradient), Ball(eps=1, norm=norm), 0.1)
    assert torch.equal(still, gradient)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_neighbours_fill_the_neighbourhood_also_beyond_the_bounds(norm: Norm) -> None:
    images = torch.ones(400, *SHAPE)
    ball = Ball(eps=0.5, norm=norm)
    found = VarianceTuning(beta=2.0).neighbour(images, ball, Streams(1, torch.arange(400)), "x")
    length = (found - images).flatten(1).norm(p=float("inf") if norm == "linf" else int(norm[1]), dim=1)
    assert length.max() <= 1 + 1e-5
    assert length.mean() > 0.9
    assert found.max() > 1


# ----------------------------------------------------------------------------------------------------- identities

IDENTITIES: dict[str, tuple[AbstractGradientAttack, tuple[Part, ...]]] = {
    "kernel of one pixel": (INNER, (TranslationKernel(size=1),)),
    "one copy": (INNER, (ScaledCopies(copies=1),)),
    "never diverse": (INNER, (InputDiversity(probability=0),)),
    "images of full size": (INNER, (InputDiversity(probability=1, smallest=1),)),
    "no samples": (INNER, (VarianceTuning(samples=0),)),
    "no decay": (replace(INNER, decay=0.0), (Nesterov(),)),
    "no parts": (INNER, ()),
    "first step": (FGSM(eps=EPS), (Momentum(), Nesterov(), VarianceTuning())),
    "all of them": (
        replace(INNER, decay=0.0),
        (
            Nesterov(),
            ScaledCopies(copies=1),
            InputDiversity(probability=0),
            TranslationKernel(size=1),
            VarianceTuning(samples=0),
        ),
    ),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_parts_that_do_nothing_change_no_bit(name: str) -> None:
    inner, parts = IDENTITIES[name]
    assert torch.equal(run(Transferable(attack=inner, parts=parts)), run(inner))


def test_no_samples_change_nothing_where_images_leave_as_they_are_fooled() -> None:
    inner = MIFGSM(eps=0.2)
    plain = inner(MANY.model, MANY.images, MANY.labels)
    found = Transferable(attack=inner, parts=(VarianceTuning(samples=0),))(MANY.model, MANY.images, MANY.labels)
    assert plain.success.sum() > 0
    assert torch.equal(found.adversarial, plain.adversarial)


def test_neighbours_at_the_iterate_itself_correct_nothing_but_the_look_ahead() -> None:
    near = VarianceTuning(samples=1, beta=0)
    assert torch.allclose(run(Transferable(attack=INNER, parts=(near,))), run(INNER), rtol=0, atol=1e-9)


# ----------------------------------------------------------------------------------------------------- properties

VARIED: list[AbstractGradientAttack] = [
    Transferable(attack=PGD(eps=0.1, steps=3, restarts=2), parts=(Momentum(), *ALL)),
    Transferable(attack=PGD(eps=0.5, steps=3, norm="l2"), parts=(Momentum(), *ALL)),
    Transferable(attack=MIFGSM(eps=2.0, steps=3, norm="l1"), parts=ALL),
    Transferable(attack=FGSM(eps=0.1), parts=ALL[1:]),
    Transferable(attack=EOT(attack=BIM(eps=0.1, steps=3), eot_samples=2), parts=ALL[1:]),
    EOT(attack=Transferable(attack=MIFGSM(eps=0.1, steps=3), parts=ALL), eot_samples=2),
]
MANY = small_task(2)


@pytest.mark.parametrize("attack", VARIED, ids=lambda attack: attack.ball().norm)
def test_neither_batch_nor_company_matter(attack: AbstractGradientAttack) -> None:
    whole = attack(MANY.model, MANY.images, MANY.labels, seed=4)
    parts = attack(MANY.model, MANY.images, MANY.labels, seed=4, batch_size=7)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-7)
    assert whole.passes == parts.passes
    last = slice(20, 30)
    alone = attack(MANY.model, MANY.images[last], MANY.labels[last], seed=4, index=torch.arange(20, 30))
    assert torch.allclose(whole.adversarial[last], alone.adversarial, rtol=0, atol=1e-7)
    check_inside(attack, whole, MANY.images)
    assert not torch.equal(attack(MANY.model, MANY.images, MANY.labels, seed=5).adversarial, whole.adversarial)


@pytest.mark.parametrize("attack", VARIED, ids=lambda attack: attack.ball().norm)
def test_the_loss_rises(attack: AbstractGradientAttack) -> None:
    found = to_last_iterate(attack)(MANY.model, MANY.images, MANY.labels)
    with torch.no_grad():
        before = F.cross_entropy(MANY.model(MANY.images), MANY.labels, reduction="none")
    assert (found.loss > before).double().mean() > 0.9


def test_a_target_is_approached_and_nothing_happens_at_eps_zero() -> None:
    check_approaches_target(Transferable(attack=MIFGSM(eps=0.2), parts=ALL[:3]), small_task(scale=3.0))
    check_nothing_at_zero(lambda eps: Transferable(attack=MIFGSM(eps=eps), parts=ALL), MANY)


@pytest.mark.parametrize("attack", VARIED, ids=lambda attack: attack.ball().norm)
@pytest.mark.parametrize("never", [False, True])
def test_passes_are_what_the_network_sees(attack: AbstractGradientAttack, never: bool) -> None:
    counted = Counting(MANY.model.network)
    attack = to_last_iterate(attack) if never else attack
    found = attack(classifier(counted, classes=4), MANY.images, MANY.labels, batch_size=16)
    assert (found.passes.forward, found.passes.backward) == (counted.forwards, counted.backwards)


def test_an_image_that_is_fooled_leaves_with_the_iterate_that_fools() -> None:
    """The iterates are classified themselves, not what the parts make of them."""
    attack = Transferable(attack=MIFGSM(eps=0.2), parts=ALL)
    found = attack(MANY.model, MANY.images, MANY.labels)
    wrong = MANY.model(MANY.images).argmax(1) != MANY.labels
    assert wrong.any()
    assert torch.equal(found.adversarial[wrong], MANY.images[wrong])
    assert found.success.sum() > wrong.sum()
    whole = to_last_iterate(attack)(MANY.model, MANY.images, MANY.labels)
    assert found.passes.total < whole.passes.total


def test_sweeps_are_the_attack_run_by_itself() -> None:
    attack = Transferable(attack=BIM(eps=0.1, steps=4, step_size=0.03), parts=(Momentum(), *ALL))
    data = MANY.images, MANY.labels
    by_eps = sweep_eps(attack, MANY.model, *data, [0.0, 0.05, 0.1], seed=3)
    by_steps = sweep_steps(attack, MANY.model, *data, [0, 1, 2, 4], seed=3)
    for sweep, change in ((by_eps, with_eps), (by_steps, lambda each, steps: with_steps(each, int(steps)))):
        for column, value in enumerate(sweep.values):
            if value:
                alone = to_last_iterate(change(attack, value))(MANY.model, *data, seed=3)  # type: ignore[operator]
                assert sweep.last is not None
                assert torch.allclose(sweep.last.loss[:, column], alone.loss, atol=1e-5)
    worst = sweep_eps(attack, MANY.model, *data, [0.05, 0.1], seed=3, only_worst=True)
    assert torch.equal(worst.worst, by_eps.worst[:, 1:])


def test_random_parts_are_worth_restarts() -> None:
    parts = (InputDiversity(probability=1.0, smallest=0.5),)
    found = Restarts(attack=Transferable(attack=BIM(eps=0.1, steps=3), parts=parts), restarts=3)
    once = replace(found, restarts=1)(MANY.model, MANY.images, MANY.labels)
    assert (found(MANY.model, MANY.images, MANY.labels).success | ~once.success).all()
    with pytest.raises(SettingError, match="would repeat the same run"):
        Restarts(attack=Transferable(attack=BIM(eps=0.1), parts=(ScaledCopies(),)))


def test_expectation_over_transformation_draws_anew() -> None:
    """The mean over many draws of input diversity hardly depends on the seed; a single draw does."""
    parts = (InputDiversity(probability=1.0, smallest=0.4),)

    def spread(samples: int) -> float:
        attack = EOT(
            attack=Transferable(attack=FGSM(eps=0.1, norm="l2", keep="last"), parts=parts), eot_samples=samples
        )
        one, other = (run(attack, seed=seed) - TASK.images for seed in (1, 2))
        return float((one - other).flatten(1).norm(dim=1).mean())

    assert spread(60) < 0.4 * spread(1)


# ------------------------------------------------------------------------------------------------ settings, record


def test_the_record_is_json_and_the_order_has_no_meaning() -> None:
    attack = Transferable(attack=MIFGSM(eps=0.1), parts=(VarianceTuning(samples=5), Nesterov()))
    assert attack == Transferable(attack=MIFGSM(eps=0.1), parts=(Nesterov(), VarianceTuning(samples=5)))
    record = json.loads(json.dumps(attack.record()))
    assert record["attack"] == MIFGSM(eps=0.1).record()
    assert record["parts"] == [{"name": "Nesterov"}, {"name": "VarianceTuning", "samples": 5, "beta": 1.5}]
    assert with_eps(attack, 0.2) == replace(attack, attack=MIFGSM(eps=0.2))
    with as_installed():
        assert Transferable(attack=MIFGSM(eps=0.1), parts=ScaledCopies()).parts == (ScaledCopies(),)  # type: ignore[arg-type]


def test_defaults_are_the_papers() -> None:
    assert Momentum().decay == 1
    assert (InputDiversity().probability, InputDiversity().smallest) == (0.5, 0.9)
    assert ScaledCopies().copies == 5
    assert (TranslationKernel().size, TranslationKernel().sigma) == (15, None)
    assert (VarianceTuning().samples, VarianceTuning().beta) == (20, 1.5)
    assert len(PARTS) == 6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Transferable(attack=BIM(eps=0.1), parts=(Nesterov(),)), "Nesterov for an attack without momentum"),
        (lambda: Transferable(attack=INNER, parts=(Momentum(),)), "MIFGSM, which has its own, with decay = 1.0"),
        (lambda: Transferable(attack=INNER, parts=(Nesterov(), Nesterov())), "parts: Nesterov more than once"),
        (
            lambda: Transferable(attack=INNER, parts=cast(Any, ("nesterov",))),
            r"parts: .*expected one or several of Momentum\(\)",
        ),
        (lambda: Transferable(attack=INNER, parts=cast(Any, Nesterov)), "parts: .*expected one or several of"),
        (
            lambda: Transferable(attack=Transferable(attack=INNER, parts=()), parts=(ScaledCopies(),)),
            "Transferable of Transferable",
        ),
        (
            lambda: EOT(attack=Transferable(attack=EOT(attack=INNER), parts=(ScaledCopies(),))),
            "EOT of EOT; expected one EOT",
        ),
        (
            lambda: Transferable(attack=cast(Any, None), parts=(Nesterov(),)),
            "expected an attack that follows gradients",
        ),
        (lambda: TranslationKernel(size=4), "size = 4; expected an odd number"),
        (lambda: TranslationKernel(sigma=0.0), "sigma = 0.0; expected positive"),
        (lambda: ScaledCopies(copies=0), "copies = 0; expected at least 1"),
        (lambda: InputDiversity(probability=1.5), "probability = 1.5; expected from 0 to 1"),
        (lambda: InputDiversity(smallest=0.0), "smallest = 0.0; expected above 0"),
        (lambda: VarianceTuning(samples=-1), "samples = -1; expected at least 0"),
        (lambda: VarianceTuning(beta=-1.0), "beta = -1.0; expected zero or more"),
        (lambda: Momentum(decay=-1.0), "decay = -1.0; expected zero or more"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        make()


# -------------------------------------------------------------------------------------------------------- mutants

MUTANTS: dict[str, tuple[str, type, str, Callable[..., Any]]] = {
    "a look-ahead that is left out": ("nesterov", Nesterov, "look_ahead", lambda self, images, *rest: images),
    "a look-ahead with the printed norm": (
        "nesterov",
        Nesterov,
        "look_ahead",
        lambda self, images, velocity, ball, length: images + length * velocity,
    ),
    "a look back": (
        "nesterov",
        Nesterov,
        "look_ahead",
        lambda self, images, velocity, ball, length: images - length * PIXELS * velocity,
    ),
    "copies of one scale": ("copies", ScaledCopies, "scaled", lambda self, images, copy, bounds: images),
    "copies by number": ("copies", ScaledCopies, "scaled", lambda self, images, copy, bounds: images / (copy + 1)),
    "one size for the whole batch": (
        "diversity",
        InputDiversity,
        "transform",
        lambda self, images, bounds, streams, *purpose: shrunk(
            images, self, streams.uniform((4,), *purpose)[:1].expand(len(images), 4)
        ),
    ),
    "a kernel left out": ("kernel", TranslationKernel, "smooth", lambda self, gradient: gradient),
    "a flat kernel": ("kernel", TranslationKernel, "smooth", lambda self, gradient: F.avg_pool2d(gradient, 3, 1, 1)),
    "neighbours that are the iterate": (
        "variance",
        VarianceTuning,
        "neighbour",
        lambda self, images, *rest, mask: images,
    ),
    "neighbours within the bounds": (
        "variance",
        VarianceTuning,
        "neighbour",
        lambda self, images, ball, streams, *purpose, mask: replace(ball, eps=self.beta * ball.eps).sample(
            images, (0.0, 1.0), streams, *purpose
        ),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("together", [False, True])
def test_a_broken_part_fails(name: str, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, kind, method, broken = MUTANTS[name]
    monkeypatch.setattr(kind, method, broken)
    with pytest.raises(AssertionError):
        check_by_hand("all" if together else alone)


def test_parts_make_images_that_transfer_more() -> None:
    """From a substitute whose gradients are rough, those of smoothed and tuned gradients fool another model more."""

    class Rough(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images + 0.02 * torch.sin(150 * images))

    task = small_task(1, count=60, scale=3.0)
    rough: Classifier = classifier(Rough(network(1, scale=3.0)), classes=4)
    inner = MIFGSM(eps=0.1, keep="last")
    plain, tuned = (
        attack(rough, task.images, task.labels).adversarial
        for attack in (inner, Transferable(attack=inner, parts=(VarianceTuning(),)))
    )
    fooled = [int((task.model(each).argmax(1) != task.labels).sum()) for each in (plain, tuned)]
    assert fooled[1] > fooled[0]
