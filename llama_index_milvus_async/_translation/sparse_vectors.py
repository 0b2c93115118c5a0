"""Sparse vectors: from what encoders return to index and value, and to bytes."""

from __future__ import annotations

import itertools
import math
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .numbers import is_integer, is_number
from .vectors import FLOAT32_MAX

#: Milvus' bound on an index (pymilvus' `sparse_rows_to_proto` refuses what is larger).
MAX_INDEX = 2**32 - 2
#: What is not larger becomes zero as a 32-bit number: half of the smallest, ties to even.
_FLOAT32_ZERO = 2.0**-150
_ENTRY = np.dtype([("index", "<u4"), ("value", "<f4")])


class NoWeightsError(ValueError):
    """A sparse vector has no weight other than zero, and so resembles nothing."""


def sparse_vector(value: Any) -> dict[int, float]:
    """Check a sparse vector and make a dictionary of it.

    Args:
        value: A mapping of indexes to values, a list of `(index, value)` pairs, or one row of a
            scipy sparse matrix or array.

    Returns:
        Index to value, without zeros.

    Raises:
        NoWeightsError: All values are zeros, or there are none.
        ValueError: The vector cannot be stored or searched; the message goes on after "its
            sparse embedding", as that of a `NoWeightsError` does.
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
        raise NoWeightsError("is all zeros")
    return vector


def sparse_bytes(vector: Mapping[int, float]) -> bytes:
    """The bytes of a sparse vector: each index and its value, ascending by index."""
    return np.array(sorted(vector.items()), dtype=_ENTRY).tobytes()


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
        f"is {describe_type(value)}, neither a dictionary of index to value nor a list of such "
        "pairs nor one row of a scipy sparse matrix"
    )


def _index(value: Any) -> int:
    if not is_integer(value):
        raise ValueError(f"has the index {reprlib.repr(value)}, which is not an integer")
    index = operator.index(value)
    if not 0 <= index <= MAX_INDEX:
        raise ValueError(f"has the index {reprlib.repr(index)}, which is not in 0..{MAX_INDEX}")
    return index


def _number(value: Any, index: int) -> float:
    number = math.nan
    if is_number(value):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not abs(number) <= FLOAT32_MAX:
        raise ValueError(
            f"has {reprlib.repr(value)} at index {index}, which is not a finite 32-bit number"
        )
    return number


def describe_type(value: Any) -> str:
    """Say what a value is, without its content, which may be long or a secret."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance"
    if is_sequence(value):
        kinds = [type(item).__name__ for item in itertools.islice(value, 3)]
        kinds += ["..."] if len(value) > len(kinds) else []
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds)})"
    return f"a value of type {type(value).__name__}"


def is_sequence(value: Any) -> bool:
    """Whether a value is a sequence, and not a text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
