"""Values of scalar columns: what is wrong with them, and the form in which they are sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pymilvus import DataType

from .layout import INTEGER_TYPES, Column
from .node_json import dumps
from .numbers import is_integer, is_number
from .points_in_time import point_in_time
from .vectors import FLOAT32_MAX

#: Milvus' bound on the dynamic field, or a JSON column, of one row (`common.MaxDynamicFieldSize`;
#: the server answers code 1100 beyond it). Lite has none; the bound is kept there as well, so that
#: what was built on a laptop can move to a server.
MAX_JSON_BYTES = 65_536

_INTEGER_BITS = {
    DataType.INT8: 8,
    DataType.INT16: 16,
    DataType.INT32: 32,
    DataType.INT64: 64,
}


def check_text(what: str, text: str, limit: int, report: Callable[[str], None]) -> int:
    """Report a text over `limit` bytes or without UTF-8; return its bytes."""
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        report(f"{what} has a lone surrogate at position {error.start}, which UTF-8 cannot encode")
        return 0
    if size > limit:
        report(f"{what} takes {size} bytes, Milvus allows {limit}")
    return size


def fits(value: int, bits: int) -> bool:
    """Whether a signed integer of some bits holds a value."""
    limit: int = 2 ** (bits - 1)
    return -limit <= value < limit


def sent_value(column: Column, value: Any, report: Callable[[str], None]) -> Any:
    """Check a value that JSON carries, and bring it into the form of `_rpc.WrittenColumn`.

    Args:
        column: The column.
        value: The value.
        report: Is told what is wrong with it; goes on after the column's name.
    """
    if (problem := _problem(column, value)) is not None:
        report(problem)
    elif column.type is DataType.JSON and value is not None:
        value = dumps(value)
        if len(value) > MAX_JSON_BYTES:
            report(f"takes {len(value)} bytes as JSON, Milvus allows {MAX_JSON_BYTES}")
    return value


def _problem(column: Column, value: Any) -> str | None:
    """What is wrong with a value for a column, or `None`."""
    if value is None:
        return None if column.optional else "is None"
    kind = column.type
    if kind in INTEGER_TYPES:
        if not is_integer(value):
            return f"is {value!r}, which is not an integer"
        return None if fits(value, _INTEGER_BITS[kind]) else f"is {value}, out of range"
    if kind == DataType.BOOL:
        return None if isinstance(value, bool) else f"is {value!r}, which is neither true nor false"
    if kind in (DataType.FLOAT, DataType.DOUBLE):
        if not is_number(value):
            return f"is {value!r}, which is not a number"
        if not math.isfinite(value):
            return f"is {value}, which is not a finite number"
        # Milvus would store infinity.
        over = kind == DataType.FLOAT and abs(value) > FLOAT32_MAX
        return f"is {value}, out of range" if over else None
    if kind == DataType.VARCHAR:
        if not isinstance(value, str):
            return f"is {value!r}, which is not a string"
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            return f"has a lone surrogate at position {error.start}, which UTF-8 cannot encode"
        over = column.max_bytes is not None and size > column.max_bytes
        return f"takes {size} bytes, Milvus allows {column.max_bytes}" if over else None
    if kind == DataType.ARRAY:
        if not isinstance(value, list):
            return f"is {value!r}, which is not a list"
        if column.max_capacity is not None and len(value) > column.max_capacity:
            return f"has {len(value)} elements, Milvus allows {column.max_capacity}"
        element = Column(column.name, column.element_type or DataType.NONE, column.max_bytes)
        problems = (_problem(element, each) for each in value)
        first = next(filter(None, problems), None)
        return first and f"has an element that {first}"
    if kind == DataType.JSON and not isinstance(value, dict):
        return f"is {value!r}, which is not a JSON object"  # servers take objects only
    if kind == DataType.TIMESTAMPTZ and (
        not isinstance(value, str) or point_in_time(value) is None
    ):
        return (
            f"is {value!r}, which is not a point in time with an offset, such as "
            "'2025-05-01T23:59:59+08:00'"
        )
    return None
