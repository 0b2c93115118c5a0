"""The server of these tests."""

from __future__ import annotations

import pytest

from tests.coalescing.server import Server


@pytest.fixture
def server() -> Server:
    return Server()
