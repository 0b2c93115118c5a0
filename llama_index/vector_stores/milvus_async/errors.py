"""`llama_index_milvus_async.errors`, as a part of the alias."""

from llama_index_milvus_async.errors import *  # noqa: F403
from llama_index_milvus_async.errors import __all__ as __all__
