"""The benchmark runs, on Milvus Lite and with hardly any operations. Its figures mean nothing."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import proxy
from benchmarks.contenders import Upstream
from benchmarks.report import ratio, workload_of, write
from benchmarks.workloads import memory_figures, rotated

REPOSITORY = Path(__file__).parents[1]


def test_a_quick_run_writes_figures_and_tables(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--engines", "lite"]
    command += ["--workloads", "adds,queries,lone,mixed", "--count", "20"]
    command += ["--open-seconds", "0.2", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr

    results = json.loads((tmp_path / "results.json").read_text())
    (engine,) = results["engines"]
    keys = [each["key"] for each in engine["workloads"]]
    expected = ["single_adds", "single_queries", "lone_query", "lone_add"]
    assert keys == [*expected, "mixed", "mixed_2x"]
    for key in expected:
        assert ratio(workload_of(engine, key), "this", "floor").median > 0
    assert bool(Upstream.why_not()) == any("not installed" in note for note in results["notes"])
    text = (tmp_path / "results.md").read_text()
    assert "concurrent single adds | this store ÷ floor" in text
    assert str(tmp_path) not in text + json.dumps(results)


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

    engine = {"name": "lite", "version": "v1", "is_lite": True, "workloads": [workload]}
    results = {
        "date": "2000-01-01",
        "machine": "2 cores",
        "python": "3.12",
        "packages": {},
        "options": {"dim": 8, "top_k": 10, "rounds": 3},
        "minutes": 1.0,
        "notes": ["something"],
        "failures": [],
        "engines": [engine],
    }
    assert "results.md" in write(results, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| this store ÷ floor | 1.10 (1.00 to 1.50) | ≤ 1.2 | yes |" in text
    assert "| upstream ÷ this store | 7.27 | ≥ 4 | yes |" in text
    assert "Note: something." in text


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
