"""What a new user stumbled over with a network of their own, and what casemate says now.

The numbers are those of the list of stumbles: each test is one, with the command or the call that was tried.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import casemate
from casemate import PGD, CasemateWarning, Classifier, compare, evaluate
from casemate.errors import EvaluationError, SettingError, ShapeError
from conftest import tiny_images
from test_cli import Run, run
from test_findings import normalised_otherwise, seen_right, shifted
from test_record import thirds

__all__ = ["run"]

IMAGES = tiny_images(40, noise=90.0)
EVALUATE = ("evaluate", "mine:bare", "--data", "mine.npz", "--budget", "quick", "--eps", "8/255", "--threads", "1")


class SmallNet(nn.Module):
    """The user's network: with dropout, and in training mode until somebody calls `eval`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = thirds().network, nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.body(self.drop(images))


pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's folder: their module, their data, their weights; commands run in it."""
    module = ModuleType("mine")
    made: dict[str, Any] = {
        "bare": lambda: SmallNet().eval(),
        "load": lambda: Classifier(SmallNet().eval(), classes=["left", "middle", "right"]),
        "load_noeval": SmallNet,
        "untrained": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)).apply(_draw),
    }
    module.__dict__.update(made)
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.chdir(tmp_path)
    pixels, labels = IMAGES.tensors()
    np.savez("mine.npz", images=pixels.numpy(), labels=labels.numpy())
    np.savez("b_keys.npz", x=pixels.numpy(), y=labels.numpy())
    torch.save(SmallNet().state_dict(), "own.pt")
    save_file(SmallNet().state_dict(), "own.safetensors")


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))


def said(run: Run, *arguments: str, code: int = 0) -> str:
    """All that a command prints, on one line."""
    found, out, err = run(*arguments)
    assert found == code, out + err
    return " ".join((out + err).split())


def test_2_the_report_of_another_evaluation_is_not_replaced(run: Run) -> None:
    said(run, *EVALUATE, "--images", "10")
    page = Path("runs/evaluate-bare/report.html")
    before = page.read_bytes()
    message = said(run, *EVALUATE[:-3], "0.1", *EVALUATE[-2:], "--images", "10", code=2)
    assert "holds an evaluation of mine:bare (mine.npz, eps 8/255, seed 0)" in message
    assert "eps 8/255, now 0.1" in message
    assert "choose another --out, or give --overwrite" in message
    assert page.read_bytes() == before


def test_3_eps_of_bytes(run: Run) -> None:
    message = said(run, *EVALUATE[:-3], "8", *EVALUATE[-2:], code=2)
    assert "nothing was attacked" in message
    assert "For 8 grey levels of 255 write 8/255" in message
    assert "write 8/255" in said(run, "attack", "pgd", "mine:bare", "--data", "mine.npz", "--eps", "8")
    with pytest.warns(CasemateWarning, match="write 8/255"):
        PGD(eps=8, steps=2)(SmallNet().eval(), *IMAGES.tensors())


def test_4_a_network_in_training_mode_is_a_note(run: Run) -> None:
    command = ("evaluate", "mine:load_noeval", *EVALUATE[2:], "--images", "20")
    printed = said(run, *command)
    assert "note training-mode" in printed
    assert "it was evaluated in evaluation mode" in printed
    assert "not to be trusted" not in printed.lower()
    assert said(run, *command, "--overwrite", "--fail-under", "0%")


@pytest.mark.parametrize("fault", ["labels", "pixels"])
def test_4_what_makes_the_run_pointless_stops_it_before_any_attack(run: Run, fault: str) -> None:
    pixels, labels = (shifted() if fault == "labels" else IMAGES).tensors()
    np.savez("wrong.npz", images=((255 if fault == "pixels" else 1) * pixels).numpy(), labels=labels.numpy())
    message = said(run, "evaluate", "mine:bare", "--data", "wrong.npz", *EVALUATE[4:], code=2)
    assert {"labels": "if the labels are renamed (", "pixels": "bytes by 1/255"}[fault] in message
    assert "Attacking" not in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("file", ["own.pt", "own.safetensors"])
def test_5_weights_alone_lead_to_a_function(run: Run, file: str) -> None:
    message = said(run, "evaluate", file, "--data", "mine.npz", code=2)
    assert "write a function without arguments that builds it, loads its weights and returns it" in message
    assert "mine:load" in message


def test_6_attack_takes_own_networks_and_data(run: Run) -> None:
    printed = said(run, "attack", "pgd", "mine:load", "--data", "mine.npz", "--eps", "0.1")
    assert "n = 40" in printed


def test_7_every_attack_has_a_command_and_pictures(run: Run) -> None:
    said(run, "attack", "deepfool", "mine:load", "--data", "mine.npz", "--images", "6", "--out", "pictures")
    assert list(Path("pictures").glob("*.png"))


def test_8_and_16_classes_are_a_table_and_passed_checks_a_number(run: Run) -> None:
    code, out, err = run("evaluate", "mine:load", *EVALUATE[2:])
    assert code == 0, err
    head = next(line for line in out.splitlines() if "without an attack" in line and "under attack" in line)
    assert head.split()[0] == "class"
    assert head.split()[-1] == "n"
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["left"], ["middle"], ["right"])]
    assert sorted(row[-1] for row in rows) == ["13", "13", "14"]
    assert " of 0" not in out
    assert "checks passed; -v shows what each of them measured" in out
    assert "frozen-copy" not in out
    assert "frozen-copy" in said(run, "evaluate", "mine:load", *EVALUATE[2:], "--overwrite", "-v")


def test_9_a_quick_look_is_not_green(run: Run) -> None:
    said(run, "evaluate", "mine:load", *EVALUATE[2:-3], "0.001", *EVALUATE[-2:])
    page = Path("runs/evaluate-load/report.html").read_text()
    assert "not broken by a quick look" in page
    assert "budget quick" in page
    assert "Borders between grades: 10 %, 50 %, 90 % (a convention)" in page


def test_11_modules_numbers_and_paths() -> None:
    pixels, labels = IMAGES.tensors()
    net = SmallNet().eval()
    result = PGD(eps=8 / 255, steps=2)(net, pixels, labels)
    found = PGD(eps=8 / 255, steps=2)(net, pixels.double().numpy(), labels.tolist())
    assert torch.equal(found.success, result.success)
    model = Classifier(net, classes=3, mean=0.286, std=0.353, input_shape=(1, 8, 8))
    assert model.classes == ("0", "1", "2")
    with pytest.raises(ShapeError, match="only one of mean and std is given"):
        Classifier(net, mean=0.286)
    with pytest.raises(casemate.CasemateError, match="expected an object of a torch"):
        evaluate(SmallNet, pixels, labels, eps=0.1)  # pyright: ignore[reportArgumentType]


def test_12_and_21_results_have_words_files_and_comparisons() -> None:
    found = evaluate(SmallNet().eval(), IMAGES, eps="8/255", budget="quick")
    assert len(str(found).splitlines()) < 8
    assert found.summary().startswith(str(found).splitlines()[0])
    assert (
        found.report("page").is_file() if isinstance(found.report("page"), Path) else Path("page/report.html").is_file()
    )
    assert "McNemar" in compare(found, found).summary()
    assert callable(casemate.progress_bars)


def test_13_eps_is_shown_as_written(run: Run) -> None:
    printed = said(run, *EVALUATE, "--images", "10")
    assert "8/255" in printed
    assert "0.031" not in printed
    assert "0.031" not in said(run, *EVALUATE, "--images", "10", "--overwrite", "--fail-under", "100%", code=3)


def test_14_keys_of_a_file_and_percentages(run: Run) -> None:
    np.savez("c_keys.npz", a=np.zeros(3), b=np.zeros(3))
    message = said(run, "evaluate", "mine:bare", "--data", "c_keys.npz", code=2)
    assert "c_keys.npz has no images and no labels; it holds a, b; expected" in message
    printed = said(run, "attack", "fgsm", "mine:bare", "--data", "b_keys.npz", "--eps", "0.1")
    assert "used `x` as the images and `y` as the labels" in printed
    assert said(run, *EVALUATE, "--images", "10", "--fail-under", "0%")


def test_15_an_untrained_network_is_called_so(run: Run) -> None:
    printed = said(run, "evaluate", "mine:untrained", *EVALUATE[2:])
    assert "UNTRAINED OR MISLABELLED" in printed


def test_17_a_normalisation_is_named_by_mean_and_std() -> None:
    with pytest.raises(EvaluationError, match=r"MNIST's mean and deviation \(mean 0\.1307, std 0\.3081\)"):
        evaluate(normalised_otherwise(), seen_right(), eps=0.05)


def test_19_fewer_images_than_wanted_are_said_to_be(run: Run) -> None:
    printed = said(run, *EVALUATE, "--images", "20000")
    assert "--images 20,000: there are only 40 images; all of them are used" in printed
    message = said(run, *EVALUATE[:-3], "0", *EVALUATE[-2:], "--out", "zero", code=2)
    assert "expected one or more, all above zero" in message
    assert not Path("zero").exists()


def test_20_the_command_to_verify_is_the_users_own(run: Run) -> None:
    printed = said(run, *EVALUATE, "--images", "10")
    assert "casemate verify runs/evaluate-bare/record.json mine:bare --data mine.npz" in printed
    verified = said(run, "verify", "runs/evaluate-bare/record.json", "mine:bare", "--data", "mine.npz")
    assert "The clean images are those of mine.npz holds" in verified


def test_22_attacks_and_checks_of_ones_own_need_public_names_only() -> None:
    names = (
        "Attack",
        "Criterion",
        "Passes",
        "Streams",
        "RunResult",
        "check",
        "Check",
        "CheckContext",
        "Measured",
        "NotRun",
    )
    assert all(hasattr(casemate, name) for name in names)
    with pytest.raises(SettingError, match=r"casemate\.check"):
        evaluate(SmallNet().eval(), IMAGES, eps=0.1, checks=[len])  # pyright: ignore[reportArgumentType]
