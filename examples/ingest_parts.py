"""What `ingest_folder.py` is built of: its memory, its files, and steps that run in a thread."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llama_index.core import Document
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from shared import DemoError, count

from llama_index_milvus_async import MilvusVectorStore

SUFFIXES = (".txt", ".md")
#: Passages that the model embeds at once; an interruption waits for that many.
EMBED_BATCH = 32


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
