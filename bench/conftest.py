"""Options, fixtures, and the table of ratios at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import tables
from ratios import LEGEND, Row, table, warnings
from testpmd import Baseline, BaselineError
from testpmd import run as run_testpmd

ROWS: pytest.StashKey[list[Any]] = pytest.StashKey()
WHY_NOT: pytest.StashKey[dict[str, str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aiflow's benchmarks")
    group.addoption("--images", type=int, default=512, help="images in a slice (512: 136 MB)")
    group.addoption("--rounds", type=int, default=15, help="measured rounds of each case, after the warm-up")
    group.addoption("--seconds", type=float, default=6.0, help="time for a peer's rounds; a slow peer gets fewer")
    group.addoption("--cores", default="", help="CPUs of sender and receiver, as 0,1; default: the first two allowed")
    group.addoption("--no-testpmd", action="store_true", help="skip the C baseline")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.stash[WHY_NOT] = {}


@pytest.fixture(scope="session")
def cores(request: pytest.FixtureRequest) -> tuple[int, int]:
    """CPUs of the sending and the receiving side; the same CPU if only one is allowed."""
    asked = request.config.getoption("--cores")
    numbers = [int(part) for part in asked.split(",")] if asked else sorted(os.sched_getaffinity(0))
    return numbers[0], numbers[1 % len(numbers)]


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """Number of measured rounds."""
    return int(request.config.getoption("--rounds"))


@pytest.fixture(scope="session")
def seconds(request: pytest.FixtureRequest) -> float:
    """Time for the rounds of a peer."""
    return float(request.config.getoption("--seconds"))


@pytest.fixture(scope="session")
def slices(request: pytest.FixtureRequest) -> Any:
    """The slices that are sent in turn."""
    from transfer import make_slices

    return make_slices(request.config.getoption("--images"))


@pytest.fixture
def testpmd(request: pytest.FixtureRequest, cores: tuple[int, int]) -> Callable[..., Baseline | None]:
    """Run testpmd for a case. Return None, and keep the reason for the table, if it cannot run."""

    def run(case: Any, interfaces: tuple[str, str] | None = None) -> Baseline | None:
        from aiflow import _eal

        if request.config.getoption("--no-testpmd") or not request.config.getoption("--benchmark-enable"):
            return None
        _eal.start()  # so that both run in the same memory mode
        try:
            return run_testpmd(case.driver, case.frame_bytes, case.ring_size, cores, _eal.memory_mode(), interfaces)
        except BaselineError as exc:
            request.config.stash[WHY_NOT][case.name] = str(exc)
            return None

    return run


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[Any], dict[str, Any]]:
    """Add a line to the tables. Return it as a dict for the JSON file."""

    def add(one: Any) -> dict[str, Any]:
        request.config.stash[ROWS].append(one)
        as_dict: dict[str, Any] = one.as_dict()
        return as_dict

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = [one for one in config.stash[ROWS] if isinstance(one, Row)]
    others = [one.as_dict() for one in config.stash[ROWS] if not isinstance(one, Row)]
    if others:
        terminalreporter.section("beside the alternatives of a Python user")
        for line in tables.markdown(others).splitlines():
            terminalreporter.write_line(line)
    if not rows:
        return
    terminalreporter.section("ratios measured in this run")
    for line in [*table(rows), *LEGEND.splitlines()]:
        terminalreporter.write_line(line)
    for name, why in config.stash[WHY_NOT].items():
        terminalreporter.write_line(f"No testpmd for {name}: {why}", yellow=True)
    for warning in warnings(rows):
        terminalreporter.write_line(warning, yellow=True)
