"""Sparse embeddings: who computes them.

Either Milvus computes them from the texts, by a `BM25BuiltInFunction`, or this side does: by a
subclass of `BaseSparseEmbeddingFunction` such as `BGEM3SparseEmbeddingFunction`, or by any other
encoder that `MilvusVectorStore(sparse_embedding_function=...)` accepts.
"""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from typing import Any

from llama_index.core.vector_stores.utils import DEFAULT_TEXT_KEY
from pymilvus import Function, FunctionType

from ._concurrency.drivers import acall
from .errors import ConfigurationError

__all__ = [
    "BGEM3SparseEmbeddingFunction",
    "BM25BuiltInFunction",
    "BaseSparseEmbeddingFunction",
]


class BaseSparseEmbeddingFunction(ABC):
    """Computes the sparse embeddings of queries and documents on this side.

    A subclass defines `encode_queries` and `encode_documents`; both may block. The async
    methods then call these in a thread. One that has an async interface of its own overrides
    them; these are then awaited on the event loop and must not block it.

    The store calls it once at a time on each event loop. Its sync methods, and other loops, may
    call it at the same moment, so that it has to be safe in threads where these are used.
    """

    @abstractmethod
    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Encode the texts of queries. May block.

        Args:
            queries: The texts.

        Returns:
            One embedding for each text: index of a dimension to its value.
        """

    @abstractmethod
    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Encode the texts of documents. May block.

        Args:
            documents: The texts.

        Returns:
            One embedding for each text: index of a dimension to its value.
        """

    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Encode the texts of queries; by default `encode_queries`, in a thread."""
        vectors: list[dict[int, float]] = await acall(self.encode_queries, queries)
        return vectors

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Encode the texts of documents; by default `encode_documents`, in a thread."""
        vectors: list[dict[int, float]] = await acall(self.encode_documents, documents)
        return vectors


class BGEM3SparseEmbeddingFunction(BaseSparseEmbeddingFunction):
    """The lexical weights of BGE-M3, computed by FlagEmbedding.

    The constructor loads the model and blocks. Texts are encoded by one thread at a time.

    Args:
        model_name: Name or path of the model.
        use_fp16: Whether to compute in half precision.
        **model_options: Further arguments of FlagEmbedding's `BGEM3FlagModel`, such as `devices`
            or `cache_dir`.

    Raises:
        ImportError: FlagEmbedding is not installed, or cannot be imported.
    """

    def __init__(
        self, model_name: str = "BAAI/bge-m3", use_fp16: bool = False, **model_options: Any
    ) -> None:
        try:
            from FlagEmbedding import BGEM3FlagModel  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise ImportError(
                f"BGEM3SparseEmbeddingFunction needs FlagEmbedding ({error}); install it with: "
                "pip install FlagEmbedding"
            ) from error
        self.model = BGEM3FlagModel(model_name, use_fp16=use_fp16, **model_options)
        self._lock = threading.Lock()

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Encode the texts of queries. Blocks."""
        return self._encode(queries)

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Encode the texts of documents. Blocks."""
        return self._encode(documents)

    def _encode(self, texts: list[str]) -> list[dict[int, float]]:
        # Tokenizers are not safe in threads (huggingface/transformers#47085), and with several
        # devices FlagEmbedding has one queue of results for all calls.
        with self._lock:
            output = self.model.encode(
                texts, return_dense=False, return_sparse=True, return_colbert_vecs=False
            )
        return [
            {int(token): float(weight) for token, weight in weights.items()}
            for weights in output["lexical_weights"]
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


class BM25BuiltInFunction(Function):  # type: ignore[misc]
    """Milvus' own BM25: it computes the sparse embeddings of a text column, and of queries.

    Args:
        input_field_names: The text column to read, a name or a list of one.
        output_field_names: The sparse vector column to write, a name or a list of one.
        function_name: The function's name in the collection; a unique one by default.
        function_description: Its description.
        function_params: Its parameters.
        analyzer_params: How the texts are split into words
            (https://milvus.io/docs/analyzer-overview.md); by default Milvus' standard analyzer.
        multi_analyzer_params: The same for texts in several languages, in the place of
            `analyzer_params` (https://milvus.io/docs/multi-language-analyzers.md).
        enable_match: Whether filters may match the words of the column (`TEXT_MATCH`).

    Raises:
        ConfigurationError: An argument is not allowed; the message names it.
    """

    def __init__(
        self,
        input_field_names: str | list[str] = DEFAULT_TEXT_KEY,
        output_field_names: str | list[str] = "sparse_embedding",
        function_name: str | None = None,
        function_description: str = "",
        function_params: dict[str, Any] | None = None,
        analyzer_params: dict[Any, Any] | None = None,
        multi_analyzer_params: dict[Any, Any] | None = None,
        enable_match: bool = False,
    ) -> None:
        inputs = _one_name("input_field_names", input_field_names)
        outputs = _one_name("output_field_names", output_field_names)
        if inputs == outputs:
            raise ConfigurationError(
                f"output_field_names is {outputs[0]!r}, which input_field_names names as well; "
                "name another column"
            )
        for argument, text in {
            "function_name": function_name or "",
            "function_description": function_description,
        }.items():
            if not isinstance(text, str):
                raise ConfigurationError(f"{argument} is {text!r}; it must be a string")
        for argument, value in {
            "function_params": function_params,
            "analyzer_params": analyzer_params,
            "multi_analyzer_params": multi_analyzer_params,
        }.items():
            if not isinstance(value, (dict, type(None))):
                raise ConfigurationError(f"{argument} is {value!r}; it must be a dictionary")
        if analyzer_params is not None and multi_analyzer_params is not None:
            raise ConfigurationError(
                "analyzer_params and multi_analyzer_params exclude each other; pass one of them"
            )
        super().__init__(
            function_name or f"bm25_function_{uuid.uuid4().hex[:8]}",
            FunctionType.BM25,
            inputs,
            outputs,
            function_description,
            function_params,
        )
        self.analyzer_params = analyzer_params
        self.multi_analyzer_params = multi_analyzer_params
        self.enable_match = enable_match

    def get_field_kwargs(self) -> dict[str, Any]:
        """The arguments that the column which is read needs in its `FieldSchema`."""
        analyzers = {
            "analyzer_params": self.analyzer_params,
            "multi_analyzer_params": self.multi_analyzer_params,
        }
        given = {name: params for name, params in analyzers.items() if params is not None}
        return {"enable_analyzer": True, "enable_match": self.enable_match, **given}


def _one_name(argument: str, value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    one = isinstance(names, (list, tuple)) and len(names) == 1
    if not one or not isinstance(names[0], str) or not names[0]:
        raise ConfigurationError(
            f"{argument} is {value!r}; it must be the name of one column, because BM25 reads one "
            "and writes one"
        )
    return list(names)
