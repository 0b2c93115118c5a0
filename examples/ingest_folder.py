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
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

INSTALL = 'pip install "llama-index-milvus-async[examples]"'

try:
    from async_rag import (
        CHUNK_OVERLAP,
        CHUNK_SIZE,
        DemoError,
        count,
        load_embed_model,
        positive,
    )
    from llama_index.core import Document
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.schema import BaseNode, TransformComponent
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from tqdm.auto import tqdm

    from llama_index_milvus_async import MilvusVectorStore
    from llama_index_milvus_async.errors import MilvusVectorStoreError
except ImportError as error:
    print(f"ingest_folder.py: {error}. Install what it needs: {INSTALL}", file=sys.stderr)
    sys.exit(2)

SUFFIXES = (".txt", ".md")
#: Files that one run of the pipeline takes, and characters, whichever is less.
BATCH_FILES = 32
BATCH_CHARACTERS = 100_000
#: Passages that the model embeds at once; an interruption waits for that many.
EMBED_BATCH = 32
#: Seconds between writing the document store: what a `kill -9` costs at most.
SAVE_EVERY = 2.0


class State:
    """LlamaIndex's document store in a file: a hash of each document that Milvus has in full.

    Args:
        path: The file; it need not be there.

    Raises:
        DemoError: The file is no document store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.docstore = SimpleDocumentStore()
        self._saved = time.monotonic()
        if path.exists():
            try:
                self.docstore = SimpleDocumentStore.from_persist_path(str(path))
                self.hashes()
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise DemoError(
                    f"{path} cannot be read as a document store ({error}). Without the file all "
                    "documents are embedded anew."
                ) from error

    def hashes(self) -> dict[str, str]:
        """Document id to hash."""
        return {doc_id: hash for hash, doc_id in self.docstore.get_all_document_hashes().items()}

    def doubt(self, doc_ids: Sequence[str]) -> None:
        """Note, in the file, that rows of these documents may be missing or be old ones."""
        self.docstore.set_document_hashes({doc_id: f"in doubt: {doc_id}" for doc_id in doc_ids})
        self.save()

    def forget(self, doc_ids: Sequence[str]) -> None:
        """Note that Milvus has no row of these documents."""
        for doc_id in doc_ids:
            self.docstore.delete_document(doc_id, raise_error=False)
        self.save()

    def save(self, every: float = 0.0) -> None:
        """Write the file, unless that was done within the last `every` seconds."""
        if time.monotonic() - self._saved < every:
            return
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            self.docstore.persist(str(new.absolute()))
            os.replace(new, self.path)  # never half a file
        except OSError as error:
            raise DemoError(f"{self.path} cannot be written: {error}") from error
        self._saved = time.monotonic()


class InThread(TransformComponent):
    """A transformation that leaves the event loop to those who write to Milvus.

    It works on a slice of nodes at a time, in one thread for all: the model uses every core by
    itself, and tokenizers are not made for two threads at once.
    """

    step: TransformComponent
    thread: ThreadPoolExecutor
    finished: Callable[[int], object] = lambda nodes: None  # told of each slice

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Run the transformation here."""
        return self.step(nodes, **kwargs)

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Run it in the thread."""
        loop = asyncio.get_running_loop()
        done: list[BaseNode] = []
        for start in range(0, len(nodes), EMBED_BATCH):
            some = nodes[start : start + EMBED_BATCH]
            done += await loop.run_in_executor(self.thread, partial(self.step, some, **kwargs))
            self.finished(len(some))
        return done


def parse_arguments() -> argparse.Namespace:
    """The command line; a mistake in it ends the program with status 2."""
    parser = argparse.ArgumentParser(
        description="Keep a collection in Milvus equal to a folder of text files."
    )
    add = parser.add_argument
    add("folder", type=Path, help="folder with .txt and .md files in UTF-8")
    uri = os.environ.get("MILVUS_URI") or "./examples.db"
    add("--uri", default=uri, help="server, or file of Milvus Lite (MILVUS_URI; %(default)s)")
    add("--token", help="user:password or API key of the server (MILVUS_TOKEN)")
    add("--collection", default="documents", help="made where it is missing (%(default)s)")
    add("--workers", type=positive, default=2, metavar="N", help="batches at once (%(default)s)")
    add("--docstore", type=Path, metavar="FILE", help="by default beside the database")
    add("--embed-model", metavar="MODEL", help="the same at every run on a collection")
    return parser.parse_args()


async def ingest(args: argparse.Namespace) -> None:
    """Bring the collection up to date with the folder."""
    folder = args.folder.resolve()
    documents, unread = read_folder(folder)
    embed_model = load_embed_model(args.embed_model)
    store = MilvusVectorStore(
        uri=args.uri,
        token=args.token or os.environ.get("MILVUS_TOKEN", ""),
        collection_name=args.collection,
        dim=len(embed_model.get_query_embedding("How many dimensions?")),
        upsert_mode=True,
    )
    async with store:
        state = State(args.docstore or docstore_beside(store))
        hashes = state.hashes()
        if hashes and not await count_rows(store):
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


def read_folder(folder: Path) -> tuple[list[Document], set[str]]:
    """Read the text files of a folder; tells which it leaves out.

    Returns:
        The documents, and the ids of those that are there and cannot be read at the moment.
    """
    if not folder.is_dir():
        raise DemoError(f"{folder} is not a folder.")
    documents, unread = [], set()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        try:
            name.encode()  # a name in another encoding cannot be an id
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            unread.add(str(path))
            print(f"Skipped {name}: {error.strerror}. What is stored of it stays.")
            continue
        except UnicodeError:
            text = "\0"
        if "\0" in text or not text.strip():
            print(f"Skipped {name}: no text in UTF-8.")
            continue
        documents.append(
            Document(
                id_=str(path),
                text=text,
                metadata={"folder": str(folder), "file": name},
                # A long path would leave no room in a passage.
                excluded_embed_metadata_keys=["folder", "file"],
                excluded_llm_metadata_keys=["folder", "file"],
            )
        )
    if not documents:
        # An empty folder is more often a disk that is not mounted than the wish to delete all.
        raise DemoError(f"{folder} holds no .txt or .md file with text in it; nothing was changed.")
    size = sum(len(document.text) for document in documents)
    print(f"Read {count(documents, 'file')}, {size / 1000:.0f} thousand characters.")
    return documents, unread


def docstore_beside(store: MilvusVectorStore) -> Path:
    """The file of the document store: beside a file of Milvus Lite, or here for a server."""
    name = f"{store.collection_name}.docstore.json"
    if store.uri.endswith(".db"):
        database = Path(store.uri)
        return database.with_name(f"{database.stem}.{name}")
    address = urlsplit(store.uri)
    return Path(f"{address.hostname}.{address.port or 443}.{name}")


async def count_rows(store: MilvusVectorStore) -> int:
    """Rows of the collection."""
    return await store.acount(consistency_level="Strong")


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


def run() -> int:
    """Run `ingest` and turn what a user can mend into a sentence."""
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    sys.stderr.reconfigure(errors="replace")
    try:
        asyncio.run(ingest(parse_arguments()))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    except (DemoError, MilvusVectorStoreError) as error:
        problem = str(error)
    except ImportError as error:
        problem = f"{error}. Install what it needs: {INSTALL}"
    else:
        return 0
    print(f"ingest_folder.py: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run())
