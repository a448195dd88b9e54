"""Put trained models of a finished benchmark into the package, with their measured numbers, and write their cards.

    python tools/publish_models.py FOLDER NAME...

FOLDER is that of `casemate benchmark`, whose table has these models; where it holds no weights, as docs/benchmark,
those of the package are kept. Only their weights and numbers change; the cards in docs/pretrained.md are written for
all models in the package.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate.benchmark import recipe_in_words
from casemate.errors import CasemateError, StoreError
from casemate.evaluation import Estimate
from casemate.evaluation.fingerprints import fingerprint
from casemate.files import read_json
from casemate.models import Classifier, ModelMetadata, load, pretrained_file, pretrained_names, save
from casemate.norms import format_eps
from casemate.report.benchmark import BENCHMARK_FILE
from casemate.timing import duration

HERE = Path(__file__).resolve().parent.parent
WEIGHTS = HERE / "src" / "casemate" / "models" / "weights"
PAGE = HERE / "docs" / "pretrained.md"
_OF_ONE_KIND = ("certified", "method", "void", "sampled", "verdicts", "only_without_gradients")
"""What only measures with a certificate, or only those without one, have."""
MOST_MODELS, MOST_BYTES = 10, 20_000_000
EPS = 0.1
"""The radius of the overview."""


def publish(folder: Path, names: list[str]) -> None:
    """Copy models with their numbers. Raises `CasemateError`; exits if a model is not that of the table."""
    table = read_json(folder / BENCHMARK_FILE, StoreError)
    rows = {row["model"]: row for row in table["rows"] if row["measures"]}
    found: dict[str, tuple[Classifier, ModelMetadata]] = {}
    size = sum(each.stat().st_size for each in WEIGHTS.glob("*.safetensors") if each.stem not in names)
    for name in names:
        if name not in rows:
            sys.exit(f"{name} is not measured in {folder}; measured: {', '.join(rows)}")
        path = weights_of(folder, name)
        model, description = load(path)
        if fingerprint(model) != rows[name]["training"]["fingerprint"]:
            sys.exit(f"the weights of {name} in {folder} are not those that were measured")
        metrics = metrics_of(rows[name]) | {key: table[key] for key in ("train_images", "validation_images")}
        found[name] = (model, replace(description, metrics=metrics))
        size += path.stat().st_size
    count = len({*pretrained_names(), *names})
    if count > MOST_MODELS or size > MOST_BYTES:
        sys.exit(f"{count} models in {size:,} bytes; expected {MOST_MODELS} in {MOST_BYTES:,} at most")
    for name, (model, description) in found.items():
        save(model, WEIGHTS / f"{name}.safetensors", description, half=True)


def weights_of(folder: Path, name: str) -> Path:
    """The file of a model's weights: that of the folder, or else that of the package."""
    path, packaged = folder / name / "model.safetensors", pretrained_file(name)
    return packaged if packaged is not None and not path.exists() else path


def metrics_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of the table says of a model, for the file beside its weights."""
    training = row["training"]
    kept = ("epoch", "seconds", "threads", "fingerprint", "test_accuracy")
    measures = [
        {key: each[key] for key in ("eps", "images", "budget", "seed", "clean", "robust", "correct")}
        | {key: each[key] for key in _OF_ONE_KIND if key in each}
        | ({"findings": severe(each)} if "findings" in each else {})
        for each in row["measures"]
    ]
    commit = training["provenance"]["commit"]
    return {**{key: training[key] for key in kept}, "commit": commit, "norm": "linf", "measures": measures}


def severe(measure: Mapping[str, Any]) -> list[str]:
    """The checks of an evaluation that weaken or void its number."""
    return [each["check"] for each in measure["findings"] if each["severity"] != "note"]


_HEAD = """\
# Pretrained models

These models were trained by `casemate benchmark`, which reproduces the same weights where PyTorch, processor and number
of threads are the same (`provenance` in benchmark.json). They take images of shape (1, 28, 28) with pixels in [0, 1],
and return logits of the 10 classes of Fashion-MNIST. Weights are stored in float16, under the Apache licence 2.0, as
casemate itself. Use a model's name wherever a command takes MODEL:

```
casemate evaluate fast --eps 0.1
```

```python
model = casemate.models.open_model("fast").model
```

The numbers are those of the stored weights, with 95 % intervals. They say nothing about other images or about a larger
eps. Robust accuracy is an upper bound: a stronger attack may find more.
[benchmarks/pretrained](../benchmarks/pretrained/README.md) compares it with what the original AutoAttack finds,
[the benchmark](benchmark/benchmark.md) with published results.

`certified` is the most robust at eps 0.1 and comes with proofs; `robust` has the best clean accuracy of those that
withstand attacks; `fast` was trained in minutes. `undefended` and the defences of the study (`augmentation`,
`adversarial-regularization`, `distilled`) are there to be attacked.

<!-- below this line: python tools/publish_models.py -->"""


def page() -> str:
    """The cards of all models in the package."""
    names = pretrained_names()
    lines = [
        _HEAD,
        "",
        f"| Model | Network | MB | Clean, all test images | Robust, Linf {EPS:g} | Certified, Linf {EPS:g} |",
        "| --- | --- | --- | --- | --- | --- |",
        *(overview(name) for name in names),
    ]
    for name in names:
        lines += ["", *card(name)]
    return "\n".join([*lines, ""])


def overview(name: str) -> str:
    """The row of a model in the table that compares all of them."""
    description, megabytes = described(name)
    found = description.metrics
    cells = [f"[{name}](#{name})", f"`{description.architecture}`", megabytes, shown(found["test_accuracy"])]
    for what in ("robust", "certified"):
        known = [each for each in found["measures"] if what in each and EPS in each["eps"]]
        known.sort(key=lambda each: (each["images"] is not None, "certified" in each))
        words = ""
        if known:
            estimate = known[0][what][known[0]["eps"].index(EPS)]
            is_void = what == "certified" and known[0]["void"]
            words = f"{'void' if is_void else shown(estimate)}, {images_of(known[0])}"
        cells.append(words)
    return f"| {' | '.join(cells)} |"


def described(name: str) -> tuple[ModelMetadata, str]:
    """What the package says of a model, and the size of its file in megabytes."""
    path = pretrained_file(name)
    assert path is not None
    return load(path)[1], f"{path.stat().st_size / 1e6:.1f}"


def images_of(measure: Mapping[str, Any]) -> str:
    """On which test images something was measured."""
    return f"the first {measure['images']:,} test images" if measure["images"] else "all test images"


def card(name: str) -> list[str]:
    """The card of a model in Markdown."""
    description, megabytes = described(name)
    recipe, found = description.recipe, description.metrics
    settings = ", ".join(f"{key} {value}" for key, value in recipe["objective"]["settings"].items())
    training = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in recipe["training"].items())
    threads = f"{found['threads']} {'thread' if found['threads'] == 1 else 'threads'}"
    lines = [
        f"## {name}",
        "",
        f"- **Network**: `{description.architecture}`, float16, {megabytes} MB",
        f"- **Data**: {description.dataset}, {found['train_images']:,} training images, "
        f"{found['validation_images']:,} set aside for validation",
        f"- **Recipe**: {recipe_in_words(recipe)}{f' ({settings})' if settings else ''}",
        f"- **Training**: {training or 'the defaults'}; seed {recipe['seed']}; epoch {found['epoch']}; "
        f"{duration(found['seconds'])} on {threads}; commit {found['commit']}",
        f"- **Clean accuracy**: {shown(found['test_accuracy'])}",
        "- **Licence**: Apache-2.0",
    ]
    for each in found["measures"]:
        images = images_of(each)
        # of a certified model the attacks on all of the same images are stronger than those on the rest
        attacked = () if "certified" in each and each["images"] else each["robust"]
        for eps, robust in zip(each["eps"], attacked, strict=False):
            lines.append(
                f"- **Robust accuracy**, Linf {format_eps(eps)}: {shown(robust)}; budget {each['budget']}, {images}, "
                f"seed {each['seed']}"
            )
        if "verdicts" in each:
            findings = ", ".join(each["findings"]) or "none that weaken or void a number"
            words = zip(each["eps"], each["verdicts"], strict=True)
            verdicts = "; ".join(f"{verdict} at {format_eps(eps)}" for eps, verdict in words)
            lines.append(f"- **Verdict**, {images}: {verdicts}; findings: {findings}")
        for eps, certified in zip(each["eps"], each.get("certified", ()), strict=False):
            words = f"{'void' if each['void'] else shown(certified)}; {each['method']}, {images}"
            lines.append(f"- **Certified accuracy**, Linf {format_eps(eps)}: {words}")
    return lines


def shown(estimate: Mapping[str, Any]) -> str:
    """An estimate in words."""
    return str(Estimate.from_json(estimate))


def main(arguments: list[str]) -> None:
    """Publish what the arguments name, and write the page."""
    if arguments:
        try:
            publish(Path(arguments[0]), arguments[1:])
        except CasemateError as error:
            sys.exit(f"error: {error}")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
