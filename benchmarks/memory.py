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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fixtures.engines import Engine

CHUNK = 1_000
SECONDS_BETWEEN_SAMPLES = 0.05

Samples = list[tuple[int, float]]


async def measure_in_child(
    engine: Engine, contender: str, collection: str, nodes: int, dim: int
) -> Samples:
    """Measure in a child process; empty where the system does not tell memory."""
    samples = await in_child(
        "benchmarks.memory",
        *("--contender", contender, "--collection", collection),
        *("--nodes", str(nodes), "--dim", str(dim)),
        given=[engine.name, engine.uri, engine.token, engine.version],
    )
    return [(int(added), float(mib)) for added, mib in samples]


async def in_child(module: str, *arguments: str, given: Sequence[str]) -> Any:
    """Run a module in a process of its own; returns what its last line says, as JSON.

    Args:
        module: Its name.
        arguments: Its arguments.
        given: What it reads as JSON from its stdin: addresses and tokens, which every user of the
            machine could read on the command line.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await child.communicate(json.dumps(given).encode())
    if child.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {child.returncode}")
    return json.loads(printed.splitlines()[-1])


@contextmanager
def sampling(
    sample: Callable[[], object], seconds: float = SECONDS_BETWEEN_SAMPLES
) -> Iterator[None]:
    """Call something on a thread, at once, every so many seconds, and at the end."""
    ended = threading.Event()

    def run() -> None:
        sample()
        while not ended.wait(seconds):
            sample()

    sampler = threading.Thread(target=run, daemon=True)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join()
        sample()


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
    with sampling(lambda: samples.append((added, resident_mib()))):
        for chunk in chunks_of_nodes(nodes, dim, min(CHUNK, max(1, nodes // 20))):
            await store.add_all(Batch(chunk, []))
            added += len(chunk)
            samples.append((added, resident_mib()))
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
