"""What a run measures: the options of the command line, and the groups of workloads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

#: Group to what it measures, in the order of a run.
WORKLOADS = {
    "adds": "concurrent adds of one node each",
    "adds-sync": "sync adds of one node each, one after the other",
    "queries": "concurrent queries on 1,000 rows",
    "queries-big": "concurrent queries on many rows with HNSW",
    "bulk": "one add of 5,000 nodes",
    "bulk-50k": "one add of 50,000 nodes",
    "inserts": "concurrent adds, and one large add, with upsert_mode=False",
    "lone": "one query or one add at a time, async and sync",
    "mixed": "adds and queries at a fixed arrival rate",
    "load": "latency of queries and of adds at shares of the capacity",
    "rtt": "adds, queries and the mix through a proxy that adds 20 ms of round-trip time",
    "memory": "memory while nodes from a generator are added in chunks",
}
#: Only with --full: they take long and tell little more.
FULL_ONLY = ("bulk-50k",)
#: Milliseconds that the proxy delays each direction.
DELAY_MS = 10
#: Shares of a contender's capacity at which its latency is measured.
LOADS = (0.5, 0.8, 0.95)
#: The one of them whose rate, of upstream's capacity, this store has to serve as well.
COMPARED_LOAD = 0.8
#: Characters of each node's text.
TEXT_LENGTH = 500


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes:
        engines: `standalone`, `lite`, or `external` for the server at `uri`.
        workloads: Groups, keys of `WORKLOADS`.
        rounds: Rounds of each workload; open loops take fewer.
        count: Concurrent adds, and concurrent queries.
        dim: Dimension of the vectors.
        top_k: Hits of each query.
        rows: Rows of the small collection that is queried.
        big_rows: Rows of the large one on a server.
        big_rows_lite: The same on Milvus Lite, which takes long to search.
        bulk: Nodes of one large add.
        full_bulk: Nodes of one very large add.
        lone: Most calls of each kind, one at a time, in a round.
        lone_seconds: Most seconds of those, per contender and round.
        lone_top_k: Hits of each query that is made alone.
        open_seconds: Seconds of arrivals of an open loop.
        load_seconds: Seconds of arrivals at each load, and of the closed loop before them.
        load_calls: Least arrivals at each load, where they take no more than twice as long.
        memory: Nodes added from the generator.
        rest: Seconds of rest before each measurement.
        patience: Seconds after which a slow contender leaves the further rounds of a workload.
        uri: Address of a running server; empty to start the engines.
        token: Its token.
        output: Directory of the results.
        keep: Whether the results that are there are kept where they are not measured again.
    """

    engines: tuple[str, ...] = ("lite", "standalone")
    workloads: tuple[str, ...] = tuple(key for key in WORKLOADS if key not in FULL_ONLY)
    rounds: int = 5
    count: int = 1_000
    dim: int = 768
    top_k: int = 10
    rows: int = 1_000
    big_rows: int = 100_000
    big_rows_lite: int = 10_000
    bulk: int = 5_000
    full_bulk: int = 50_000
    lone: int = 200
    lone_seconds: float = 3.0
    lone_top_k: int = 3
    open_seconds: float = 6.0
    load_seconds: float = 2.5
    load_calls: int = 60
    memory: int = 50_000
    rest: float = 0.5
    patience: float = 45.0
    uri: str = ""
    token: str = dataclasses.field(default="", repr=False)
    output: Path = Path("benchmarks/results")
    keep: bool = False

    def quick(self) -> Options:
        """The same in seconds, to see that everything works; its figures mean nothing."""
        return dataclasses.replace(
            self,
            rounds=1,
            count=100,
            dim=64,
            rows=200,
            big_rows=500,
            big_rows_lite=500,
            bulk=400,
            full_bulk=800,
            lone=10,
            lone_seconds=1.0,
            open_seconds=0.5,
            load_seconds=0.1,
            load_calls=10,
            memory=1_000,
            rest=0.0,
        )

    def shown(self) -> dict[str, object]:
        """The options that a reader of the results needs; neither addresses nor secrets."""
        hidden = {"uri", "token", "output", "keep"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in hidden}
