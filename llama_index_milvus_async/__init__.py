"""An async-first LlamaIndex vector store for Milvus.

`MilvusVectorStore` is a drop-in for `llama_index.vector_stores.milvus.MilvusVectorStore`.
"""

from importlib.metadata import version

from . import _pymilvus  # noqa: F401 - first of all: the others import pymilvus
from .documents import StoredDocument
from .embeddings import CoalescingEmbedding
from .errors import (
    AuthenticationError,
    CertificateError,
    CollectionError,
    ConfigurationError,
    EncoderError,
    FilterError,
    IngestionError,
    LiteFileError,
    LiteNotInstalledError,
    MigrationError,
    MilvusVectorStoreError,
    NodeError,
    PartialWriteError,
    PermissionDeniedError,
    PymilvusNotSupportedError,
    QueryError,
    RequestTimeoutError,
    RowError,
    ServerError,
    StoreClosedError,
    UnreachableError,
    WriteOutcomeUnknownError,
)
from .events import MilvusOperationEndEvent, MilvusOperationStartEvent
from .filters import FilterOperatorFunction, ScalarMetadataFilter, ScalarMetadataFilters
from .indexes import IndexManagement
from .ingestion import IngestResult, aingest, ingest
from .rankers import NewestFirst
from .sparse import (
    BaseSparseEmbeddingFunction,
    BGEM3SparseEmbeddingFunction,
    BM25BuiltInFunction,
)
from .stats import KindStats
from .store import MilvusVectorStore

__version__ = version("llama-index-milvus-async")

__all__ = [
    "AuthenticationError",
    "BGEM3SparseEmbeddingFunction",
    "BM25BuiltInFunction",
    "BaseSparseEmbeddingFunction",
    "CertificateError",
    "CoalescingEmbedding",
    "CollectionError",
    "ConfigurationError",
    "EncoderError",
    "FilterError",
    "FilterOperatorFunction",
    "IndexManagement",
    "IngestResult",
    "IngestionError",
    "KindStats",
    "LiteFileError",
    "LiteNotInstalledError",
    "MigrationError",
    "MilvusOperationEndEvent",
    "MilvusOperationStartEvent",
    "MilvusVectorStore",
    "MilvusVectorStoreError",
    "NewestFirst",
    "NodeError",
    "PartialWriteError",
    "PermissionDeniedError",
    "PymilvusNotSupportedError",
    "QueryError",
    "RequestTimeoutError",
    "RowError",
    "ScalarMetadataFilter",
    "ScalarMetadataFilters",
    "ServerError",
    "StoreClosedError",
    "StoredDocument",
    "UnreachableError",
    "WriteOutcomeUnknownError",
    "aingest",
    "ingest",
]

# Tracebacks and pickles show the names that users import, in whichever file a class stands.
for _name in __all__:
    globals()[_name].__module__ = __name__
