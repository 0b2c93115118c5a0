"""From text to rows: `python -m benchmarks.ingestion`.

`aingest` of 5,000 passages, against embedding them alone and writing them alone: the longer of the
two is the least that it can take. The model takes its time by sleeping, so many passages a second;
with `--minilm` it is all-MiniLM-L6-v2, on fewer passages. The three take turns in each round, and
the best round of each counts, because whatever else the machine does only takes time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

import tests
from examples.shared import load_embed_model
from llama_index_milvus_async import CoalescingEmbedding, MilvusVectorStore, aingest

DIM = 384
MINILM_PASSAGES = 600


class SleepingModel(BaseEmbedding):
    """A model in this process that takes its time without taking the processor.

    Args:
        rate: Passages a second.
    """

    rate: float

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        time.sleep(len(texts) / self.rate)
        return [[float(len(text) + i % 7) for i in range(DIM)] for text in texts]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def passages(n: int) -> list[TextNode]:
    """Passages without embeddings; always the same."""
    return [
        TextNode(id_=f"passage-{i}", text=f"Passage {i}: the Hatter pours tea. " + "tea " * 60)
        for i in range(n)
    ]


async def measure(store: MilvusVectorStore, model: Any, n: int, rounds: int) -> dict[str, float]:
    """The least seconds of embedding, of writing and of both."""
    best: dict[str, float] = {}

    async def timed(name: str, work: Callable[[], Awaitable[Any]]) -> None:
        began = time.perf_counter()
        await work()
        took = time.perf_counter() - began
        best[name] = min(took, best.get(name, took))

    for _ in range(rounds):
        nodes = passages(n)
        await timed("embedding", lambda: CoalescingEmbedding(model).acall(nodes))  # noqa: B023
        await timed("writing", lambda: store.async_add(nodes))  # noqa: B023
        fresh = passages(n)
        await timed("aingest", lambda: aingest(store, fresh, [model]))  # noqa: B023
    return best


async def run(args: argparse.Namespace, uri: str) -> None:
    """Measure each model, and print a line for it."""
    models: list[tuple[str, Any, int]] = [
        (f"{rate:,.0f} passages/s", SleepingModel(rate=rate, embed_batch_size=32), args.passages)
        for rate in map(float, args.rates.split(","))
    ]
    if args.minilm:
        models.append(("all-MiniLM-L6-v2", load_embed_model(None), MINILM_PASSAGES))
    name = f"benchmark_ingestion_{os.getpid()}"
    print("| model | passages | embedding | writing | `aingest` | ÷ the longer |")
    print("|---|---:|---:|---:|---:|---:|")
    async with MilvusVectorStore(
        uri=uri, token=args.token, collection_name=name, dim=DIM, batch_size=100
    ) as store:
        try:
            await aingest(store, passages(100), [SleepingModel(rate=1e6)])
            for label, model, n in models:
                took = await measure(store, model, n, args.rounds)
                longer = max(took["embedding"], took["writing"])
                print(
                    f"| {label} | {n:,} | {took['embedding']:.2f} s | {took['writing']:.2f} s "
                    f"| {took['aingest']:.2f} s | {took['aingest'] / longer:.2f} |",
                    flush=True,
                )
        finally:
            await asyncio.to_thread(store.client.drop_collection, name)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingestion", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--uri", default="", help="a server (default: Milvus Lite in a temporary file)")
    add("--token", default=tests.MILVUS_TOKEN, help="its token (MILVUS_TOKEN)")
    add("--passages", type=int, default=5_000, help="how many (%(default)s)")
    add("--rates", default="1000,2000", help="passages a second (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds (%(default)s)")
    add("--minilm", action="store_true", help="measure all-MiniLM-L6-v2 as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(args, args.uri or str(Path(directory) / "ingestion.db")))


if __name__ == "__main__":
    main()
