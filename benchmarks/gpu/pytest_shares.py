"""A plugin of pytest: a share of the tests in each of several processes, and a limit for each test.

Each test is written down when it begins and when it ends, so that after a test that hung or broke
its process another process goes on behind it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.shares import FINISHED, load


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of this plugin."""
    group = parser.getgroup("shares")
    group.addoption("--share", default="0/1", help="which tests, as in 2/8")
    group.addoption("--results", type=Path, help="a line of JSON for each test is added here")
    group.addoption("--limit", type=float, default=60.0, help="seconds for a test")


def pytest_configure(config: pytest.Config) -> None:
    """Starts the plugin."""
    config.pluginmanager.register(Shares(config), "shares of tests")


class Shares:
    """Chooses tests, limits them, writes down what came of them."""

    def __init__(self, config: pytest.Config) -> None:
        self.share, self.count = map(int, config.getoption("--share").split("/"))
        self.results: Path = config.getoption("--results")
        self.limit: float = config.getoption("--limit")

    @pytest.hookimpl(trylast=True)  # after -k
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Those of this share that no process before this one began."""
        done = {line["test"] for line in load(self.results)}
        items[:] = [x for x in items[self.share :: self.count] if x.nodeid not in done]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Ends the process where the test takes too long; a hanging kernel leaves no other way."""
        self.write(item.nodeid, "began")
        faulthandler.dump_traceback_later(self.limit, exit=True, file=sys.__stderr__)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Its outcome; the process ends where the device has become useless to it."""
        if report.when != "call" and report.passed:
            return
        message = ""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(crash.message if crash else report.longrepr)[:500]
        self.write(report.nodeid, report.outcome, report.duration, message)
        if report.failed and torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(3)

    def pytest_sessionfinish(self) -> None:
        """Pytest came to its end by itself."""
        self.write("", FINISHED)

    def write(self, test: str, outcome: str, seconds: float = 0.0, message: str = "") -> None:
        """Adds a line."""
        line = {"test": test, "outcome": outcome, "seconds": seconds, "message": message}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
