"""What requests of `_transport` do on an engine: which database they reach, and how often."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import grpc
import numpy as np
import orjson
import pytest
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from llama_index_milvus_async._concurrency.drivers import run_sync
from llama_index_milvus_async._rpc import (
    DeleteDocuments,
    GetByIds,
    HybridSearch,
    Insert,
    Query,
    Search,
    WrittenColumn,
)
from llama_index_milvus_async._transport.asynchronous import AsyncTransport, Sharing
from llama_index_milvus_async._transport.backend import Backend
from llama_index_milvus_async._transport.blocking import BlockingTransport
from llama_index_milvus_async._transport.connections import Connections
from llama_index_milvus_async._transport.retries import time_left
from llama_index_milvus_async._transport.rpcs import send_delete, send_query
from llama_index_milvus_async._transport.session import Session
from llama_index_milvus_async._transport.transport import Transport
from llama_index_milvus_async._wire.address import Address
from llama_index_milvus_async._wire.stub import RPCS, Stub
from llama_index_milvus_async.errors import ServerError, UnreachableError
from tests.fixtures.engines import Engine
from tests.fixtures.faults import Faulty

DIM = 2
COLLECTION = f"transport_{uuid.uuid4().hex[:8]}"
OUTPUT = ("id", "text", "$meta")
COLUMNS = (
    WrittenColumn("id", DataType.VARCHAR),
    WrittenColumn("text", DataType.VARCHAR),
    WrittenColumn("embedding", DataType.FLOAT_VECTOR, dim=DIM),
    WrittenColumn("$meta", DataType.JSON, is_dynamic=True),
)
VECTOR = np.array([1, 0], dtype="<f4").tobytes()

Run = Callable[[Connections, Callable[[Backend], Awaitable[Any]]], Awaitable[Any]]


def written(id_: str, text: str) -> dict[str, Any]:
    return {
        "id": id_,
        "text": text,
        "embedding": VECTOR,
        "$meta": orjson.dumps({"doc_id": f"doc of {id_}"}),
    }


def insert(*, upsert: bool = False, repeatable: bool = False) -> Insert:
    return Insert(COLLECTION, COLUMNS, "id", None, upsert, repeatable)


def query(expression: str = 'id != ""', limit: int | None = None) -> Query:
    return Query(COLLECTION, expression, OUTPUT, None, "Strong", limit)


def search() -> Search:
    params: dict[str, Any] = {"params": {}}
    return Search(
        COLLECTION, "embedding", DataType.FLOAT_VECTOR, 9, "", OUTPUT, None, "Strong", params,
        (), False,
    )  # fmt: skip


def hybrid() -> HybridSearch:
    ranker = {"strategy": "rrf", "params": {"k": 60}}
    return HybridSearch(
        COLLECTION, (search(), search()), ranker, "rrf", 9, OUTPUT, None, "Strong", (), False
    )


def by_ids() -> GetByIds:
    return GetByIds(COLLECTION, "id", False, OUTPUT, None, "Strong", lambda ids: any_of("id", ids))


def any_of(key: str, values: Any) -> str:
    return f"{key} in [{', '.join(map(repr, values))}]".replace("'", '"')


async def in_sync(connections: Connections, body: Callable[[Backend], Any]) -> Any:
    return run_sync(body(connections.blocking()))


async def in_async(connections: Connections, body: Callable[[Backend], Any]) -> Any:
    return await body(connections.of_running_loop())


@pytest.fixture
def run(colour: str) -> Run:
    """Runs requests of a backend, a sync or an async one."""
    return in_sync if colour == "sync" else in_async


class Connect:
    """Makes connections, which are closed at the end of the test."""

    def __init__(self) -> None:
        self.made: list[Connections] = []

    def __call__(self, uri: str, token: str = "", database: str = "") -> Connections:
        options = {"db_name": database} if database else {}
        sharing = Sharing(COLLECTION, max_in_flight=8, rows_per_insert=100, coalesce=True)
        connections = Connections(Address(uri, token, options=options), 30.0, sharing)
        self.made.append(connections)
        return connections


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    connect = Connect()
    yield connect
    for connections in connect.made:
        await connections.aclose()


class Databases(NamedTuple):
    """Databases of one server, each with a collection of the same name."""

    engine: Engine
    names: tuple[str, str]
    clients: tuple[MilvusClient, MilvusClient]


def create_collection(client: MilvusClient) -> None:
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=100)
    schema.add_field("text", DataType.VARCHAR, max_length=1000)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    index = client.prepare_index_params()
    index.add_index("embedding", index_type="FLAT", metric_type="IP")
    client.create_collection(COLLECTION, schema=schema, index_params=index)
    client.load_collection(COLLECTION)


def client_of(engine: Engine, database: str = "") -> MilvusClient:
    options = {"grpc.keepalive_time_ms": 300_000}
    return MilvusClient(
        engine.uri, token=engine.token, db_name=database, dedicated=True, grpc_options=options
    )


@pytest.fixture(scope="module")
def databases(engine: Engine, raw: MilvusClient) -> Iterator[Databases]:
    """The default database and another one. Milvus 2.3.5 and Milvus Lite have them."""
    other = f"other_{uuid.uuid4().hex[:8]}"
    raw.create_database(other)
    clients = (client_of(engine), client_of(engine, other))
    for client in clients:
        client.drop_collection(COLLECTION)
        create_collection(client)
    yield Databases(engine, ("", other), clients)
    for client in clients:
        client.drop_collection(COLLECTION)
        client.close()
    raw.drop_database(other)


def texts(rows: Any) -> list[str]:
    return sorted(row["text"] for row in rows)


async def test_every_request_reaches_its_database(
    databases: Databases, connect: Connect, run: Run
) -> None:
    """A call on the stub without its metadata would go to the default database."""
    engine, names, _ = databases
    both = [connect(engine.uri, engine.token, name) for name in names]

    async def in_each(request: Callable[[Backend, str], Any]) -> list[Any]:
        answers = []
        for name, connections in zip(("one", "two"), both, strict=True):

            async def body(backend: Backend, name: str = name) -> Any:
                return await request(backend, name)

            answers.append(await run(connections, body))
        return answers

    async def write(backend: Backend, name: str) -> None:
        rows = [written(f"in {name}", name), written("in both", name)]
        await backend.insert(insert(), rows, 100, None)

    async def replace(backend: Backend, name: str) -> None:
        rows = [written("in both", f"{name}, replaced")]
        await backend.insert(insert(upsert=True, repeatable=True), rows, 100, None)

    async def read(backend: Backend, name: str) -> list[Any]:
        found = [texts(await backend.query(query(), None))]
        [hits] = await backend.search(search(), [VECTOR], None)
        found.append(texts(hits))
        if engine.is_lite:  # Milvus 2.3 has no hybrid search
            [hits] = await backend.hybrid_search(hybrid(), [(VECTOR, VECTOR)], None)
            found.append(texts(hits))
        ids = ["in one", "in two", "in both"]
        found.append(texts(await backend.get_by_ids(by_ids(), ids, None)))
        return found

    def all_are(*wanted: list[str]) -> list[Any]:
        return [[each] * (4 if engine.is_lite else 3) for each in wanted]

    await in_each(write)
    assert await in_each(read) == all_are(["one", "one"], ["two", "two"])
    await in_each(replace)
    assert await in_each(read) == all_are(["one", "one, replaced"], ["two", "two, replaced"])

    async def delete_in_two(backend: Backend, name: str) -> None:
        if name == "two":
            expression = any_of("id", ["in one", "in two"])
            await backend.delete(COLLECTION, expression, partition_name=None, timeout=None)

    await in_each(delete_in_two)
    assert await in_each(read) == all_are(["one", "one, replaced"], ["two, replaced"])

    async def delete_documents(backend: Backend, name: str) -> None:
        if name == "two":
            request = DeleteDocuments(COLLECTION, None, "doc_id", lambda ids: any_of("doc_id", ids))
            await backend.delete_documents(request, ["doc of in both"], None)

    await in_each(delete_documents)
    assert await in_each(read) == all_are(["one", "one, replaced"], [])

    async def delete_all(backend: Backend, name: str) -> None:
        await backend.delete(COLLECTION, 'id != ""', partition_name=None, timeout=None)

    await in_each(delete_all)
    assert await in_each(read) == all_are([], [])


# How often a request is sent


@pytest.fixture
def collection(databases: Databases) -> Iterator[MilvusClient]:
    """A client of the default database, in whose collection a test leaves no rows."""
    client, _ = databases.clients
    yield client
    client.delete(COLLECTION, filter='id != ""')


@pytest.mark.engines("lite")
async def test_a_delete_is_sent_once_and_its_error_is_seen(
    faulty: Faulty, collection: MilvusClient, connect: Connect, run: Run
) -> None:
    proxy, _ = faulty
    connections = connect(proxy.uri)

    async def delete(expression: str) -> None:
        async def body(backend: Backend) -> None:
            await backend.delete(COLLECTION, expression, partition_name=None, timeout=None)

        await run(connections, body)

    with pytest.raises(ServerError, match="delete failed"):
        await delete("nonsense ===")
    assert proxy.counts.requests["Delete"] == 1
    await delete('id == "nobody"')
    assert proxy.counts.requests["Delete"] == 2


async def test_an_insert_whose_answer_is_lost_is_not_repeated(
    faulty: Faulty, collection: MilvusClient, connect: Connect, run: Run
) -> None:
    """Whether the rows were written is unknown; written again, they would be there twice."""
    proxy, _ = faulty
    connections = connect(proxy.uri)
    id_ = uuid.uuid4().hex

    async def once(backend: Backend) -> None:
        await backend.query(query(limit=1), None)  # connects
        proxy.trap("Insert", at="answer", do=proxy.cut)
        await backend.insert(insert(), [written(id_, "once")], 100, None)

    with pytest.raises(UnreachableError) as lost:
        await run(connections, once)
    assert not lost.value.nothing_done
    assert proxy.counts.requests["Insert"] == 1
    rows = collection.query(COLLECTION, f'id == "{id_}"', consistency_level="Strong")
    assert len(rows) == 1


async def test_an_insert_that_may_be_repeated_is(
    faulty: Faulty, collection: MilvusClient, connect: Connect, run: Run
) -> None:
    proxy, _ = faulty
    connections = connect(proxy.uri)
    id_ = uuid.uuid4().hex

    async def repeated(backend: Backend) -> Any:
        await backend.query(query(limit=1), None)
        proxy.trap("Upsert", at="answer", do=proxy.cut)
        request = insert(upsert=True, repeatable=True)
        await backend.insert(request, [written(id_, "again")], 100, None)
        return await backend.query(query(f'id == "{id_}"'), None)

    assert texts(await run(connections, repeated)) == ["again"]
    assert proxy.counts.requests["Upsert"] == 2


async def test_an_insert_that_never_arrived_is_repeated(
    faulty: Faulty, collection: MilvusClient, connect: Connect, run: Run
) -> None:
    """The connection could not be made, so that nothing can have been written."""
    proxy, _ = faulty
    connections = connect(proxy.uri)
    id_ = uuid.uuid4().hex

    async def body(backend: Backend) -> Any:
        await backend.query(query(limit=1), None)
        proxy.refuse()
        with pytest.raises(ServerError):  # now the client knows that the connection is gone
            await backend.query(query(limit=1), 0.3)
        timer = threading.Timer(0.5, proxy.accept)
        timer.start()
        await backend.insert(insert(), [written(id_, "late")], 100, None)
        timer.join()
        return await backend.query(query(f'id == "{id_}"'), None)

    assert texts(await run(connections, body)) == ["late"]
    assert proxy.counts.requests["Insert"] == 1


# pymilvus' hook for errors


class Unavailable(grpc.RpcError):  # type: ignore[misc]
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the primary is gone"


#: Of other clusters the hook only connects anew, which gRPC does itself.
GLOBAL = Address("https://books.global-cluster.example")
VIOLATION = common_pb2.Status(code=100, reason="STREAMING_CODE_REPLICATE_VIOLATION: a standby")


class Handler:
    """A handler whose RPCs answer as they are told, one after the other."""

    def __init__(self, colour: str, answers: list[Any], hook: Callable[[Exception], bool]) -> None:
        self.sent = 0
        self.answers = answers
        self.errors: list[Exception] = []
        is_async = colour == "async"

        def send(*args: Any, **kwargs: Any) -> Any:
            self.sent += 1
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        async def asend(*args: Any, **kwargs: Any) -> Any:
            return send()

        def recover(error: Exception) -> bool:
            self.errors.append(error)
            return hook(error)

        async def arecover(error: Exception) -> bool:
            return recover(error)

        stub = SimpleNamespace(**dict.fromkeys(RPCS, asend if is_async else send))
        self._stub = self._async_stub = stub
        self._on_rpc_error = arecover if is_async else recover


def transport_over(handler: Handler, colour: str, address: Address = GLOBAL) -> Transport:
    attribute = "_async_stub" if colour == "async" else "_stub"
    connected = SimpleNamespace(client=None, stub=Stub(handler, attribute, address), closed=False)
    session = Session("hooks", "", "")
    if colour == "sync":
        return BlockingTransport(address, session, lambda: connected)

    async def get(timeout: float | None) -> Any:
        return connected

    sharing = Sharing(COLLECTION, max_in_flight=8, rows_per_insert=100, coalesce=True)
    return AsyncTransport(address, session, sharing, SimpleNamespace(connected=get))


async def attempt(transport: Transport, colour: str, *, delete: bool = False) -> Any:
    left = time_left(5.0)
    sending: Any = (
        send_delete(transport, COLLECTION, 'id == "a"', None, left)
        if delete
        else send_query(transport, query(), left)
    )
    return run_sync(sending) if colour == "sync" else await sending


async def test_the_hook_is_told_of_a_server_that_is_gone(colour: str) -> None:
    handler = Handler(colour, [Unavailable(), milvus_pb2.QueryResults()], lambda error: True)
    transport = transport_over(handler, colour)
    with pytest.raises(UnreachableError, match="the primary is gone"):
        await attempt(transport, colour)
    assert [type(error) for error in handler.errors] == [Unavailable]
    assert list(await attempt(transport, colour)) == []
    assert (handler.sent, len(handler.errors)) == (2, 1)


@pytest.mark.parametrize("recovers", [True, False])
async def test_the_hook_is_told_of_a_standby_that_refuses(colour: str, recovers: bool) -> None:
    """Where it has found the primary, what a standby has refused can be sent there."""
    handler = Handler(colour, [milvus_pb2.MutationResult(status=VIOLATION)], lambda _: recovers)
    with pytest.raises(ServerError, match="REPLICATE_VIOLATION") as refused:
        await attempt(transport_over(handler, colour), colour, delete=True)
    [error] = handler.errors
    assert isinstance(error, MilvusException)
    assert isinstance(refused.value, UnreachableError) == recovers
    assert refused.value.nothing_done == recovers


async def test_a_hook_that_fails_hides_no_error(colour: str) -> None:
    """It raises where it cannot connect to the new primary."""

    def fail(error: Exception) -> bool:
        raise MilvusException(2, "Fail connecting to server on the new primary")

    handler = Handler(colour, [Unavailable()], fail)
    with pytest.raises(UnreachableError, match="the primary is gone"):
        await attempt(transport_over(handler, colour), colour)
    assert len(handler.errors) == 1


async def test_a_success_tells_the_hook_nothing(colour: str) -> None:
    handler = Handler(colour, [milvus_pb2.QueryResults()], lambda error: True)
    await attempt(transport_over(handler, colour), colour)
    assert handler.errors == []


async def test_a_handler_may_have_no_hook(colour: str) -> None:
    handler = Handler(colour, [Unavailable()], lambda error: True)
    del handler._on_rpc_error
    with pytest.raises(UnreachableError, match="the primary is gone"):
        await attempt(transport_over(handler, colour), colour)


async def test_only_a_global_cluster_has_another_address(colour: str) -> None:
    handler = Handler(colour, [Unavailable()], lambda error: True)
    with pytest.raises(UnreachableError, match="the primary is gone"):
        await attempt(transport_over(handler, colour, Address("http://127.0.0.1:1")), colour)
    assert handler.errors == []


async def test_a_handler_may_change_its_stub(colour: str) -> None:
    """It does where it connects to another address."""
    handler = Handler(colour, [Unavailable()], lambda error: True)
    transport = transport_over(handler, colour)
    with pytest.raises(UnreachableError):
        await attempt(transport, colour)
    other = Handler(colour, [milvus_pb2.QueryResults()], lambda error: True)
    handler._stub = handler._async_stub = other._stub
    await attempt(transport, colour)
    assert (handler.sent, other.sent) == (1, 1)
