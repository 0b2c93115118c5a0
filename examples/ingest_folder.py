"""Keep a collection in Milvus equal to a folder of text files.

    python examples/ingest_folder.py notes
    python examples/ingest_folder.py notes --uri http://localhost:19530 --workers 4

Run it again whenever you like: LlamaIndex's `IngestionPipeline` compares each file with its
document store, a small JSON file beside the database that holds a hash per file. Only what is new
or has changed is embedded, and what was deleted is deleted. It may be interrupted at any point,
even by `kill -9`, and goes on where it stopped.

Before the first row of a file is written or deleted, the JSON file says that the file is in doubt;
its hash is there only once all of its rows are. What is in doubt is replaced by the next run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared import (
    CHUNK_OVERLAP,
    CHUNK_SIZE,
    add_store_arguments,
    count,
    load_embed_model,
    positive,
    run_program,
    what_it_needs,
)

with what_it_needs("ingest_folder.py"):
    from ingest_parts import InThread, State, docstore_beside, read_folder
    from llama_index.core import Document
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
    from llama_index.core.node_parser import SentenceSplitter
    from tqdm.auto import tqdm

    from llama_index_milvus_async import MilvusVectorStore

#: Files that one run of the pipeline takes, and characters, whichever is less.
BATCH_FILES = 32
BATCH_CHARACTERS = 100_000
#: Seconds between writing the document store: what a `kill -9` costs at most.
SAVE_EVERY = 2.0


async def ingest(args: argparse.Namespace) -> None:
    """Bring the collection up to date with the folder."""
    folder = args.folder.resolve()
    documents, unread = read_folder(folder)
    embed_model = load_embed_model(args.embed_model)
    store = MilvusVectorStore(
        uri=args.uri,
        token=args.token,
        collection_name=args.collection,
        dim=len(embed_model.get_query_embedding("How many dimensions?")),
        upsert_mode=True,
    )
    async with store:
        state = State(args.docstore or docstore_beside(store))
        hashes = state.hashes()
        if hashes and not await store.acount(consistency_level="Strong"):
            print(f"{args.collection!r} is empty: all documents are embedded anew.")
            state.forget(list(hashes))
            hashes = {}

        there = {document.id_ for document in documents} | unread
        removed = [i for i in hashes if Path(i).is_relative_to(folder) and i not in there]
        stale = [document for document in documents if hashes.get(document.id_) != document.hash]
        state.doubt([*removed, *(document.id_ for document in stale)])
        await store.adelete(removed)
        state.forget(removed)
        unchanged = len(documents) - len(stale)
        print(
            f"{count(stale, 'file')} to embed, {unchanged} unchanged, "
            f"{count(removed, 'file')} removed."
        )
        if stale:
            await embed_and_store(stale, embed_model, store, state, args.workers)
    print(f"{args.collection!r} at {store.uri} holds what is in {args.folder}.")


async def embed_and_store(
    documents: Sequence[Document],
    embed_model: BaseEmbedding,
    store: MilvusVectorStore,
    state: State,
    workers: int,
) -> None:
    """Run the pipeline over batches of documents, a few of them at once."""
    started = time.monotonic()
    passages = 0
    batches = in_batches(documents)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedding")
    splitter = SentenceSplitter(
        chunk_size=CHUNK_SIZE,
        chunk_overlap=CHUNK_OVERLAP,
        id_func=lambda number, document: f"{document.node_id}#{number}",
    )
    with tqdm(total=len(documents), unit="file") as bar:

        def embedded(nodes: int) -> None:
            nonlocal passages
            passages += nodes
            bar.set_postfix(passages=passages)

        pipeline = IngestionPipeline(
            transformations=[
                InThread(step=splitter, thread=thread),
                InThread(step=embed_model, thread=thread, finished=embedded),
            ],
            vector_store=store,
            docstore=state.docstore,
            docstore_strategy=DocstoreStrategy.UPSERTS,
            disable_cache=True,
        )

        async def work() -> None:
            for batch in batches:
                await pipeline.arun(documents=batch, store_doc_text=False)
                bar.update(len(batch))
                state.save(every=SAVE_EVERY)

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:  # also where one has failed, and after Ctrl-C
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            thread.shutdown(cancel_futures=True)
            state.save()
    seconds = time.monotonic() - started
    rate = f"{passages / seconds:.0f} per second"
    print(
        f"Embedded and stored {count(documents, 'file')} in {passages} passages, "
        f"{seconds:.1f} s ({rate})."
    )


def in_batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Documents in batches that are bounded by number and by characters."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        if batch and (len(batch) == BATCH_FILES or size + len(document.text) > BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    yield batch


def parse_arguments() -> argparse.Namespace:
    """The command line; a mistake in it ends the program with status 2."""
    parser = argparse.ArgumentParser(
        description="Keep a collection in Milvus equal to a folder of text files."
    )
    add = parser.add_argument
    add("folder", type=Path, help="folder with .txt and .md files in UTF-8")
    add("--workers", type=positive, default=2, metavar="N", help="batches at once (%(default)s)")
    add("--docstore", type=Path, metavar="FILE", help="by default beside the database")
    add_store_arguments(parser, "./examples.db", "documents")
    return parser.parse_args()


def run() -> int:
    """Run the program; returns its exit status."""
    return run_program(
        "ingest_folder.py",
        lambda: asyncio.run(ingest(parse_arguments())),
        "Interrupted. The same command goes on from here.",
    )


if __name__ == "__main__":
    sys.exit(run())
