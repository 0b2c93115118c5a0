"""What a store was asked to find or make in Milvus: its own arguments, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pymilvus import DataType, Function

from ..errors import ConfigurationError
from .vectors import DENSE_METRICS

#: Milvus' largest dimension of a dense vector (https://milvus.io/docs/limitations.md).
MAX_DIMENSION = 32_768

#: Stands for a dimension that is not known yet, where only the rest is looked at.
_ANY_DIMENSION = 8

#: Types that `scalar_field_types` may name: those that need no further parameters.
SCALAR_TYPES = (
    DataType.BOOL,
    DataType.INT8,
    DataType.INT16,
    DataType.INT32,
    DataType.INT64,
    DataType.FLOAT,
    DataType.DOUBLE,
    DataType.VARCHAR,
    DataType.JSON,
)


def settings_of_fields(argument: str, fields: Any, example: str) -> Iterator[tuple[str, Any]]:
    """Go through an argument that maps names of fields to their settings; `None` has none.

    Args:
        argument: The argument.
        fields: Its value.
        example: What to say that it must be.

    Raises:
        ConfigurationError: It is no mapping, or a key is no name.
    """
    if not isinstance(fields, (Mapping, type(None))):
        raise ConfigurationError(f"{argument} is {fields!r}; it must be a dictionary of {example}")
    for name, settings in (fields or {}).items():
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"{argument} has the key {name!r}; it must be a name")
        yield name, settings


@dataclass(frozen=True)
class VectorField:
    """A vector column that the store uses, and the index that a new one gets.

    Attributes:
        name: Its name.
        type: Its type.
        dim: Its dimension, `None` for a sparse one and where the collection decides.
        metric: The metric that was asked for; `None` where that of an existing index is taken.
        index_config: Type and parameters of the index, flat or with nested `params`.
        function: The function that computes it of texts; `None` where the store writes it.
        reads: The columns that the function of an existing collection has to read; `None` where
            any will do.
        in_dense_fields: Whether `dense_fields` names it.
    """

    name: str
    type: DataType
    dim: int | None
    metric: str | None
    index_config: Mapping[str, Any]
    function: Function | None = None
    reads: Sequence[str] | None = None
    in_dense_fields: bool = False

    def setting(self, argument: str, key: str, value: object) -> str:
        """An argument of the store, or a key of `dense_fields`, as one writes it."""
        if self.in_dense_fields:
            return f"dense_fields={{{self.name!r}: {{{key!r}: {value!r}}}}}"
        return f"{argument}={value!r}"

    @property
    def asked_metric(self) -> str | None:
        """The metric that was asked for, by whichever argument; `None` without one."""
        return self.index_config.get("metric_type") or self.metric

    @property
    def new_metric(self) -> str:
        """The metric of a new index."""
        if self.is_sparse:
            return self.asked_metric or ("IP" if self.function is None else "BM25")
        return self.asked_metric or DENSE_METRICS[self.type][0]

    def metric_setting(self, value: str) -> str:
        """The argument of the store that decides the metric, as one writes it."""
        configured = "metric_type" in self.index_config and not self.in_dense_fields
        if configured or self.is_sparse:
            argument = "sparse_index_config" if self.is_sparse else "index_config"
            return f"{argument}={{'metric_type': {value!r}}}"
        return self.setting("similarity_metric", "metric_type", value)

    @property
    def is_sparse(self) -> bool:
        """Whether its vectors are sparse."""
        return self.type is DataType.SPARSE_FLOAT_VECTOR


@dataclass(frozen=True)
class ScalarField:
    """A column that is filled from the metadata key of its name.

    Attributes:
        name: Its name.
        type: Its type.
        argument: The argument that names it.
        max_length: The most bytes of a text, `None` for Milvus' own limit.
        element_type: The type of the elements of an array.
        max_capacity: The most elements of an array, `None` for Milvus' own limit.
        nullable: Whether a node may have no value.
        default: What a node without a value has in the column; `None` without one.
        index: `True` for what the engine has, an index type, or a mapping of type and parameters;
            `None` without an index.
    """

    name: str
    type: DataType
    argument: str = "scalar_field_names"
    max_length: int | None = None
    element_type: DataType | None = None
    max_capacity: int | None = None
    nullable: bool = False
    default: Any = None
    index: Any = None

    @property
    def optional(self) -> bool:
        """Whether a node may have no value."""
        return self.nullable or self.default is not None


@dataclass(frozen=True)
class CollectionSettings:
    """What the store was asked to find or make in Milvus; the store's own arguments.

    Attributes:
        dense: The dense vector columns, that of `node.embedding` first; empty without any.
        sparse: The sparse vector column.
        metadata_indexes: For each metadata key that has an index and no column, the type of the
            values that are in it, as Milvus calls it.
        index_doc_id: Whether the document id has an index; `None` where a new collection of an
            engine that has one gets it.
        num_shards: The shards, `None` for Milvus' own number. So with the next two.
        replica_number: How many copies are loaded.
        description: What the collection says of itself.
        partition_key_field: The column that Milvus partitions by, `None` without one.
        num_partitions: How many partitions it has, `None` for Milvus' own number.
        partition_key_isolation: Whether each value of it has an index of its own.
    """

    collection_name: str
    id_field: str
    doc_id_field: str
    text_key: str
    dense: Sequence[VectorField]
    sparse: VectorField | None
    scalar_fields: Mapping[str, ScalarField]
    create_index: bool
    properties: Mapping[str, Any]
    consistency_level: str
    metadata_indexes: Mapping[str, str] = field(default_factory=dict)
    index_doc_id: bool | None = None
    num_shards: int | None = None
    replica_number: int | None = None
    description: str | None = None
    partition_key_field: str | None = None
    num_partitions: int | None = None
    partition_key_isolation: bool = False

    @property
    def vectors(self) -> list[VectorField]:
        """All vector columns that the store uses."""
        return [*self.dense, *([self.sparse] if self.sparse else [])]

    @property
    def lacks_dimensions(self) -> bool:
        """Whether a new collection has to wait for nodes that have a dimension."""
        return any(field.dim is None for field in self.dense)

    def with_dimensions(self, dimensions: Mapping[str, int]) -> CollectionSettings:
        """The same, with dimensions for the fields that have none and are named."""
        dense = [
            field if field.dim else replace(field, dim=dimensions.get(field.name))
            for field in self.dense
        ]
        return replace(self, dense=dense)

    def with_any_dimension(self) -> CollectionSettings:
        """The same with some dimension for every field, to check the rest of a new collection."""
        return self.with_dimensions({field.name: _ANY_DIMENSION for field in self.dense})
