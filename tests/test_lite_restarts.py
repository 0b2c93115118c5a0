"""A server of Milvus Lite that was started anew opens a collection by one request alone."""

import asyncio
from types import SimpleNamespace

import pytest
from pymilvus.grpc_gen import milvus_pb2

from llama_index_milvus_async._transport import lite
from llama_index_milvus_async._transport.asynchronous import AsyncTransport, Sharing
from llama_index_milvus_async._transport.session import Session
from llama_index_milvus_async._wire.address import Address
from llama_index_milvus_async.errors import UnreachableError

READS = [("search", "Search"), ("query", "Query")] * 3
ALL = [*READS, ("insert", "Insert")]


class Server:
    """Stands in for a connection; knows how many requests are under way beside each other."""

    closed = False

    def __init__(self):
        self.stub = SimpleNamespace(send=self.send, can_recover=False)
        self.under_way = 0
        self.beside = []
        self.lost = False

    async def connected(self, timeout):
        return self

    async def send(self, rpc, message, timeout):
        if self.lost:
            raise UnreachableError(rpc, "the connection was lost")
        self.under_way += 1
        for _ in range(3):
            await asyncio.sleep(0)
        self.beside.append(self.under_way - 1)
        self.under_way -= 1
        return milvus_pb2.SearchResults()


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def ask(server, request):
    """Sends requests at the same time, to a collection of Milvus Lite."""
    session = Session(place=request.node.nodeid, database="", endpoint="")
    session.note_collection("c", "c", locks=True)

    async def ask(requests, uri="http://localhost:19530"):
        sharing = Sharing("c", max_in_flight=64, rows_per_insert=100, coalesce=True)
        transport = AsyncTransport(Address(uri), session, sharing, server)
        server.beside.clear()
        await asyncio.gather(
            *(transport.rpc(name, rpc, "c", None, lambda: 60.0) for name, rpc in requests)
        )
        return server.beside

    return ask


async def test_requests_go_together(ask):
    assert max(await ask(ALL)) > 1


async def test_the_first_request_after_a_lost_connection_goes_alone(ask, server):
    server.lost = True
    with pytest.raises(UnreachableError):
        await ask(READS[:1])
    server.lost = False
    assert (await ask(ALL))[0] == 0
    assert max(await ask(ALL)) > 1


async def test_the_first_request_after_a_while_goes_alone(ask, server, monkeypatch):
    monkeypatch.setattr(lite, "SECONDS_OF_NO_RESTART", -1.0)
    assert set(await ask(ALL)) == {0}


async def test_in_this_process_milvus_lite_is_not_started_anew(ask, monkeypatch):
    monkeypatch.setattr(lite, "SECONDS_OF_NO_RESTART", -1.0)
    assert max(await ask(ALL, uri="./notes.db")) > 1
