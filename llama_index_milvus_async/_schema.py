"""Collections: the schema of a new one, the layout of an existing one, and whether it fits.

Nothing here talks to Milvus: the core describes collections and indexes through a backend and
hands the answers in.

A new collection has columns of its own for everything that LlamaIndex needs (id, document id,
text, serialized node), so that the dynamic field, whose rows Milvus bounds at 65,536 bytes, is
left to the user's metadata. Collections that the upstream plugin made keep the serialized node
in the dynamic field; they are read and written as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pymilvus import CollectionSchema, DataType, FieldSchema
from pymilvus.milvus_client.index import IndexParams

from ._expressions import Columns, Dialect
from .errors import CollectionError, ConfigurationError

#: Milvus' longest VARCHAR, in UTF-8 bytes
#: (https://milvus.io/docs/limitations.md#Length-of-a-string).
MAX_VARCHAR_BYTES = 65_535
#: Milvus' largest dimension of a dense vector (https://milvus.io/docs/limitations.md).
MAX_DIMENSION = 32_768

NODE_CONTENT_FIELD = "_node_content"
NODE_TYPE_FIELD = "_node_type"
DYNAMIC_FIELD = "$meta"

_NODE_TYPE_BYTES = 256

INTEGER_TYPES = frozenset({DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64})
VECTOR_TYPES = frozenset(
    data_type
    for data_type in DataType
    if data_type.name.endswith("VECTOR") or data_type.name.endswith("VECTOR_FLOAT")
)
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


@dataclass(frozen=True)
class CollectionSettings:
    """What the store was asked to find or make in Milvus; the store's own arguments."""

    collection_name: str
    id_field: str
    doc_id_field: str
    text_key: str
    embedding_field: str
    dim: int | None
    metric: str
    scalar_fields: Mapping[str, DataType]
    index_config: Mapping[str, Any]
    create_index: bool
    properties: Mapping[str, Any]
    consistency_level: str


@dataclass(frozen=True)
class Column:
    """One column of a collection, as Milvus describes it."""

    name: str
    type: DataType
    max_bytes: int | None = None
    dim: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Layout:
    """The columns of a collection and the part that each plays for LlamaIndex."""

    collection_name: str
    columns: Mapping[str, Column]
    primary_key: str
    auto_id: bool
    doc_id_field: str | None
    text_key: str
    embedding_field: str
    dynamic: bool
    dialect: Dialect

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], settings: CollectionSettings, dialect: Dialect
    ) -> Layout:
        """Read the answer of `describe_collection`.

        Args:
            description: What pymilvus' `describe_collection` returned.
            settings: The store's arguments, for the parts that columns play.
            dialect: The expression language of the engine.
        """
        columns = {field["name"]: _column(field) for field in description["fields"]}
        primary = next(field for field in description["fields"] if field.get("is_primary"))
        dynamic = bool(description.get("enable_dynamic_field"))
        known = settings.doc_id_field in columns or dynamic
        return cls(
            collection_name=settings.collection_name,
            columns=columns,
            primary_key=primary["name"],
            auto_id=bool(primary.get("auto_id") or description.get("auto_id")),
            doc_id_field=settings.doc_id_field if known else None,
            text_key=settings.text_key,
            embedding_field=settings.embedding_field,
            dynamic=dynamic,
            dialect=dialect,
        )

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
        """Columns that the store fills itself, so that no metadata key may be named so."""
        own = {self.primary_key, self.text_key, NODE_CONTENT_FIELD, NODE_TYPE_FIELD}
        own |= {self.doc_id_field} if self.doc_id_field else set()
        own |= {name for name, column in self.columns.items() if column.type in VECTOR_TYPES}
        return frozenset(own)

    @cached_property
    def unfilled_vectors(self) -> list[str]:
        """Vector columns that need a value, and that a node has none for."""
        return [
            name
            for name, column in self.columns.items()
            if column.type in VECTOR_TYPES and not column.optional and name != self.embedding_field
        ]

    @cached_property
    def scalar_columns(self) -> Mapping[str, Column]:
        """Columns that are filled from the metadata key of their name."""
        return {
            name: column for name, column in self.columns.items() if name not in self.own_columns
        }

    @cached_property
    def filter_columns(self) -> Columns:
        """What the expression builder has to know."""
        return Columns(
            primary_key=self.primary_key,
            primary_key_is_integer=self.integer_ids,
            doc_id=self.doc_id_field,
            types={name: column.type for name, column in self.columns.items()},
            dynamic=self.dynamic,
            dialect=self.dialect,
        )

    def max_bytes(self, name: str) -> int:
        """The most UTF-8 bytes that the VARCHAR column `name` takes."""
        column = self.columns.get(name)
        return (column.max_bytes if column else None) or MAX_VARCHAR_BYTES

    def vector_column(self, name: str) -> Column:
        """The dense vector column `name`.

        Raises:
            CollectionError: There is no such column, or it holds no dense float vectors.
        """
        column = self.columns.get(name)
        if column is None or column.type is not DataType.FLOAT_VECTOR:
            vectors = [c.name for c in self.columns.values() if c.type in VECTOR_TYPES]
            found = "no such field" if column is None else f"a field of type {column.type.name}"
            raise CollectionError(
                f"Collection {self.collection_name!r}: the vector field {name!r} was asked for, "
                f"and there is {found}; its vector fields are {vectors}. Pass one of them as "
                "embedding_field."
            )
        return column


def _column(field: Mapping[str, Any]) -> Column:
    params = field.get("params") or {}
    max_length, dim = params.get("max_length"), params.get("dim")
    return Column(
        name=field["name"],
        type=DataType(field["type"]),
        max_bytes=int(max_length) if max_length is not None else None,
        dim=int(dim) if dim is not None else None,
        optional=bool(
            field.get("nullable")
            or field.get("is_function_output")
            or field.get("default_value") is not None
        ),
    )


def new_schema(settings: CollectionSettings) -> CollectionSchema:
    """Build the schema of a new collection.

    Raises:
        ConfigurationError: `dim` is not known.
    """
    if settings.dim is None:
        raise ConfigurationError(
            f"dim is missing: the collection {settings.collection_name!r} does not exist, and a "
            "new one needs the dimension of the embeddings, for example dim=384"
        )

    def text(name: str, max_length: int = MAX_VARCHAR_BYTES, **options: Any) -> FieldSchema:
        return FieldSchema(name, DataType.VARCHAR, max_length=max_length, **options)

    def scalar(name: str, data_type: DataType) -> FieldSchema:
        return text(name) if data_type == DataType.VARCHAR else FieldSchema(name, data_type)

    return CollectionSchema(
        [
            text(settings.id_field, is_primary=True),
            text(settings.doc_id_field),
            text(settings.text_key),
            text(NODE_CONTENT_FIELD),
            text(NODE_TYPE_FIELD, _NODE_TYPE_BYTES),
            *(scalar(name, data_type) for name, data_type in settings.scalar_fields.items()),
            FieldSchema(settings.embedding_field, DataType.FLOAT_VECTOR, dim=settings.dim),
        ],
        enable_dynamic_field=True,
    )


def dense_index(settings: CollectionSettings) -> IndexParams:
    """Build the parameters of the dense index.

    `index_config` is flat, as upstream has it: `index_type`, `metric_type`, `index_name` and
    `field_name` are themselves, every other key is a parameter of the index type. A nested
    `params` is taken as well.
    """
    config = dict(settings.index_config)
    named = {
        "field_name": config.pop("field_name", settings.embedding_field),
        "index_name": config.pop("index_name", settings.embedding_field),
        "index_type": config.pop("index_type", "FLAT"),
        "metric_type": config.pop("metric_type", settings.metric),
    }
    params = {**config.pop("params", {}), **config}
    index_params = IndexParams()
    index_params.add_index(**named, **({"params": params} if params else {}))
    return index_params


def check_layout(layout: Layout, settings: CollectionSettings) -> None:
    """Check that an existing collection is what the store's arguments describe.

    Raises:
        CollectionError: A field is missing or of another type or dimension. The message names
            the field, what was found, what was asked for and what to do.
    """

    def refuse(field: str, found: str, asked: str, remedy: str) -> None:
        raise CollectionError(
            f"Collection {settings.collection_name!r}, {field}: found {found}, asked for {asked}. "
            f"{remedy}, or use another collection_name, or overwrite=True to make it anew."
        )

    columns = layout.columns
    primary = columns[layout.primary_key]
    # With the default name any primary key is taken: collections made by hand call it "pk",
    # "uuid", "auto_id", and the store asks the collection.
    if settings.id_field != layout.primary_key and (
        settings.id_field != "id" or settings.id_field in columns
    ):
        refuse(
            "primary key",
            repr(layout.primary_key),
            f"id_field={settings.id_field!r}",
            f"Pass id_field={layout.primary_key!r}",
        )
    if primary.type not in (DataType.VARCHAR, DataType.INT64):
        refuse(
            f"primary key {primary.name!r}", primary.type.name, "VARCHAR or INT64", "Use another"
        )

    vector = columns.get(settings.embedding_field)
    vectors = [c.name for c in columns.values() if c.type in VECTOR_TYPES]
    if vector is None or vector.type is not DataType.FLOAT_VECTOR:
        refuse(
            f"vector field {settings.embedding_field!r}",
            "no such field" if vector is None else vector.type.name,
            "a FLOAT_VECTOR",
            f"Pass embedding_field= one of its vector fields {vectors}",
        )
    elif settings.dim is not None and vector.dim != settings.dim:
        refuse(
            f"vector field {vector.name!r}",
            f"dimension {vector.dim}",
            f"dim={settings.dim}",
            f"Pass dim={vector.dim} and an embedding model of that dimension",
        )

    _check_text_fields(layout, settings, refuse)
    for name, data_type in settings.scalar_fields.items():
        column = columns.get(name)
        if column is None and not layout.dynamic:
            refuse(f"scalar field {name!r}", "no such field", data_type.name, "Leave it out")
        if column is not None and column.type != data_type:
            refuse(
                f"scalar field {name!r}",
                column.type.name,
                data_type.name,
                f"Pass DataType.{column.type.name} in scalar_field_types",
            )


def _check_text_fields(layout: Layout, settings: CollectionSettings, refuse: Any) -> None:
    parts = {"text_key": settings.text_key, "doc_id_field": settings.doc_id_field}
    texts = [c.name for c in layout.columns.values() if c.type is DataType.VARCHAR]
    for argument, name in parts.items():
        column = layout.columns.get(name)
        if column is not None and column.type is not DataType.VARCHAR:
            refuse(
                f"field {name!r}",
                column.type.name,
                f"VARCHAR, as {argument}={name!r} needs",
                f"Pass {argument}= one of {texts}",
            )
        # A collection without document ids can be read and queried, only not deleted from by
        # document, so that a missing doc_id_field is no mismatch.
        if column is None and not layout.dynamic and argument == "text_key":
            refuse(
                f"field {name!r}",
                "no such field",
                f"{argument}={name!r}",
                f"Pass {argument}= one of {texts}",
            )


def check_metric(index: Mapping[str, Any], settings: CollectionSettings) -> None:
    """Check the metric of an existing index against `similarity_metric`.

    Raises:
        CollectionError: They differ; scores would be read in the wrong direction.
    """
    asked = str(settings.index_config.get("metric_type", settings.metric))
    found = str(index.get("metric_type", asked))
    if found.upper() != asked.upper():
        raise CollectionError(
            f"Collection {settings.collection_name!r}, index of {settings.embedding_field!r}: "
            f"found metric {found}, asked for similarity_metric={asked!r}. Pass "
            f"similarity_metric={found!r}, or drop the index so that it is built anew."
        )


def differing_properties(asked: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `asked` that the collection does not have yet.

    Milvus stores every property as text, `True` as `"true"` or `"True"`.
    """
    return {
        key: value
        for key, value in asked.items()
        if str(described.get(key)).lower() != str(value).lower()
    }


def output_columns(layout: Layout) -> Sequence[str]:
    """The columns of a row that is no node: everything but id, text and vectors."""
    names = [name for name in layout.scalar_columns if name != layout.doc_id_field]
    return [*names, DYNAMIC_FIELD] if layout.dynamic else names
