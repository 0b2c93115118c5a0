"""The engines that are measured: started here, each as a process of its own, or given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fixtures.engines import Engine, new_client
from tests.fixtures.servers import LiteServer, Server, StandaloneServer


class UsualStandalone(StandaloneServer):
    """Milvus standalone with the server's own times; the tests' are shorter."""

    TICK_MILLISECONDS = 200
    ASSIGNMENT_MILLISECONDS = 2_000


STARTED: dict[str, type[Server]] = {"lite": LiteServer, "standalone": UsualStandalone}


def why_not(name: str) -> str:
    """Why an engine cannot be started here, or an empty string."""
    return StandaloneServer.why_not() if name == "standalone" else ""


@contextmanager
def running(name: str, uri: str, token: str) -> Iterator[Engine]:
    """An engine: the server at `uri`, or without one started for as long as the context lasts."""
    if uri:
        yield _engine(name, uri, token)
        return
    with tempfile.TemporaryDirectory() as directory:
        server = STARTED[name](Path(directory) / "server")
        try:
            server.start()
            yield _engine(name, server.uri, "")
        finally:
            server.remove()


def _engine(name: str, uri: str, token: str) -> Engine:
    client = new_client(uri, token)
    try:
        return Engine(name, uri, token, client.get_server_version())
    finally:
        client.close()
