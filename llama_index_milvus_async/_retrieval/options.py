"""Keyword arguments of the store's methods; names as in the upstream plugin where it has them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from llama_index.core.vector_stores.types import VectorStoreQuery

from .._names import nearest
from ..errors import ConfigurationError, QueryError
from .values import are_several, are_texts, check_flag

#: Upstream's default.
DEFAULT_HYBRID_RANKER = "RRFRanker"


@dataclass(frozen=True)
class WriteOptions:
    """Keyword arguments of an `add`.

    Attributes:
        milvus_partition_name: The partition to write to; Milvus' default one by default.
        force_flush: Seal the rows before returning.
        show_progress: Show a bar.
        timeout: Seconds for each RPC of this call.
    """

    parameters: ClassVar[Collection[str]] = ("nodes",)

    milvus_partition_name: str | None = None
    force_flush: bool = False
    show_progress: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        _check_partition(self.milvus_partition_name)
        check_flag("force_flush", self.force_flush)
        check_flag("show_progress", self.show_progress)


@dataclass(frozen=True)
class DeleteOptions:
    """Keyword arguments of a delete.

    Attributes:
        milvus_partition_name: Delete within this partition only.
        timeout: Seconds for each RPC of this call.
    """

    parameters: ClassVar[Collection[str]] = ("ref_doc_id", "node_ids", "filters")

    milvus_partition_name: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        _check_partition(self.milvus_partition_name)


@dataclass(frozen=True)
class _PartitionOptions:
    """Keyword arguments of what reads within partitions.

    Attributes:
        milvus_partition_names: Partitions to read, a name or a list; all by default.
    """

    milvus_partition_names: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        names = self.partition_names
        if names is not None and (not are_texts(names) or not names or not all(names)):
            raise QueryError(
                f"milvus_partition_names is {self.milvus_partition_names!r}; name partitions, or "
                "leave it out to read all"
            )

    @property
    def partition_names(self) -> tuple[str, ...] | None:
        """The partitions, `None` for all."""
        given = self.milvus_partition_names
        if given is None:
            return None
        return (given,) if isinstance(given, str) else tuple(given) if are_several(given) else ()


@dataclass(frozen=True)
class ReadOptions(_PartitionOptions):
    """Keyword arguments of every read.

    Attributes:
        milvus_partition_names: Partitions to read, a name or a list; all by default.
        consistency_level: Consistency of this read alone.
        timeout: Seconds for each RPC of this call.
    """

    parameters: ClassVar[Collection[str]] = ("filters", "node_ids")

    consistency_level: str | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class UpdateOptions(_PartitionOptions):
    """Keyword arguments of an update, which reads all that was written before.

    Attributes:
        milvus_partition_names: Partitions to update, a name or a list; all by default.
        timeout: Seconds for each RPC of this call.
    """

    parameters: ClassVar[Collection[str]] = ("filters", "node_ids", "set", "unset")

    timeout: float | None = None


@dataclass(frozen=True)
class GetOptions(ReadOptions):
    """Keyword arguments of `get_nodes`.

    Attributes:
        output_fields: Fields to fetch beside the node, in place of the store's.
        limit: Most nodes; all by default.
        include_embeddings: Fetch the dense vectors of the nodes as well.
    """

    parameters: ClassVar[Collection[str]] = ("node_ids", "filters")

    output_fields: Sequence[str] | None = None
    limit: int | None = None
    include_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("include_embeddings", self.include_embeddings)


@dataclass(frozen=True)
class SearchOptions(ReadOptions):
    """Keyword arguments of a query.

    Attributes:
        milvus_scalar_filters: Filters on array columns, combined with the others by AND.
        milvus_search_config: Search parameters in place of the store's `search_config`.
        sparse_search_config: Search parameters of the sparse field.
        milvus_ranker: What ranks the hits, in place of the store's.
        ranker_prefetch_k: How many hits are ranked where one field is searched.
        string_expr: A Milvus boolean expression, combined with the filters by AND.
        mmr_prefetch_factor: MMR's candidates as a multiple of the top k.
        mmr_prefetch_k: MMR's candidates as a number.
        mmr_threshold: MMR's balance, 0 (different) to 1 (relevant).
        mmr_over: Where MMR's candidates come from, `"dense"` or `"hybrid"`.
        hybrid_fields: The dense fields of a hybrid search; the query's alone by default. As a
            mapping they have embeddings of their own: field name to embedding, `None` for that of
            the query.
        offset: Hits to skip.
        group_by_field: Return one hit, or `group_size`, for each value of this field.
        group_size: Hits of each group.
        strict_group_size: Whether to look on until each group is full.
        score_threshold: Return hits of at least this similarity.
    """

    parameters: ClassVar[Collection[str]] = ("query", "queries")

    milvus_scalar_filters: Any = None
    milvus_search_config: Mapping[str, Any] | None = None
    sparse_search_config: Mapping[str, Any] | None = None
    milvus_ranker: Any = None
    ranker_prefetch_k: int | None = None
    string_expr: str | None = None
    mmr_prefetch_factor: float | None = None
    mmr_prefetch_k: int | None = None
    mmr_threshold: float | None = None
    mmr_over: str = "dense"
    hybrid_fields: Sequence[str] | Mapping[str, Any] | None = None
    offset: int = 0
    group_by_field: str | None = None
    group_size: int | None = None
    strict_group_size: bool | None = None
    score_threshold: float | None = None

    @property
    def has_several_dense_fields(self) -> bool:
        """Whether a hybrid search has legs enough without a sparse one."""
        return self.hybrid_fields is not None and len(self.hybrid_fields) > 1

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
        query_ranker: The ranker of all searches.
    """

    consistency_level: str
    output_fields: Sequence[str]
    search_config: Mapping[str, Any]
    hybrid_ranker: Any
    hybrid_ranker_params: Mapping[str, Any]
    query_ranker: Any = None

    @property
    def names_hybrid_ranker(self) -> bool:
        """Whether hybrid searches have a ranker that was asked for, rather than the default."""
        return self.hybrid_ranker != DEFAULT_HYBRID_RANKER or bool(self.hybrid_ranker_params)


def read_options(
    cls: type[Any], operation: str, arguments: Mapping[str, Any], constructor: Iterable[str]
) -> Any:
    """Build the options of a call from its keyword arguments.

    Args:
        cls: The class of the options.
        operation: The method that was called.
        arguments: Its keyword arguments.
        constructor: The arguments of the store itself.

    Raises:
        ConfigurationError: An argument is unknown. It is refused rather than ignored: a
            misspelt partition or filter would otherwise widen the result.
    """
    known = [field.name for field in fields(cls)]
    if unknown := arguments.keys() - set(known):
        described = [_described(cls, name, constructor) for name in sorted(unknown)]
        raise ConfigurationError(
            f"{operation}() got unknown keyword arguments: {', '.join(described)}. It takes "
            f"{', '.join(sorted(known))}"
        )
    return cls(**arguments)


def ignored_by_add(arguments: Iterable[str], constructor: Iterable[str]) -> set[str]:
    """The keyword arguments of an `add` that mean nothing to a store, and can be left out.

    `VectorStoreIndex.from_documents` hands on what it does not know itself, such as `llm=`, after
    the nodes were embedded. What is like an argument of `add`, or is one of the constructor, is not
    left out: the rows would be written elsewhere than was asked.
    """
    known = {field.name for field in fields(WriteOptions)}
    return {
        name
        for name in arguments
        if name not in {*known, *constructor}
        and "partition" not in name.lower()
        and nearest(name, known, _SYNONYMS) is None
    }


#: Keyword arguments, and attributes of a query, with what other stores and Milvus call them.
_SYNONYMS = {
    "milvus_partition_name": ("partition", "partition_name", "namespace", "tenant"),
    "milvus_partition_names": ("partitions", "partition", "partition_name", "partition_names"),
    "force_flush": ("flush",),
    "ref_doc_id": ("doc_id",),
    "node_ids": ("ids",),
    "filters": ("filter", "metadata_filters", "where"),
    "similarity_top_k": ("top_k", "k", "limit"),
    "string_expr": ("expr", "filter_expr", "expression"),
    "milvus_search_config": ("search_params", "search_config", "param"),
    "milvus_ranker": ("ranker", "reranker", "hybrid_ranker", "function_score"),
    "milvus_scalar_filters": ("scalar_filters",),
    "score_threshold": ("similarity_cutoff", "threshold"),
    "query_embedding": ("embedding", "vector"),
    "query_str": ("query_text", "text"),
}
_OF_QUERIES = frozenset(field.name for field in fields(VectorStoreQuery))


def _described(cls: type[Any], name: str, constructor: Iterable[str]) -> str:
    """An unknown argument, and what was probably meant."""
    places = dict.fromkeys(constructor, " of the constructor")
    if issubclass(cls, SearchOptions):
        places |= dict.fromkeys(_OF_QUERIES, " of VectorStoreQuery")
    own = [field.name for field in fields(cls)]
    places |= dict.fromkeys((*own, *cls.parameters), "")
    meant = nearest(name, places, _SYNONYMS)
    if meant is None:
        return repr(name)
    if meant == name:
        return f"{name!r} (it is an argument{places[name]})"
    return f"{name!r} (did you mean {meant}={places[meant]}?)"


def _check_partition(name: Any) -> None:
    if name is not None and not (isinstance(name, str) and name):
        raise ConfigurationError(
            f"milvus_partition_name is {name!r}; it must be the name of a partition, a string. "
            "Leave it out for Milvus' default partition"
        )
