"""Memory of a process that adds nodes from a generator, chunk by chunk.

It is a process of its own, so that nothing but the adding is in its memory:

    python -m benchmarks.memory --contender this --collection c --nodes 50000 --dim 768

reads URI and token from its stdin, and prints pairs of nodes added so far and resident MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from pathlib import Path

from tests.fixtures.engines import Engine

CHUNK = 1_000
SECONDS_BETWEEN_SAMPLES = 0.05

Samples = list[tuple[int, float]]


async def measure_in_child(
    engine: Engine, contender: str, collection: str, nodes: int, dim: int
) -> Samples:
    """Measure in a child process; empty where the system does not tell memory."""
    command = [sys.executable, "-m", "benchmarks.memory", "--contender", contender]
    command += ["--collection", collection, "--nodes", str(nodes), "--dim", str(dim)]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    # Not on the command line, which every user of the machine can read.
    given = json.dumps([engine.name, engine.uri, engine.token, engine.version])
    printed, _ = await child.communicate(given.encode())
    if child.returncode:
        raise RuntimeError(f"measuring the memory of {contender!r} ended with {child.returncode}")
    return [(int(added), float(mib)) for added, mib in json.loads(printed)]


def resident_mib(process: int | str = "self") -> float:
    """Resident memory of this or another process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc", str(process), "statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def add_in_chunks(
    engine: Engine, contender: str, collection: str, nodes: int, dim: int
) -> Samples:
    """Add the nodes while a thread takes samples."""
    from .contenders import contenders
    from .data import Batch, chunks_of_nodes

    (kind,) = [each for each in contenders() if each.key == contender]
    store = kind(engine, collection, dim, 1)
    await store.open()
    samples: Samples = []
    added = 0
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SECONDS_BETWEEN_SAMPLES):
            samples.append((added, resident_mib()))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    for chunk in chunks_of_nodes(nodes, dim, min(CHUNK, max(1, nodes // 20))):
        await store.add_all(Batch(chunk, []))
        added += len(chunk)
        samples.append((added, resident_mib()))
    ended.set()
    sampler.join()
    await store.close()
    return samples


def main() -> None:
    """Read what to do, and print the samples."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    arguments = parser.parse_args()
    engine = Engine(*json.loads(sys.stdin.read()))
    samples: Samples = []
    if resident_mib():
        samples = asyncio.run(
            add_in_chunks(
                engine,
                arguments.contender,
                arguments.collection,
                arguments.nodes,
                arguments.dim,
            )
        )
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
