"""Ask questions about a folder of text files: LlamaIndex on Milvus, asynchronously.

    python examples/async_rag.py
    python examples/async_rag.py --docs notes --question "Who wrote the letter?"
    OPENAI_API_KEY=... python examples/async_rag.py --llm-model gpt-4.1-mini

The files are cut into passages, embedded on this machine and stored in Milvus; by default in
Milvus Lite, so that no server is needed. All questions are then asked at the same time. With
OPENAI_API_KEY set, a language model answers them from the passages that were found; without it,
the passages are the answer.

What is special to Milvus is in `main`, `build_index` and `ask_all`; all else is what any LlamaIndex
script does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared import (
    DATA,
    QUESTIONS,
    add_question_arguments,
    add_store_arguments,
    count,
    indented,
    load_embed_model,
    load_llm,
    no_answer,
    read_passages,
    run_program,
    what_it_needs,
)

with what_it_needs("async_rag.py"):
    from llama_index.core import StorageContext, VectorStoreIndex

    from llama_index_milvus_async import MilvusVectorStore

if TYPE_CHECKING:
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import BaseNode, NodeWithScore
    from llama_index.llms.openai import OpenAI


def main() -> None:
    """Index the documents, ask the questions, print the answers."""
    args = parse_arguments()
    nodes = read_passages(args.docs)
    llm = load_llm(args.llm_model, args.api_base)
    embed_model = load_embed_model(args.embed_model)

    store = MilvusVectorStore(
        uri=args.uri,
        token=args.token,
        collection_name=args.collection,
        dim=len(embed_model.get_query_embedding("How many dimensions?")),
        overwrite=True,  # the collection is the demo's own, and made anew by each run
    )
    store.connect()  # a wrong address or token shows now, not after the embedding
    print(f"Connected to {store.uri}; the collection is {args.collection!r}.")

    # `build_index` and `asyncio.run` each have an event loop of their own; the store serves both.
    index = build_index(store, nodes, embed_model)

    print(f"\nAsking {count(args.question, 'question')} at once.")
    started = time.perf_counter()
    answers = asyncio.run(ask_all(store, index, args.question, llm, args.top_k))
    seconds = time.perf_counter() - started

    for number, answer in enumerate(answers, start=1):
        print_answer(number, answer)
    print(f"\n{count(answers, 'question')} answered in {seconds:.2f} s.")
    if llm is None:
        print("The passages are the answer: without OPENAI_API_KEY no language model is asked.")


def build_index(
    store: MilvusVectorStore, nodes: list[BaseNode], embed_model: BaseEmbedding
) -> VectorStoreIndex:
    """Embed the passages and store them."""
    started = time.perf_counter()
    index = VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embed_model,
        use_async=True,
        show_progress=True,
    )
    seconds = time.perf_counter() - started
    rate = f"{len(nodes) / seconds:.0f} per second"
    print(f"Embedded and stored {count(nodes, 'passage')} in {seconds:.1f} s ({rate}).")
    return index


async def ask_all(
    store: MilvusVectorStore,
    index: VectorStoreIndex,
    questions: list[str],
    llm: OpenAI | None,
    top_k: int,
) -> list[Answer]:
    """Ask all questions at the same time, then close the store."""
    async with store:
        return await asyncio.gather(*(ask(index, question, llm, top_k) for question in questions))


async def ask(index: VectorStoreIndex, question: str, llm: OpenAI | None, top_k: int) -> Answer:
    """Find the passages nearest to a question and, given a language model, an answer in them."""
    started = time.perf_counter()
    if llm is None:
        text = None
        passages = await index.as_retriever(similarity_top_k=top_k).aretrieve(question)
    else:
        from openai import OpenAIError

        engine = index.as_query_engine(llm=llm, similarity_top_k=top_k, use_async=True)
        try:
            response = await engine.aquery(question)
        except OpenAIError as error:
            raise no_answer(llm, error) from error
        text, passages = str(response), response.source_nodes
    return Answer(question, text, passages, time.perf_counter() - started)


@dataclass(frozen=True)
class Answer:
    """What came back for one question."""

    question: str
    text: str | None  # None without a language model
    passages: list[NodeWithScore]
    seconds: float


def parse_arguments() -> argparse.Namespace:
    """The command line; a mistake in it ends the program with status 2."""
    parser = argparse.ArgumentParser(
        description="Ask questions about a folder of text files: LlamaIndex on Milvus."
    )
    add = parser.add_argument
    add("--docs", type=Path, default=DATA, metavar="DIR", help="folder with .txt files in UTF-8")
    add_question_arguments(parser)
    add_store_arguments(parser, "./milvus_demo.db", "async_rag_demo")
    args = parser.parse_args()
    args.question = args.question or QUESTIONS
    return args


def print_answer(number: int, answer: Answer) -> None:
    """Print the answer and its passages; the best one in full if there is no other answer."""
    print(f"\n{number}. {answer.question}  ({answer.seconds:.2f} s)")
    if answer.text is not None:
        print(indented(answer.text))
    for rank, passage in enumerate(answer.passages, start=1):
        in_full = rank == 1 and answer.text is None
        print(f"\n   [{rank}] {passage.metadata['file']}  (score {passage.score:.3f})")
        print(indented(passage.text, max_lines=None if in_full else 2))


if __name__ == "__main__":
    # LlamaIndex warns that it could not read PDF and the like without another package.
    logging.getLogger("llama_index.core.readers.file.base").setLevel(logging.ERROR)
    sys.exit(run_program("async_rag.py", main))
