"""`export_nodes` and `import_nodes`: nodes to a Parquet file, and from one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters

from .._concurrency.drivers import run_on_own_loop
from .._concurrency.in_order import map_in_order
from .._lifecycle import (
    check_store,
    collection_of,
    drops_collection,
    expected_layout,
    find_collection,
)
from .._maintenance import pages_of_rows
from .._retrieval.values import check_flag, described
from ..errors import ConfigurationError, MigrationError, NodeError, RowError
from ..store import MilvusVectorStore
from ._ids import warn_of_shared_ids
from ._progress import Meter, ProgressCallback, check_callback
from ._sides import STRONG, create_like, open_source

if TYPE_CHECKING:
    from ._parquet_files import NodeFile, RowFile


def export_nodes(
    store: MilvusVectorStore,
    path: str | os.PathLike[str],
    *,
    filters: MetadataFilters | None = None,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
) -> int:
    """Write the nodes of a collection to a Parquet file, embeddings included. Blocks.

    The file has a row for each row of the collection and a column for each of its columns, with
    their names and in the layout that Milvus' bulk import takes: dense vectors are lists of
    numbers, sparse ones and `$meta`, in which the metadata is, are JSON. What a function of Milvus
    computes, such as BM25, is left out. pandas, polars and datasets read it.

    Memory holds some pages of rows, however many there are. The file gets its name when it is
    whole; until then it is a hidden one beside it, whose name ends in `.part`.

    Args:
        store: The collection: the store's own, one of the other package, or any that the store
            reads.
        path: The file.
        filters: Metadata filters; all nodes by default.
        overwrite: Whether a file that is there is replaced.
        on_progress: What is called with a `Progress` after each page.

    Returns:
        The number of rows.

    Raises:
        ConfigurationError: An argument is not allowed, or the file cannot be written.
        CollectionError: A column has a type that cannot be written.
        FilterError: A filter cannot be expressed.
        ImportError: pyarrow is not installed.
        OSError: The file cannot be written to its end, because the disk is full, for instance.
        ServerError: Milvus refused or could not be reached.
    """
    return run_on_own_loop(
        aexport_nodes(store, path, filters=filters, overwrite=overwrite, on_progress=on_progress)
    )


async def aexport_nodes(
    store: MilvusVectorStore,
    path: str | os.PathLike[str],
    *,
    filters: MetadataFilters | None = None,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
) -> int:
    """Write nodes to a Parquet file without blocking the event loop; see `export_nodes`."""
    file_path = _checked(store, path, on_progress)
    check_flag("overwrite", overwrite)
    if file_path.is_dir():
        raise ConfigurationError(f"path={str(path)!r} is a folder; name a file in it")
    if not file_path.parent.is_dir():
        raise ConfigurationError(f"path={str(path)!r}: there is no folder {file_path.parent}")
    if not overwrite and file_path.exists():
        raise ConfigurationError(
            f"path={str(path)!r} is there already; pass overwrite=True (--overwrite) to replace it"
        )
    ready = await open_source(store, "store")
    total = await store.acount(filters, consistency_level=STRONG)
    meter = Meter("export", total, on_progress)
    count = 0

    file = (await asyncio.to_thread(_row_file_class))(file_path, ready)
    try:
        await asyncio.to_thread(file.open)
        async with aclosing(pages_of_rows(store, filters, ready.layout)) as pages:
            async for rows in pages:
                await asyncio.to_thread(file.write, rows)
                count += len(rows)
                meter.add(len(rows))
        await asyncio.to_thread(file.finish)
    except BaseException:
        # Not cut short where the caller is cancelled once more.
        await asyncio.shield(asyncio.to_thread(file.discard))
        raise
    await warn_of_shared_ids(store, filters, total, count)
    return count


def _row_file_class() -> type[RowFile]:
    from ._parquet_files import RowFile  # which takes a while to import

    return RowFile


def import_nodes(
    path: str | os.PathLike[str],
    store: MilvusVectorStore,
    *,
    on_progress: ProgressCallback | None = None,
) -> int:
    """Add the nodes of a Parquet file to a collection. Blocks.

    The file is one of `export_nodes`, from whichever layout to whichever, or another one with
    columns for the ids, the texts and the vectors that have the names which the store gives them
    (`id_field`, `text_key`, `embedding_field`); what further columns it has becomes metadata.
    Columns, ids and all dense vectors are checked before anything is written. Sparse vectors are
    taken from the file where it has them, and computed where not.

    Nodes are added as by `add`: they keep their ids, and with `upsert_mode` those that are there
    are replaced, so that an import that was interrupted is simply run again.

    Args:
        path: The file.
        store: Where to add the nodes. The collection is made where it is missing, with the file's
            dimension and metric where the store names none.
        on_progress: What is called with a `Progress` after each batch.

    Returns:
        The number of nodes.

    Raises:
        ConfigurationError: An argument is not allowed, or the file is not Parquet, lacks columns
            or has vectors that the collection does not take. Nothing was written.
        CollectionError: The collection numbers its rows itself, or needs further vectors.
        MigrationError: A row holds no readable node, or one that cannot be stored. The message says
            how many nodes were written before it.
        ImportError: pyarrow is not installed.
        ServerError: Milvus refused or could not be reached.
    """
    return run_on_own_loop(aimport_nodes(path, store, on_progress=on_progress))


async def aimport_nodes(
    path: str | os.PathLike[str],
    store: MilvusVectorStore,
    *,
    on_progress: ProgressCallback | None = None,
) -> int:
    """Add the nodes of a Parquet file without blocking the event loop; see `import_nodes`."""
    file_path = _checked(store, path, on_progress)
    if not file_path.is_file():
        raise ConfigurationError(f"path={str(path)!r}: there is no such file")
    is_new = drops_collection(store) or await find_collection(store) is None
    layout = expected_layout(store) if is_new else (await collection_of(store)).layout

    def open_file() -> NodeFile:
        from ._parquet_files import NodeFile  # which takes a while to import

        return NodeFile(file_path, layout)

    file = await asyncio.to_thread(open_file)
    written = 0
    try:
        if is_new:
            if drops_collection(store):  # not earlier: the file might not fit
                await store.aconnect()
            if await find_collection(store) is None:
                await create_like(store, file.like)
        meter = Meter("import", file.total, on_progress)
        # The next nodes are made while these are written.
        adding = map_in_order(_batches_of(file), partial(_add, store), 1)
        async with aclosing(adding):
            async for count in adding:
                written += count
                meter.add(count)
    except (NodeError, RowError) as error:
        raise MigrationError(
            f"path={str(path)!r}: the import stopped after {written:,} nodes, because of one of "
            f"the next. {error}"
        ) from error
    finally:
        await asyncio.to_thread(file.close)
    return written


async def _batches_of(file: NodeFile) -> AsyncGenerator[list[BaseNode], None]:
    while nodes := await asyncio.to_thread(file.next):
        yield nodes


async def _add(store: MilvusVectorStore, nodes: list[BaseNode]) -> int:
    await store.async_add(nodes)
    return len(nodes)


def _checked(store: object, path: object, on_progress: object) -> Path:
    """Check the arguments; returns the path.

    Raises:
        ConfigurationError: One is not allowed.
        ImportError: pyarrow is not installed.
    """
    check_store("store", store)
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ConfigurationError(
            f"path is {described(path)}; it must be the path of a Parquet file"
        )
    check_callback(on_progress)
    if find_spec("pyarrow") is None:
        raise ImportError(
            'Parquet files need pyarrow: pip install "llama-index-milvus-async[parquet]"'
        )
    return Path(path)
