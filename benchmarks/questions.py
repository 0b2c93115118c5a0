"""Questions a second from text to nodes: `python -m benchmarks.questions`.

Concurrent `aretrieve` of an index, and `aquery` of a query engine (whose language model answers at
once), with all-MiniLM-L6-v2 in this process: plain LlamaIndex with upstream's store where that is
installed, with this store, and with `CoalescingEmbedding` around the model; and the least that can
be done: all questions embedded in one call of the model, all embeddings searched in one
`aquery_many`. Variants take turns in each round, and the best round counts, because whatever else
the machine does only takes time.

After that questions arrive at random, at 50, 80 and 95 % of what each variant can answer, and the
time from the arrival to the answer is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import VectorStoreQuery

import tests
from examples.shared import load_embed_model
from llama_index_milvus_async import CoalescingEmbedding, MilvusVectorStore
from llama_index_milvus_async._embedding.adapters import adapter_for

from .circumstances import circumstances
from .contenders import CLIENT_OPTIONS, Upstream
from .load import arrivals_at, find_capacity, load_figures, open_loop, poisson_arrivals
from .questions_report import write

COUNTS = (1, 10, 100, 1_000)
LOADS = (0.5, 0.8, 0.95)
ROWS = 1_000
TOP_K = 3
#: Rounds of a count have about as many questions as this, so that small ones have many rounds.
QUESTIONS = 100
#: Most questions under way at once while the capacity is measured.
MOST_AT_ONCE = 256
#: Fewest questions of an open loop, whatever its length.
FEWEST = 40
#: Seconds after the last arrival when questions that are not answered are given up.
PATIENCE = 30.0
PACKAGES = ("llama-index-core", "llama-index-embeddings-huggingface", "torch", "pymilvus")
#: Asks one question.
Ask = Callable[[str], Awaitable[Any]]


def new_questions() -> Iterator[str]:
    """Different questions each time, so that nothing is asked twice."""
    return (f"Who was it that stole tart number {n} from the Queen?" for n in count())


class Setting:
    """The collection and the model that all variants share.

    Args:
        store: This store.
        upstream: Upstream's store on the same collection, if it takes part.
        model: The embedding model.
    """

    def __init__(self, store: MilvusVectorStore, upstream: Any, model: Any) -> None:
        self.store = store
        self.model = model
        self.questions = new_questions()
        stores = {
            "upstream": (upstream, model),
            "plain": (store, model),
            "coalescing": (store, CoalescingEmbedding(model)),
        }
        self.indexes = {
            name: VectorStoreIndex.from_vector_store(each, embed_model=embed_model)
            for name, (each, embed_model) in stores.items()
            if each is not None
        }

    def asks(self, call: str) -> dict[str, Ask]:
        """How each variant asks one question, by `aretrieve` or `aquery`."""
        if call == "aretrieve":
            return {
                name: index.as_retriever(similarity_top_k=TOP_K).aretrieve
                for name, index in self.indexes.items()
            }
        return {
            name: index.as_query_engine(llm=MockLLM(), similarity_top_k=TOP_K).aquery
            for name, index in self.indexes.items()
        }

    async def ideal(self, texts: list[str]) -> None:
        """Answer all questions with as little as can be done."""
        embed = adapter_for(self.model).questions.blocking
        assert embed is not None
        embeddings = await asyncio.to_thread(embed, texts)
        await self.store.aquery_many(
            [
                VectorStoreQuery(query_embedding=embedding, similarity_top_k=TOP_K)
                for embedding in embeddings
            ]
        )

    def next_questions(self, n: int) -> list[str]:
        """So many questions that nobody has asked."""
        return [next(self.questions) for _ in range(n)]


async def measure(
    uri: str, token: str, model: Any, counts: list[int], rounds: int, seconds: float
) -> dict[str, Any]:
    """Ask in all ways, and return the figures."""
    texts = [f"Tart number {i} was stolen by the Knave of card {i % 13}." for i in range(ROWS)]
    embeddings = await asyncio.to_thread(model.get_text_embedding_batch, texts)
    nodes = [
        TextNode(text=text, embedding=embedding)
        for text, embedding in zip(texts, embeddings, strict=True)
    ]
    name = f"benchmark_questions_{os.getpid()}"
    arguments = {"uri": uri, "token": token, "collection_name": name, "dim": len(embeddings[0])}
    arguments |= CLIENT_OPTIONS
    async with MilvusVectorStore(**arguments) as store:
        try:
            await store.async_add(nodes, force_flush=True)
            setting = Setting(store, await upstream_store(arguments), model)
            together, under_load = [], []
            for call in ("aretrieve", "aquery"):
                asks = setting.asks(call)
                for ask in asks.values():
                    await asyncio.gather(*map(ask, setting.next_questions(3)))
                together += [await ask_together(setting, call, asks, n, rounds) for n in counts]
                if seconds:
                    under_load += await ask_under_load(setting, call, asks, seconds)
            return {"together": together, "under_load": under_load}
        finally:
            await asyncio.to_thread(store.client.drop_collection, name)


async def upstream_store(arguments: dict[str, Any]) -> Any:
    """Upstream's store, or `None` where it is not installed."""
    if note := Upstream.why_not():
        print(note)
        return None
    from llama_index.vector_stores.milvus import MilvusVectorStore as UpstreamStore

    return await asyncio.to_thread(UpstreamStore, **arguments)


async def ask_together(
    setting: Setting, call: str, asks: dict[str, Ask], n: int, rounds: int
) -> dict[str, Any]:
    """Take the best times, on the clock and of this process, that each variant has had."""

    async def gather(ask: Ask, texts: list[str]) -> None:
        await asyncio.gather(*map(ask, texts))

    variants = {name: partial(gather, ask) for name, ask in asks.items()}
    best: dict[str, list[float]] = {}
    for _ in range(max(1, rounds * QUESTIONS // max(n, QUESTIONS // 4))):
        for name, ask in {**variants, "ideal": setting.ideal}.items():
            texts = setting.next_questions(n)
            wall, cpu = time.perf_counter(), time.process_time()
            await ask(texts)
            took = [time.perf_counter() - wall, time.process_time() - cpu]
            best[name] = [min(*pair) for pair in zip(took, best.get(name, took), strict=True)]
    shown = {name: round(wall, 4) for name, (wall, _) in best.items()}
    print(f"{call}, {n} at once: {shown}", flush=True)
    figures = {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in best.items()}
    return {"call": call, "questions": n, **figures}


async def ask_under_load(
    setting: Setting, call: str, asks: dict[str, Ask], seconds: float
) -> list[dict[str, Any]]:
    """Let questions arrive at shares of what each variant can answer."""
    found = []
    for name, ask in asks.items():

        def calls(n: int, ask: Ask = ask) -> list[Callable[[], Awaitable[Any]]]:
            return [partial(ask, text) for text in setting.next_questions(n)]

        capacity = await find_capacity(calls, MOST_AT_ONCE, seconds)
        for load in LOADS:
            rate = load * capacity.rate
            arrivals = poisson_arrivals(rate, arrivals_at(rate, seconds, FEWEST), seed=1)
            figures = load_figures(await open_loop(calls(len(arrivals)), arrivals, PATIENCE))
            found.append(
                {"call": call, "variant": name, "load": load, "capacity": capacity.rate, **figures}
            )
            print(
                f"{call}, {name}, {load:.0%} of {capacity.rate:.0f}/s: "
                f"p50 {figures['p50'] * 1000:.0f} ms, p99 {figures['p99'] * 1000:.0f} ms",
                flush=True,
            )
    return found


def main() -> None:
    """Read the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.questions", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--uri", default="", help="a server (default: Milvus Lite in a temporary file)")
    add("--token", default=tests.MILVUS_TOKEN, help="its token (MILVUS_TOKEN)")
    add("--where", help="what the results call it")
    add("--rounds", type=int, default=3, help="rounds of each count (%(default)s)")
    add("--counts", default=",".join(map(str, COUNTS)), help="questions at once (%(default)s)")
    add("--seconds", type=float, default=4.0, help="of each load; 0 for none (%(default)s)")
    add("--mock", action="store_true", help="a model that does nothing; the figures mean nothing")
    add("--output", type=Path, default=Path("benchmarks/results"), help="directory (%(default)s)")
    args = parser.parse_args()
    found_in = circumstances(PACKAGES)
    model = MockEmbedding(embed_dim=8) if args.mock else load_embed_model(None)
    with tempfile.TemporaryDirectory() as directory:
        uri = args.uri or str(Path(directory) / "questions.db")
        counts = [int(each) for each in args.counts.split(",")]
        figures = asyncio.run(measure(uri, args.token, model, counts, args.rounds, args.seconds))
    results = {
        **found_in,
        "where": args.where or ("a server" if args.uri else "Milvus Lite"),
        "rows": ROWS,
        "top_k": TOP_K,
        **figures,
    }
    write(results, args.output)


if __name__ == "__main__":
    main()
