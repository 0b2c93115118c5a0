"""The schema and the indexes of a new collection.

A new collection has columns of its own for everything that LlamaIndex needs (id, document id,
text, serialized node), so that the dynamic field, whose rows Milvus bounds at 65,536 bytes, is
left to the user's metadata. Collections that the upstream plugin made keep the serialized node
in the dynamic field; they are read and written as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pymilvus import CollectionSchema, DataType, FieldSchema, Function, MilvusClient

from ..errors import ConfigurationError
from .engine import Engine
from .index_types import check_index_type, check_required_params
from .layout import MAX_VARCHAR_BYTES, NODE_CONTENT_FIELD, NODE_TYPE_FIELD, Layout
from .names import check_new_names
from .scalar_fields import MAX_ARRAY_CAPACITY
from .scalar_indexes import new_scalar_index, path_indexes, scalar_indexes
from .settings import CollectionSettings, ScalarField, VectorField

_NODE_TYPE_BYTES = 256

# Index types of columns that have no FLAT one.
_DEFAULT_INDEXES = {
    DataType.BINARY_VECTOR: "BIN_FLAT",
    DataType.SPARSE_FLOAT_VECTOR: "SPARSE_INVERTED_INDEX",
}


def new_schema(settings: CollectionSettings, engine: Engine) -> CollectionSchema:
    """Build the schema of a new collection.

    Args:
        settings: What the collection has to be.
        engine: Where it is to be made.

    Raises:
        ConfigurationError: A dimension is not known, Milvus would refuse a name, or a function
            reads a column that is not text.
    """
    for field in settings.dense:
        if field.dim is None:
            raise ConfigurationError(
                f"dim is missing: a schema has the dimension of {field.name!r}; pass for example "
                f"{field.setting('dim', 'dim', 384)}. Where the store makes the collection "
                f"{settings.collection_name!r}, the first nodes can decide"
            )
    check_new_names(settings)
    function = settings.sparse.function if settings.sparse else None
    read = dict.fromkeys(
        function.input_field_names if function else (), _analyzer_arguments(function)
    )

    def text(name: str, max_length: int = MAX_VARCHAR_BYTES, **options: Any) -> FieldSchema:
        options |= read.pop(name, {})
        return FieldSchema(name, DataType.VARCHAR, max_length=max_length, **options)

    def scalar(field: ScalarField) -> FieldSchema:
        options: dict[str, Any] = {}
        if field.name == settings.partition_key_field:
            options["is_partition_key"] = True
        if engine.has_null and field.nullable:
            options["nullable"] = True
        if engine.has_null and field.default is not None:
            options["default_value"] = field.default
        if field.type is DataType.VARCHAR:
            return text(field.name, field.max_length or MAX_VARCHAR_BYTES, **options)
        if field.type is DataType.ARRAY:
            options["element_type"] = field.element_type
            options["max_capacity"] = field.max_capacity or MAX_ARRAY_CAPACITY
            if field.element_type is DataType.VARCHAR:
                options["max_length"] = field.max_length or MAX_VARCHAR_BYTES
        return FieldSchema(field.name, field.type, **options)

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
            *map(scalar, settings.scalar_fields.values()),
            *(vector(field) for field in settings.vectors),
        ],
        enable_dynamic_field=True,
        description=settings.description or "",
    )
    if read:
        raise ConfigurationError(
            f"sparse_embedding_function reads {sorted(read)}, which are not text columns of "
            f"the collection; it can read {settings.text_key!r} and those of scalar_field_names "
            "and scalar_fields whose type is VARCHAR"
        )
    if function is not None:
        schema.add_function(function)
    return schema


def _analyzer_arguments(function: Function | None) -> dict[str, Any]:
    """The arguments of a column whose texts a function of Milvus reads."""
    own = getattr(function, "get_field_kwargs", None)
    return dict(own()) if own else {"enable_analyzer": True}


def new_index_params(settings: CollectionSettings, engine: Engine) -> Any:
    """Build pymilvus's parameters of the indexes of a new collection.

    Raises:
        ConfigurationError: The engine has no such index.
    """
    if settings.index_doc_id is None:
        settings = replace(settings, index_doc_id=True)
    index_params = MilvusClient.prepare_index_params()
    for field in settings.vectors:
        index_params.extend(new_index(field, engine))
    indexes = scalar_indexes(settings, engine)
    if settings.metadata_indexes:
        schema = new_schema(settings.with_any_dimension(), engine)
        layout = Layout.from_description(schema.to_dict(), settings, engine)
        indexes += path_indexes(layout, settings)
    for index in indexes:
        index_params.extend(new_scalar_index(index, engine))
    return index_params


def new_index(field: VectorField, engine: Engine) -> Any:
    """Build pymilvus's parameters of the index of a vector column.

    An index configuration is flat, as upstream has it: `index_type`, `metric_type`, `index_name`
    and `field_name` are themselves, every other key is a parameter of the index type. A nested
    `params` is taken as well.

    Raises:
        ConfigurationError: The engine has no such index type, or it lacks parameters that the
            engine has no defaults of.
    """
    check_required_params(field.name, field.index_config, engine)
    config = {key: value for key, value in field.index_config.items() if key != "metric_type"}
    named = {
        "field_name": config.pop("field_name", field.name),
        "index_name": config.pop("index_name", field.name),
        "index_type": config.pop("index_type", _DEFAULT_INDEXES.get(field.type, "FLAT")),
        "metric_type": field.new_metric,
    }
    params = {**(config.pop("params", None) or {}), **config}
    if params and engine.nests_index_params:
        # pymilvus flattens what it is given, and Milvus Lite reads nested parameters only.
        params = {"params": params}
    check_index_type(field.name, named["index_type"], field.type, engine)
    index_params = MilvusClient.prepare_index_params()
    index_params.add_index(**named, **({"params": params} if params else {}))
    return index_params
