"""Every operation under every fault: the right answer or a typed error in time, and no loss.

`OUTCOMES` is the promise: what each fault does to what may be sent again, and to inserts on a
server, which may not. After each case the same store object works, and the collection is looked at
past the proxy: what was acknowledged is there once, what is of unknown fate at most once.
"""

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._transport.backend import _LONGEST_TURN
from llama_index_milvus_async.errors import (
    MilvusVectorStoreError,
    PartialWriteError,
    RequestTimeoutError,
    ServerError,
    StoreClosedError,
    UnreachableError,
    WriteOutcomeUnknownError,
)
from tests.fixtures.engines import new_client
from tests.fixtures.servers import LiteServer
from tests.fixtures.stores import Coloured, collection_name, make_nodes

#: Seconds of a call that is to fail.
SHORT = 0.5
#: Seconds of a call that is to succeed: beyond what a server takes to start again.
LONG = 60.0
#: Seconds that a failing call may take beyond its time-out, on a busy machine.
ROOM = 5.0
#: Seconds of a fault that passes.
WHILE = 0.3

SPARSE = {"enable_sparse": True}


# Operations


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
WRITES = ("add", "upsert", "delete", "delete_nodes", "clear")


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


# Faults, and what they do


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
#: Fault: what becomes of what may be sent again, and of inserts on a server.
OUTCOMES = {
    "refused": (UnreachableError, UnreachableError),
    "refused for a while": (RIGHT, RIGHT),
    "reset before the request": (RIGHT, WriteOutcomeUnknownError),
    "reset before the answer": (RIGHT, WriteOutcomeUnknownError),
    "reset in the answer": (RIGHT, WriteOutcomeUnknownError),
    "answer stalled": (RequestTimeoutError, WriteOutcomeUnknownError),
    "black hole": (RequestTimeoutError, WriteOutcomeUnknownError),
    "stalled for a while": (RIGHT, RIGHT),
    "delayed": (RIGHT, RIGHT),
    "slow": (RIGHT, RIGHT),
}
FAULTS = list(OUTCOMES)


def test_the_documentation_promises_the_same():
    page = Path(__file__).parent.parent / "docs" / "concepts" / "faults.md"
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines()]
    kinds = (UnreachableError, RequestTimeoutError, WriteOutcomeUnknownError)
    told = {"the right answer": RIGHT} | {f"`{kind.__name__}`": kind for kind in kinds}
    promised = {row[0]: tuple(map(told.get, row[1:])) for row in rows if row[0] in OUTCOMES}
    assert promised == OUTCOMES


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


@pytest.fixture(scope="module")
def collection(engine, make_shared_store):
    """A collection that all cases of an engine share: on standalone it takes 3 s to make."""
    store = make_shared_store(**(SPARSE if engine.is_lite else {}))
    store.connect()
    return store.collection_name


@pytest.fixture
def make_case(faulty, collection, coloured, request):
    """Makes a case whose store reaches the engine through the proxy."""
    proxy, engine = faulty
    cases = []

    def make(operation, **kwargs):
        prefix = f"{collection_name('case')}"
        options = {"uri": proxy.uri, "token": engine.token, "collection_name": collection, "dim": 8}
        options |= {"consistency_level": "Strong", "timeout": LONG}
        options |= SPARSE if engine.is_lite else {}
        options |= {"upsert_mode": operation == "upsert"}
        case = Case(
            operation, coloured(MilvusVectorStore(**{**options, **kwargs})), prefix, engine.is_lite
        )
        cases.append(case)
        return case

    yield make
    for case in cases:
        case.store.store.close()


async def notice(store):
    """Wait until a client knows that its connection is gone.

    What it sends before might have arrived, for all it knows.
    """
    with contextlib.suppress(UnreachableError, RequestTimeoutError):
        await store.get_nodes(["no such node"], timeout=WHILE / 3)


async def assert_promise(make_case, proxy, raw, operation, name):
    fails = OUTCOMES[name][0] is not RIGHT
    # What connects has no time-out of its own.
    case = make_case(operation, **({"timeout": SHORT} if fails and operation == "connect" else {}))
    await case.prepare()
    with fault(name, proxy, case.method):
        if case.is_insert and name.startswith("refused"):
            await notice(case.store)
        outcome, seconds = await attempt(case.run(SHORT if fails else LONG))
        if fails:
            assert seconds < SHORT + ROOM
    wanted = OUTCOMES[name][case.is_insert]
    if operation == "connect":
        # One attempt is allowed to fail where nothing was asked for yet.
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, (UnreachableError, RequestTimeoutError))
    else:
        assert_kind(outcome, wanted)
    case.assert_rows(raw, outcome)
    if operation != "connect" or not fails:
        await case.assert_usable()


@pytest.mark.engines("lite")
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (operation, name)
        for operation in OPERATIONS
        for name in FAULTS
        # Where nothing is lost, one of each kind will do.
        if name not in ("delayed", "slow") or operation in ("add", "delete", "query", "connect")
    ],
)
async def test_what_is_promised_under_a_fault(faulty, make_case, raw, operation, name):
    await assert_promise(make_case, faulty.proxy, raw, operation, name)


@pytest.mark.engines("standalone")
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        *(("add", name) for name in FAULTS),
        ("upsert", "reset before the answer"),
        ("delete_nodes", "reset before the answer"),
        ("query", "reset before the answer"),
        ("get_nodes", "answer stalled"),
        ("delete", "refused"),
    ],
)
async def test_what_is_promised_under_a_fault_of_a_server(faulty, make_case, raw, operation, name):
    await assert_promise(make_case, faulty.proxy, raw, operation, name)


# The first use


@pytest.mark.engines("lite")
@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize(
    "method",
    ["Connect", "GetVersion", "DescribeCollection", "CreateCollection", "CreateIndex"],
)
async def test_the_first_use_is_cut(faulty, raw, make_case, method, at):
    case = make_case("add", collection_name=collection_name("first_use"))
    faulty.proxy.trap(method, at=at, do=faulty.proxy.cut)
    outcome, seconds = await attempt(case.run())
    assert seconds < LONG + ROOM
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, (UnreachableError, RequestTimeoutError)), repr(outcome)
    else:
        assert outcome == case.answer()
    await case.assert_usable()
    assert await case.run() == case.answer()
    found = rows_of(raw, case.store.store.collection_name, case.prefix)
    assert sorted(node_id for node_id, _ in found.elements()) == case.answer()
    raw.drop_collection(case.store.store.collection_name)


@pytest.mark.engines("lite")
@pytest.mark.parametrize("name", ["refused", "black hole", "stalled"])
async def test_nothing_answers_at_the_first_use(faulty, make_case, colour, name):
    """All operations at once, each on a store of its own."""
    proxy = faulty.proxy
    {"refused": proxy.refuse, "black hole": proxy.black_hole, "stalled": proxy.stall}[name]()
    cases = [make_case(operation, timeout=SHORT) for operation in OPERATIONS]
    outcomes = await asyncio.gather(*(attempt(in_parallel(case)) for case in cases))
    for case, (outcome, seconds) in zip(cases, outcomes, strict=True):
        wanted = UnreachableError if name == "refused" else (UnreachableError, RequestTimeoutError)
        assert isinstance(outcome, wanted), (case.operation, outcome)
        # pymilvus lets one client of a process connect after the other.
        assert seconds < SHORT * len(cases) + ROOM, case.operation
    proxy.cut()
    proxy.heal()
    for case in cases:
        await case.prepare(LONG)
        await in_parallel(case, LONG)


async def in_parallel(case, timeout=None):
    """Runs a case beside others, in either colour."""
    if case.store.colour == "async":
        return await case.run(timeout)
    return await asyncio.to_thread(asyncio.run, case.run(timeout))


# Several batches in one call


@pytest.mark.engines("lite", "standalone")
@pytest.mark.parametrize("fate", ["lost before", "lost after", "never answered", "refused"])
async def test_the_fate_of_each_batch_is_told(faulty, raw, make_case, colour, fate):
    proxy = faulty.proxy
    # One after another, so that some are written, some are lost and some are not sent.
    case = make_case("add", batch_size=2, max_in_flight=1, coalesce=False)
    await case.prepare()
    nodes = case.nodes(10, "-many")
    do = {"never answered": lambda: proxy.stall("to_client"), "refused": proxy.refuse}
    at = "request" if fate in ("lost before", "refused") else "answer"
    proxy.trap("Insert", at=at, do=do.get(fate, proxy.cut), first=3)
    fails = case.is_insert or fate in do
    outcome, seconds = await attempt(case.store.add(nodes, timeout=SHORT if fate in do else LONG))
    proxy.cut()
    proxy.heal()
    assert seconds < (SHORT if fate in do else LONG) + ROOM
    ids = [node.node_id for node in nodes]
    found = rows_of(raw, case.store.store.collection_name, f"{case.prefix}-many")
    count = Counter(node_id for node_id, _ in found.elements())
    if not fails:
        assert outcome == ids
        assert count == Counter(ids)
        return
    assert isinstance(outcome, PartialWriteError), repr(outcome)
    unknown = getattr(outcome, "unknown", [])
    assert outcome.written == ids[:4]
    assert sorted(outcome.written + outcome.not_written + unknown) == sorted(ids)
    assert all(count[node_id] == 1 for node_id in outcome.written)
    assert not any(count[node_id] for node_id in outcome.not_written)
    assert all(count[node_id] <= 1 for node_id in unknown)
    if case.is_insert:
        assert type(outcome) is WriteOutcomeUnknownError
        assert unknown == ids[4:6]
    await case.assert_usable()


# Servers that die


@pytest.mark.parametrize(
    ("name", "at"), [("lite", "request"), ("lite", "answer"), ("standalone", "answer")]
)
async def test_the_server_is_killed_and_restarted_in_mid_flight(get_mortal, name, at):
    """All operations are under way, in both colours, when the server dies."""
    mortal = get_mortal(name)
    proxy, is_lite = mortal.proxy, name == "lite"
    options = {"uri": mortal.uri, "dim": 8, "consistency_level": "Strong", "timeout": LONG}
    options |= SPARSE if is_lite else {}
    shared = collection_name("killed")
    # A collection of standalone takes 3 s to make, and clearing would clear what is not its own.
    operations = OPERATIONS if is_lite else [o for o in OPERATIONS if o not in ("hybrid", "clear")]
    cases = []
    for operation in operations:
        for colour in ("sync", "async"):
            # Writers to one collection of Milvus Lite stand in line, and `clear` clears all of it.
            alone = operation == "clear" or (is_lite and operation in WRITES)
            own = f"{shared}_{operation}_{colour}" if alone else shared
            upsert = operation == "upsert"
            store = MilvusVectorStore(**options, collection_name=own, upsert_mode=upsert)
            cases.append(Case(operation, Coloured(store, colour), f"{operation}-{colour}", is_lite))
    for case in cases:
        await case.prepare()

    # Each blocking call holds a thread, as does the wait for it.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * len(cases)))
    held, go = threading.Semaphore(0), threading.Event()

    def hold():
        held.release()
        go.wait(LONG)

    for method in {case.method for case in cases}:
        proxy.trap(method, at=at, do=hold, times=float("inf"))
    running = [asyncio.ensure_future(attempt(in_parallel(case))) for case in cases]
    for _ in cases:
        assert await asyncio.to_thread(held.acquire, timeout=LONG)
    await asyncio.to_thread(mortal.kill)
    proxy.disarm()
    go.set()
    await asyncio.to_thread(mortal.restart)
    outcomes = await asyncio.gather(*running)
    raw = new_client(mortal.server.uri)
    wrong = []
    for case, (outcome, seconds) in zip(cases, outcomes, strict=True):
        try:
            if case.operation != "connect" or not isinstance(outcome, BaseException):
                assert_kind(outcome, WriteOutcomeUnknownError if case.is_insert else RIGHT)
            assert seconds < LONG + ROOM
            case.assert_rows(raw, outcome)
            await case.assert_usable()
        except Exception as error:
            wrong.append((case.operation, case.store.colour, repr(error)))
    for case in cases:
        await case.store.store.aclose()
    raw.close()
    assert not wrong, "\n".join(map(str, wrong))


async def test_the_server_restarts_with_what_was_acknowledged(get_mortal, colour):
    mortal = get_mortal("lite")
    store = MilvusVectorStore(
        mortal.uri, collection_name=collection_name(), dim=8, consistency_level="Strong"
    )
    case = Case("add", Coloured(store, colour), "kept", True)
    await case.prepare()
    await case.store.delete_nodes(["kept-7"])
    mortal.kill_and_restart()
    nodes = await case.store.get_nodes([f"kept-{number}" for number in range(8)])
    assert [node.node_id for node in nodes] == [f"kept-{number}" for number in range(7)]
    await case.assert_usable()
    await store.aclose()


# Disks that are full


class FullDisk:
    """A Milvus Lite server whose files cannot grow, until they can again."""

    def __init__(self, server):
        self.server = server

    def fill(self):
        import resource

        largest = max(file.stat().st_size for file in self.server.directory.rglob("*.*"))
        self._limit(min(largest, 2**14), resource.RLIM_INFINITY)

    def free(self):
        import resource

        self._limit(resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def _limit(self, *limits):
        import resource

        supervisor = self.server._process.pid
        children = f"/proc/{supervisor}/task/{supervisor}/children"
        with open(children) as file:
            for pid in file.read().split():
                resource.prlimit(int(pid), resource.RLIMIT_FSIZE, limits)


class FullTmpfs(FullDisk):
    """The same on a small file system that is full."""

    def fill(self):
        filler = self.server.directory / "data" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4_096)

    def free(self):
        (self.server.directory / "data" / "filler").unlink()


@pytest.fixture(params=["limit", "tmpfs"])
def full_disk(request, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("limits another process' files by Linux' own means")
    server = LiteServer(tmp_path / "server")
    data = server.directory / "data"
    mounted = False
    if request.param == "tmpfs":
        data.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(data)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("may not mount a tmpfs")
        mounted = True
    try:
        server.start()
        yield (FullTmpfs if mounted else FullDisk)(server)
    finally:
        server.stop()
        if mounted:
            subprocess.run(["umount", "-l", str(data)], check=True)
        server.remove()


async def test_a_full_disk(full_disk, coloured):
    uri = full_disk.server.uri
    store = MilvusVectorStore(uri, dim=8, consistency_level="Strong", timeout=5)
    case = Case("add", coloured(store), "disk", True)
    await case.prepare()
    full_disk.fill()
    acknowledged, refused = [], []
    for number in range(20):
        nodes = case.nodes(20, f"-big{number}", text="x" * 30_000)
        outcome, seconds = await attempt(case.store.add(nodes))
        assert seconds < 5 + ROOM
        written = not isinstance(outcome, BaseException)
        (acknowledged if written else refused).extend(node.node_id for node in nodes)
        if not written:
            assert isinstance(outcome, ServerError)
    assert refused
    full_disk.free()
    await case.assert_usable()
    # Also after a crash: what was acknowledged is there.
    full_disk.server.stop()
    full_disk.server.start()
    raw = new_client(uri)
    found = Counter(
        node_id for node_id, _ in rows_of(raw, store.collection_name, "disk").elements()
    )
    raw.close()
    assert not [node_id for node_id in acknowledged if found[node_id] != 1]
    assert all(count == 1 for count in found.values())
    await case.assert_usable()
    await store.aclose()


# Cancellation


@pytest.mark.engines("lite")
@pytest.mark.parametrize("colour", ["async"], indirect=True)
@pytest.mark.parametrize("name", ["refused", "black hole", "answer stalled", "delayed"])
@pytest.mark.parametrize(
    "operation", ["add", "upsert", "delete", "delete_nodes", "query", "connect"]
)
async def test_a_cancelled_call_leaves_nothing_and_takes_nobody_along(
    faulty, make_case, operation, name, raw
):
    proxy = faulty.proxy
    case = make_case(operation)
    await case.prepare()
    companion = Case(operation, case.store, f"{case.prefix}-companion", case.is_lite)
    await companion.prepare()
    with fault(name, proxy, case.method):
        cancelled = asyncio.ensure_future(case.run())
        stays = asyncio.ensure_future(attempt(companion.run()))
        await asyncio.sleep(0.02 if name == "delayed" else 0.1)
        began = time.monotonic()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert time.monotonic() - began < ROOM
    outcome, _ = await stays
    if operation == "connect" and isinstance(outcome, BaseException):
        assert isinstance(outcome, (UnreachableError, RequestTimeoutError))
    else:
        assert_kind(outcome, RIGHT)
    if operation != "clear":  # which clears what the other looks for
        companion.assert_rows(raw, outcome)
    await case.assert_usable()
    assert all(kind.calls >= kind.cancelled for kind in case.store.store.stats().values())


async def abandoned_by_timeout(case):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await asyncio.gather(case.run(), *(case.store.query(q) for q in case.queries(50)))


async def abandoned_by_task_group(case):
    async def fail():
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):  # noqa: F821
        async with asyncio.TaskGroup() as group:
            group.create_task(case.run())
            for query in case.queries(50):
                group.create_task(case.store.query(query))
            group.create_task(fail())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="both came with Python 3.11")
@pytest.mark.engines("lite")
@pytest.mark.parametrize("colour", ["async"], indirect=True)
@pytest.mark.parametrize("abandon", [abandoned_by_timeout, abandoned_by_task_group])
async def test_calls_that_are_abandoned_together_leave_nothing(faulty, make_case, abandon, caplog):
    case = make_case("add")
    await case.prepare()
    before = asyncio.all_tasks()
    faulty.proxy.stall()
    await abandon(case)
    faulty.proxy.cut()
    faulty.proxy.heal()
    await case.assert_usable()
    gc.collect()
    assert asyncio.all_tasks() == before
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.engines("lite")
@pytest.mark.parametrize("method", ["Connect", "CreateCollection", "CreateIndex"])
async def test_making_ready_is_not_lost_with_a_cancelled_caller(faulty, raw, method):
    proxy = faulty.proxy
    name = collection_name("ready")
    store = MilvusVectorStore(proxy.uri, collection_name=name, dim=8, timeout=LONG)
    trap = proxy.trap(method, at="answer", do=proxy.stall)
    first = asyncio.ensure_future(store.aconnect())
    assert await asyncio.to_thread(trap.sprung.wait, LONG)
    others = [asyncio.ensure_future(store.aconnect()) for _ in range(3)]
    await asyncio.sleep(0.05)
    first.cancel()
    others[0].cancel()
    for task in (first, others[0]):
        with pytest.raises(asyncio.CancelledError):
            await task
    proxy.resume()
    await asyncio.gather(*others[1:])
    assert proxy.counts.requests["CreateCollection"] == 1
    await store.async_add(make_nodes(1))
    assert len(await store.aget_nodes(["node-0"])) == 1
    await store.aclose()
    raw.drop_collection(name)


# Loops that end with calls pending

ENDS = """
import asyncio, contextlib, gc, logging, os, signal, sys
logging.basicConfig(level=logging.WARNING)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index_milvus_async import MilvusVectorStore, UnreachableError
from tests.fixtures.faults import FaultyProxy
from tests.fixtures.stores import make_nodes

engine, name, fault = sys.argv[1:]
proxy = FaultyProxy(engine)
store = MilvusVectorStore(proxy.uri, collection_name=name, dim=8, timeout=60)
query = VectorStoreQuery(query_embedding=[1.0] * 8, similarity_top_k=1)


async def main(how, ready):
    if ready:
        # The attempt of the loop before may still be about to fail.
        with contextlib.suppress(UnreachableError):
            await store.aconnect()
        await store.async_add(make_nodes(4))
    getattr(proxy, fault)()
    tasks = [
        asyncio.create_task(call)
        for call in (
            store.aquery(query),
            store.aquery_many([query, query]),
            store.async_add(make_nodes(3, prefix="new")),
            store.aget_nodes(["node-0"]),
            store.adelete("doc-0"),
            store.adelete_nodes(["node-1"]),
            store.aclear(),
        )
    ]
    for task in tasks:
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.sleep(0.3)
    if how == "raise":
        raise KeyError("the program's own")
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
    if how == "close":
        await store.aclose()


def run(how, ready):
    with contextlib.suppress(KeyError, SystemExit, KeyboardInterrupt):
        asyncio.run(main(how, ready))
    gc.collect()
    proxy.cut()
    proxy.heal()


run("return", False)
for how in ("return", "raise", "exit", "interrupt"):
    run(how, True)
# The same store, on one more loop, and without one.
asyncio.run(store.async_add(make_nodes(2, prefix="after")))
assert len(store.get_nodes(["after-0", "after-1"])) == 2
run("close", True)
gc.collect()
print("done", flush=True)
"""


@pytest.mark.engines("lite")
@pytest.mark.parametrize("fault", ["stall", "black_hole", "refuse"])
def test_a_loop_that_ends_with_calls_pending(engine, raw, fault):
    name = collection_name("pending")
    ended = subprocess.run(
        [sys.executable, "-W", "default", "-c", ENDS, engine.uri, name, fault],
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "done\n"
    told = ("never retrieved", "was destroyed", "never awaited", "Exception ignored", "Unclosed")
    assert not [words for words in told if words in ended.stderr], ended.stderr
    raw.drop_collection(name)


# Everything at once


def test_nothing_is_lost_in_a_short_soak():
    soak = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--engine", "lite", "--seconds", "20"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    print(soak.stdout)
    assert soak.returncode == 0, soak.stdout + soak.stderr


# What is no answer of Milvus

NO_ANSWERS = {
    "a stream that a proxy resets": (grpc.StatusCode.INTERNAL, "Received RST_STREAM with code 2"),
    "a trouble of the server": (grpc.StatusCode.UNKNOWN, "Exception calling application"),
    "an abortion": (grpc.StatusCode.ABORTED, ""),
    "a cancellation": (grpc.StatusCode.CANCELLED, ""),
}


@pytest.mark.engines("standalone")
@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_rows_are_unknown_where_milvus_has_not_answered(recorder, make_store, coloured, name):
    recorder.intercept = lambda call: NO_ANSWERS[name] if call.method == "Insert" else None
    store = coloured(make_store(uri=recorder.uri))
    nodes = make_nodes(2)
    with pytest.raises(WriteOutcomeUnknownError) as caught:
        await store.add(nodes)
    assert sorted(caught.value.unknown) == [node.node_id for node in nodes]
    assert len(recorder.named("Insert")) == 1


@pytest.mark.engines("lite")
async def test_reads_outlive_a_stream_that_a_proxy_resets(recorder, make_store, coloured):
    store = coloured(make_store(uri=recorder.uri))
    await store.add(make_nodes(1))
    answers = iter([NO_ANSWERS["a stream that a proxy resets"]])
    recorder.intercept = lambda call: next(answers, None) if call.method == "Query" else None
    assert len(await store.get_nodes(["node-0"])) == 1


# Calls under way


@pytest.fixture
def busy(recorder, make_store):
    """A store with nodes whose requests take long, and begin: the method, and how many."""

    @contextlib.asynccontextmanager
    async def busy_with(method, call, count, **kwargs):
        store = make_store(uri=recorder.uri, coalesce=False, **kwargs)
        await store.async_add(make_nodes(4))
        begun, end = threading.Semaphore(0), threading.Event()

        def hold(one):
            if one.method == method:
                begun.release()
                end.wait(LONG)

        recorder.intercept = hold
        calls = [asyncio.ensure_future(call(store, number)) for number in range(count)]
        assert await asyncio.to_thread(begun.acquire, timeout=LONG)
        await asyncio.sleep(0.1)
        try:
            yield store, calls
        finally:
            end.set()
            await asyncio.gather(*calls, return_exceptions=True)

    return busy_with


UNDER_WAY = {
    "Insert": lambda store, number: store.async_add(make_nodes(1, prefix=f"new-{number}")),
    "Search": lambda store, number: store.aquery(
        VectorStoreQuery(query_embedding=make_nodes(1)[0].embedding, similarity_top_k=1)
    ),
}


@pytest.mark.parametrize("method", UNDER_WAY)
async def test_calls_under_way_when_the_store_is_closed(busy, recorder, engine, method):
    """Nobody was cancelled; nothing is sent any more, and nothing stays open."""
    async with busy(method, UNDER_WAY[method], 6, max_in_flight=3) as (store, calls):
        sent = len(recorder.named(method))
        await store.aclose()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kinds = Counter(type(outcome) for outcome in outcomes)
    if method == "Insert":
        sent_now = sent - 1  # the nodes that are there
        unknown = UnreachableError if engine.is_lite else WriteOutcomeUnknownError
        assert kinds == {unknown: sent_now, StoreClosedError: 6 - sent_now}
    else:
        assert kinds == {StoreClosedError: 6}
    assert len(recorder.named(method)) == sent
    assert not store._connections._loops


READ_ALL = {"filters": MetadataFilters(filters=[])}
WAITING = {
    "Query": lambda store, **kwargs: store.aget_nodes(**READ_ALL, **kwargs),
    "Delete": lambda store, **kwargs: store.adelete_nodes(["no such node"], **kwargs),
}


@pytest.mark.engines("lite")
@pytest.mark.parametrize("method", WAITING)
async def test_a_call_that_waits_for_others_keeps_its_deadline(busy, method):
    """For a slot, and on Milvus Lite for its turn to write."""
    call = WAITING[method]
    async with busy(method, lambda store, _: call(store), 4, max_in_flight=2) as (store, _):
        began = time.monotonic()
        with pytest.raises(RequestTimeoutError) as caught:
            await call(store, timeout=SHORT)
        assert time.monotonic() - began < SHORT + ROOM
        assert caught.value.nothing_done


@pytest.mark.engines("lite")
async def test_one_request_in_flight_at_a_time_is_enough(make_store):
    """Who has the slot does not wait for whoever has the turn, and waits for the slot."""
    store = make_store(max_in_flight=1)
    nodes = make_nodes(60)
    began = time.monotonic()
    await asyncio.gather(
        *(store.async_add([node]) for node in nodes),
        *(store.adelete_nodes([f"no such node {i}"]) for i in range(30)),
        *(store.aget_nodes(**READ_ALL) for _ in range(10)),
    )
    assert time.monotonic() - began < _LONGEST_TURN
    assert len(await store.aget_nodes([node.node_id for node in nodes])) == 60
