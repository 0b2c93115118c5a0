"""Sparse embeddings: who computes them, and what they look like.

Either Milvus computes them of the texts, by a `BM25BuiltInFunction`, or this side does: by a
subclass of `BaseSparseEmbeddingFunction`, or by any other encoder that `SparseEncoder.of` accepts.

`SparseEncoder`, `sparse_vector` and `check_vectors` are internal to the package.
"""

from __future__ import annotations

import inspect
import itertools
import math
import operator
import reprlib
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.vector_stores.utils import DEFAULT_TEXT_KEY
from pymilvus import Function, FunctionType

from ._concurrency.drivers import acall, call, is_asynchronous
from ._translation.vectors import FLOAT32_MAX
from .errors import ConfigurationError, EncoderError

__all__ = [
    "BGEM3SparseEmbeddingFunction",
    "BM25BuiltInFunction",
    "BaseSparseEmbeddingFunction",
]

#: Milvus' bound on an index (pymilvus' `sparse_rows_to_proto` refuses what is larger).
MAX_INDEX = 2**32 - 2
#: What is not larger becomes zero as a 32-bit number: half of the smallest, ties to even.
_FLOAT32_ZERO = 2.0**-150


class BaseSparseEmbeddingFunction(ABC):
    """Computes the sparse embeddings of queries and documents on this side.

    A subclass defines `encode_queries` and `encode_documents`; both may block. The asynchronous
    methods then call these in a thread. One that has an asynchronous interface of its own overrides
    them; these are then awaited on the event loop and must not block it.

    The store calls it once at a time on each event loop. Its blocking methods, and other loops, may
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
                f"output_field_names is {outputs[0]!r}, the name of the column that is read; name "
                "a column of its own"
            )
        for argument, text in {
            "function_name": function_name or "",
            "function_description": function_description,
        }.items():
            if not isinstance(text, str):
                raise ConfigurationError(f"{argument} is {text!r}; it must be a text")
        for argument, value in {
            "function_params": function_params,
            "analyzer_params": analyzer_params,
            "multi_analyzer_params": multi_analyzer_params,
        }.items():
            if not isinstance(value, (dict, type(None))):
                raise ConfigurationError(f"{argument} is {value!r}; it must be a dictionary")
        if analyzer_params is not None and multi_analyzer_params is not None:
            raise ConfigurationError(
                "analyzer_params and multi_analyzer_params are both given, and a column has one or "
                "the other; leave one out"
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


class SparseEncoder:
    """One interface to whatever encodes texts on this side; see `of`."""

    def __init__(self, queries: _Side, documents: _Side) -> None:
        self._queries = queries
        self._documents = documents

    @classmethod
    def of(cls, value: Any) -> SparseEncoder:
        """Wrap an encoder.

        Args:
            value: An object with `encode_queries` and `encode_documents`, with or without their
                asynchronous twins; LlamaIndex' `BaseSparseEmbedding`; or a pair of functions or
                coroutine functions, the first for queries and the second for documents.

        Raises:
            ConfigurationError: It is none of these.
        """
        if isinstance(value, BaseSparseEmbedding):
            return cls(_core_queries(value), _core_documents(value))
        methods = [getattr(value, name, None) for name in ("encode_queries", "encode_documents")]
        if not isinstance(value, type) and all(map(callable, methods)):
            return cls(_method(value, "encode_queries"), _method(value, "encode_documents"))
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(map(callable, value)):
            return cls(*(_function(_name(function), function) for function in value))
        raise ConfigurationError(
            f"sparse_embedding_function is {_a(value)}; it must be a function of Milvus such as "
            "BM25BuiltInFunction(), an object with encode_queries and encode_documents such as a "
            "BaseSparseEmbeddingFunction, a BaseSparseEmbedding of LlamaIndex, or a pair of "
            "functions (encode_queries, encode_documents)"
        )

    def encode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts, by one call of the encoder. Blocks.

        An encoder that is asynchronous only runs on an event loop of its own, in a thread, so that
        this also works where a loop is running.

        Args:
            texts: The texts; without any, the encoder is not called.
            queries: Whether they are of queries, not of documents.

        Returns:
            One vector for each text as the encoder returned it, for `sparse_vector` to check.

        Raises:
            EncoderError: The encoder returned something else.
            Exception: What the encoder raises.
        """
        return self._side(queries).encode(list(texts)) if texts else []

    async def aencode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts as `encode` does, without blocking the event loop.

        The encoder's own asynchronous method is awaited; one that has none runs in a thread.
        """
        return await self._side(queries).aencode(list(texts)) if texts else []

    def _side(self, queries: bool) -> _Side:
        return self._queries if queries else self._documents


@dataclass(frozen=True)
class _Side:
    """How the texts of queries, or those of documents, are encoded: in one or both colours."""

    name: str
    blocking: Callable[[list[str]], Any] | None
    asynchronous: Callable[[list[str]], Awaitable[Any]] | None

    def encode(self, texts: list[str]) -> list[Any]:
        if self.blocking is None:
            vectors: list[Any] = call(self.aencode, texts)
            return vectors
        return check_vectors(self.blocking(list(texts)), len(texts), self.name)

    async def aencode(self, texts: list[str]) -> list[Any]:
        if self.asynchronous is None:
            vectors: list[Any] = await acall(self.encode, texts)
            return vectors
        return check_vectors(await self.asynchronous(list(texts)), len(texts), self.name)


def sparse_vector(value: Any) -> dict[int, float]:
    """Check a sparse vector and make a dictionary of it.

    Args:
        value: A mapping of indexes to values, a list of `(index, value)` pairs, or one row of a
            scipy sparse matrix or array.

    Returns:
        Index to value, without zeros.

    Raises:
        ValueError: The vector cannot be stored or searched; the message goes on after "its
            sparse embedding".
    """
    vector: dict[int, float] = {}
    for index, number in _pairs(value):
        # Nearly all are Python's own numbers in range, for which a call would be half of the time.
        if type(index) is not int or not 0 <= index <= MAX_INDEX:
            index = _index(index)
        if type(number) is not float or not abs(number) <= FLOAT32_MAX:
            number = _number(number, index)
        if index in vector:
            raise ValueError(f"has the index {index} twice")
        vector[index] = number
    vector = {index: number for index, number in vector.items() if abs(number) > _FLOAT32_ZERO}
    if not vector:
        raise ValueError("is all zeros")
    return vector


def check_vectors(vectors: Any, count: int, what: str) -> list[Any]:
    """Check that an encoder returned as many vectors as it was given texts.

    Args:
        vectors: What it returned: a sequence of vectors, or a scipy sparse matrix with a row for
            each, as the functions of `pymilvus[model]` return. The vectors themselves are not
            looked at.
        count: The number of texts.
        what: The encoder's name.

    Returns:
        The vectors.

    Raises:
        EncoderError: It did not.
    """
    found = _a(vectors)
    if hasattr(vectors, "tocsr") and len(vectors.shape) == 2:
        if vectors.shape[0] == count:
            return list(vectors.tocsr())
        found = f"a sparse matrix of shape {vectors.shape}"
    elif _is_sequence(vectors) and len(vectors) == count:
        return list(vectors)
    elif inspect.iscoroutine(vectors):
        vectors.close()  # else Python warns that nobody awaited it
        found = 'a coroutine, without being an "async def"'
    raise EncoderError(
        f"{what} returned {found}; it must return a list of {count} sparse embeddings, one for "
        "each text"
    )


def _pairs(value: Any) -> Iterable[tuple[Any, Any]]:
    if hasattr(value, "tocoo"):  # scipy's dok_array is also a dictionary, of other keys
        row = value.tocoo()
        if len(row.shape) > 2 or row.shape[:-1] not in ((), (1,)):
            raise ValueError(f"is a sparse matrix of shape {row.shape}, not one row")
        # As Python's numbers, which are checked faster than numpy's.
        return zip(row.col.tolist(), row.data.tolist(), strict=True)
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value
    ):
        return value
    raise ValueError(
        f"is {_a(value)}, neither a dictionary of index to value nor a list of such pairs nor one "
        "row of a scipy sparse matrix"
    )


def _index(value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ValueError(f"has the index {reprlib.repr(value)}, which is no integer")
    index = operator.index(value)
    if not 0 <= index <= MAX_INDEX:
        raise ValueError(f"has the index {reprlib.repr(index)}, which is not in 0..{MAX_INDEX}")
    return index


def _number(value: Any, index: int) -> float:
    number = math.nan
    if isinstance(value, (float, int, np.floating, np.integer)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not abs(number) <= FLOAT32_MAX:
        raise ValueError(
            f"has {reprlib.repr(value)} at index {index}, which is no finite 32-bit number"
        )
    return number


def _function(
    name: str,
    function: Callable[[list[str]], Any],
    twin: Callable[[list[str]], Awaitable[Any]] | None = None,
) -> _Side:
    """A function and, where there is one, its asynchronous twin."""
    if is_asynchronous(function):
        return _Side(name, None, twin or function)
    return _Side(name, function, twin)


def _method(encoder: Any, name: str) -> _Side:
    twin = _async_twin(encoder, f"async_{name}", name)
    return _function(f"{type(encoder).__name__}.{name}", getattr(encoder, name), twin)


def _async_twin(encoder: Any, name: str, blocking: str) -> Callable[..., Awaitable[Any]] | None:
    """An encoder's asynchronous method, if it is more than its base class' default.

    The default of the upstream plugin's base class calls the blocking method on the event loop.
    Such a class is recognized by its blocking method, which is still abstract.
    """
    twin: Callable[..., Awaitable[Any]] | None = getattr(encoder, name, None)
    if name not in getattr(encoder, "__dict__", {}):
        for defining in type(encoder).__mro__:
            if name in vars(defining):
                is_default = getattr(vars(defining).get(blocking), "__isabstractmethod__", False)
                return None if is_default else twin
    return twin  # of the object itself, not of its class


# Every `BaseSparseEmbedding` has asynchronous methods, for they are abstract; those of models on
# this machine, such as `FastEmbedSparseEmbedding`, just call the blocking ones. Nothing tells these
# from real ones, so that the blocking ones are called, in a thread.
def _core_queries(embedding: BaseSparseEmbedding) -> _Side:
    # It has no method for several queries, other than one that adds them up.
    name = f"{type(embedding).__name__}.get_query_embedding"
    return _Side(name, partial(_encode_each, embedding), None)


def _core_documents(embedding: BaseSparseEmbedding) -> _Side:
    name = f"{type(embedding).__name__}.get_text_embedding_batch"
    return _Side(name, embedding.get_text_embedding_batch, None)


def _encode_each(embedding: BaseSparseEmbedding, queries: list[str]) -> list[Any]:
    return [embedding.get_query_embedding(query) for query in queries]


def _one_name(argument: str, value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    one = isinstance(names, (list, tuple)) and len(names) == 1
    if not one or not isinstance(names[0], str) or not names[0]:
        raise ConfigurationError(
            f"{argument} is {value!r}; it must be the name of one column, for BM25 reads one and "
            "writes one"
        )
    return list(names)


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _a(value: Any) -> str:
    """What a value is; its content may be long, or a secret."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance"
    if _is_sequence(value):
        kinds = [type(item).__name__ for item in itertools.islice(value, 3)]
        kinds += ["..."] if len(value) > len(kinds) else []
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds)})"
    return f"a value of type {type(value).__name__}"


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
