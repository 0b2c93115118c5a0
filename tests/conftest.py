"""Registers the fixtures, which live by topic in ``tests/fixtures``."""

import os

pytest_plugins = (
    "tests.fixtures.engines",
    "tests.fixtures.faults",
    "tests.fixtures.stores",
    "tests.fixtures.loops",
    "tests.fixtures.recorder",
    "tests.fixtures.report",
    "tests.fixtures.upstream",
)

# What these find is still being mended (reads and deletes by filter after a lost connection, ...).
# `WITH_OPEN_FINDINGS=1 make test-pymilvus30 PYTEST_ARGS="-k faults"` runs them.
OPEN_FINDINGS = [
    "hostile_rows",
    "isolation",
    "limits",
    "tls_and_rbac",
]
collect_ignore = [f"test_{name}.py" for name in OPEN_FINDINGS]
if os.environ.get("WITH_OPEN_FINDINGS"):
    collect_ignore = []
