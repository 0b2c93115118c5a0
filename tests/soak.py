"""Is anything lost, doubled or leaked, when everything fails all the time?

    python -m tests.soak --seconds 600 --engine lite

Several event loops and threads add, upsert, delete, get and query, over a proxy that cuts, stalls
and swallows, to a server that is killed and restarted. Each worker writes down what it was told of
its own rows; at the end the collections are compared with these ledgers, past the proxy, and what
the process holds is compared with what it held before. The exit status says whether all is well.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import (
    MilvusVectorStoreError,
    PartialWriteError,
    RequestTimeoutError,
    UnreachableError,
)
from tests.fixtures.engines import SERVERS, new_client
from tests.fixtures.faults import Mortal
from tests.fixtures.memory import living
from tests.fixtures.servers import StandaloneServer
from tests.fixtures.stores import Coloured

DIM = 16
LOOPS, WORKERS_PER_LOOP, THREADS = 2, 4, 3
#: Seconds of a call; some are shorter than faults, so that calls fail.
TIMEOUTS = {"lite": 10.0, "standalone": 60.0}
SHORT_TIMEOUT = 0.3
#: Seconds that a call may take beyond its timeout, on a busy machine.
ROOM = 10.0
#: Seconds between two restarts.
RESTART_EVERY = {"lite": 8.0, "standalone": 60.0}
METHODS = ("Insert", "Upsert", "Delete", "Query", "Search")
#: Bytes that the process may grow by: pools and caches, not rows.
MAX_GROWTH = 100 * 2**20
SECONDS_TO_SETTLE = 10.0

#: A row's text, or that it is not there.
State = str | None
ABSENT: State = None


@dataclass
class Tally:
    """What happened, over all workers."""

    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    declared_unknown: int = 0
    wrong: list[str] = field(default_factory=list)  # answers, errors and times
    began: float = field(default_factory=time.monotonic)
    troubles: list[tuple[float, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, call: str, error: str, seconds: float, allowed: float) -> None:
        with self.lock:
            self.calls[call] += 1
            if error:
                self.failed[f"{call}: {error}"] += 1
            if seconds > allowed + ROOM:
                self.wrong.append(f"{call} took {seconds:.1f} s of {allowed} s")

    def trouble(self, name: str) -> None:
        self.faults[name] += 1
        self.troubles.append((self.seconds(), name))

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def wrote(self, acknowledged: int, unknown: int) -> None:
        with self.lock:
            self.acknowledged += acknowledged
            self.declared_unknown += unknown


@dataclass
class Worker:
    """Works on rows of its own, and knows what may have become of each.

    Attributes:
        rows: Row id to the states that it may be in; one state where it is certain.
    """

    name: str
    store: Coloured
    engine: str
    tally: Tally
    rows: dict[str, frozenset[State]] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.name)
        self.upserts = self.store.store.upsert_mode
        # On Milvus Lite an insert replaces the row of its id.
        self.repeatable = self.upserts or self.engine == "lite"

    async def work(self, ends: float) -> None:
        actions = [self.add, self.add, self.delete, self.get, self.query]
        while time.monotonic() < ends:
            await self.random.choice(actions)()
            await asyncio.sleep(self.random.uniform(0, 0.02))

    async def call(
        self, name: str, do: Callable[..., Any], *args: Any
    ) -> tuple[Any, BaseException | None]:
        """Make a call; returns what it returned and what it raised."""
        allowed = TIMEOUTS[self.engine]
        if self.random.random() < 0.1:
            allowed = SHORT_TIMEOUT
        began = time.monotonic()
        answer, error = None, None
        try:
            answer = await do(*args, timeout=allowed)
        except MilvusVectorStoreError as raised:
            error = raised
        except Exception as raised:
            error = raised
            self.tally.wrong.append(f"{name} raised {raised!r}")
        kind = type(error).__name__ if error else ""
        if error and not isinstance(
            error, (PartialWriteError, UnreachableError, RequestTimeoutError)
        ):
            kind = f"{kind} {str(error)[:200]}"
            self.tally.wrong.append(f"{name} raised {error!r}")
        self.tally.note(name, kind, time.monotonic() - began, allowed)
        return answer, error

    def remember(self, ids: Sequence[str], since: float, what: str) -> None:
        for node_id in ids:
            told = f"{since:.3f}-{self.tally.seconds():.3f} {what}"
            self.history[node_id] = [*self.history.get(node_id, [])[-3:], told]

    def certain(self, *, present: bool, most: int) -> list[str]:
        ids = [i for i, s in self.rows.items() if len(s) == 1 and (ABSENT not in s) == present]
        return self.random.sample(ids, min(most, len(ids)))

    async def add(self) -> None:
        count = self.random.randint(1, 30)
        ids = [f"{self.name}-{len(self.rows) + number}" for number in range(count)]
        if self.upserts:
            ids += self.certain(present=True, most=5)
        version = f"{self.random.getrandbits(32):x}"
        nodes = [self.node(node_id, version) for node_id in ids]
        before = {node_id: self.rows.get(node_id, frozenset([ABSENT])) for node_id in ids}
        self.rows.update({i: before[i] | {version} for i in ids})  # a query may see it meanwhile
        since = self.tally.seconds()
        _, error = await self.call("upsert" if self.upserts else "add", self.store.add, nodes)
        written, unknown, untouched = self.fates(ids, error)
        for node_id in written:
            self.rows[node_id] = frozenset([version])
        for node_id in untouched:
            self.rows[node_id] = before[node_id]
        fates = (("written", written), ("unknown", unknown), ("not written", untouched))
        for fate, of_fate in fates:
            self.remember(of_fate, since, f"{version} {fate} {type(error).__name__}")
        self.tally.wrote(len(written), len(unknown))

    def fates(
        self, ids: Sequence[str], error: BaseException | None
    ) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """Written, unknown, not written: what the store has said."""
        if error is None:
            return ids, [], []
        if isinstance(error, PartialWriteError):
            return error.written, error.unknown, error.not_written
        # What can be repeated without harm is not told apart.
        return ([], ids, []) if self.repeatable else ([], [], ids)

    def node(self, node_id: str, version: str) -> TextNode:
        return TextNode(
            id_=node_id,
            text=version,
            embedding=vector_of(node_id),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc-{node_id}")},
        )

    async def delete(self) -> None:
        ids = self.certain(present=True, most=self.random.randint(1, 10))
        if not ids:
            return
        for node_id in ids:
            self.rows[node_id] |= {ABSENT}
        since = self.tally.seconds()
        if self.random.random() < 0.5:
            _, error = await self.call("delete_nodes", self.store.delete_nodes, ids)
        else:
            doc_ids = [f"doc-{node_id}" for node_id in ids]
            _, error = await self.call("delete", self.store.delete, doc_ids)
        if error is None:
            self.rows.update(dict.fromkeys(ids, frozenset([ABSENT])))
        self.remember(ids, since, f"deleted {type(error).__name__}")
        self.tally.wrote(len(ids) if error is None else 0, len(ids) if error else 0)

    async def get(self) -> None:
        ids = self.certain(present=True, most=10) + self.certain(present=False, most=5)
        if not ids:
            return
        since = self.tally.seconds()
        nodes, error = await self.call("get_nodes", self.store.get_nodes, ids)
        if error is None:
            found = {node.node_id: node.text for node in nodes}
            for node_id in ids:
                if found.get(node_id, ABSENT) not in self.rows[node_id]:
                    told = f"{found.get(node_id)!r}, not {set(self.rows[node_id])}"
                    when = f"{since:.3f}-{self.tally.seconds():.3f}"
                    past = self.history.get(node_id)
                    self.tally.wrong.append(f"{when} get_nodes {node_id}: {told}: {past}")

    async def query(self) -> None:
        ids = self.certain(present=True, most=self.random.choice((1, 1, 4)))
        queries = [VectorStoreQuery(query_embedding=vector_of(i), similarity_top_k=1) for i in ids]
        if not queries:
            return
        if len(queries) == 1:
            result, error = await self.call("query", self.store.query, queries[0])
            results = [result]
        else:
            results, error = await self.call("query_many", self.store.query_many, queries)
        if error is None and [result.ids for result in results] != [[i] for i in ids]:
            told = [result.ids for result in results]
            self.tally.wrong.append(f"query for {ids} found {told}")


def vector_of(node_id: str) -> list[float]:
    """The vector of a row, unlike those of all others."""
    numbers = random.Random(node_id)
    vector = [numbers.gauss(0, 1) for _ in range(DIM)]
    norm = sum(x * x for x in vector) ** 0.5
    return [x / norm for x in vector]


class Troublemaker:
    """Brings about one fault after another, in a thread."""

    def __init__(self, mortal: Mortal, tally: Tally) -> None:
        self.mortal = mortal
        self.tally = tally
        self.random = random.Random(0)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, name="troublemaker")

    def run(self) -> None:
        proxy = self.mortal.proxy
        pause = RESTART_EVERY[self.mortal.name]
        restart_at = time.monotonic() + min(pause, 5.0)
        while not self.ended.wait(self.random.uniform(0.1, 0.6)):
            if time.monotonic() > restart_at:
                self.tally.trouble("server killed")
                self.mortal.kill()
                self.ended.wait(self.random.uniform(0, 0.5))
                self.mortal.restart()
                proxy.heal()
                self.tally.troubles.append((self.tally.seconds(), "server started"))
                restart_at = time.monotonic() + pause
                continue
            name, begin = self.random.choice(self.faults())
            self.tally.trouble(name)
            begin()
            self.ended.wait(self.random.uniform(0.05, 0.5))
            proxy.heal()

    def faults(self) -> list[tuple[str, Callable[[], object]]]:
        proxy, method = self.mortal.proxy, self.random.choice(METHODS)
        trap = partial(proxy.trap, method)
        return [
            ("connections cut", proxy.cut),
            ("cut before a request", partial(trap, at="request", do=proxy.cut)),
            ("cut before an answer", partial(trap, at="answer", do=proxy.cut)),
            ("cut in a request", lambda: proxy.cut_after(3_000, "to_server")),
            ("cut in an answer", lambda: proxy.cut_after(300, "to_client")),
            ("port closed", proxy.refuse),
            ("stalled", proxy.stall),
            ("answers stalled", lambda: proxy.stall("to_client")),
            ("black hole", proxy.black_hole),
            ("delayed", lambda: proxy.delay(to_server=0.05, to_client=0.05)),
            ("slow", lambda: proxy.limit_bandwidth(100_000)),
        ]

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()
        self.mortal.proxy.heal()


class LoopThread:
    """An event loop in a thread, which runs workers and then waits for its store to be closed."""

    def __init__(self, workers: Sequence[Worker], ends: float) -> None:
        self.workers = workers
        self.ends = ends
        self.done: Future[None] = Future()
        self.closed: Future[None] = Future()
        self.tasks_left = 0
        self.thread = threading.Thread(target=asyncio.run, args=(self.run(),), name="loop")
        self.thread.start()

    async def run(self) -> None:
        try:
            await asyncio.gather(*(worker.work(self.ends) for worker in self.workers))
            self.done.set_result(None)
        except BaseException as error:
            self.done.set_exception(error)
        await asyncio.wrap_future(self.closed)
        await asyncio.sleep(0.5)
        self.tasks_left = len(asyncio.all_tasks()) - 1


def run_workers(
    mortal: Mortal, tally: Tally, seconds: float, names: Sequence[str], *, trouble: bool
) -> tuple[list[Worker], int]:
    """Work for some seconds on one store for each collection; returns workers and tasks left."""
    engine = mortal.name
    stores = [
        MilvusVectorStore(
            mortal.uri,
            collection_name=name,
            dim=DIM,
            timeout=TIMEOUTS[engine],
            consistency_level="Strong",
            upsert_mode=name.endswith("upsert"),
            batch_size=10,
        )
        for name in names
    ]
    for store in stores:
        store.connect()

    def worker(kind: str, number: int, colour: str) -> Worker:
        store = stores[number % len(stores)]
        name = f"{store.collection_name}-{kind}-{number}"
        return Worker(name, Coloured(store, colour), engine, tally)

    ends = time.monotonic() + seconds
    troublemaker = Troublemaker(mortal, tally)
    loops = [
        LoopThread([worker(f"loop{n}", i, "async") for i in range(WORKERS_PER_LOOP)], ends)
        for n in range(LOOPS)
    ]
    blocking = [worker("thread", i, "sync") for i in range(THREADS)]
    threads = [threading.Thread(target=asyncio.run, args=(w.work(ends),)) for w in blocking]
    for thread in threads:
        thread.start()
    if trouble:
        troublemaker.thread.start()
        time.sleep(max(0.0, ends - time.monotonic()))
        troublemaker.stop()
    for thread in threads:
        thread.join()
    workers = list(blocking)
    for loop in loops:
        loop.done.result()
        workers += loop.workers
    for store in stores:
        store.close()
    for loop in loops:
        loop.closed.set_result(None)
        loop.thread.join()
    return workers, sum(loop.tasks_left for loop in loops)


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    descriptors: int
    threads: int
    channels: int
    memory: int

    @classmethod
    def now(cls) -> Held:
        channels = len(living(grpc.Channel, grpc.aio.Channel))
        with suppress(OSError, AttributeError):  # of glibc
            ctypes.CDLL(None).malloc_trim(0)
        names = [thread.name for thread in threading.enumerate()]
        return cls(
            len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0,
            len([name for name in names if not name.startswith("faulty-proxy")]),
            channels,
            _memory(),
        )


def _memory() -> int:
    with suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def settled(before: Held) -> Held:
    """What the process holds, when that has come back to what it was, or after some seconds."""
    deadline = time.monotonic() + SECONDS_TO_SETTLE
    while True:
        held = Held.now()
        back = held.descriptors <= before.descriptors and held.threads <= before.threads
        if (back and held.channels <= before.channels) or time.monotonic() > deadline:
            return held
        time.sleep(0.2)


@dataclass
class Comparison:
    """Of collections with ledgers; ids."""

    rows: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # other text, or there although it is not
    unknown_there: int = 0
    unknown_not_there: int = 0


def compare(uri: str, names: Sequence[str], workers: Sequence[Worker]) -> Comparison:
    """Compare, past the proxy."""
    result = Comparison()
    found: Counter[str] = Counter()
    texts: dict[str, str] = {}
    client = new_client(uri)
    for name in names:
        client.load_collection(name)
        last = ""
        while True:  # sorted pages; a limit alone returns any rows
            page = client.query(
                name,
                filter=f'id > "{last}"',
                output_fields=["id", "text"],
                limit=1_000,
                consistency_level="Strong",
                iterator="True",
                reduce_stop_for_best="False",
            )
            found.update(row["id"] for row in page)
            texts.update({row["id"]: row["text"] for row in page})
            if len(page) < 1_000:
                break
            last = max(row["id"] for row in page)
    client.close()
    histories = {i: told for worker in workers for i, told in worker.history.items()}
    ledger = {i: states for worker in workers for i, states in worker.rows.items()}
    result.rows = sum(found.values())
    result.wrong += [f"{i}: nobody's" for i in found if i not in ledger]
    for node_id, states in ledger.items():
        state = texts.get(node_id, ABSENT)
        if found[node_id] > 1:
            result.duplicated.append(node_id)
        if len(states) > 1:
            result.unknown_there += state is not ABSENT
            result.unknown_not_there += state is ABSENT
        if state in states:
            continue
        if state is ABSENT:
            result.lost.append(f"{node_id}: {histories[node_id]}")
        else:
            result.wrong.append(f"{node_id}: {state!r}, not {set(states)}: {histories[node_id]}")
    return result


def report(
    engine: str, tally: Tally, result: Comparison, tasks: int, before: Held, after: Held
) -> tuple[list[str], bool]:
    """The table, and whether all is well."""
    growth = after.memory - before.memory
    # Milvus Lite (3.2.2) that is killed in the midst of a flush has the rows twice afterwards that
    # it was flushing, whoever wrote them: 1 of 31 kills within 0.25 s did so to the raw client.
    doubled_by_engine = engine == "lite" and tally.faults["server killed"] > 0
    must_be_zero = {
        "lost": len(result.lost),
        "duplicated": 0 if doubled_by_engine else len(result.duplicated),
        "other than acknowledged": len(result.wrong),
        "wrong answers, errors, times": len(tally.wrong),
        "tasks leaked": tasks,
        "file descriptors leaked": max(0, after.descriptors - before.descriptors),
        "threads leaked": max(0, after.threads - before.threads),
        "channels leaked": max(0, after.channels - before.channels),
    }
    well = not any(must_be_zero.values()) and growth < MAX_GROWTH
    lines = [f"{'operations':<34}{sum(tally.calls.values()):>9}"]
    lines += [f"  {name:<32}{count:>9}" for name, count in sorted(tally.calls.items())]
    lines += [f"{'operations failed':<34}{sum(tally.failed.values()):>9}"]
    lines += [f"  {name:<40} {count:>9}" for name, count in sorted(tally.failed.items())]
    lines += [f"{'faults injected':<34}{sum(tally.faults.values()):>9}"]
    lines += [f"  {name:<32}{count:>9}" for name, count in sorted(tally.faults.items())]
    lines += [
        f"{'rows written or deleted, acknowledged':<37}{tally.acknowledged:>6}",
        f"{'  declared unknown':<34}{tally.declared_unknown:>9}",
        f"{'rows at the end':<34}{result.rows:>9}",
        f"{'  unknown ones, there':<34}{result.unknown_there:>9}",
        f"{'  unknown ones, not there':<34}{result.unknown_not_there:>9}",
    ]
    if doubled_by_engine:
        lines += [f"{'doubled in a flush by the engine':<34}{len(result.duplicated):>9}"]
    lines += [f"{name:<34}{count:>9}  (0)" for name, count in must_be_zero.items()]
    lines += [f"{'memory growth, MiB':<34}{growth / 2**20:>9.1f}  (< {MAX_GROWTH >> 20})"]
    details = [("lost", result.lost), ("duplicated", result.duplicated)]
    details += [("other", result.wrong), ("wrong", tally.wrong)]
    lines += [f"{name}: {one}" for name, several in details for one in several[:10]]
    if not well:
        lines += [f"{seconds:.3f} {name}" for seconds, name in tally.troubles]
    return lines, well


def soak(seconds: float, engine: str, directory: Path) -> bool:
    """Run it, print the table; returns whether all is well."""
    mortal = Mortal(engine, directory / "server")
    names = ["soak", "soak_upsert"]
    try:
        # What is made once for the process, such as gRPC's own threads, is no leak.
        run_workers(mortal, Tally(), 2.0, [f"warm_{name}" for name in names], trouble=False)
        mortal.proxy.cut()
        before = Held.now()
        tally = Tally()
        workers, tasks = run_workers(mortal, tally, seconds, names, trouble=True)
        result = compare(mortal.server.uri, names, workers)
        mortal.proxy.cut()
        workers.clear()  # their ledgers are not what is measured
        lines, well = report(engine, tally, result, tasks, before, settled(before))
        log = mortal.server.log.read_text(errors="replace")
        told = [line[:300] for line in log.splitlines() if "WAL recovery" in line]
    finally:
        mortal.remove()
    print("\n".join(lines))
    print("\n".join(told))
    print("all is well" if well else "SOMETHING IS WRONG")
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description="Is anything lost, doubled or leaked?")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each engine")
    parser.add_argument("--engine", choices=list(SERVERS), help="this one instead of all")
    arguments = parser.parse_args()
    well = True
    for engine in [arguments.engine] if arguments.engine else SERVERS:
        if engine == "standalone" and (reason := StandaloneServer.why_not()):
            print(f"{engine}: {reason}")
            continue
        print(f"==== {engine}, {arguments.seconds:g} s ====", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            well &= soak(arguments.seconds, engine, Path(directory))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
