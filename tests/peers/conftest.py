"""A line for every number that was measured against a peer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

SAID = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SAID] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[SAID]:
        terminalreporter.section("measured against the peers")
        for line in config.stash[SAID]:
            terminalreporter.write_line(line)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, float], float]:
    """Print a number under what it is; returned unchanged."""

    def say(what: str, value: float) -> float:
        request.config.stash[SAID].append(f"{request.node.name}: {what}: {value:.2e}")
        return value

    return say
