"""Keyword arguments of the store's methods; names as in the upstream plugin where it has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigurationError, QueryError
from .values import are_texts


@dataclass(frozen=True)
class WriteOptions:
    """Keyword arguments of an `add`.

    Attributes:
        milvus_partition_name: The partition to write to; Milvus' default one by default.
        force_flush: Seal the rows before returning.
        show_progress: Show a bar.
        timeout: Seconds for each RPC of this call.
    """

    milvus_partition_name: str | None = None
    force_flush: bool = False
    show_progress: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        _check_partition(self.milvus_partition_name)


@dataclass(frozen=True)
class DeleteOptions:
    """Keyword arguments of a delete.

    Attributes:
        milvus_partition_name: Delete within this partition only.
        timeout: Seconds for each RPC of this call.
    """

    milvus_partition_name: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        _check_partition(self.milvus_partition_name)


@dataclass(frozen=True)
class ReadOptions:
    """Keyword arguments of every read.

    Attributes:
        milvus_partition_names: Partitions to read, a name or a list; all by default.
        consistency_level: Consistency of this read alone.
        timeout: Seconds for each RPC of this call.
    """

    milvus_partition_names: str | Sequence[str] | None = None
    consistency_level: str | None = None
    timeout: float | None = None

    @property
    def partition_names(self) -> tuple[str, ...] | None:
        """The partitions, `None` for all.

        Raises:
            QueryError: They are not a name or a list of names.
        """
        given = self.milvus_partition_names
        if given is None:
            return None
        names = (given,) if isinstance(given, str) else given
        if not are_texts(names) or not names or not all(names):
            raise QueryError(
                f"milvus_partition_names is {given!r}; name partitions, or leave it out to read all"
            )
        return tuple(names)


@dataclass(frozen=True)
class GetOptions(ReadOptions):
    """Keyword arguments of `get_nodes`.

    Attributes:
        output_fields: Fields to fetch beside the node, in place of the store's.
    """

    output_fields: Sequence[str] | None = None


@dataclass(frozen=True)
class SearchOptions(ReadOptions):
    """Keyword arguments of a query.

    Attributes:
        milvus_scalar_filters: Filters on array columns, combined with the others by AND.
        milvus_search_config: Search parameters in place of the store's `search_config`.
        sparse_search_config: Search parameters of the sparse field.
        milvus_ranker: The ranker of a hybrid search in place of the store's.
        string_expr: A Milvus boolean expression, combined with the filters by AND.
        mmr_prefetch_factor: MMR's candidates as a multiple of the top k.
        mmr_prefetch_k: MMR's candidates as a number.
        mmr_threshold: MMR's balance, 0 (different) to 1 (relevant).
        mmr_over: Where MMR's candidates come from, `"dense"` or `"hybrid"`.
        hybrid_fields: The dense fields of a hybrid search; the query's alone by default.
        offset: Hits to skip.
        group_by_field: Return one hit, or `group_size`, for each value of this field.
        group_size: Hits of each group.
        strict_group_size: Whether to look on until each group is full.
        score_threshold: Return hits of at least this similarity.
    """

    milvus_scalar_filters: Any = None
    milvus_search_config: Mapping[str, Any] | None = None
    sparse_search_config: Mapping[str, Any] | None = None
    milvus_ranker: Any = None
    string_expr: str | None = None
    mmr_prefetch_factor: float | None = None
    mmr_prefetch_k: int | None = None
    mmr_threshold: float | None = None
    mmr_over: str = "dense"
    hybrid_fields: Sequence[str] | None = None
    offset: int = 0
    group_by_field: str | None = None
    group_size: int | None = None
    strict_group_size: bool | None = None
    score_threshold: float | None = None

    @property
    def grouping(self) -> tuple[tuple[str, Any], ...]:
        """Milvus' search options that say how to group hits."""
        names = ("group_by_field", "group_size", "strict_group_size")
        values = [(name, getattr(self, name)) for name in names]
        return tuple((name, value) for name, value in values if value)


@dataclass(frozen=True)
class StoreOptions:
    """The store's own settings, used where a call names none.

    Attributes:
        consistency_level: The level of reads.
        output_fields: Fields to fetch with each hit.
        search_config: Search parameters of dense fields.
        hybrid_ranker: The ranker of hybrid searches, as `ranker_of` takes it.
        hybrid_ranker_params: Its parameters.
    """

    consistency_level: str
    output_fields: Sequence[str]
    search_config: Mapping[str, Any]
    hybrid_ranker: Any
    hybrid_ranker_params: Mapping[str, Any]


def read_options(cls: type[Any], operation: str, arguments: Mapping[str, Any]) -> Any:
    """Build the options of a call from its keyword arguments.

    Raises:
        ConfigurationError: An argument is unknown. It is refused rather than ignored: a
            misspelt partition or filter would otherwise widen the result.
    """
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ConfigurationError(
            f"{operation}() got unknown keyword arguments {unknown}; it takes {sorted(known)}"
        )
    return cls(**arguments)


def _check_partition(name: str | None) -> None:
    if name is not None and not name:
        raise ConfigurationError(
            f"milvus_partition_name is {name!r}; name a partition, or leave it out"
        )
