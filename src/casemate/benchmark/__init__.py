"""The benchmark of defences: recipes trained from seeds, attacked and certified, in one table."""

from casemate.benchmark.entries import ENTRIES as ENTRIES
from casemate.benchmark.entry import Entry as Entry
from casemate.benchmark.entry import recipe_in_words as recipe_in_words
from casemate.benchmark.plan import BenchmarkPlan as BenchmarkPlan
from casemate.benchmark.plan import plan_benchmark as plan_benchmark
from casemate.benchmark.run import run_benchmark as run_benchmark
from casemate.benchmark.seconds import MEASURING_AT_MOST as MEASURING_AT_MOST
from casemate.benchmark.seconds import benchmark_seconds as benchmark_seconds
from casemate.benchmark.table import BenchmarkRow as BenchmarkRow
from casemate.benchmark.table import benchmark_rows as benchmark_rows
