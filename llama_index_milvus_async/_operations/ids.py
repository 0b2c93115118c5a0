"""Ids that callers pass: their checks, and requests that are not too large for many of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from llama_index.core.vector_stores.types import MetadataFilters

from .._retrieval.values import check_ids
from .._translation import filters as _filters
from .._translation.layout import Layout
from .._transport.limits import MAX_IDS
from .._wire.status import is_too_large
from ..errors import QueryError, ServerError

T = TypeVar("T")
Item = TypeVar("Item")


def check_node_ids(node_ids: Sequence[str] | None) -> None:
    """Check ids of nodes.

    Raises:
        QueryError: They are not a list of texts.
    """
    check_ids("node_ids", node_ids)
    for node_id in node_ids or ():
        check_id("node_ids", node_id)


def check_id(argument: str, value: object) -> None:
    """Check an id.

    Raises:
        QueryError: It is not a text.
    """
    if not isinstance(value, str):
        raise QueryError(
            f"{argument} contains {value!r}, a value of type {type(value).__name__}; an id must be "
            "a string"
        )


def chunks(ids: Sequence[str], most: int = MAX_IDS) -> list[Sequence[str]]:
    """Ids without repetitions, no more at once than an expression should have."""
    unique = list(dict.fromkeys(ids))
    return [unique[i : i + most] for i in range(0, len(unique), most)]


def expressions_of(
    layout: Layout, node_ids: Sequence[str] | None, filters: MetadataFilters | None
) -> list[str]:
    """The expressions that together select the nodes of ids and filters.

    Raises:
        FilterError: A filter cannot be expressed.
    """
    parts: Iterable[Sequence[str] | None] = [None] if node_ids is None else chunks(node_ids)
    return [_filters.build_expression(layout, filters=filters, node_ids=part) for part in parts]


async def in_parts(
    items: Sequence[Item], read: Callable[[Sequence[Item]], Awaitable[Sequence[T]]]
) -> Sequence[T]:
    """Read what belongs to items, those that a message is too small for in several requests."""
    try:
        return await read(items)
    except ServerError as error:
        if len(items) == 1 or not is_too_large(error):
            raise
    half = len(items) // 2
    return [*await in_parts(items[:half], read), *await in_parts(items[half:], read)]
