"""The examples in README and docs: Python runs as it stands, command lines are parsed, links and headings exist."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import casemate
from casemate.cli.main import parse
from casemate.data.fashion_mnist import CLASSES, first_test_images

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_ELSEWHERE = {'device="cuda"': 'device="cpu"', "s3://bucket/casemate": "memory://docs/casemate"}
"""What a page takes from a machine with a GPU or an account, and what stands for it here."""


@final
@dataclass(frozen=True)
class Snippet:
    """A block of code on a page."""

    page: str
    language: str
    code: str


def snippets() -> Iterator[Snippet]:
    """Every block of code of every page."""
    for page in PAGES:
        for language, code in _BLOCK.findall(page.read_text(encoding="utf-8")):
            yield Snippet(str(page.relative_to(ROOT)), language, textwrap.dedent(code))


def python_of(page: str) -> str:
    """The Python of a page, one block after the other."""
    code = "\n".join(each.code for each in snippets() if (each.page, each.language) == (page, "python"))
    for theirs, ours in _ELSEWHERE.items():
        code = code.replace(theirs, ours)
    return code


def own_network(seed: int) -> nn.Module:
    """A reader's network for Fashion-MNIST: small, and trained on the very images that it is attacked on."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 8, 7, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    optimizer, (images, labels) = torch.optim.Adam(network.parameters(), 0.01), first_test_images().tensors()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def readers_names() -> dict[str, Any]:
    """What the pages say that the reader has: a network, images, and loops of their own."""
    images, network = first_test_images(), own_network(0)
    part = images[:60]
    pixels, labels = images[:8].tensors()
    return {
        "casemate": casemate,
        "torch": torch,
        "network": network,
        "model": casemate.Classifier(network, classes=CLASSES),
        "one": network,
        "other": own_network(1),
        "hardened": own_network(2),
        "tagger": network,
        "tags": torch.nn.functional.one_hot(labels, 10),
        "images": pixels,
        "labels": labels,
        "train": part,
        "validation": part,
        "test": images[:12],
        "held_out": images[:20].tensors()[0],
        "loader": [(pixels, labels)],
        "optimizer": torch.optim.SGD(network.parameters(), 0.01),
        "steps": 3,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: code, weights and pictures under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    lines = ["from torch import nn", "class Network(nn.Sequential):", "    def __init__(self):"]
    lines += ["        super().__init__(nn.Flatten(), nn.Linear(784, 2))"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    save_file({"1.weight": torch.randn(2, 784), "1.bias": torch.zeros(2)}, tmp_path / "weights.safetensors")
    for kind in ("cat", "dog"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(4):
            pixels = first_test_images().pixels[number, 0].numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "pictures" / kind / f"{number}.png")
    return tmp_path


_WITH_PYTHON = sorted(
    {each.page for each in snippets() if each.language == "python"} - {"README.md", "docs/testing.md"}
)
"""The README's is tried against the wheel, in test_public.py."""


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::casemate.errors.CasemateWarning")
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("page", _WITH_PYTHON)
def test_python_runs_as_it_stands(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "docs/tracking.md":
        pytest.importorskip("mlflow")
        pytest.importorskip("tensorboard")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (folder / "mlruns").as_uri())
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    script = folder / "snippets.py"
    script.write_text(python_of(page), encoding="utf-8")
    runpy.run_path(str(script), init_globals=readers_names())


def command_lines() -> Iterator[tuple[str, str]]:
    """Every page with every line of its blocks for the shell that runs casemate."""
    for each in snippets():
        if each.language in ("", "sh", "bash"):
            for line in each.code.replace("\\\n", " ").splitlines():
                if re.match(r"(torchrun .* )?casemate ", line) and "..." not in line:
                    yield each.page, line


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_command_lines_are_understood(page: str, line: str) -> None:
    words = shlex.split(re.split(" [|>] ", line)[0], comments=True)
    parse(words[words.index("casemate") + 1 :])


@functools.cache
def options_of(*command: str) -> set[str]:
    """The options in the help of a command, or of a part of one."""
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        parse([*command, "--help"])
    return set(re.findall(r"--[a-z0-9-]+", shown.getvalue())) | {"--help"}


@pytest.mark.parametrize("page", [each for each in PAGES if each.name not in ("log.md", "decisions.md")])
def test_options_in_the_text_exist(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8")).replace("\n", " ")
    for line in re.findall(r"`(casemate [^`]* --[^`]*)`", text):
        _, command, *words = line.split()
        part = {"attack": ["pgd"], "data": words[:1], "store": words[:1]}.get(command, [])
        missing = {word for word in words if word.startswith("--")} - options_of(command, *part)
        assert not missing, f"{line}: {missing}"


@pytest.mark.integration
@pytest.mark.slow
def test_tests_of_the_page_on_testing_pass(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from casemate.data.fashion_mnist import first_test_images\n"
        "from casemate.models import open_model\n"
        "released = trained = lambda: open_model('fast').model.network\n"
        "held_out = lambda: first_test_images()[:20]\n"
    )
    (folder / "test_robustness.py").write_text(
        python_of("docs/testing.md").replace("70%", "1%").replace("0.5", "-1").replace("2%", "20%")
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_robustness.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    named = re.findall(r'id="([\w-]+)"', page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings} | set(named)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"])
def test_links_to_headings_lead_to_one(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in anchors_of(page.parent / link if link else page), f"{link}#{anchor}"
