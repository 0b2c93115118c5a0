"""Checks of single values that callers pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .._translation.numbers import is_integer
from ..errors import QueryError

#: Milvus' largest top k (https://milvus.io/docs/limitations.md#Top-K).
MAX_TOP_K = 16_384


def are_several(values: Any) -> bool:
    """Whether values are a collection; a text is one value, not its letters."""
    return isinstance(values, Collection) and not isinstance(values, str)


def are_texts(values: Any) -> bool:
    """Whether values are a collection of texts, which may be empty."""
    return are_several(values) and all(isinstance(value, str) for value in values)


def check_ids(argument: str, ids: Any) -> None:
    """Check that ids come as a collection, of any size, and not as a single id.

    Raises:
        QueryError: They do not.
    """
    if ids is not None and not are_several(ids):
        raise QueryError(f"{argument} is {ids!r}; it must be a list of ids")


def check_output_fields(names: Any) -> None:
    """Check the fields that a read is to return.

    Raises:
        QueryError: They are not a list of names. A text would be taken for a list of its letters.
    """
    if names is not None and not are_texts(names):
        raise QueryError(f"output_fields is {names!r}; it must be a list of names")


def check_top_k(name: str, value: Any) -> None:
    """Check a number of hits against Milvus' limits.

    Raises:
        QueryError: It is not an integer in 1..16,384.
    """
    if not is_integer(value):
        raise QueryError(f"{name} is {value!r}; it must be an integer")
    if not 1 <= value <= MAX_TOP_K:
        raise QueryError(f"{name} is {value}; Milvus takes 1 to {MAX_TOP_K}")


def check_search_config(argument: str, config: Any) -> None:
    """Check the search parameters of a field.

    Raises:
        QueryError: They are not a mapping, or have an offset.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("params") or {}, Mapping):
        raise QueryError(
            f"{argument} is {config!r}; it must be a mapping such as "
            '{"ef": 64} or {"params": {"ef": 64}}'
        )
    if "offset" in {*config, *(config.get("params") or {})}:
        raise QueryError(f"{argument} has an offset; pass it to the query itself, as offset=...")
