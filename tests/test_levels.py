"""Images on a grid of levels: exact values, inside the ball, verified as they are, and as many successes as rounding
leaves possible.
"""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from casemate.attacks import BIM, FGSM, FMN, PGD, AbstractAttack, Passes, SparseRS, Status, SurFree, verify
from casemate.attacks.levels import Grid
from casemate.attacks.verify import verify_candidates
from casemate.cli.attack import pictures as png
from casemate.cli.main import main
from casemate.data import to_float
from casemate.errors import CasemateWarning, SettingError
from casemate.models import Classifier, ModelMetadata, save
from casemate.norms import Ball, Bounds, Norm, norm_of
from conftest import tiny_images, tiny_model
from oracles import SHAPE, UNIT, classifier, generator, small_task
from test_carlini_wagner import linear
from test_every_attack import ATTACKS, quick

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
EACH = [name for name in ATTACKS if name != "auto-attack"]  # which takes long, and is made of others
quiet = pytest.mark.filterwarnings("ignore::casemate.errors.CasemateWarning")


def some_images(seed: int, count: int = 6, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Random images on the grid of bytes."""
    levels = torch.randint(256, (count, *shape), generator=generator(seed))
    return levels.float() / 255


def nearest(grid: Grid, images: Tensor) -> Tensor:
    """The images with every value replaced by the nearest of the grid, found by looking at all of them."""
    values = grid.values(images)
    return values[(images.flatten().unsqueeze(1) - values).abs().argmin(1)].view_as(images)


# ---------------------------------------------------------------------------------------------------------- the grid


def test_the_values_are_those_of_bytes() -> None:
    """Bit for bit, in both precisions, so that saving as bytes and loading again changes nothing."""
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(Grid(UNIT, 256).values(torch.zeros(1)), to_float(every.view(-1, 1, 1, 1)).flatten())
    assert torch.equal(Grid(UNIT, 256).values(torch.zeros(1).double()), every.double() / 255)
    images = some_images(0)
    assert torch.equal(nearest(Grid(UNIT, 256), images), images)
    assert torch.equal((images * 255).round().to(torch.uint8).float() / 255, images)


@given(st.integers(2, 300), st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-2.1, 2.6)]))
def test_rounding_takes_the_nearest_value(levels: int, bounds: Bounds) -> None:
    grid, images = Grid(bounds, levels), torch.rand(2, *SHAPE, generator=generator(levels))
    images = bounds[0] + (bounds[1] - bounds[0]) * images
    values, anywhere = grid.values(images), Ball(norm="l2", eps=math.inf)
    found, possible = grid.round_into(images, torch.full_like(images, bounds[0]), anywhere)
    assert possible.all()
    assert torch.allclose(found, nearest(grid, images), atol=1e-6 * (bounds[1] - bounds[0]))
    assert torch.equal(grid.round_into(found, images, anywhere)[0], found)
    assert values[0] == torch.tensor(bounds[0])
    assert values[-1] == torch.tensor(bounds[1])


# ----------------------------------------------------------------------------------------------- rounding in the ball


def check_rounding(
    norm: Norm, eps: float, clean: Tensor, images: Tensor, slope: Tensor | None = None, levels: int = 256
) -> None:
    """Where an image on the grid lies in the ball, what comes back is one; where not, it is the clean image."""
    grid, ball = Grid(UNIT, levels), Ball(eps=eps, norm=norm)
    found, possible = grid.round_into(images, clean, ball, slope=slope)
    distance = norm_of(found.double() - clean.double(), norm)
    assert (distance <= ball.reach(UNIT)).all(), "left the ball"
    assert torch.equal(found[possible], nearest(grid, found[possible])), "not on the grid"
    assert torch.equal(found[~possible], clean[~possible])
    least = norm_of(nearest(grid, clean).double() - clean.double(), norm)
    assert torch.equal(possible, least <= ball.reach(UNIT)), "an image on the grid was overlooked, or invented"


@given(
    st.integers(0, 10_000),
    st.sampled_from(NORMS),
    st.sampled_from([0.0, 0.004, 8 / 255, 0.1, 0.5, 2.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([2, 5, 16, 256]),
)
def test_rounded_images_lie_on_the_grid_and_in_the_ball(
    seed: int, norm: Norm, eps: float, on_grid: bool, with_slope: bool, levels: int
) -> None:
    """Whatever the clean image, the norm and the slope."""
    clean = torch.rand(6, *SHAPE, generator=generator(seed))
    clean = nearest(Grid(UNIT, levels), clean) if on_grid else clean
    eps = float(int(40 * eps)) if norm == "l0" else eps
    wild = torch.rand(6, *SHAPE, generator=generator(seed + 1))
    images = Ball(eps=eps, norm=norm).project(wild, clean, UNIT)
    slope = torch.randn(6, *SHAPE, generator=generator(seed + 2)) if with_slope else None
    check_rounding(norm, eps, clean, images, slope, levels)


def test_images_in_the_ball_are_rounded_to_nearest_where_that_is_inside() -> None:
    clean = some_images(1)
    for norm, eps in (("linf", 0.1), ("l2", 9.0), ("l1", 99.0), ("l0", 36.0), ("linf", float("inf"))):
        images = (clean + 0.02 * torch.randn(clean.shape, generator=generator(2))).clamp(0, 1)
        found, possible = Grid(UNIT, 256).round_into(images, clean, Ball(eps=eps, norm=norm))  # type: ignore[arg-type]
        assert possible.all()
        assert torch.equal(found, nearest(Grid(UNIT, 256), images))


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.31), ("l1", 0.45), ("l0", 2.0), ("linf", 0.26)])
def test_the_best_rounding_of_a_few_values_by_trying_all(norm: Norm, eps: float) -> None:
    """With a slope, against all images on a coarse grid: of the ones in the ball at most a level's worth is lost."""
    grid, random = Grid(UNIT, 6), generator(4)
    every = torch.tensor(list(itertools.product(range(6), repeat=4))).float().div(5).double()
    worse = 0
    for _ in range(20):
        clean = nearest(grid, torch.rand(1, 1, 2, 2, generator=random))
        slope = torch.randn(1, 1, 2, 2, generator=random)
        ball = Ball(eps=eps, norm=norm)
        images = ball.ascend(slope, clean, clean, UNIT, eps)
        found, _ = grid.round_into(images, clean, ball, slope=slope)
        apart = norm_of((every - clean.double().flatten()).view(-1, 1, 2, 2), norm)
        worth = (every * slope.double().flatten()).sum(1).where(apart <= ball.reach(UNIT), -torch.inf)
        reached = (found * slope).double().sum()
        assert reached <= worth.max() + 1e-6
        assert reached >= worth.max() - 0.2 * slope.abs().max() - 1e-6
        worse += int(reached < worth.max() - 1e-6)
    assert worse <= 8


def test_in_l2_those_values_go_back_that_cost_least_for_what_they_save() -> None:
    """Two values rounded up beyond the ball; the slope prices the first dearly, and the second goes back."""
    clean = torch.zeros(1, 1, 1, 2)
    images = torch.tensor([[[[0.72, 0.68]]]])
    grid, ball = Grid(UNIT, 11), Ball(eps=1.0, norm="l2")
    dear, _ = grid.round_into(images, clean, ball, slope=torch.tensor([[[[9.0, 1.0]]]]))
    assert dear.flatten().tolist() == pytest.approx([0.8, 0.6])
    other, _ = grid.round_into(images, clean, ball, slope=torch.tensor([[[[1.0, 9.0]]]]))
    assert other.flatten().tolist() == pytest.approx([0.7, 0.7])


def test_fixed_values_stay_and_must_be_on_the_grid() -> None:
    clean = some_images(3)
    clean[0, 0, 2, 2] = 0.1234
    mask = torch.ones_like(clean, dtype=torch.bool)
    mask[:, :, 2, 2] = False
    images = torch.rand(clean.shape, generator=generator(5))
    for norm in NORMS:
        found, possible = Grid(UNIT, 256).round_into(images.where(mask, clean), clean, Ball(eps=30.0, norm=norm), mask)
        assert possible.tolist() == [False, *[True] * 5]
        assert torch.equal(found[:, :, 2, 2], clean[:, :, 2, 2])


# ------------------------------------------------------------------------------------------------------ every attack


@quiet
@pytest.mark.parametrize("name", EACH)
def test_every_attack_returns_images_on_the_grid_in_the_ball(name: str) -> None:
    images, labels = tiny_images(8).tensors()
    attack, model = quick(ATTACKS[name]), tiny_model()
    found = attack(model, images, labels, levels=16)
    off = found.status == Status.OFF_GRID
    grid, ball = Grid(UNIT, 16), attack.ball()
    assert torch.equal(found.adversarial[~off], nearest(grid, found.adversarial)[~off])
    assert torch.equal(found.adversarial[off], images[off])
    assert not found.success[off].any()
    distance = norm_of(found.adversarial.double() - images.double(), ball.norm)
    assert (distance <= ball.reach(UNIT)).all()
    assert torch.allclose(distance.float(), found.norm, atol=1e-6)
    with torch.no_grad():
        seen = model.eval()(found.adversarial).argmax(1)
    assert torch.equal(seen, found.prediction)
    assert torch.equal(found.success, (seen != labels) & ~off)


@quiet
@pytest.mark.parametrize("name", EACH)
def test_bytes_lose_nothing_of_what_an_attack_found(name: str) -> None:
    """Saved as bytes and loaded again, the images are the same, and so the predictions."""
    images, labels = tiny_images(8).tensors()
    found = quick(ATTACKS[name])(tiny_model(), images, labels, levels=256)
    assert not (found.status == Status.OFF_GRID).any()
    saved = (found.adversarial * 255).round().to(torch.uint8)
    assert torch.equal(to_float(saved), found.adversarial)


class NoGradient(nn.Module):
    """A linear classifier whose logits carry no gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """The logits alone."""
        with torch.no_grad():
            return self.inner(images)


class _ForwardOnly(torch.autograd.Function):
    """The identity, without a backward pass."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        """The same values."""
        return images.clone()


class BrokenGradient(nn.Module):
    """A network that fails when its gradient is computed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.inner(_ForwardOnly.apply(images))


def share_fooled(attack: AbstractAttack, hide: Callable[[nn.Module], nn.Module] | None = None) -> float:
    """Share of images on a coarse grid that an attack to the boundary of a linear classifier fools on that grid."""
    problem = linear(1)
    images = nearest(Grid(UNIT, 16), problem.images)
    with torch.no_grad():
        labels = problem.model(images).argmax(1)
    model = problem.model if hide is None else classifier(hide(problem.model.network))
    found = attack(model, images, labels, levels=16)
    return found.success.double().mean().item()


@quiet
def test_rounding_alone_undoes_attacks_and_the_gradient_restores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = FMN(norm="l2", steps=60)
    assert share_fooled(attack) == 1
    monkeypatch.setattr(
        verify, "restore", lambda model, classify, grid, images, rounded, *rest: (rounded, classify(rounded), Passes())
    )
    assert share_fooled(attack) < 0.9


@quiet
@pytest.mark.parametrize("hide", [NoGradient, BrokenGradient])
def test_without_a_gradient_values_are_rounded_away_from_the_clean_image(
    hide: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = SurFree(n_queries=300)
    assert share_fooled(attack, hide) > 0.9
    monkeypatch.setattr(
        verify, "restore", lambda model, classify, grid, images, rounded, *rest: (rounded, classify(rounded), Passes())
    )
    assert share_fooled(attack, hide) < 0.8


def test_bounds_other_than_zero_and_one_have_their_own_grid() -> None:
    inner = linear(2)
    model = Classifier(inner.model.network, input_shape=SHAPE, classes=("0", "1"), bounds=(-1.0, 3.0)).eval()
    grid = Grid((-1.0, 3.0), 9)
    images = nearest(grid, 4 * inner.images - 1)
    with torch.no_grad():
        labels = model(images).argmax(1)
    found = PGD(eps=1.0, steps=5)(model, images, labels, levels=9)
    assert torch.equal(found.adversarial, nearest(grid, found.adversarial))
    assert ((found.adversarial * 2).round() / 2 == found.adversarial).all()
    assert found.norm.max() <= 1.0


# --------------------------------------------------------------------------------------------- what cannot be reached


@pytest.mark.parametrize(
    ("norm", "eps", "possible"), [("linf", 0.001, False), ("l2", 0.001, False), ("l1", 0.01, False), ("l0", 3, False)]
)
def test_a_ball_without_an_image_on_the_grid_is_reported(norm: Norm, eps: float, possible: bool) -> None:
    """The clean images come back, none is a success, not even a misclassified one, and a warning counts them."""
    task = small_task(dtype=torch.float32)
    with pytest.warns(CasemateWarning, match="30 of 30 images have no image on the grid of levels in the ball of BIM"):
        found = BIM(eps=eps, norm=norm)(task.model, task.images, task.labels, levels=256)
    assert (found.status == Status.OFF_GRID).all()
    assert not found.success.any()
    assert torch.equal(found.adversarial, task.images)
    assert "no image on the grid 30 images" in repr(found)


def test_the_other_images_of_a_batch_are_attacked_all_the_same() -> None:
    task = small_task(dtype=torch.float32)
    images = nearest(Grid(UNIT, 256), task.images)
    images[4, 0, 0, :4] = 0.1234
    with torch.no_grad():
        labels = task.model(images).argmax(1)
    with pytest.warns(CasemateWarning, match="1 of 30 images have no image on the grid"):
        found = PGD(eps=3, norm="l0", steps=3)(task.model, images, labels, levels=256)
    alone = PGD(eps=3, norm="l0", steps=3)(task.model, images[5:], labels[5:], levels=256, index=torch.arange(5, 30))
    assert found.status[4] == Status.OFF_GRID
    assert (found.status == Status.OFF_GRID).sum() == 1
    assert torch.equal(found.adversarial[5:], alone.adversarial)
    assert (found.norm[5:] > 0).any()


@quiet
def test_masks_and_levels_go_together() -> None:
    task = small_task(dtype=torch.float32)
    images = nearest(Grid(UNIT, 256), task.images)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:5, 1:4] = True
    images[3, 0, 0, 0] = 0.4321
    for attack in (PGD(eps=16 / 255, steps=4), FMN(steps=10), SparseRS(eps=5, n_queries=20)):
        found = attack(task.model, images, task.labels, mask=mask, levels=256)
        assert torch.equal(found.adversarial.where(~mask, 0.0), images.where(~mask, 0.0))
        assert (found.status == Status.OFF_GRID).nonzero().flatten().tolist() == [3]
        rest = found.adversarial[found.status != Status.OFF_GRID]
        assert torch.equal(rest, nearest(Grid(UNIT, 256), rest))


@pytest.mark.parametrize("levels", [1, 0, -5])
def test_fewer_than_two_levels_are_refused(levels: int) -> None:
    task = small_task(dtype=torch.float32)
    with pytest.raises(SettingError, match=f"levels = {levels}; expected at least 2"):
        FGSM(eps=0.1)(task.model, task.images, task.labels, levels=levels)


# -------------------------------------------------------------------------------------------------------- the mutants


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_check_finds_rounding_without_the_ball(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_nearest(self: Grid, images: Tensor, clean: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return nearest(self, images), torch.ones(len(images), dtype=torch.bool)

    monkeypatch.setattr(Grid, "round_into", to_nearest)
    clean = torch.rand(6, *SHAPE, generator=generator(8))
    eps = {"linf": 0.05, "l2": 0.3, "l1": 1.0, "l0": 4.0}[norm]
    images = Ball(eps=eps, norm=norm).project(torch.rand(6, *SHAPE, generator=generator(9)), clean, UNIT)
    with pytest.raises(AssertionError):
        check_rounding(norm, eps, clean, images, levels=16)


def test_verification_finds_rounding_without_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Grid,
        "round_into",
        lambda self, images, *rest: (nearest(self, images), torch.ones(len(images), dtype=torch.bool)),
    )
    task = small_task(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="lies outside the ball"):
        verify_candidates(task.model, task.images, task.images, Ball(eps=0.01), UNIT, grid=Grid(UNIT, 8))


# --------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_png_files_hold_the_images_exactly(channels: int, bounds: Bounds, tmp_path: Path) -> None:
    grid = Grid(bounds, 256)
    raw = torch.rand(4, channels, 5, 7, generator=generator(1))
    images = nearest(grid, bounds[0] + (bounds[1] - bounds[0]) * raw)
    files = png.write_pngs(tmp_path / "new" / "folder", images, bounds)
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png", "00003.png"]
    read = png.read_pngs(files, channels)
    assert torch.equal(grid.values(images)[read.long()], images)


def test_images_that_no_png_holds_are_refused() -> None:
    with pytest.raises(SettingError, match="--png for images with 2 channels; a PNG file holds 1"):
        png.check_channels(2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_command_writes_reads_and_counts(norm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images, folder = tmp_path / "tiny.safetensors", tmp_path / "own.npz", tmp_path / "pictures"
    save(tiny_model(), model, ModelMetadata(architecture="tiny", dataset="digits"))
    pixels, labels = tiny_images(8).pixels, tiny_images(8).labels
    np.savez(images, images=pixels.numpy(), labels=labels.numpy())
    arguments = ["attack", "pgd", str(model), "--eps", "0.1", "0.3", "--norm", norm, "--steps", "3", "--json"]
    command = [*arguments, "--data", str(images), "--png", str(folder), "--mask-box", "1", "1", "6", "5"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["levels"] == 256
    assert found["mask"] == "1 1 6 5"
    for name in ("eps-0.1", "eps-0.3"):
        files = sorted((folder / name).iterdir())
        assert len(files) == 8
        read = to_float(png.read_pngs(files, 1))
        with torch.no_grad():
            fooled = int((tiny_model().eval()(read).argmax(1) != labels).sum())
        assert {"run": name, "fooled": fooled, "still_fool": fooled} in found["png"]
        assert torch.equal(read[:, :, 0], to_float(pixels)[:, :, 0])
    assert main(command) == 2
    assert "has files already" in capsys.readouterr().err
