"""Questions a second from text to nodes: `python -m benchmarks.questions`.

Concurrent `aretrieve` of an index, with all-MiniLM-L6-v2 in this process: plain LlamaIndex, the
same with `CoalescingEmbedding` around the model, and the least that can be done: all questions
embedded in one call of the model, all embeddings searched in one `aquery_many`. Variants take turns
in each round, and the best round counts, because whatever else the machine does only takes time.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import VectorStoreQuery

import tests  # Before the package: it takes MILVUS_URI out of the environment.
from examples.shared import load_embed_model
from llama_index_milvus_async import CoalescingEmbedding, MilvusVectorStore

from .retrieval import version_of

COUNTS = (1, 10, 100, 200, 1_000)
ROWS = 1_000
TOP_K = 3
DIM = 384
VARIANTS = ("plain", "coalescing", "ideal")
#: Questions asked of the plain variant in one round at most: it takes long and scales evenly.
MOST_PLAIN = 200
#: Rounds of a count have about as many questions as this, so that small ones have many rounds.
QUESTIONS = 200
PACKAGES = ("llama-index-core", "llama-index-embeddings-huggingface", "torch", "pymilvus")
Variant = Callable[[list[str]], Awaitable[object]]


def questions(n: int, seed: int) -> list[str]:
    """Different questions each time, so that nothing is asked twice."""
    return [
        f"Who was it that stole tart number {seed * 10_000 + i} from the Queen?" for i in range(n)
    ]


async def measure(uri: str, token: str, counts: list[int], rounds: int) -> list[dict[str, Any]]:
    """Ask, and return a row for each count."""
    model: Any = load_embed_model(None)
    embed_model = CoalescingEmbedding(model)
    texts = [f"Tart number {i} was stolen by the Knave of card {i % 13}." for i in range(ROWS)]
    embeddings = await asyncio.to_thread(model.get_text_embedding_batch, texts)
    nodes = [
        TextNode(text=text, embedding=embedding)
        for text, embedding in zip(texts, embeddings, strict=True)
    ]
    name = f"benchmark_questions_{os.getpid()}"
    async with MilvusVectorStore(
        uri=uri, token=token, collection_name=name, dim=DIM, overwrite=True
    ) as store:
        try:
            await store.async_add(nodes)
            variants = variants_of(store, model, embed_model)
            for ask in variants.values():
                await ask(questions(3, seed=9_999))
            return [await measure_count(variants, n, rounds) for n in counts]
        finally:
            await asyncio.to_thread(store.client.drop_collection, name)


def variants_of(store: MilvusVectorStore, model: Any, coalescing: Any) -> dict[str, Variant]:
    """The ways from questions to nodes, by their names."""

    def through_an_index(embed_model: Any) -> Variant:
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
        retriever = index.as_retriever(similarity_top_k=TOP_K)

        async def ask(texts: list[str]) -> object:
            return await asyncio.gather(*map(retriever.aretrieve, texts))

        return ask

    async def ideal(texts: list[str]) -> object:
        embeddings = await asyncio.to_thread(model._embed, texts, "query")
        queries = [
            VectorStoreQuery(query_embedding=embedding, similarity_top_k=TOP_K)
            for embedding in embeddings
        ]
        return await store.aquery_many(queries)

    indexed = [through_an_index(model), through_an_index(coalescing)]
    return dict(zip(VARIANTS, [*indexed, ideal], strict=True))


async def measure_count(variants: dict[str, Variant], n: int, rounds: int) -> dict[str, Any]:
    """Take the best times, on the clock and of this process, that each variant has had."""
    best: dict[str, list[float]] = {}
    for round_ in range(rounds * max(1, QUESTIONS // n // 4)):
        for name, ask in variants.items():
            if name == "plain" and (n > MOST_PLAIN or (n > 10 and round_ > 1)):
                continue
            texts = questions(n, seed=round_)
            wall, cpu = time.perf_counter(), time.process_time()
            await ask(texts)
            took = [time.perf_counter() - wall, time.process_time() - cpu]
            best[name] = [min(*pair) for pair in zip(took, best.get(name, took), strict=True)]
    print(n, {name: [round(value, 4) for value in took] for name, took in best.items()}, flush=True)
    return {"questions": n, **{name: {"wall": w, "cpu": c} for name, (w, c) in best.items()}}


def markdown(results: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# From questions to nodes",
        "",
        f"{results['date']}, {results['machine']}, load {results['load']}, Python "
        f"{results['python']}; {results['where']}, {ROWS:,} rows, top {TOP_K}, all-MiniLM-L6-v2. "
        "The best of several rounds, in which the variants take turns. Times are for all questions "
        "together; CPU is this process's, the engine's not included.",
        "",
        "| questions at once | plain | with `CoalescingEmbedding` | ideal | ÷ plain | ÷ ideal | "
        "CPU ÷ ideal |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        plain, coalescing, ideal = (row.get(name) for name in VARIANTS)
        lines.append(
            f"| {row['questions']:,} | {_ms(plain)} | {_ms(coalescing)} | {_ms(ideal)} "
            f"| {_ratio(coalescing, plain, 'wall')} | {_ratio(coalescing, ideal, 'wall')} "
            f"| {_ratio(coalescing, ideal, 'cpu')} |"
        )
    return "\n".join(lines) + "\n"


def _ms(took: dict[str, float] | None) -> str:
    return "" if took is None else f"{took['wall'] * 1000:,.0f} ms"


def _ratio(above: dict[str, float], below: dict[str, float] | None, what: str) -> str:
    return "" if below is None else f"{above[what] / below[what]:.2f}"


def main() -> None:
    """Read the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.questions", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--uri", default="", help="a server (default: Milvus Lite in a temporary file)")
    add("--token", default=tests.MILVUS_TOKEN, help="its token (MILVUS_TOKEN)")
    add("--rounds", type=int, default=5, help="rounds of each count (%(default)s)")
    add("--counts", default=",".join(map(str, COUNTS)), help="questions at once (%(default)s)")
    add("--output", type=Path, default=Path("benchmarks/results"), help="directory (%(default)s)")
    args = parser.parse_args()
    load = f"{os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else "unknown"
    with tempfile.TemporaryDirectory() as directory:
        uri = args.uri or str(Path(directory) / "questions.db")
        counts = [int(count) for count in args.counts.split(",")]
        rows = asyncio.run(measure(uri, args.token, counts, args.rounds))
    results = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} on {platform.machine()}",
        "load": load,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "where": "a server" if args.uri else "Milvus Lite",
        "rows": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "questions.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output / "questions.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
