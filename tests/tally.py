"""Counts what the suite inflicted and what the package survived: kills, faults, variants of input.

A plugin of pytest: gives tests the fixture `tally` and prints the counts of a session as one table.
"""

from dataclasses import dataclass, field

import pytest


@dataclass
class Tally:
    """Counts by kind, over a whole session of tests; printed as one table at its end."""

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, kind: str, tried: int, survived: int) -> None:
        """Adds to a kind, for example `add("kill -9 in a checkpoint write", 7, 7)`."""
        assert 0 <= survived <= tried, (kind, tried, survived)
        before = self.counts.get(kind, (0, 0))
        self.counts[kind] = (before[0] + tried, before[1] + survived)

    def lines(self) -> list[str]:
        """Lays out the table: one line per kind and one for their sum."""
        total = tuple(sum(column) for column in zip(*self.counts.values(), strict=True)) or (0, 0)
        rows = [*self.counts.items(), ("in all", total)]
        table = [(kind, str(tried), str(survived), str(tried - survived)) for kind, (tried, survived) in rows]
        table.insert(0, ("kind", "tried", "survived", "lost"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]


TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def tally(pytestconfig):
    """Counts of this session: `tally.add("flipped bit", tried=10, survived=10)`, before the assertion."""
    return pytestconfig.stash.setdefault(TALLY, Tally())


def pytest_terminal_summary(terminalreporter, config):
    """Prints the table, where there is something in it."""
    if TALLY in config.stash and config.stash[TALLY].counts:
        terminalreporter.section("faults survived")
        for line in config.stash[TALLY].lines():
            terminalreporter.write_line(line)


def pytest_sessionfinish(session):
    """Hands the counts of one of several test processes to the first."""
    if hasattr(session.config, "workeroutput") and TALLY in session.config.stash:
        session.config.workeroutput["tally"] = session.config.stash[TALLY].counts


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node, error):
    """Adds up the counts of the test processes."""
    total = node.config.stash.setdefault(TALLY, Tally())
    for kind, (tried, survived) in getattr(node, "workeroutput", {}).get("tally", {}).items():
        total.add(kind, tried, survived)
