"""The benchmark runs, on Milvus Lite and with hardly any operations. Its figures mean nothing."""

import asyncio
import itertools
import json
import os
import re
import socket
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from llama_index.core import MockEmbedding

from benchmarks import ingestion, proxy, questions, questions_report, scale_report, tenants
from benchmarks.contenders import Upstream
from benchmarks.layout import TARGETS
from benchmarks.load import (
    Capacity,
    arrivals_at,
    closed_loop,
    find_capacity,
    load_figures,
    open_loop,
    poisson_arrivals,
)
from benchmarks.measure import CallClock, percentiles
from benchmarks.report import keep, ratio, under_load, workload_of, write
from benchmarks.workloads import memory_figures, rotated


def test_a_quick_run_writes_figures_and_tables(python_with_package, tmp_path):
    command = ["-m", "benchmarks", "--quick", "--engines", "lite"]
    command += ["--workloads", "adds,adds-sync,queries,lone,mixed,load", "--count", "20"]
    command += ["--open-seconds", "0.2", "--output", str(tmp_path)]
    python_with_package.run(*command)

    results = json.loads((tmp_path / "results.json").read_text())
    (engine,) = results["engines"]
    keys = [each["key"] for each in engine["workloads"]]
    lone = ["lone_query", "lone_query_sync", "lone_add", "lone_add_sync"]
    expected = ["single_adds", "sync_adds", "single_queries", *lone]
    loads = [f"load_{call}_{load}" for call in ("query", "add") for load in (50, 80, 95)]
    assert keys == [*expected, "mixed", "mixed_2x", *loads]
    for key in expected:
        assert ratio(workload_of(engine, key), "this", "floor").median > 0
    for key in lone:
        assert ratio(workload_of(engine, key), "this", "floor", "cpu_p50").median > 0
    (sync_adds,) = workload_of(engine, "sync_adds")["rounds"]
    assert "net_stall_ms" not in sync_adds["this"]  # the loop has no part in them
    for workload in itertools.chain(*under_load(engine).values()):
        (figures,) = workload["rounds"]
        assert {"this", "uncoalesced"} <= figures.keys()
        for who, rate in workload["details"]["capacity"].items():
            its = figures[who]
            assert its["rate"] == pytest.approx(rate * workload["details"]["load"])
            assert 0 < its["p50"] <= its["p95"] <= its["p99"] <= its["max"]
            assert its["served"] > 0
    assert bool(Upstream.why_not()) == any("not installed" in note for note in results["notes"])
    text = (tmp_path / "results.md").read_text()
    assert "concurrent single adds | this store ÷ floor" in text
    assert "a lone query, sync: CPU | this store ÷ raw client" in text
    assert "### Latency under load in ms: single adds" in text
    assert "| this store, coalesce=False | 95% |" in text
    assert str(tmp_path) not in text + json.dumps(results)


@pytest.mark.engines("lite")
def test_a_quick_run_compares_layouts_and_ways_to_keep_tenants_apart(
    engine, python_with_package, tmp_path
):
    command = ["-m", "benchmarks.layout", "--quick", "--output", str(tmp_path)]
    python_with_package.run(*command, "--uri", engine.uri, "--token", engine.token)

    results = json.loads((tmp_path / "layouts.json").read_text())
    workloads = {each["key"]: each for each in results["measured"]}
    for target in TARGETS:
        assert ratio(workloads[target.workload], target.above, target.below).median > 0
    results = json.loads((tmp_path / "tenants.json").read_text())
    ways = ["filter", "partition key", "partition", "collection", "database"]
    assert [each["way"] for each in results["measured"]] == ways
    for each in results["measured"]:
        assert "failure" not in each, each
        assert (each["tenants"], each["nodes"]) == (2, 100)
        assert each["query_seconds"] > 0
    text = (tmp_path / "layouts.md").read_text()
    assert "| query with a filter | partition key ÷ column |" in text
    assert "| database | 2 | 100 |" in (tmp_path / "tenants.md").read_text()
    assert engine.uri not in text + json.dumps(results)


@pytest.mark.engines("lite")
def test_a_quick_run_grows_a_collection(engine, python_with_package, tmp_path):
    command = ["-m", "benchmarks.scale", "--quick", "--engine", "lite", "--output", str(tmp_path)]
    python_with_package.run(*command, "--uri", engine.uri, "--token", engine.token)

    results = json.loads((tmp_path / "scale.json").read_text())
    assert [load["rows"] for load in results["loads"]] == [100, 200]
    assert [stage["rows"] for stage in results["stages"]] == [100, 300]
    assert [each["nodes"] for each in results["deletes"]] == [1, 30, 150]
    assert results["samples"][-1]["rows"] == 300
    seconds = [sample["seconds"] for sample in results["samples"]]
    assert seconds == sorted(seconds)
    text = (tmp_path / "scale.md").read_text()
    assert "| 300 | one tenant of 100 |" in text
    assert "killed" not in text  # a server that runs already is not
    assert engine.uri not in text + json.dumps(results)


def test_a_killed_server_is_told():
    killed = {"rows": 200, "acknowledged": 200, "counted": 199, "seconds": 3.2}
    results = results_of() | {"stages": [], "killed": killed | {"seconds_of_restart": 8.4}}
    results |= {"load": "0", "options": {"nodes": 300, "dim": 8}}
    text = scale_report.markdown(results)
    assert "ended with 200 nodes written; the collection has 199." in text


@pytest.mark.engines("lite")
def test_a_small_copy_is_measured(engine, python_with_package):
    command = ["-m", "benchmarks.moving", "--nodes", "60", "--dim", "8"]
    ended = python_with_package.run(*command, "--uri", engine.uri, "--token", engine.token)
    assert re.search(r"\| `acopy_nodes` \| [\d,]+ \| [\d.]+ \| [\d,]+ MiB \|", ended.stdout)
    assert re.search(r"The copy has [\d.]+ of the slower side's rate", ended.stdout)


def test_tenants_that_were_not_created_are_told():
    its = {"way": "collection", "asked": 10_000, "tenants": 7, "nodes": 3, "memory_mib": None}
    its |= {"create_seconds": 300.0, "fill_seconds": 1.0, "query_seconds": 0.0125}
    failed = {"way": "database", "asked": 60, "failure": "UnreachableError"}
    text = tenants.markdown([its, failed])
    assert "| database | 60: UnreachableError | - | - | - | - | - |" in text
    assert "| collection | 7 of 10,000 | 3 | 300 s | 1.00 s | - | 12.5 ms |" in text
    assert "the time was up" in text
    assert "the time was up" not in tenants.markdown([its | {"asked": 7}])


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_the_process_that_listens_is_found_by_its_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert tenants.pid_of(f"http://127.0.0.1:{listener.getsockname()[1]}") == os.getpid()


def results_of(*workloads):
    return {
        "date": "2000-01-01",
        "machine": "2 cores",
        "python": "3.12",
        "packages": {},
        "options": {"dim": 8, "top_k": 10, "rounds": 3},
        "minutes": 1.0,
        "notes": ["something"],
        "failures": [],
        "engines": [
            {"name": "lite", "version": "v1", "is_lite": True, "workloads": list(workloads)}
        ],
    }


def test_ratios_are_taken_within_a_round(tmp_path):
    rounds = [
        {"floor": {"seconds": 1.0}, "this": {"seconds": 1.1}, "upstream": {"seconds": 8.0}},
        {"floor": {"seconds": 4.0}, "this": {"seconds": 4.0}},
        {"floor": {"seconds": 2.0}, "this": {"seconds": 3.0}},
    ]
    workload = {
        "key": "single_adds",
        "title": "1,000 concurrent single adds",
        "measure": "seconds",
        "operations": 1_000,
        "rounds": rounds,
        "details": {},
    }
    found = ratio(workload, "this", "floor")
    assert (found.median, found.least, found.most, found.rounds) == (1.1, 1.0, 1.5, 3)
    assert ratio(workload, "upstream", "this").rounds == 1

    assert "results.md" in write(results_of(workload), tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| this store ÷ floor | 1.10 (1.00 to 1.50) | ≤ 0.95 | **no** |" in text
    assert "| upstream ÷ this store | 7.27 | ≥ 4 | yes |" in text
    assert "Note: something." in text


def test_lone_calls_are_compared_by_time_and_by_processor_time(tmp_path):
    its = {"p99": 0.008, "operations": 200}
    figures = {
        "floor": its | {"p50": 0.002, "cpu_p50": 0.001},
        "this": its | {"p50": 0.0018, "cpu_p50": 0.0009},
        "upstream": its | {"p50": 0.003, "cpu_p50": 0.0012},
    }
    workload = {
        "key": "lone_add_sync",
        "title": "a lone add, sync",
        "measure": "p50",
        "operations": 0,
        "rounds": [figures],
        "details": {},
    }
    write(results_of(workload), tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| a lone add, sync: CPU | this store ÷ raw client | 0.90 | ≤ 0.85 | **no** |" in text
    assert "| a lone add, sync: p50 | this store ÷ raw client | 0.90 | ≤ 1 | yes |" in text
    assert "| a lone add, sync: p50 | upstream ÷ this store | 1.67 | ≥ 1.1 | yes |" in text
    times = "2.00 / 8.00 / 1.00 | 1.80 / 8.00 / 0.90 | 3.00 / 8.00 / 1.20"
    assert f"| a lone add, sync | {times} | 0.90 | 0.90 | 1.67 | 1.33 | 200 |" in text


def test_the_time_of_each_call_is_taken_even_where_it_fails():
    clock = CallClock()
    with clock:
        time.sleep(0.01)
    with pytest.raises(ValueError), clock:
        raise ValueError
    figures = clock.figures()
    assert figures["operations"] == 2
    assert figures["p99"] >= 0.01 > figures["cpu_p99"]


def test_results_that_are_kept_are_marked_with_the_date_they_are_of(tmp_path):
    def workload(key, title, seconds):
        figures = {"floor": {"seconds": 1.0}, "this": {"seconds": seconds}}
        return {
            "key": key,
            "title": title,
            "measure": "seconds",
            "operations": 1_000,
            "rounds": [figures],
            "details": {},
        }

    earlier = results_of(workload("single_adds", "adds", 2.0), workload("bulk_add", "one add", 3.0))
    standalone = {"name": "standalone", "version": "v2", "is_lite": False}
    earlier["engines"].append({**standalone, "workloads": [workload("bulk_add", "one add", 5.0)]})
    results = results_of(workload("single_adds", "adds", 0.5), workload("new", "new adds", 4.0))
    results["date"] = "2000-02-02"
    keep(earlier, results)
    lite, kept = results["engines"]
    assert [each["key"] for each in lite["workloads"]] == ["single_adds", "bulk_add", "new"]
    assert kept["name"] == "standalone"

    write(results, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "†: not measured in this run, but in an earlier one of 2000-01-01," in text
    assert "| concurrent single adds | this store ÷ floor | 0.50 | ≤ 0.95 | yes | - |" in text
    bulk = "3.00 † | ≤ 0.95 | **no** | 5.00 † | ≤ 0.95 | **no** |"
    assert f"| one large add | this store ÷ floor | {bulk}" in text
    assert "| one add † | 1.000 s | 3.000 s |" in text
    assert "| adds | 1.000 s | 0.500 s |" in text

    # Of the same day, versions and machine: parts of one run.
    part = results_of(workload("bulk_add", "one add", 3.0)) | {"date": "2000-02-02"}
    keep(results, part)
    kept = [each["key"] for each in part["engines"][0]["workloads"] if "kept_from" in each]
    assert kept == []

    # Kept once more: the date is still that of the measurement.
    later = results_of() | {"date": "2000-03-03"}
    keep(results, later)
    dates = {each["key"]: each["kept_from"] for each in later["engines"][0]["workloads"]}
    assert dates == {"single_adds": "2000-02-02", "bulk_add": "2000-01-01", "new": "2000-02-02"}


def test_latencies_under_load_are_a_row_for_each_contender_and_load(tmp_path):
    its = {"rate": 500.0, "served": 490.0, "operations": 1_250, "failed": 2}
    its |= {"p50": 0.004, "p95": 0.02, "p99": 0.1234, "max": 1.5}
    others = {"upstream": its | {"rate": 50.0}}
    workloads = [
        {
            "key": f"load_add_{load:.0%}",
            "title": f"single adds, at {load:.0%} of capacity",
            "measure": "p99",
            "operations": 0,
            "rounds": [{"this": its, **others} if load == 0.5 else {"this": its}],
            "details": {
                "call": "single adds",
                "load": load,
                "capacity": {"this": 1_000.0, "upstream": 64.0},
                "concurrency": {"this": 1_000, "upstream": 16},
                "without": {},
            },
        }
        for load in (0.5, 0.8)
    ]
    workloads[1]["rounds"][0]["this_at_upstream"] = its
    results = results_of(*workloads)
    assert "results.md" in write(results, tmp_path)
    text = (tmp_path / "results.md").read_text()
    figures = "490/s | 4.00 | 20.0 | 123 | 1,500 | 1,250 | 2"
    rows = [
        f"| this store | 50% | 500/s | {figures} |",
        f"| this store | 80% | 500/s | {figures} |",
        f"| upstream | 50% | 50.0/s | {figures} |",
        f"| this store at upstream's rate | 80% | 500/s | {figures} |",
    ]
    assert "\n".join(rows) + "\n\nCapacity: this store 1,000/s (1,000 calls at once); " in text
    assert "All rates are of this run" in text
    assert ("load.png" in text) == (tmp_path / "load.png").exists()

    # Without upstream.
    for workload in workloads:
        workload["rounds"] = [{"this": its}]
        del workload["details"]["capacity"]["upstream"]
        workload["details"]["without"]["upstream"] = "MilvusException"
    write(results, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "calls at once). Without upstream, whose concurrent calls failed with Milv" in text
    assert "| upstream |" not in text


class MadeUpTime(asyncio.SelectorEventLoop):
    """An event loop that does not wait: time goes on by what it would have waited."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        select = self._selector.select

        def select_now(timeout):
            assert timeout is not None, "nothing left that could happen"
            self.now += timeout
            return select(0)

        self._selector.select = select_now

    def time(self):
        return self.now


@pytest.fixture
def made_up_time():
    loop = MadeUpTime()
    yield loop
    loop.close()


class OneAtATime:
    """Answers calls in the order that they come, each after some seconds."""

    def __init__(self, seconds=1.0, at_once=1):
        self.seconds = seconds
        self.free = asyncio.Semaphore(at_once)
        self.waiting = self.most_waiting = 0

    async def call(self, answer=None):
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        async with self.free:
            await asyncio.sleep(self.seconds)
        self.waiting -= 1
        return answer

    def calls(self, n):
        return [partial(self.call, i) for i in range(n)]


def test_an_open_loop_counts_the_latency_from_the_arrival(made_up_time):
    async def run():
        return await open_loop(OneAtATime().calls(4), [0.5, 1.0, 1.5, 9.0], patience=5)

    outcomes = made_up_time.run_until_complete(run())
    # Calls arrive while the first is under way, and wait.
    assert [each.latency for each in outcomes] == pytest.approx([1, 1.5, 2, 1])
    assert [each.result for each in outcomes] == [0, 1, 2, 3]
    figures = load_figures(outcomes)
    assert (figures["p50"], figures["p99"], figures["max"]) == pytest.approx((1.25, 2, 2))
    assert figures["served"] == pytest.approx(4 / 10)
    assert figures["failed"] == 0


def test_an_open_loop_that_comes_late_with_a_call_does_not_hide_it(made_up_time):
    async def block():
        made_up_time.now += 5  # as `time.sleep` would: nothing else runs

    async def at_once():
        return None

    async def run():
        return await open_loop([block, at_once, at_once], [1, 2, 7], patience=5)

    outcomes = made_up_time.run_until_complete(run())
    assert [each.latency for each in outcomes] == pytest.approx([5, 4, 0])


def test_failed_calls_count_with_the_time_until_then(made_up_time):
    async def fail():
        await asyncio.sleep(0.25)
        raise ValueError

    async def hang():
        await asyncio.sleep(1_000)

    server = OneAtATime()

    async def run():
        return await open_loop([fail, hang, server.call], [0, 1, 2], patience=3)

    outcomes = made_up_time.run_until_complete(run())
    assert [each.latency for each in outcomes] == pytest.approx([0.25, 4, 1])
    assert [each.failed for each in outcomes] == [True, True, False]
    figures = load_figures(outcomes)
    assert (figures["failed"], figures["max"]) == (2, pytest.approx(4))
    assert figures["served"] == pytest.approx(1 / 3)
    assert load_figures(outcomes[:2])["served"] == 0


def test_a_closed_loop_has_so_many_calls_under_way(made_up_time):
    server = OneAtATime(at_once=100)
    assert made_up_time.run_until_complete(closed_loop(server.calls(10), 4)) == pytest.approx(3)
    assert server.most_waiting == 4

    async def fail():
        raise ValueError

    with pytest.raises(ValueError):
        made_up_time.run_until_complete(closed_loop([fail, *server.calls(10)], 4))
    assert server.waiting == 0


@pytest.mark.parametrize(
    ("seconds", "at_once", "found"),
    [
        (0.001, 1, Capacity(1_000, 500)),
        (0.01, 50, Capacity(5_000, 500)),
        # 64 calls would take longer than the 2 seconds of the loop.
        (0.05, 1, Capacity(20, 16)),
        (1, 1, Capacity(1, 16)),
    ],
)
def test_the_capacity_is_the_throughput_of_as_many_calls_as_end_in_time(
    seconds, at_once, found, made_up_time
):
    server = OneAtATime(seconds, at_once)
    capacity = made_up_time.run_until_complete(find_capacity(server.calls, 500, 2))
    assert capacity.concurrency == server.most_waiting == found.concurrency
    assert capacity.rate == pytest.approx(found.rate, rel=0.01)


def test_arrivals_are_a_poisson_process_of_exactly_the_rate():
    arrivals = poisson_arrivals(100, 10_000, seed=1)
    assert arrivals == poisson_arrivals(100, 10_000, seed=1) == sorted(arrivals)
    assert arrivals != poisson_arrivals(100, 10_000, seed=2)
    assert 0 <= arrivals[0] < 0.1 and 99.9 < arrivals[-1] <= 100
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    # Of exponential gaps, a share of exp(-x) is longer than x times their mean.
    for x, share in ((0.5, 0.607), (1, 0.368), (3, 0.050)):
        longer = sum(gap > x / 100 for gap in gaps) / len(gaps)
        assert longer == pytest.approx(share, abs=0.02)
    # Another rate stretches them.
    assert poisson_arrivals(50, 10_000, seed=1) == pytest.approx([2 * at for at in arrivals])


def test_arrivals_last_for_some_seconds_and_longer_where_they_are_few():
    assert arrivals_at(1_000, 2.5, least=60) == 2_500
    assert arrivals_at(20, 2.5, least=60) == 60
    assert arrivals_at(4, 2.5, least=60) == 20
    assert arrivals_at(0.01, 2.5, least=60) == 2


def test_percentiles_are_of_the_nearest_rank():
    hundred = [*range(100, 0, -1)]
    assert percentiles(hundred) == {"p50": 50.5, "p95": 95, "p99": 99}
    assert percentiles([3, 1, 2], "add_") == {"add_p50": 2, "add_p95": 3, "add_p99": 3}
    assert percentiles([7]) == {"p50": 7, "p95": 7, "p99": 7}
    assert percentiles([]) == {}


def test_contenders_take_turns():
    assert ["".join(rotated("abc", by)) for by in range(4)] == ["abc", "bca", "cab", "abc"]


def test_memory_that_stays_is_growth():
    flat = [(added, 100.0) for added in range(101)]
    assert memory_figures(flat) == {"start_mib": 100.0, "peak_mib": 100.0, "growth_mib": 0.0}
    rising = [(added, float(added)) for added in range(101)]
    assert memory_figures(rising)["growth_mib"] == 50.0


async def test_the_proxy_delays_both_directions():
    async def echo(reader, writer):
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, family=socket.AF_INET)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with proxy.delayed(f"127.0.0.1:{port}", 30) as address:
            reader, writer = await asyncio.open_connection(*address.split(":"))
            began = time.monotonic()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert time.monotonic() - began >= 0.06
            writer.close()
            await writer.wait_closed()


@pytest.mark.engines("lite")
async def test_questions_are_measured_and_told(engine, tmp_path):
    model = MockEmbedding(embed_dim=8)
    figures = await questions.measure(engine.uri, engine.token, model, [2], 1, seconds=0.02)
    about = dict.fromkeys(("date", "machine", "load", "python", "where"), "x")
    questions_report.write({**about, "rows": 1, "top_k": 1, **figures}, tmp_path)
    page = (tmp_path / "questions.md").read_text()
    for call in ("aretrieve", "aquery"):
        assert len(re.findall(rf"^\| `{call}` \| 2 \|", page, re.MULTILINE)) == 1
        for name in ("this store", "this store and CoalescingEmbedding"):
            lines = re.findall(rf"^\| `{call}` \| {name} \| .* 0 \|$", page, re.MULTILINE)
            assert len(lines) == 3
    if find_spec("matplotlib"):
        assert (tmp_path / "questions.png").stat().st_size > 1_000


@pytest.mark.engines("lite")
async def test_the_way_from_text_to_rows_is_measured(make_store):
    model = ingestion.SleepingModel(rate=1e6)
    took = await ingestion.measure(make_store(dim=ingestion.DIM), model, 20, rounds=1)
    assert took.keys() == {"embedding", "writing", "aingest"}
    assert min(took.values()) > 0


@pytest.mark.engines("lite")
def test_both_event_loops_are_measured(engine):
    loops = pytest.importorskip("benchmarks.loops", exc_type=ImportError)
    figures = loops.measure(engine, calls=4, rounds=1)
    assert len(figures) == 3 * 3 * 2
    page = loops.markdown("lite", figures)
    assert len(re.findall(r"\| (?:this store|the same|bare client)", page)) == 9
