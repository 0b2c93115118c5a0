"""Operations that share RPCs, on real engines: what each caller gets is what it would get alone."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import NodeError, QueryError, RequestTimeoutError
from tests.fixtures.recorder import Call, Recorder
from tests.fixtures.servers import Server, StandaloneServer
from tests.fixtures.stores import DIM, MakeStore, make_nodes, wait_for_flushes

EVERYTHING = MetadataFilters(filters=[])


def asking(node: TextNode, top_k: int = 1, **kwargs: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=top_k, **kwargs)


async def ids_in(store: MilvusVectorStore) -> list[str]:
    nodes = await store.aget_nodes(filters=EVERYTHING, consistency_level="Strong")
    return sorted(node.node_id for node in nodes)


async def test_single_adds_and_queries_share_rpcs(make_store: MakeStore) -> None:
    store = make_store(similarity_metric="COSINE")
    nodes = make_nodes(300)
    added = await asyncio.gather(*(store.async_add([node]) for node in nodes))
    assert added == [[node.node_id] for node in nodes]
    results = await asyncio.gather(*(store.aquery(asking(node)) for node in nodes))
    assert [result.ids for result in results] == [[node.node_id] for node in nodes]

    stats = store.stats()
    assert (stats["insert"].calls, stats["search"].calls) == (300, 300)
    # Three at the least; a few more, because conversions let the loop go on in between.
    assert stats["insert"].rpcs <= 10
    assert stats["search"].rpcs <= 10
    assert stats["insert"].items_per_rpc >= 30
    assert stats["insert"].bytes > 300 * 4 * DIM
    assert stats["search"].retries == 0


async def test_without_coalescing_each_call_is_an_rpc(make_store: MakeStore) -> None:
    store = make_store(coalesce=False)
    nodes = make_nodes(20)
    await asyncio.gather(*(store.async_add([node]) for node in nodes))
    await asyncio.gather(*(store.aquery(asking(node)) for node in nodes))
    assert store.stats()["insert"].rpcs == store.stats()["search"].rpcs == 20
    assert await ids_in(store) == sorted(node.node_id for node in nodes)


async def test_queries_that_differ_do_not_mix(make_store: MakeStore) -> None:
    store = make_store(similarity_metric="COSINE")
    nodes = make_nodes(60, part=lambda i: i % 3)
    await store.async_add(nodes)
    filters = [
        MetadataFilters.model_validate({"filters": [{"key": "part", "value": part}]})
        for part in range(3)
    ]

    async def ask(i: int) -> bool:
        query = asking(nodes[i], top_k=1 + i % 4, filters=filters[i % 3])
        found = await store.aquery(query)
        assert found.nodes is not None
        return (
            len(found.nodes) == 1 + i % 4
            and found.ids is not None
            and found.ids[0] == nodes[i].node_id
            and all(node.metadata["part"] == i % 3 for node in found.nodes)
        )

    assert all(await asyncio.gather(*(ask(i) for i in range(60))))


async def test_gets_and_deletes_share_rpcs(make_store: MakeStore) -> None:
    store = make_store()
    nodes = make_nodes(80)
    await store.async_add(nodes)
    got = await asyncio.gather(
        *(store.aget_nodes([f"node-{i}", "missing", f"node-{(i * 7) % 80}"]) for i in range(80))
    )
    for i, found in enumerate(got):
        wanted = dict.fromkeys([f"node-{i}", f"node-{(i * 7) % 80}"])
        assert [node.node_id for node in found] == list(wanted)
    await asyncio.gather(*(store.adelete(f"doc-{i}") for i in range(10)))
    assert await ids_in(store) == sorted(f"node-{i}" for i in range(40, 80))
    stats = store.stats()
    assert stats["get"].calls == 80
    assert stats["get"].rpcs <= 2
    assert stats["delete"].calls == 10
    assert stats["delete"].rpcs <= 2


async def test_bad_ones_fail_alone(make_store: MakeStore) -> None:
    store = make_store()
    nodes = make_nodes(100)
    await store.async_add(nodes)
    more = make_nodes(100, prefix="more", seed=1)
    for i in range(5):
        more[20 * i].embedding = [float("nan")] * DIM
    queries = [asking(node) for node in nodes]
    for i in range(5):
        queries[20 * i].query_embedding = [1.0] * (DIM + 1)
    outcomes = await asyncio.gather(
        *(store.async_add([node]) for node in more),
        *(store.aquery(query) for query in queries),
        return_exceptions=True,
    )
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(failure) for failure in failures] == [NodeError] * 5 + [QueryError] * 5
    assert len(await ids_in(store)) == 195


async def test_an_id_that_cannot_be_asked_for_fails_alone(make_store: MakeStore) -> None:
    store = make_store()
    nodes = make_nodes(20)
    await store.async_add(nodes)
    ids = [node.node_id for node in nodes]
    ids[3] = ids[17] = "\ud800"  # no UTF-8
    outcomes = await asyncio.gather(
        *(store.aget_nodes([node_id]) for node_id in ids), return_exceptions=True
    )
    failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]
    assert failed == [3, 17]


async def test_what_the_server_refuses_fails_alone(make_store: MakeStore, raw: Any) -> None:
    """Only the server knows that a partition is missing, or what an expression lacks."""
    store = make_store()
    nodes = make_nodes(40)
    await store.async_add(nodes)
    outcomes = await asyncio.gather(
        *(
            store.aquery(asking(node), string_expr="text ==" if i % 10 == 0 else None)
            for i, node in enumerate(nodes)
        ),
        return_exceptions=True,
    )
    failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]
    assert failed == [0, 10, 20, 30]


async def test_cancelled_calls_withdraw_their_own_rows(make_store: MakeStore) -> None:
    store = make_store()
    await store.aconnect()
    nodes = make_nodes(1_000)
    chance = random.Random(7)
    tasks = [asyncio.create_task(store.async_add([node])) for node in nodes]
    cancelled = [i for i in range(1_000) if chance.random() < 0.3]
    await asyncio.sleep(0)
    for i in cancelled[::2]:
        tasks[i].cancel()
    await asyncio.sleep(0.005)
    for i in cancelled[1::2]:
        tasks[i].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    acknowledged = {i for i, outcome in enumerate(outcomes) if isinstance(outcome, list)}
    assert acknowledged >= set(range(1_000)) - set(cancelled)
    stored = await ids_in(store)
    assert len(stored) == len(set(stored))
    # Nothing acknowledged is missing; what was cancelled may have been sent before.
    assert {f"node-{i}" for i in acknowledged} <= set(stored)
    # The first half was cancelled before anything was sent.
    assert not {f"node-{i}" for i in cancelled[::2]} & set(stored)


async def test_an_add_that_returned_is_seen(make_store: MakeStore) -> None:
    store = make_store(consistency_level="Session")
    nodes = make_nodes(50)

    async def add_and_ask(node: TextNode) -> bool:
        await store.async_add([node])
        return [n.node_id for n in await store.aget_nodes([node.node_id])] == [node.node_id]

    assert all(await asyncio.gather(*(add_and_ask(node) for node in nodes)))


async def test_upserts_of_one_id_at_once_leave_one_row(make_store: MakeStore) -> None:
    store = make_store()
    versions = [make_nodes(1, seed=i, version=i)[0] for i in range(20)]
    await asyncio.gather(*(store.async_add([node]) for node in versions))
    found = await store.aquery(asking(versions[0], top_k=20))
    assert found.ids == ["node-0"]
    # Which of those at once is the last, only the server knows; a later one replaces it.
    await store.async_add([versions[5]])
    [node] = await store.aget_nodes(["node-0"])
    assert node.metadata["version"] == 5


async def test_two_stores_on_one_collection(make_store: MakeStore) -> None:
    first = make_store()
    await first.aconnect()
    second = make_store(collection_name=first.collection_name)
    nodes = make_nodes(100)
    await asyncio.gather(
        *(
            store.async_add([node])
            for i, node in enumerate(nodes)
            for store in [(first, second)[i % 2]]
        )
    )
    assert await ids_in(first) == await ids_in(second) == sorted(node.node_id for node in nodes)


def test_two_loops_at_once(make_shared_store: MakeStore) -> None:
    store = make_shared_store()
    store.connect()
    nodes = make_nodes(200)

    def add(part: list[TextNode]) -> None:
        async def run() -> None:
            await asyncio.gather(*(store.async_add([node]) for node in part))

        asyncio.run(run())

    threads = [threading.Thread(target=add, args=(nodes[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asyncio.run(ids_in(store)) == sorted(node.node_id for node in nodes)
    assert store.stats()["insert"].calls == 200


async def test_query_many_answers_in_order(make_store: MakeStore, coloured: Any) -> None:
    store = make_store(similarity_metric="COSINE")
    nodes = make_nodes(250)
    await store.async_add(nodes)
    queries = [asking(node, top_k=1 + i % 2) for i, node in enumerate(nodes)]
    queries[7].doc_ids = []
    results = await coloured(store).query_many(queries)
    assert [len(result.nodes) for result in results] == [
        0 if i == 7 else 1 + i % 2 for i in range(250)
    ]
    alone = [await store.aquery(query) for query in queries[:10]]
    assert [result.ids for result in results[:10]] == [result.ids for result in alone]
    assert await coloured(store).query_many([]) == []


async def test_query_many_with_a_bad_query_asks_nothing(
    make_store: MakeStore, coloured: Any
) -> None:
    store = make_store(uri="http://127.0.0.1:1")
    with pytest.raises(QueryError, match="similarity_top_k"):
        await coloured(store).query_many([asking(make_nodes(1)[0]), asking(make_nodes(1)[0], 0)])


async def test_lite_alone_is_flushed_from_a_thousand_rows_on(
    make_store: MakeStore, recorder: Recorder
) -> None:
    store = make_store(uri=recorder.uri)
    lite = (await store.aclient.get_server_version()).startswith("milvus_lite")

    async def flushed(times: int) -> None:
        await asyncio.to_thread(wait_for_flushes)
        assert len(recorder.named("Flush")) == (times if lite else 0)

    await store.async_add(make_nodes(900))
    await flushed(0)
    await store.async_add(make_nodes(1_600, prefix="more"))
    await flushed(1)
    await asyncio.gather(*(store.async_add([node]) for node in make_nodes(500, prefix="single")))
    await flushed(1)
    await store.aupdate_metadata(node_ids=[f"more-{i}" for i in range(500)], set={"seen": True})
    assert len((await store.aquery(asking(make_nodes(1)[0]))).ids) > 0
    await flushed(2)
    assert len(await ids_in(store)) == 3_000


async def test_each_caller_has_its_own_deadline(reopen: MakeStore, recorder: Recorder) -> None:
    """Three queries share a search; the one that does not want to wait leaves alone."""
    store = reopen(uri=recorder.uri)
    nodes = make_nodes(4)
    await store.aquery(asking(nodes[0]))  # connects
    opened = threading.Event()

    def hold(call: Call) -> None:
        if call.method == "Search":
            opened.wait(60)

    recorder.intercept = hold
    before = store.stats()["search"].rpcs
    timeouts = (None, 0.3, 60)
    calls = [
        asyncio.ensure_future(store.aquery(asking(nodes[i]), timeout=timeout))
        for i, timeout in enumerate(timeouts)
    ]
    with pytest.raises(RequestTimeoutError, match="in time"):
        await calls[1]
    assert not calls[0].done()
    assert not calls[2].done()
    opened.set()
    assert (await calls[0]).ids == [nodes[0].node_id]
    assert (await calls[2]).ids == [nodes[2].node_id]
    assert store.stats()["search"].rpcs == before + 1
    assert store.stats()["search"].timed_out == 1


@pytest.mark.parametrize("method", ["Upsert", "Search", "Query", "Delete"])
async def test_a_server_with_too_much_to_do_is_given_time(
    reopen: MakeStore, recorder: Recorder, method: str
) -> None:
    store = reopen(uri=recorder.uri)
    await store.aquery(asking(make_nodes(1)[0]))  # connects
    refusals = 3

    def refuse(call: Call) -> tuple[grpc.StatusCode, str] | None:
        nonlocal refusals
        if call.method != method and not (call.adds and method == "Upsert"):
            return None
        if not refusals:
            return None
        refusals -= 1
        return grpc.StatusCode.RESOURCE_EXHAUSTED, "too much to do"

    recorder.intercept = refuse
    nodes = make_nodes(20, prefix="late")
    calls: dict[str, Callable[[TextNode], Awaitable[Any]]] = {
        "Upsert": lambda node: store.async_add([node]),
        "Search": lambda node: store.aquery(asking(node)),
        "Query": lambda node: store.aget_nodes([node.node_id]),
        "Delete": lambda node: store.adelete(f"none-{node.node_id}"),
    }
    kind = {"Upsert": "insert", "Search": "search", "Query": "get", "Delete": "delete"}[method]
    await asyncio.gather(*(calls[method](node) for node in nodes))
    assert refusals == 0
    assert store.stats()[kind].resends >= 1
    recorder.intercept = None
    if method == "Upsert":
        stored = [name for name in await ids_in(store) if name.startswith("late")]
        assert stored == sorted(node.node_id for node in nodes)
        await store.adelete_nodes(stored)


class LimitedServer(StandaloneServer):
    """Milvus standalone that takes a third of a megabyte of rows a second."""

    SETTINGS: ClassVar[Mapping[str, object]] = {
        "quotaAndLimits.enabled": True,
        "quotaAndLimits.dml.enabled": True,
        "quotaAndLimits.dml.upsertRate.max": 0.3,
    }


@pytest.fixture
def limited_server(tmp_path: Path) -> Iterator[Server]:
    if reason := LimitedServer.why_not():
        pytest.skip(reason)
    server = LimitedServer(tmp_path / "server")
    server.start()
    yield server
    server.remove()


@pytest.mark.starts
async def test_the_rate_limit_of_a_server(limited_server: Server) -> None:
    """More rows than the server takes in a second: all arrive, each once, none is reported lost."""
    store = MilvusVectorStore(limited_server.uri, dim=768, consistency_level="Strong", timeout=120)
    try:
        await store.aconnect()
        nodes = make_nodes(300, dim=768)
        # What the server takes in three seconds, at once; to send it takes a fraction of that.
        await asyncio.gather(*(store.async_add([node]) for node in nodes))
        stats = store.stats()["insert"]
        assert stats.resends >= 1
        assert await ids_in(store) == sorted(node.node_id for node in nodes)
    finally:
        await store.aclose()
