"""The models of the benchmark by name. Recipe, epoch and settings were chosen on validation images."""

from collections.abc import Mapping

from casemate.benchmark.entry import Entry

ENTRIES: Mapping[str, Entry] = {
    "undefended": Entry(network="paper-cnn", training={"epochs": 10}),
}
"""In the order in which they are trained."""
