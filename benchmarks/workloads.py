"""The workloads: each runs the contenders in turns, round by round, on one engine.

Contenders that write get fresh collections in every round, those that read share one. The order
of the contenders rotates from round to round. What was written is counted, and what was found is
checked, outside the measurements.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from pymilvus import MilvusClient

from tests.fixtures.engines import Engine, new_client

from . import proxy
from .contenders import (
    FLAT,
    HNSW,
    Contender,
    Floor,
    Ids,
    Index,
    ThisStore,
    Upstream,
    contenders,
    contenders_under_load,
)
from .data import Batch, make_batch, make_queries
from .engines import build_index
from .load import (
    Call,
    Outcome,
    arrivals_at,
    find_capacity,
    load_figures,
    open_loop,
    poisson_arrivals,
)
from .measure import CallClock, Figures, measure, percentiles, settle
from .memory import measure_in_child
from .settings import COMPARED_LOAD, DELAY_MS, LOADS, Options

#: Contender to its figures; one that has left is missing.
Round: TypeAlias = dict[str, Figures]

#: Calls one after the other: the clock that takes the time, the contender, and a number.
Turns: TypeAlias = Iterator[tuple[CallClock, Contender, int]]

#: An add of the batch's only node, or the query of a vector.
Item: TypeAlias = "Batch | list[float]"

T = TypeVar("T")

#: A rate is sustained when the last calls come late by at most this share of the time, beside
#: what they take alone.
LATE_SHARE = 0.25
#: Calls of an open loop that are not answered after so many times its length are given up.
DRAIN_FACTOR = 2
#: Seconds after the last arrival when those at a share of the capacity are given up.
PATIENCE_UNDER_LOAD = 5.0
#: Rounds of an open loop: each is long, and has its percentiles over many calls.
OPEN_ROUNDS = 3
RTT_ROUNDS = 1
#: With the delaying proxy, Lite is asked for this share of the queries.
LITE_RTT_SHARE = 0.25
LEAST_LONE_CALLS = 10
#: In place of a contender: this store at the rate that is a share of upstream's capacity.
AT_UPSTREAMS_RATE = f"{ThisStore.key}_at_{Upstream.key}"


@dataclass
class Workload:
    """What came out of one workload on one engine.

    Attributes:
        key: Its name in the results.
        title: Its name for readers.
        measure: The figure that is compared: `seconds`, or a percentile, both in seconds.
        operations: How many a round has; 0 where that is not fixed.
        rounds: The figures.
        details: What else a reader should know.
    """

    key: str
    title: str
    measure: str
    operations: int
    rounds: list[Round] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


class Bench:
    """All workloads on one engine.

    Args:
        engine: The engine.
        options: What to measure.
        say: Receives lines about the progress.
    """

    def __init__(self, engine: Engine, options: Options, say: Callable[[str], None]) -> None:
        self.engine = engine
        self.options = options
        self.say = say
        self.results: list[Workload] = []
        self.classes = contenders()
        self.raw: MilvusClient = new_client(engine.uri, engine.token)
        largest = max(options.count, options.rows)
        if "bulk" in options.workloads:
            largest = max(largest, options.bulk)
        self.batch = make_batch(largest, options.dim)
        self.queries = make_queries(self.batch.nodes[: options.rows], options.count)
        self.failures: list[str] = []
        self._rate = 0.0

    async def run(self) -> list[Workload]:
        """Run the workloads of the options."""
        groups = {
            "adds": self._single_adds,
            "adds-sync": self._sync_adds,
            "bulk": self._bulk,
            "bulk-50k": self._full_bulk,
            "inserts": self._inserts,
            "queries": self._queries_on_small_collection,
            "queries-big": self._queries_on_big_collection,
            "lone": self._lone_calls,
            "mixed": self._mixed_near,
            "load": self._latency_under_load,
            "rtt": self._with_round_trips,
            "memory": self._memory,
        }
        try:
            for name, group in groups.items():
                if name not in self.options.workloads:
                    continue
                try:
                    await group()
                except Exception as error:
                    # The others may be worth their time all the same.
                    traceback.print_exc()
                    failure = f"{self.engine.name}: {name} failed with {type(error).__name__}"
                    self.failures.append(failure)
        finally:
            self.raw.close()
        return self.results

    # -- collections -------------------------------------------------------------------------

    def _new(
        self,
        kind: type[Contender],
        engine: Engine,
        name: str,
        index: Index,
        level: str,
        top_k: int = 0,
        upsert: bool = True,
    ) -> Contender:
        top_k = top_k or self.options.top_k
        return kind(engine, name, self.options.dim, top_k, index, level, upsert)

    @asynccontextmanager
    async def _fresh(
        self,
        classes: Sequence[type[Contender]],
        engine: Engine,
        fill: Batch | None = None,
        upsert: bool = True,
    ) -> AsyncIterator[list[Contender]]:
        """Contenders with a new collection each, connected and warm."""
        names = [f"bench_{kind.key}_{uuid.uuid4().hex[:8]}" for kind in classes]
        made = [
            self._new(kind, engine, name, FLAT, "Strong", upsert=upsert)
            for kind, name in zip(classes, names, strict=True)
        ]
        try:
            # At once: a server takes 3 s for each, most of which it waits.
            await asyncio.gather(*(each.open() for each in made))
            warm = make_batch(3, self.options.dim, prefix="warm")
            for each in made:
                # No id twice: a server then fails to find what it counts.
                await each.add_all(warm.part(0, 2))
                await each.add_one(warm, 2)
                await each.query_one(self.queries[0])
                if fill is not None:
                    await each.add_all(fill)
            yield made
        finally:
            for each in made:
                await each.close()
            await asyncio.gather(*(asyncio.to_thread(self._drop, name) for name in names))

    @asynccontextmanager
    async def _shared(
        self,
        batches: Sequence[Batch],
        engine: Engine,
        index: Index,
        level: str,
        others: Sequence[type[Contender]] | None = None,
        top_k: int = 0,
    ) -> AsyncIterator[list[Contender]]:
        """Contenders that read one collection, filled by the raw client, connected and warm.

        The raw client is the first of them; `others` are by default all the others of the run.
        """
        classes: Sequence[type[Contender]] = self.classes
        if others is not None:
            classes = [Floor, *others]
        name = f"bench_shared_{uuid.uuid4().hex[:8]}"
        made = [self._new(kind, engine, name, index, level, top_k) for kind in classes]
        try:
            floor = made[0]
            await floor.open()
            for batch in batches:
                await floor.add_all(batch)
            if index is not FLAT:
                rows = sum(map(len, batches))
                await asyncio.to_thread(build_index, self.engine, self.raw, name, rows)
            for each in made[1:]:
                await each.open()
            for each in made:
                await each.query_one(self.queries[0])
            yield made
        finally:
            for each in made:
                if hasattr(each, "store") or isinstance(each, Floor):
                    await each.close()
            await asyncio.to_thread(self._drop, name)

    def _drop(self, name: str) -> None:
        if self.raw.has_collection(name):
            self.raw.drop_collection(name)

    def _count(self, name: str) -> int:
        rows = self.raw.query(
            name, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(rows[0]["count(*)"])

    # -- workloads ---------------------------------------------------------------------------

    def _begin(self, workload: Workload) -> Workload:
        self.results.append(workload)
        self.say(f"{self.engine.name}: {workload.title}")
        return workload

    async def _rounds(
        self,
        workload: Workload,
        rounds: int,
        run: Callable[[list[type[Contender]], int], Awaitable[Round]],
    ) -> None:
        """Run rounds. Who has used up its time leaves the further ones, the others go on."""
        spent = dict.fromkeys((kind.key for kind in self.classes), 0.0)
        for number in range(rounds):
            classes = [each for each in self.classes if spent[each.key] < self.options.patience]
            result = await run(rotated(classes, number), number)
            workload.rounds.append(result)
            for key, figures in result.items():
                spent[key] += figures.get("seconds", 0.0)
            self.say(f"  round {number + 1}: {shown(workload, result)}")

    async def _single_adds(self) -> None:
        await self._adds("single_adds", "", self.engine, self.options.rounds)

    async def _adds(
        self, key: str, suffix: str, engine: Engine, rounds: int, upsert: bool = True
    ) -> None:
        batch = self.batch.part(0, self.options.count)
        title = f"{len(batch):,} concurrent single adds{suffix}"
        workload = self._begin(Workload(key, title, "seconds", len(batch)))
        await self._add_rounds(workload, engine, batch, "add_each", rounds, upsert=upsert)

    async def _inserts(self) -> None:
        rounds, suffix = self.options.rounds, ", upsert_mode=False"
        await self._adds("single_inserts", suffix, self.engine, rounds, upsert=False)
        batch = self.batch.part(0, self.options.bulk)
        title = f"one add of {len(batch):,} nodes{suffix}"
        workload = self._begin(Workload("bulk_insert", title, "seconds", len(batch)))
        await self._add_rounds(workload, self.engine, batch, "add_all", rounds, upsert=False)

    async def _bulk(self) -> None:
        await self._one_add("bulk_add", self.batch.part(0, self.options.bulk), self.options.rounds)

    async def _full_bulk(self) -> None:
        batch = make_batch(self.options.full_bulk, self.options.dim)
        await self._one_add("bulk_add_full", batch, min(3, self.options.rounds))

    async def _one_add(self, key: str, batch: Batch, rounds: int) -> None:
        title = f"one add of {len(batch):,} nodes"
        workload = self._begin(Workload(key, title, "seconds", len(batch)))
        await self._add_rounds(workload, self.engine, batch, "add_all", rounds)

    async def _sync_adds(self) -> None:
        batch = self.batch.part(0, self.options.count)
        title = f"{len(batch):,} sync adds, one by one"
        workload = self._begin(Workload("sync_adds", title, "seconds", len(batch)))
        await self._add_rounds(
            workload, self.engine, batch, "add_one_by_one", self.options.rounds, on_loop=False
        )

    async def _add_rounds(
        self,
        workload: Workload,
        engine: Engine,
        batch: Batch,
        method: str,
        rounds: int,
        on_loop: bool = True,
        upsert: bool = True,
    ) -> None:
        async def run(classes: list[type[Contender]], _number: int) -> Round:
            result: Round = {}
            async with self._fresh(classes, engine, upsert=upsert) as made:
                for each in made:
                    if not on_loop:
                        await self._warm_sync(each)
                    before = self._count(each.collection)
                    add = getattr(each, method)
                    _, figures = await measure(partial(add, batch), len(batch), self.options.rest)
                    if not on_loop:
                        # The loop has nothing to do with it, but waits for its turns.
                        figures = {k: v for k, v in figures.items() if not k.endswith("stall_ms")}
                    result[each.key] = figures
                    added = self._count(each.collection) - before
                    if added != len(batch):
                        raise RuntimeError(f"{each.label} added {added} of {len(batch)} nodes")
            return result

        await self._rounds(workload, rounds, run)

    @property
    def _small(self) -> Batch:
        return self.batch.part(0, self.options.rows)

    async def _queries_on_small_collection(self) -> None:
        title = f"{len(self.queries):,} concurrent single queries, {len(self._small):,} rows"
        async with self._shared([self._small], self.engine, FLAT, "Strong") as made:
            rounds = self.options.rounds
            await self._queries("single_queries", title, made, self.queries, rounds)

    async def _lone_calls(self) -> None:
        await self._lone_queries()
        await self._lone_adds()

    async def _queries(
        self,
        key: str,
        title: str,
        made: list[Contender],
        vectors: Sequence[list[float]],
        rounds: int,
        first_hit: bool = True,
    ) -> None:
        workload = self._begin(Workload(key, title, "seconds", len(vectors)))
        floor = made[0]
        assert isinstance(floor, Floor)
        workload.details["floor_seconds"] = await floor.calibrate(vectors)
        workload.details["floor"] = "{} vectors per search, {} in flight".format(*floor.plan)
        by_key = {each.key: each for each in made}

        async def run(classes: list[type[Contender]], _number: int) -> Round:
            result: Round = {}
            for kind in classes:
                query_each = by_key[kind.key].query_each
                found, result[kind.key] = await measure(
                    partial(query_each, vectors), len(vectors), self.options.rest
                )
                self._check_found(kind.label, enumerate(found), first_hit)
            return result

        await self._rounds(workload, rounds, run)

    def _check_found(self, who: str, found: Iterable[tuple[int, Ids]], first_hit: bool) -> None:
        """Check what the queries of these numbers have found."""
        for i, ids in found:
            if len(ids) != self.options.top_k:
                raise RuntimeError(f"{who}: a query has not found {self.options.top_k} nodes")
            expected = self.batch.nodes[i % len(self.queries) % self.options.rows].node_id
            if first_hit and ids[0] != expected:
                raise RuntimeError(f"{who}: query {i} found {ids[0]!r} before {expected!r}")

    async def _queries_on_big_collection(self) -> None:
        options = self.options
        rows = options.big_rows_lite if self.engine.is_lite else options.big_rows
        self.say(f"{self.engine.name}: building an HNSW index of {rows:,} rows")
        # The first rows are those near which the queries are.
        first = self.batch.part(0, min(options.rows, rows))
        batches = (first, *self._filler(rows - len(first)))
        began = time.perf_counter()
        async with self._shared(batches, self.engine, HNSW, "Strong") as made:
            self.say(f"  built in {time.perf_counter() - began:.0f} s")
            title = f"{options.count:,} concurrent single queries, {rows:,} rows, HNSW"
            # An approximate index need not find the nearest.
            await self._queries(
                "single_queries_big", title, made, self.queries, options.rounds, first_hit=False
            )

    def _filler(self, n: int) -> list[Batch]:
        """Rows of one text, to fill a collection with; vectors as numpy arrays, to save memory."""
        random = np.random.default_rng(2)
        template = self.batch.rows[0]
        batches = []
        for start in range(0, n, 5_000):
            vectors = random.normal(size=(min(5_000, n - start), self.options.dim))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            rows = [
                {**template, "id": f"fill-{start + i}", "embedding": vector}
                for i, vector in enumerate(vectors.astype(np.float32))
            ]
            batches.append(Batch(self.batch.nodes[:1] * len(rows), rows))
        return batches

    async def _lone_queries(self) -> None:
        # On a server a Strong query waits for a tick, whoever asks; Lite knows Strong only.
        level = "Strong" if self.engine.is_lite else "Session"

        def vector(number: int) -> list[float]:
            return self.queries[number % len(self.queries)]

        async def call(each: Contender, number: int) -> None:
            await each.query_one(vector(number))

        def call_sync(each: Contender, number: int) -> None:
            each.query_one_sync(vector(number))

        top_k = self.options.lone_top_k
        title = f"a lone query of {top_k} hits, {level}"
        async with self._shared([self._small], self.engine, FLAT, level, top_k=top_k) as made:
            await self._lone("lone_query", title, made, call, call_sync)

    async def _lone_adds(self) -> None:
        async def call(each: Contender, number: int) -> None:
            await each.add_one(self.batch, number)

        def call_sync(each: Contender, number: int) -> None:
            each.add_one_sync(self.batch, number)

        async with self._fresh(self.classes, self.engine) as made:
            await self._lone("lone_add", "a lone add", made, call, call_sync)

    async def _lone(
        self,
        key: str,
        title: str,
        made: Sequence[Contender],
        call: Callable[[Contender, int], Awaitable[None]],
        call_sync: Callable[[Contender, int], None],
    ) -> None:
        """One call at a time, async and then, in a thread without an event loop, sync."""

        async def calls(turns: Turns) -> None:
            for clock, each, number in turns:
                with clock:
                    await call(each, number)

        def sync_calls(turns: Turns) -> None:
            for clock, each, number in turns:
                with clock:
                    call_sync(each, number)

        await self._lone_rounds(Workload(key, f"{title}, async", "p50", 0), made, calls)
        for each in made:
            await self._warm_sync(each)
        in_thread = partial(asyncio.to_thread, sync_calls)
        await self._lone_rounds(
            Workload(f"{key}_sync", f"{title}, sync", "p50", 0), made, in_thread
        )

    async def _lone_rounds(
        self,
        workload: Workload,
        made: Sequence[Contender],
        calls: Callable[[Turns], Awaitable[None]],
    ) -> None:
        """The contenders take turns call by call: neighbours in time see the same machine."""
        options = self.options
        # In all orders: what a call leaves to the threads of gRPC costs the one after it.
        orders = list(itertools.permutations(made))

        async def run(_classes: list[type[Contender]], _number: int) -> Round:
            clocks = {each.key: CallClock() for each in made}

            def turns() -> Turns:
                until = time.perf_counter() + options.lone_seconds * len(made)
                for number in range(min(options.lone, len(self.batch))):
                    if number >= LEAST_LONE_CALLS and time.perf_counter() > until:
                        break
                    for each in orders[number % len(orders)]:
                        yield clocks[each.key], each, number

            await settle(options.rest)
            await calls(turns())
            return {key: clock.figures() for key, clock in clocks.items()}

        await self._rounds(self._begin(workload), min(3, options.rounds), run)

    async def _warm_sync(self, each: Contender) -> None:
        await asyncio.to_thread(each.query_one_sync, self.queries[0])

    # -- open loop ---------------------------------------------------------------------------

    async def _mixed_near(self) -> None:
        await self._mixed("mixed", "", self.engine, OPEN_ROUNDS)

    async def _mixed(self, key: str, suffix: str, engine: Engine, rounds: int) -> None:
        rate = await self._sustained_rate()
        for factor in (1, 2):
            title = f"adds and queries arriving at {factor * rate:,.0f}/s{suffix}"
            name = key if factor == 1 else f"{key}_{factor}x"
            workload = self._begin(Workload(name, title, "query_p50", 0))
            workload.details = {"rate": factor * rate, "factor": factor}
            await self._open_loop(workload, engine, factor * rate, rounds)

    async def _sustained_rate(self) -> float:
        """The rate of arrivals that upstream (without it, the raw client) can just sustain.

        It is found by doubling it until calls pile up, and then halving the last step.
        """
        if self._rate:
            return self._rate
        kind: type[Contender] = Floor if Upstream.why_not() else Upstream
        async with self._fresh([kind], self.engine, self._small) as (each,):
            seconds = self.options.open_seconds / 2
            alone = await self._seconds_alone(each, seconds)
            slow = 0.5 / alone  # this much it certainly does
            while await self._sustains(each, 2 * slow, seconds, alone):
                slow *= 2
            middle = slow * 2**0.5
            holds = await self._sustains(each, middle, seconds, alone)
            self._rate = middle if holds else slow
        self.say(f"{self.engine.name}: {each.label} sustains {self._rate:.0f} mixed calls/s")
        return self._rate

    async def _sustains(self, each: Contender, rate: float, seconds: float, alone: float) -> bool:
        items = self._mixed_items(max(2, int(rate * seconds)), f"rate-{rate:.3f}")
        arrivals = [number / rate for number in range(len(items))]
        patience = 2 * alone + LATE_SHARE * seconds
        outcomes = await open_loop(calls_of(each, items), arrivals, patience)
        failed = any(outcome.failed for outcome in outcomes)
        if failed:
            await asyncio.sleep(seconds)  # the engine still works
        return not failed

    async def _seconds_alone(self, each: Contender, seconds: float) -> float:
        """What an add and a query take, one after the other."""
        began = time.perf_counter()
        for number in itertools.count(1):
            for item in self._mixed_items(2, f"alone-{number}"):
                await call_one(each, item)
            spent = time.perf_counter() - began
            if number >= LEAST_LONE_CALLS and spent > seconds:
                break
        return spent / number

    def _mixed_items(self, n: int, prefix: str = "mixed") -> list[Item]:
        """Adds and queries in turns; the nodes have ids of their own, as new ones would."""
        items: list[Item] = []
        for number in range(n):
            if number % 2:
                items.append(self.queries[number % len(self.queries)])
                continue
            items.append(self._new_node(number, prefix))
        return items

    def _new_node(self, number: int, prefix: str) -> Batch:
        position, name = number % len(self.batch), f"{prefix}-{number}"
        node = self.batch.nodes[position].model_copy(update={"id_": name})
        return Batch([node], [{**self.batch.rows[position], "id": name}])

    async def _open_loop(
        self, workload: Workload, engine: Engine, rate: float, rounds: int
    ) -> None:
        """Calls that arrive whether or not the ones before are done, as those of users do."""
        classes = [kind for kind in self.classes if kind is not Floor]
        patience = DRAIN_FACTOR * self.options.open_seconds

        async def run(_classes: list[type[Contender]], number: int) -> Round:
            arrivals = poisson_arrivals(
                rate, max(2, int(rate * self.options.open_seconds)), seed=number
            )
            items = self._mixed_items(len(arrivals))
            result: Round = {}
            async with self._fresh(rotated(classes, number), engine, self._small) as made:
                for each in made:
                    outcomes, figures = await measure(
                        partial(open_loop, calls_of(each, items), arrivals, patience),
                        len(arrivals),
                        self.options.rest,
                    )
                    latencies = [outcome.latency for outcome in outcomes]
                    figures.update(percentiles(latencies[::2], "add_"))
                    figures.update(percentiles(latencies[1::2], "query_"))
                    figures["failed"] = sum(outcome.failed for outcome in outcomes)
                    result[each.key] = figures
                    if figures["failed"]:
                        await asyncio.sleep(self.options.open_seconds)  # the engine still works
            return result

        await self._rounds(workload, min(rounds, self.options.rounds), run)

    # -- latency under load ------------------------------------------------------------------

    async def _latency_under_load(self) -> None:
        await self._queries_under_load()
        await self._adds_under_load()

    async def _queries_under_load(self) -> None:
        # On a server a Strong query waits for a tick under any load, which would hide the load.
        level = "Strong" if self.engine.is_lite else "Session"

        def calls(each: Contender, n: int) -> list[Call]:
            vectors = itertools.islice(itertools.cycle(self.queries), n)
            return [partial(each.query_one, vector) for vector in vectors]

        def check(each: Contender, outcomes: Sequence[Outcome]) -> None:
            found = [(i, one.result) for i, one in enumerate(outcomes) if not one.failed]
            self._check_found(each.label, found, first_hit=True)

        others = contenders_under_load()
        async with self._shared([self._small], self.engine, FLAT, level, others) as made:
            self._count(made[0].collection)  # a Strong read: from now on Session finds all rows
            title = f"single queries, {len(self._small):,} rows, {level}"
            await self._under_load("load_query", title, made[1:], calls, check)

    async def _adds_under_load(self) -> None:
        async with self._fresh(contenders_under_load(), self.engine) as made:
            # Of each contender: how many rows there must be, and how many more there may be,
            # because an add that failed can have been written.
            rows = {each.key: self._count(each.collection) for each in made}
            unsure = dict.fromkeys(rows, 0)

            def calls(each: Contender, n: int) -> list[Call]:
                first = rows[each.key]
                rows[each.key] += n
                nodes = [self._new_node(first + i, "load") for i in range(n)]
                return [partial(each.add_one, node, 0) for node in nodes]

            def check(each: Contender, outcomes: Sequence[Outcome]) -> None:
                unsure[each.key] += sum(outcome.failed for outcome in outcomes)
                count, most = self._count(each.collection), rows[each.key]
                if not most - unsure[each.key] <= count <= most:
                    raise RuntimeError(f"{each.label} has {count} of {most} nodes")

            await self._under_load("load_add", "single adds", made, calls, check)

    async def _under_load(
        self,
        key: str,
        title: str,
        made: Sequence[Contender],
        calls: Callable[[Contender, int], list[Call]],
        check: Callable[[Contender, Sequence[Outcome]], None],
    ) -> None:
        """Latencies of calls that arrive at shares of what a contender has just been able to do.

        One round: the contenders take turns at each load.

        Args:
            key: The beginning of the workloads' keys.
            title: What is called.
            made: The contenders, this store the first.
            calls: Makes so many calls of a contender.
            check: Checks what came of them.
        """
        details = await self._capacities(title, made, calls)
        rates = details["capacity"]
        for number, load in enumerate(LOADS):
            runs = [(each.key, each, load * rates[each.key]) for each in made if each.key in rates]
            if load == COMPARED_LOAD and Upstream.key in rates:
                runs.append((AT_UPSTREAMS_RATE, made[0], load * rates[Upstream.key]))
            workload = self._begin(
                Workload(f"{key}_{100 * load:.0f}", f"{title}, at {load:.0%} of capacity", "p99", 0)
            )
            workload.details = {**details, "load": load}
            result: Round = {}
            for who, each, rate in rotated(runs, number):
                result[who] = await self._at_rate(each, rate, number, calls, check)
            workload.rounds.append(result)
            self.say(f"  p99: {shown(workload, result)}")

    async def _capacities(
        self,
        title: str,
        made: Sequence[Contender],
        calls: Callable[[Contender, int], list[Call]],
    ) -> dict[str, Any]:
        """What the contenders can do; upstream may be unable to, this store has no such excuse."""
        self.say(f"{self.engine.name}: {title}, capacity")
        rates: dict[str, float] = {}
        concurrency: dict[str, int] = {}
        without: dict[str, str] = {}
        for each in made:
            await settle(self.options.rest)
            try:
                found = await find_capacity(
                    partial(calls, each), self.options.count, self.options.load_seconds
                )
            except Exception as error:
                if not isinstance(each, Upstream):
                    raise
                without[each.key] = type(error).__name__
                self.say(f"  {each.label} takes no part: {type(error).__name__}")
                await asyncio.sleep(self.options.load_seconds)  # the engine still works
                continue
            rates[each.key], concurrency[each.key] = found.rate, found.concurrency
            self.say(f"  {each.key} {found.rate:,.0f}/s, {found.concurrency:,} at once")
        return {"call": title, "capacity": rates, "concurrency": concurrency, "without": without}

    async def _at_rate(
        self,
        each: Contender,
        rate: float,
        seed: int,
        calls: Callable[[Contender, int], list[Call]],
        check: Callable[[Contender, Sequence[Outcome]], None],
    ) -> Figures:
        options = self.options
        n = arrivals_at(rate, options.load_seconds, options.load_calls)
        outcomes, figures = await measure(
            partial(
                open_loop,
                calls(each, n),
                poisson_arrivals(rate, n, seed),
                PATIENCE_UNDER_LOAD,
            ),
            n,
            options.rest,
        )
        figures.update(load_figures(outcomes), rate=rate)
        if figures["failed"]:
            await asyncio.sleep(options.load_seconds)  # the engine still works
        check(each, outcomes)
        return figures

    # -- with a network, and with much data --------------------------------------------------

    async def _with_round_trips(self) -> None:
        scheme, _, address = self.engine.uri.partition("://")
        if scheme != "http":
            self.say(f"{self.engine.name}: no delaying proxy before {scheme}, skipped")
            return
        share = LITE_RTT_SHARE if self.engine.is_lite else 1
        queries = self.queries[: int(len(self.queries) * share)]
        suffix = f", {2 * DELAY_MS} ms away"
        rounds = min(3, self.options.rounds)
        with proxy.delayed(address, DELAY_MS) as delayed:
            far = dataclasses.replace(self.engine, uri=f"{scheme}://{delayed}")
            await self._adds("rtt_single_adds", suffix, far, rounds)
            async with self._shared([self._small], far, FLAT, "Strong") as made:
                title = f"{len(queries):,} concurrent single queries{suffix}"
                await self._queries("rtt_single_queries", title, made, queries, rounds)
            await self._mixed("rtt_mixed", suffix, far, RTT_ROUNDS)

    async def _memory(self) -> None:
        n = self.options.memory
        title = f"{n:,} nodes from a generator"
        workload = self._begin(Workload("memory", title, "growth_mib", n))
        result: Round = {}
        for kind in self.classes:
            if kind is Floor:
                continue
            name = f"bench_memory_{uuid.uuid4().hex[:8]}"
            try:
                samples = await measure_in_child(self.engine, kind.key, name, n, self.options.dim)
            finally:
                await asyncio.to_thread(self._drop, name)
            if not samples:
                self.say("  memory of a process cannot be read on this system, skipped")
                return
            workload.details[kind.key] = samples
            result[kind.key] = memory_figures(samples)
        workload.rounds.append(result)
        self.say(f"  {shown(workload, result)}")


def calls_of(each: Contender, items: Sequence[Item]) -> list[Call]:
    """The calls of a mix."""
    return [partial(call_one, each, item) for item in items]


async def call_one(each: Contender, item: Item) -> None:
    """Make one call of a mix."""
    if isinstance(item, Batch):
        await each.add_one(item, 0)
    else:
        await each.query_one(item)


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The items, beginning at another one each time."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def memory_figures(samples: Sequence[Sequence[float]]) -> Figures:
    """Peak and growth of memory, from pairs of the nodes added so far and MiB.

    Growth is from the second quarter to the last: the first has the buffers grow to their size.
    """
    total = samples[-1][0]
    quarters = [
        [mib for added, mib in samples if q * total / 4 <= added <= (q + 1) * total / 4]
        for q in range(4)
    ]
    return {
        "start_mib": samples[0][1],
        "peak_mib": max(mib for _, mib in samples),
        "growth_mib": statistics.median(quarters[3]) - statistics.median(quarters[1]),
    }


def shown(workload: Workload, result: Round) -> str:
    """A round in one line."""
    parts = []
    for key in sorted(result):
        value = result[key].get(workload.measure)
        if value is not None:
            text = f"{value:.1f} MiB" if workload.measure.endswith("mib") else f"{value:.4f} s"
            parts.append(f"{key} {text}")
    return ", ".join(parts)
