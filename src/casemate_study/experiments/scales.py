"""The study's five scales (smoke, quick, medium, paper, full): how many images, epochs and settings each runs, in one
table. The report prints the same table.
"""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Literal, final

from casemate.errors import SettingError

EPS_GRID = (0.0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2)
"""The study's seven values of eps (Linf, pixels from 0 to 1), of which the paper names 0.05, 0.1 and 0.2."""


@final
@dataclass(frozen=True, kw_only=True)
class Scale:
    """One scale of the study: how much of everything a run at this scale computes."""

    name: str
    """Name for --scale on the command line."""
    purpose: str
    """What the scale is good for, in a sentence."""
    dataset: str
    """The data set that is used if --dataset names none."""
    train_images: int
    """Number of training images: a stratified draw from the training part, without the validation images."""
    validation_images: int
    """Images of the training part that choose epochs and recipes; nothing trains on them."""
    batch_size: int
    """Images per training step; small where training images are few: batch norm's averages need hundreds of steps."""
    epochs: int
    """Training epochs of E1, the undefended network, without early stopping."""
    kept_epochs: tuple[int, ...]
    """Epochs of E1's training after which its weights are also saved and the network attacked."""
    tuned_epochs: int
    """Training epochs of E1+, our own recipe for E1's layers."""
    test_images: int
    """Test images for measures without an attack."""
    fgsm_images: int
    """Test images (the first ones) attacked with FGSM, on every model; in E2 at least as many as with BIM in E3."""
    bim_images: int
    """Test images attacked with BIM in E3, which varies eps on E1."""
    steps_images: int
    """Test images attacked with BIM in E4, which varies the number of iterations on E1."""
    attacked_images: int
    """Test images under all other attacks, on every model, and for measures of input gradients."""
    pgd_restarts: int
    """Random starts of PGD with 40 steps; an image is fooled if any of them fools it."""
    evaluated_images: int
    """Test images of the whole evaluation (`casemate.evaluate`) of each model."""
    budget: Literal["quick", "standard"]
    """Which attacks the whole evaluation runs; standard are those of AutoAttack."""
    evaluates_ours: bool
    """Whether the models that are not the paper's (E1+, E13) have a whole evaluation too."""
    targeted_images: int
    """Test images under targeted attacks from every class to every other (E13)."""
    checkpoint_images: int
    """Test images attacked at each of the kept epochs, and on each network of the search over students."""
    hypotheses: bool
    """Whether E2 tries hypotheses on why the paper's accuracy under FGSM is not ours, also after each kept epoch."""
    step_counts: tuple[int, ...]
    """Numbers of BIM iterations at which E4 measures accuracy."""
    defended_epochs: int
    """Maximum number of training epochs of a model trained with early stopping (patience 5): the defences, and E12."""
    distilled_epochs: int
    """Training epochs of E9's and E10's teachers and students, without early stopping, as for E1."""
    noises: tuple[str, ...]
    """Kinds of noise added to training images; E5 trains one model with each."""
    temperatures: tuple[float, ...]
    """Temperatures of distillation; E9 and E10 train one student each at every one."""
    decays: tuple[float, ...]
    """Strengths of weight decay; E12 trains one model with each."""
    multipliers: tuple[float, ...]
    """Weights of the adversarial loss that E13 tries besides E6's 0.5; one model each."""
    students: tuple[str, ...]
    """Network architectures that the search over students tries (E13)."""
    student_dropouts: tuple[float, ...]
    """Factors on the dropout rates of those networks; each network is trained once with every factor."""
    beyond_claims: bool
    """Whether models are trained and measured that no claim of the paper needs: E1+, noise layers and randomised
    inference (E5), other clippings of E6, the mixture of E13; and PGD is run at more eps."""
    falling_rate: bool
    """Whether E1 is also trained with a learning rate that falls to zero, so that the last epoch is not luck."""
    recipe_trials: bool
    """Whether the search for E1+'s recipe is run: one training for each recipe tried."""
    more_seeds: tuple[int, ...]
    """Further seeds with which E1, E6, E9's student at temperature 20 and E11 are trained and attacked again."""
    decides: bool
    """Whether results at this scale can confirm or refute a statement of the paper."""


SMOKE = Scale(
    name="smoke",
    purpose="shows that everything runs; its numbers mean nothing",
    dataset="digits",
    train_images=300,
    validation_images=75,
    batch_size=32,
    epochs=3,
    kept_epochs=(1, 3),
    tuned_epochs=1,
    test_images=100,
    fgsm_images=24,
    bim_images=16,
    steps_images=16,
    attacked_images=8,
    pgd_restarts=1,
    evaluated_images=8,
    budget="quick",
    evaluates_ours=False,
    targeted_images=10,
    checkpoint_images=16,
    hypotheses=True,
    step_counts=(0, 1, 2, 5, 10),
    defended_epochs=1,
    distilled_epochs=1,
    noises=("gaussian-noise",),
    temperatures=(1.0, 100.0),
    decays=(1e-4,),
    multipliers=(2.0,),
    students=("student-8x1",),
    student_dropouts=(1.0,),
    beyond_claims=True,
    falling_rate=True,
    recipe_trials=True,
    more_seeds=(1,),
    decides=False,
)
QUICK = Scale(
    name="quick",
    purpose="a first look in minutes: a small training set with many epochs, since over-fitting is the point",
    dataset="auto",
    train_images=800,
    validation_images=200,
    batch_size=32,
    epochs=80,
    kept_epochs=(1, 5, 10, 20, 40, 80),
    tuned_epochs=20,
    test_images=2000,
    fgsm_images=200,
    bim_images=100,
    steps_images=100,
    attacked_images=64,
    pgd_restarts=2,
    evaluated_images=24,
    budget="quick",
    evaluates_ours=False,
    targeted_images=60,
    checkpoint_images=100,
    hypotheses=False,
    step_counts=(0, 1, 2, 5, 10, 15, 20, 25, 30, 40, 50),
    defended_epochs=10,
    distilled_epochs=14,
    noises=(),
    temperatures=(1.0, 20.0, 100.0),
    decays=(1e-4,),
    multipliers=(),
    students=(),
    student_dropouts=(),
    beyond_claims=False,
    falling_rate=False,
    recipe_trials=False,
    more_seeds=(),
    decides=False,
)
MEDIUM = Scale(
    name="medium",
    purpose="every experiment in hours on two cores: a tenth of the training images, shorter sweeps, 1,000 test images",
    dataset="auto",
    train_images=5000,
    validation_images=1000,
    batch_size=64,
    epochs=50,
    kept_epochs=(1, 5, 10, 20, 30, 50),
    tuned_epochs=20,
    test_images=10000,
    fgsm_images=1000,
    bim_images=1000,
    steps_images=1000,
    attacked_images=1000,
    pgd_restarts=5,
    evaluated_images=200,
    budget="standard",
    evaluates_ours=True,
    targeted_images=1000,
    checkpoint_images=1000,
    hypotheses=True,
    step_counts=(0, 1, 2, 5, 10, 15, 20, 25, 30, 40, 50),
    defended_epochs=20,
    distilled_epochs=20,
    noises=("gaussian-noise", "speckle", "salt-and-pepper"),
    temperatures=(1.0, 20.0, 100.0),
    decays=(1e-4, 1e-3),
    multipliers=(0.2, 2.0),
    students=("student-8x2", "student-16x2"),
    student_dropouts=(0.5, 1.0),
    beyond_claims=True,
    falling_rate=False,
    recipe_trials=False,
    more_seeds=(),
    decides=False,
)
FULL = Scale(
    name="full",
    purpose="the paper's sizes",
    dataset="auto",
    train_images=54000,
    validation_images=6000,
    batch_size=128,
    epochs=50,
    kept_epochs=(1, 5, 10, 15, 20, 30, 40, 50),
    tuned_epochs=20,
    test_images=10000,
    fgsm_images=10000,
    bim_images=2000,
    steps_images=2000,
    attacked_images=1000,
    pgd_restarts=5,
    evaluated_images=500,
    budget="standard",
    evaluates_ours=True,
    targeted_images=1000,
    checkpoint_images=1000,
    hypotheses=True,
    step_counts=(0, 1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100),
    defended_epochs=50,
    distilled_epochs=50,
    noises=("gaussian-noise", "speckle", "salt-and-pepper"),
    temperatures=(1.0, 20.0, 100.0),
    decays=(1e-5, 1e-4, 1e-3, 1e-2),
    multipliers=(0.2, 1.0, 2.0),
    students=tuple(f"student-{width}x{depth}" for width in (8, 16, 32) for depth in (1, 2, 3)),
    student_dropouts=(0.5, 1.0),
    beyond_claims=True,
    falling_rate=True,
    recipe_trials=True,
    more_seeds=(1, 2),
    decides=True,
)
PAPER = replace(
    FULL,
    name="paper",
    purpose="the paper's training sizes, attacks on 1,000 or 2,000 images: a day or two on two cores",
    fgsm_images=1000,
    evaluated_images=200,
    decays=(1e-4, 1e-3),
    multipliers=(0.2, 2.0),
    students=("student-8x2", "student-16x2"),
)
SCALES = {scale.name: scale for scale in (SMOKE, QUICK, MEDIUM, PAPER, FULL)}


def scale_by_name(name: str) -> Scale:
    """The scale called `name`. Raises `SettingError`, which lists the known names, for another."""
    if name not in SCALES:
        raise SettingError(f"unknown scale {name!r}; known: {', '.join(SCALES)}")
    return SCALES[name]


def scale_table() -> list[tuple[str, ...]]:
    """All scales as a table for the report: one row per field of `Scale` but the name.

    A row has the field's name, its value at each scale as text, and its meaning: the docstring under the field.
    """
    import ast
    import inspect

    body = ast.parse(inspect.getsource(Scale)).body[0].body  # type: ignore[attr-defined]
    words: dict[str, str] = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            words[field.target.id] = str(text.value.value)  # type: ignore[union-attr]
    rows = []
    for field in fields(Scale)[1:]:
        values = (getattr(scale, field.name) for scale in SCALES.values())
        rows.append((field.name.replace("_", " "), *(_shown(value) for value in values), words[field.name]))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
