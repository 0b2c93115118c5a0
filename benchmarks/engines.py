"""The engines that are measured: started here, each as a process of its own, or given."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymilvus import MilvusClient

import tests
from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.engines import Engine, new_client
from tests.fixtures.servers import LiteServer, Server, StandaloneServer


class UsualStandalone(StandaloneServer):
    """Milvus standalone with the server's own times; the tests' are shorter."""

    TICK_MILLISECONDS = 200
    ASSIGNMENT_MILLISECONDS = 2_000


SECONDS_FOR_AN_INDEX = 900
STARTED: dict[str, type[Server]] = {"lite": LiteServer, "standalone": UsualStandalone}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a command line name a server, or the engine to start."""
    add = parser.add_argument
    add("--uri", default=tests.MILVUS_URI, help="a running server (default: start the engine)")
    add("--token", default=tests.MILVUS_TOKEN, help="its token (MILVUS_TOKEN)")
    add("--engine", choices=STARTED, default="standalone", help="to start (%(default)s)")


def why_not(name: str) -> str:
    """Why an engine cannot be started here, or an empty string."""
    return StandaloneServer.why_not() if name == "standalone" else ""


@contextmanager
def running(name: str, uri: str, token: str) -> Iterator[Engine]:
    """An engine: the server at `uri`, or without one started for as long as the context lasts."""
    if uri:
        yield engine_at(name, uri, token)
        return
    with started(name) as server:
        yield engine_at(name, server.uri, "")


@contextmanager
def started(name: str) -> Iterator[Server]:
    """A server for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as directory:
        server = STARTED[name](Path(directory) / "server")
        try:
            server.start()
            yield server
        finally:
            server.remove()


def build_index(engine: Engine, raw: MilvusClient, name: str, rows: int) -> None:
    """Seal all rows of a collection, and wait until they are loaded with their index."""
    raw.flush(name)
    deadline = time.monotonic() + SECONDS_FOR_AN_INDEX
    while not engine.is_lite:
        index = raw.describe_index(name, "embedding")
        if index["indexed_rows"] >= rows and not index["pending_index_rows"]:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"no index in {SECONDS_FOR_AN_INDEX} s: {index}")
        time.sleep(1)
    raw.release_collection(name)
    raw.load_collection(name)


def build_index_of_store(engine: Engine, store: MilvusVectorStore, rows: int) -> None:
    """Do the same for the collection of a store.

    On Milvus Lite stores flush by themselves, and loading fails while a file is half written.
    """
    if engine.is_lite:
        store.client.flush(store.collection_name)
    else:
        build_index(engine, store.client, store.collection_name, rows)


def engine_at(name: str, uri: str, token: str) -> Engine:
    """The engine that answers at an address."""
    client = new_client(uri, token)
    try:
        return Engine(name, uri, token, client.get_server_version())
    finally:
        client.close()
