"""Dense vectors of every type that Milvus has: from lists of numbers to bytes and back.

`FLOAT16_VECTOR` and `BFLOAT16_VECTOR` keep the nearest representable numbers of those in 32 bits,
`INT8_VECTOR` takes integers in -128..127, `BINARY_VECTOR` bits, eight of which make a byte, the
first the highest.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pymilvus import DataType

#: Types of dense vectors, and the metrics that their indexes have
#: (https://milvus.io/docs/metric.md).
DENSE_METRICS: dict[DataType, tuple[str, ...]] = {
    DataType.FLOAT_VECTOR: ("IP", "L2", "COSINE"),
    DataType.FLOAT16_VECTOR: ("IP", "L2", "COSINE"),
    DataType.BFLOAT16_VECTOR: ("IP", "L2", "COSINE"),
    DataType.INT8_VECTOR: ("IP", "L2", "COSINE"),
    DataType.BINARY_VECTOR: ("HAMMING", "JACCARD"),
}

FLOAT32_MAX = float(np.finfo(np.float32).max)
_BFLOAT16_MAX = float.fromhex("0x1.fep127")
_NOT_FINITE = "has a value that is not a finite 32-bit number (NaN, infinity)"
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def packed(vector: Any, kind: DataType, dim: int | None) -> bytes:
    """Check a vector and make of it the bytes that Milvus takes for a column or a search.

    Args:
        vector: Numbers, as a list or an array of shape `(dim,)`; for a `BINARY_VECTOR` zeros and
            ones, or `dim / 8` bytes.
        kind: The type of the column.
        dim: Its dimension.

    Returns:
        The bytes, little-endian.

    Raises:
        ValueError: The vector does not fit; the message goes on after "its embedding".
    """
    if kind is DataType.FLOAT_VECTOR and type(vector) is list and len(vector) == dim:
        # The way of nearly all vectors, three times as fast as numpy's. What is not finite or not
        # a number goes on to the checks below.
        try:
            content = _floats(dim).pack(*vector)
        except (struct.error, OverflowError):
            pass
        else:
            if np.isfinite(np.frombuffer(content, dtype="<f4")).all():
                return content
    if kind == DataType.BINARY_VECTOR:
        return _bits(vector, dim)
    array = _array(vector)
    if array.shape != (dim,):
        if array.ndim == 1:
            raise ValueError(f"has {len(array)} dimensions, the collection {dim}")
        raise ValueError(f"has numbers of {np.asarray(vector).dtype} in shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(_NOT_FINITE)
    if kind == DataType.FLOAT_VECTOR:
        return array.tobytes()
    if kind == DataType.FLOAT16_VECTOR:
        if np.abs(array).max(initial=0) > _FLOAT16_MAX:
            raise ValueError(f"has a value beyond {_FLOAT16_MAX:g}, the most of 16 bits")
        return array.astype("<f2").tobytes()
    if kind == DataType.BFLOAT16_VECTOR:
        if np.abs(array).max(initial=0) > _BFLOAT16_MAX:
            raise ValueError(f"has a value beyond {_BFLOAT16_MAX:g}, the most of bfloat16")
        return _bfloat16(array)
    if (array != np.rint(array)).any() or array.min() < -128 or array.max() > 127:
        raise ValueError("has a value that is not an integer in -128..127")
    return array.astype(np.int8).tobytes()


def unpacked(value: bytes, kind: DataType, dim: int | None) -> list[float]:
    """The numbers of a vector, from its bytes."""
    dtype = "<f4" if kind == DataType.FLOAT_VECTOR else np.uint8
    array = numbers_of(np.frombuffer(value, dtype=dtype), kind, dim)
    return cast(list[float], array.astype(np.float64).tolist())


def numbers_of(vectors: npt.NDArray[Any], kind: DataType, dim: int | None) -> npt.NDArray[Any]:
    """The numbers of vectors as a response has them.

    Args:
        vectors: Numbers of a `FLOAT_VECTOR`, bytes of all others; a vector is the last axis.
        kind: The type of the column.
        dim: Its dimension.
    """
    if kind == DataType.FLOAT_VECTOR:
        return vectors
    if kind == DataType.BFLOAT16_VECTOR:
        return (vectors.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if kind == DataType.BINARY_VECTOR:
        return np.unpackbits(vectors, axis=-1, count=dim)
    return vectors.view("<f2" if kind == DataType.FLOAT16_VECTOR else np.int8)


@lru_cache(maxsize=64)
def _floats(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}f")


def _array(vector: Any) -> npt.NDArray[np.float32]:
    if isinstance(vector, np.ndarray) and vector.dtype.kind not in "fiu":
        raise ValueError(f"is an array of {vector.dtype} and shape {vector.shape}")
    try:
        # What is too large becomes infinity, and is refused as such.
        with np.errstate(over="ignore"):
            return np.asarray(vector, dtype="<f4")
    except OverflowError:  # an integer that no float is large enough for
        raise ValueError(_NOT_FINITE) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"is not a list of numbers: {error}") from error


def _bfloat16(array: npt.NDArray[np.float32]) -> bytes:
    """The upper halves of the numbers' bits, rounded to the nearest, ties to even."""
    bits = array.astype("<f4").view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def _bits(vector: Any, dim: int | None) -> bytes:
    if isinstance(vector, bytes):
        if len(vector) * 8 != dim:
            raise ValueError(f"has {len(vector) * 8} bits, the collection {dim}")
        return vector
    array = _array(vector)
    if array.shape != (dim,):
        shown = f"{len(array)} bits" if array.ndim == 1 else f"shape {array.shape}"
        raise ValueError(f"has {shown}, the collection {dim}")
    if not np.isin(array, (0, 1)).all():
        raise ValueError("has a value that is neither 0 nor 1")
    return np.packbits(array.astype(np.uint8)).tobytes()
