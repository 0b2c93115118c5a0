"""Every operation as a case: what it writes and answers, and what holds after a fault."""

import asyncio
import contextlib
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from llama_index_milvus_async.errors import (
    MilvusVectorStoreError,
    PartialWriteError,
    ServerError,
)
from tests.fixtures.stores import Coloured, make_nodes

#: Seconds of a call that is to fail.
SHORT = 0.5
#: Seconds of a call that is to succeed: beyond what a server takes to start again.
LONG = 60.0
#: Seconds that a failing call may take beyond its timeout, on a busy machine: fewer than `LONG`,
#: the timeout of the stores.
ROOM = 40.0
#: Seconds of a fault that passes.
WHILE = 0.3

SPARSE = {"enable_sparse": True}


@dataclass
class Case:
    """One operation on nodes of its own, in a collection that it shares with others.

    Attributes:
        operation: Its name.
        store: The store that it is called on.
        prefix: Of the ids of its nodes: eight that are there before, and three new ones.
    """

    operation: str
    store: Coloured
    prefix: str
    is_lite: bool

    def nodes(self, count, prefix="", text=""):
        # Vectors of its own, so that each query has one best answer.
        seed = zlib.crc32(f"{self.prefix}{prefix}".encode())
        nodes = make_nodes(count, seed=seed, prefix=f"{self.prefix}{prefix}")
        for number, node in enumerate(nodes):
            source = RelatedNodeInfo(node_id=f"{self.prefix}-doc-{number // 4}")
            node.relationships = {NodeRelationship.SOURCE: source}
            node.text = text or f"text of {node.node_id}"
        return nodes

    @property
    def is_insert(self):
        """Whether sending it twice might write twice."""
        return self.operation == "add" and not self.is_lite

    @property
    def method(self):
        """The request that a fault has to strike."""
        upsert = "Insert" if self.is_lite else "Upsert"
        return {**METHODS, "upsert": upsert}[self.operation]

    def queries(self, count):
        """Different queries for its nodes."""
        vectors = [node.embedding for node in make_nodes(count, seed=1)]
        return [VectorStoreQuery(query_embedding=v, similarity_top_k=1) for v in vectors]

    async def prepare(self, timeout=None):
        """Make the store ready and write what the operation works on."""
        if self.operation != "connect":
            await self.store.add(self.nodes(8), **({} if timeout is None else {"timeout": timeout}))

    def before(self):
        """The rows before: how often each (id, text) is there."""
        if self.operation == "connect":
            return Counter()
        return Counter((node.node_id, node.text) for node in self.nodes(8))

    def after(self):
        """The rows after."""
        rows = self.before()
        if self.operation == "add":
            rows.update((node.node_id, node.text) for node in self.nodes(3, "-new"))
        elif self.operation == "upsert":
            rows = Counter({row: n for row, n in rows.items() if int(row[0][-1]) > 2})
            rows.update((node.node_id, "changed") for node in self.nodes(3))
        elif self.operation == "delete":
            rows = Counter({row: n for row, n in rows.items() if int(row[0][-1]) > 3})
        elif self.operation == "delete_nodes":
            rows = Counter({row: n for row, n in rows.items() if int(row[0][-1]) not in (1, 6)})
        elif self.operation == "clear":
            rows.clear()
        return rows

    async def run(self, timeout=None):
        """Do it; returns what has to be equal to `answer`."""
        store, nodes = self.store, self.nodes(8)
        options = {} if timeout is None else {"timeout": timeout}
        if self.operation == "add":
            return await store.add(self.nodes(3, "-new"), **options)
        if self.operation == "upsert":
            return await store.add(self.nodes(3, text="changed"), **options)
        if self.operation == "delete":
            return await store.delete(f"{self.prefix}-doc-0", **options)
        if self.operation == "delete_nodes":
            return await store.delete_nodes([nodes[1].node_id, nodes[6].node_id], **options)
        if self.operation == "clear":
            return await store.clear(**options)
        if self.operation == "get_nodes":
            found = await store.get_nodes([nodes[6].node_id, nodes[1].node_id], **options)
            return [(node.node_id, node.text) for node in found]
        if self.operation == "query":
            return (await store.query(self.query(3), **options)).ids
        if self.operation == "hybrid":
            return (await store.query(self.query(3, hybrid=True), **options)).ids
        if self.operation == "query_many":
            found = await store.query_many([self.query(n) for n in (5, 2)], **options)
            return [result.ids for result in found]
        await store.connect()
        return None

    def query(self, number, hybrid=False):
        node = self.nodes(8)[number]
        query = VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=1)
        if hybrid:
            query.mode, query.query_str = VectorStoreQueryMode.HYBRID, node.text
            query.hybrid_top_k = 1
        return query

    def answer(self):
        ids = [node.node_id for node in self.nodes(8)]
        return {
            "add": [node.node_id for node in self.nodes(3, "-new")],
            "upsert": ids[:3],
            "get_nodes": [(ids[6], f"text of {ids[6]}"), (ids[1], f"text of {ids[1]}")],
            "query": [ids[3]],
            "hybrid": [ids[3]],
            "query_many": [[ids[5]], [ids[2]]],
        }.get(self.operation)

    # What has to hold afterwards

    def assert_rows(self, raw, outcome):
        """The collection holds what the outcome says; `outcome` is an exception or the answer."""
        found = rows_of(raw, self.store.store.collection_name, self.prefix)
        before, after = self.before(), self.after()
        if not isinstance(outcome, BaseException):
            assert outcome == self.answer()
            assert found == after
            return
        assert set(found) <= set(before) | set(after)
        assert set(found) >= set(before) & set(after)
        assert max(found.values(), default=0) <= 1
        ids = Counter(node_id for node_id, _ in found)
        assert max(ids.values(), default=0) <= 1
        new = [node.node_id for node in self.nodes(3, "-new")]
        if isinstance(outcome, PartialWriteError):
            unknown = getattr(outcome, "unknown", [])
            assert sorted(outcome.written + outcome.not_written + unknown) == sorted(new)
            assert all(ids[node_id] == 1 for node_id in outcome.written)
            assert not any(ids[node_id] for node_id in outcome.not_written)
        elif self.is_insert:
            assert not any(ids[node_id] for node_id in new)

    async def assert_usable(self):
        """The same store object works as if nothing had happened."""
        store, [node] = self.store, self.nodes(1, "-probe")
        assert await store.add([node]) == [node.node_id]
        assert [n.node_id for n in await store.get_nodes([node.node_id])] == [node.node_id]
        query = VectorStoreQuery(query_embedding=node.embedding, similarity_top_k=1)
        assert (await store.query(query)).ids == [node.node_id]
        await store.delete_nodes([node.node_id])
        assert await store.get_nodes([node.node_id]) == []


METHODS = {
    "add": "Insert",
    "upsert": "Upsert",
    "delete": "Delete",
    "delete_nodes": "Delete",
    "clear": "Delete",
    "get_nodes": "Query",
    "query": "Search",
    "query_many": "Search",
    "hybrid": "HybridSearch",
    "connect": "Connect",
}
OPERATIONS = list(METHODS)


def rows_of(raw, collection, prefix):
    """How often each (id, text) with the prefix is in a collection."""
    if not raw.has_collection(collection):
        return Counter()
    raw.load_collection(collection, timeout=LONG)  # it may have been restarted
    rows = raw.query(
        collection,
        filter='id != ""',
        output_fields=["id", "text"],
        consistency_level="Strong",
        timeout=LONG,
    )
    own = [(row["id"], row["text"]) for row in rows if row["id"].startswith(f"{prefix}-")]
    return Counter(own)


@contextlib.contextmanager
def passing(begin, end):
    """A fault that passes after a while."""
    timer = threading.Timer(WHILE, end)
    begin()
    timer.start()
    yield
    timer.join()


@contextlib.contextmanager
def fault(name, proxy, method):
    """Brings a fault about, and ends it."""
    with contextlib.ExitStack() as stack:
        if name == "refused":
            proxy.refuse()
        elif name == "refused for a while":
            stack.enter_context(passing(proxy.refuse, proxy.accept))
        elif name == "reset before the request":
            proxy.trap(method, at="request", do=proxy.cut)
        elif name == "reset before the answer":
            proxy.trap(method, at="answer", do=proxy.cut)
        elif name == "reset in the answer":
            proxy.trap(method, at="answer", do=lambda: proxy.cut_after(5, "to_client"))
        elif name == "answer stalled":
            proxy.trap(method, at="answer", do=lambda: proxy.stall("to_client"))
        elif name == "black hole":
            proxy.trap(method, at="request", do=proxy.black_hole)
        elif name == "stalled for a while":
            stack.enter_context(passing(proxy.stall, proxy.resume))
        elif name == "delayed":
            proxy.delay(to_server=0.05, to_client=0.05)
        elif name == "slow":
            proxy.limit_bandwidth(50_000)
        yield
    # What is stalled must not arrive any more: a late delete would delete what comes next.
    if name in ("answer stalled", "black hole"):
        proxy.cut()
    proxy.heal()


RIGHT = None


async def attempt(operation):
    """What an operation returned or raised, and how long it took."""
    began = time.monotonic()
    try:
        outcome = await operation
    except MilvusVectorStoreError as error:
        outcome = error
    return outcome, time.monotonic() - began


def assert_kind(outcome, wanted):
    if wanted is RIGHT:
        if isinstance(outcome, BaseException):
            raise outcome
    else:
        assert type(outcome) is wanted, repr(outcome)
        assert isinstance(outcome, ServerError)


async def in_parallel(case, timeout=None):
    """Runs a case beside others, in either colour."""
    if case.store.colour == "async":
        return await case.run(timeout)
    return await asyncio.to_thread(asyncio.run, case.run(timeout))
