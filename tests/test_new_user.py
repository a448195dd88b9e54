"""What a new user stumbled over with a network of their own, and what casemate says now.

The numbers are those of the list of stumbles: each test is one, with the command or the call that was tried.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

import casemate
from casemate import PGD, CasemateWarning, Classifier, compare, evaluate
from casemate.data import as_labelled
from casemate.errors import DataError, EvaluationError, ModelError, SettingError, ShapeError
from conftest import tiny_images
from test_cli import Run, run
from test_findings import normalised_otherwise, seen_right, shifted
from test_front_door import untyped
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
    assert {"labels": "if the labels are numbered as", "pixels": "store pixels from 0 to 255 as uint8"}[
        fault
    ] in message
    assert "Attacking" not in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("file", ["own.pt", "own.safetensors"])
def test_5_weights_alone_lead_to_a_function(run: Run, file: str) -> None:
    message = said(run, "evaluate", file, "--data", "mine.npz", code=2)
    if file == "own.pt":
        assert "give the code that builds the network, and its weights: mine.py:Network --weights own.pt" in message
    else:
        assert "write a function without arguments that builds it, loads its weights and returns it" in message
        assert "give mine:load as the model; or one that only builds it, and --weights FILE" in message


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


# A second user --------------------------------------------------------------------------------------------------------
def test_folders_name_the_classes_of_a_network_that_has_numbers(run: Run) -> None:
    names = ("hat", "shoe", "tie")
    for place, (pixels, label) in enumerate(zip(IMAGES.pixels, IMAGES.labels.tolist(), strict=True)):
        folder = Path("pictures", names[label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(folder / f"{place}.png")
    shown = said(run, "evaluate", "mine:bare", "--data", "pictures", *EVALUATE[4:], "--out", "named")
    assert "its classes hat, shoe, tie are taken in this order for the model's 0, 1, 2" in shown
    assert "3: hat, shoe, tie named by the images" in shown
    result = json.loads(Path("named", "result.json").read_text())
    assert [each["class"] for each in result["per_class"]] == list(names)
    assert "Everything that was checked holds" in said(
        run, "verify", "named/record.json", "mine:bare", "--data", "pictures", "--threads", "1"
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--weights", "own.pt"], "--weights is about a model of your own; give it with --start MODEL"),
        (["--mean", "0.5"], "--mean is about a model of your own; give it with --start MODEL"),
        (["--labels", "a.csv"], "--labels is about images of your own; give them with --data PATH"),
        (
            ["--start", "mine:bare", "--architecture", "paper-cnn", "--data", "mine.npz"],
            "--architecture paper-cnn beside --start mine:bare, which brings a network of its own; leave",
        ),
    ],
)
def test_options_of_train_that_nothing_would_use_are_refused(run: Run, given: list[str], why: str) -> None:
    assert why in said(run, "train", *given, code=2)


def test_a_teacher_of_ones_own_takes_weights(run: Run) -> None:
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict(), "net.safetensors")
    distil = ("train", "--recipe", "distillation", "--teacher", "net.py:net", "--weights", "net.safetensors")
    own = ("--architecture", "paper-cnn", "--data", "mine.npz", "--epochs", "1", "--validation-images", "5")
    printed = said(run, *distil, *own, "--dry-run", "--threads", "1")
    assert "net.py:net" in printed


def test_a_colour_network_that_no_attack_fools_is_evaluated_and_resumed(run: Run) -> None:
    colour = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.savez("colour.npz", images=colour.numpy(), labels=np.zeros(12, dtype=np.int64))
    Path("steady.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Steady(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n"
        "        self.layer = nn.Linear(192, 3)\n\n"
        "    def forward(self, images):\n"
        "        return 1e-3 * self.layer(images.flatten(1)) + torch.tensor([1.0, 0.0, 0.0])\n"
    )
    command = ("evaluate", "steady.py:Steady", "--data", "colour.npz", *EVALUATE[4:], "--force")
    assert "Resumed" not in said(run, *command)
    assert re.search(r"Resumed: (\d+) of \1 pieces are there already", said(run, *command))


def test_a_pickled_network_is_found_in_the_current_folder() -> None:
    program = "import net_of_mine, torch; torch.save(net_of_mine.Net(), 'whole.pt')"
    Path("net_of_mine.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": "."})
    command = ("evaluate", "whole.pt", "--trust-code", "--data", "mine.npz", "--eps", "0.1", "--dry-run")
    done = subprocess.run([sys.executable, "-m", "casemate", *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # in a process of its own, whose path has no current folder but by -m
    assert "Would be evaluated" in done.stdout


def test_a_black_box_of_classes_gets_a_verdict_and_its_queries_are_counted_before(run: Run) -> None:
    Path("box.py").write_text(
        "import numpy as np\n\n\ndef classes(images):\n"
        "    left, middle, right = (images[:, 0, :, part].mean((1, 2)).numpy() for part in"
        " (slice(0, 3), slice(3, 5), slice(5, 8)))\n"
        "    return np.argmax(np.stack([left, middle, right], 1), 1)\n"
    )
    box = ("box.py:classes", "--black-box", "--classes", "3", "--data", "mine.npz", "--images", "4")
    short = said(run, "attack", "square", *box, "--eps", "0.1", "--n-queries", "10", "--queries", "20", code=2)
    assert "--queries 20: the attacks may need" in short
    assert "give --queries" in short
    shown = said(run, "evaluate", *box, "--eps", "8/255", "--budget", "quick", "--threads", "1", "--force")
    assert "as probabilities do" not in shown
    assert "Can it be trusted? Yes" in shown.replace("│ ", "")


def test_an_opened_model_is_evaluated_as_it_is(run: Run) -> None:
    del run
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict(), "net.safetensors")
    opened = casemate.models.open_model("net.py:net", weights="net.safetensors")
    images = casemate.data.open_images("mine.npz")
    found = evaluate(untyped(opened), images, eps=0.1, budget="quick", force=True)
    assert found.clean_accuracy == evaluate(opened.model, IMAGES, eps=0.1, budget="quick", force=True).clean_accuracy


def test_models_attacked_differently_are_not_compared() -> None:
    one, other = (evaluate(SmallNet().eval(), IMAGES, eps=0.1, attacks=PGD(eps=0.1, steps=n)) for n in (1, 2))
    assert compare(one, one).conclusion == "No difference in robust accuracy is shown: it is within chance."
    quick = evaluate(SmallNet().eval(), IMAGES, eps=0.1, budget="quick")
    assert (
        compare(one, quick).conclusion
        == "Nothing follows: they were attacked differently, budget own and budget quick."
    )
    assert "more robust" not in compare(quick, other).summary()


def test_notes_are_named_in_python_too() -> None:
    found = evaluate(SmallNet().train(), IMAGES, eps=0.1, budget="quick")
    assert "notes            training-mode" in str(found)
    assert "note training-mode: the model was given in training mode" in found.summary()
    (line,) = [line for line in found.summary().splitlines() if line.startswith("  checks")]
    assert (
        sum(int(part.split()[-2 if "not run" not in part else 0]) for part in line.split("checks")[1].split(",")) == 38
    )
    assert found.robust_accuracy == found.robust[-1].value


@pytest.mark.parametrize("beyond", [9e-7, 1e-6])
def test_pixels_a_hair_outside_are_clipped_or_refused(beyond: float) -> None:
    pixels, labels = IMAGES.tensors()
    if beyond > 9e-7:
        with pytest.raises(ShapeError, match=r"as resizing makes them. Clip them: images\.clamp\(0, 1\)"):
            evaluate(SmallNet().eval(), pixels - 10 * beyond, labels, eps=0.1)
        return
    hair = torch.where(pixels == 0, -beyond, pixels)
    found = evaluate(SmallNet().eval(), hair, labels, eps=0.1, budget="quick")
    assert found.verdict.trust.trusted
    record, _ = casemate.make_record(found, SmallNet().eval(), name="hair", data="images")
    checked = casemate.verify_record(
        record, SmallNet().eval(), images=casemate.LabelledImages(pixels=hair, labels=labels)
    )
    assert checked.holds


def test_images_that_are_not_numbers_are_counted() -> None:
    pixels, labels = IMAGES.tensors()
    pixels[3, 0, 0, 0] = float("nan")
    with pytest.raises(
        ShapeError, match="1 of 40 images have pixels that are not finite numbers, the first of them image 3"
    ):
        PGD(eps=0.1)(SmallNet().eval(), pixels, labels)


def test_a_radius_of_linf_in_another_norm_is_noted() -> None:
    found = evaluate(SmallNet().eval(), IMAGES, eps="8/255", norm="L2", budget="quick")
    (sentence,) = [each.sentence for each in found.findings if each.check == "eps-unit"]
    assert "8/255 looks like a radius of Linf" in sentence
    assert "eps-unit" not in [
        each.check for each in evaluate(SmallNet().eval(), IMAGES, eps=0.5, norm="L2", budget="quick").findings
    ]


def test_a_check_needs_a_threshold_and_a_result() -> None:
    with pytest.raises(
        SettingError, match="has no threshold, so it could never be raised; give note=, weakens= or voids="
    ):
        casemate.check("mine", "It holds", why="It matters.", advice="Look.")
    mine = casemate.check("mine", "It holds", weakens=0.5, why="It matters.", advice="Look.")(
        untyped(lambda context: 0.7)
    )
    found = evaluate(SmallNet().eval(), IMAGES, eps=0.1, budget="quick", checks=mine)
    (finding,) = [each for each in found.findings if each.check == "mine"]
    assert finding.failed
    assert "returned a float; expected casemate.Measured" in finding.sentence


def test_an_attack_needs_its_labels_and_a_result() -> None:
    class Lost(casemate.Attack):
        """Returns images alone."""

        def max_passes(self, classes: int) -> casemate.Passes:
            return casemate.Passes(forward=1)

        def run(self, model: Any, clean: Any, criterion: Any, streams: Any, advance: Any) -> Any:
            return clean

    pixels, labels = IMAGES.tensors()
    with pytest.raises(SettingError, match=r"run returned a Tensor; expected a casemate\.RunResult"):
        dataclass(frozen=True)(Lost)()(SmallNet().eval(), pixels, labels)
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=8)
    with pytest.raises(DataError, match=r"give the true classes too\. A DataLoader or a Dataset is read by"):
        PGD(eps=0.1)(SmallNet().eval(), untyped(loader))
    assert len(PGD(eps=0.1, steps=2)(SmallNet().eval(), *as_labelled(loader).tensors())) == 40


class Augmented(TorchDataset[tuple[Tensor, int]]):
    """Another image at every reading."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        pixels, labels = IMAGES[place : place + 1].tensors()
        return (pixels[0] + 0.01 * torch.rand(1, 8, 8)).clamp(0, 1), int(labels[0])


@pytest.mark.parametrize(
    "wrapped", [lambda each: each, lambda each: DataLoader(each, batch_size=8)], ids=["set", "loader"]
)
def test_augmented_test_images_are_refused(wrapped: Any) -> None:
    with pytest.raises(DataError, match="another image at a second reading: its transform draws at random"):
        evaluate(SmallNet().eval(), wrapped(Augmented()), eps=0.1)


@pytest.mark.parametrize(
    ("given", "way"),
    [
        (SmallNet, r"Make an object of the class: SmallNet\(\)"),
        (SmallNet().state_dict(), r"network\.load_state_dict"),
        ("own.pt", r"load_state_dict into a network of your own"),
        (lambda images: images, r"into the forward of a torch\.nn\.Module"),
    ],
    ids=["class", "state dict", "path", "function"],
)
def test_what_is_no_model_is_told_the_way_to_one(given: Any, way: str) -> None:
    with pytest.raises(ModelError, match=way):
        evaluate(given, IMAGES, eps=0.1)
