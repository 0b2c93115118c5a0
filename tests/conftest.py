"""Registers the fixtures, which live by topic in ``tests/fixtures``."""

import pytest

# Helpers that assert, and that are neither plugins nor tests.
pytest.register_assert_rewrite(
    "tests.coalescing.server",
    "tests.dense_fields.corpus",
    "tests.faults.cases",
    "tests.hybrid.corpus",
)

pytest_plugins = (
    "tests.fixtures.engines",
    "tests.fixtures.faults",
    "tests.fixtures.ready_made",
    "tests.fixtures.stores",
    "tests.fixtures.loops",
    "tests.fixtures.recorder",
    "tests.fixtures.report",
    "tests.fixtures.upstream",
)

# Files that take longest begin first, so that at the end no worker is left with one of them. Those
# that compute, most of them by starting a process with a model, are beside those that wait.
LONGEST = (
    "test_notebooks.py",
    "test_query.py",
    "test_applications.py",
    "test_network_faults.py",
    "test_abandoned_calls.py",
    "test_server_failures.py",
    "test_examples.py",
    "test_retrieval_quality.py",
    "test_upstream_compatibility.py",
    "test_packaging.py",
    "test_bring_your_own.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
