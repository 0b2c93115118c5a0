"""What Milvus limits is split, waited for, or refused in words; nothing is lost on the way.

Each test reaches the limit that it is about, on the server that has it. Rates and quotas are those
of a server of this module's own.
"""

import asyncio
import contextlib
import json
import time

import numpy as np
import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from pymilvus import MilvusException

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._retrieval.values import MAX_TOP_K
from llama_index_milvus_async._translation.column_values import MAX_JSON_BYTES
from llama_index_milvus_async._translation.layout import MAX_VARCHAR_BYTES
from llama_index_milvus_async._transport.limits import MAX_IDS, MAX_QUEUED_BYTES
from llama_index_milvus_async.errors import (
    FilterError,
    NodeError,
    QueryError,
    ServerError,
)
from tests import MILVUS_URI
from tests.fixtures.memory import MEBIBYTE, WHY_NOT
from tests.fixtures.recorder import recording
from tests.fixtures.servers import StandaloneServer
from tests.fixtures.stores import DIM, collection_name, make_nodes
from tests.fixtures.waiting import in_time

pytestmark = pytest.mark.starts

#: Rows of a collection that one search, or one query with a limit, does not return.
CROWD = MAX_TOP_K + 16
#: Ids of one call, more than are sent in one expression.
MANY_IDS = 20 * MAX_IDS
CONCURRENT = 10_000
#: Of a server's requests and responses (`proxy.grpc.serverMaxRecvSize`, `serverMaxSendSize`).
MAX_MESSAGE = 64 * MEBIBYTE
#: Keyword arguments of a read that need not wait for a tick: the rows were seen before.
NOW = {"consistency_level": "Eventually"}
#: A vector that no search of these tests finds first.
NOWHERE = [0.0] * DIM

lite, standalone = pytest.mark.engines("lite"), pytest.mark.engines("standalone")
needs_statm = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def asked(top_k=1, vector=None, **kwargs):
    vector = [1.0] * DIM if vector is None else vector
    return VectorStoreQuery(query_embedding=vector, similarity_top_k=top_k, **kwargs)


def where(key, operator, value):
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


def ids_of(nodes):
    return [node.node_id for node in nodes]


@pytest.fixture(scope="module")
def crowd(make_shared_store):
    """A store with more rows than a search may return."""
    store = make_shared_store(timeout=60)
    store.add(make_nodes(CROWD, number=lambda i: i))
    assert len(store.get_nodes(["node-0", f"node-{CROWD - 1}"])) == 2
    return store


@pytest.fixture(scope="module")
def small(make_shared_store):
    """A store with 100 rows; tests add more, that searches do not find first."""
    store = make_shared_store(timeout=60)
    store.add(make_nodes(100, number=lambda i: i))
    assert len(store.get_nodes(["node-0", "node-99"])) == 2
    return store


# Searches


@standalone
async def test_the_largest_top_k(crowd, raw, coloured):
    store = coloured(crowd)
    found = await store.query(asked(MAX_TOP_K), **NOW)
    assert len(set(found.ids)) == MAX_TOP_K
    assert found.similarities == sorted(found.similarities, reverse=True)
    with pytest.raises(QueryError, match="16385"):
        await store.query(asked(MAX_TOP_K + 1))
    with pytest.raises(MilvusException, match="16385"):
        raw.search(crowd.collection_name, data=[NOWHERE], limit=MAX_TOP_K + 1)


@standalone
async def test_an_offset_ends_at_the_largest_top_k(crowd, coloured):
    store = coloured(crowd)
    found = await store.query(asked(20), offset=MAX_TOP_K - 20, **NOW)
    assert len(found.ids) == 20
    with pytest.raises((QueryError, ServerError), match="16385"):
        await store.query(asked(20), offset=MAX_TOP_K - 19)


@standalone
async def test_more_queries_than_a_search_takes(small, raw):
    count = MAX_TOP_K + 1
    with pytest.raises(MilvusException, match="nq"):
        raw.search(small.collection_name, data=[NOWHERE] * count, limit=1)
    targets = np.random.default_rng(0).integers(0, 100, count)
    vectors = [node.embedding for node in make_nodes(100)]
    results = await small.aquery_many([asked(vector=vectors[i]) for i in targets], **NOW)
    assert [result.ids for result in results] == [[f"node-{i}"] for i in targets]


# Ids and expressions


@standalone
async def test_more_ids_to_get_than_an_expression_takes(crowd, coloured):
    ids = [f"node-{i}" for i in range(MANY_IDS)]
    assert ids_of(await coloured(crowd).get_nodes(ids, **NOW)) == ids[:CROWD]


@standalone
async def test_more_ids_to_delete_than_an_expression_takes(crowd, coloured, colour):
    store = coloured(crowd)
    nodes = make_nodes(2_000, prefix=colour)
    for node in nodes:
        node.relationships = {k: v.model_copy() for k, v in node.relationships.items()}
        node.source_node.node_id = f"{colour} {node.source_node.node_id}"
    await store.add(nodes)
    ids = ids_of(nodes)
    await store.delete_nodes([f"{colour}-{i}" for i in range(1_000, MANY_IDS)])
    assert ids_of(await store.get_nodes(ids)) == ids[:1_000]
    await store.delete([f"{colour} doc-{i}" for i in range(1, MANY_IDS // 4)])
    assert ids_of(await store.get_nodes(ids)) == ids[:4]


@standalone
async def test_more_rows_of_an_expression_than_a_query_returns(crowd, raw):
    with pytest.raises(MilvusException, match="query result window"):
        raw.query(crowd.collection_name, filter="number >= 0", limit=MAX_TOP_K + 1)
    everybody = where("number", FilterOperator.GTE, 0)
    nodes = await crowd.aget_nodes(filters=everybody, **NOW)
    assert {node.node_id for node in nodes} == {f"node-{i}" for i in range(CROWD)}


@standalone
async def test_more_rows_to_delete_than_a_query_returns(crowd, raw):
    await crowd.async_add(make_nodes(CROWD, prefix="doomed", fate="doomed"))
    await crowd.adelete_nodes(filters=where("fate", FilterOperator.EQ, "doomed"))
    assert count(raw, crowd, 'id like "doomed%"') == 0
    assert count(raw, crowd, 'id like "node%"') == CROWD


def count(raw, store, expression):
    [row] = raw.query(
        store.collection_name,
        filter=expression,
        output_fields=["count(*)"],
        consistency_level="Strong",
    )
    return row["count(*)"]


@standalone
async def test_a_query_among_many_ids(crowd, coloured):
    ids = [f"node-{i}" for i in range(CROWD)]
    found = await coloured(crowd).query(asked(node_ids=ids[16_000:]), **NOW)
    assert found.ids[0] in ids[16_000:]


@standalone
async def test_a_filter_of_many_values(small):
    filters = where("number", FilterOperator.IN, list(range(50, 20_000)))
    nodes = await small.aget_nodes(filters=filters, **NOW)
    assert {node.node_id for node in nodes} == {f"node-{i}" for i in range(50, 100)}


@standalone
@pytest.mark.parametrize("condition", ["or", "and"])
@pytest.mark.parametrize(
    "length",
    [
        30,
        200,
    ],
)
async def test_many_filters(small, coloured, length, condition):
    store = coloured(small)
    operator = FilterOperator.EQ if condition == "or" else FilterOperator.NE
    numbers = range(-length + 10, 10)
    some = [MetadataFilter(key="number", value=i, operator=operator) for i in numbers]
    filters = MetadataFilters(filters=some, condition=FilterCondition(condition))
    ids = [f"node-{i}" for i in range(100)]
    expected = set(ids[:10] if condition == "or" else ids[10:])
    nodes = await store.get_nodes(ids, filters, **NOW)
    assert {node.node_id for node in nodes} == expected
    found = await store.query(asked(100, filters=filters, node_ids=ids), **NOW)
    assert set(found.ids) == expected


@standalone
async def test_a_long_expression(small, coloured):
    """Milvus bounds no expression but by the size of the request that carries it."""
    store = coloured(small)
    filters = where("padding", FilterOperator.NE, "x" * (4 * MEBIBYTE))
    found = await store.query(asked(filters=filters, node_ids=["node-77"]), **NOW)
    assert found.ids == ["node-77"]
    assert ids_of(await store.get_nodes(["node-77"], filters, **NOW)) == ["node-77"]


@standalone
def test_a_filter_error_does_not_repeat_a_huge_value(small):
    """Messages end up in logs."""
    with pytest.raises(FilterError) as caught:
        small.get_nodes(filters=where("k", FilterOperator.EQ, ["x" * MEBIBYTE]))
    assert len(str(caught.value)) < 10_000


# Messages

#: Rows with texts that together are larger than a message.
LARGE = MAX_MESSAGE // MAX_VARCHAR_BYTES + 20


@pytest.fixture(scope="module")
def large(make_shared_store):
    """A store with rows that together are larger than a message, written in one call."""
    store = make_shared_store(batch_size=LARGE, timeout=60)
    nodes = make_nodes(LARGE)
    for number, node in enumerate(nodes):
        node.set_content(f"{number:06}" + "x" * (MAX_VARCHAR_BYTES - 6))
        node.metadata["k"] = "m" * 3_000  # more than 64 KiB for each id of an expression
    store.add(nodes)
    assert len(store.get_nodes(["node-0", f"node-{LARGE - 1}"])) == 2
    return store


@standalone
async def test_rows_that_together_are_larger_than_a_request(large, coloured):
    some = range(0, LARGE, 97)
    nodes = await coloured(large).get_nodes([f"node-{i}" for i in some], **NOW)
    assert [node.text[:6] for node in nodes] == [f"{i:06}" for i in some]
    assert {len(node.text) for node in nodes} == {MAX_VARCHAR_BYTES}


def ids_of_large():
    return [f"node-{i}" for i in range(LARGE)]


@standalone
async def test_nodes_that_together_are_larger_than_a_response(large, coloured):
    """They come in several."""
    store = coloured(large)
    for found in (
        await store.get_nodes(ids_of_large(), **NOW),
        await store.get_nodes(filters=MetadataFilters(filters=[]), **NOW),
        await store.get_nodes(ids_of_large(), where("k", FilterOperator.NE, "?"), **NOW),
    ):
        assert sorted(ids_of(found)) == sorted(ids_of_large())
        assert {len(node.text) for node in found} == {MAX_VARCHAR_BYTES}


@standalone
async def test_results_that_together_are_larger_than_a_response(large, coloured):
    queries, hits = 2 * LARGE // 10, 10
    vectors = [node.embedding for node in make_nodes(queries)]
    results = await coloured(large).query_many([asked(hits, vector=v) for v in vectors], **NOW)
    assert [len(result.ids) for result in results] == [hits] * queries
    assert [result.ids[0] for result in results] == [f"node-{i}" for i in range(queries)]


@standalone
@pytest.mark.parametrize("what", ["response", "request"])
async def test_a_message_that_is_too_large_is_not_sent_again(large, coloured, what):
    """It never becomes smaller: `RESOURCE_EXHAUSTED` is not always a matter of time."""
    store = coloured(large)
    asking = asked(LARGE)
    if what == "request":
        asking = asked(filters=where("padding", FilterOperator.NE, "x" * MAX_MESSAGE))
    with pytest.raises(ServerError, match=r"larger than max.*Ask for fewer hits") as caught:
        await store.query(asking, **NOW)
    assert type(caught.value) is ServerError
    assert len(str(caught.value)) < 2_000
    assert (await store.query(asked(), **NOW)).ids


# Columns

#: Characters of 1 to 4 bytes.
LETTERS = {"ascii": "x", "latin": "é", "han": "中", "emoji": "🎉"}


@pytest.mark.parametrize("letter", LETTERS.values(), ids=LETTERS)
async def test_the_longest_text(small, raw, coloured, colour, letter, engine):
    store = coloured(small)
    width = len(letter.encode())
    longest = letter * (MAX_VARCHAR_BYTES // width) + "x" * (MAX_VARCHAR_BYTES % width)
    assert len(longest.encode()) == MAX_VARCHAR_BYTES
    node = TextNode(id_=f"text {letter} {colour}", text=longest, embedding=NOWHERE)
    await store.add([node])
    [again] = await store.get_nodes([node.node_id])
    assert again.text == longest
    over = TextNode(id_="over", text=longest + letter, embedding=NOWHERE)
    with pytest.raises(NodeError, match="65535"):
        await store.add([node, over])
    assert await store.get_nodes(["over"]) == []
    if not engine.is_lite:
        with pytest.raises(MilvusException, match="65535"):
            raw.insert(small.collection_name, [{**bare_row("over"), "text": longest + letter}])


def bare_row(row_id, **more):
    texts = {"id": row_id, "doc_id": "d", "text": "t", "_node_content": "", "_node_type": ""}
    return {**texts, "embedding": NOWHERE, **more}


async def test_the_longest_id(small, coloured, colour):
    """The id is in the serialized node as well, which is compressed for that."""
    store = coloured(small)
    longest = colour + "i" * (MAX_VARCHAR_BYTES - len(colour))
    await store.add([TextNode(id_=longest, text="t", embedding=NOWHERE)])
    assert ids_of(await store.get_nodes([longest])) == [longest]
    await store.delete_nodes([longest])
    assert await store.get_nodes([longest]) == []
    with pytest.raises(NodeError) as caught:
        await store.add([TextNode(id_=longest + "i", text="t", embedding=NOWHERE)])
    assert len(str(caught.value)) < 2_000


async def test_the_largest_metadata(small, coloured, colour):
    """They are in the serialized node and in the dynamic field, and either may be full.

    The node is compressed then, and filters see the beginning of texts.
    """
    store = coloured(small)
    fits = TextNode(id_=f"fits {colour}", text="t", embedding=NOWHERE)
    fits.metadata = {"k": "m" * (MAX_VARCHAR_BYTES - 2_000)}
    await store.add([fits])
    [again] = await store.get_nodes([fits.node_id])
    assert again.metadata == fits.metadata
    fits.metadata = {"k": "m" * MAX_JSON_BYTES}
    await store.add([fits])
    [again] = await store.get_nodes([fits.node_id])
    assert again.metadata == fits.metadata
    over = TextNode(id_=f"over {colour}", text="t", embedding=NOWHERE)
    for metadata in ({"k": [0] * MAX_JSON_BYTES}, {f"k{i}": "m" * 1_000 for i in range(66)}):
        over.metadata = metadata
        with pytest.raises(NodeError, match=r"65536|65535"):
            await store.add([fits, over])
    assert await store.get_nodes([over.node_id]) == []


@standalone
def test_the_server_and_the_package_count_the_dynamic_field_alike(small, raw):
    """What the package lets through the server takes; a byte more, and either refuses."""
    rest = len(json.dumps({"k": ""}, separators=(",", ":")))
    full = bare_row("full", k="m" * (MAX_JSON_BYTES - rest))
    raw.insert(small.collection_name, [full])
    with pytest.raises(MilvusException, match="65536"):
        raw.insert(small.collection_name, [{**full, "k": full["k"] + "m"}])
    raw.delete(small.collection_name, ids=["full"])


async def test_one_node_too_large_among_concurrent_ones_fails_alone(small):
    good = make_nodes(50, prefix="beside")
    for node in good:
        node.embedding = NOWHERE
    bad = TextNode(id_="large", text="x" * (MAX_VARCHAR_BYTES + 1), embedding=NOWHERE)
    outcomes = await asyncio.gather(
        *(small.async_add([node]) for node in [*good, bad]), return_exceptions=True
    )
    assert outcomes[:-1] == [[node.node_id] for node in good]
    assert isinstance(outcomes[-1], NodeError)


# Load

#: Bytes that an operation may take that is under way: its task, what it is about, its result, and a
#: share of what is on the wire. An add takes 4 KiB, a query 8.
BYTES_OF_ONE = 20 * 1024


@pytest.fixture(
    scope="module",
    params=[2_000, pytest.param(CONCURRENT, marks=pytest.mark.slow)],
    ids=["two-thousand", "ten-thousand"],
)
def load(request, new_python, crowd, small, engine):
    """What came of as many adds, and then queries, at once in another process."""
    given = {"uri": engine.uri, "token": engine.token, "count": request.param}
    given |= {"add": crowd.collection_name, "query": small.collection_name}
    ended = new_python.run("-m", "tests.fixtures.load", json.dumps(given))
    return json.loads(ended.stdout)


@needs_statm
@standalone
@pytest.mark.parametrize("operation", ["add", "query"])
def test_thousands_concurrent(load, operation, crowd, raw):
    report, number = load[operation], load["count"]
    assert report["right"] == number
    assert (report["timed_out"], report["cancelled"], report["resends"]) == (0, 0, 0)
    assert report["rpcs"] < number / 20
    assert report["grown"] < number * BYTES_OF_ONE  # nothing where memory of before is free
    if operation == "add":
        assert count(raw, crowd, f'id like "many-of-{number}-%"') == number


@lite
async def test_the_queue_of_large_rows_is_bounded(small):
    """Rows beyond 64 MiB wait with their callers: the queue does not count them as its own."""
    text = "x" * 60_000
    number = 2 * MAX_QUEUED_BYTES // len(text)
    nodes = make_nodes(number, prefix="queued")
    for node in nodes:
        node.set_content(text)
        node.embedding = NOWHERE
    await small.aconnect()
    lanes = small._connections.transport().coalescer._lanes
    queued = []

    async def watch():
        while True:
            queued.append(max((lane.bytes for lane in lanes.values()), default=0))
            await asyncio.sleep(0.005)

    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.gather(*(small.async_add([node]) for node in nodes))
    finally:
        watching.cancel()
    assert MAX_QUEUED_BYTES / 2 < max(queued) <= MAX_QUEUED_BYTES
    some = [node.node_id for node in nodes[::50]]
    assert ids_of(await small.aget_nodes(some)) == some


# Rates and quotas


class LimitedServer(StandaloneServer):
    """Milvus standalone that takes little at a time: MiB, vectors or requests a second."""

    SETTINGS = {  # noqa: RUF012 (a mapping that nobody changes)
        "quotaAndLimits.quotaCenterCollectInterval": 1,
        "quotaAndLimits.dml.enabled": "true",
        "quotaAndLimits.dml.insertRate.max": 0.01,
        "quotaAndLimits.dml.upsertRate.max": 0.5,
        "quotaAndLimits.dml.deleteRate.max": 0.05,
        "quotaAndLimits.dql.enabled": "true",
        "quotaAndLimits.dql.searchRate.max": 150,
        "quotaAndLimits.dql.queryRate.max": 10,
        "quotaAndLimits.limitWriting.diskProtection.diskQuotaPerCollection": 1,
    }

    def store(self, collection_name="few", **kwargs):
        settings = {"uri": self.uri, "dim": DIM, "timeout": 30, **NOW}
        return MilvusVectorStore(collection_name=collection_name, **{**settings, **kwargs})


@pytest.fixture(scope="module", params=["standalone-limited"])
def limited(tmp_path_factory):
    """The server; its collection "few" has four nodes."""
    if MILVUS_URI:
        pytest.skip("MILVUS_URI names a server whose limits are not ours")
    if reason := StandaloneServer.why_not():
        pytest.skip(reason)
    server = LimitedServer(tmp_path_factory.mktemp("limited") / "server")
    try:
        server.start()
        with server.store() as store:
            store.add(make_nodes(4))
            assert len(store.get_nodes(["node-0", "node-1"], consistency_level="Strong")) == 2
        yield server
    finally:
        server.remove()


def long_nodes(number, prefix):
    nodes = make_nodes(number, prefix=prefix)
    for node in nodes:
        node.set_content("x" * 60_000)
    return nodes


async def add(store):
    nodes = long_nodes(24, store.colour)
    assert await store.add(nodes) == ids_of(nodes)
    found = await store.get_nodes(ids_of(nodes), consistency_level="Strong")
    assert ids_of(found) == ids_of(nodes)


async def query_many(store):
    vectors = [node.embedding for node in make_nodes(4)]
    results = await store.query_many([asked(vector=vectors[i % 4]) for i in range(500)])
    assert [result.ids for result in results] == [[f"node-{i % 4}"] for i in range(500)]


async def get_by_ids(store):
    found = await asyncio.gather(*(store.get_nodes([f"node-{i % 4}"]) for i in range(24)))
    assert [ids_of(nodes) for nodes in found] == [[f"node-{i % 4}"] for i in range(24)]


async def get_by_filters(store):
    filters = MetadataFilters(filters=[])
    found = await asyncio.gather(*(store.get_nodes(["node-1"], filters) for _ in range(24)))
    assert [ids_of(nodes) for nodes in found] == [["node-1"]] * 24


# A request of them leaves a debt that outlasts the request itself on a slow machine too.
PADDING = "no such id " + "x" * 100


async def delete_nodes(store):
    nodes = await with_nodes(store)
    ids = [f"{PADDING}{i}" for i in range(2 * MAX_IDS)]
    ids[::MAX_IDS] = ids_of(nodes)
    await store.delete_nodes(ids)
    assert await store.get_nodes(ids_of(nodes), consistency_level="Strong") == []


async def delete(store):
    nodes = await with_nodes(store)
    ids = [f"{PADDING}{i}" for i in range(2 * MAX_IDS)]
    ids[::MAX_IDS] = [node.ref_doc_id for node in nodes]
    await store.delete(ids)
    assert await store.get_nodes(ids_of(nodes), consistency_level="Strong") == []


async def with_nodes(store):
    """Adds two nodes of as many documents."""
    nodes = make_nodes(2, prefix="gone")
    for node in nodes:
        source = RelatedNodeInfo(node_id=f"document of {node.node_id}")
        node.relationships = {NodeRelationship.SOURCE: source}
    await store.add(nodes)
    return nodes


#: Operations beyond a rate: what they do, the request, and how many of them they need.
RATED = {
    "add": (add, "Upsert", 3),
    "query_many": (query_many, "Search", 2),
    "get_by_ids": (get_by_ids, "Query", 24),
    "get_by_filters": (get_by_filters, "Query", 24),
    "delete_nodes": (delete_nodes, "Delete", 2),
    "delete": (delete, "Delete", 2),
}


@pytest.mark.parametrize("name", RATED)
async def test_a_rate_is_waited_for(limited, coloured, name):
    operation, request, needed = RATED[name]
    with recording(limited.uri) as recorder:
        # Each call on its own: those that share requests stay below the rate.
        store = coloured(limited.store(uri=recorder.uri, coalesce=False))
        await operation(store)
        await store.close()
        sent = len(recorder.named(request))
    # Refused at least once, and not sent again and again in the meantime.
    assert needed < sent < 20 * needed


async def test_a_rate_that_leaves_no_time_is_an_error_that_names_it(limited, coloured):
    store = coloured(limited.store(upsert_mode=False, timeout=1))
    await store.connect()
    row = bare_row("debt", text="x" * 60_000)
    with contextlib.suppress(MilvusException):  # where the other colour has made the debt
        store.store.client.insert("few", [row] * 4, retry_on_rate_limit=False)  # of 20 seconds

    async def refused():
        with pytest.raises(ServerError, match="rate limit exceeded"):
            await store.add(make_nodes(1))

    for _ in range(2):
        await in_time(refused, 5)
    # It is there several times, and hits come short of it.
    assert (await store.query(asked(4))).ids
    await store.close()


@pytest.fixture(scope="module")
def full(limited):
    """A collection whose share of the disk is used up."""
    name = collection_name("full")
    with limited.store(name) as store:
        store.add([*make_nodes(4), *long_nodes(20, "filling")], force_flush=True)
        deadline = time.monotonic() + 30
        with pytest.raises(ServerError, match="disk quota exceeded"):
            while time.monotonic() < deadline:
                store.delete_nodes(["no such node"])
                time.sleep(0.2)
    return name


async def test_a_quota_that_is_used_up_is_an_error_at_once(limited, full, coloured):
    """To wait would not help."""
    store = coloured(limited.store(full))
    for operation in (
        lambda: store.add(make_nodes(1, prefix="more")),
        lambda: store.delete_nodes(["node-0"]),
        lambda: store.delete("doc-0"),
        lambda: store.clear(),
    ):

        async def refused():
            with pytest.raises(ServerError, match="disk quota exceeded") as caught:
                await operation()  # noqa: B023
            assert type(caught.value) is ServerError

        await in_time(refused, 10)
    assert ids_of(await store.get_nodes(["more-0", "node-0"])) == ["node-0"]
    await store.close()
