"""The vector store: its constructor, and the public pairs of its operations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import (
    DEFAULT_DOC_ID_KEY,
    DEFAULT_EMBEDDING_KEY,
    DEFAULT_TEXT_KEY,
)
from pymilvus import DataType

from . import _operations as operations
from ._arguments import CONSTRUCTOR, read_call_options
from ._checks import check_timeout
from ._maintenance import MaintainedStore
from ._retrieval.options import (
    DeleteOptions,
    GetOptions,
    SearchOptions,
    WriteOptions,
    ignored_by_add,
)
from .indexes import IndexManagement

__all__ = ["IndexManagement", "MilvusVectorStore"]

logger = logging.getLogger(__name__)

DEFAULT_URI = "./milvus_llamaindex.db"
DEFAULT_COLLECTION_NAME = "llamacollection"
DEFAULT_ID_FIELD = "id"
DEFAULT_SPARSE_EMBEDDING_KEY = "sparse_embedding"
#: Upstream's default; larger batches gain little over several in flight.
DEFAULT_BATCH_SIZE = 100
#: Seconds for each RPC.
DEFAULT_TIMEOUT = 60.0
#: RPCs at once on one event loop; more gain nothing on a server of two cores.
DEFAULT_MAX_IN_FLIGHT = 8


class MilvusVectorStore(MaintainedStore):
    """LlamaIndex nodes in Milvus, async first.

    A drop-in for `llama_index.vector_stores.milvus.MilvusVectorStore`: arguments keep their
    names, order and defaults, except the default of `upsert_mode`, and rows keep their layout.

    The constructor checks its arguments and does no I/O. The first operation initializes the
    store: it connects, finds or creates the collection and its index, and loads it. One object
    serves any number of event loops and threads. The async methods (`async_add`,
    `aquery`, ...) do not block the event loop; the others (`add`, `query`, ...) block the
    calling thread until Milvus has answered, inside a running loop as well.

    An argument that every operation reads may be assigned later, and acts at the next one:
    `upsert_mode`, `search_config`, `consistency_level`, `output_fields`, `hybrid_ranker`,
    `hybrid_ranker_params`, `query_ranker` and `use_async_client`. The others are fixed:
    `model_copy(update={...})` builds a store with other ones.

    An operation that fails raises a
    [`MilvusVectorStoreError`][llama_index_milvus_async.errors.MilvusVectorStoreError], never an
    exception of Milvus or gRPC. The one that initializes the store may raise what `connect` does,
    and all raise `StoreClosedError` once the store is closed.

    Args:
        uri: Address of a server (`"http://localhost:19530"`, an `https` address of Zilliz
            Cloud), or a path that ends in `.db` for Milvus Lite in this process. A user and
            password in it are moved to `token`.
        token: `"user:password"` or an API key.
        collection_name: The collection, or an alias of one.
        overwrite: Drop an existing collection when the store is initialized: by `connect()`, or by
            the first operation, which refuses to drop what another store of this process has
            written meanwhile. Acts once in the life of this object; copies, unpickled and rebuilt
            stores never do it.
        upsert_mode: `add` replaces the rows of nodes whose id exists. `False` is for first loads:
            a server adds faster, and keeps two rows of an id that is added twice.
        collection_properties: Properties such as `{"collection.ttl.seconds": 3600}`, set where
            the collection has other values.
        doc_id_field: Column of the id of a node's source document.
        text_key: Column of the text.
        scalar_field_names: Metadata keys that get a column of their own in a new collection.
        scalar_field_types: Their `pymilvus.DataType`s, one for each name.
        enable_dense: Whether nodes have dense embeddings.
        dim: Dimension of the embeddings. By default that of the collection; a new one is made by
            the first `add`, with the dimension of its nodes. Until then nothing is found in it.
        embedding_field: Column of the embeddings.
        enable_sparse: Whether nodes have sparse embeddings, for the modes `SPARSE`,
            `TEXT_SEARCH` and `HYBRID`. Needs Milvus 2.4, or Milvus Lite.
        sparse_embedding_field: Column of the sparse embeddings.
        sparse_embedding_function: Who computes them: Milvus itself by a
            [`BM25BuiltInFunction`][llama_index_milvus_async.sparse.BM25BuiltInFunction] over
            `text_key`, which is the default and needs Milvus 2.5; or this process, by a
            [`BaseSparseEmbeddingFunction`][llama_index_milvus_async.sparse.BaseSparseEmbeddingFunction],
            LlamaIndex's `BaseSparseEmbedding`, or a pair of functions (plain or `async`) that
            make of a list of texts a list of `{index: value}`, of queries and of documents.
            A node that has its sparse embedding in its metadata already, as `{index: value}` under
            the column's name, keeps it; it is not stored as metadata. The function is called once
            for the other texts of a batch, one call at a time on each event loop, and never on
            the loop unless it is async; blocking calls in several threads call it at the
            same time. Pass it again to a store that is rebuilt from `to_dict`.
        index_management: Whether to create a missing index.
        batch_size: Most rows of one insert; its bytes are bounded besides.
        index_config: `index_type` (default `"FLAT"`), `metric_type` and the parameters of the
            dense index where it is created. An existing one is taken as it is; only a metric that
            is named here, or as `similarity_metric`, has to be its own.
        sparse_index_config: The same for the sparse index (default
            `"SPARSE_INVERTED_INDEX"`; metric `"BM25"` for Milvus's function, `"IP"` otherwise).
        search_config: Search parameters of the dense index, such as `{"ef": 64}`.
        similarity_metric: `"IP"`, `"L2"` (or `"euclidean"`) or `"COSINE"`. By default an
            existing collection keeps the metric that its index has, and a new one gets `"IP"`.
            Similarities rise with relevance for each; for L2 they are
            `1 / (1 + squared distance)`.
        consistency_level: `"Strong"`, `"Session"`, `"Bounded"` or `"Eventually"`: the level
            of a new collection, and of every read that names none.
        output_fields: Fields to fetch with each hit. Naming `embedding_field` returns nodes
            with their embeddings. For rows that were not written through LlamaIndex they are
            the metadata, which is every scalar field by default.
        hybrid_ranker: How the legs of a hybrid search become one list: `"RRFRanker"`,
            `"WeightedRanker"`, a pymilvus ranker, `Function` of type `RERANK` or `FunctionScore`,
            or a callable that runs here and takes the query and a list of `NodeWithScore` for each
            leg. It may be a coroutine function; async queries call another one in a thread.
        hybrid_ranker_params: `{"k": 60}`, or `{"weights": [1.0, 1.0], "norm_score": True}`:
            dense and sparse, in 0..1.
        use_async_client: Without it, the async methods run the sync client in a
            thread.
        id_field: Column of the node ids, the primary key.
        timeout: Seconds for one RPC, including its retries. `None`: no deadline; the store gives up
            some 15 seconds after it lost the connection, and waits for ever for a frozen server.
            Operations have a `timeout` of their own, whose `None` means this one.
        max_in_flight: How many RPCs are sent at the same time on each event loop.
        dense_fields: Further dense embeddings: column name to settings, `dim` and optionally
            `metric_type`, `type` (`DataType.FLOAT_VECTOR`, `FLOAT16_VECTOR`, `BFLOAT16_VECTOR`,
            `INT8_VECTOR` or `BINARY_VECTOR`), `index_type` and parameters of the index. A node
            carries such an embedding in its metadata, under the column's name; there it is
            neither stored nor returned, unless `output_fields` names it. With
            `enable_dense=False` the first one is that of `node.embedding`.
        coalesce: Async calls that wait at the same time and ask for the same kind of
            thing share RPCs. `False` sends each on its own.
        scalar_fields: Columns for metadata keys, beside `scalar_field_names`: key to settings.
            `type` is any scalar `pymilvus.DataType`, `JSON`, `TIMESTAMPTZ` or `ARRAY`; there are
            `max_length` (of texts), `element_type` and `max_capacity` (of an `ARRAY`), `nullable`
            and `default`, which Milvus has since 2.5 (a server without them refuses nodes without
            a value), and `index`: `True` for what the engine has, an index type such as
            `"INVERTED"`, or a dictionary of `index_type` and its parameters. A type alone stands
            for `{"type": ...}`.
        metadata_indexes: Indexes for metadata keys that have no column: key to the type of its
            values, `DataType.VARCHAR`, `DOUBLE` (of all numbers) or `BOOL`, or for lists of these
            `{"type": DataType.ARRAY, "element_type": ...}`. A key is written as in filters,
            `"stats.year"` for a nested one. Needs Milvus 2.6.
        index_doc_id: Whether the document id has an index, by which `delete` and refreshing find
            their rows. By default a new collection gets one where the engine has any; `True`
            adds it to an existing collection.
        num_shards: The shards of a new collection.
        replica_number: How many copies of the collection are loaded, also where one that was
            released is loaded again.
        partition_key_field: The metadata key by whose values Milvus spreads the nodes over
            partitions: a filter with `==` or `in` on it reads only theirs. It gets a column
            (`VARCHAR`, or what `scalar_fields` says, `INT64`). A node without a value is an error,
            and so is a named partition.
        num_partitions: How many partitions those are; Milvus' own number is 16. Milvus Lite has 16.
        partition_key_isolation: Whether each value of the partition key has an index of its own,
            where every search filters by one value. Needs Milvus 2.5.
        description: The description of a new collection. Milvus Lite keeps neither it nor the
            number of shards.
        query_ranker: What ranks the hits of every search, in each mode: a `Function` of type
            `RERANK` that decays, boosts or asks a model, or a `FunctionScore`, which need Milvus
            2.6 or Milvus Lite 3; or a callable as for `hybrid_ranker`, which works everywhere, such
            as [`NewestFirst`][llama_index_milvus_async.NewestFirst]. A `milvus_ranker` and
            an `alpha` between 0 and 1 of the query come before it, and for hybrid searches
            `hybrid_ranker` and `hybrid_ranker_params` where one of them is not the default.
        **kwargs: Those of the pymilvus clients: `db_name`, `user`, `password`, `secure`,
            `server_pem_path`, `client_pem_path`, `client_key_path`, `ca_pem_path`,
            `server_name`, `grpc_options`, `alias`, ... Any other name raises.

    Raises:
        ConfigurationError: An argument is not allowed. The message says what is.

    Examples:
        ```python
        from llama_index.core import StorageContext, VectorStoreIndex
        from llama_index_milvus_async import MilvusVectorStore

        store = MilvusVectorStore(uri="./milvus.db", dim=384)
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex.from_documents(documents, context, use_async=True)
        answer = await index.as_query_engine(use_async=True).aquery("...")
        ```

    Note:
        Token and password are never shown: not in `repr`, `to_dict`, `to_json`, logs or
        exceptions, so that a store rebuilt from those has to be given them again. `pickle` and
        `copy` do carry them, for the other processes of the same application.
    """

    def __init__(
        self,
        uri: str = DEFAULT_URI,
        token: str = "",
        collection_name: str = DEFAULT_COLLECTION_NAME,
        overwrite: bool = False,
        upsert_mode: bool = True,
        collection_properties: dict[str, Any] | None = None,
        doc_id_field: str = DEFAULT_DOC_ID_KEY,
        text_key: str = DEFAULT_TEXT_KEY,
        scalar_field_names: list[str] | None = None,
        scalar_field_types: list[DataType] | None = None,
        enable_dense: bool = True,
        dim: int | None = None,
        embedding_field: str = DEFAULT_EMBEDDING_KEY,
        enable_sparse: bool = False,
        sparse_embedding_field: str = DEFAULT_SPARSE_EMBEDDING_KEY,
        sparse_embedding_function: Any = None,
        index_management: IndexManagement = IndexManagement.CREATE_IF_NOT_EXISTS,
        batch_size: int = DEFAULT_BATCH_SIZE,
        index_config: dict[str, Any] | None = None,
        sparse_index_config: dict[str, Any] | None = None,
        search_config: dict[str, Any] | None = None,
        similarity_metric: str | None = None,
        consistency_level: str = "Session",
        output_fields: list[str] | None = None,
        hybrid_ranker: Any = "RRFRanker",
        hybrid_ranker_params: dict[str, Any] = {},  # noqa: B006 (upstream's default; never changed)
        use_async_client: bool = True,
        *,
        id_field: str = DEFAULT_ID_FIELD,
        timeout: float | None = DEFAULT_TIMEOUT,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        coalesce: bool = True,
        dense_fields: Mapping[str, Mapping[str, Any]] | None = None,
        scalar_fields: Mapping[str, Any] | None = None,
        metadata_indexes: Mapping[str, Any] | None = None,
        index_doc_id: bool | None = None,
        num_shards: int | None = None,
        replica_number: int | None = None,
        partition_key_field: str | None = None,
        num_partitions: int | None = None,
        partition_key_isolation: bool = False,
        description: str | None = None,
        query_ranker: Any = None,
        **kwargs: Any,
    ) -> None:
        given = locals()
        fields = {name: given[name] for name in type(self).model_fields if name in given}
        super().__init__(**fields, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes the class."""
        return "MilvusVectorStore"

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Write nodes. Blocks.

        The nodes are checked before anything is written. Batches are bounded by `batch_size`
        and by bytes. A node replaces the row that has its id, unless `upsert_mode` is `False`. Of
        nodes with the same id in one call the last is kept, with a warning.

        Args:
            nodes: Nodes with embeddings of the collection's dimension, or a single one. An empty
                list is allowed.
            **add_kwargs: `milvus_partition_name` (str), the partition to write to;
                `force_flush` (bool), to seal the rows before returning; `show_progress` (bool),
                to show a bar, in a terminal or a notebook; `timeout` (float), seconds for each
                RPC, the store's where it is `None`. What `VectorStoreIndex.from_documents` hands
                on besides, such as `llm`, is ignored with a warning.

        Returns:
            The ids of the nodes, in their order.

        Raises:
            ConfigurationError: `nodes` are not nodes; a keyword argument is like one of these and
                unknown, belongs to the constructor, or is not allowed.
            CollectionError: The collection numbers its rows itself (`auto_id`), or needs vectors
                that nodes do not have, or a sparse embedding function that the store does not have.
            EncoderError: The sparse embedding function returned something that is not an
                embedding. Nothing was written.
            NodeError: Nodes lack an embedding, have one of another dimension or with NaN, or a
                text, id or metadata that Milvus cannot hold. Nothing was written.
            PartialWriteError: A batch failed after others were written.
            WriteOutcomeUnknownError: With `upsert_mode=False`, the connection was lost, or the
                time was over, during an insert, which must not be repeated. The error has the ids.
            ServerError: Milvus refused or could not be reached.
        """
        options = self._write_options("add", add_kwargs)
        return self._block("add", operations.add, nodes, options)

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Write nodes without blocking the event loop; see `add`.

        Up to `max_in_flight` batches are sent at the same time.
        """
        options = self._write_options("async_add", add_kwargs)
        return await self._await("async_add", operations.add, nodes, options)

    def delete(self, ref_doc_id: str | list[str], **delete_kwargs: Any) -> None:
        """Delete every node of a document, or of several. Blocks.

        A document that was added whole, as one node without a source document, is deleted by the
        id of that node.

        Args:
            ref_doc_id: The id of the document, or a list of ids.
            **delete_kwargs: `milvus_partition_name` (str), to delete within one partition only;
                `timeout` (float), seconds for each RPC, the store's where it is `None`.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: An id is not a string; nothing is deleted.
            FilterError: The collection has no document ids.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(DeleteOptions, "delete", delete_kwargs)
        return self._block("delete", operations.delete, ref_doc_id, options)

    async def adelete(self, ref_doc_id: str | list[str], **delete_kwargs: Any) -> None:
        """Delete every node of a document without blocking the event loop; see `delete`."""
        options = read_call_options(DeleteOptions, "adelete", delete_kwargs)
        return await self._await("adelete", operations.delete, ref_doc_id, options)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by filter, or those that both select. Blocks.

        Args:
            node_ids: Ids, any number. An empty list deletes nothing.
            filters: Metadata filters, or a single one.
            **delete_kwargs: `milvus_partition_name` (str) and `timeout` (float), as for `delete`.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: Neither ids nor filters are given; nothing is deleted.
            FilterError: A filter cannot be expressed; nothing is deleted.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(DeleteOptions, "delete_nodes", delete_kwargs)
        return self._block("delete_nodes", operations.delete_nodes, node_ids, filters, options)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes without blocking the event loop; see `delete_nodes`."""
        options = read_call_options(DeleteOptions, "adelete_nodes", delete_kwargs)
        return await self._await(
            "adelete_nodes", operations.delete_nodes, node_ids, filters, options
        )

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Read nodes by id, by filter, or those that both select. Blocks.

        Args:
            node_ids: Ids, any number; those that are not in the collection are left out.
            filters: Metadata filters, or a single one. Filters without a condition select every
                node.
            **kwargs: `milvus_partition_names` (str or list); `consistency_level` (str);
                `timeout` (float), seconds for each RPC, the store's where it is `None`;
                `output_fields` (list), fields in place of the store's; `include_embeddings` (bool),
                `False` to leave out the embeddings that `output_fields` does not name; and `limit`
                (int), most nodes, the first ones of the order below.

        Returns:
            The nodes, in the order of `node_ids`, or else of the primary key. They carry their
            embeddings, those of `dense_fields` in their metadata, so that `add` takes them back.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: Neither ids nor filters are given, or the limit is less than 1.
            FilterError: A filter cannot be expressed.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(GetOptions, "get_nodes", kwargs)
        return self._block("get_nodes", operations.get_nodes, node_ids, filters, options)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Read nodes without blocking the event loop; see `get_nodes`."""
        options = read_call_options(GetOptions, "aget_nodes", kwargs)
        return await self._await("aget_nodes", operations.get_nodes, node_ids, filters, options)

    def clear(self, *, timeout: float | None = None) -> None:
        """Delete every node; the store can be used again at once. Blocks.

        The rows are deleted: collection, index, partitions, aliases and grants stay.

        Args:
            timeout: Seconds for each RPC; `None` means the store's.

        Raises:
            ConfigurationError: `timeout` is not allowed.
            ServerError: Milvus refused or could not be reached.
        """
        check_timeout(timeout)
        return self._block("clear", operations.clear, timeout)

    async def aclear(self, *, timeout: float | None = None) -> None:
        """Delete every node without blocking the event loop; see `clear`."""
        check_timeout(timeout)
        return await self._await("aclear", operations.clear, timeout)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes most similar to a query. Blocks.

        The query's `filters`, `doc_ids` and `node_ids`, and `string_expr` and
        `milvus_scalar_filters`, all apply: a node has to pass each.

        Args:
            query: `DEFAULT` and `MMR` need `query_embedding`, `SPARSE` and `TEXT_SEARCH`
                `query_str`, `HYBRID` both. `DEFAULT` with filters, ids or `string_expr` and no
                embedding returns the first nodes that match, in the order of the primary key,
                without similarities (`None`). Numbers of hits are 1 to 16,384. `SPARSE` and
                `TEXT_SEARCH` return `sparse_top_k`, `HYBRID` returns `hybrid_top_k`, where they
                are given, and `similarity_top_k` otherwise. The legs of a hybrid search find
                exactly `similarity_top_k` dense and `sparse_top_k` sparse candidates; a text
                without a word that the sparse side knows has no sparse ones. `alpha` weighs
                the scores of the legs, each scaled to 0..1: 1 is dense only, 0 is sparse only;
                without it the ranker decides.
                `embedding_field` and `output_fields` replace the store's.
            **kwargs: `milvus_partition_names` (str or list); `milvus_scalar_filters`;
                `milvus_search_config` (dict) in place of the store's `search_config`, also with
                `radius` and `range_filter`; `sparse_search_config`, the same for the sparse field;
                `milvus_ranker`, in place of the store's `query_ranker` or `hybrid_ranker`: it ranks
                what the search finds before the first of that are returned, or before MMR chooses
                from the first; `ranker_prefetch_k` (int), how many hits it ranks where one field
                is searched, 4 times as many as are wanted by default; `hybrid_fields` (list),
                the dense fields of a hybrid search, of which two need no sparse one, or a
                dictionary of such fields to embeddings, `None` for that of the query; `string_expr`
                (str), a Milvus boolean expression; `offset` (int), hits to skip, which for `HYBRID`
                and `MMR`, and with a ranker, have to be among the candidates; `group_by_field`
                (str), `group_size` (int) and `strict_group_size` (bool); `score_threshold` (float),
                the least similarity, for `MMR` of a candidate; `mmr_threshold` (0..1), and
                `mmr_prefetch_factor` or `mmr_prefetch_k` for the candidates of MMR, which
                `mmr_over="hybrid"` finds by a hybrid search; `consistency_level` (str); `timeout`
                (float), seconds for each RPC, the store's where it is `None`.

        Returns:
            Nodes, similarities and ids, best first. Similarities rise with relevance for every
            metric; where hits are ranked, and for `HYBRID`, they are the ranker's scores, for `MMR`
            those of the choice.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            CollectionError: The collection needs a sparse embedding function that the store does
                not have.
            QueryError: The mode is not supported, or lacks what it needs.
            EncoderError: The sparse embedding function returned something that is not an
                embedding.
            FilterError: A filter cannot be expressed.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(SearchOptions, "query", kwargs)
        return self._block("query", operations.query, query, options)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the most similar nodes without blocking the event loop; see `query`."""
        options = read_call_options(SearchOptions, "aquery", kwargs)
        return await self._await("aquery", operations.query, query, options)

    def query_many(
        self, queries: Sequence[VectorStoreQuery], **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """Answer several queries in as few RPCs as possible. Blocks.

        Queries share an RPC where they differ in nothing but the embedding.

        Args:
            queries: As for `query`; an empty list is allowed.
            **kwargs: As for `query`; they apply to all.

        Returns:
            One result for each query, in their order.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            CollectionError: As for `query`; none is sent.
            QueryError: A query lacks what it needs; none is sent.
            EncoderError: The sparse embedding function returned something that is not an
                embedding; no query is sent.
            FilterError: A filter cannot be expressed; none is sent.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(SearchOptions, "query_many", kwargs)
        return self._block("query_many", operations.query_many, queries, options)

    async def aquery_many(
        self, queries: Sequence[VectorStoreQuery], **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """Answer several queries without blocking the event loop; see `query_many`."""
        options = read_call_options(SearchOptions, "aquery_many", kwargs)
        return await self._await("aquery_many", operations.query_many, queries, options)

    @cached_property
    def _ignored(self) -> set[str]:
        """Keyword arguments of `add` that were ignored, with a warning."""
        return set()

    def _write_options(self, operation: str, arguments: dict[str, Any]) -> WriteOptions:
        if ignored := ignored_by_add(arguments, CONSTRUCTOR):
            if not ignored <= self._ignored:
                self._ignored.update(ignored)
                logger.warning(
                    "%s() ignores the keyword arguments %s, which mean nothing to the store",
                    operation,
                    sorted(ignored),
                )
            arguments = {k: v for k, v in arguments.items() if k not in ignored}
        options: WriteOptions = read_call_options(WriteOptions, operation, arguments)
        return options
