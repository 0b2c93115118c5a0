"""An asynchronous-first LlamaIndex vector store for Milvus.

`MilvusVectorStore` is a drop-in for `llama_index.vector_stores.milvus.MilvusVectorStore`.
"""

from importlib.metadata import version

from ._concurrency.coalescing import KindStats
from ._operations.observing import MilvusOperationEndEvent, MilvusOperationStartEvent
from ._translation.filters import (
    FilterOperatorFunction,
    ScalarMetadataFilter,
    ScalarMetadataFilters,
)
from .errors import (
    AuthenticationError,
    CertificateError,
    CollectionError,
    ConfigurationError,
    EncoderError,
    FilterError,
    LiteFileError,
    LiteNotInstalledError,
    MilvusVectorStoreError,
    NodeError,
    PartialWriteError,
    PermissionDeniedError,
    QueryError,
    RequestTimeoutError,
    RowError,
    ServerError,
    StoreClosedError,
    UnreachableError,
    WriteOutcomeUnknownError,
)
from .sparse import (
    BaseSparseEmbeddingFunction,
    BGEM3SparseEmbeddingFunction,
    BM25BuiltInFunction,
)
from .store import IndexManagement, MilvusVectorStore

__version__ = version("llama-index-milvus-async")

__all__ = [
    "AuthenticationError",
    "BGEM3SparseEmbeddingFunction",
    "BM25BuiltInFunction",
    "BaseSparseEmbeddingFunction",
    "CertificateError",
    "CollectionError",
    "ConfigurationError",
    "EncoderError",
    "FilterError",
    "FilterOperatorFunction",
    "IndexManagement",
    "KindStats",
    "LiteFileError",
    "LiteNotInstalledError",
    "MilvusOperationEndEvent",
    "MilvusOperationStartEvent",
    "MilvusVectorStore",
    "MilvusVectorStoreError",
    "NodeError",
    "PartialWriteError",
    "PermissionDeniedError",
    "QueryError",
    "RequestTimeoutError",
    "RowError",
    "ScalarMetadataFilter",
    "ScalarMetadataFilters",
    "ServerError",
    "StoreClosedError",
    "UnreachableError",
    "WriteOutcomeUnknownError",
]
