"""How far attacks without gradients get with how many queries: curves on two networks, as JSON, table and figure.

`python benchmarks/queries/run.py` computes the curves that are missing, and writes `curves.svg` and README.md's table.
The networks are those of `benchmarks/strength`, which `python benchmarks/strength/networks.py plain linf` trains.

Exit code 0: all curves are there. 2: a network is missing.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "strength"))

from networks import FOLDER, load, path_of, weights_of  # noqa: E402

from casemate import data  # noqa: E402
from casemate.attacks import SPSA, AbstractAttack, HopSkipJump, SparseRS, Square, SurFree, is_unlimited  # noqa: E402
from casemate.evaluation import query_curve  # noqa: E402
from casemate.files import write_bytes, write_text  # noqa: E402
from casemate.provenance import commit, processor  # noqa: E402
from casemate.report import charts  # noqa: E402

RESULT = HERE / "result.json"
PAGE = HERE / "README.md"
TITLES = {"plain": "undefended", "linf": "trained at Linf 0.1"}
NETWORKS = tuple(TITLES)
IMAGES = slice(0, 50)
QUERIES = (50, 100, 200, 500, 1000, 2000, 5000)
BEGIN, END = "<!-- run.py: begin -->", "<!-- run.py: end -->"


def attacks() -> dict[str, AbstractAttack]:
    """The attacks by name. Those in a ball have a radius at which some images of both networks are fooled."""
    most = QUERIES[-1]
    return {
        "HopSkipJump, L2": HopSkipJump(norm="l2", n_queries=most),
        "SurFree, L2": SurFree(n_queries=most),
        "Square, L2 1.5": Square(eps=1.5, norm="l2", n_queries=most),
        "Square, Linf 0.1": Square(eps=0.1, n_queries=most),
        "SPSA, Linf 0.1": SPSA(eps=0.1, steps=most // 65 + 1, samples=32),
        "Sparse-RS, L0 20": SparseRS(eps=20, n_queries=most),
    }


def read() -> dict[str, Any]:
    """What is known; empty if nothing is."""
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}


def compute(network: str, name: str, attack: AbstractAttack, folder: Path) -> dict[str, Any]:
    """One curve, on the images that the network classifies correctly."""
    model = load(network, folder)
    images = data.load("fashion-mnist").test[IMAGES]
    pixels, labels = images.tensors()
    with torch.no_grad():
        right = model(pixels).argmax(1) == labels
    start = time.process_time()
    curve = query_curve(model, attack, pixels[right], QUERIES, labels=labels[right])
    return {
        "attack": curve.attack,
        "weights": weights_of(network, folder),
        "n": int(right.sum()),
        "queries": round(float(curve.queries.mean())),
        "points": curve.points(),
        "processor_seconds": round(time.process_time() - start, 1),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
    }


def table(found: Mapping[str, Any]) -> str:
    """The medians and the shares left, as a table in Markdown."""
    lines = [
        f"The first {IMAGES.stop} test images of Fashion-MNIST, those that the network classifies correctly. Of",
        "attacks that look for the nearest image the median distance, of attacks in a ball the accuracy left, in %.",
        "",
        "| network | attack | n | " + " | ".join(f"{each:,}" for each in QUERIES) + " |",
        "| --- | --- | --- |" + " --- |" * len(QUERIES),
    ]
    for network in NETWORKS:
        for name, attack in attacks().items():
            if (curve := found.get(f"{network} {name}")) is not None:
                values = [shown(point, attack) for point in curve["points"]]
                lines.append(f"| {network} | {name} | {curve['n']} | {' | '.join(values)} |")
    return "\n".join(lines)


def shown(point: Mapping[str, Any], attack: AbstractAttack) -> str:
    """One value of the table."""
    if not is_unlimited(attack):
        return f"{100 * point['worst']['value']:.0f}"
    return "none" if point["median"] is None else f"{point['median']:.2f}"


def figure(found: Mapping[str, Any]) -> bytes:
    """Both kinds of curves for each network, as SVG."""
    with charts.styled():
        drawing, grid = charts.canvas(2, 2, 9, 6.4)
        for column, network in enumerate(NETWORKS):
            for name, attack in attacks().items():
                curve = found.get(f"{network} {name}")
                if curve is None:
                    continue
                axes = grid[0 if is_unlimited(attack) else 1, column]
                points = [(each["queries"], each) for each in curve["points"]]
                if not is_unlimited(attack):
                    line = [(queries, 100 * each["worst"]["value"]) for queries, each in points]
                else:
                    line = [(queries, each["median"]) for queries, each in points if each["median"] is not None]
                axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name)
            for row, words in enumerate(("median L2 distance", "accuracy left, %")):
                axes = grid[row, column]
                axes.set_xscale("log")
                axes.set_xticks(QUERIES, [f"{each:,}" for each in QUERIES])
                axes.minorticks_off()
                axes.set_xlabel("queries")
                axes.set_ylabel(words)
                axes.set_ylim(bottom=0)
                axes.set_title(TITLES[network])
                axes.legend()
        svg, _ = charts.render_figure(drawing, "queries")
    return svg


def main() -> int:
    """Compute what is missing; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the networks' weights")
    parser.add_argument("--page", action="store_true", help="only write table and figure of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = read()
    for network in () if options.page else NETWORKS:
        if not path_of(network, options.folder).is_file():
            print(f"no network {network}; run benchmarks/strength/networks.py first", file=sys.stderr)
            return 2
        for name, attack in attacks().items():
            if f"{network} {name}" not in found:
                found[f"{network} {name}"] = compute(network, name, attack, options.folder)
                write_text(RESULT, json.dumps(found, indent=1) + "\n")
                print(f"{time.strftime('%H:%M:%S')} {network} {name}", flush=True)
    write_bytes(HERE / "curves.svg", figure(found))
    before, after = PAGE.read_text(encoding="utf-8").split(BEGIN)[0], PAGE.read_text(encoding="utf-8").split(END)[1]
    write_text(PAGE, f"{before}{BEGIN}\n{table(found)}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
