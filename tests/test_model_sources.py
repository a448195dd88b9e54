"""Models from wherever users have them: what opens, what is found out, what contradicts, and that nothing runs."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import casemate
from casemate.attacks import Square
from casemate.data import to_float
from casemate.errors import CasemateWarning, MachineError, ModelError
from casemate.models import Classifier, ModelFacts, ModelMetadata, OpenedModel, open_model, save
from casemate.models.sources.formats import format_of
from conftest import TINY_SHAPE, tiny_images, tiny_model
from test_study import Run, runner

IMAGES = to_float(tiny_images(12).pixels)
CODE = """
    import torch
    from torch import nn
    from casemate import Classifier


    class Network(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


    class Probabilities(nn.Module):
        def forward(self, images):
            means = images.flatten(1)[:, :3]
            return (means + 0.1) / (means + 0.1).sum(1, keepdim=True)


    class Parts(Network):
        def forward(self, images):
            return {"scores": super().forward(images), "mask": images}


    class LastLayout(Network):
        def forward(self, images):
            return super().forward(images.permute(0, 3, 1, 2))


    class InTraining(Network):
        def __init__(self):
            super().__init__()
            self.train()


    def made():
        return Classifier(Network(), mean=0.5, std=0.25, classes=3)


    ready = Network()
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with the user's own code, in the current folder."""
    path = tmp_path / "own_code.py"
    path.write_text(textwrap.dedent(CODE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop("own_code", None)


def network() -> nn.Module:
    """The network of the user's code, with weights of its own."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()


def stated(**facts: Any) -> ModelFacts:
    """What a user says of a model."""
    return ModelFacts(**facts)


def origins(opened: OpenedModel) -> dict[str, str]:
    """Where each known fact is from."""
    return dict(opened.facts.origins)


# The user's own code and weights --------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["own_code:Network", "own_code.py:Network", "{}:Network", "own_code:ready"])
@pytest.mark.parametrize("kind", ["safetensors", "state dict", "checkpoint", "parallel", "classifier"])
def test_own_code_takes_weights(own: Path, source: str, kind: str) -> None:
    expected, path = network(), own.with_name("weights.pt")
    state = expected.state_dict()
    if kind == "classifier":
        expected = Classifier(expected, mean=0.5, std=0.2).eval()
    match kind:
        case "safetensors":
            safetensors.torch.save_file(state, path)
        case "state dict":
            torch.save(state, path)
        case "checkpoint":
            torch.save({"epoch": 3, "state_dict": state}, path)
        case "parallel":
            torch.save({f"module.{name}": each for name, each in state.items()}, path)
        case _:
            safetensors.torch.save_file(expected.state_dict(), path)
    opened = open_model(source.format(own), weights=path)
    assert torch.equal(opened.model(IMAGES), expected(IMAGES))
    assert opened.short == source.rpartition(":")[2]


def test_weights_of_a_classifier_bring_its_normalisation(own: Path) -> None:
    del own
    expected = Classifier(network(), mean=0.1, std=0.7).eval()
    torch.save(expected.state_dict(), "weights.pt")
    opened = open_model("own_code:made", weights=Path("weights.pt"))
    assert torch.equal(opened.model(IMAGES), expected(IMAGES))
    assert opened.facts.mean == pytest.approx((0.1,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("3.bias"), r"another network .*missing \['3.bias'\]"),
        (lambda state: state.update({"4.bias": torch.zeros(3)}), r"unexpected \['4.bias'\]"),
        (lambda state: state.update({"3.bias": torch.zeros(4)}), r"3.bias has the shape \(4,\), but .*\(3,\)"),
        (lambda state: state.update({"3.bias": 5}), "'3.bias' with an int"),
        (lambda state: state.clear(), "expected a state dict"),
    ],
)
def test_weights_that_do_not_fit(own: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    del own
    state: dict[str, Any] = dict(network().state_dict())
    change(state)
    torch.save(state, "weights.pt")
    with pytest.raises(ModelError, match=words):
        open_model("own_code:Network", weights=Path("weights.pt"))


# Whole networks -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 5, "any"])
def test_a_torch_export_program_opens_with_trust(tmp_path: Path, batch: int | str) -> None:
    expected, path = network(), tmp_path / "net.pt2"
    count = batch if isinstance(batch, int) else 2
    shapes: Any = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)} if batch == "any" else {}
    torch.export.save(torch.export.export(expected, (IMAGES[:count],), **shapes), path)
    with pytest.raises(ModelError, match=r"torch.export program, .*nothing of it was run.*--trust-code"):
        open_model(path)
    opened = open_model(path, trust_code=True)
    assert (opened.facts.channels, opened.facts.size) == (1, (8, 8))
    opened.check(IMAGES)
    torch.testing.assert_close(opened.model(IMAGES), expected(IMAGES))
    assert opened.facts.classes == ("0", "1", "2")


def test_torchscript_opens_with_trust_and_a_note(tmp_path: Path) -> None:
    expected, path = network(), tmp_path / "net.pt"
    with warnings.catch_warnings(action="ignore"):
        traced: Any = torch.jit.trace(expected, IMAGES)
        traced.save(str(path))
    assert format_of(path) == "torchscript"
    with pytest.raises(ModelError, match=r"TorchScript.*--trust-code.*torch\.onnx\.export"):
        open_model(path)
    with pytest.warns(CasemateWarning, match="which PyTorch deprecates"):
        opened = open_model(path, trust_code=True)
    torch.testing.assert_close(opened.model(IMAGES), expected(IMAGES))


def test_a_pickled_module_opens_with_trust(tmp_path: Path) -> None:
    expected, path = network(), tmp_path / "net.pt"
    torch.save(expected, path)
    with pytest.raises(ModelError, match=r"a pickle of more than weights.*--trust-code.*mine\.py:Network"):
        open_model(path)
    assert torch.equal(open_model(path, trust_code=True).model(IMAGES), expected(IMAGES))


def test_weights_alone_say_how_to_give_their_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    with pytest.raises(ModelError, match=r"has weights only, .*mine\.py:Network --weights .*weights\.pt"):
        open_model(path)


# Nothing runs ---------------------------------------------------------------------------------------------------------
class Payload:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def _zipped(payload: Payload, path: Path) -> None:
    torch.save(payload, path)


def _in_state(payload: Payload, path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1), "more": payload}, path)


def _bare(payload: Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload))


def _in_program(payload: Payload, path: Path) -> None:
    """A program by torch.export whose every entry that may be a pickle is one."""
    honest = path.with_name("honest.pt2")
    torch.export.save(torch.export.export(network(), (IMAGES[:1],)), honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(path, "w") as target:
        for each in source.namelist():
            pickled = not each.endswith(("json", "version", "byteorder"))
            target.writestr(each, pickle.dumps(payload) if pickled else source.read(each))


def _script(payload: Payload, path: Path) -> None:
    """TorchScript that writes a file while it is loaded."""

    class Writes(nn.Module):
        mark: str

        def __init__(self, mark: str) -> None:
            super().__init__()
            self.mark = mark

        @torch.jit.export
        def __getstate__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.mark

        @torch.jit.export
        def __setstate__(self, mark: str) -> None:
            self.mark = mark
            self.training = False
            torch.save([torch.zeros(1)], mark)

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(Writes(str(payload.mark))).save(str(path))


@pytest.mark.parametrize("write", [_zipped, _in_state, _bare, _in_program])
@pytest.mark.parametrize("name", ["net.pt", "net.pt2", "net.safetensors", "net.bin"])
def test_a_payload_does_not_run(tmp_path: Path, write: Callable[[Payload, Path], None], name: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    write(Payload(mark), path)
    with pytest.raises(ModelError):
        open_model(path)
    with pytest.raises(ModelError):
        open_model("torch.nn:Identity", weights=path)
    assert not mark.exists()


def test_the_payload_of_a_pickle_would_be_noticed(tmp_path: Path) -> None:
    for write in (_zipped, _in_state, _bare):
        mark, path = tmp_path / f"mark-{write.__name__}", tmp_path / "net.pt"
        write(Payload(mark), path)
        if write is _bare:
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert mark.exists(), write


def test_torchscript_does_not_run_without_trust(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "net.pt"
    _script(Payload(mark), path)
    with pytest.raises(ModelError, match="TorchScript"):
        open_model(path)
    assert not mark.exists()
    with warnings.catch_warnings(action="ignore"):
        open_model(path, trust_code=True)
    assert mark.exists()


# What is found out, and what contradicts ------------------------------------------------------------------------------
def test_facts_name_their_origins(own: Path) -> None:
    del own
    opened = open_model("own_code:InTraining", overrides=stated(mean=(127.5,), std=(255.0,), bounds=(0.0, 255.0)))
    assert opened.facts.mode == "training (it is judged in evaluation mode)"
    assert opened.model.training
    opened.check(IMAGES)
    facts, where = opened.facts, origins(opened)
    assert (facts.channels, facts.size, facts.classes) == (1, (8, 8), ("0", "1", "2"))
    assert where["bounds"] == where["mean"] == "stated by the user"
    assert where["classes"] == where["size"] == "found by the first call"
    rows = {title: (value, origin) for title, value, origin in facts.rows()}
    assert rows["range"][0] == "0 to 255"
    assert rows["layout"] == ("channels, height, width", "by convention; --channels-last changes it")
    torch.testing.assert_close(opened.model(IMAGES), opened.model.network(IMAGES - 0.5))
    assert json.loads(json.dumps(facts.as_json()))["std"] == {"value": [255.0], "origin": "stated by the user"}


def test_a_checkpoint_says_everything(tmp_path: Path) -> None:
    path = save(tiny_model(), tmp_path / "m.safetensors", ModelMetadata(architecture="tiny", dataset="tiny"))
    opened = open_model(path)
    assert (opened.dataset, opened.facts.size, opened.facts.channels) == ("tiny", (8, 8), 1)
    assert open_model(path, overrides=stated(classes=("left", "middle", "right"))).facts.origins["classes"]
    renumbered = open_model(path, overrides=stated(classes=("0", "1", "2")))
    assert len(renumbered.model.classes) == 3
    normalised = open_model(path, overrides=stated(mean=(0.5,), std=(0.5,)))
    torch.testing.assert_close(normalised.model(IMAGES), opened.model.network(2 * IMAGES - 1))


def test_the_layout_and_the_range_are_what_was_stated(own: Path) -> None:
    del own
    torch.save(network().state_dict(), "weights.pt")
    plain = open_model("own_code:Network", weights=Path("weights.pt"))
    last = open_model("own_code:LastLayout", weights=Path("weights.pt"), overrides=stated(channels_last=True))
    last.check(IMAGES)
    torch.testing.assert_close(last.model(IMAGES), plain.model(IMAGES))


def test_probabilities_become_logits(own: Path) -> None:
    del own
    opened = open_model("own_code:Probabilities", overrides=stated(output="probabilities"))
    opened.check(IMAGES)
    logits = opened.model(IMAGES)
    torch.testing.assert_close(logits.softmax(1), opened.model.network(IMAGES))
    assert (logits < 0).all()


CONTRADICTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mean without std": ("Network", {"mean": (0.5,)}, "--mean is given without --std"),
    "std without mean": ("Network", {"std": (0.5,)}, "--std is given without --mean"),
    "zero std": ("Network", {"mean": (0.5,), "std": (0.0,)}, "--std 0; expected positive"),
    "colour mean": (
        "Network",
        {"mean": (0.5,) * 3, "std": (0.2,) * 3},
        "--mean has 3 numbers .*, but the images have 1 channel",
    ),
    "byte mean": ("Network", {"mean": (127.5,), "std": (64.0,)}, "--mean 127.5 .* give --bounds 0 255"),
    "byte bounds": ("Network", {"mean": (0.5,), "std": (0.2,), "bounds": (0.0, 255.0)}, "leave --bounds out"),
    "reversed bounds": ("Network", {"bounds": (1.0, 0.0)}, "--bounds 1 0; expected the smaller"),
    "classes": ("Network", {"classes": tuple("0123456789")}, "--classes states another number"),
    "size": ("Network", {"size": (32, 32)}, "are 8 x 8, but the model takes 32 x 32 .*--size"),
    "layout": ("Network", {"channels_last": True}, "leave --channels-last out"),
    "layout not stated": ("LastLayout", {}, "give --channels-last"),
    "logits": ("Probabilities", {"output": "logits"}, "--output logits, but the network returns probabilities"),
    "probabilities": ("Network", {"output": "probabilities"}, "--output probabilities, but the network returns"),
    "part": ("Parts", {"output": "logits_"}, "--output names the part"),
    "part not stated": ("Parts", {}, "output='scores'"),
    "other mean": ("made", {"mean": (0.4,), "std": (0.25,)}, "--mean 0.4 contradicts the model, which has 0.5"),
    "other classes": ("made", {"classes": ("a", "b")}, "--classes a b contradicts the model, which has 3"),
    "other bounds": ("made", {"bounds": (0.0, 255.0)}, "--bounds 0 255 contradicts the model, which has 0 to 1"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_names_the_option(own: Path, name: str) -> None:
    del own
    source, facts, words = CONTRADICTIONS[name]
    with pytest.raises(ModelError, match=words):
        open_model(f"own_code:{source}", overrides=stated(**facts) if facts else None).check(IMAGES)


# The command line -----------------------------------------------------------------------------------------------------
@pytest.fixture
def images(own: Path) -> Path:
    """A file of tiny images."""
    path, tiny = own.with_name("tiny.npz"), tiny_images(12)
    np.savez(path, images=tiny.pixels.numpy(), labels=tiny.labels.numpy())
    return path


def test_the_facts_are_shown_before_an_attack(run: Run, images: Path) -> None:
    torch.save(network().state_dict(), "weights.pt")
    command = ("attack", "fgsm", "own_code.py:Network", "--weights", "weights.pt", "--data", images, "--eps", "0.1")
    code, out, err = run(*command, "--mean", "0.5", "--std", "1/4", "--out", "out")
    assert code == 0, err
    assert err.index("own_code.py:Network") < err.index("channels, height, width")
    assert "Accuracy left" in out
    assert "stated by the user" in err
    found = json.loads(Path("out/result.json").read_text())
    assert found["model_options"] == ["--weights", "weights.pt", "--mean", "0.5", "--std", "1/4"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mean", "half", "--std", "1"], "--mean 'half' is not a number"),
        (["--bounds", "0"], "--bounds 0; expected two numbers"),
        (["--size", "0", "8"], "--size 0 8; expected height and width"),
        (["--size", "28"], "the model takes 28 x 28 (stated with an option)"),
        (["--classes", "1"], "--classes 1; expected the number of classes"),
        (["--classes", "7"], "--classes states another number of classes"),
        (["--output", "5", "--channels-last"], "leave --channels-last out"),
    ],
)
def test_options_that_are_wrong_are_named(run: Run, images: Path, options: list[str], words: str) -> None:
    code, out, err = run("attack", "fgsm", "own_code:Network", "--data", images, *options)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())


def test_images_of_another_shape_are_named(own: Path) -> None:
    del own
    shape = (2, *TINY_SHAPE[1:])
    opened = open_model("own_code:Network", overrides=stated(channels=1))
    with pytest.raises(ModelError, match="the images have 2 channels, but the model takes 1"):
        opened.check(torch.zeros(4, *shape))


# Black boxes ----------------------------------------------------------------------------------------------------------
BOXES = """
    import numpy as np

    CALLED = []


    def thirds(images):
        CALLED.append(len(images))
        return np.stack([images[..., 3 * k : 3 * k + 2].mean((1, 2, 3)) for k in range(3)], 1)


    def scores(images):
        return thirds(images.numpy())


    def labels(images):
        return thirds(images.numpy()).argmax(1)


    def words(images):
        return "cat"
"""


@pytest.fixture
def boxes(own: Path) -> Iterator[Any]:
    """The module `boxes` of functions that return scores or labels."""
    own.with_name("boxes.py").write_text(textwrap.dedent(BOXES))
    sys.path.insert(0, str(own.parent))
    import boxes  # pyright: ignore[reportMissingImports]

    yield boxes
    sys.modules.pop("boxes", None)


@pytest.mark.parametrize("name", ["scores", "labels"])
def test_a_black_box_is_attacked_without_gradients(run: Run, boxes: Any, images: Path, name: str) -> None:
    box = ("--black-box", *(() if name == "scores" else ("--classes", "3")), "--data", images)
    code, out, err = run("attack", "hop-skip-jump", f"boxes:{name}", *box, "--n-queries", "400", "--images", "4")
    assert code == 0, err
    assert f"The black box was called with {sum(boxes.CALLED):,} images." in " ".join(err.split())
    code, out, err = run("attack", "pgd", f"boxes:{name}", *box)
    assert (code, out) == (2, "")
    assert "PGD computes gradients, but a black box has none; run an attack without" in " ".join(err.split())


def test_a_black_box_keeps_its_budget(run: Run, boxes: Any, images: Path) -> None:
    box = ("boxes:scores", "--black-box", "--queries", "50", "--data", images)
    code, out, err = run("attack", "square", *box, "--eps", "0.1", "--n-queries", "100")
    assert (code, out) == (2, "")
    assert "--queries 50: the attacks may need" in " ".join(err.split())
    assert sum(boxes.CALLED) <= 50
    model = open_model("boxes:scores", black_box=True, queries=50).model
    with pytest.raises(ModelError, match="the budget of 50 queries does not suffice"):
        Square(eps=0.1, n_queries=100)(model, IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))


def test_a_black_box_is_evaluated(run: Run, boxes: Any, images: Path) -> None:
    del boxes
    command = ("evaluate", "boxes:scores", "--black-box", "--data", images, "--budget", "quick", "--eps", "0.05")
    code, out, err = run(*command, "--json", "--force")
    assert code == 0, err
    found = json.loads(out)
    assert [each["attack"] for each in found["attacks"]] == ["square", "hop-skip-jump"]
    assert found["queries"] > 0


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("labels", {}, "give the number of classes: --classes 10"),
        ("labels", {"classes": ("0", "1")}, "--classes states 2"),
        ("words", {}, "the black box returned a str"),
        ("CALLED", {}, "is a list; expected a function of images"),
    ],
)
def test_a_black_box_that_cannot_be_used(boxes: Any, name: str, facts: dict[str, Any], words: str) -> None:
    del boxes
    with pytest.raises(ModelError, match=words):
        open_model(f"boxes:{name}", black_box=True, overrides=stated(**facts) if facts else None).check(IMAGES.flip(0))


# Training from any model ----------------------------------------------------------------------------------------------
def test_a_training_starts_from_own_code_and_its_weights_open_again(run: Run, own: Path) -> None:
    del own
    source = ("own_code:Digits", "--mean", "0.5", "--std", "0.5")
    Path("own_code.py").write_text(
        textwrap.dedent(CODE) + "\n\ndef Digits():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    command = ("train", "--start", *source, "--dataset", "digits", "--train-images", "100", "--epochs", "1")
    code, out, err = run(*command, "--out", "trained.safetensors")
    assert code == 0, err
    assert "own_code:Digits" in err
    assert "Test accuracy" in out
    assert "Other commands open it as own_code:Digits --weights trained.safetensors, with the same" in " ".join(
        out.split()
    )
    code, out, err = run("attack", "fgsm", "own_code:Digits", "--weights", "trained.safetensors", "--dataset", "digits")
    assert code == 0, err
    assert "the Classifier whose weights are in trained.safetensors" in err
    code, out, err = run("attack", "fgsm", "trained.safetensors")
    assert "own_code:Digits --weights trained.safetensors" in " ".join(err.split())


# Damaged files --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["safetensors", "state dict", "program", "script", "zip"])
def test_damaged_files_are_one_error(tmp_path: Path, own: Path, kind: str) -> None:
    del own
    path = tmp_path / f"damaged.{'pt2' if kind == 'program' else 'pt'}"
    match kind:
        case "safetensors":
            path.write_bytes(safetensors.torch.save(network().state_dict()))
        case "state dict":
            torch.save(network().state_dict(), path)
        case "program":
            torch.export.save(torch.export.export(network(), (IMAGES[:1],)), path)
        case "script":
            _script(Payload(tmp_path / "mark"), path)
        case _:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("archive/data.pkl", bytes(300_000_000))
    raw, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(40 if len(raw) < 1_000_000 and kind != "zip" else 1):
        damaged = bytearray(raw[: random.integers(len(raw))] if number % 2 else raw)
        for place in random.integers(max(len(damaged), 1), size=0 if kind == "zip" else 6):
            if damaged:
                damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            open_model("own_code:Network", weights=path)
        except ModelError:
            refused += 1
        with pytest.raises(ModelError):
            open_model(path)
    assert refused
    assert not (tmp_path / "mark").exists()


def test_the_command_of_a_result_has_the_options_of_its_model(run: Run, images: Path) -> None:
    torch.save(network().state_dict(), "weights.pt")
    options = ("--weights", "weights.pt", "--mean", "0.5", "--std", "0.25")
    code, out, err = run(
        *("evaluate", "own_code:Network", *options, "--data", images, "--budget", "quick"),
        *("--eps", "0.02", "--force", "--out", "out"),
    )
    assert code == 0, err
    assert "stated by the user" in err
    assert "Can it be trusted?" in out
    (line,) = [line for line in out.splitlines() if "For others to check: " in line]
    command = line.partition("For others to check: casemate ")[2].partition(" (")[0].split()
    code, out, err = run(*command)
    assert code == 0, err
    assert "Everything that was checked holds" in " ".join(out.split())
    result = json.loads(Path("out/result.json").read_text())
    assert result["model_options"] == list(options)
    assert result["model_facts"]["mean"] == {"value": [0.5], "origin": "stated by the user"}


# Payloads in formats of the extras, which are refused before the extra is needed --------------------------------------
def keras_archive(path: Path, *layers: dict[str, Any]) -> None:
    """A `.keras` file of some layers."""
    config = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"layers": list(layers)},
        "registered_name": None,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"")


RUNS = {"module": "builtins", "class_name": "exec", "config": "open('mark', 'w').close()"}
LAYERS: dict[str, dict[str, Any]] = {
    "a lambda": {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"function": {"class_name": "__lambda__"}},
    },
    "a pickled module": {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": "gASV"}},
    "another module": {"module": "os", "class_name": "system", "config": "touch mark"},
    "a module in Keras": {"module": "keras.src.utils.file_utils", "class_name": "get_file", "config": {}},
    "a nested module path": {"module": "keras.layers.os", "class_name": "Dense", "config": {}},
    "a function": {"module": "keras.utils", "class_name": "function", "config": "get_file"},
    "a registered object": {"module": "keras.layers", "class_name": "Dense", "registered_name": "mine>Dense"},
    "no module": {"class_name": "Dense", "config": {}},
    "deep inside": {"module": "keras.layers", "class_name": "Dense", "config": {"bias_initializer": {"a": [[RUNS]]}}},
    "a compiled layer": {"module": "keras.layers", "class_name": "Dense", "compile_config": {"loss": RUNS}},
    "a name that is no text": {"module": "keras.layers", "class_name": ["Dense"], "config": {}},
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_keras_file_of_anything_else_is_refused_before_keras_sees_it(tmp_path: Path, layer: str) -> None:
    path = tmp_path / "net.keras"
    keras_archive(path, LAYERS[layer])
    before = set(sys.modules)
    with pytest.raises(ModelError, match=r"more than built-in layers .*nothing of it was run.*--trust-code"):
        open_model(path)
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] == "keras"}


@pytest.mark.parametrize("name", ["net.h5", "net.keras", "net.pt", "net.safetensors"])
def test_hdf5_is_recognised_by_its_content_and_not_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ModelError, match=r"HDF5, and loading one can run code; nothing of it was run.*--trust-code"):
        open_model(path)


def test_torchscript_as_weights_does_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "net.pt"
    _script(Payload(mark), path)
    with pytest.raises(ModelError):
        open_model("torch.nn:Identity", weights=path)
    assert not mark.exists()


def hugging_face(folder: Path, **config: Any) -> Path:
    """A folder as of an image classifier, with code beside it that writes a file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViT"], **config}))
    safetensors.torch.save_file(network().state_dict(), folder / "model.safetensors")
    for name in ("modeling_vit.py", "configuration_vit.py", "__init__.py"):
        (folder / name).write_text("open('mark', 'w').close()\n")
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "modeling_vit.ViT"}}, "needs code of its own"),
        ({"attn_implementation": "someone/kernel"}, "names code from elsewhere, attn_implementation"),
        ({"backbone_config": {"_attn_implementation": "someone/kernel"}}, "names code from elsewhere"),
        ({"quantization_config": {"quant_method": "own"}}, "has quantised weights"),
        ({"hidden_size": 10**9}, "hidden_size: 1000000000; expected at most"),
        ({"num_labels": 1e300}, "num_labels: 1e.300; expected at most"),
    ],
)
def test_a_hugging_face_folder_that_leads_elsewhere_is_refused(
    tmp_path: Path, own: Path, config: Any, words: str
) -> None:
    folder = hugging_face(tmp_path / "vit", **config)
    with pytest.raises(ModelError, match=words):
        open_model(folder)
    assert not own.with_name("mark").exists()


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/secret.safetensors", "pytorch_model.bin", 5])
def test_the_weights_of_a_hugging_face_folder_are_its_own(tmp_path: Path, place: Any) -> None:
    folder = hugging_face(tmp_path / "vit")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(
        ModelError, match=r"leads to .*, which was not read; expected \.safetensors files in the folder"
    ):
        open_model(folder)


def test_a_pickle_in_the_place_of_safetensors_does_not_run(tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", hugging_face(tmp_path / "vit")
    for write in (_zipped, _bare):
        write(Payload(mark), folder / "model.safetensors")
        with pytest.raises(ModelError, match=r"is not a complete \.safetensors file"):
            open_model(folder)
    assert not mark.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "net.safetensors", "net.keras"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for arguments in ((tmp_path / name, None), ("torch.nn:Identity", tmp_path / name)):
        with pytest.raises(ModelError, match="a pipe or a device"):
            open_model(arguments[0], weights=arguments[1])


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_another_backend_in_the_environment_is_one_error(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.keras"
    keras_archive(path)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    with pytest.raises(MachineError, match=rf"KERAS_BACKEND is {backend}; expected torch.*KERAS_BACKEND=torch"):
        open_model(path)
    assert "keras" not in sys.modules


# A torchvision that does not fit --------------------------------------------------------------------------------------
def other_torchvision(folder: Path) -> Path:
    """A distribution of torchvision that was built for another PyTorch, and fails as one does."""
    package, about = folder / "torchvision", folder / "torchvision-0.24.0.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.24.0\nRequires-Dist: torch==2.9.0\n"
    )
    return folder


def test_a_torchvision_for_another_pytorch_ends_a_command_with_one_error(tmp_path: Path, images: Path) -> None:
    places = os.pathsep.join([str(other_torchvision(tmp_path / "other")), str(Path(casemate.__file__).parents[1])])
    program = [sys.executable, "-m", "casemate", "attack", "fgsm", "timm:resnet18", "--weights", "w.pt"]
    done = subprocess.run(
        [*program, "--data", str(images)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": places},
    )
    message = " ".join(done.stderr.split())
    assert done.returncode == 2, message
    assert "Traceback" not in message
    for words in ("torchvision is 0.24.0, which belongs to torch 2.9.0", f"torch is {torch.__version__}"):
        assert words in message


# Which files a model was opened from ----------------------------------------------------------------------------------
def test_the_hashes_of_all_files_are_recorded(own: Path) -> None:
    def digest(path: Path | str) -> str:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    torch.save(network().state_dict(), "weights.pt")
    expected = {"own_code.py": digest(own), "weights.pt": digest("weights.pt")}
    for source in ("own_code:Network", "own_code.py:Network"):
        opened = open_model(source, weights=Path("weights.pt"))
        assert dict(opened.sha256) == expected
        assert opened.facts.as_json()["files"] == {"value": expected, "origin": "its files, as they were opened"}
    saved = save(tiny_model(), own.with_name("m.safetensors"), ModelMetadata(architecture="tiny", dataset="tiny"))
    assert dict(open_model(saved).sha256) == {each: digest(each) for each in ("m.safetensors", "m.json")}
