"""The vector store: arguments, their checks, and the public pairs of methods."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
)
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
from pymilvus import AsyncMilvusClient, DataType, Function, FunctionType, MilvusClient

from ._arguments import (
    check_consistency_level,
    check_dense_fields,
    check_dim,
    check_distinct,
    check_metric,
    check_modes,
    check_name,
    check_output_fields,
    check_positive,
    check_scalar_fields,
    check_timeout,
    check_uri,
    one_of,
    split_credentials,
    validation_message,
)
from ._concurrency.once import Once
from ._observability import is_observed, observing
from ._operations.core import (
    Core,
    DeleteOptions,
    GetOptions,
    Overwrite,
    Ready,
    WriteOptions,
    make_ready,
)
from ._retrieval.ranking import Weighted, ranker_of
from ._retrieval.search import SearchOptions, StoreOptions, read_options
from ._translation.schema import CollectionSettings, VectorField
from ._transport.backend import Backend, run_sync
from ._transport.connections import Connections
from ._wire.address import Address
from .errors import ConfigurationError
from .sparse import BM25BuiltInFunction, SparseEncoder
from .stats import KindStats

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
    fails, and no other exception of Milvus or gRPC. The one that makes the store ready may raise
    what `connect` does, and all raise `StoreClosedError` once the store is closed.

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
        enable_sparse: Whether nodes have sparse embeddings, for the modes `SPARSE`,
            `TEXT_SEARCH` and `HYBRID`. Needs Milvus 2.4, or Milvus Lite.
        sparse_embedding_field: Column of the sparse embeddings.
        sparse_embedding_function: Who computes them: Milvus itself by a
            [`BM25BuiltInFunction`][llama_index_milvus_async.sparse.BM25BuiltInFunction] over
            `text_key`, which is the default and needs Milvus 2.5; or this side, by a
            [`BaseSparseEmbeddingFunction`][llama_index_milvus_async.sparse.BaseSparseEmbeddingFunction],
            LlamaIndex' `BaseSparseEmbedding`, or a pair of functions (plain or `async`) that
            make of a list of texts a list of `{index: value}`, of queries and of documents.
            It is called once for the texts of a batch, one call at a time on each event loop,
            and never on the loop unless it is asynchronous; blocking calls in several threads
            call it at the same time. A store rebuilt of a dump has to be given it again.
        index_management: Whether to create a missing index.
        batch_size: Most rows of one insert; its bytes are bounded besides.
        index_config: `index_type` (default `"FLAT"`), `metric_type` and the parameters of the
            dense index.
        sparse_index_config: The same for the sparse index (default
            `"SPARSE_INVERTED_INDEX"`; metric `"BM25"` for Milvus' function, `"IP"` otherwise).
        search_config: Search parameters of the dense index, such as `{"ef": 64}`.
        similarity_metric: `"IP"`, `"L2"` (or `"euclidean"`) or `"COSINE"`. Similarities rise
            with relevance for each; for L2 they are `1 / (1 + squared distance)`.
        consistency_level: `"Strong"`, `"Session"`, `"Bounded"` or `"Eventually"`: the level
            of a new collection, and of every read that names none.
        output_fields: Fields to fetch with each hit. Naming `embedding_field` returns nodes
            with their embeddings. For rows that were not written through LlamaIndex they are
            the metadata, which is every scalar field by default.
        hybrid_ranker: How the legs of a hybrid search become one list: `"RRFRanker"`,
            `"WeightedRanker"`, a pymilvus ranker or `Function` of type `RERANK`, or a callable
            that runs here and takes the query and a list of `NodeWithScore` for each leg. It may
            be a coroutine function; asynchronous queries call another one in a thread.
        hybrid_ranker_params: `{"k": 60}`, or `{"weights": [1.0, 1.0], "norm_score": True}`:
            dense and sparse, in 0..1.
        use_async_client: Without it, the asynchronous methods run the blocking client in a
            thread.
        id_field: Column of the node ids, the primary key.
        timeout: Seconds for each RPC, further attempts included; `None` bounds their number, not
            their time. Operations have a `timeout` of their own, whose `None` means this one.
        max_in_flight: RPCs under way at once on each event loop.
        dense_fields: Further dense embeddings: column name to settings, `dim` and optionally
            `metric_type`, `type` (`DataType.FLOAT_VECTOR`, `FLOAT16_VECTOR`, `BFLOAT16_VECTOR`,
            `INT8_VECTOR` or `BINARY_VECTOR`), `index_type` and parameters of the index. A node
            carries such an embedding in its metadata, under the column's name; there it is
            neither stored nor returned, unless `output_fields` names it. With
            `enable_dense=False` the first one is that of `node.embedding`.
        coalesce: Asynchronous calls that wait at the same time and ask for the same kind of
            thing share RPCs. `False` sends each on its own.
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
    sparse_embedding_function: Any = Field(default=None, repr=False)
    index_management: IndexManagement = IndexManagement.CREATE_IF_NOT_EXISTS
    batch_size: int = DEFAULT_BATCH_SIZE
    index_config: dict[str, Any] = Field(default_factory=dict)
    sparse_index_config: dict[str, Any] = Field(default_factory=dict)
    search_config: dict[str, Any] = Field(default_factory=dict)
    similarity_metric: str = "IP"
    consistency_level: str = "Session"
    output_fields: list[str] = Field(default_factory=list)
    hybrid_ranker: Any = "RRFRanker"
    hybrid_ranker_params: dict[str, Any] = Field(default_factory=dict)
    use_async_client: bool = True
    id_field: str = DEFAULT_ID_FIELD
    timeout: float | None = DEFAULT_TIMEOUT
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    coalesce: bool = True
    dense_fields: dict[str, dict[str, Any]] = Field(default_factory=dict)
    client_options: dict[str, Any] = Field(default_factory=dict)

    _connections: Connections = PrivateAttr()
    _ready: Once[Ready] = PrivateAttr()
    _overwrite: Overwrite = PrivateAttr()
    _function: Function | None = PrivateAttr()
    _encoder: SparseEncoder | None = PrivateAttr()

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
        hybrid_ranker: Any = "RRFRanker",
        hybrid_ranker_params: dict[str, Any] = {},  # noqa: B006 (upstream's default; never changed)
        use_async_client: bool = True,
        *,
        id_field: str = DEFAULT_ID_FIELD,
        timeout: float | None = DEFAULT_TIMEOUT,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        coalesce: bool = True,
        dense_fields: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        client_options = {**kwargs.pop("client_options", {}), **kwargs}
        client_options = {k: v for k, v in client_options.items() if k not in _INHERITED}
        password = client_options.pop("password", None) or ""
        uri, uri_token = split_credentials(check_uri(uri))
        arguments = {
            "uri": uri,
            "token": token or uri_token,
            "password": password,
            "collection_name": check_name("collection_name", collection_name),
            "overwrite": overwrite,
            "upsert_mode": upsert_mode,
            "collection_properties": collection_properties,
            "doc_id_field": check_name("doc_id_field", doc_id_field),
            "text_key": check_name("text_key", text_key),
            "scalar_field_names": scalar_field_names,
            "scalar_field_types": check_scalar_fields(scalar_field_names, scalar_field_types),
            "enable_dense": enable_dense,
            "dim": check_dim(dim, required=overwrite and enable_dense),
            "embedding_field": check_name("embedding_field", embedding_field),
            "enable_sparse": enable_sparse,
            "sparse_embedding_field": check_name("sparse_embedding_field", sparse_embedding_field),
            "sparse_embedding_function": sparse_embedding_function,
            "index_management": one_of("index_management", index_management, IndexManagement),
            "batch_size": check_positive("batch_size", batch_size),
            "index_config": index_config or {},
            "sparse_index_config": sparse_index_config or {},
            "search_config": search_config or {},
            "similarity_metric": check_metric(similarity_metric),
            "consistency_level": check_consistency_level(consistency_level),
            "output_fields": check_output_fields(output_fields),
            "hybrid_ranker": hybrid_ranker,
            "hybrid_ranker_params": hybrid_ranker_params or {},
            "use_async_client": use_async_client,
            "id_field": check_name("id_field", id_field),
            "timeout": check_timeout(timeout),
            "max_in_flight": check_positive("max_in_flight", max_in_flight),
            "coalesce": coalesce,
            "dense_fields": check_dense_fields(dense_fields),
            "client_options": client_options,
        }
        check_modes(enable_dense, enable_sparse, sparse_embedding_function, dense_fields)
        check_distinct(arguments)
        ranker = ranker_of(hybrid_ranker, hybrid_ranker_params, "hybrid_ranker")
        if isinstance(ranker, Weighted) and len(ranker.weights) != 2 and not dense_fields:
            raise ConfigurationError(
                f"hybrid_ranker_params has {len(ranker.weights)} weights; a hybrid search has two "
                "legs, dense and sparse, and needs a weight for each"
            )
        try:
            super().__init__(**arguments)
        except ValidationError as error:
            # Not chained: pydantic's text shows the values, and one may be a password.
            raise ConfigurationError(validation_message(error)) from None
        self._overwrite = Overwrite(pending=self.overwrite)
        self._encode_sparse()
        self._connect_lazily()

    def _encode_sparse(self) -> None:
        """Decide who computes the sparse embeddings: a function of Milvus, or an encoder here."""
        self._function, self._encoder = None, None
        if not self.enable_sparse:
            return
        given = self.sparse_embedding_function
        if given is None:
            given = BM25BuiltInFunction(self.text_key, self.sparse_embedding_field)
        if not isinstance(given, Function):
            self._encoder = SparseEncoder.of(given)
            return
        if given.type != FunctionType.BM25:
            raise ConfigurationError(
                f"sparse_embedding_function is a function of type {given.type.name}; it must be of "
                "type BM25"
            )
        if given.output_field_names != [self.sparse_embedding_field]:
            raise ConfigurationError(
                f"sparse_embedding_function writes {given.output_field_names}, and "
                f"sparse_embedding_field is {self.sparse_embedding_field!r}; name the same field "
                "in both"
            )
        self._function = given

    def _connect_lazily(self) -> None:
        address = Address(self.uri, self.token, self.password, self.client_options)
        self._connections = Connections(
            address,
            self.timeout,
            self.max_in_flight,
            rows_per_insert=self.batch_size,
            coalesce=self.coalesce,
        )
        self._ready = self._connections.once(self._make_ready)

    def _make_ready(self) -> Ready:
        connections = self._connections
        with connections.opening():
            return run_sync(make_ready(connections.sync(), self._settings(), self._overwrite))

    def _settings(self) -> CollectionSettings:
        dense, sparse = [], None
        if self.enable_dense:
            kind, metric, config = DataType.FLOAT_VECTOR, self.similarity_metric, self.index_config
            dense.append(VectorField(self.embedding_field, kind, self.dim, metric, config))
        for name, settings in self.dense_fields.items():
            config = {k: v for k, v in settings.items() if k not in ("dim", "type")}
            kind, metric = settings["type"], settings["metric_type"]
            dim = settings["dim"]
            dense.append(VectorField(name, kind, dim, metric, config, in_dense_fields=True))
        if self.enable_sparse:
            kind, config = DataType.SPARSE_FLOAT_VECTOR, self.sparse_index_config
            metric = "BM25" if self._function is not None else "IP"
            name, function = self.sparse_embedding_field, self._function
            reads = None
            if function is not None and self.sparse_embedding_function is not None:
                reads = function.input_field_names
            sparse = VectorField(name, kind, None, metric, config, function, reads)
        return CollectionSettings(
            collection_name=self.collection_name,
            id_field=self.id_field,
            doc_id_field=self.doc_id_field,
            text_key=self.text_key,
            dense=dense,
            sparse=sparse,
            scalar_fields=dict(
                zip(self.scalar_field_names or (), self.scalar_field_types or (), strict=True)
            ),
            create_index=self.index_management is IndexManagement.CREATE_IF_NOT_EXISTS,
            properties=self.collection_properties or {},
            consistency_level=self.consistency_level,
        )

    @field_serializer("hybrid_ranker", "sparse_embedding_function")
    def _serialize_object(self, value: Any) -> str | None:
        # An object cannot be written as JSON. Its name is refused where a store is rebuilt of it,
        # so that another ranker or encoder does not take its place unnoticed.
        return value if isinstance(value, (str, type(None))) else f"<{type(value).__name__}>"

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
        """A connected pymilvus `MilvusClient`; makes the store ready. Blocks.

        What is called on it raises pymilvus' exceptions.

        Raises:
            MilvusVectorStoreError: As `connect` does.
        """
        self._ready.get()
        return self._connections.sync_client()

    @property
    def aclient(self) -> AsyncMilvusClient:
        """The pymilvus `AsyncMilvusClient` of the running event loop.

        Its first call makes the store ready and connects, once for concurrent ones, and may raise
        what `connect` does; otherwise calls raise pymilvus' exceptions. Does not block, except
        where it starts Milvus Lite (half a second). After `aconnect()` all of this has happened.

        Raises:
            ConfigurationError: No event loop is running, or `use_async_client` is `False`.
            LiteFileError: Milvus Lite cannot open the path.
            StoreClosedError: The store is closed.
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
        """Make the store ready now rather than at the first operation. Blocks.

        Once it is ready, this does nothing.

        Raises:
            ConfigurationError: `dim` is missing for a new collection, `overwrite` names an alias,
                Milvus is too old for what the arguments ask, or the URI or a certificate cannot be
                used.
            CollectionError: The existing collection does not fit the arguments.
            LiteNotInstalledError: The URI is a `.db` path, and Milvus Lite is not installed.
            LiteFileError: Milvus Lite cannot open the path.
            UnreachableError: Nobody answers at the address; `CertificateError` where the server's
                certificate is not trusted.
            AuthenticationError: Token or password are wrong; `PermissionDeniedError` where a
                privilege is missing.
            RequestTimeoutError: Milvus did not answer in time.
            ServerError: Milvus refused.
            StoreClosedError: The store is closed.
        """
        self._connections.check_open()
        self._ready.get()
        return self

    async def aconnect(self) -> MilvusVectorStore:
        """Make the store ready and connect on the running loop, without blocking it.

        Raises:
            MilvusVectorStoreError: As `connect` does.
        """
        self._connections.check_open()
        await self._ready.aget()
        if self.use_async_client:
            await self._connections.of_running_loop().connect()
        return self

    def close(self) -> None:
        """Close all connections; the store cannot be used again. Closing twice is no error.

        Blocks where a thread is just connecting, until it has (10 seconds at most). Clients of
        event loops that run in other threads are closed by their loops, soon after this returns.

        Calls under way end at once: in `StoreClosedError` where they have done nothing. A write
        that was sent may be carried out, and ends as if its connection was lost: in
        `WriteOutcomeUnknownError` where it must not be repeated, otherwise in `UnreachableError`.
        """
        self._connections.close()

    async def aclose(self) -> None:
        """Close all connections without blocking the event loop; see `close`.

        The client of the running loop is closed when this returns.
        """
        await self._connections.aclose()

    def __enter__(self) -> MilvusVectorStore:
        """Make the store ready; see `connect`."""
        return self.connect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> MilvusVectorStore:
        """Make the store ready; see `aconnect`."""
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
                `force_flush` (bool), to seal the rows before returning; `show_progress` (bool),
                to show a bar, in a terminal or a notebook; `timeout` (float), seconds for each
                RPC, the store's where it is `None`.

        Returns:
            The ids of the nodes, in their order.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            CollectionError: The collection numbers its rows itself (`auto_id`), or needs vectors
                that nodes do not have, or a sparse embedding function that the store does not have.
            EncoderError: The sparse embedding function returned what is no embedding. Nothing was
                written.
            NodeError: Nodes lack an embedding, have one of another dimension or with NaN, or a
                text, id or metadata that Milvus cannot hold. Nothing was written.
            PartialWriteError: A batch failed after others were written.
            WriteOutcomeUnknownError: The connection was lost, or the time was over, during an
                insert that must not be repeated. It has the ids.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(WriteOptions, "add", add_kwargs)
        return self._block("add", nodes, lambda core: core.add(nodes, options))

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Write nodes without blocking the event loop; see `add`.

        Several batches are under way at once, up to `max_in_flight`.
        """
        options = _read_options(WriteOptions, "async_add", add_kwargs)
        return await self._await("async_add", nodes, lambda core: core.add(nodes, options))

    def delete(self, ref_doc_id: str | list[str], **delete_kwargs: Any) -> None:
        """Delete every node of a document, or of several. Blocks.

        Args:
            ref_doc_id: The id of the document, or a list of ids.
            **delete_kwargs: `milvus_partition_name` (str), to delete within one partition only;
                `timeout` (float), seconds for each RPC, the store's where it is `None`.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: An id is no text; nothing is deleted.
            FilterError: The collection has no document ids.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(DeleteOptions, "delete", delete_kwargs)
        return self._block("delete", ref_doc_id, lambda core: core.delete(ref_doc_id, options))

    async def adelete(self, ref_doc_id: str | list[str], **delete_kwargs: Any) -> None:
        """Delete every node of a document without blocking the event loop; see `delete`."""
        options = _read_options(DeleteOptions, "adelete", delete_kwargs)
        return await self._await(
            "adelete", ref_doc_id, lambda core: core.delete(ref_doc_id, options)
        )

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
            **delete_kwargs: `milvus_partition_name` (str) and `timeout` (float), as for `delete`.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: Neither ids nor filters are given; nothing is deleted.
            FilterError: A filter cannot be expressed; nothing is deleted.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(DeleteOptions, "delete_nodes", delete_kwargs)
        return self._block(
            "delete_nodes", node_ids, lambda core: core.delete_nodes(node_ids, filters, options)
        )

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes without blocking the event loop; see `delete_nodes`."""
        options = _read_options(DeleteOptions, "adelete_nodes", delete_kwargs)
        return await self._await(
            "adelete_nodes", node_ids, lambda core: core.delete_nodes(node_ids, filters, options)
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
            filters: Metadata filters. Filters without a condition select every node.
            **kwargs: `milvus_partition_names` (str or list); `consistency_level` (str);
                `timeout` (float), seconds for each RPC, the store's where it is `None`; and
                `output_fields` (list), fields in place of the store's.

        Returns:
            The nodes, in the order of `node_ids`, or else of the primary key. They carry their
            embeddings where the output fields name `embedding_field`.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: Neither ids nor filters are given.
            FilterError: A filter cannot be expressed.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(GetOptions, "get_nodes", kwargs)
        return self._block(
            "get_nodes", node_ids, lambda core: core.get_nodes(node_ids, filters, options)
        )

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Read nodes without blocking the event loop; see `get_nodes`."""
        options = _read_options(GetOptions, "aget_nodes", kwargs)
        return await self._await(
            "aget_nodes", node_ids, lambda core: core.get_nodes(node_ids, filters, options)
        )

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
        return self._block("clear", None, lambda core: core.clear(timeout))

    async def aclear(self, *, timeout: float | None = None) -> None:
        """Delete every node without blocking the event loop; see `clear`."""
        check_timeout(timeout)
        return await self._await("aclear", None, lambda core: core.clear(timeout))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes most similar to a query. Blocks.

        The query's `filters`, `doc_ids` and `node_ids`, and `string_expr` and
        `milvus_scalar_filters`, all apply: a node has to pass each.

        Args:
            query: `DEFAULT` and `MMR` need `query_embedding`, `SPARSE` and `TEXT_SEARCH`
                `query_str`, `HYBRID` both. Numbers of hits are 1 to 16,384. `SPARSE` and
                `TEXT_SEARCH` return `sparse_top_k`, `HYBRID` returns `hybrid_top_k`, where they
                are given, and `similarity_top_k` otherwise; the legs of a hybrid search fetch
                `similarity_top_k` and `sparse_top_k` candidates at least. `alpha` weighs their
                scores, each leg's relative to its least and most, 1 being dense alone and 0
                sparse alone; without it the ranker decides.
                `embedding_field` and `output_fields` replace the store's.
            **kwargs: `milvus_partition_names` (str or list); `milvus_scalar_filters`;
                `milvus_search_config` (dict) in place of the store's `search_config`, also with
                `radius` and `range_filter`; `sparse_search_config`, the same for the sparse
                field; `milvus_ranker`, in place of the store's `hybrid_ranker`; `hybrid_fields`
                (list), the dense fields of a hybrid search; `string_expr` (str), a Milvus
                boolean expression; `offset` (int), hits to skip, which for `HYBRID` and `MMR` have
                to be among the candidates; `group_by_field` (str), `group_size` (int) and
                `strict_group_size` (bool); `score_threshold` (float), the least similarity, for
                `MMR` of a candidate; `mmr_threshold` (0..1), and `mmr_prefetch_factor` or
                `mmr_prefetch_k` for the candidates of MMR, which `mmr_over="hybrid"` finds by a
                hybrid search; `consistency_level` (str); `timeout` (float), seconds for each RPC,
                the store's where it is `None`.

        Returns:
            Nodes, similarities and ids, best first. Similarities rise with relevance for every
            metric; for `HYBRID` they are the ranker's scores, for `MMR` those of the choice.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            CollectionError: The collection needs a sparse embedding function that the store does
                not have.
            QueryError: The mode is not supported, or lacks what it needs.
            EncoderError: The sparse embedding function returned what is no embedding.
            FilterError: A filter cannot be expressed.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(SearchOptions, "query", kwargs)
        return self._block("query", query, lambda core: core.query(query, options))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the most similar nodes without blocking the event loop; see `query`."""
        options = _read_options(SearchOptions, "aquery", kwargs)
        return await self._await("aquery", query, lambda core: core.query(query, options))

    def query_many(
        self, queries: Sequence[VectorStoreQuery], **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """Answer several queries in as few RPCs as possible. Blocks.

        Queries share an RPC where they differ in nothing but the embedding.

        Args:
            queries: As for `query`; an empty list is no error.
            **kwargs: As for `query`; they apply to all.

        Returns:
            One result for each query, in their order.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            CollectionError: As for `query`; none is sent.
            QueryError: A query lacks what it needs; none is sent.
            EncoderError: The sparse embedding function returned what is no embedding; none is sent.
            FilterError: A filter cannot be expressed; none is sent.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = _read_options(SearchOptions, "query_many", kwargs)
        return self._block("query_many", queries, lambda core: core.query_many(queries, options))

    async def aquery_many(
        self, queries: Sequence[VectorStoreQuery], **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """Answer several queries without blocking the event loop; see `query_many`."""
        options = _read_options(SearchOptions, "aquery_many", kwargs)
        return await self._await(
            "aquery_many", queries, lambda core: core.query_many(queries, options)
        )

    def stats(self) -> dict[str, KindStats]:
        """Counts of the asynchronous calls since the store was built, by kind of request.

        Kinds are `"insert"` (upserts included), `"search"`, `"hybrid"`, `"get"` (by ids),
        `"delete"` (of documents) and `"encode"` (texts to sparse embeddings; its RPCs are calls
        of the encoder). `calls` is what was asked, `rpcs` what was sent; see
        [`KindStats`][llama_index_milvus_async.KindStats]. Does not block.
        """
        return self._connections.stats()

    def _block(
        self, name: str, subject: Any, operation: Callable[[Core], Coroutine[Any, Any, T]]
    ) -> T:
        if is_observed():
            with observing(self, name, self.collection_name, subject) as outcome:
                outcome.result = result = self._run(operation)
                return result
        return self._run(operation)

    def _run(self, operation: Callable[[Core], Coroutine[Any, Any, T]]) -> T:
        return run_sync(operation(self._core(self._connections.sync())))

    async def _await(
        self, name: str, subject: Any, operation: Callable[[Core], Coroutine[Any, Any, T]]
    ) -> T:
        if is_observed():
            with observing(self, name, self.collection_name, subject) as outcome:
                outcome.result = result = await self._arun(operation)
                return result
        return await self._arun(operation)

    async def _arun(self, operation: Callable[[Core], Coroutine[Any, Any, T]]) -> T:
        if not self.use_async_client:
            return await asyncio.to_thread(self._run, operation)
        return await operation(self._core(self._connections.of_running_loop()))

    def _core(self, backend: Backend) -> Core:
        return Core(
            backend,
            self._ready,
            upsert=self.upsert_mode,
            batch_size=self.batch_size,
            encoder=self._encoder,
            options=StoreOptions(
                self.consistency_level,
                self.output_fields,
                self.search_config,
                self.hybrid_ranker,
                self.hybrid_ranker_params,
            ),
        )


def _rebuild(cls: type[MilvusVectorStore], arguments: dict[str, Any]) -> MilvusVectorStore:
    return cls(**arguments)


# Computed once: most calls have none.
_NO_OPTIONS: dict[type[Any], Any] = {
    cls: cls() for cls in (WriteOptions, DeleteOptions, GetOptions, SearchOptions)
}


def _read_options(cls: type[Any], operation: str, arguments: dict[str, Any]) -> Any:
    if not arguments:
        return _NO_OPTIONS[cls]
    level = arguments.get("consistency_level")
    if level is not None:
        arguments = {**arguments, "consistency_level": check_consistency_level(level)}
    check_timeout(arguments.get("timeout"))
    return read_options(cls, operation, arguments)
