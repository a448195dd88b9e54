"""Attacks and recipes by name: help, documentation and property tests follow from the classes alone."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import casemate
from casemate import attacks, extensions
from casemate.attacks import EOT, FGSM, PGD, AbstractAttack, Restarts, Transfer, Transferable
from casemate.attacks.registry import (
    attack_type,
    attack_types,
    kebab_case,
    library_attack_types,
    markdown_table,
    norms_of,
    paper_of,
)
from casemate.cli.attack.options import attack_command
from casemate.cli.main import main
from casemate.cli.shared.dataclass_options import field_help, python_only
from casemate.defenses import RECIPES, AdversarialRegularization, make_objective, recipe_type
from casemate.errors import CasemateWarning, ModelError, SettingError
from casemate.models import Classifier, ModelMetadata, create, save
from casemate.training import CrossEntropy, Objective, PreparedObjective, SteppedObjective, TrainingStep
from conftest import tiny_images, tiny_model
from oracles import as_installed

ROOT = Path(__file__).resolve().parents[1]


# Names ----------------------------------------------------------------------------------------------------------------
def test_every_public_attack_has_a_name_and_no_wrapper_has_one() -> None:
    named = set(attack_types().values())
    public = [getattr(casemate, name) for name in dir(casemate)] + [getattr(attacks, name) for name in dir(attacks)]
    built = {each for each in public if isinstance(each, type) and issubclass(each, AbstractAttack)}
    final = {each for each in built if not inspect.isabstract(each)}
    assert final - named == {EOT, Restarts, Transfer, Transferable}
    assert named <= final
    assert attack_types()["targeted-apgd"] is casemate.TargetedAPGD


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TargetedAPGD", "targeted-apgd"),
        ("FGSM", "fgsm"),
        ("HopSkipJump", "hop-skip-jump"),
        ("step_size", "step-size"),
        ("AutoPGDTargeted", "auto-pgd-targeted"),
    ],
)
def test_names_in_kebab_case(name: str, words: str) -> None:
    assert kebab_case(name) == words


@pytest.mark.parametrize("name", ["pgd", "PGD", "Pgd"])
def test_case_does_not_matter(name: str) -> None:
    assert attack_type(name) is PGD


def test_hyphens_do_not_matter_and_an_unknown_name_has_a_hint() -> None:
    assert attack_type("deepfool") is attack_type("deep-fool") is attack_type("Deep_Fool") is casemate.DeepFool
    with pytest.raises(SettingError, match=r"unknown attack 'fgms'; known: alma, .*; did you mean fgsm\?"):
        attack_type("fgms")
    with pytest.raises(SettingError, match=r"unknown recipe 'destillation'; known: .*; did you mean distillation\?"):
        recipe_type("destillation")


def test_norms_and_papers_are_those_of_the_classes() -> None:
    assert norms_of(PGD) == ("linf", "l2", "l1", "l0")
    assert norms_of(casemate.Square) == ("linf", "l2", "l1")
    assert norms_of(casemate.SparseRS) == ("l0",)
    assert norms_of(casemate.EAD) == ("l1",)
    assert norms_of(casemate.CornerNoise) == ("linf",)
    assert norms_of(casemate.Spatial) == ()
    assert paper_of(FGSM) == "Goodfellow et al. 2015"
    assert paper_of(casemate.Square) == "Andriushchenko et al. 2020, arXiv 1912.00049"
    assert all(paper_of(kind) for kind in library_attack_types().values())


# Options --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", library_attack_types())
def test_every_setting_of_an_attack_is_an_option_with_its_default_and_its_help(name: str) -> None:
    kind = library_attack_types()[name]
    options = {each.name: each.type for each in fields(attack_command(kind))}["attack"]
    assert isinstance(options, type)
    assert {each.name: each.default for each in fields(options)} == {
        each.name: each.default for each in fields(kind) if each.name != "eps"
    }
    assert field_help(kind).keys() >= {each.name for each in fields(kind)}
    assert python_only(kind) == []


def test_what_text_cannot_express_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert python_only(AdversarialRegularization) == ["feature_mask"]
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "adversarial-regularization", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Python only: feature_mask." in shown
    assert "--multiplier X Weight of the adversarial loss, which is added to the clean loss. (default: 0.5)" in shown
    assert "--clip-max X Largest pixel value of a neighbour; None for no limit. (default: 1)" in shown


# The documentation ----------------------------------------------------------------------------------------------------
def test_the_table_of_the_documentation_is_up_to_date() -> None:
    table = markdown_table(library_attack_types())
    assert table in (ROOT / "docs" / "attacks.md").read_text(), "put this into docs/attacks.md:\n" + table
    assert len(table.splitlines()) == 2 + len(library_attack_types())


# Attacks of others ----------------------------------------------------------------------------------------------------
PLUGIN = '''
    """Halving attacks (Somebody 2030, arXiv 3001.00001)."""
    from dataclasses import dataclass
    from typing import final

    import torch

    from casemate.attacks import AbstractAttack, Passes, RunResult
    from casemate.norms import Ball, Norm


    class _Darker(AbstractAttack):
        pass


    @final
    @dataclass(frozen=True, kw_only=True)
    class Darken(AbstractAttack):
        """Every pixel made darker by eps times a share.

        It takes no gradient.
        """

        eps: float
        """Radius of the ball, in pixel units."""
        norm: Norm = "linf"
        """Any."""
        share: float = 0.5
        """Part of eps that pixels are lowered by."""

        def ball(self):
            return Ball(eps=self.eps, norm=self.norm)

        def max_passes(self, classes):
            return Passes(0, 0)

        def run(self, model, clean, criterion, streams, advance):
            all_of_them = torch.ones(len(clean), dtype=torch.bool)
            return RunResult(clean - self.share * self.eps, all_of_them, all_of_them, Passes(0, 0))
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of another package, from which entry points can be made."""
    (tmp_path / "their_attacks.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("their_attacks", None)


def _register(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Have entry points of other packages, as (name, value)."""

    def found(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points if group == "casemate.attacks"]

    monkeypatch.setattr(extensions, "entry_points", found)


@pytest.mark.usefixtures("plugin")
def test_an_attack_of_another_package_is_listed_and_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _register(monkeypatch, ("darken", "their_attacks:Darken"))
    assert attack_types()["darken"].__name__ == "Darken"
    assert "darken" not in library_attack_types()
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["attack", "--help"])
    assert "darken" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["attack", "darken", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Every pixel made darker by eps times a share. - Somebody 2030, arXiv 3001.00001." in shown
    assert "--share X Part of eps that pixels are lowered by. (default: 0.5)" in shown

    network = create("tiny", input_shape=(1, 28, 28), classes=tuple("0123456789"))
    path = tmp_path / "m.safetensors"
    save(network, path, ModelMetadata(architecture="tiny", dataset="digits"))
    command = ["attack", "darken", str(path), "--eps", "0.1", "0.3", "--images", "9", "--out", str(tmp_path / "out")]
    assert main([*command, "--share", "1/4"]) == 0
    shown = capsys.readouterr().out
    assert "Darken on m.safetensors (digits, first 9 test images, seed 0)" in shown
    assert "No gradient" not in shown
    assert (tmp_path / "out" / "contact-sheet.png").is_file()


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("point", "words"),
    [
        (
            ("broken", "no_such_module:AbstractAttack"),
            "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (("absent", "their_attacks:Lighten"), "cannot be loaded: AttributeError"),
        (("abstract", "their_attacks:_Darker"), "their_attacks:_Darker is not a concrete dataclass derived from"),
        (("function", "their_attacks:dataclass"), "is not a concrete dataclass derived from casemate.attacks.Abstract"),
        (("pgd", "their_attacks:Darken"), "another attack already has that name"),
    ],
)
def test_an_entry_point_that_is_no_attack_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, point: tuple[str, str], words: str
) -> None:
    _register(monkeypatch, point)
    with pytest.warns(CasemateWarning, match=f"the attack '{point[0]}' of another package is left out: .*{words}"):
        found = attack_types()
    assert found == library_attack_types()


# A new attack ---------------------------------------------------------------------------------------------------------
CARELESS = '''
    """An attack with a fault: its draws hang on the batch."""
    from dataclasses import dataclass
    from typing import final

    import torch

    from casemate.attacks import AbstractAttack, Passes, RunResult
    from casemate.norms import Ball


    @final
    @dataclass(frozen=True, kw_only=True)
    class Careless(AbstractAttack):
        """Noise from one generator for the whole batch."""

        eps: float
        """Radius of the ball, in pixel units."""

        def ball(self):
            return Ball(eps=self.eps)

        def max_passes(self, classes):
            return Passes(0, 0)

        def run(self, model, clean, criterion, streams, advance):
            generator = torch.Generator().manual_seed(len(clean))
            noise = torch.rand(clean.shape, generator=generator, dtype=clean.dtype)
            all_of_them = torch.ones(len(clean), dtype=torch.bool)
            return RunResult(clean + self.eps * (2 * noise - 1), all_of_them, all_of_them, Passes(0, 0))
'''


@pytest.mark.integration
@pytest.mark.slow
def test_a_new_attack_needs_one_file_and_one_line(tmp_path: Path) -> None:
    """It is then in help, table and property tests, which pass for a sound attack and fail for a careless one."""
    source = tmp_path / "casemate"
    shutil.copytree(Path(attacks.__file__).parents[1], source, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "attacks" / "darken.py").write_text(textwrap.dedent(PLUGIN))
    (source / "attacks" / "careless.py").write_text(textwrap.dedent(CARELESS))
    with (source / "attacks" / "__init__.py").open("a") as names:
        names.write("from casemate.attacks.darken import Darken as Darken\n")
        names.write("from casemate.attacks.careless import Careless as Careless\n")
    check = "; ".join(
        [
            "from casemate.attacks.registry import markdown_table, library_attack_types",
            "print(markdown_table(library_attack_types()))",
            "from casemate.cli.main import main",
            "main(['attack', '--help'])",
        ]
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    row = "| `darken` | `Darken` | Every pixel made darker by eps times a share. | linf, l2, l1, l0 |"
    assert f"{row} image within eps | yes | Somebody 2030, arXiv 3001.00001 |" in done.stdout
    assert re.search(r"• darken +Every pixel made darker by eps times a share\.", done.stdout)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-v", "-p", "no:cacheprovider", "tests/test_every_attack.py"]
    done = subprocess.run(
        [*command, "-k", "darken or careless"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    failed = re.findall(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    assert failed == ["test_what_is_found_does_not_depend_on_the_company[careless]"], done.stdout
    assert "1 failed, 11 passed" in done.stdout.splitlines()[-1]


# Recipes --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_an_objective_of_its_defaults(name: str) -> None:
    recipe = RECIPES[name]
    if recipe.teacher is None:
        made = make_objective({"name": name, "settings": recipe.defaults})
        assert isinstance(made, recipe.objective)
        assert isinstance(made, Objective)
    else:
        with pytest.raises(SettingError, match=f"recipe {name} without a {recipe.teacher}; expected a trained model"):
            make_objective({"name": name, "settings": recipe.defaults})


@pytest.mark.parametrize("name", RECIPES)
def test_every_objective_trains_in_a_loop_of_ones_own(name: str) -> None:
    """As docs/defenses.md says: a `Classifier` made of the network alone, which is not called before."""
    recipe, train = RECIPES[name], tiny_images(8, 1)
    images, labels = train.tensors()
    settings = {"temperature": 20.0} if name == "distillation" else {}
    objective = make_objective(
        {"name": name, "settings": recipe.defaults | settings}, tiny_model() if recipe.teacher else None
    )
    if isinstance(objective, PreparedObjective):
        objective = objective.prepared_for(train)
    if isinstance(objective, SteppedObjective):
        objective = objective.at_step(TrainingStep(done=0.3, index=torch.arange(8)))
    model = Classifier(tiny_model().network).train()
    loss, logits = objective(model, images, labels)
    loss.backward()
    assert logits.shape == (8, 3)
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    "name", ["adversarial-training", "trades", "n-fgsm", "distillation", "crown-ibp", "smooth-adv"]
)
def test_an_objective_that_needs_more_than_logits_says_what_is_missing_of_a_network(name: str) -> None:
    teacher = tiny_model() if RECIPES[name].teacher else None
    settings = {"temperature": 20.0} if name == "distillation" else {}
    objective = make_objective({"name": name, "settings": RECIPES[name].defaults | settings}, teacher)
    network: Any = tiny_model().network
    pattern = r"a Sequential; expected a casemate\.Classifier around it, made once before"
    with as_installed(), pytest.raises(ModelError, match=pattern):
        objective(network, *tiny_images(8, 1).tensors())


def test_the_first_recipe_is_ordinary_training() -> None:
    assert make_objective({"name": next(iter(RECIPES)), "settings": {}}) == CrossEntropy()


def test_a_setting_outside_its_values_is_refused() -> None:
    with pytest.raises(SettingError, match=r"temperature = 0.0; expected positive"):
        make_objective({"name": "at-temperature", "settings": {"temperature": 0.0}})
    assert torch.is_grad_enabled()
