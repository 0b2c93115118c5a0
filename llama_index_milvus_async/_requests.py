"""Requests that may share an RPC: what all calls of one RPC have in common.

Two requests that are equal can be sent as one, with the items of both: rows, vectors or ids.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Makes the expression that selects rows by ids.
SelectIds = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Insert:
    """Insert or upsert rows.

    Attributes:
        repeatable: Whether rows that are written twice are there once.
    """

    collection_name: str
    primary_key: str
    partition_name: str | None
    upsert: bool
    repeatable: bool


@dataclass(frozen=True)
class Search:
    """Search a vector column.

    Attributes:
        limit: How many hits to find.
        expression: The filter, empty for none.
        params: pymilvus' `search_params`.
        params_key: Their text, which stands for them where requests are compared.
        options: Further keyword arguments, such as `offset`.
        one_at_a_time: Whether the engine is faster where searches do not overlap.
    """

    collection_name: str
    field_name: str
    limit: int
    expression: str
    output_fields: tuple[str, ...]
    partition_names: tuple[str, ...] | None
    consistency_level: str
    params: Mapping[str, Any] = field(compare=False)
    options: tuple[tuple[str, Any], ...]
    one_at_a_time: bool
    params_key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params_key", repr(sorted(self.params.items())))


@dataclass(frozen=True)
class HybridSearch:
    """Search several vector columns and fuse what each finds.

    Attributes:
        legs: The searches, of which column, limit, expression and parameters count.
        ranker: pymilvus' ranker.
        ranker_key: What stands for it where requests are compared.
        limit: How many hits to return.
        options: Further keyword arguments, such as `offset`.
        one_at_a_time: Whether the engine is faster where searches do not overlap.
    """

    collection_name: str
    legs: tuple[Search, ...]
    ranker: Any = field(compare=False)
    ranker_key: Hashable
    limit: int
    output_fields: tuple[str, ...]
    partition_names: tuple[str, ...] | None
    consistency_level: str
    options: tuple[tuple[str, Any], ...]
    one_at_a_time: bool


@dataclass(frozen=True)
class GetByIds:
    """Read rows by primary key."""

    collection_name: str
    primary_key: str
    output_fields: tuple[str, ...]
    partition_names: tuple[str, ...] | None
    consistency_level: str
    select: SelectIds = field(compare=False)


@dataclass(frozen=True)
class DeleteDocuments:
    """Delete the rows of documents."""

    collection_name: str
    partition_name: str | None
    select: SelectIds = field(compare=False)
