"""`llama_index_milvus_async` where LlamaIndex's users look for a vector store."""

from llama_index_milvus_async import *  # noqa: F403
from llama_index_milvus_async import __all__ as __all__
