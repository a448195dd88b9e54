"""What `casemate benchmark` does once PyTorch is loaded: read the images, estimate the time, run, write the table."""

from collections.abc import Mapping
from pathlib import Path

from casemate import data
from casemate.benchmark import (
    MEASURING_AT_MOST,
    BenchmarkPlan,
    BenchmarkRow,
    benchmark_seconds,
    plan_benchmark,
    run_benchmark,
)
from casemate.cli.benchmark.request import BenchmarkRequest
from casemate.cli.shared import console
from casemate.norms import parse_eps
from casemate.progress import Observer
from casemate.report.benchmark import write_benchmark


def prepare(request: BenchmarkRequest, observer: Observer) -> BenchmarkPlan:
    """Read the images and check the request; nothing is trained or attacked. Raises `CasemateError`."""
    with observer.work("Reading the images", 0):
        images = data.load(request.dataset, request.data_dir, observer=observer)
    return plan_benchmark(
        images,
        request.models,
        eps=parse_eps(request.eps),
        others=[parse_eps(each) for each in request.others],
        images=request.images,
        headline=request.headline,
        seeds=request.seeds,
        budget=request.budget,
        train_images=request.train_images,
    )


def seconds_by_step(plan: BenchmarkPlan, out: Path, observer: Observer) -> Mapping[str, float]:
    """Estimated seconds of each step that is not finished in `out`, from a measured speed. Raises `CasemateError`."""
    with observer.work("Measuring the speed", 0):
        return benchmark_seconds(plan, out)


def run(plan: BenchmarkPlan, out: Path, device: str, observer: Observer) -> list[BenchmarkRow]:
    """Run the benchmark, or what is left of it; its table is written after every step. Raises `CasemateError`."""
    if seconds := sum(seconds_by_step(plan, out, observer).values()):
        observer.message(
            f"What is left takes about {console.duration(seconds)} on this machine; an unfinished training counts "
            f"whole. {MEASURING_AT_MOST}."
        )
    return run_benchmark(
        plan, out, device=device, observer=observer, finished=lambda rows: write_benchmark(out, plan, rows)
    )
