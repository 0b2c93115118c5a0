"""The vector store: arguments, their checks, and the public pairs of methods."""

from __future__ import annotations

import asyncio
import copy
import math
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, ValidationError
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import (
    DEFAULT_DOC_ID_KEY,
    DEFAULT_EMBEDDING_KEY,
    DEFAULT_TEXT_KEY,
)
from pymilvus import AsyncMilvusClient, DataType, MilvusClient

from ._backend import Address, Backend, Connections, Once, run_sync
from ._core import Core, DeleteOptions, GetOptions, Overwrite, Ready, WriteOptions, make_ready
from ._schema import (
    MAX_DIMENSION,
    NODE_CONTENT_FIELD,
    NODE_TYPE_FIELD,
    SCALAR_TYPES,
    CollectionSettings,
)
from ._search import SearchOptions, read_options
from .errors import ConfigurationError

T = TypeVar("T")

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

CONSISTENCY_LEVELS = ("Strong", "Session", "Bounded", "Eventually")
METRICS = {"ip": "IP", "l2": "L2", "euclidean": "L2", "cosine": "COSINE"}
RANKERS = ("RRFRanker", "WeightedRanker")

# Fields of the base classes, which `to_dict` writes and which are no arguments.
_INHERITED = frozenset({"stores_text", "is_embedding_query", "stores_node", "class_name"})


class IndexManagement(str, Enum):
    """What making ready does about indexes.

    Attributes:
        NO_VALIDATION: It creates none; whoever manages them loads the collection, too.
        CREATE_IF_NOT_EXISTS: It creates the one that is missing.
    """

    NO_VALIDATION = "no_validation"
    CREATE_IF_NOT_EXISTS = "create_if_not_exists"


class MilvusVectorStore(BasePydanticVectorStore):
    """LlamaIndex nodes in Milvus, asynchronous first.

    A drop-in for `llama_index.vector_stores.milvus.MilvusVectorStore`: the arguments have its
    names, order and defaults, and the rows its layout.

    The constructor checks its arguments and does no I/O. The first operation makes the store
    ready: it connects, finds or creates the collection and its index, and loads it. One object
    serves any number of event loops and threads. The asynchronous methods (`async_add`,
    `aquery`, ...) do not block the event loop; the others (`add`, `query`, ...) block the
    calling thread until Milvus has answered, inside a running loop as well.

    Every operation raises a
    [`MilvusVectorStoreError`][llama_index_milvus_async.errors.MilvusVectorStoreError] where it
    fails, and no other exception of Milvus or gRPC.

    Args:
        uri: Address of a server (`"http://localhost:19530"`, an `https` address of Zilliz
            Cloud), or a path that ends in `.db` for Milvus Lite in this process. A user and
            password in it are moved to `token`.
        token: `"user:password"` or an API key.
        collection_name: The collection, or an alias of one.
        overwrite: Drop an existing collection when the store is made ready. Acts once in the
            life of this object; copies, unpickled and rebuilt stores never do it.
        upsert_mode: `add` replaces the rows of nodes whose id exists. Without it a server keeps
            both.
        collection_properties: Properties such as `{"collection.ttl.seconds": 3600}`, set where
            the collection has other values.
        doc_id_field: Column of the id of a node's source document.
        text_key: Column of the text.
        scalar_field_names: Metadata keys that get a column of their own in a new collection.
        scalar_field_types: Their `pymilvus.DataType`s, one for each name.
        enable_dense: Whether nodes have dense embeddings.
        dim: Dimension of the embeddings. Needed where the collection is created.
        embedding_field: Column of the embeddings.
        enable_sparse: Not supported by this version; must be `False`.
        sparse_embedding_field: Column of the sparse embeddings.
        sparse_embedding_function: Encoder of sparse embeddings.
        index_management: Whether to create a missing index.
        batch_size: Most rows of one insert; its bytes are bounded besides.
        index_config: `index_type` (default `"FLAT"`), `metric_type` and the parameters of the
            dense index.
        sparse_index_config: The same for the sparse index.
        search_config: Search parameters of the dense index, such as `{"ef": 64}`.
        similarity_metric: `"IP"`, `"L2"` (or `"euclidean"`) or `"COSINE"`. Similarities rise
            with relevance for each; for L2 they are `1 / (1 + squared distance)`.
        consistency_level: `"Strong"`, `"Session"`, `"Bounded"` or `"Eventually"`: the level
            of a new collection, and of every read that names none.
        output_fields: Fields to fetch with each hit. Naming `embedding_field` returns nodes
            with their embeddings. For rows that were not written through LlamaIndex they are
            the metadata, which is every scalar field by default.
        hybrid_ranker: `"RRFRanker"` or `"WeightedRanker"`.
        hybrid_ranker_params: `{"k": 60}` or `{"weights": [1.0, 1.0]}`.
        use_async_client: Without it, the asynchronous methods run the blocking client in a
            thread.
        id_field: Column of the node ids, the primary key.
        timeout: Seconds for each RPC; `None` is pymilvus' own retrying without an end.
        max_in_flight: RPCs under way at once on each event loop.
        **kwargs: Passed to the pymilvus clients: `db_name`, `user`, `password`, `secure`,
            `server_pem_path`, `client_pem_path`, `client_key_path`, `ca_pem_path`,
            `server_name`, `grpc_options`, `alias`, ...

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

    model_config = ConfigDict(arbitrary_types_allowed=True)

    stores_text: bool = True
    stores_node: bool = True

    uri: str = DEFAULT_URI
    token: str = Field(default="", exclude=True, repr=False)
    password: str = Field(default="", exclude=True, repr=False)
    collection_name: str = DEFAULT_COLLECTION_NAME
    # A destructive flag is not for copies: neither dumps nor pickles have it.
    overwrite: bool = Field(default=False, exclude=True)
    upsert_mode: bool = False
    collection_properties: dict[str, Any] | None = None
    doc_id_field: str = DEFAULT_DOC_ID_KEY
    text_key: str = DEFAULT_TEXT_KEY
    scalar_field_names: list[str] | None = None
    scalar_field_types: list[DataType] | None = None
    enable_dense: bool = True
    dim: int | None = None
    embedding_field: str = DEFAULT_EMBEDDING_KEY
    enable_sparse: bool = False
    sparse_embedding_field: str = DEFAULT_SPARSE_EMBEDDING_KEY
    sparse_embedding_function: Any = None
    index_management: IndexManagement = IndexManagement.CREATE_IF_NOT_EXISTS
    batch_size: int = DEFAULT_BATCH_SIZE
    index_config: dict[str, Any] = Field(default_factory=dict)
    sparse_index_config: dict[str, Any] = Field(default_factory=dict)
    search_config: dict[str, Any] = Field(default_factory=dict)
    similarity_metric: str = "IP"
    consistency_level: str = "Session"
    output_fields: list[str] = Field(default_factory=list)
    hybrid_ranker: str = "RRFRanker"
    hybrid_ranker_params: dict[str, Any] = Field(default_factory=dict)
    use_async_client: bool = True
    id_field: str = DEFAULT_ID_FIELD
    timeout: float | None = DEFAULT_TIMEOUT
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    client_options: dict[str, Any] = Field(default_factory=dict)

    _connections: Connections = PrivateAttr()
    _ready: Once[Ready] = PrivateAttr()
    _overwrite: Overwrite = PrivateAttr()

    def __init__(
        self,
        uri: str = DEFAULT_URI,
        token: str = "",
        collection_name: str = DEFAULT_COLLECTION_NAME,
        overwrite: bool = False,
        upsert_mode: bool = False,
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
        similarity_metric: str = "IP",
        consistency_level: str = "Session",
        output_fields: list[str] | None = None,
        hybrid_ranker: str = "RRFRanker",
        hybrid_ranker_params: dict[str, Any] = {},  # noqa: B006 (upstream's default; never changed)
        use_async_client: bool = True,
        *,
        id_field: str = DEFAULT_ID_FIELD,
        timeout: float | None = DEFAULT_TIMEOUT,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        **kwargs: Any,
    ) -> None:
        client_options = {**kwargs.pop("client_options", {}), **kwargs}
        client_options = {k: v for k, v in client_options.items() if k not in _INHERITED}
        password = client_options.pop("password", None) or ""
        uri, uri_token = _split_credentials(_check_uri(uri))
        arguments = {
            "uri": uri,
            "token": token or uri_token,
            "password": password,
            "collection_name": _check_name("collection_name", collection_name),
            "overwrite": overwrite,
            "upsert_mode": upsert_mode,
            "collection_properties": collection_properties,
            "doc_id_field": _check_name("doc_id_field", doc_id_field),
            "text_key": _check_name("text_key", text_key),
            "scalar_field_names": scalar_field_names,
            "scalar_field_types": _check_scalar_fields(scalar_field_names, scalar_field_types),
            "enable_dense": _check_dense(enable_dense, enable_sparse),
            "dim": _check_dim(dim, overwrite),
            "embedding_field": _check_name("embedding_field", embedding_field),
            "enable_sparse": enable_sparse,
            "sparse_embedding_field": sparse_embedding_field,
            "sparse_embedding_function": sparse_embedding_function,
            "index_management": _one_of("index_management", index_management, IndexManagement),
            "batch_size": _check_positive("batch_size", batch_size),
            "index_config": index_config or {},
            "sparse_index_config": sparse_index_config or {},
            "search_config": search_config or {},
            "similarity_metric": _check_metric(similarity_metric),
            "consistency_level": check_consistency_level(consistency_level),
            "output_fields": _check_output_fields(output_fields),
            "hybrid_ranker": hybrid_ranker,
            "hybrid_ranker_params": _check_ranker(hybrid_ranker, hybrid_ranker_params),
            "use_async_client": use_async_client,
            "id_field": _check_name("id_field", id_field),
            "timeout": _check_timeout(timeout),
            "max_in_flight": _check_positive("max_in_flight", max_in_flight),
            "client_options": client_options,
        }
        _check_distinct(arguments)
        try:
            super().__init__(**arguments)
        except ValidationError as error:
            # Not chained: pydantic's text shows the values, and one may be a password.
            raise ConfigurationError(_validation_message(error)) from None
        self._overwrite = Overwrite(pending=self.overwrite)
        self._connect_lazily()

    def _connect_lazily(self) -> None:
        address = Address(self.uri, self.token, self.password, self.client_options)
        self._connections = Connections(address, self.timeout, self.max_in_flight)
        self._ready = self._connections.once(
            lambda: run_sync(
                make_ready(self._connections.sync(), self._settings(), self._overwrite)
            )
        )

    def _settings(self) -> CollectionSettings:
        return CollectionSettings(
            collection_name=self.collection_name,
            id_field=self.id_field,
            doc_id_field=self.doc_id_field,
            text_key=self.text_key,
            embedding_field=self.embedding_field,
            dim=self.dim,
            metric=self.similarity_metric,
            scalar_fields=dict(
                zip(self.scalar_field_names or (), self.scalar_field_types or (), strict=True)
            ),
            index_config=self.index_config,
            create_index=self.index_management is IndexManagement.CREATE_IF_NOT_EXISTS,
            properties=self.collection_properties or {},
            consistency_level=self.consistency_level,
        )

    # -- copies ------------------------------------------------------------------------------

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes the class."""
        return "MilvusVectorStore"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> MilvusVectorStore:
        """Rebuild a store from `to_dict`; its token and password have to be given again.

        Args:
            data: What `to_dict` returned.
            **kwargs: Arguments in addition or in place of it, such as `token`.
        """
        arguments = {k: v for k, v in {**data, **kwargs}.items() if k not in _INHERITED}
        return cls(**{**arguments, "overwrite": False})

    def _arguments(self) -> dict[str, Any]:
        """The arguments of a copy, secrets included and `overwrite` not."""
        names = type(self).model_fields.keys() - _INHERITED - {"overwrite", "password"}
        arguments = {name: getattr(self, name) for name in names}
        return {**arguments, "password": self.password}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._arguments())

    def __copy__(self) -> MilvusVectorStore:
        return type(self)(**self._arguments())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> MilvusVectorStore:
        return type(self)(**copy.deepcopy(self._arguments(), memo))

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> MilvusVectorStore:
        """Build a store of the same arguments, with connections of its own."""
        return type(self)(**{**self._arguments(), **(update or {})})

    # -- life --------------------------------------------------------------------------------

    @property
    def client(self) -> MilvusClient:
        """A connected pymilvus `MilvusClient`; makes the store ready. Blocks."""
        self._ready.get()
        return self._connections.sync_client()

    @property
    def aclient(self) -> AsyncMilvusClient:
        """The pymilvus `AsyncMilvusClient` of the running event loop.

        Its first call makes the store ready and connects, once for concurrent ones, unless
        `aconnect()` was awaited before.

        Raises:
            ConfigurationError: No event loop is running, or `use_async_client` is `False`.
        """
        if not self.use_async_client:
            raise ConfigurationError("aclient: the store was built with use_async_client=False")
        try:
            backend = self._connections.of_running_loop()
        except RuntimeError as error:
            raise ConfigurationError(
                "aclient belongs to an event loop, and none is running here; use it inside a "
                "coroutine, or `client` outside"
            ) from error
        return backend.client()

    def connect(self) -> MilvusVectorStore:
        """Make the store ready now rather than at the first operation. Blocks."""
        self._connections.check_open()
        self._ready.get()
        return self

    async def aconnect(self) -> MilvusVectorStore:
        """Make the store ready and connect on the running loop, without blocking it."""
        self._connections.check_open()
        await self._ready.aget()
        if self.use_async_client:
            await self._connections.of_running_loop().connect()
        return self

    def close(self) -> None:
        """Close all connections; the store cannot be used again. Closing twice is no error."""
        self._connections.close()

    async def aclose(self) -> None:
        """Close all connections; the store cannot be used again. Closing twice is no error."""
        await self._connections.aclose()

    def __enter__(self) -> MilvusVectorStore:
        return self.connect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> MilvusVectorStore:
        return await self.aconnect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- operations --------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Write nodes. Blocks.

        The nodes are checked before anything is written. Batches are bounded by `batch_size`
        and by bytes. Of nodes with the same id in one call the last is kept, with a warning;
        whether a row that is in the collection already is replaced says `upsert_mode`.

        Args:
            nodes: Nodes with embeddings of the collection's dimension. None is no error.
            **add_kwargs: `milvus_partition_name` (str), the partition to write to;
                `force_flush` (bool), to seal the rows before returning; `timeout` (float),
                seconds for each RPC.

        Returns:
            The ids of the nodes, in their order.

        Raises:
            NodeError: Nodes lack an embedding, have one of another dimension or with NaN, or a
                text, id or metadata that Milvus cannot hold. Nothing was written.
            PartialWriteError: A batch failed after others were written.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(WriteOptions, "add", add_kwargs)
        return self._block(lambda core: core.add(nodes, options))

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Write nodes without blocking the event loop; see `add`.

        Several batches are under way at once, up to `max_in_flight`.
        """
        options = _read_options(WriteOptions, "async_add", add_kwargs)
        return await self._await(lambda core: core.add(nodes, options))

    def delete(self, ref_doc_id: str | list[str], **delete_kwargs: Any) -> None:
        """Delete every node of a document, or of several. Blocks.

        Args:
            ref_doc_id: The id of the document, or a list of ids.
            **delete_kwargs: `milvus_partition_name` (str), to delete within one partition only;
                `timeout` (float), seconds for each RPC.

        Raises:
            FilterError: The collection has no document ids.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(DeleteOptions, "delete", delete_kwargs)
        return self._block(lambda core: core.delete(ref_doc_id, options))

    async def adelete(self, ref_doc_id: str | list[str], **delete_kwargs: Any) -> None:
        """Delete every node of a document without blocking the event loop; see `delete`."""
        options = _read_options(DeleteOptions, "adelete", delete_kwargs)
        return await self._await(lambda core: core.delete(ref_doc_id, options))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by filter, or those that both select. Blocks.

        Args:
            node_ids: Ids, any number. An empty list deletes nothing.
            filters: Metadata filters.
            **delete_kwargs: `milvus_partition_name` (str) and `timeout` (float).

        Raises:
            QueryError: Neither ids nor filters are given; nothing is deleted.
            FilterError: A filter cannot be expressed; nothing is deleted.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(DeleteOptions, "delete_nodes", delete_kwargs)
        return self._block(lambda core: core.delete_nodes(node_ids, filters, options))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes without blocking the event loop; see `delete_nodes`."""
        options = _read_options(DeleteOptions, "adelete_nodes", delete_kwargs)
        return await self._await(lambda core: core.delete_nodes(node_ids, filters, options))

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Read nodes by id, by filter, or those that both select. Blocks.

        Args:
            node_ids: Ids, any number; those that are not in the collection are left out.
            filters: Metadata filters. Filters without a condition select every node.
            **kwargs: `milvus_partition_names` (str or list), `consistency_level` (str),
                `timeout` (float), and `output_fields` (list), fields in place of the store's.

        Returns:
            The nodes, in the order of `node_ids`, or else of the primary key. They carry their
            embeddings where the output fields name `embedding_field`.

        Raises:
            QueryError: Neither ids nor filters are given.
            FilterError: A filter cannot be expressed.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(GetOptions, "get_nodes", kwargs)
        return self._block(lambda core: core.get_nodes(node_ids, filters, options))

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Read nodes without blocking the event loop; see `get_nodes`."""
        options = _read_options(GetOptions, "aget_nodes", kwargs)
        return await self._await(lambda core: core.get_nodes(node_ids, filters, options))

    def clear(self, *, timeout: float | None = None) -> None:
        """Delete every node; the store can be used again at once. Blocks.

        The rows are deleted: collection, index, partitions, aliases and grants stay.

        Args:
            timeout: Seconds for each RPC.

        Raises:
            ServerError: Milvus refused or could not be reached.
        """
        _check_timeout(timeout)
        return self._block(lambda core: core.clear(timeout))

    async def aclear(self, *, timeout: float | None = None) -> None:
        """Delete every node without blocking the event loop; see `clear`."""
        _check_timeout(timeout)
        return await self._await(lambda core: core.clear(timeout))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes most similar to a query. Blocks.

        The query's `filters`, `doc_ids` and `node_ids`, and `string_expr` and
        `milvus_scalar_filters`, all apply: a node has to pass each.

        Args:
            query: Mode `DEFAULT` or `MMR`, with `query_embedding` and a `similarity_top_k` of 1
                to 16,384. `embedding_field` and `output_fields` replace the store's.
            **kwargs: `milvus_partition_names` (str or list); `milvus_scalar_filters`;
                `milvus_search_config` (dict) in place of the store's `search_config`;
                `string_expr` (str), a Milvus boolean expression; `mmr_threshold` (0..1), and
                `mmr_prefetch_factor` or `mmr_prefetch_k` for the candidates of MMR;
                `consistency_level` (str); `timeout` (float), seconds for each RPC.

        Returns:
            Nodes, similarities and ids, best first, at most top k. Similarities rise with
            relevance for every metric; for MMR they are the scores of the choice.

        Raises:
            QueryError: The mode is not supported, or lacks what it needs.
            FilterError: A filter cannot be expressed.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(SearchOptions, "query", kwargs)
        return self._block(lambda core: core.query(query, options))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the most similar nodes without blocking the event loop; see `query`."""
        options = _read_options(SearchOptions, "aquery", kwargs)
        return await self._await(lambda core: core.query(query, options))

    def _block(self, operation: Callable[[Core], Coroutine[Any, Any, T]]) -> T:
        return run_sync(operation(self._core(self._connections.sync())))

    async def _await(self, operation: Callable[[Core], Coroutine[Any, Any, T]]) -> T:
        if not self.use_async_client:
            return await asyncio.to_thread(self._block, operation)
        return await operation(self._core(self._connections.of_running_loop()))

    def _core(self, backend: Backend) -> Core:
        return Core(
            backend,
            self._ready,
            upsert=self.upsert_mode,
            batch_size=self.batch_size,
            consistency_level=self.consistency_level,
            output_fields=self.output_fields,
            search_config=self.search_config,
        )


def _rebuild(cls: type[MilvusVectorStore], arguments: dict[str, Any]) -> MilvusVectorStore:
    return cls(**arguments)


def _read_options(cls: type[Any], operation: str, arguments: dict[str, Any]) -> Any:
    level = arguments.get("consistency_level")
    if level is not None:
        arguments = {**arguments, "consistency_level": check_consistency_level(level)}
    _check_timeout(arguments.get("timeout"))
    return read_options(cls, operation, arguments)


# -- argument checks -------------------------------------------------------------------------


def _check_uri(uri: Any) -> str:
    # pymilvus refuses pathlib.Path with a message about something else.
    text = str(uri)
    if not text:
        raise ConfigurationError(
            'uri is empty; pass a server\'s address such as "http://localhost:19530", or a path '
            'that ends in ".db"'
        )
    is_file = text.endswith(".db")
    # pymilvus would take "http://host/x.db" for a file.
    if is_file if "://" in text else not is_file and not text.startswith("unix:"):
        raise ConfigurationError(
            f"uri is {_without_credentials(text)!r}; it must be a server's address such as "
            '"http://localhost:19530", or a path that ends in ".db" for Milvus Lite'
        )
    return text


def _without_credentials(text: str) -> str:
    """Cut out of a malformed URI what may be a user and a password."""
    return re.sub(r"^(\w+://)?.*@", r"\1***@", text, flags=re.DOTALL)


def _split_credentials(uri: str) -> tuple[str, str]:
    """Take `user:password` out of a URI, so that the URI can be shown."""
    if "://" not in uri or "@" not in uri:
        return uri, ""
    try:
        parts = urlsplit(uri)
        malformed = "@" in f"{parts.path}{parts.query}{parts.fragment}"
    except ValueError:
        malformed = True
    if malformed:
        # A "/", "?" or "#" ends the part before the host: the password would stay in the URI.
        raise ConfigurationError(
            f"uri is {_without_credentials(uri)!r}; characters such as / ? # [ ] in the user or "
            "password have to be percent-encoded, or pass them as token"
        )
    credentials, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)), unquote(credentials)


def _check_name(argument: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{argument} is {value!r}; it must be a name")
    return value


def _check_distinct(arguments: Mapping[str, Any]) -> None:
    roles = ("id_field", "doc_id_field", "text_key", "embedding_field")
    taken = {
        NODE_CONTENT_FIELD: "the serialized node",
        NODE_TYPE_FIELD: "the node's class",
    }
    names = [(role, arguments[role]) for role in roles]
    names += [("scalar_field_names", name) for name in arguments["scalar_field_names"] or ()]
    for role, name in names:
        if name in taken:
            raise ConfigurationError(
                f"{role} is {name!r}, the name of {taken[name]} already; fields need distinct names"
            )
        taken[name] = role


def _check_scalar_fields(names: Any, types: Any) -> list[DataType] | None:
    if len(names or ()) != len(types or ()):
        raise ConfigurationError(
            f"scalar_field_names has {len(names or ())} names and scalar_field_types "
            f"{len(types or ())} types; each name needs one type"
        )
    allowed = [data_type.name for data_type in SCALAR_TYPES]
    for name, data_type in zip(names or (), types or (), strict=True):
        _check_name("scalar_field_names", name)
        if data_type not in SCALAR_TYPES:
            raise ConfigurationError(
                f"scalar_field_types has {data_type!r} for {name!r}; allowed are DataType.{allowed}"
            )
    return None if types is None else [DataType(data_type) for data_type in types]


def _check_dense(enable_dense: bool, enable_sparse: bool) -> bool:
    if enable_sparse:
        raise ConfigurationError(
            "enable_sparse=True: sparse and hybrid retrieval are not supported by this version; "
            "leave it out for dense retrieval"
        )
    if not enable_dense:
        raise ConfigurationError("enable_dense=False leaves nothing to search; it must be True")
    return enable_dense


def _check_dim(dim: Any, overwrite: bool) -> int | None:
    if dim is None:
        if overwrite:
            raise ConfigurationError(
                "dim is missing: overwrite=True creates a new collection, which needs the "
                "dimension of the embeddings, for example dim=384"
            )
        return None
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= MAX_DIMENSION:
        raise ConfigurationError(f"dim is {dim!r}; it must be an integer in 1..{MAX_DIMENSION}")
    return dim


def _check_output_fields(fields: Any) -> list[str]:
    if isinstance(fields, str):
        raise ConfigurationError(f"output_fields is {fields!r}; it must be a list of names")
    return list(fields or [])


def _validation_message(error: ValidationError) -> str:
    problems = [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
    ]
    return "; ".join(problems)


def _check_positive(argument: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{argument} is {value!r}; it must be an integer of at least 1")
    return value


def _check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < math.inf:
        raise ConfigurationError(
            f"timeout is {timeout!r}; it must be a number of seconds above 0, or None"
        )
    return float(timeout)


def _check_metric(metric: Any) -> str:
    canonical = METRICS.get(str(metric).lower())
    if canonical is None:
        raise ConfigurationError(
            f"similarity_metric is {metric!r}; it must be one of {sorted(METRICS)}"
        )
    return canonical


def check_consistency_level(level: Any) -> str:
    """Return the level as Milvus spells it.

    Raises:
        ConfigurationError: There is no such level.
    """
    return str(_one_of("consistency_level", level, CONSISTENCY_LEVELS))


def _one_of(argument: str, value: Any, allowed: Any) -> Any:
    """Look a value up among enumeration members or names, names in any case."""
    choices = list(allowed)
    for choice in choices:
        if value == choice or str(value).lower() == str(getattr(choice, "value", choice)).lower():
            return choice
    shown = [getattr(choice, "value", choice) for choice in choices]
    raise ConfigurationError(f"{argument} is {value!r}; it must be one of {shown}")


def _check_ranker(ranker: Any, params: Any) -> dict[str, Any]:
    if ranker not in RANKERS:
        raise ConfigurationError(f"hybrid_ranker is {ranker!r}; it must be one of {list(RANKERS)}")
    if not isinstance(params, (Mapping, type(None))):
        raise ConfigurationError(
            f'hybrid_ranker_params is {params!r}; it must be a dictionary, such as {{"k": 60}}'
        )
    checked: dict[str, Any] = dict(params or {})
    key = {"RRFRanker": "k", "WeightedRanker": "weights"}[ranker]
    unknown = sorted(set(checked) - {key})
    if unknown:
        raise ConfigurationError(f"hybrid_ranker_params has {unknown}; {ranker} takes only {key!r}")
    if key == "k" and key in checked:
        k = checked[key]
        if not isinstance(k, (int, float)) or isinstance(k, bool) or not 0 < k < 16_384:
            raise ConfigurationError(
                f"hybrid_ranker_params has k={k!r}; it must be a number in (0, 16384)"
            )
    if key == "weights" and key in checked:
        weights = checked[key]
        if (
            not isinstance(weights, (list, tuple))
            or len(weights) != 2
            or not all(isinstance(w, (int, float)) and 0 <= w <= 1 for w in weights)
        ):
            raise ConfigurationError(
                f"hybrid_ranker_params has weights={weights!r}; they must be two numbers in 0..1, "
                "dense and sparse"
            )
    return checked
