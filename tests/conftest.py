"""Registers the fixtures, which live by topic in ``tests/fixtures``."""

pytest_plugins = (
    "tests.fixtures.engines",
    "tests.fixtures.faults",
    "tests.fixtures.stores",
    "tests.fixtures.loops",
    "tests.fixtures.recorder",
    "tests.fixtures.report",
    "tests.fixtures.upstream",
)
