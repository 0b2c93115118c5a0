"""Sparse embeddings: who computes them, on which thread, and which vectors are one."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import copy
import functools
import math
import pickle
import struct
import sys
import threading
import time
import types
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from pymilvus import CollectionSchema, DataType, FieldSchema, Function, FunctionType

from llama_index_milvus_async._operations.sparse_encoders import SparseEncoder, check_vectors
from llama_index_milvus_async._translation.sparse_vectors import (
    MAX_INDEX,
    sparse_bytes,
    sparse_vector,
)
from llama_index_milvus_async.errors import ConfigurationError, EncoderError
from llama_index_milvus_async.sparse import (
    BaseSparseEmbeddingFunction,
    BGEM3SparseEmbeddingFunction,
    BM25BuiltInFunction,
)

FLOAT32_MAX = float(np.finfo(np.float32).max)
TEXTS = ["a", "bb", "ccc"]


def lengths(texts: list[str], sign: int) -> list[dict[int, float]]:
    return [{len(text): float(sign)} for text in texts]


QUERIES, DOCUMENTS = lengths(TEXTS, -1), lengths(TEXTS, 1)


class Calls(list[tuple[str, list[str], int]]):
    """Which method was called, with which texts, on which thread."""

    def add(self, method: str, texts: list[str], sign: int) -> list[dict[int, float]]:
        self.append((method, list(texts), threading.get_ident()))
        return lengths(texts, sign)

    @property
    def methods(self) -> list[str]:
        return [method for method, _, _ in self]

    @property
    def threads(self) -> set[int]:
        return {thread for _, _, thread in self}


class Blocking(BaseSparseEmbeddingFunction):
    def __init__(self) -> None:
        self.calls = Calls()

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_queries", queries, -1)

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_documents", documents, 1)


class Both(Blocking):
    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return self.calls.add("async_encode_queries", queries, -1)

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        return self.calls.add("async_encode_documents", documents, 1)


class InlineTwins(ABC):
    """A base class as upstream's: the default of the asynchronous methods blocks."""

    @abstractmethod
    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]: ...

    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return self.encode_queries(queries)

    @abstractmethod
    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]: ...

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        return self.encode_documents(documents)


class OfInlineTwins(InlineTwins):
    def __init__(self) -> None:
        self.calls = Calls()

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_queries", queries, -1)

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_documents", documents, 1)


class SubclassOfThat(OfInlineTwins):
    """Neither is the method of a base class' base class an override."""


class OverriddenTwins(OfInlineTwins):
    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return self.calls.add("async_encode_queries", queries, -1)

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        return self.calls.add("async_encode_documents", documents, 1)


class SubclassOfOverriddenTwins(OverriddenTwins):
    """An inherited override is one."""


class Unrelated:
    """No base class, and no asynchronous methods."""

    def __init__(self) -> None:
        self.calls = Calls()

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_queries", queries, -1)

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_documents", documents, 1)


class CoroutineMethods:
    """The methods that are usually blocking are not."""

    def __init__(self) -> None:
        self.calls = Calls()

    async def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_queries", queries, -1)

    async def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        return self.calls.add("encode_documents", documents, 1)


class OfCore(BaseSparseEmbedding):
    _calls: Calls = PrivateAttr(default_factory=Calls)

    @property
    def calls(self) -> Calls:
        return self._calls

    def _get_query_embedding(self, query: str) -> dict[int, float]:
        return self.calls.add("query", [query], -1)[0]

    async def _aget_query_embedding(self, query: str) -> dict[int, float]:
        return self.calls.add("aquery", [query], -1)[0]

    def _get_text_embedding(self, text: str) -> dict[int, float]:
        raise NotImplementedError

    async def _aget_text_embedding(self, text: str) -> dict[int, float]:
        raise NotImplementedError

    def _get_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return self.calls.add("texts", texts, 1)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[dict[int, float]]:
        return self.calls.add("atexts", texts, 1)


def functions(calls: Calls) -> Any:
    def queries(texts: list[str]) -> list[dict[int, float]]:
        return calls.add("queries", texts, -1)

    def documents(texts: list[str]) -> list[dict[int, float]]:
        return calls.add("documents", texts, 1)

    return queries, documents


def coroutine_functions(calls: Calls) -> Any:
    async def queries(texts: list[str]) -> list[dict[int, float]]:
        await asyncio.sleep(0)
        return calls.add("queries", texts, -1)

    async def documents(texts: list[str]) -> list[dict[int, float]]:
        await asyncio.sleep(0)
        return calls.add("documents", texts, 1)

    return queries, documents


def partials(calls: Calls) -> Any:
    async def encode(sign: int, texts: list[str]) -> list[dict[int, float]]:
        return calls.add("queries" if sign < 0 else "documents", texts, sign)

    return [functools.partial(encode, -1), functools.partial(encode, 1)]


def objects(calls: Calls) -> Any:
    class Call:
        def __init__(self, sign: int) -> None:
            self.sign = sign

        async def __call__(self, texts: list[str]) -> list[dict[int, float]]:
            return calls.add("queries" if self.sign < 0 else "documents", texts, self.sign)

    return Call(-1), Call(1)


# What encodes, and the threads of its blocking and of its asynchronous interface.
CASES = [
    (Blocking, "caller", "other"),
    (Both, "caller", "caller"),
    (OfInlineTwins, "caller", "other"),
    (SubclassOfThat, "caller", "other"),
    (OverriddenTwins, "caller", "caller"),
    (SubclassOfOverriddenTwins, "caller", "caller"),
    (Unrelated, "caller", "other"),
    (CoroutineMethods, "other", "caller"),
    (OfCore, "caller", "other"),
    (functions, "caller", "other"),
    (coroutine_functions, "other", "caller"),
    (partials, "other", "caller"),
    (objects, "other", "caller"),
]
every_encoder = pytest.mark.parametrize(
    ("make", "blocking", "asynchronous"),
    [pytest.param(*case, id=case[0].__name__) for case in CASES],
)


def build(make: Any) -> tuple[SparseEncoder, Calls]:
    if isinstance(make, type):
        encoder = make()
        return SparseEncoder.of(encoder), encoder.calls
    calls = Calls()
    return SparseEncoder.of(make(calls)), calls


def check_calls(calls: Calls, thread: str) -> None:
    """One for all documents, and one for all queries except where each needs its own."""
    queries = [[text] for text in TEXTS] if calls.methods[0] in ("query", "aquery") else [TEXTS]
    assert [texts for _, texts, _ in calls] == [*queries, TEXTS]
    here = threading.get_ident()
    assert calls.threads == {here} if thread == "caller" else here not in calls.threads


@every_encoder
def test_blocking(make, blocking, asynchronous):
    encoder, calls = build(make)
    assert encoder.encode(TEXTS, queries=True) == QUERIES
    assert encoder.encode(tuple(TEXTS), queries=False) == DOCUMENTS
    check_calls(calls, blocking)


@every_encoder
async def test_blocking_inside_a_running_loop(make, blocking, asynchronous):
    encoder, calls = build(make)
    assert encoder.encode(TEXTS, queries=True) == QUERIES
    assert encoder.encode(TEXTS, queries=False) == DOCUMENTS
    check_calls(calls, blocking)


@every_encoder
async def test_asynchronous(make, blocking, asynchronous):
    encoder, calls = build(make)
    assert await encoder.aencode(TEXTS, queries=True) == QUERIES
    assert await encoder.aencode(tuple(TEXTS), queries=False) == DOCUMENTS
    check_calls(calls, asynchronous)


@pytest.mark.parametrize("encoder_class", [Both, OverriddenTwins, SubclassOfOverriddenTwins])
async def test_each_colour_has_its_own_method(encoder_class):
    encoder, calls = build(encoder_class)
    await encoder.aencode(TEXTS, queries=True)
    await encoder.aencode(TEXTS, queries=False)
    encoder.encode(TEXTS, queries=True)
    encoder.encode(TEXTS, queries=False)
    assert calls.methods == [
        "async_encode_queries",
        "async_encode_documents",
        "encode_queries",
        "encode_documents",
    ]


async def test_without_texts_nothing_is_called():
    both = Both()
    encoder = SparseEncoder.of(both)
    assert encoder.encode([], queries=True) == []
    assert await encoder.aencode([], queries=False) == []
    assert both.calls == []


async def test_a_pair_of_two_colours():
    calls = Calls()
    encoder = SparseEncoder.of((functions(calls)[0], coroutine_functions(calls)[1]))
    here = threading.get_ident()
    assert await encoder.aencode(TEXTS, queries=True) == QUERIES
    assert await encoder.aencode(TEXTS, queries=False) == DOCUMENTS
    assert [thread == here for _, _, thread in calls] == [False, True]
    assert encoder.encode(TEXTS, queries=True) == QUERIES
    assert encoder.encode(TEXTS, queries=False) == DOCUMENTS
    assert [thread == here for _, _, thread in calls[2:]] == [True, False]


async def test_an_asynchronous_method_of_the_object_itself_is_awaited():
    encoder, calls = OfInlineTwins(), Calls()
    encoder.async_encode_queries = coroutine_functions(calls)[0]
    assert await SparseEncoder.of(encoder).aencode(TEXTS, queries=True) == QUERIES
    assert calls.threads == {threading.get_ident()}
    assert encoder.calls == []


async def test_an_asynchronous_attribute_that_is_none_is_not_called():
    encoder = Unrelated()
    encoder.async_encode_queries = None
    assert await SparseEncoder.of(encoder).aencode(TEXTS, queries=True) == QUERIES
    assert encoder.calls.methods == ["encode_queries"]


async def test_of_two_coroutine_functions_the_asynchronous_method_is_awaited():
    class Two(CoroutineMethods):
        async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
            return self.calls.add("async_encode_queries", queries, -1)

    encoder = Two()
    assert await SparseEncoder.of(encoder).aencode(TEXTS, queries=True) == QUERIES
    assert SparseEncoder.of(encoder).encode(TEXTS, queries=True) == QUERIES
    assert encoder.calls.methods == 2 * ["async_encode_queries"]


async def test_one_overridden_method_of_two():
    class One(OfInlineTwins):
        async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
            return self.calls.add("async_encode_queries", queries, -1)

    encoder = One()
    await SparseEncoder.of(encoder).aencode(TEXTS, queries=True)
    await SparseEncoder.of(encoder).aencode(TEXTS, queries=False)
    assert encoder.calls.methods == ["async_encode_queries", "encode_documents"]


async def test_the_default_of_our_base_class_runs_in_a_thread():
    encoder = Blocking()
    assert await encoder.async_encode_queries(TEXTS) == QUERIES
    assert await encoder.async_encode_documents(TEXTS) == DOCUMENTS
    assert encoder.calls.methods == ["encode_queries", "encode_documents"]
    assert threading.get_ident() not in encoder.calls.threads


def sleep_and_encode(texts: list[str]) -> list[dict[int, float]]:
    time.sleep(0.2)
    return lengths(texts, -1)


async def wait_and_encode(texts: list[str]) -> list[dict[int, float]]:
    await asyncio.sleep(0.2)
    return lengths(texts, -1)


class Sleepy(OfInlineTwins):
    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        return sleep_and_encode(queries)


@pytest.mark.parametrize(
    "encoder",
    [Sleepy(), (sleep_and_encode, sleep_and_encode), (wait_and_encode, wait_and_encode)],
    ids=["object", "functions", "coroutine functions"],
)
async def test_the_loop_is_not_held(encoder):
    ticks = 0
    encoding = asyncio.ensure_future(SparseEncoder.of(encoder).aencode(TEXTS, queries=True))
    while not encoding.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert encoding.result() == QUERIES
    assert ticks > 5  # of about 40


async def test_calls_of_a_blocking_encoder_overlap():
    """Each waits for the other; one after the other, they would break the barrier."""
    barrier = threading.Barrier(2, timeout=30)

    def encode(texts: list[str]) -> list[dict[int, float]]:
        barrier.wait()
        return lengths(texts, -1)

    encoder = SparseEncoder.of((encode, encode))
    calls = (encoder.aencode(TEXTS, queries=True) for _ in range(2))
    assert await asyncio.gather(*calls) == [QUERIES, QUERIES]


async def test_an_encoder_that_changes_its_list_is_told_apart_from_the_callers():
    def pop_all(texts: list[str]) -> list[dict[int, float]]:
        return [{len(texts.pop(0)): -1.0} for _ in range(len(texts))]

    async def async_pop_all(texts: list[str]) -> list[dict[int, float]]:
        return pop_all(texts)

    texts = list(TEXTS)
    for encoder in map(SparseEncoder.of, [(pop_all, pop_all), (async_pop_all, async_pop_all)]):
        assert encoder.encode(texts, queries=True) == QUERIES
        assert await encoder.aencode(texts, queries=True) == QUERIES
    assert texts == TEXTS


async def test_the_context_of_the_caller_is_the_encoders():
    variable = contextvars.ContextVar("variable", default="")

    def blocking(texts: list[str]) -> list[str]:
        return [variable.get() for _ in texts]

    async def asynchronous(texts: list[str]) -> list[str]:
        return blocking(texts)

    variable.set("of the caller")
    for encoder in map(SparseEncoder.of, [(blocking, blocking), (asynchronous, asynchronous)]):
        assert encoder.encode(["a"], queries=True) == ["of the caller"]
        assert await encoder.aencode(["a"], queries=True) == ["of the caller"]


# Errors of encoders


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("kind", ["function", "coroutine function"])
async def test_an_exception_of_the_encoder_passes_through(colour, kind):
    error = KeyError("its own")

    def fail(texts: list[str]) -> Any:
        raise error

    async def afail(texts: list[str]) -> Any:
        raise error

    function = fail if kind == "function" else afail
    encoder = SparseEncoder.of((function, function))
    with pytest.raises(KeyError) as raised:
        if colour == "sync":
            encoder.encode(TEXTS, queries=True)
        else:
            await encoder.aencode(TEXTS, queries=True)
    assert raised.value is error


async def test_documents_of_core_come_in_its_batches():
    encoder = OfCore(embed_batch_size=2)
    assert SparseEncoder.of(encoder).encode(TEXTS, queries=False) == DOCUMENTS
    assert await SparseEncoder.of(encoder).aencode(TEXTS, queries=False) == DOCUMENTS
    assert [texts for _, texts, _ in encoder.calls] == 2 * [TEXTS[:2], TEXTS[2:]]


def answering(answer: Any) -> SparseEncoder:
    def answer_queries(texts: list[str]) -> Any:
        return answer

    return SparseEncoder.of((answer_queries, answer_queries))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ([{1: 1.0}], r"a list of 1 \(dict\)"),
        ([{1: 1.0}] * 4, r"a list of 4 \(dict, dict, dict, \.\.\.\)"),
        ([], r"a list of 0 \(\)"),
        (None, "None"),
        ({1: 1.0, 2: 2.0, 3: 3.0}, "a value of type dict"),
        ("abc", "a value of type str"),
        (b"abc", "a value of type bytes"),
        (3, "a value of type int"),
        (iter(QUERIES), "a value of type list_iterator"),
        (np.zeros((3, 4)), "a value of type ndarray"),
        (collections.deque(QUERIES[:2]), r"a deque of 2 \(dict, dict\)"),
    ],
)
async def test_what_is_no_list_of_vectors(answer, found):
    encoder = answering(answer)
    message = (
        rf"answer_queries returned {found}; it must return a list of 3 sparse embeddings, one for "
        "each text"
    )
    with pytest.raises(EncoderError, match=message):
        encoder.encode(TEXTS, queries=True)
    with pytest.raises(EncoderError, match=message):
        await encoder.aencode(TEXTS, queries=True)


async def test_a_coroutine_of_a_function_that_is_no_coroutine_function():
    """It runs in a thread, where nothing could be awaited; and nobody warns beside that."""
    asynchronous = coroutine_functions(Calls())[0]
    encoder = SparseEncoder.of((lambda texts: asynchronous(texts), asynchronous))
    with pytest.raises(EncoderError, match='returned a coroutine, without being an "async def"'):
        await encoder.aencode(TEXTS, queries=True)
    with pytest.raises(EncoderError, match="<lambda> returned a coroutine"):
        encoder.encode(TEXTS, queries=True)


def test_the_class_of_an_encoder_is_named():
    class Short(Blocking):
        def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
            return super().encode_documents(documents)[1:]

    with pytest.raises(EncoderError, match=r"^Short\.encode_documents returned a list of 2"):
        SparseEncoder.of(Short()).encode(TEXTS, queries=False)


def test_vectors_are_left_for_each_node_to_be_judged():
    assert answering([{1: 1.0}, "no vector", None]).encode(TEXTS, queries=True) == [
        {1: 1.0},
        "no vector",
        None,
    ]


@pytest.mark.parametrize("vectors", [[{}, {1: 2.0}], ({}, {1: 2.0})])
def test_check_vectors_returns_a_list(vectors):
    assert check_vectors(vectors, 2, "x") == [{}, {1: 2.0}]


# What encodes


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "None"),
        ("BM25", "a value of type str"),
        (Blocking, "the class Blocking, not an instance"),
        (lambda texts: texts, "a value of type function"),
        ((print,), r"a tuple of 1 \(builtin_function_or_method\)"),
        ((print, None), r"a tuple of 2 \(builtin_function_or_method, NoneType\)"),
        ((print, print, print, print), r"a tuple of 4 \(.*, \.\.\.\)"),
        (types.SimpleNamespace(encode_queries=print), "a value of type SimpleNamespace"),
        (
            types.SimpleNamespace(encode_queries=print, encode_documents=3),
            "a value of type SimpleNamespace",
        ),
        ({"encode_queries": print, "encode_documents": print}, "a value of type dict"),
    ],
)
def test_what_is_no_encoder(value, found):
    message = (
        rf"^sparse_embedding_function is {found}; it must be .*BM25BuiltInFunction\(\).*"
        "encode_queries and encode_documents.*BaseSparseEmbedding of LlamaIndex.*pair of functions"
    )
    with pytest.raises(ConfigurationError, match=message):
        SparseEncoder.of(value)


def test_no_encoder_is_shown_with_its_content():
    with pytest.raises(ConfigurationError) as raised:
        SparseEncoder.of("secret")
    assert "secret" not in str(raised.value)


# One vector

indexes = st.integers(0, MAX_INDEX)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)
vectors = st.dictionaries(indexes, numbers, min_size=1)


class Row:
    """One row, as scipy has it: in coordinates, with or without a dimension for the rows."""

    def __init__(self, vector: dict[int, Any], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.col = np.array(list(vector), dtype=np.int64)
        self.data = np.array(list(vector.values()))

    def tocoo(self) -> Row:
        return self


class Matrix:
    """Rows, as `pymilvus[model]` returns them."""

    def __init__(self, vectors: list[dict[int, float]]) -> None:
        self.shape = (len(vectors), 10)
        self._vectors = vectors

    def tocsr(self) -> list[Row]:
        return [Row(vector, (10,)) for vector in self._vectors]


@given(vectors)
def test_every_form_is_the_same_vector(vector):
    for form in (
        vector,
        types.MappingProxyType(vector),
        list(vector.items()),
        tuple(vector.items()),
        [list(pair) for pair in vector.items()],
        {np.uint32(index): np.float32(value) for index, value in vector.items()},
        [(np.int64(index), np.float64(value)) for index, value in vector.items()],
        Row(vector, (1, MAX_INDEX + 1)),
        Row(vector, (MAX_INDEX + 1,)),
    ):
        found = sparse_vector(form)
        assert found == vector
        assert {type(index) for index in found} == {int}
        assert {type(value) for value in found.values()} == {float}


@given(vectors)
def test_the_bytes_of_a_vector_are_its_entries_by_index(vector):
    content = sparse_bytes(vector)
    entries = list(struct.iter_unpack("<If", content))
    assert entries == sorted(vector.items())


@given(vectors)
def test_what_is_checked_can_be_checked_again(vector):
    assert sparse_vector(sparse_vector(vector)) == vector


@given(vectors, st.lists(indexes))
def test_zeros_are_dropped(vector, zeros):
    assert sparse_vector({**dict.fromkeys(zeros, 0.0), **vector}) == vector


def test_integers_are_values():
    assert sparse_vector({0: 1, 7: np.int8(-2), MAX_INDEX: np.float16(0.5)}) == {
        0: 1.0,
        7: -2.0,
        MAX_INDEX: 0.5,
    }


def test_32_bits_of_value():
    assert sparse_vector({1: FLOAT32_MAX, 2: -FLOAT32_MAX, 3: 1e-45, 4: 1e-46, 5: -1e-300}) == {
        1: FLOAT32_MAX,
        2: -FLOAT32_MAX,
        3: 1e-45,
    }


@given(st.floats(allow_nan=False, allow_infinity=False, max_value=1.0, min_value=-1.0))
@example(2.0**-150)
@example(math.nextafter(2.0**-150, 1))
def test_zero_is_what_32_bits_hold_as_zero(value):
    kept = sparse_vector({1: value, 2: 1.0})
    assert (1 in kept) == bool(np.float32(value))


@pytest.mark.parametrize(
    "value", [{}, [], {1: 0.0}, {1: -0.0, 2: 0}, [(1, 0)], {1: 1e-50}, Row({}, (1, 5))]
)
def test_all_zeros(value):
    with pytest.raises(ValueError, match=r"^is all zeros$"):
        sparse_vector(value)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("1", "'1', which is not an integer"),
        (1.0, "1.0, which is not an integer"),
        (True, "True, which is not an integer"),
        (np.bool_(True), ".*True.*, which is not an integer"),
        (None, "None, which is not an integer"),
        (-1, "-1, which is not in 0..4294967294"),
        (2**32 - 1, "4294967295, which is not in 0..4294967294"),
        (np.int64(-1), "-1, which is not in"),
    ],
)
def test_bad_indexes(index, problem):
    for form in ({index: 0.5}, [(index, 0.5)]):
        with pytest.raises(ValueError, match=f"^has the index {problem}"):
            sparse_vector(form)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        np.float32("nan"),
        FLOAT32_MAX * 1.0001,
        10**400,
        np.float64(1e39),
        "0.5",
        None,
        True,
        np.bool_(True),
        1j,
        [0.5],
    ],
)
def test_bad_values(value):
    for form in ({7: value}, [(7, value)]):
        with pytest.raises(ValueError, match=r"^has .* at index 7, which is not a finite 32-bit"):
            sparse_vector(form)


def test_a_long_value_is_cut_short():
    with pytest.raises(ValueError) as raised:
        sparse_vector({7: "x" * 10_000})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("second", [0.25, 0.0])
def test_duplicates(second):
    with pytest.raises(ValueError, match=r"^has the index 3 twice$"):
        sparse_vector([(3, 0.5), (np.int64(3), second)])


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        b"bytes",
        3,
        0.5,
        [0.5, 0.25],
        [(1, 0.5, 3)],
        [(1,)],
        (1, 0.5),
        ["ab"],
        {1, 2},
        np.zeros(3),
        np.zeros((3, 2)),
        iter([(1, 0.5)]),
    ],
)
def test_what_is_no_vector(value):
    with pytest.raises(ValueError, match=r"^is .*, neither a dictionary of index to value nor"):
        sparse_vector(value)


@pytest.mark.parametrize("shape", [(2, 5), (5, 1), (1, 1, 5), (0, 5)])
def test_a_matrix_is_no_row(shape):
    with pytest.raises(ValueError, match=r"^is a sparse matrix of shape .*, not one row"):
        sparse_vector(Row({1: 0.5}, shape))


@pytest.mark.parametrize("value", [1j, True])
def test_a_row_of_what_are_no_numbers(value):
    with pytest.raises(ValueError, match="not a finite 32-bit number"):
        sparse_vector(Row({1: value}, (1, 5)))


def test_a_row_that_is_also_a_dictionary():
    """As scipy's `dok_array` is, with coordinates for keys."""

    class DictionaryOfKeys(dict[tuple[int, int], float]):
        def tocoo(self) -> Row:
            return Row({column: value for (_, column), value in self.items()}, (1, 10))

    assert sparse_vector(DictionaryOfKeys({(0, 3): 0.5})) == {3: 0.5}


async def test_an_encoder_may_return_a_matrix():
    encoder = answering(Matrix(QUERIES))
    assert [sparse_vector(row) for row in encoder.encode(TEXTS, queries=True)] == QUERIES
    rows = await encoder.aencode(TEXTS, queries=True)
    assert [sparse_vector(row) for row in rows] == QUERIES
    with pytest.raises(EncoderError, match=r"returned a sparse matrix of shape \(3, 10\)"):
        encoder.encode(TEXTS[1:], queries=True)


# BM25


def bm25_parts(function: BM25BuiltInFunction) -> dict[str, Any]:
    return {**function.to_dict(), **function.get_field_kwargs()}


def test_bm25_by_default():
    function = BM25BuiltInFunction()
    assert isinstance(function, Function)
    assert function.type == FunctionType.BM25
    assert function.input_field_names == ["text"]
    assert function.output_field_names == ["sparse_embedding"]
    assert function.description == ""
    assert function.params == {}
    assert function.get_field_kwargs() == {"enable_analyzer": True, "enable_match": False}
    assert function.name and function.name != BM25BuiltInFunction().name


def test_bm25_arguments_by_position():
    params = {"bm25_k1": 1.5}
    function = BM25BuiltInFunction(
        ["body"], ["sparse"], "f", "its description", params, {"type": "english"}, None, True
    )
    assert function.to_dict() == {
        "name": "f",
        "description": "its description",
        "type": FunctionType.BM25,
        "input_field_names": ["body"],
        "output_field_names": ["sparse"],
        "params": params,
    }
    assert function.get_field_kwargs() == {
        "enable_analyzer": True,
        "enable_match": True,
        "analyzer_params": {"type": "english"},
    }


def test_bm25_in_several_languages():
    params = {"by_field": "language", "analyzers": {"default": {"tokenizer": "icu"}}}
    function = BM25BuiltInFunction(multi_analyzer_params=params)
    assert function.get_field_kwargs()["multi_analyzer_params"] == params
    assert "analyzer_params" not in function.get_field_kwargs()


def test_bm25_in_a_schema():
    function = BM25BuiltInFunction(analyzer_params={"type": "english"}, enable_match=True)
    options = function.get_field_kwargs()
    schema = CollectionSchema(
        [
            FieldSchema("id", DataType.INT64, is_primary=True),
            FieldSchema("text", DataType.VARCHAR, max_length=100, **options),
            FieldSchema("sparse_embedding", DataType.SPARSE_FLOAT_VECTOR),
        ],
        functions=[function],
    )
    assert [made.name for made in schema.functions] == [function.name]
    assert function.get_field_kwargs()["analyzer_params"] == {"type": "english"}


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda function: pickle.loads(pickle.dumps(function))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_bm25_duplicates(duplicate):
    function = BM25BuiltInFunction("body", analyzer_params={"type": "english"}, enable_match=True)
    made = duplicate(function)
    assert type(made) is BM25BuiltInFunction
    assert made == function
    assert bm25_parts(made) == bm25_parts(function)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_field_names": ""}, "input_field_names is ''; it must be the name of one column"),
        ({"input_field_names": []}, r"input_field_names is \[\]; it must be the name"),
        ({"input_field_names": [""]}, r"input_field_names is \[''\]; it must be the name"),
        ({"input_field_names": ["a", "b"]}, r"input_field_names is \['a', 'b'\]; it must be the"),
        ({"input_field_names": None}, "input_field_names is None; it must be the name"),
        ({"input_field_names": [3]}, r"input_field_names is \[3\]; it must be the name"),
        ({"output_field_names": ""}, "output_field_names is ''; it must be the name"),
        (
            {"output_field_names": "text"},
            "output_field_names is 'text', which input_field_names names",
        ),
        ({"function_name": 3}, "function_name is 3; it must be a string"),
        ({"function_description": None}, "function_description is None; it must be a string"),
        ({"function_params": [1]}, r"function_params is \[1\]; it must be a dictionary"),
        ({"analyzer_params": "english"}, "analyzer_params is 'english'; it must be a dictionary"),
        (
            {"analyzer_params": {}, "multi_analyzer_params": {}},
            "analyzer_params and multi_analyzer_params exclude each other; pass one",
        ),
    ],
)
def test_bm25_refuses(arguments, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        BM25BuiltInFunction(**arguments)


# BGE-M3


class FakeModel:
    """FlagEmbedding's interface: tokens are texts, weights numpy's 32 bits."""

    running = 0

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.options = options
        self.most_at_once = 0

    def encode(self, texts: list[str], **options: bool) -> dict[str, Any]:
        assert options == {
            "return_dense": False,
            "return_sparse": True,
            "return_colbert_vecs": False,
        }
        FakeModel.running += 1
        self.most_at_once = max(self.most_at_once, FakeModel.running)
        time.sleep(0.01)
        FakeModel.running -= 1
        weights = [
            collections.defaultdict(int, {str(len(text)): np.float32(0.5)}) for text in texts
        ]
        return {"dense_vecs": None, "lexical_weights": weights, "colbert_vecs": None}


@pytest.fixture
def flag_embedding(monkeypatch):
    module = types.ModuleType("FlagEmbedding")
    module.BGEM3FlagModel = FakeModel
    monkeypatch.setitem(sys.modules, "FlagEmbedding", module)


@pytest.mark.usefixtures("flag_embedding")
async def test_bgem3():
    function = BGEM3SparseEmbeddingFunction()
    assert function.model.name == "BAAI/bge-m3"
    assert function.model.options == {"use_fp16": False}
    expected = [{1: 0.5}, {2: 0.5}, {3: 0.5}]
    encoder = SparseEncoder.of(function)
    for queries in (True, False):
        found = encoder.encode(TEXTS, queries=queries)
        assert found == await encoder.aencode(TEXTS, queries=queries) == expected
        kinds = {(type(token), type(weight)) for v in found for token, weight in v.items()}
        assert kinds == {(int, float)}


@pytest.mark.usefixtures("flag_embedding")
def test_bgem3_arguments():
    function = BGEM3SparseEmbeddingFunction("other/model", use_fp16=True, devices=["cpu"])
    assert function.model.name == "other/model"
    assert function.model.options == {"use_fp16": True, "devices": ["cpu"]}


@pytest.mark.usefixtures("flag_embedding")
async def test_bgem3_is_used_by_one_thread_at_a_time():
    function = BGEM3SparseEmbeddingFunction()
    encoder = SparseEncoder.of(function)
    await asyncio.gather(*(encoder.aencode(TEXTS, queries=True) for _ in range(8)))
    assert function.model.most_at_once == 1


@pytest.mark.usefixtures("flag_embedding")
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda function: pickle.loads(pickle.dumps(function))]
)
def test_bgem3_duplicates(duplicate):
    assert duplicate(BGEM3SparseEmbeddingFunction()).encode_queries(["a"]) == [{1: 0.5}]


def test_bgem3_without_flag_embedding(monkeypatch):
    monkeypatch.setitem(sys.modules, "FlagEmbedding", None)
    with pytest.raises(ImportError, match="pip install FlagEmbedding") as raised:
        BGEM3SparseEmbeddingFunction()
    assert isinstance(raised.value.__cause__, ImportError)
