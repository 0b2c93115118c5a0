"""The data requests to Milvus and their answers, as plain data that every package speaks in.

Two requests that are equal can share an RPC, with the items of both: rows, vectors or ids.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, overload

import numpy.typing as npt
from pymilvus import DataType

#: Makes the expression that selects rows by ids.
SelectIds = Callable[[Sequence[str]], str]
#: A row as it is read: column or dynamic key to value.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class WrittenColumn:
    """A column for which an insert has values, in the form that Milvus takes.

    | type | value of a row |
    |---|---|
    | BOOL, INT8 to INT64, FLOAT, DOUBLE, VARCHAR | a Python number or text |
    | JSON | UTF-8 text of JSON, as bytes |
    | ARRAY | a list |
    | TIMESTAMPTZ | a text, ISO 8601 |
    | FLOAT_VECTOR | little-endian float32 numbers, as bytes |
    | FLOAT16_VECTOR, BFLOAT16_VECTOR, INT8_VECTOR, BINARY_VECTOR | bytes |
    | SPARSE_FLOAT_VECTOR | for each index a little-endian uint32 and float32, ascending, as bytes |

    Attributes:
        dim: The dimension of a dense vector, 0 otherwise.
        element_type: The type of an array's elements.
        optional: Whether the column is nullable or has a default: a row without a value, or with
            `None`, has null, or the default.
        is_dynamic: Whether it is the dynamic field, whose values are JSON.
    """

    name: str
    type: DataType
    dim: int = 0
    element_type: DataType | None = None
    optional: bool = False
    is_dynamic: bool = False


@dataclass(frozen=True)
class Insert:
    """Insert or upsert rows.

    Attributes:
        collection_name: The collection, or an alias of it.
        columns: The columns of each row, all that the collection has but what Milvus fills itself.
        primary_key: The name of one of them.
        partition_name: The partition, `None` for the default one.
        upsert: Whether rows replace those of the same primary key.
        repeatable: Whether rows that are written twice are there once.
        schema_timestamp: The version of the schema that the columns were read from.
    """

    collection_name: str
    columns: tuple[WrittenColumn, ...]
    primary_key: str
    partition_name: str | None
    upsert: bool
    repeatable: bool
    schema_timestamp: int = 0

    def __hash__(self) -> int:
        # Without the columns, which are many: they hardly ever differ where the rest is equal.
        return hash((self.collection_name, self.partition_name, self.upsert))


@dataclass(frozen=True)
class RerankFunction:
    """A function of Milvus that ranks hits.

    Attributes:
        params: Its parameters, each as the text that is sent.
    """

    name: str
    description: str
    input_fields: tuple[str, ...]
    params: tuple[tuple[str, str], ...]

    def param(self, name: str) -> str | None:
        """A parameter; Milvus reads their names in any case."""
        return next((value for key, value in self.params if key.lower() == name), None)

    @property
    def kind(self) -> str:
        """How it ranks: `"decay"`, `"boost"`, `"model"`, `"rrf"`, `"weighted"`, ..."""
        return (self.param("reranker") or "").lower()


@dataclass(frozen=True)
class RankByFunctions:
    """Have Milvus rank hits by functions, which a `FunctionScore` of pymilvus combines.

    Attributes:
        functions: The functions.
        params: How they are combined, each parameter as the text that is sent.
        own_rpc: What only the searches that may share an RPC have in common: a function may have
            parameters for each query of an RPC, such as texts.
    """

    functions: tuple[RerankFunction, ...]
    params: tuple[tuple[str, str], ...] = ()
    own_rpc: object = None


@dataclass(frozen=True)
class Search:
    """Search a vector column.

    Attributes:
        field_name: The vector column.
        data_type: What is searched for: the type of the column, with vectors in the form that
            `WrittenColumn` has them, or VARCHAR for texts that Milvus encodes.
        limit: How many hits to find.
        expression: The filter, empty for none.
        params: Milvus' search parameters, those of the index under `"params"`.
        params_key: Their text, which stands for them where requests are compared.
        options: Further parameters: `offset`, `group_by_field`, `group_size`,
            `strict_group_size`.
        one_at_a_time: Whether the engine is faster where searches do not overlap.
        ranker: What ranks the hits in place of their distances, which it replaces.
    """

    collection_name: str
    field_name: str
    data_type: DataType
    limit: int
    expression: str
    output_fields: tuple[str, ...]
    partition_names: tuple[str, ...] | None
    consistency_level: str
    params: Mapping[str, Any] = field(compare=False)
    options: tuple[tuple[str, Any], ...]
    one_at_a_time: bool
    ranker: RankByFunctions | None = None
    params_key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params_key", repr(sorted(self.params.items())))

    @cached_property
    def _hash(self) -> int:
        kept = (self.field_name, self.limit, self.expression, self.params_key, self.options)
        return hash((self.collection_name, self.output_fields, *kept))

    def __hash__(self) -> int:
        # Once: it takes 4 µs, and a search is looked up in half a dozen dictionaries on its way.
        return self._hash


@dataclass(frozen=True)
class HybridSearch:
    """Search several vector columns and have Milvus fuse what each finds.

    Attributes:
        legs: The searches, of which column, limit, expression and parameters count.
        ranker: Functions, or the settings of a ranker of pymilvus, as its `dict()` has them.
        ranker_key: What stands for it where requests are compared.
        limit: How many hits to return.
        options: As those of a `Search`.
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
class Query:
    """Read the rows that an expression matches.

    Attributes:
        limit: Most rows, `None` for all.
        in_order: Whether the rows come in the order of the primary key; such a read ignores the
            consistency level.
    """

    collection_name: str
    expression: str
    output_fields: tuple[str, ...]
    partition_names: tuple[str, ...] | None
    consistency_level: str
    limit: int | None = None
    in_order: bool = False


@dataclass(frozen=True)
class GetByIds:
    """Read rows by primary key.

    Attributes:
        integer_ids: Whether the primary key is an INT64, which `select` has to know.
    """

    collection_name: str
    primary_key: str
    integer_ids: bool
    output_fields: tuple[str, ...]
    partition_names: tuple[str, ...] | None
    consistency_level: str
    select: SelectIds = field(compare=False)


@dataclass(frozen=True)
class DeleteDocuments:
    """Delete the rows of documents.

    Attributes:
        doc_id_field: Where rows have the ids of documents, which `select` has to know.
    """

    collection_name: str
    partition_name: str | None
    doc_id_field: str | None
    select: SelectIds = field(compare=False)


class Rows(Protocol):
    """The rows of a response, each made when it is asked for."""

    def __len__(self) -> int: ...

    def row(self, position: int) -> dict[str, Any]:
        """The row at a position: column, or key of the dynamic field, to value.

        Dense vectors are bytes, as `WrittenColumn` has them; sparse ones dictionaries.
        """
        ...

    def vectors(self, name: str, positions: range) -> npt.NDArray[Any] | None:
        """The vectors of a dense column as one array of shape `(rows, numbers of a vector)`.

        The numbers are float32 for a FLOAT_VECTOR and uint8 (the bytes) for all others. `None`
        where a row has no vector.
        """
        ...


class _NoRows:
    """The rows of a response without any."""

    def __len__(self) -> int:
        return 0

    def row(self, position: int) -> dict[str, Any]:
        raise IndexError(position)

    def vectors(self, name: str, positions: range) -> npt.NDArray[Any] | None:
        return None


class Hits(Sequence[Row]):
    """The hits of one search, best first; as a sequence, their rows.

    Args:
        ids: Their primary keys.
        distances: What Milvus calls their distances; what that means is the metric's business.
        rows: The rows of the whole response.
        positions: Those of these hits.
    """

    __slots__ = ("_positions", "_rows", "distances", "ids")

    def __init__(
        self,
        ids: Sequence[str | int],
        distances: Sequence[float],
        rows: Rows,
        positions: range,
    ) -> None:
        self.ids = ids
        self.distances = distances
        self._rows = rows
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Row]:
        return map(self._rows.row, self._positions)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Hits: ...

    def __getitem__(self, index: int | slice) -> Row | Hits:
        if isinstance(index, slice):
            positions = self._positions[index]
            return Hits(self.ids[index], self.distances[index], self._rows, positions)
        return self.row(index)

    def row(self, position: int) -> dict[str, Any]:
        """The row of a hit, made anew; see `Rows.row`."""
        return self._rows.row(self._positions[position])

    def vectors(self, name: str) -> npt.NDArray[Any] | None:
        """The hits' vectors in a dense column; see `Rows.vectors`."""
        return self._rows.vectors(name, self._positions)


#: Those of a search that has nothing to search for.
NO_HITS = Hits((), (), _NoRows(), range(0))


__all__ = [
    "NO_HITS",
    "DeleteDocuments",
    "GetByIds",
    "Hits",
    "HybridSearch",
    "Insert",
    "Query",
    "RankByFunctions",
    "RerankFunction",
    "Row",
    "Rows",
    "Search",
    "SelectIds",
    "WrittenColumn",
]
