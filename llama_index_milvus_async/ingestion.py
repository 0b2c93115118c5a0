"""From documents to rows: read, split, embedded and written at the same time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from llama_index.core import Settings
from llama_index.core.ingestion import DocstoreStrategy
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.storage.docstore.types import BaseDocumentStore

from ._arguments import read_call_options
from ._checks import one_of
from ._concurrency.drivers import acall, run_on_own_loop
from ._ingestion.documents import Documents
from ._ingestion.pipeline import Counts, Pipeline
from ._ingestion.source import check_source
from ._ingestion.transformations import Transformations, check_transformations
from ._lifecycle import check_store
from ._retrieval.options import WriteOptions
from ._retrieval.values import check_count, check_flag, described
from .errors import ConfigurationError
from .store import MilvusVectorStore

__all__ = ["IngestResult", "aingest", "ingest"]

#: What is read: documents or nodes, or lists of them, as LlamaIndex's readers yield.
Source: TypeAlias = (
    Iterable[BaseNode]
    | Iterable[Sequence[BaseNode]]
    | AsyncIterable[BaseNode]
    | AsyncIterable[Sequence[BaseNode]]
)

#: Nodes of a batch: some calls of a model in this process or one of a service, and one insert.
DEFAULT_BATCH_SIZE = 100
#: Batches of each stage at once: enough for a service with eight requests under way, and for a
#: server that takes long for each insert.
DEFAULT_MAX_IN_FLIGHT = 4


@dataclass(frozen=True)
class IngestResult:
    """What an ingestion has done.

    Attributes:
        documents: How many documents (or nodes) of the source are done.
        unchanged: How many of them were left out, because the docstore knew them.
        deleted: How many documents were deleted, because the source no longer has them.
        nodes: How many nodes were written.
        seconds: How long it took.
        transform_seconds: How long documents were split, and whatever else comes before the
            embedding model. The stages work at the same time.
        embed_seconds: How long nodes were embedded.
        write_seconds: How long rows were written, and those that they replace deleted.
    """

    documents: int = 0
    unchanged: int = 0
    deleted: int = 0
    nodes: int = 0
    seconds: float = 0.0
    transform_seconds: float = 0.0
    embed_seconds: float = 0.0
    write_seconds: float = 0.0


async def aingest(
    store: MilvusVectorStore,
    source: Source,
    transformations: Sequence[TransformComponent] | None = None,
    *,
    docstore: BaseDocumentStore | None = None,
    docstore_strategy: DocstoreStrategy = DocstoreStrategy.UPSERTS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
    on_progress: Callable[[IngestResult], object | Awaitable[object]] | None = None,
    show_progress: bool = False,
    milvus_partition_name: str | None = None,
    timeout: float | None = None,
) -> IngestResult:
    """Ingest documents of a source of any length, without blocking the event loop.

    While a batch is written, the next one is embedded, and the documents after it are read and
    split. A stage waits where the next one is slower, so that memory holds a few batches, however
    long the source is.

    A `Document` replaces the rows that an earlier version of it has, right before its own are
    written; two ingestions of one document at the same time may leave it there twice. A node
    replaces the row of its id, as in `async_add`, and nothing else.

    Args:
        store: Where the rows are written.
        source: A list, a generator or an async generator of documents or nodes, or of lists of
            them (`SimpleDirectoryReader.iter_data()`). A plain one is read in a thread of its own,
            and a generator is closed at the end.
        transformations: LlamaIndex's splitters, extractors and embedding models, as for an
            `IngestionPipeline`. By default those of `Settings`, and `Settings.embed_model`. With
            `[]` the nodes have their embeddings already. Node parsers, and what has no `acall` of
            its own, run in a thread. Embedding models are called as by a
            [`CoalescingEmbedding`][llama_index_milvus_async.CoalescingEmbedding].
        docstore: Remembers a hash of each document whose rows are all written. Documents that have
            not changed are left out.
        docstore_strategy: `UPSERTS`; `UPSERTS_AND_DELETE`, by which documents that the source no
            longer has are deleted at the end; or `DUPLICATES_ONLY`, by which documents with a text
            that is known are left out, and nothing is deleted.
        batch_size: Most nodes that are embedded and written together.
        max_in_flight: Most batches that are embedded, and most that are written, at once.
        on_progress: Called after each batch with what has been done so far: a function, and then
            in a thread, or an `async` one. What it is told of is written and in the docstore.
        show_progress: Show a bar, in a terminal or a notebook.
        milvus_partition_name: The partition to write to, and to delete earlier versions in.
        timeout: Seconds for each request to Milvus; the store's where it is `None`.

    Returns:
        What has been done.

    Raises:
        ConfigurationError: An argument is not allowed. Nothing is read.
        IngestionError: The source, a transformation, the docstore or Milvus failed. It says how
            many documents are complete, and what was written of the next ones.
        MilvusVectorStoreError: As `aconnect` does; nothing is read.
    """
    check_source(source)
    check_store("store", store)
    check_count("batch_size", batch_size, ConfigurationError)
    check_count("max_in_flight", max_in_flight, ConfigurationError)
    check_flag("show_progress", show_progress)
    if docstore is not None and not isinstance(docstore, BaseDocumentStore):
        raise ConfigurationError(
            f"docstore is {described(docstore)}; it must be a document store of LlamaIndex, such "
            "as a SimpleDocumentStore"
        )
    if on_progress is not None and not callable(on_progress):
        raise ConfigurationError(f"on_progress is {described(on_progress)}; it must be a function")
    strategy = one_of("docstore_strategy", docstore_strategy, DocstoreStrategy)
    arguments = {"milvus_partition_name": milvus_partition_name, "timeout": timeout}
    read_call_options(WriteOptions, "aingest", arguments)
    if transformations is None:
        transformations = [*Settings.transformations, Settings.embed_model]
    transformations = check_transformations(transformations)

    started = time.perf_counter()
    await store.aconnect()
    steps = Transformations(transformations)
    with _progress_bar(source, show_progress) as show:

        async def report() -> None:
            result = _result(pipeline.counts, started)
            show(result)
            if on_progress is not None:
                await acall(on_progress, result)

        pipeline = Pipeline(
            store,
            Documents(store, docstore, strategy, arguments),
            steps,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            arguments=arguments,
            report=report,
        )
        try:
            await pipeline.run(source)
        finally:
            steps.close()
    return _result(pipeline.counts, started)


def ingest(
    store: MilvusVectorStore,
    source: Source,
    transformations: Sequence[TransformComponent] | None = None,
    **kwargs: Any,
) -> IngestResult:
    """Ingest documents of a source of any length. Blocks; see `aingest`.

    It runs on an event loop of its own, in a thread of its own where a loop is running here.

    Args:
        store: Where the rows are written.
        source: As for `aingest`.
        transformations: As for `aingest`.
        **kwargs: As for `aingest`.

    Raises:
        IngestionError: As `aingest` does, and whatever else that raises.
    """
    return run_on_own_loop(aingest(store, source, transformations, **kwargs))


def _result(counts: Counts, started: float) -> IngestResult:
    return IngestResult(
        counts.documents,
        counts.unchanged,
        counts.deleted,
        counts.nodes,
        time.perf_counter() - started,
        counts.transforming.seconds,
        counts.embedding.seconds,
        counts.writing.seconds,
    )


@contextmanager
def _progress_bar(source: Any, show: bool) -> Iterator[Callable[[IngestResult], object]]:
    """Show a bar where it is wanted; yields what tells it how far the ingestion is."""
    if not show:
        yield lambda result: None
        return
    from tqdm.auto import tqdm  # not for those who want no bar: it looks for Jupyter's widgets

    total = len(source) if hasattr(source, "__len__") else None
    with tqdm(total=total, desc="Ingesting", unit="document") as bar:

        def update(result: IngestResult) -> None:
            bar.update(result.documents - bar.n)
            bar.set_postfix(nodes=result.nodes)

        yield update
