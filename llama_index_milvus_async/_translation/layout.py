"""The columns of a collection, and the part that each plays for LlamaIndex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pymilvus import DataType

from .._rpc import WrittenColumn
from ..errors import CollectionError
from .engine import Engine
from .metadata_keys import MetadataKeys
from .settings import CollectionSettings
from .vectors import DENSE_METRICS

#: Milvus' longest VARCHAR, in UTF-8 bytes
#: (https://milvus.io/docs/limitations.md#Length-of-a-string).
MAX_VARCHAR_BYTES = 65_535

NODE_CONTENT_FIELD = "_node_content"
NODE_TYPE_FIELD = "_node_type"
DYNAMIC_FIELD = "$meta"
#: LlamaIndex's names for the id of a node's document, beside the collection's own column
#: (`llama_index.core.vector_stores.utils.node_to_metadata_dict`).
DOC_ID_KEYS = ("doc_id", "document_id", "ref_doc_id")
#: What LlamaIndex stores as the document id of a node that has no source document.
NO_DOC_ID = "None"

INTEGER_TYPES = frozenset({DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64})
VECTOR_TYPES = frozenset(
    data_type
    for data_type in DataType
    if data_type.name.endswith("VECTOR") or data_type.name.endswith("VECTOR_FLOAT")
)


@dataclass(frozen=True)
class Column:
    """One column of a collection, as Milvus describes it."""

    name: str
    type: DataType
    max_bytes: int | None = None
    dim: int | None = None
    optional: bool = False
    generated: bool = False  # Milvus fills it, by a function
    reads: tuple[str, ...] = ()  # the columns that the function reads
    element_type: DataType | None = None  # of an array
    max_capacity: int | None = None  # of an array
    nullable: bool = False
    default: Any = None

    @classmethod
    def from_description(
        cls, field: Mapping[str, Any], reads: tuple[str, ...], engine: Engine
    ) -> Column:
        """Read a field of the answer of `describe_collection`.

        Args:
            field: The field.
            reads: The columns that a function of Milvus computes it from.
            engine: What the engine can do.
        """
        params = field.get("params") or {}
        generated = bool(reads) or bool(field.get("is_function_output"))
        default = plain_default(field.get("default_value"))
        nullable = bool(field.get("nullable"))
        max_length, dim = params.get("max_length"), params.get("dim")
        element_type, max_capacity = field.get("element_type"), params.get("max_capacity")
        return cls(
            name=field["name"],
            type=DataType(field["type"]),
            max_bytes=int(max_length) if max_length is not None else None,
            dim=int(dim) if dim is not None else None,
            # Servers without nulls know defaults, and have no way to say which rows want them.
            optional=generated or (engine.has_null and (nullable or default is not None)),
            generated=generated,
            reads=reads,
            element_type=DataType(element_type) if element_type else None,
            max_capacity=int(max_capacity) if max_capacity is not None else None,
            nullable=nullable,
            default=default,
        )


def plain_default(default: Any) -> Any:
    """The default of a column, which pymilvus has as a message with one of several fields."""
    if default is None or not hasattr(default, "WhichOneof"):
        return default
    kind = default.WhichOneof("data")
    return getattr(default, kind) if kind else None


@dataclass(frozen=True)
class Layout:
    """The columns of a collection and the part that each plays for LlamaIndex.

    Attributes:
        dense_fields: The dense vector columns that nodes fill, that of `node.embedding` first.
        sparse_field: The sparse vector column, `None` without one.
        schema_timestamp: The version of the schema.
        partition_key: The column by whose values Milvus chooses partitions, `None` without one.
    """

    collection_name: str
    columns: Mapping[str, Column]
    primary_key: str
    auto_id: bool
    doc_id_field: str | None
    text_key: str
    dense_fields: tuple[str, ...]
    sparse_field: str | None
    dynamic: bool
    engine: Engine
    schema_timestamp: int = 0
    partition_key: str | None = None

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], settings: CollectionSettings, engine: Engine
    ) -> Layout:
        """Read the answer of `describe_collection`.

        Args:
            description: What pymilvus' `describe_collection` returned.
            settings: The store's arguments, for the parts that columns play.
            engine: What the engine can do.
        """
        reads = {
            name: tuple(function.get("input_field_names") or ())
            for function in description.get("functions") or ()
            for name in function.get("output_field_names") or ()
        }
        columns = {
            field["name"]: Column.from_description(field, reads.get(field["name"], ()), engine)
            for field in description["fields"]
        }
        primary = next(field for field in description["fields"] if field.get("is_primary"))
        partition_keys = (f["name"] for f in description["fields"] if f.get("is_partition_key"))
        dynamic = bool(description.get("enable_dynamic_field"))
        known = settings.doc_id_field in columns or dynamic
        return cls(
            collection_name=settings.collection_name,
            columns=columns,
            primary_key=primary["name"],
            auto_id=bool(primary.get("auto_id") or description.get("auto_id")),
            doc_id_field=settings.doc_id_field if known else None,
            text_key=settings.text_key,
            dense_fields=tuple(field.name for field in settings.dense),
            sparse_field=settings.sparse.name if settings.sparse else None,
            dynamic=dynamic,
            engine=engine,
            schema_timestamp=int(description.get("update_timestamp") or 0),
            partition_key=next(partition_keys, None),
        )

    @property
    def embedding_field(self) -> str | None:
        """The column of `node.embedding`, `None` where nodes have no dense embeddings."""
        return self.dense_fields[0] if self.dense_fields else None

    @property
    def encodes_sparse(self) -> bool:
        """Whether the store, and not Milvus, computes the sparse vectors."""
        return self.sparse_field is not None and not self.columns[self.sparse_field].generated

    @property
    def integer_ids(self) -> bool:
        """Whether the primary key is an INT64."""
        return self.columns[self.primary_key].type is DataType.INT64

    @property
    def holds_nodes(self) -> bool:
        """Whether a row can hold a whole node, not only its text, vector and columns."""
        return self.dynamic or NODE_CONTENT_FIELD in self.columns

    @property
    def node_in_column(self) -> bool:
        """Whether the serialized node has a column, or else a key in the dynamic field."""
        return NODE_CONTENT_FIELD in self.columns

    @cached_property
    def own_columns(self) -> frozenset[str]:
        """Columns that the store or Milvus fills, never a metadata key of their name."""
        own = {self.primary_key, self.text_key, NODE_CONTENT_FIELD, NODE_TYPE_FIELD}
        own |= {self.doc_id_field} if self.doc_id_field else set()
        own |= {name for name, column in self.columns.items() if column.type in VECTOR_TYPES}
        return frozenset(own - set(self.dense_fields[1:]))

    @cached_property
    def doc_id_names(self) -> tuple[str, ...]:
        """The columns and dynamic keys in which a row has the id of its node's document."""
        names = [key for key in DOC_ID_KEYS if self.dynamic and key not in self.columns]
        field = self.doc_id_field
        if field is None or field == self.primary_key or field in names:
            return tuple(names)
        return (*names, field)

    @cached_property
    def metadata_keys(self) -> MetadataKeys:
        """The names of metadata keys in the dynamic field."""
        return MetadataKeys({*self.own_columns, *self.doc_id_names, DYNAMIC_FIELD}, self.columns)

    @cached_property
    def unfilled_vectors(self) -> list[str]:
        """Vector columns that need a value, and that a node has none for."""
        return [
            name
            for name, column in self.columns.items()
            if column.type in VECTOR_TYPES
            and not column.optional
            and name not in (*self.dense_fields, self.sparse_field)
        ]

    @cached_property
    def scalar_columns(self) -> Mapping[str, Column]:
        """Columns that are filled from the metadata key of their name."""
        return {
            name: column
            for name, column in self.columns.items()
            if name not in self.own_columns and column.type not in VECTOR_TYPES
        }

    @cached_property
    def written_columns(self) -> tuple[WrittenColumn, ...]:
        """The columns that an insert has values for, the dynamic field last."""
        columns = [
            WrittenColumn(
                name=column.name,
                type=column.type,
                dim=column.dim or 0,
                element_type=column.element_type,
                optional=column.optional,
            )
            for column in self.columns.values()
            if not column.generated and not (self.auto_id and column.name == self.primary_key)
        ]
        if self.dynamic:
            columns.append(WrittenColumn(DYNAMIC_FIELD, DataType.JSON, is_dynamic=True))
        return tuple(columns)

    def max_bytes(self, name: str) -> int:
        """The most UTF-8 bytes that the VARCHAR column `name` takes."""
        column = self.columns.get(name)
        return (column.max_bytes if column else None) or MAX_VARCHAR_BYTES

    def dense_column(self, name: str | None) -> Column:
        """The dense vector column `name`.

        Raises:
            CollectionError: There is no such column, or its vectors are not dense.
        """
        column = self.columns.get(name or "")
        if column is None or column.type not in DENSE_METRICS:
            vectors = [c.name for c in self.columns.values() if c.type in DENSE_METRICS]
            found = "no such field" if column is None else f"a field of type {column.type.name}"
            raise CollectionError(
                f"Collection {self.collection_name!r}: the vector field {name!r} was asked for, "
                f"and there is {found}; its dense vector fields are {vectors}. Pass one of them as "
                "embedding_field."
            )
        return column


@dataclass(frozen=True)
class Index:
    """The index of a vector column.

    Attributes:
        metric: Its metric.
        type: Its type, empty where there is none.
    """

    metric: str
    type: str


def output_columns(layout: Layout) -> Sequence[str]:
    """The columns of a row without a node: everything but id, text and vectors."""
    names = [name for name in layout.scalar_columns if name != layout.doc_id_field]
    return [*names, DYNAMIC_FIELD] if layout.dynamic else names


def stored_columns(layout: Layout) -> list[str]:
    """The columns of a whole row, the dynamic field last.

    What a function of Milvus computes is not among them: Milvus does not give it away, and
    computes it again where the row is written.
    """
    names = [name for name, column in layout.columns.items() if not column.generated]
    return [*names, DYNAMIC_FIELD] if layout.dynamic else names
