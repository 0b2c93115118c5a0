"""Registers the fixtures and hooks, which live by topic in ``tests/fixtures``."""

import pytest

# Helpers that assert, and that are neither plugins nor tests.
pytest.register_assert_rewrite(
    "tests.coalescing.server",
    "tests.dense_fields.corpus",
    "tests.faults.cases",
    "tests.hybrid.corpus",
    "tests.lifecycle.helpers",
    "tests.query.corpus",
)

pytest_plugins = (
    "tests.fixtures.surroundings",
    "tests.fixtures.second_attempts",  # selection imports it
    "tests.fixtures.selection",
    "tests.fixtures.engines",
    "tests.fixtures.fake_milvus",
    "tests.fixtures.faults",
    "tests.fixtures.stores",
    "tests.fixtures.loops",
    "tests.fixtures.programs",
    "tests.fixtures.recorder",
    "tests.fixtures.report",
    "tests.fixtures.upstream",
)
