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

from pymilvus import CollectionSchema, DataType, FieldSchema, Function
from pymilvus.milvus_client.index import IndexParams

from ..errors import CollectionError, ConfigurationError
from .engine import Engine
from .expressions import Columns
from .vectors import DENSE_METRICS

#: Milvus' longest VARCHAR, in UTF-8 bytes
#: (https://milvus.io/docs/limitations.md#Length-of-a-string).
MAX_VARCHAR_BYTES = 65_535
#: Milvus' largest dimension of a dense vector (https://milvus.io/docs/limitations.md).
MAX_DIMENSION = 32_768

NODE_CONTENT_FIELD = "_node_content"
NODE_TYPE_FIELD = "_node_type"
DYNAMIC_FIELD = "$meta"

_NODE_TYPE_BYTES = 256

_VECTOR_CAPABILITIES = {
    DataType.FLOAT16_VECTOR: Engine.has_float16_vectors,
    DataType.BFLOAT16_VECTOR: Engine.has_bfloat16_vectors,
    DataType.INT8_VECTOR: Engine.has_int8_vectors,
    DataType.BINARY_VECTOR: Engine.has_binary_vectors,
}

# Index types of columns that have no FLAT one.
_DEFAULT_INDEXES = {
    DataType.BINARY_VECTOR: "BIN_FLAT",
    DataType.SPARSE_FLOAT_VECTOR: "SPARSE_INVERTED_INDEX",
}

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
class VectorField:
    """A vector column that the store uses, and the index that a new one gets.

    Attributes:
        name: Its name.
        type: Its type.
        dim: Its dimension, `None` for a sparse one and where the collection decides.
        metric: The metric of the index.
        index_config: Type and parameters of the index, flat or with nested `params`.
        function: The function that computes it of texts; `None` where the store writes it.
        reads: The columns that the function of an existing collection has to read; `None` where
            any will do.
        in_dense_fields: Whether `dense_fields` names it.
    """

    name: str
    type: DataType
    dim: int | None
    metric: str
    index_config: Mapping[str, Any]
    function: Function | None = None
    reads: Sequence[str] | None = None
    in_dense_fields: bool = False

    def setting(self, argument: str, key: str, value: object) -> str:
        """An argument of the store, or a key of `dense_fields`, as one writes it."""
        if self.in_dense_fields:
            return f"dense_fields={{{self.name!r}: {{{key!r}: {value!r}}}}}"
        return f"{argument}={value!r}"

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
class CollectionSettings:
    """What the store was asked to find or make in Milvus; the store's own arguments.

    Attributes:
        dense: The dense vector columns, that of `node.embedding` first; empty without any.
        sparse: The sparse vector column.
    """

    collection_name: str
    id_field: str
    doc_id_field: str
    text_key: str
    dense: Sequence[VectorField]
    sparse: VectorField | None
    scalar_fields: Mapping[str, DataType]
    create_index: bool
    properties: Mapping[str, Any]
    consistency_level: str

    @property
    def vectors(self) -> list[VectorField]:
        """All vector columns that the store uses."""
        return [*self.dense, *([self.sparse] if self.sparse else [])]


@dataclass(frozen=True)
class Column:
    """One column of a collection, as Milvus describes it."""

    name: str
    type: DataType
    max_bytes: int | None = None
    dim: int | None = None
    optional: bool = False
    generated: bool = False  # Milvus fills it, by a function
    reads: tuple[str, ...] = ()  # the columns of which it does


@dataclass(frozen=True)
class Layout:
    """The columns of a collection and the part that each plays for LlamaIndex.

    Attributes:
        dense_fields: The dense vector columns that nodes fill, that of `node.embedding` first.
        sparse_field: The sparse vector column, `None` without one.
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
            field["name"]: _column(field, reads.get(field["name"], ()))
            for field in description["fields"]
        }
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
            dense_fields=tuple(field.name for field in settings.dense),
            sparse_field=settings.sparse.name if settings.sparse else None,
            dynamic=dynamic,
            engine=engine,
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
        """Columns that no metadata key may be named like: the store, or Milvus, fills them."""
        own = {self.primary_key, self.text_key, NODE_CONTENT_FIELD, NODE_TYPE_FIELD}
        own |= {self.doc_id_field} if self.doc_id_field else set()
        own |= {name for name, column in self.columns.items() if column.type in VECTOR_TYPES}
        return frozenset(own - set(self.dense_fields[1:]))

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
    def filter_columns(self) -> Columns:
        """What the expression builder has to know."""
        return Columns(
            primary_key=self.primary_key,
            primary_key_is_integer=self.integer_ids,
            doc_id=self.doc_id_field,
            types={name: column.type for name, column in self.columns.items()},
            dynamic=self.dynamic,
            engine=self.engine,
        )

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


def _column(field: Mapping[str, Any], reads: tuple[str, ...]) -> Column:
    params = field.get("params") or {}
    generated = bool(reads) or bool(field.get("is_function_output"))
    max_length, dim = params.get("max_length"), params.get("dim")
    return Column(
        name=field["name"],
        type=DataType(field["type"]),
        max_bytes=int(max_length) if max_length is not None else None,
        dim=int(dim) if dim is not None else None,
        optional=bool(field.get("nullable") or generated or field.get("default_value") is not None),
        generated=generated,
        reads=reads,
    )


def new_schema(settings: CollectionSettings) -> CollectionSchema:
    """Build the schema of a new collection.

    Raises:
        ConfigurationError: A dimension is not known, or a function reads what is no text column.
    """
    for field in settings.dense:
        if field.dim is None:
            raise ConfigurationError(
                f"dim is missing: the collection {settings.collection_name!r} does not exist, and "
                f"a new one needs the dimension of {field.name!r}, for example dim=384"
            )
    function = settings.sparse.function if settings.sparse else None
    read = dict.fromkeys(function.input_field_names if function else (), _analyzed(function))

    def text(name: str, max_length: int = MAX_VARCHAR_BYTES, **options: Any) -> FieldSchema:
        options |= read.pop(name, {})
        return FieldSchema(name, DataType.VARCHAR, max_length=max_length, **options)

    def scalar(name: str, data_type: DataType) -> FieldSchema:
        return text(name) if data_type == DataType.VARCHAR else FieldSchema(name, data_type)

    def vector(field: VectorField) -> FieldSchema:
        options = {} if field.is_sparse else {"dim": field.dim}
        return FieldSchema(field.name, field.type, **options)

    schema = CollectionSchema(
        [
            FieldSchema(
                settings.id_field,
                DataType.VARCHAR,
                max_length=MAX_VARCHAR_BYTES,
                is_primary=True,
            ),
            text(settings.doc_id_field),
            text(settings.text_key),
            text(NODE_CONTENT_FIELD),
            text(NODE_TYPE_FIELD, _NODE_TYPE_BYTES),
            *(scalar(name, data_type) for name, data_type in settings.scalar_fields.items()),
            *(vector(field) for field in settings.vectors),
        ],
        enable_dynamic_field=True,
    )
    if read:
        raise ConfigurationError(
            f"sparse_embedding_function reads {sorted(read)}, which are no text columns of the "
            f"collection; it can read {settings.text_key!r} and those of scalar_field_names whose "
            "type is VARCHAR"
        )
    if function is not None:
        schema.add_function(function)
    return schema


def _analyzed(function: Function | None) -> dict[str, Any]:
    """The arguments of a column whose texts a function reads."""
    own = getattr(function, "get_field_kwargs", None)
    return dict(own()) if own else {"enable_analyzer": True}


def new_index(field: VectorField, engine: Engine) -> IndexParams:
    """Build the parameters of the index of a vector column.

    An index configuration is flat, as upstream has it: `index_type`, `metric_type`, `index_name`
    and `field_name` are themselves, every other key is a parameter of the index type. A nested
    `params` is taken as well.
    """
    config = dict(field.index_config)
    named = {
        "field_name": config.pop("field_name", field.name),
        "index_name": config.pop("index_name", field.name),
        "index_type": config.pop("index_type", _DEFAULT_INDEXES.get(field.type, "FLAT")),
        "metric_type": config.pop("metric_type", field.metric),
    }
    params = {**config.pop("params", {}), **config}
    if params and engine.nests_index_params:
        # pymilvus flattens what it is given, and Milvus Lite reads nested parameters only.
        params = {"params": params}
    index_params = IndexParams()
    index_params.add_index(**named, **({"params": params} if params else {}))
    return index_params


def check_engine(settings: CollectionSettings, engine: Engine) -> None:
    """Check that the engine has what the store's arguments ask for.

    Raises:
        ConfigurationError: It has not. The message names the version that has.
    """
    sparse = settings.sparse
    if sparse is not None:
        engine.require(Engine.has_sparse_vectors, "enable_sparse=True", ConfigurationError)
    if sparse is not None and sparse.function is not None:
        function = "sparse_embedding_function"
        engine.require(Engine.has_full_text, function, ConfigurationError)
        if getattr(sparse.function, "multi_analyzer_params", None) is not None:
            asked = f"{function} with multi_analyzer_params"
            engine.require(Engine.has_multi_analyzers, asked, ConfigurationError)
    if len(settings.vectors) > 1:
        names = [field.name for field in settings.vectors]
        asked = f"the fields {names} are vectors"
        engine.require(Engine.has_several_vectors, asked, ConfigurationError)
    for field in settings.dense:
        if field.type in _VECTOR_CAPABILITIES:
            asked = f"field {field.name!r} of type {field.type.name}"
            engine.require(_VECTOR_CAPABILITIES[field.type], asked, ConfigurationError)


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

    for field in settings.dense:
        _check_dense_field(field, layout, refuse)
    if settings.sparse is not None:
        _check_sparse_field(settings.sparse, layout, refuse)
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


def _check_dense_field(field: VectorField, layout: Layout, refuse: Any) -> None:
    argument = "dense_fields" if field.in_dense_fields else "embedding_field"
    column = layout.columns.get(field.name)
    vectors = [c.name for c in layout.columns.values() if c.type in DENSE_METRICS]
    if column is None or column.type is not field.type:
        refuse(
            f"vector field {field.name!r}",
            "no such field" if column is None else column.type.name,
            f"a {field.type.name}",
            f"Pass {argument}= one of its dense vector fields {vectors}, of their type",
        )
    elif field.dim is not None and column.dim != field.dim:
        refuse(
            f"vector field {column.name!r}",
            f"dimension {column.dim}",
            field.setting("dim", "dim", field.dim),
            f"Pass {field.setting('dim', 'dim', column.dim)} and an embedding model of that "
            "dimension",
        )


def _check_sparse_field(field: VectorField, layout: Layout, refuse: Any) -> None:
    column = layout.columns.get(field.name)
    what = f"sparse vector field {field.name!r}"
    if column is None or column.type is not field.type:
        names = [c.name for c in layout.columns.values() if c.type is field.type]
        remedy = f"Pass sparse_embedding_field= one of {names}" if names else "Leave it out"
        found = "no such field" if column is None else column.type.name
        refuse(what, found, "enable_sparse=True", remedy)
    elif column.generated and field.function is None:
        refuse(
            what,
            "a field that a function of Milvus fills",
            "a sparse_embedding_function that encodes on this side",
            "Leave sparse_embedding_function out",
        )
    elif column.generated and field.reads is not None and tuple(field.reads) != column.reads:
        refuse(
            what,
            f"a field that Milvus computes of {list(column.reads)}",
            f"a sparse_embedding_function that reads {list(field.reads)}",
            "Leave sparse_embedding_function out",
        )
    elif not column.generated and field.function is not None:
        refuse(
            what,
            "a field that no function of Milvus fills",
            f"sparse_embedding_function={type(field.function).__name__}",
            "Pass the sparse_embedding_function whose vectors it has",
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


def check_metric(index: Mapping[str, Any], field: VectorField, collection_name: str) -> None:
    """Check the metric of an existing index against the one that was asked for.

    Raises:
        CollectionError: They differ; scores would be read in the wrong direction.
    """
    asked = str(field.index_config.get("metric_type", field.metric))
    found = str(index.get("metric_type", asked))
    if found.upper() != asked.upper():
        raise CollectionError(
            f"Collection {collection_name!r}, index of {field.name!r}: found metric {found}, "
            f"asked for {field.metric_setting(asked)}. Pass {field.metric_setting(found)}, or drop "
            "the index so that it is built anew."
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
