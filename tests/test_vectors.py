"""Dense vectors of every type: what is stored of a number, in which bytes, what is refused."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pymilvus import DataType

from llama_index_milvus_async._translation.vectors import (
    DENSE_METRICS,
    FLOAT32_MAX,
    numbers_of,
    packed,
    unpacked,
)

FLOAT = DataType.FLOAT_VECTOR
FLOAT16 = DataType.FLOAT16_VECTOR
BFLOAT16 = DataType.BFLOAT16_VECTOR
INT8 = DataType.INT8_VECTOR
BINARY = DataType.BINARY_VECTOR
FLOATS = [FLOAT, FLOAT16, BFLOAT16]

# What a type keeps of numbers, by Python's own means: eight values, and their bytes in a message.
VALUES: dict[DataType, list[float]] = {
    FLOAT: [0.5, -1.25, 3.0, 0.0, 2.0**-100, -2.0, 7.0, 100.0],
    FLOAT16: [0.5, -1.25, 3.0, 0.0, 65504.0, -2.0, 7.0, 2.0**-24],
    BFLOAT16: [0.5, -1.25, 3.0, 0.0, 2.0**100, -2.0, 7.0, 2.0**-126],
    INT8: [-128.0, 127.0, 0.0, 1.0, -1.0, 5.0, 6.0, 7.0],
    BINARY: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0],
}
BYTES: dict[DataType, bytes] = {
    FLOAT: struct.pack("<8f", *VALUES[FLOAT]),
    FLOAT16: struct.pack("<8e", *VALUES[FLOAT16]),
    BFLOAT16: b"".join(struct.pack("<f", value)[2:] for value in VALUES[BFLOAT16]),
    INT8: struct.pack("8b", *map(int, VALUES[INT8])),
    BINARY: bytes([0b10000011]),
}
every_type = pytest.mark.parametrize("kind", list(VALUES), ids=lambda kind: kind.name)
float_types = pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)


def stored(numbers: Any, kind: DataType) -> list[float]:
    """What comes back of a vector that was written."""
    dim = len(numbers)
    content = packed(numbers, kind, dim)
    assert type(content) is bytes
    return unpacked(content, kind, dim)


# What is kept of numbers


@every_type
def test_numbers_come_back_as_they_were(kind: DataType) -> None:
    assert stored(VALUES[kind], kind) == VALUES[kind]
    assert packed(VALUES[kind], kind, 8) == BYTES[kind]


def test_every_dense_type_has_metrics_and_is_tested() -> None:
    assert set(DENSE_METRICS) == set(VALUES)


@every_type
@pytest.mark.parametrize(
    "make",
    [
        tuple,
        lambda values: [int(v) if v == int(v) else v for v in values],
        lambda values: [np.float32(v) for v in values],
        np.float32,
        np.float64,
        lambda values: np.array(values)[::-1].copy()[::-1],
    ],
    ids=["tuple", "ints", "numpy scalars", "float32", "float64", "strided"],
)
def test_any_sequence_of_numbers_is_taken(kind: DataType, make: Callable[..., Any]) -> None:
    assert stored(make(VALUES[kind]), kind) == VALUES[kind]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int64", "float16"])
@every_type
def test_arrays_of_other_numbers_are_taken(kind: DataType, dtype: str) -> None:
    numbers = np.array([1, 0, 1, 1, 0, 0, 1, 0], dtype=dtype)
    assert stored(numbers, kind) == numbers.tolist()


@every_type
def test_unsigned_bits_are_taken(kind: DataType) -> None:
    numbers = np.array([1, 0, 1, 1, 0, 0, 1, 0], dtype=np.uint8)
    assert stored(numbers, kind) == numbers.tolist()


@every_type
def test_the_caller_s_vector_stays_as_it_was(kind: DataType) -> None:
    as_list, as_array = list(VALUES[kind]), np.array(VALUES[kind])
    packed(as_list, kind, 8)
    packed(as_array, kind, 8)
    assert as_list == as_array.tolist() == VALUES[kind]


@every_type
def test_vectors_of_a_response_are_read_as_one_array(kind: DataType) -> None:
    rows = [VALUES[kind], [0.0] * 8]
    content = b"".join(packed(row, kind, 8) for row in rows)
    array = np.frombuffer(content, "<f4" if kind == FLOAT else np.uint8).reshape(2, -1)
    assert numbers_of(array, kind, 8).tolist() == rows


def nearest(value: float, kind: DataType) -> float:
    """The representable number nearest to a value, of two the one with the even last bit.

    An independent reference in exact arithmetic, over the table of all representable numbers.
    """
    table = REPRESENTABLE[kind]
    exact = abs(Fraction(value))
    above = bisect_left(table, exact)
    if above == len(table):
        above -= 1
    candidates = [max(above - 1, 0), above]
    # A position in the table is the number's bits, so that its last bit is the position's.
    best = min(candidates, key=lambda i: (abs(Fraction(table[i]) - exact), i % 2))
    return math.copysign(table[best], value)


REPRESENTABLE = {
    FLOAT16: [struct.unpack("<e", struct.pack("<H", bits))[0] for bits in range(0x7C00)],
    BFLOAT16: [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in range(0x7F80)],
}
LARGEST = {kind: table[-1] for kind, table in REPRESENTABLE.items()}
half_types = pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16], ids=lambda kind: kind.name)


def between(kind: DataType) -> st.SearchStrategy[float]:
    """32-bit numbers, half of them in the middle of two representable ones or right beside it."""
    table = REPRESENTABLE[kind]
    limit = LARGEST[kind]
    any_number = st.floats(-limit, limit, width=32)

    def middle(position: int, off: int, sign: float) -> float:
        value = np.float32((Fraction(table[position]) + Fraction(table[position + 1])) / 2)
        if off:
            value = np.nextafter(value, np.float32(np.inf if off > 0 else 0))
        return sign * float(value)

    middles = st.builds(
        middle,
        st.integers(0, len(table) - 2),
        st.sampled_from([-1, 0, 1]),
        st.sampled_from([-1.0, 1.0]),
    )
    return any_number | middles


@half_types
@given(data=st.data())
@settings(max_examples=300)
def test_16_bits_keep_the_nearest_number_ties_to_even(kind: DataType, data: Any) -> None:
    numbers = data.draw(st.lists(between(kind), min_size=1, max_size=8))
    assert stored(numbers, kind) == [nearest(value, kind) for value in numbers]


@half_types
def test_every_representable_number_comes_back(kind: DataType) -> None:
    numbers = REPRESENTABLE[kind] + [-value for value in REPRESENTABLE[kind]]
    assert stored(numbers, kind) == numbers


@half_types
def test_the_sign_of_zero_and_subnormal_numbers_are_kept(kind: DataType) -> None:
    least = REPRESENTABLE[kind][1]
    zero, tiny, nothing = stored([-0.0, -least, -least / 4], kind)
    assert (math.copysign(1, zero), tiny) == (-1.0, -least)
    assert (math.copysign(1, nothing), nothing) == (-1.0, 0.0)


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(numbers=st.lists(finite, min_size=1, max_size=20))
@example(numbers=[FLOAT32_MAX, -FLOAT32_MAX, 2.0**-149])
def test_any_32_bit_numbers_come_back(numbers: list[float]) -> None:
    assert stored(numbers, FLOAT) == numbers
    assert stored(np.array(numbers), FLOAT) == numbers


@given(numbers=st.lists(st.integers(-128, 127), min_size=1, max_size=20))
def test_any_8_bit_integers_come_back(numbers: list[int]) -> None:
    assert stored(numbers, INT8) == numbers
    assert packed(numbers, INT8, len(numbers)) == struct.pack(f"{len(numbers)}b", *numbers)


@given(content=st.binary(min_size=1, max_size=20))
def test_any_bits_come_back_and_the_first_is_the_highest(content: bytes) -> None:
    dim = 8 * len(content)
    bits = [int(bit) for byte in content for bit in f"{byte:08b}"]
    assert packed(bits, BINARY, dim) == content
    assert packed([bool(bit) for bit in bits], BINARY, dim) == content
    assert packed(content, BINARY, dim) == content
    assert unpacked(content, BINARY, dim) == bits


# Reading


@every_type
def test_what_is_read_is_a_list_of_floats_that_can_be_changed(kind: DataType) -> None:
    numbers = stored(VALUES[kind], kind)
    assert {type(number) for number in numbers} == {float}
    numbers[0] = 9.0
    assert stored(VALUES[kind], kind) == VALUES[kind]


# Refusals

NOT_FINITE = "not a finite 32-bit number"
INFINITE = [math.nan, math.inf, -math.inf, 1e39, -1e39, 10**39, 10**400]


@pytest.mark.parametrize("value", INFINITE, ids=lambda value: str(value)[:10])
@pytest.mark.parametrize("kind", [*FLOATS, INT8], ids=lambda kind: kind.name)
def test_what_is_not_finite_in_32_bits_is_refused(kind: DataType, value: float) -> None:
    for position in range(3):
        vector: list[float] = [1.0, 1.0, 1.0]
        vector[position] = value
        with pytest.raises(ValueError, match=NOT_FINITE):
            packed(vector, kind, 3)
    if isinstance(value, float):
        with pytest.raises(ValueError, match=NOT_FINITE):
            packed(np.array([1.0, value, 1.0]), kind, 3)


@given(numbers=st.lists(st.floats(), min_size=1, max_size=6))
@settings(max_examples=300)
def test_a_vector_is_finite_where_each_of_its_32_bit_numbers_is(numbers: list[float]) -> None:
    with np.errstate(over="ignore"):
        array = np.float32(numbers)
    expected = all(abs(value) <= FLOAT32_MAX for value in numbers)
    # A number may round to the largest of 32 bits, or to infinity.
    assert np.isfinite(array).all() >= expected
    for vector in (numbers, tuple(numbers), np.array(numbers)):
        try:
            content = packed(vector, FLOAT, len(numbers))
        except ValueError:
            assert not np.isfinite(array).all()
        else:
            assert np.isfinite(array).all()
            assert content == array.tobytes()


def test_values_whose_squares_overflow_are_finite() -> None:
    assert stored([FLOAT32_MAX] * 1000, FLOAT) == [FLOAT32_MAX] * 1000


@pytest.mark.parametrize("value", [65504.1, -65504.1, 65520.0, 1e6, FLOAT32_MAX])
def test_what_16_bits_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"has a value beyond 65504, the most of 16 bits"):
        packed([0.0, value], FLOAT16, 2)


@pytest.mark.parametrize("value", [FLOAT32_MAX, -FLOAT32_MAX, 3.3961776e38])
def test_bfloat16_stores_no_infinity(value: float) -> None:
    try:
        numbers = stored([value], BFLOAT16)
    except ValueError:
        return
    assert all(map(math.isfinite, numbers))


@pytest.mark.parametrize("value", [0.5, 127.5, 128, -129, 1000, 1e-7])
def test_what_is_no_8_bit_integer_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"has a value that is not an integer in -128\.\.127"):
        packed([0, value], INT8, 2)


@pytest.mark.parametrize("value", [2, -1, 0.5, math.nan, math.inf])
def test_what_is_no_bit_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="has a value that is neither 0 nor 1"):
        packed([0, 1, 0, 1, 0, 1, 0, value], BINARY, 8)


@pytest.mark.parametrize("size", [0, 1, 7, 9, 16])
@pytest.mark.parametrize("make", [list, tuple, np.array], ids=["list", "tuple", "array"])
@every_type
def test_another_dimension_is_refused(kind: DataType, make: Callable[..., Any], size: int) -> None:
    unit = "bits" if kind == BINARY else "dimensions"
    with pytest.raises(ValueError, match=rf"has {size} {unit}, the collection 8$"):
        packed(make([1.0] * size), kind, 8)


@pytest.mark.parametrize("content", [b"", b"ab", b"abcdefgh"])
def test_another_number_of_bytes_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=rf"has {8 * len(content)} bits, the collection 8$"):
        packed(content, BINARY, 8)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 0] * 4, dtype=object),
        np.array([None, 1] * 4),
        np.array(["1", "0"] * 4),
        np.array([1j, 0] * 4),
        np.array(["2020-01-01"] * 8, dtype="datetime64[D]"),
    ],
    ids=["objects", "None", "texts", "complex", "dates"],
)
@every_type
def test_arrays_that_hold_no_numbers_are_refused(kind: DataType, array: Any) -> None:
    with pytest.raises(ValueError, match=r"^is an array of .* and shape \(8,\)$"):
        packed(array, kind, 8)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (["a"] * 8, "is not a list of numbers: could not convert string to float"),
        ("abcdefgh", "is not a list of numbers"),
        ([1j] * 8, "is not a list of numbers"),
        ({1: 2.0}, "is not a list of numbers"),
        (object(), "is not a list of numbers"),
        (iter([1.0] * 8), "is not a list of numbers"),
        ([[1.0], [1.0, 2.0]] * 4, "is not a list of numbers: .*inhomogeneous"),
    ],
    ids=["texts", "text", "complex", "dict", "object", "iterator", "ragged"],
)
@every_type
def test_what_is_no_list_of_numbers_is_refused(kind: DataType, vector: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        packed(vector, kind, 8)


@pytest.mark.parametrize(
    "vector",
    [[[1.0] * 8], [[1.0]] * 8, np.ones((1, 8)), np.ones((8, 1)), np.float32(1), 1.0, None],
    ids=["row", "column", "row array", "column array", "scalar", "number", "None"],
)
@every_type
def test_nested_lists_and_single_numbers_are_refused(kind: DataType, vector: Any) -> None:
    with pytest.raises(ValueError, match=r"^(has|is) "):
        packed(vector, kind, 8)


def test_nested_bits_are_refused_with_their_shape() -> None:
    with pytest.raises(ValueError, match=r"\(1, 8\)"):
        packed([[1, 0] * 4], BINARY, 8)


def test_none_among_numbers_is_refused() -> None:
    for kind in (*FLOATS, INT8):
        with pytest.raises(ValueError, match=NOT_FINITE):
            packed([1.0, None], kind, 2)


@pytest.mark.parametrize("kind", [FLOAT, FLOAT16, BFLOAT16, INT8], ids=lambda kind: kind.name)
def test_only_bits_are_taken_as_bytes(kind: DataType) -> None:
    with pytest.raises(ValueError, match="is not a list of numbers"):
        packed(BYTES[kind], kind, 8)


@float_types
def test_what_converts_to_a_number_is_one(kind: DataType) -> None:
    assert stored([Decimal("0.5"), Fraction(1, 4), True], kind) == [0.5, 0.25, 1.0]
