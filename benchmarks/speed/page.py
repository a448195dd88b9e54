"""Writes `docs/performance.md`; every measurement in it comes from a JSON file.

These are `result.json` and, where they exist, `training.json`, `transformations.json`, `gpu.json` and
`../training/*.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from casemate.evaluation import Estimate
from casemate_study.report.markdown import grid

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
_ABOUT = """# Performance

`make bench` writes `benchmarks/speed/result.json`; `python benchmarks/speed/page.py` writes this page from it. Seconds
are CPU time of one thread. Every run is a process of its own, after a warm-up run on a part of the images, and the
libraries take turns. Each gets appendix A as the paper writes it (ReLU, then pooling), in the batch size and memory
layout with which it is fastest on a part of the images. The columns and rows:

- *default layout*: the memory layout that models have unless it is changed, with the batch size that is fastest in it.
- *worst*: an image counts as fooled if it is fooled at any iterate, or at a smaller eps.
- *last*: the raw last iterate of all images, which the other libraries report.
- *% of the limit*: the time that the arithmetic of the passes would take in float32 at the rate of a matrix product,
  for the network as the paper writes it, divided by the time measured.
- *at most*: the speed-up if casemate ran at that limit.
- *bfloat16*: gradients are computed in bfloat16; whether an image is fooled is decided in float32 in every row."""
_WAITING = """PyTorch's threads spin for some time while they wait for each other. With fewer free cores than
threads, they take processor time from the thread that they wait for. The command line therefore sets
`OMP_WAIT_POLICY=passive` for itself and its workers before it loads PyTorch, unless `OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`
or `KMP_BLOCKTIME` is set; `casemate info` shows what is in effect. In Python casemate sets nothing, but an
evaluation with an observer says when it matters: if other programs run too, set it yourself, in the shell or with
`os.environ["OMP_WAIT_POLICY"] = "passive"` before PyTorch is first imported."""
KINDS = {"fgsm": "FGSM", "bim": "BIM, 10 iterations"}


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f}"


def made_by(part: dict[str, Any]) -> str:
    """Command, machine, commit and load of a part."""
    around = part["surroundings"]
    return (
        f"`{part['command']}`; {around['processor']}, {around['threads']} of {around['cores']} cores, PyTorch "
        f"{around['libraries']['torch']}, load {part['load']:.1f}, commit {around['commit']}."
    )


def _title(task: str) -> str:
    """The name of a row; casemate's rows are stored under the name of their task."""
    for kind in KINDS:
        task = task.replace(f"{kind}-", "casemate, ")
    return task.replace("-bfloat16", ", bfloat16").replace("usual layout", "default layout")


def remarks(part: dict[str, Any]) -> str:
    """The messages of casemate's runs."""
    said = [f"{_title(name)}: {remark}." for name, row in part["rows"].items() for remark in row.get("said", [])]
    return "".join(f" {each}" for each in said)


def sweeps(kind: str, part: dict[str, Any]) -> str:
    """Sweeps over eps, with the table of all libraries."""
    rows = []
    for name, row in part["rows"].items():
        spread = f"{min(row['all_cpu_seconds']):.2f} to {max(row['all_cpu_seconds']):.2f}"
        ratio = f"{row['times_as_fast']:.1f}" if "times_as_fast" in row else ""
        floor = percent(row["share_of_floor"]) if "share_of_floor" in row else ""
        exact = "share_of_floor" in row and not name.endswith("bfloat16")
        most = f"{row['times_as_fast'] / row['share_of_floor']:.1f}" if exact else ""
        title = _title(name)
        usual = f"{row['times_as_usual']:.1f}" if "times_as_usual" in row else ""
        if not title.startswith("casemate"):
            peer, comma, layout = title.partition(",")
            title = f"{peer} {row['version']}{comma}{layout}"
        settings = "chosen by casemate" if row["batch"] == 0 else f"{row['batch']}, {row['layout']}"
        accuracy = " ".join(percent(each) for each in row["accuracy"])
        seconds = f"{row['cpu_seconds']:.2f}"
        rows.append((title, settings, seconds, spread, ratio, most, usual, floor, accuracy))
    times = f"speed-up over {part['fastest']}"
    as_usual = f"over {_title(part['fastest_as_usual'])}"
    head = ["", "batch, layout", "seconds", "range", times, "at most", as_usual, "% of the limit", "robust accuracy, %"]
    return (
        f"### {KINDS[kind]}, eps {', '.join(f'{eps:g}' for eps in part['eps'])}, {part['n']} images\n\n"
        f"{grid(head, rows)}\n\nMedian of {len(next(iter(part['rows'].values()))['all_seconds'])} runs.{remarks(part)} "
        f"{made_by(part)}"
    )


def _step(step: dict[str, Any] | str) -> str:
    """One attack of casemate's AutoAttack, or a line of the original's log."""
    if isinstance(step, str):
        return step
    return f"{step['attack']} {step['s']:.1f} s ({step['fooled']} of {step['tried']})"


def autoattack(part: dict[str, Any]) -> str:
    """AutoAttack, compared with the original."""
    theirs = part["rows"]["original"]["cpu_seconds"]
    rows = []
    for name, row in part["rows"].items():
        ours, inside = name.startswith("casemate"), row.get("within")
        network = inside["forward_seconds"] + inside["backward_seconds"] if inside else None
        columns = (
            name,
            f"{row['cpu_seconds']:.0f}",
            f"**{row['times_as_fast']:.1f}**" if ours else "",
            f"{network:.0f}" if network else "",
            f"{inside['forward'] / part['n']:,.0f}" if inside else "",
            f"{theirs / network:.1f}" if ours and network else "",
            percent(row["accuracy"][0]),
            f"{row['alike']} of {part['n']}",
            f"{row['batch']}, {row['layout']}" if row["batch"] else "chosen by casemate",
        )
        rows.append(columns)
    steps = [f"{name}: {'; '.join(_step(each) for each in row['steps'])}" for name, row in part["rows"].items()]
    head = ["", "seconds", "speed-up over the original", "seconds in the network", "forward passes per image"]
    head += ["at most", "robust accuracy, %", "same outcome as the original", "batch, layout"]
    return (
        f"### {part['network']}; eps {part['eps']:g}, {part['n']} images\n\n{grid(head, rows)}\n\n"
        "*At most*: the speed-up over the original if nothing but the network took time. Wall-clock seconds of each "
        f"attack, and how many images it fooled. {'. '.join(steps)}.{remarks(part)} {made_by(part)}"
    )


def passes(part: dict[str, Any]) -> str:
    """Gradients and training steps as a share of the limit, and where their time goes."""
    head = ["", "images per second", "% of the limit"]
    table = grid(
        head,
        [
            (name, f"{row['images_per_second']:,.0f}", percent(row["share_of_limit"]))
            for name, row in part["rows"].items()
        ],
    )
    kernels = grid(
        ["input gradient, batch 64", "%", "training step, batch 128", "%"],
        [
            (one["kernel"], percent(one["share"]), other["kernel"], percent(other["share"]))
            for one, other in zip(part["gradient_kernels"], part["training_kernels"], strict=False)
        ],
    )
    return (
        f"{table}\n\nThe limit: {part['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s, the best of several matrix "
        f"products, divided by {part['forward_flops'] / 1e6:.1f} MFLOP for a forward pass, as many for the gradient of "
        f"the images and, in training, as many for that of the weights. {made_by(part)}\n\nWhere the time goes:\n\n"
        f"{kernels}"
    )


def scaling(part: dict[str, Any]) -> str:
    """Time and memory against the number of images, and time against the number of eps."""
    images = grid(
        ["images", "seconds", "microseconds per image", "peak memory, MB", "size of the images, MB"],
        [
            (
                f"{row['images']:,}",
                f"{row['cpu_seconds']:.2f}",
                f"{1e6 * row['cpu_seconds'] / row['images']:.0f}",
                f"{row['peak_memory'] / 1e6:.0f}",
                f"{row['of_images'] / 1e6:.0f}",
            )
            for row in part["by_images"]
        ],
    )
    values = grid(
        ["values of eps", "seconds, worst", "seconds, last"],
        [
            (str(row["eps"]), f"{row['worst_cpu_seconds']:.2f}", f"{row['last_cpu_seconds']:.2f}")
            for row in part["by_eps"]
        ],
    )
    return f"{images}\n\n{values}\n\n{made_by(part)}"


def training(folder: Path) -> str | None:
    """The time that our recipe and the study's in Keras take to the same accuracy."""
    keras, *ours = (folder / name for name in ("keras.json", "casemate.json", "casemate-bfloat16.json"))
    if not keras.is_file():
        return None
    theirs = json.loads(keras.read_text())
    last, best = theirs["epochs"][-1], max(row["test_accuracy"] for row in theirs["epochs"])
    title = f"Keras {theirs['versions']['keras']}, the study's"
    rows = [(title, str(last["epoch"]), percent(best), f"{last['cpu_seconds']:.0f}", "")]
    for found in (json.loads(each.read_text()) for each in ours if each.is_file()):
        title = f"casemate, E1+, {found.get('precision', 'float32')}"
        ratio = f"{last['cpu_seconds'] / found['cpu_seconds']:.1f}"
        accuracy = percent(found["test_accuracy"]["value"])
        rows.append((title, str(found["epochs"]), accuracy, f"{found['cpu_seconds']:.0f}", ratio))
    verb = "is reached" if theirs["reached"] else "would be reached (it was not)"
    return (
        f"{grid(['recipe', 'epochs', 'test accuracy, %', 'seconds', 'speed-up over Keras'], rows)}\n\n"
        f"Keras stops at the first epoch at which {percent(theirs['target'])} % {verb}; our schedules are shorter from "
        "the start. CPU seconds, one thread, one run each, on a machine with other work; "
        f"{theirs['processor']}. `benchmarks/training`."
    )


def epochs(part: dict[str, Any]) -> str:
    """Seconds of a training epoch in both precisions, beside the limit."""
    rows = [
        (
            row["network"],
            row["precision"],
            f"{row['seconds']:.2f}",
            f"{min(row['all_seconds']):.2f} to {max(row['all_seconds']):.2f}",
            f"{row['speed_up']:.2f}",
            percent(row["limit_seconds"] / row["seconds"]),
        )
        for row in part["rows"]
    ]
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in part["gemm_flops_per_second"].items())
    return (
        f"### An epoch of {part['images']:,} images\n\n"
        f"{grid(['network', 'precision', 'seconds', 'range', 'speed-up', '% of the limit'], rows)}\n\n"
        f"E1's training (cross-entropy, Adam, batches of {part['batch']}); median of n = "
        f"{len(part['rows'][0]['all_seconds'])} epochs of interleaved trainings, without each training's first. The "
        f"limit: the arithmetic alone at the rate of a matrix product, {rates}. {made_by(part)}"
    )


def operations(part: dict[str, Any]) -> str:
    """Where the time of a training epoch goes."""
    head = ["%", *(f"{row['network']}, {row['precision']}" for row in part["rows"])]
    first = part["rows"][0]["shares"]
    kinds = sorted(first, key=lambda kind: -first[kind])
    rows = [(kind, *(percent(row["shares"][kind]) for row in part["rows"])) for kind in kinds]
    return f"Where the time goes (one epoch each, by PyTorch's profiler):\n\n{grid(head, rows)}\n\n{made_by(part)}"


def precisions(part: dict[str, Any]) -> str:
    """Accuracies after trainings in both precisions with the same seeds."""
    rows = []
    for one, other in zip(part["rows"][::2], part["rows"][1::2], strict=True):
        rows.append(
            (
                f"{one['plan']}, {one['images']:,} images, {one['epochs']} epochs, batches of {one['batch']}",
                str(one["seed"]),
                *(f"{Estimate.from_json(row['test_accuracy'])}" for row in (one, other)),
                *(f"{Estimate.from_json(row['test_loss']):.3f}" for row in (one, other)),
                *(percent(row["validation_accuracy"]) for row in (one, other)),
                f"{one['cpu_seconds'] / other['cpu_seconds']:.2f}",
            )
        )
    first = part["rows"][0]
    names = (first["precision"], part["rows"][1]["precision"])
    head = ["paper-cnn", "seed"]
    head += [f"{what}, {name}" for what in ("test accuracy", "test loss", "validation accuracy, %") for name in names]
    return (
        f"### The end of a training in {' and in '.join(names)}\n\n{grid([*head, 'speed-up'], rows)}\n\n"
        f"n = {first['test_accuracy']['n']:,} test images, the same for all; 95 % intervals of that sample alone. "
        f"{made_by(part)}"
    )


def threads(part: dict[str, Any]) -> str:
    """The time of a training with threads that spin or sleep while they wait."""
    seconds = {(row["way"], row["beside"]): row["all_seconds"] for row in part["rows"]}
    ways = dict.fromkeys(way for way, _ in seconds)
    rows = [(way, *(f"{min(seconds[way, beside]):.1f}" for beside in ("free", "busy"))) for way in ways]
    return (
        f"{grid(['', 'seconds', 'seconds beside a busy process'], rows)}\n\n`{part['trained']}`, seconds of the "
        f"clock, the least of {len(part['rows'][0]['all_seconds'])} runs. {made_by(part)}"
    )


def transformations(path: Path) -> str | None:
    """The gain from each change that the frozen copy makes."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    tables = []
    titles = {"gradient": "Input gradients", "forward": "Forward passes", "step": "Training steps of paper-cnn"}
    for task, title in titles.items():
        parts = {name: part["tasks"][task] for name, part in found.items() if task in part["tasks"]}
        changes = dict.fromkeys(change for rows in parts.values() for change in rows if change != "all")
        head = [title, *(f"{name}, {found[name]['images']} images" for name in parts)]
        tables.append(
            grid(head, [(change, *(_times(rows.get(change)) for rows in parts.values())) for change in changes])
        )
    made = [f"- {name}: {part['rounds']} rounds, {made_by(part)}" for name, part in found.items()]
    return (
        "The frozen copy is the model optimised for attacks; `models/accel/freeze.py` lists its changes. Each row "
        "leaves out one change and shows the time of a pass, divided by the time with all of them: 1.20 means 20 % "
        "slower without it. *As it is written* leaves out all of them. The last table does the same for the layers "
        "that training replaces. Medians and quartiles of interleaved rounds, with random weights and images, on a "
        "machine with other work. Cropped convolutions were removed because of their row.\n\n"
        + "\n\n".join(tables)
        + "\n\n"
        + "\n".join(made)
    )


def _times(row: dict[str, float] | None) -> str:
    """A ratio and its quartiles."""
    return "" if row is None else f"{row['times']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def gpu(path: Path) -> str | None:
    """Input gradients on a GPU, in float32 and in bfloat16."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    rows = []
    for row in found["gradients"]:
        each = row["gradients_per_second"]
        ratio = f"{each['bfloat16'] / each['frozen']:.1f}"
        rates = (f"{each[name]:,.0f}" for name in ("original", "frozen", "bfloat16"))
        where = (row["network"], str(row["batch"]), "yes" if row["tf32"] else "no")
        rows.append((*where, *rates, ratio, "yes" if row["bfloat16_chosen"] else "no"))
    head = [
        "network",
        "batch",
        "TensorFloat-32",
        "as written",
        "frozen copy",
        "bfloat16",
        "bfloat16 over frozen copy",
        "used",
    ]
    return (
        f"Input gradients per second.\n\n{grid(head, rows)}\n\n*Used*: whether `--precision bfloat16` selects "
        "bfloat16, which it does if bfloat16 is fast enough on the few images that are compared. Medians "
        f"over a quarter of a second. `{found['command']}`; {found['device']}, PyTorch {found['torch']}, commit "
        f"{found['commit']}."
    )


TRAINING = {"epochs": epochs, "operations": operations, "accuracy": precisions}
"""The parts of `training.json` that stand under the heading Training, and what writes each."""


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    trained = HERE / "training.json"
    measured = json.loads(trained.read_text()) if trained.is_file() else {}
    parts = [
        _ABOUT,
        "## Sweeps over eps",
        *(sweeps(kind, document[kind]) for kind in KINDS if kind in document),
        "## AutoAttack `standard`, Linf",
        *(autoattack(part) for name, part in document.items() if name.startswith("autoattack")),
        "## Single passes",
        passes(document["passes"]) if "passes" in document else "Not measured.",
        "## The changes of the frozen copy",
        transformations(HERE / "transformations.json") or "Not measured.",
        "## Time and memory against the number of images",
        scaling(document["scaling"]) if "scaling" in document else "Not measured.",
        "## Training",
        training(HERE.parent / "training") or "Not measured.",
        *(show(measured[name]) for name, show in TRAINING.items() if name in measured),
        "## Threads that wait",
        _WAITING,
        threads(measured["threads"]) if "threads" in measured else "Not measured.",
        "## GPU",
        gpu(HERE / "gpu.json") or "Not measured.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    source = HERE / "result.json"
    if not source.is_file():
        sys.exit(f"{source} is missing; make bench writes it")
    PAGE.write_text(page(json.loads(source.read_text())))
    print(PAGE)
