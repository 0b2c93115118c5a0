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

# The rates of its limited server are still being tuned: what is a rate too high depends on the
# machine. Without this line it runs.
collect_ignore = ["test_limits.py"]
