"""Every operation under every fault: the right answer or a typed error in time, and no loss.

`OUTCOMES` is the promise: what each fault does to what may be sent again, and to inserts on a
server, which may not. After each case the same store object works, and the collection is looked at
past the proxy: what was acknowledged is there once, what is of unknown fate at most once.
"""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import grpc
import pytest

from llama_index_milvus_async.errors import (
    PartialWriteError,
    RequestTimeoutError,
    UnreachableError,
    WriteOutcomeUnknownError,
)
from tests.faults.cases import (
    LONG,
    OPERATIONS,
    RIGHT,
    ROOM,
    SHORT,
    WHILE,
    assert_kind,
    attempt,
    fault,
    in_parallel,
    rows_of,
)
from tests.fixtures.stores import collection_name, make_nodes
from tests.fixtures.waiting import eventually

# Faults, and what they do

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
    page = Path(__file__).parents[2] / "docs" / "concepts" / "faults.md"
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines()]
    kinds = (UnreachableError, RequestTimeoutError, WriteOutcomeUnknownError)
    told = {"the right answer": RIGHT} | {f"`{kind.__name__}`": kind for kind in kinds}
    promised = {row[0]: tuple(map(told.get, row[1:])) for row in rows if row[0] in OUTCOMES}
    assert promised == OUTCOMES


async def notice(store):
    """Wait until a client knows that its connection is gone.

    What it sends before might have arrived, for all it knows.
    """
    with contextlib.suppress(UnreachableError):
        while True:
            # On a busy machine its time may be over before anybody knows.
            with contextlib.suppress(RequestTimeoutError):
                await store.get_nodes(["no such node"], timeout=WHILE / 3)
                return


async def assert_promise(make_case, proxy, raw, operation, name):
    fails = OUTCOMES[name][0] is not RIGHT
    # What connects has no timeout of its own.
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
        # The store prepares itself within its own timeout, which a busy machine may exceed.
        await eventually(lambda case=case: case.prepare(LONG), RequestTimeoutError)
        await in_parallel(case, LONG)


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


# What is no answer of Milvus

NO_ANSWERS = {
    "a stream that a proxy resets": (grpc.StatusCode.INTERNAL, "Received RST_STREAM with code 2"),
    "a trouble of the server": (grpc.StatusCode.UNKNOWN, "Exception calling application"),
    "an abortion": (grpc.StatusCode.ABORTED, ""),
    "a cancellation": (grpc.StatusCode.CANCELLED, ""),
}


@pytest.mark.engines("standalone")
@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_rows_are_unknown_where_milvus_has_not_answered(recorder, reopen, coloured, name):
    recorder.intercept = lambda call: NO_ANSWERS[name] if call.method == "Insert" else None
    store = coloured(reopen(uri=recorder.uri, upsert_mode=False))
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
