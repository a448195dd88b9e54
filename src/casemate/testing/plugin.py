"""The plugin of pytest: fixtures, an option, a marker, the summary at the end, and properties in JUnit's XML.

pytest loads it in every environment that has casemate, so it imports no PyTorch and does nothing until a test uses an
assertion; `-p no:casemate` leaves it out. Results travel as user properties of a test's reports, which pytest-xdist
passes on.
"""

from collections.abc import Callable, Generator
from typing import Any

import pytest

from casemate.testing.running_test import Call, running

FIXTURES = ("assert_robust", "assert_not_worse")
"""Names of the fixtures."""
_MARKER = "robust"
_PROPERTY = "casemate"
"""Name of the property with the result in a line; the others begin with it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("casemate", "robustness (casemate)").addoption(
        "--casemate-budget",
        choices=("quick", "autoattack", "standard", "thorough"),
        default=None,
        help="budget of the assertions of casemate that name none: quick (default), autoattack, standard or thorough",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the summary."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}: attacks a model, which takes long; set for every test that uses {' or '.join(FIXTURES)}, so that "
        f"-m 'not {_MARKER}' leaves these tests out",
    )
    config.pluginmanager.register(_Summary(), "casemate-summary")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that uses a fixture of this plugin, before -m selects."""
    if any(name in getattr(item, "fixturenames", ()) for name in FIXTURES):
        item.add_marker(_MARKER)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, None, None]:
    """Collect the results of the assertions of a test, in its fixtures too."""
    with running(_Running(item)):
        yield


@pytest.fixture(name="assert_robust", scope="session")
def _assert_robust() -> Callable[..., Any]:
    """Assert that a model is robust: `assert_robust(model, loader, eps="8/255", at_least="60%")`."""
    from casemate.testing.assertions import assert_robust  # imports PyTorch

    return assert_robust


@pytest.fixture(name="assert_not_worse", scope="session")
def _assert_not_worse() -> Callable[..., Any]:
    """Assert that a model is not less robust than another: `assert_not_worse(new, old, loader, eps="8/255")`."""
    from casemate.testing.assertions import assert_not_worse  # imports PyTorch

    return assert_not_worse


class _Running:
    """One test, see `casemate.testing.running_test.RunningTest`."""

    def __init__(self, item: pytest.Item) -> None:
        self.budget: str | None = item.config.getoption("--casemate-budget")
        self._item = item
        self._calls = 0

    def record(self, call: Call) -> None:
        """Add the result to the user properties of the test; further calls are numbered."""
        self._calls += 1
        number = "" if self._calls == 1 else f".{self._calls}"
        properties = [(_PROPERTY, call.line)]
        properties += [(f"{_PROPERTY}{number}.{name}", value) for name, value in call.facts.items()]
        self._item.user_properties += properties


class _Summary:
    """The section at the end of the output: a line for each call of an assertion."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the results of a finished test; with pytest-xdist, of one in another process."""
        if report.when == "teardown":
            lines = (str(value) for name, value in report.user_properties if name == _PROPERTY)
            self._lines += [f"{report.nodeid}: {line}" for line in lines]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the section, if there is anything to print."""
        if self._lines:
            terminalreporter.section("robustness (casemate)")
            for line in self._lines:
                terminalreporter.write_line(line)
