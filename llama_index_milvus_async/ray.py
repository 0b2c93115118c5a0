"""Write datasets of Ray Data to a collection, and read collections as datasets.

Needs Ray: `pip install "llama-index-milvus-async[ray]"`. Rows have these columns:

| column | what it is to a write |
|---|---|
| `id` | the node's id; without one a hash of the rest of the row, so that equal rows are one node |
| `text` | its text |
| `embedding` | its vector, as a list or an array of numbers |
| `doc_id` | the document that it is of |
| `node` | a node of LlamaIndex, or its JSON (`row_of_node`); other columns are changes to it |
| any other | metadata under the name of the column; nulls are left out |

`read_nodes` has the first five, of every node.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from ray.data import Dataset, Datasink, Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata

from ._concurrency.drivers import run_on_own_loop
from ._lifecycle import check_store, collection_of
from ._translation.layout import NODE_CONTENT_FIELD, NODE_TYPE_FIELD
from ._wire.address import Address
from .errors import (
    ConfigurationError,
    NodeError,
    PartialWriteError,
    RequestTimeoutError,
    ServerError,
    UnreachableError,
)
from .migration._ids import IdOrder
from .migration._sides import STRONG
from .store import MilvusVectorStore

__all__ = [
    "FailedRow",
    "MilvusDatasink",
    "MilvusDatasource",
    "WriteSummary",
    "read_nodes",
    "row_of_node",
]

_ID, _TEXT, _EMBEDDING, _DOC_ID, _NODE = "id", "text", "embedding", "doc_id", "node"
_KNOWN = frozenset({_ID, _TEXT, _EMBEDDING, _DOC_ID, _NODE})
#: Under which LlamaIndex's own helpers have a node as JSON, and its class.
_NODE_KEYS = (NODE_CONTENT_FIELD, NODE_TYPE_FIELD)
#: Nodes that are written, or read, at a time.
_BATCH_SIZE = 1_000
#: Seconds between two attempts while Milvus cannot be reached.
_PAUSE = 1.0
#: Milvus cannot be reached, or has not answered; a later attempt may be answered.
_PASSING = (UnreachableError, RequestTimeoutError)
_SCHEMA = pa.schema(
    {
        _ID: pa.string(),
        _TEXT: pa.string(),
        _DOC_ID: pa.string(),
        _EMBEDDING: pa.list_(pa.float32()),
        _NODE: pa.string(),
    }
)


@dataclass(frozen=True)
class FailedRow:
    """A row that could not be stored.

    Attributes:
        id: The id of its node.
        problem: What is wrong with it.
    """

    id: str
    problem: str


@dataclass(frozen=True)
class WriteSummary:
    """What a write has done.

    Attributes:
        rows_written: Rows that Milvus has acknowledged. A task of Ray that ran twice counts once,
            and so do its rows.
        failures: Rows that could not be stored, with `skip_failures`.
    """

    rows_written: int = 0
    failures: Sequence[FailedRow] = field(default_factory=list)


class MilvusDatasink(Datasink[WriteSummary]):  # type: ignore[misc]
    """Writes a dataset to a collection: `dataset.write_datasink(MilvusDatasink(store))`.

    The driver connects first: it makes the collection where it is missing, and drops it where the
    store says `overwrite=True`. Each process of a worker then has one store, which it keeps for all
    its tasks and closes when it ends. A task that is repeated, because its worker died or because
    the job is run again, leaves one row for each id, since nodes are upserted.

    The store travels to the workers with its token and password.

    Args:
        store: The collection. Its URI is that of a server, which all workers reach by it.
        skip_failures: Whether rows that cannot be stored are left out and reported in `summary`. By
            default the first batch with one fails the job.
        patience: Seconds for which a task goes on trying while Milvus cannot be reached, beyond the
            store's own timeout. A restart of Milvus takes less than a minute.

    Attributes:
        summary: What was written; `None` until `write_datasink` has returned.

    Raises:
        ConfigurationError: The store is in this process's own files (Milvus Lite), which other
            processes cannot open, or would keep a repeated row twice (`upsert_mode=False`).
    """

    def __init__(
        self, store: MilvusVectorStore, *, skip_failures: bool = False, patience: float = 300.0
    ) -> None:
        _check_store(store)
        if not store.upsert_mode:
            raise ConfigurationError(
                "upsert_mode=False would keep the rows of a task that Ray repeats twice; build the "
                "store with upsert_mode=True"
            )
        self._store = store
        self._key = uuid.uuid4().hex
        self._skip_failures = skip_failures
        self._patience = patience
        self.summary: WriteSummary | None = None

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Makes the collection, on the driver."""
        if schema is not None and not {_TEXT, _NODE} & set(schema.names):
            raise ConfigurationError(
                f"the dataset has the columns {schema.names}, and neither {_TEXT!r} nor {_NODE!r}; "
                f"rename the one with the texts: dataset.rename_columns({{...: {_TEXT!r}}})"
            )
        self._store.connect()

    def write(self, blocks: Iterable[Block], ctx: Any) -> WriteSummary:
        """Writes the blocks of one task, on a worker."""
        store = _store_of_process(self._key, self._store)
        written, failures = 0, []
        for nodes in _batches(map(_node_of, _rows_of(blocks))):
            refused: dict[str, str] = {}
            try:
                self._add(store, nodes)
            except NodeError as error:
                if not self._skip_failures:
                    raise
                refused = dict(error.problems)
                nodes = [node for node in nodes if node.node_id not in refused]
                self._add(store, nodes)
            written += len(nodes)
            failures += [FailedRow(*problem) for problem in refused.items()]
        return WriteSummary(written, failures)

    def on_write_complete(self, write_result: Any) -> None:
        """Adds up what the tasks have done, on the driver."""
        parts: list[WriteSummary] = write_result.write_returns
        self.summary = WriteSummary(
            sum(part.rows_written for part in parts),
            [failure for part in parts for failure in part.failures],
        )

    def _add(self, store: MilvusVectorStore, nodes: Sequence[BaseNode]) -> None:
        """Adds nodes, again and again while Milvus cannot be reached: they are upserted."""
        until = time.monotonic() + self._patience
        while True:
            try:
                store.add(nodes)
                return
            except ServerError as error:
                cause = error.__cause__ if isinstance(error, PartialWriteError) else error
                if not isinstance(cause, _PASSING) or time.monotonic() > until:
                    raise
            time.sleep(_PAUSE)


class MilvusDatasource(Datasource):  # type: ignore[misc]
    """Reads the nodes of a collection; see `read_nodes`."""

    def __init__(self, store: MilvusVectorStore, filters: MetadataFilters | None = None) -> None:
        super().__init__()
        _check_store(store)
        self._store = store
        self._filters = filters
        self._key = uuid.uuid4().hex

    def estimate_inmemory_data_size(self) -> int | None:
        """The size of the vectors, where they are known to be all."""
        if self._store.dim is None:
            return None
        return 4 * self._store.dim * self._store.count(self._filters, consistency_level=STRONG)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for each range of ids, all of about the same size."""
        count = self._store.count(self._filters, consistency_level=STRONG)
        rows = max(1, -(-count // max(1, parallelism)))
        tasks = max(1, -(-count // rows))
        with closing(self._store.iter_ids(self._filters, consistency_level=STRONG)) as ids:
            # The last range has no end.
            ends = list(islice(ids, rows - 1, rows * (tasks - 1), rows))
        ranges = zip([None, *ends], [*ends, None], strict=True)
        is_integer = run_on_own_loop(collection_of(self._store)).layout.integer_ids
        order = IdOrder(is_integer, is_integer)
        read = partial(_read, self._key, self._store, self._filters, order)
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(partial(read, after, last), metadata, schema=_SCHEMA) for after, last in ranges
        ]


def read_nodes(
    store: MilvusVectorStore,
    filters: MetadataFilters | None = None,
    *,
    override_num_blocks: int | None = None,
    **kwargs: Any,
) -> Dataset:
    """The nodes of a collection as a dataset of Ray Data.

    The columns are those that `MilvusDatasink` takes, so that a dataset which is read, changed and
    written keeps the ids, metadata and relationships of its nodes. To begin with, the driver reads
    all ids, in order to give each task a range of them.

    Args:
        store: The collection, on a server that all workers reach by the store's URI.
        filters: Metadata filters; all nodes by default.
        override_num_blocks: In how many ranges the nodes are read.
        **kwargs: What else `ray.data.read_datasource` takes, such as `concurrency`.

    Returns:
        The dataset. It is read when it is used, as every dataset of Ray.

    Raises:
        ConfigurationError: The store is in this process's own files (Milvus Lite).
        FilterError: A filter cannot be expressed.
        ServerError: Milvus refused or could not be reached.
    """
    source = MilvusDatasource(store, filters)
    return ray.data.read_datasource(source, override_num_blocks=override_num_blocks, **kwargs)


def _check_store(store: MilvusVectorStore) -> None:
    check_store("store", store)
    if Address(store.uri).is_lite:
        raise ConfigurationError(
            f"uri={store.uri!r} is Milvus Lite inside one process, and the workers of Ray are "
            "others. Run `milvus-lite server` on the folder, or a Milvus server, and pass its URI"
        )


#: The stores of this process, by the dataset that they are for.
_stores: dict[str, MilvusVectorStore] = {}


def _store_of_process(key: str, store: MilvusVectorStore) -> MilvusVectorStore:
    """The store that all tasks of a dataset use in this process."""
    if key not in _stores:
        _stores[key] = store
        atexit.register(store.close)
    return _stores[key]


def _rows_of(blocks: Iterable[Block]) -> Iterator[Mapping[str, Any]]:
    for block in blocks:
        yield from BlockAccessor.for_block(block).iter_rows(public_row_format=True)


def _batches(nodes: Iterator[BaseNode]) -> Iterator[list[BaseNode]]:
    while batch := list(islice(nodes, _BATCH_SIZE)):
        yield batch


def _node_of(row: Mapping[str, Any]) -> BaseNode:
    """The node that a row describes."""
    present = {name: value for name, value in row.items() if value is not None}
    given = present.get(_NODE)
    if isinstance(given, BaseNode):
        node = given
    elif isinstance(given, str):
        node = metadata_dict_to_node(json.loads(given))
    else:
        node = TextNode(id_=str(present[_ID]) if _ID in present else _hash_of(present))
    if _ID in present:
        node.id_ = str(present[_ID])
    if _TEXT in present and present[_TEXT] != node.get_content(metadata_mode=MetadataMode.NONE):
        node.set_content(present[_TEXT])
    if _EMBEDDING in present:
        node.embedding = np.asarray(present[_EMBEDDING], dtype=np.float32).tolist()
    if _DOC_ID in present and present[_DOC_ID] != node.ref_doc_id:
        document = RelatedNodeInfo(node_id=str(present[_DOC_ID]))
        node.relationships[NodeRelationship.SOURCE] = document
    node.metadata.update({name: present[name] for name in present.keys() - _KNOWN})
    return node


def _hash_of(row: Mapping[str, Any]) -> str:
    """An id that the same row has in each run, whatever its vector and the order of columns."""
    told = {name: value for name, value in row.items() if name != _EMBEDDING}
    content = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _read(
    key: str,
    store: MilvusVectorStore,
    filters: MetadataFilters | None,
    order: IdOrder,
    after: str | None,
    last: str | None,
) -> Iterator[pa.Table]:
    """The nodes of one task, behind one id and up to another one."""
    own = _store_of_process(key, store)
    nodes: Iterator[BaseNode] = own.iter_nodes(
        filters,
        batch_size=_BATCH_SIZE,
        include_embeddings=True,
        after=after,
        consistency_level=STRONG,
    )
    if last is not None:  # which may have been deleted meanwhile
        end = order.key(last)
        nodes = takewhile(lambda node: order.key(node.node_id) <= end, nodes)
    for batch in _batches(nodes):
        yield pa.Table.from_pylist([row_of_node(node) for node in batch], schema=_SCHEMA)


def row_of_node(node: BaseNode) -> dict[str, Any]:
    """A node as a row with the first five columns, which a dataset can hold without pickling it.

    Args:
        node: The node, with or without embedding.

    Returns:
        The row. Written, it becomes an equal node.
    """
    content = node_to_metadata_dict(node)
    return {
        _ID: node.node_id,
        _TEXT: node.get_content(metadata_mode=MetadataMode.NONE),
        _DOC_ID: node.ref_doc_id,
        _EMBEDDING: node.embedding,
        _NODE: json.dumps({name: content[name] for name in _NODE_KEYS}),
    }
