"""Hardens a network of a user's own, on colour pictures of their own, by two recipes, with the command line alone.

`python benchmarks/hardening/run.py` makes the pictures and the network at first use (kept in `runs/bench/colour`), runs
`casemate harden` on them, and writes `result.json` and the table in `docs/hardening.md`.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import garments
import resnet

from casemate.data import open_images
from casemate.evaluation import Estimate
from casemate.files import write_json, write_text
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "hardening.md"
FOLDER = Path("runs") / "bench" / "colour"
BEGIN, END = "<!-- benchmarks/hardening/run.py: begin -->", "<!-- benchmarks/hardening/run.py: end -->"
_ORDER = {"before": 0, "control": 1}
_OPTIONS = "--recipe adversarial-training adversarial-regularization --eps 4/255 --epochs 6 --images 300 --budget quick"


def main() -> None:
    """Make what is missing, harden, write the result."""
    garments.write_pictures(FOLDER)
    weights = FOLDER / "resnet.safetensors"
    if not weights.exists():
        images, labels = open_images(FOLDER / "train").read(slice(None)).tensors()
        resnet.train(images, labels, weights)
    out = FOLDER / "hardened"
    words = f"harden {HERE.relative_to(Path.cwd())}/resnet.py:ResNet --weights {weights} --data {FOLDER} {_OPTIONS}"
    command = [sys.executable, "-m", "casemate", *shlex.split(words), "--threads", "1", "--out", str(out)]
    subprocess.run([*command, "--overwrite"], check=True)
    found: dict[str, Any] = json.loads((out / "harden.json").read_text())
    models = {name: {key: each[key] for key in each if key != "evaluation"} for name, each in found["models"].items()}
    kept = {name: found[name] for name in ("conclusion", "helped", "notes", "comparisons")} | {"models": models}
    about = {"command": f"casemate {words}"}
    write_json(HERE / "result.json", about | {"surroundings": surroundings("cpu", 1)} | kept)
    write_table()


def write_table() -> None:
    """Write the table from `result.json` into the page."""
    found = json.loads((HERE / "result.json").read_text())
    rows = [
        f"| {name} | {_shown(each['clean_accuracy'])} | {_shown(each['robust_accuracy'])} | {each['verdict']} | "
        f"{_epoch(each)} |"
        for name, each in sorted(found["models"].items(), key=lambda item: _ORDER.get(item[0], len(_ORDER)))
    ]
    count, made = found["models"]["before"]["robust_accuracy"]["n"], found["surroundings"]
    text = [
        BEGIN,
        f"`{found['command']}`, one thread ({made['processor']}, PyTorch {made['libraries']['torch']}, commit "
        f"{made['commit']}):",
        "",
        f"| n = {count} | clean accuracy | robust accuracy | verdict | fine-tuning, processor |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"> {found['conclusion']}",
        END,
    ]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    write_text(PAGE, before + "\n".join(text) + rest.partition(END)[2])


def _shown(given: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    return str(Estimate.from_json(given))


def _epoch(model: dict[str, Any]) -> str:
    """How long a model was fine-tuned, and which epoch was kept; empty for the model as it was given."""
    if "epoch" not in model:
        return ""
    return f"{model['processor_seconds']:.0f} s, epoch {model['epoch']} of {len(model['history'])}"


if __name__ == "__main__":
    main()
