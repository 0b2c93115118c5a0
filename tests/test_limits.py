"""What Milvus limits is split, waited for, or refused in words; nothing is lost on the way.

Each test reaches the limit that it is about. Sizes are of the server; where Milvus Lite knows no
limit, the same calls have to work.
"""

import asyncio
import gc
import json
import threading
import time

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_milvus_async._backend import MAX_QUEUED_BYTES
from llama_index_milvus_async._rows import MAX_DYNAMIC_BYTES
from llama_index_milvus_async._schema import MAX_VARCHAR_BYTES
from llama_index_milvus_async._search import MAX_TOP_K
from llama_index_milvus_async.errors import (
    FilterError,
    NodeError,
    QueryError,
    RequestTimeoutError,
    ServerError,
)
from tests.fixtures.recorder import recording
from tests.fixtures.stores import DIM, make_nodes

MEBIBYTE = 2**20
ROWS = MAX_TOP_K + 16
MANY_IDS = 100_000
CONCURRENT = 10_000
#: Of a server's requests (`proxy.grpc.serverMaxRecvSize`).
MAX_REQUEST = 64 * MEBIBYTE

lite, standalone = pytest.mark.engines("lite"), pytest.mark.engines("standalone")


def asked(top_k=1, vector=None, **kwargs):
    vector = [1.0] * DIM if vector is None else vector
    return VectorStoreQuery(query_embedding=vector, similarity_top_k=top_k, **kwargs)


def where(key, operator, value):
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


@pytest.fixture(scope="module")
def crowd(make_shared_store):
    """A store with more rows than a search may return, written in one call and one batch."""
    store = make_shared_store(timeout=100, batch_size=10 * ROWS)
    nodes = make_nodes(ROWS, number=lambda i: i)
    store.add(nodes)
    assert len(store.get_nodes(["node-0", f"node-{ROWS - 1}"])) == 2
    return store


def level(store):
    """Keyword arguments of a read that need not wait for the next tick: nothing was written."""
    return {"consistency_level": "Eventually"}


# Searches


@pytest.mark.timeout(240)
async def test_the_largest_top_k(crowd, coloured):
    store = coloured(crowd)
    found = await store.query(asked(MAX_TOP_K), **level(crowd))
    assert len(set(found.ids)) == MAX_TOP_K
    assert found.similarities == sorted(found.similarities, reverse=True)
    with pytest.raises(QueryError, match="16385"):
        await store.query(asked(MAX_TOP_K + 1))


async def test_an_offset_that_ends_at_the_largest_top_k(crowd, coloured):
    store = coloured(crowd)
    found = await store.query(asked(20), offset=MAX_TOP_K - 20, **level(crowd))
    assert len(found.ids) == 20


@standalone
async def test_an_offset_that_ends_beyond_the_largest_top_k_is_refused(crowd, coloured):
    store = coloured(crowd)
    with pytest.raises((QueryError, ServerError), match=r"16384|16385|16,384"):
        await store.query(asked(20), offset=MAX_TOP_K - 19)
    assert (await store.query(asked(), **level(crowd))).ids


@pytest.mark.timeout(240)
async def test_more_queries_than_a_search_takes(crowd):
    """Milvus takes 16,384 vectors in one search; queries are sent in smaller companies."""
    count = MAX_TOP_K + 1
    targets = np.random.default_rng(0).integers(0, ROWS, count)
    vectors = [node.embedding for node in make_nodes(ROWS)]
    queries = [asked(vector=vectors[i], output_fields=["text"]) for i in targets]
    results = await crowd.aquery_many(queries, **level(crowd))
    assert [result.ids for result in results] == [[f"node-{i}"] for i in targets]


# Ids and expressions


@pytest.mark.timeout(240)
async def test_a_hundred_thousand_ids_to_get(crowd, coloured):
    store = coloured(crowd)
    ids = [f"node-{i}" for i in range(MANY_IDS)]
    found = await store.get_nodes(ids, **level(crowd))
    assert [node.node_id for node in found] == ids[:ROWS]


@pytest.mark.timeout(240)
async def test_a_hundred_thousand_ids_to_delete(make_store, coloured):
    store = coloured(make_store(timeout=100))
    nodes = make_nodes(2_000)
    await store.add(nodes)
    await store.delete_nodes([f"node-{i}" for i in range(1_000, MANY_IDS)])
    left = await store.get_nodes([f"node-{i}" for i in range(2_000)])
    assert [node.node_id for node in left] == [f"node-{i}" for i in range(1_000)]
    await store.delete([f"doc-{i}" for i in range(1, MANY_IDS // 10)])
    left = await store.get_nodes([f"node-{i}" for i in range(2_000)])
    assert [node.node_id for node in left] == [f"node-{i}" for i in range(4)]


async def test_a_query_among_many_ids(crowd, coloured):
    store = coloured(crowd)
    ids = [f"node-{i}" for i in range(20_000)]
    found = await store.query(asked(node_ids=ids[16_000:]), **level(crowd))
    assert int(found.ids[0].removeprefix("node-")) >= 16_000


async def test_a_filter_of_many_values(crowd):
    few = where("number", FilterOperator.IN, list(range(5_000)))
    assert len(await crowd.aget_nodes(filters=few, **level(crowd))) == 5_000


@pytest.mark.parametrize("condition", [FilterCondition.OR, FilterCondition.AND])
@pytest.mark.parametrize("count", [30, 200])
async def test_many_filters(crowd, coloured, engine, request, count, condition):
    """Each is a node of the tree that the server parses; a tree that is too deep it refuses."""
    if not engine.is_lite and count > 100:
        reason = "a search with a chain of 100 and more: 'unsupported expr proto node'"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    store = coloured(crowd)
    symbol = FilterOperator.EQ if condition is FilterCondition.OR else FilterOperator.NE
    some = [MetadataFilter(key="number", value=i, operator=symbol) for i in range(count)]
    some.append(MetadataFilter(key="number", value=count, operator=symbol))
    filters = MetadataFilters(filters=some, condition=condition)
    ids = [f"node-{i}" for i in range(count + 10)]
    await store.query(asked(filters=filters), **level(crowd))
    found = [node.node_id for node in await store.get_nodes(ids, filters, **level(crowd))]
    assert sorted(found) == sorted(
        ids[: count + 1] if condition is FilterCondition.OR else ids[count + 1 :]
    )


@pytest.mark.timeout(240)
async def test_a_long_expression(crowd, coloured):
    """Milvus bounds no expression but by the size of the request that carries it."""
    store = coloured(crowd)
    one = "node-77"
    padding = "x" * (4 * MEBIBYTE)
    found = await store.query(
        asked(), string_expr=f'id == "{one}" and text != "{padding}"', **level(crowd)
    )
    assert found.ids == [one]
    assert await store.get_nodes(filters=where("number", FilterOperator.EQ, padding)) == []


# Rows


LARGE = MAX_REQUEST // MAX_VARCHAR_BYTES + 20


@pytest.fixture(scope="module")
def large(make_shared_store):
    """A store with rows that together are larger than a request, written in one call.

    They are sent in parts of half a mebibyte, whatever the batch size.
    """
    store = make_shared_store(batch_size=100_000, timeout=100)
    nodes = make_nodes(LARGE)
    for number, node in enumerate(nodes):
        node.set_content(f"{number:06}" + "x" * (MAX_VARCHAR_BYTES - 16))
        node.metadata["k"] = "m" * 3_000  # it is in two columns
    store.add(nodes)
    return store


async def test_rows_that_together_are_larger_than_a_request(large, coloured):
    store = coloured(large)
    some = range(0, LARGE, 97)
    nodes = await store.get_nodes([f"node-{i}" for i in some])
    assert [node.text[:6] for node in nodes] == [f"{i:06}" for i in some]
    assert {len(node.text) for node in nodes} == {MAX_VARCHAR_BYTES - 10}


@pytest.mark.parametrize("how", ["query", "ids", "filters"])
async def test_rows_that_together_are_larger_than_a_response(large, coloured, engine, request, how):
    """A server sends 64 MiB at most (`proxy.grpc.serverMaxSendSize`)."""
    if not engine.is_lite:
        reason = "responses are not split by size"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    store = coloured(large)
    ids = [f"node-{i}" for i in range(LARGE)]
    options = {"timeout": 4, **level(large)}
    if how == "query":
        nodes = (await store.query(asked(LARGE), **options)).nodes
    elif how == "ids":
        nodes = await store.get_nodes(ids, **options)
    else:
        nodes = await store.get_nodes(filters=MetadataFilters(filters=[]), **options)
    assert {node.node_id for node in nodes} == set(ids)


@standalone
@pytest.mark.parametrize("how", ["response", "request"])
async def test_a_message_that_is_too_large_is_not_sent_again(large, coloured, colour, request, how):
    """It never becomes smaller: `RESOURCE_EXHAUSTED` is not always a matter of time."""
    if colour == "async":
        reason = "taken for overload and sent again until the deadline: RequestTimeoutError"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    store = coloured(large)
    asking = asked(LARGE) if how == "response" else asked()
    expression = f'text != "{"x" * MAX_REQUEST}"' if how == "request" else None
    with pytest.raises(ServerError, match="larger than max") as caught:
        await store.query(asking, string_expr=expression, timeout=4, **level(large))
    assert len(str(caught.value)) < 2_000
    assert (await store.query(asked(), **level(large))).ids
    assert type(caught.value) is ServerError


@pytest.fixture(scope="module")
def edge(make_shared_store):
    return make_shared_store().connect()


#: Texts of so many bytes, of characters of 1 to 4 bytes.
LETTERS = {"ascii": "x", "latin": "é", "han": "中", "emoji": "🎉"}


def text_of(size, letter):
    width = len(letter.encode())
    return letter * (size // width) + "x" * (size % width)


@pytest.mark.parametrize("letter", LETTERS.values(), ids=LETTERS)
async def test_the_longest_text(edge, coloured, colour, letter):
    store = coloured(edge)
    longest = text_of(MAX_VARCHAR_BYTES, letter)
    assert len(longest.encode()) == MAX_VARCHAR_BYTES
    node = TextNode(id_=f"text {letter} {colour}", text=longest, embedding=[1.0] * DIM)
    await store.add([node])
    [again] = await store.get_nodes([node.node_id])
    assert again.text == longest
    over = TextNode(id_="over", text=longest + letter, embedding=[1.0] * DIM)
    with pytest.raises(NodeError, match="65535"):
        await store.add([node, over])
    assert await store.get_nodes(["over"]) == []


async def test_the_longest_id(edge, coloured, colour):
    """The id is in the serialized node as well, which has a column of 65,535 bytes itself."""
    store = coloured(edge)
    longest = colour + "i" * (MAX_VARCHAR_BYTES - 1_000 - len(colour))
    await store.add([TextNode(id_=longest, text="t", embedding=[1.0] * DIM)])
    assert [node.node_id for node in await store.get_nodes([longest])] == [longest]
    await store.delete_nodes([longest])
    assert await store.get_nodes([longest]) == []
    with pytest.raises(NodeError) as caught:
        await store.add([TextNode(id_=longest + "i" * 1_001, text="t", embedding=[1.0] * DIM)])
    assert len(str(caught.value)) < 2_000


def dynamic_size(store, node):
    """Bytes of the dynamic field of a node's row: its metadata, and the document under 3 keys."""
    doc_id = node.ref_doc_id or "None"
    fields = {**node.metadata, "document_id": doc_id, "ref_doc_id": doc_id}
    return len(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())


async def test_the_largest_dynamic_field(edge, coloured, colour, raw, engine):
    """The node itself has a column of 65,535 bytes, which the metadata of a node fills sooner."""
    store = coloured(edge)
    sizes = [MAX_DYNAMIC_BYTES - 2_000, MAX_DYNAMIC_BYTES + 1]
    nodes = [
        TextNode(id_=f"meta {size} {colour}", metadata={"k": "m" * size}, embedding=[1.0] * DIM)
        for size in sizes
    ]
    await store.add(nodes[:1])
    [again] = await store.get_nodes([nodes[0].node_id])
    assert again.metadata == nodes[0].metadata
    with pytest.raises(NodeError, match=r"65536|65535"):
        await store.add(nodes)
    assert await store.get_nodes([nodes[1].node_id]) == []


@standalone
async def test_the_server_agrees_about_the_dynamic_field(edge, raw):
    """What this package lets through the server takes; a byte more and the server refuses."""
    name = edge.collection_name
    row = {"id": "exact", "doc_id": "d", "text": "t", "_node_content": "", "_node_type": ""}
    row |= {"embedding": [1.0] * DIM}
    rest = len('{"k":""}')
    raw.insert(name, [{**row, "k": "m" * (MAX_DYNAMIC_BYTES - rest)}])
    with pytest.raises(Exception, match="65536"):
        raw.insert(name, [{**row, "k": "m" * (MAX_DYNAMIC_BYTES - rest + 1)}])
    raw.delete(name, ids=["exact"])


async def test_one_node_too_large_among_concurrent_ones_fails_alone(edge):
    good = make_nodes(50, prefix="beside")
    bad = TextNode(id_="large", text="x" * (MAX_VARCHAR_BYTES + 1), embedding=[1.0] * DIM)
    outcomes = await asyncio.gather(
        *(edge.async_add([node]) for node in [*good, bad]), return_exceptions=True
    )
    assert outcomes[:-1] == [[node.node_id] for node in good]
    assert isinstance(outcomes[-1], NodeError)


# Load


def resident():
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


class Peak:
    """The most memory that the process takes while something runs, beyond what it has before."""

    def __enter__(self):
        gc.collect()
        self.before = self.most = resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ended.wait(0.01):
            self.most = max(self.most, resident())

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    @property
    def grown(self):
        return self.most - self.before


@pytest.fixture(scope="module")
def busy(make_shared_store):
    store = make_shared_store(timeout=110, consistency_level="Eventually")
    store.add(make_nodes(100))
    store.get_nodes(["node-0"], consistency_level="Strong")
    return store


@pytest.mark.skipif("sys.platform != 'linux'", reason="reads /proc")
@pytest.mark.timeout(240)
async def test_ten_thousand_concurrent_queries(busy):
    vectors = [node.embedding for node in make_nodes(100)]

    async def run(count):
        with Peak() as peak:
            results = await asyncio.gather(
                *(busy.aquery(asked(vector=vectors[i % 100])) for i in range(count))
            )
        assert [result.ids for result in results] == [[f"node-{i % 100}"] for i in range(count)]
        return peak.grown

    await run(1_000)  # what is allocated once
    grown = await run(1_000)
    before = busy.stats()["search"]
    most = await run(CONCURRENT)
    after = busy.stats()["search"]
    # Per query no more than with a thousand, which has results, tasks and a share of a response.
    assert most < max(20 * grown, 400 * MEBIBYTE)
    assert after.rpcs - before.rpcs < CONCURRENT / 20
    assert (after.timed_out, after.cancelled) == (0, 0)


@pytest.mark.skipif("sys.platform != 'linux'", reason="reads /proc")
@pytest.mark.timeout(240)
async def test_ten_thousand_concurrent_adds(make_store, raw):
    store = make_store(timeout=110)
    await store.aconnect()

    async def run(count, prefix):
        nodes = make_nodes(count, prefix=prefix)
        with Peak() as peak:
            ids = await asyncio.gather(*(store.async_add([node]) for node in nodes))
        assert ids == [[node.node_id] for node in nodes]
        return peak.grown

    await run(1_000, "warm")
    grown = await run(1_000, "few")
    before = store.stats()["insert"]
    most = await run(CONCURRENT, "many")
    after = store.stats()["insert"]
    assert most < max(20 * grown, 400 * MEBIBYTE)
    assert after.rpcs - before.rpcs < CONCURRENT / 20
    [row] = raw.query(
        store.collection_name,
        filter='id != ""',
        output_fields=["count(*)"],
        consistency_level="Strong",
    )
    assert row["count(*)"] == CONCURRENT + 2_000


@lite
@pytest.mark.timeout(240)
async def test_the_queue_of_large_rows_is_bounded(make_store):
    """Rows beyond 64 MiB wait with their callers: the queue does not count them as its own."""
    store = make_store(timeout=110)
    await store.aconnect()
    text = "x" * 60_000
    count = 2 * MAX_QUEUED_BYTES // len(text)
    nodes = make_nodes(count)
    for node in nodes:
        node.set_content(text)
    lanes = store._connections.of_running_loop().coalescer._lanes
    queued = []

    async def watch():
        while True:
            queued.append(max((lane.bytes for lane in lanes.values()), default=0))
            await asyncio.sleep(0.005)

    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.gather(*(store.async_add([node]) for node in nodes))
    finally:
        watching.cancel()
    assert MAX_QUEUED_BYTES / 2 < max(queued) <= MAX_QUEUED_BYTES
    assert len(await store.aget_nodes([f"node-{i}" for i in range(0, count, 50)])) == len(
        range(0, count, 50)
    )


# Rate limits


def refusing(times, answer):
    """Refuses the first `times` requests of each kind, as a server with too much to do."""
    import grpc

    left = {}

    def intercept(call):
        if call.method not in ("Search", "Insert", "Query", "Delete"):
            return None
        left.setdefault(call.method, times)
        left[call.method] -= 1
        return (grpc.StatusCode.RESOURCE_EXHAUSTED, answer) if left[call.method] >= 0 else None

    return intercept


@lite
@pytest.mark.timeout(60)
async def test_a_server_with_too_much_to_do_is_given_time(make_store, engine, coloured, colour):
    if colour == "sync":
        pytest.skip("blocking calls wait in pymilvus")
    with recording(engine.uri) as recorder:
        async with make_store(uri=recorder.uri, timeout=20) as store:
            recorder.intercept = refusing(3, "rate limit exceeded")
            nodes = make_nodes(40)
            await asyncio.gather(*(store.async_add([node]) for node in nodes))
            recorder.intercept = refusing(3, "rate limit exceeded")
            found = await asyncio.gather(*(store.aquery(asked(vector=n.embedding)) for n in nodes))
            assert [one.ids for one in found] == [[node.node_id] for node in nodes]
            assert store.stats()["insert"].resends and store.stats()["search"].resends


@lite
@pytest.mark.timeout(60)
async def test_a_server_that_never_has_time_is_a_time_out(make_store, engine):
    with recording(engine.uri) as recorder:
        async with make_store(uri=recorder.uri, timeout=1) as store:
            recorder.intercept = refusing(10**9, "quota exceeded")
            began = time.monotonic()
            with pytest.raises(RequestTimeoutError):
                await store.aquery(asked())
            with pytest.raises(RequestTimeoutError):
                await store.async_add(make_nodes(1))
            assert time.monotonic() - began < 15


@pytest.mark.xfail(reason="a FilterError quotes values in full length", strict=True)
def test_a_filter_error_does_not_repeat_a_huge_value(crowd):
    """Messages end up in logs."""
    with pytest.raises(FilterError) as caught:
        crowd.get_nodes(filters=where("k", FilterOperator.EQ, ["x" * MEBIBYTE]))
    assert len(str(caught.value)) < 10_000
