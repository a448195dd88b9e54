"""`assert_robust` and `assert_not_worse`: what passes, what fails and how, and what the plugin of pytest adds."""

import functools
import os
import pickle
import random
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import casemate.testing
from casemate import PGD, Evaluation, ModelComparison, evaluate
from casemate.data import LabelledImages
from casemate.errors import DataError, EvaluationError, ModelError, SettingError
from casemate.testing import assert_not_worse, assert_robust
from casemate.testing.running_test import Call, running
from conftest import tiny_images
from test_compare_command import weaker
from test_record import thirds

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
IMAGES = tiny_images(60, noise=90.0)
PIXELS, LABELS = IMAGES.tensors()
FEW = {"eps": "0.020", "attacks": PGD(eps=0.1, steps=3)}
"""A radius and an attack that take little time."""
NET = """
import torch
from torch import nn

from casemate import PGD

FEW = dict(eps="0.020", attacks=PGD(eps=0.1, steps=3))


def images(noise=90.0):
    labels = torch.arange(60) % 3
    pixels = torch.full((60, 1, 8, 8), 60.0)
    for place in range(3):
        pixels[labels == place, :, :, 3 * place : 3 * place + 2] += 120
    pixels += noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return pixels.clamp(0, 255).div(255), labels


def net(slope=20.0):
    layer = nn.Linear(64, 3)
    with torch.no_grad():
        layer.bias.zero_()
        for place in range(3):
            layer.weight[place] = slope / 16 * ((torch.arange(64) % 8) // 2 == place)
    return nn.Sequential(nn.Flatten(), layer).eval()


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, pixels):
        return self.inner((pixels * 3).round() / 3)
"""


class Rounded(nn.Module):
    """A model without gradients: it rounds its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = thirds().network

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        return self.inner((pixels * 3).round() / 3)


@functools.cache
def judged(kind: Callable[[], nn.Module]) -> Evaluation:
    """A model evaluated, once for all tests."""
    return evaluate(kind(), IMAGES, budget="quick", **FEW)


@pytest.fixture
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are those of `thirds`, `weaker` and `Rounded` on all images, whose evaluations are known."""

    def known(model: Callable[[], nn.Module], images: LabelledImages, **settings: object) -> Evaluation:
        assert len(images) == len(IMAGES)
        assert settings["budget"] == "quick"
        return judged(model)

    monkeypatch.setattr("casemate.testing.assertions.evaluate", known)


# The assertions -------------------------------------------------------------------------------------------------------
def test_a_robust_model_passes_and_the_evaluation_is_that_of_the_library() -> None:
    loader = DataLoader(TensorDataset(PIXELS, LABELS), batch_size=7)
    found = assert_robust(thirds().network, loader, at_least="20%", **FEW)
    assert found.robust == judged(thirds).robust
    assert found.robust[-1].low > 0.2
    few = assert_robust(thirds(), PIXELS, LABELS, at_least=0.1, n=20, **FEW)
    assert len(few.images) == 20
    assert torch.equal(torch.as_tensor(few.cascade.robust), torch.as_tensor(found.cascade.robust[:20]))


@pytest.mark.usefixtures("_known", "unchecked")
def test_a_model_that_is_less_robust_fails_with_numbers_and_advice() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_robust(weaker, IMAGES, at_least="90%", **FEW)  # type: ignore[arg-type]
    found = judged(weaker)
    fooled = found.successes_by_attack["pgd"]
    assert str(caught.value).splitlines() == [
        f"robust accuracy at eps 0.020 (linf, attacks chosen by the caller) is {found.robust[-1]:n}: the lower end of "
        "the 95 % interval is below 90%",
        f"  without an attack: {found.clean.accuracy}",
        f"  fooled most: pgd, first on {fooled} of {fooled} fooled images",
        "  to do: train for robustness (casemate harden, casemate.AdversarialTraining), or demand less",
    ]


@pytest.mark.usefixtures("_known", "unchecked")
def test_too_few_images_are_named_with_the_number_that_would_do() -> None:
    robust = judged(thirds).robust[-1]
    demanded = (robust.low + robust.value) / 2
    given: Any = {"model": thirds, "images": IMAGES, "at_least": demanded, **FEW}
    with pytest.raises(AssertionError, match="use more images, about") as caught:
        assert_robust(**given)
    needed = int(str(caught.value).split("about ")[1].split(" ")[0].replace(",", ""))
    assert needed > 60
    for count, enough in ((needed + 1, True), (needed - 2, False)):
        z, share = 1.96, robust.value  # Wilson's lower end
        middle, half = share + z**2 / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
        assert ((middle - half) / (1 + z**2 / count) >= demanded) == enough
    assert_robust(**given, fail_by="estimate")


@pytest.mark.usefixtures("_known", "unchecked")
def test_a_number_that_is_not_to_be_trusted_fails_however_high_and_names_the_finding() -> None:
    with pytest.raises(AssertionError, match="is not to be trusted") as caught:
        assert_robust(Rounded, IMAGES, at_least=0, **FEW)  # type: ignore[arg-type]
    assert "\n  finding zero-gradients: 100.0 % of the images" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"at_least": 60}, SettingError, "at_least 60; expected a fraction from 0 to 1, such as 0.6 or 60%"),
        ({"at_least": "much"}, SettingError, "at_least 'much' is not a number"),
        ({"eps": []}, SettingError, "expected one or more"),
        ({"eps": "eight"}, SettingError, "write 0.03 or 8/255"),
        ({"eps": 8}, EvaluationError, "For 8 grey levels of 255 write 8/255"),
        ({"images": []}, DataError, "has no images"),
        ({"images": PIXELS}, DataError, "without labels"),
        ({"n": 0}, SettingError, "n = 0"),
        ({"threads": 0}, SettingError, "threads = 0"),
        ({"fail_by": "upper"}, SettingError, "fail_by 'upper'"),
        ({"norm": "l7"}, SettingError, "l7"),
        ({"attacks": None, "budget": "huge"}, SettingError, "huge"),
        ({"model": nn.Identity()}, ModelError, ""),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_use_is_an_error_of_casemate(wrong: dict[str, object], error: type[Exception], words: str) -> None:
    given: dict[str, object] = {"model": thirds(), "images": IMAGES, "at_least": 0.1, **FEW, **wrong}
    with pytest.raises(error) as caught:
        assert_robust(**given)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.usefixtures("unchecked")  # the checks of annotations draw random numbers
def test_the_random_state_and_the_model_are_left_as_they_were() -> None:
    torch.manual_seed(5)
    before = (torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state()))  # noqa: NPY002
    model = thirds().train()
    loader = DataLoader(TensorDataset(PIXELS, LABELS), batch_size=9, shuffle=True)
    first = assert_robust(model, loader, at_least=0, n=12, **FEW)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before[1:]  # noqa: NPY002
    assert model.training
    torch.manual_seed(6)
    again = assert_robust(model, loader, at_least=0, n=12, **FEW)
    assert torch.equal(first.images.labels, again.images.labels)
    assert first.robust == again.robust


@pytest.mark.usefixtures("_known", "unchecked")
def test_a_worse_model_fails_and_a_better_one_passes() -> None:
    def check(new: object, old: object, margin: float | str | None = None) -> ModelComparison:
        return assert_not_worse(new, old, IMAGES, margin=margin, **FEW)  # type: ignore[arg-type]

    assert check(thirds, weaker).robust.difference.value > 0
    with pytest.raises(AssertionError, match="the new model is worse than the old model beyond chance") as caught:
        check(weaker, thirds)
    assert "images are correct with the old model only" in str(caught.value)
    check(thirds, thirds, "5%")
    with pytest.raises(AssertionError, match="may be worse than the old model by 5 points or more") as caught:
        check(weaker, thirds, 0.05)
    assert "to do: keep the old model, or allow a larger margin: the difference itself is as large" in str(caught.value)
    drop = -check(weaker, thirds, "99%").robust.difference.value
    with pytest.raises(AssertionError, match=r"to do: use more images, about [\d,]+ for this difference; or allow"):
        check(weaker, thirds, drop + 0.01)
    with pytest.raises(AssertionError, match=r"the new model: robust accuracy .* is not to be trusted"):
        check(Rounded, thirds)
    with pytest.raises(SettingError, match="at least 137 images"):
        check(thirds, thirds, "2%")


class Kept:
    """A running test that keeps what it is given."""

    budget: str | None = "thorough"

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def record(self, call: Call) -> None:
        """Keep it."""
        self.calls.append(call)


def test_results_go_to_the_running_test_and_its_budget_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[object] = []
    threads: list[int] = []
    before = torch.get_num_threads()

    def spied(*given: object, budget: object, **options: object) -> Evaluation:
        del given, options
        budgets.append(budget)
        threads.append(torch.get_num_threads())
        return judged(thirds)

    monkeypatch.setattr("casemate.testing.assertions.evaluate", spied)
    kept = Kept()
    with running(kept):
        assert_robust(thirds(), IMAGES, at_least=0.2, **FEW)
        assert_robust(thirds(), IMAGES, at_least=0.2, budget="standard", threads=before + 2, **FEW)
        with pytest.raises(AssertionError):
            assert_robust(thirds(), IMAGES, at_least=1, **FEW)
    assert_robust(thirds(), IMAGES, at_least=0.2, **FEW)
    assert threads == [before, before + 2, before, before]
    assert torch.get_num_threads() == before
    assert budgets == ["thorough", "standard", "thorough", "quick"]
    assert [call.facts["passed"] for call in kept.calls] == ["true", "true", "false"]
    assert float(kept.calls[0].facts["robust_accuracy_low"]) > 0.2
    assert kept.calls[2].line.startswith("FAILED: ")


# The plugin -----------------------------------------------------------------------------------------------------------
def write_entry_point(folder: Path) -> Path:
    """A folder for PYTHONPATH with the entry point of pyproject.toml, as an installed casemate has it."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    about = folder / "entry_point_of_casemate-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: entry-point-of-casemate\nVersion: 0\n")
    lines = ["[pytest11]", *(f"{name} = {module}" for name, module in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Runs pytest as in an environment with casemate."""
    site = write_entry_point(pytester.path / "installed")
    source = Path(casemate.testing.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(source), str(pytester.path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pytester.makepyfile(net=NET)
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers -p no:cacheprovider\n")
    return pytester


def test_who_does_not_use_it_does_not_notice_it(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        """
        import random
        import sys

        import pytest

        STATE = random.getstate()


        @pytest.mark.robust
        def test_nothing_heavy_is_imported():
            assert "casemate.testing.plugin" in sys.modules
            assert [name for name in ("torch", "scipy", "matplotlib", "casemate.errors") if name in sys.modules] == []
            assert random.getstate() == STATE
        """
    )
    done = installed.runpytest_subprocess("--junitxml=report.xml")
    done.assert_outcomes(passed=1)
    done.stdout.no_fnmatch_line("*casemate)*")
    assert "property" not in (installed.path / "report.xml").read_text()
    done = installed.runpytest_subprocess("--markers")
    done.stdout.fnmatch_lines(["@pytest.mark.robust: attacks a model*"])


def test_the_plugin_imports_nothing_but_itself() -> None:
    program = """
        import sys
        import pytest
        before = {name.split(".")[0] for name in sys.modules}
        import casemate.testing.plugin
        now = {name.split(".")[0] for name in sys.modules} - before - sys.stdlib_module_names
        assert now == {"casemate", "lazy_loader"}, now
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_it_can_be_left_out(installed: pytest.Pytester) -> None:
    installed.makepyfile("import sys\ndef test_it():\n    assert 'casemate' not in sys.modules\n")
    installed.runpytest_subprocess("-p", "no:casemate").assert_outcomes(passed=1)
    assert installed.runpytest_subprocess("-p", "no:casemate", "--casemate-budget", "quick").ret == 4


TESTS = """
import pytest
from casemate.testing import assert_robust as imported
from net import FEW, Rounded, images, net


@pytest.fixture(scope="module")
def evaluation(assert_robust):
    return assert_robust(net(), images(), at_least=0.1, **FEW)


def test_passes(assert_robust):
    found = assert_robust(net(), images(), at_least="20%", **FEW)
    assert found.robust_accuracy > 0.3
    assert_robust(net(), images(), at_least="10%", **FEW)


def test_falls_short(assert_robust):
    assert_robust(net(), images(), at_least=0.99, **FEW)


def test_lies():
    imported(Rounded(), images(), at_least=0.1, **FEW)


def test_is_used_wrongly(assert_robust):
    assert_robust(net(), images(), at_least=60, **FEW)


def test_uses_a_fixture(evaluation):
    assert evaluation.verdict.trust.trusted


def test_compares(assert_not_worse):
    assert_not_worse(net(), net(), images(), margin=0.05, **FEW)


@pytest.mark.xfail(raises=AssertionError, strict=True)
def test_is_expected_to_fail(assert_robust):
    assert_robust(net(), images(), at_least=1, **FEW)


def test_is_quick():
    pass
"""
SUMMARY = [
    "*= robustness (casemate) =*",
    "*::test_passes: passed: * robust at eps 0.020 (linf, own), at least 20%: not broken by these attacks, * s",
    "*::test_passes: passed: * at least 10%: *",
    "*::test_falls_short: FAILED: * at least 0.99: *",
    "*::test_lies: FAILED: *: not to be trusted, * s",
    "*::test_uses_a_fixture: passed: *",
    "*::test_compares: passed: new minus old +0.0 points (*), McNemar p = 1, n = 60, margin 0.05, * s",
    "*::test_is_expected_to_fail: FAILED: *",
]


@pytest.mark.integration
def test_the_output_of_a_run(installed: pytest.Pytester) -> None:
    installed.makepyfile(test_it=TESTS)
    done = installed.runpytest_subprocess("--junitxml=report.xml", "-p", "no:randomly")
    done.assert_outcomes(passed=4, failed=3, xfailed=1)
    done.stdout.fnmatch_lines(SUMMARY)
    text = done.stdout.str()
    shown = text[text.index("_ test_falls_short _") : text.index("_ test_lies _")]
    assert [line for line in shown.splitlines() if "assertions.py" in line or "site-packages" in line] == []
    assert ">       assert_robust(net(), images(), at_least=0.99, **FEW)" in shown
    assert "E         to do: " in shown
    done.stdout.fnmatch_lines(
        ["E * casemate.errors.SettingError: at_least 60; expected a fraction*".replace("E * ", "E*")]
    )
    cases = {case.get("name"): case for case in ElementTree.parse(installed.path / "report.xml").iter("testcase")}
    facts = {each.get("name"): each.get("value") for each in cases["test_passes"].iter("property")}
    assert facts["casemate.eps"] == "0.020"
    assert facts["casemate.n"] == "60"
    assert facts["casemate.at_least"] == "20%"
    assert facts["casemate.2.at_least"] == "10%"
    assert 0.2 < float(facts["casemate.robust_accuracy_low"] or 0) < float(facts["casemate.robust_accuracy"] or 0)
    failed = {each.get("name"): each.get("value") for each in cases["test_falls_short"].iter("property")}
    assert failed["casemate.passed"] == "false"
    assert list(cases["test_is_quick"].iter("property")) == []


@pytest.mark.integration
@pytest.mark.slow
def test_results_of_other_processes_are_collected(installed: pytest.Pytester) -> None:
    installed.makepyfile(test_it=TESTS)
    done = installed.runpytest_subprocess("-n", "2", "--junitxml=report.xml")
    done.assert_outcomes(passed=4, failed=3, xfailed=1)
    lines = done.stdout.str().split("robustness (casemate)")[1].splitlines()
    assert sum("::test_" in line and (": passed: " in line or ": FAILED: " in line) for line in lines) == 8 - 1
    assert 'name="casemate.robust_accuracy"' in (installed.path / "report.xml").read_text()


@pytest.mark.integration
@pytest.mark.slow
def test_tests_that_attack_can_be_left_out(installed: pytest.Pytester) -> None:
    installed.makepyfile(test_it=TESTS)
    done = installed.runpytest_subprocess("-m", "not robust", "-k", "not lies")
    done.assert_outcomes(passed=1, deselected=7)
    done = installed.runpytest_subprocess("-m", "robust", "--collect-only", "-q")
    assert "test_is_quick" not in done.stdout.str()
    assert "test_uses_a_fixture" in done.stdout.str()


@pytest.mark.integration
@pytest.mark.slow
def test_the_budget_is_an_option(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        textwrap.dedent(
            """
            from net import images, net

            def test_it(assert_robust):
                pixels, labels = images()
                found = assert_robust(net(), pixels[:12], labels[:12], eps="0.02", at_least=0)
                assert found.budget == "standard"
                again = assert_robust(net(), pixels[:12], labels[:12], eps="0.02", at_least=0, budget="quick")
                assert again.budget == "quick"
            """
        )
    )
    installed.runpytest_subprocess("--casemate-budget", "standard").assert_outcomes(passed=1)
    assert installed.runpytest_subprocess("--casemate-budget", "huge").ret == 4
