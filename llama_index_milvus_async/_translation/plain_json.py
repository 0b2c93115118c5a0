"""What metadata may hold, as JSON carries it.

Numpy's values, dates, UUIDs, enumerations, sets and the like become what JSON has for them. NaN and
infinity in metadata become null, as in LlamaIndex's own JSON. Everything else is refused, with the
path that leads to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from llama_index.core.schema import NodeRelationship
from pydantic_core import PydanticSerializationError, to_jsonable_python

#: What serializers raise for a value that JSON cannot carry.
NOT_JSON = (TypeError, ValueError, RecursionError, PydanticSerializationError)

# orjson, on both sides of the connection, ends at 64 bits.
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
#: What pandas has for a value that is missing; it need not be installed.
_PANDAS_MISSING = ("NAType", "NaTType")
#: Fields of a node, of related nodes and of nodes inside nodes, whose values are the user's.
_METADATA_FIELDS = ("metadata", "extra_info")


class NotJsonError(ValueError):
    """A value that JSON cannot carry; the text of the error goes on after "its ".

    Attributes:
        problem: What is wrong with it.
        path: The keys and positions that lead to it, the innermost first.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[Any] = []

    def __str__(self) -> str:
        first, *rest = reversed(self.path)
        if first == "relationships" and rest:
            rest[0] = relationship_name(rest[0])
        return f"{first}{''.join(f'[{_shown(step)}]' for step in rest)} {self.problem}"


def relationship_name(value: str) -> str:
    """The name of a relationship, from its value in a node that was dumped."""
    try:
        return NodeRelationship(value).name
    except ValueError:  # of a later version of LlamaIndex
        return value


def plain_json(value: Mapping[Any, Any], field: str | None = None) -> dict[str, Any]:
    """Convert a mapping into what JSON has: dictionaries, lists, texts, numbers, null.

    Args:
        value: A node that was dumped, or the value of one of its fields.
        field: The name of the field.

    Raises:
        NotJsonError: JSON, or the 64 bits of its integers, cannot carry it.
    """
    try:
        return _mapping(value, field in _METADATA_FIELDS)
    except NotJsonError as error:
        if field is not None:
            error.path.append(field)
        raise
    except RecursionError:
        raise _too_deep(value, field) from None


def _too_deep(value: Any, field: str | None) -> NotJsonError:
    """The error for a mapping with a value that is nested too deeply."""
    error = NotJsonError("is nested too deeply for JSON, or contains itself")
    steps: list[Any] = [] if field is None else [field]
    while len(steps) < 2 and isinstance(value, Mapping):  # the field and, of metadata, the key
        deep = [key for key, inner in value.items() if _is_too_deep(inner)]
        if not deep:
            break
        steps.append(deep[0])
        value = value[deep[0]]
    error.path = steps[::-1] or ["metadata"]
    return error


def _is_too_deep(value: Any) -> bool:
    try:
        _plain(value, True)
    except RecursionError:
        return True
    except NotJsonError:
        pass
    return False


def _plain(value: Any, in_metadata: bool) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return _number(value, in_metadata)
    if isinstance(value, dict):
        return _mapping(value, in_metadata)
    if isinstance(value, (list, tuple)):
        return _list(value, in_metadata)
    if isinstance(value, np.generic):
        return _plain(value.item(), in_metadata)
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), in_metadata)
    if isinstance(value, (set, frozenset)):
        # Sorted, so that equal sets make equal rows.
        items = sorted(value, key=lambda item: (type(item).__name__, str(item)))
        return _list(items, in_metadata)
    if type(value).__name__ in _PANDAS_MISSING and type(value).__module__.startswith("pandas."):
        return None
    return _other(value, in_metadata)


def _mapping(value: Mapping[Any, Any], in_metadata: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, inner in value.items():
        name = key if type(key) is str and key.isascii() else _key(key)
        try:
            plain[name] = _plain(inner, in_metadata or name in _METADATA_FIELDS)
        except NotJsonError as error:
            error.path.append(key)
            raise
    return plain


def _key(key: Any) -> str:
    """The name that JSON has for a key: `json` has names for numbers, booleans and `None`."""
    if isinstance(key, str):
        try:
            return _text(key)
        except NotJsonError as error:
            raise NotJsonError(f"has a key that {error.problem}") from None
    try:
        [name] = json.loads(json.dumps({key: None}))
    except TypeError:
        raise NotJsonError(
            f"has a key of type {type(key).__name__}; a key must be a string"
        ) from None
    return str(name)


def _list(value: Any, in_metadata: bool) -> list[Any]:
    plain: list[Any] = []
    for position, inner in enumerate(value):
        try:
            plain.append(_plain(inner, in_metadata))
        except NotJsonError as error:
            error.path.append(position)
            raise
    return plain


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise NotJsonError(
                f"has a lone surrogate at position {error.start}, which UTF-8, and so JSON, cannot "
                "carry"
            ) from None
    return value if type(value) is str else str.__str__(value)


def _integer(value: int) -> int:
    if not _MIN_INTEGER <= value <= _MAX_INTEGER:
        raise NotJsonError("is an integer of more than 64 bits, which JSON in Milvus cannot carry")
    return value if type(value) is int else int(value)


def _number(value: float, in_metadata: bool) -> float | None:
    if math.isfinite(value):
        return float(value)
    if in_metadata:
        return None
    raise NotJsonError(f"is {value!r}, which JSON cannot carry")


def _other(value: Any, in_metadata: bool) -> Any:
    """Convert what pydantic knows: dates, UUIDs, enumerations, models, ..."""
    try:
        known = to_jsonable_python(value)
    except RecursionError:
        raise
    except NOT_JSON:
        raise NotJsonError(f"is of type {type(value).__name__}, which JSON cannot carry") from None
    return _plain(known, in_metadata)


def _shown(step: Any) -> str:
    text = repr(step)
    return text if len(text) <= 80 else f"{text[:80]}..."
