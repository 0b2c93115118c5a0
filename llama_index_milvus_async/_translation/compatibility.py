"""Whether an engine, or an existing collection, is what the store's arguments ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pymilvus import DataType

from ..errors import CollectionError, ConfigurationError
from .engine import Engine
from .layout import Layout
from .points_in_time import from_microseconds, point_in_time
from .scalar_indexes import ScalarIndex
from .settings import CollectionSettings, ScalarField, VectorField
from .vectors import DENSE_METRICS

#: The property of a collection by which each value of its partition key has an index of its own.
ISOLATION_PROPERTY = "partitionkey.isolation"

_VECTOR_CAPABILITIES = {
    DataType.FLOAT16_VECTOR: Engine.has_float16_vectors,
    DataType.BFLOAT16_VECTOR: Engine.has_bfloat16_vectors,
    DataType.INT8_VECTOR: Engine.has_int8_vectors,
    DataType.BINARY_VECTOR: Engine.has_binary_vectors,
}


def check_engine(settings: CollectionSettings, engine: Engine) -> None:
    """Check that the engine has what the store's arguments ask for.

    Raises:
        ConfigurationError: It has not. The message names the version that has.
    """
    if settings.properties:
        asked = f"the properties {sorted(settings.properties)}"
        engine.require(Engine.has_properties, asked, ConfigurationError)
    sparse = settings.sparse
    if sparse is not None:
        engine.require(Engine.has_sparse_vectors, "enable_sparse=True", ConfigurationError)
    if sparse is not None and sparse.function is not None:
        function = "sparse_embedding_function"
        engine.require(Engine.has_full_text, function, ConfigurationError)
        if getattr(sparse.function, "multi_analyzer_params", None) is not None:
            asked = f"{function} with multi_analyzer_params"
            engine.require(Engine.has_multi_analyzers, asked, ConfigurationError)
    for field in settings.scalar_fields.values():
        if field.type is DataType.TIMESTAMPTZ:
            asked = f"scalar_fields[{field.name!r}] of type TIMESTAMPTZ"
            engine.require(Engine.has_timestamps, asked, ConfigurationError)
    if settings.metadata_indexes:
        asked = f"metadata_indexes, indexes of the keys {list(settings.metadata_indexes)}"
        engine.require(Engine.has_path_indexes, asked, ConfigurationError)
    if settings.partition_key_field is not None:
        asked = f"partition_key_field={settings.partition_key_field!r}"
        engine.require(Engine.has_partition_key, asked, ConfigurationError)
    if settings.partition_key_isolation:
        asked = "partition_key_isolation=True"
        engine.require(Engine.has_partition_key_isolation, asked, ConfigurationError)
    if len(settings.vectors) > 1:
        names = [field.name for field in settings.vectors]
        asked = f"the fields {names} are vectors"
        engine.require(Engine.has_several_vectors, asked, ConfigurationError)


def check_vector_types(settings: CollectionSettings, engine: Engine) -> None:
    """Check that the engine has the types of the vector fields.

    For an existing collection this comes after `check_layout`, which names the type that the field
    has.

    Raises:
        ConfigurationError: It has not. The message names the version that has.
    """
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
    key = settings.partition_key_field
    if key is not None and layout.partition_key != key:
        found = layout.partition_key
        remedy = "Leave it out" if found is None else f"Pass partition_key_field={found!r}"
        refuse("partition key", repr(found), f"partition_key_field={key!r}", remedy)
    for scalar in settings.scalar_fields.values():
        # Of which type it is, the collection says.
        if scalar.argument == "partition_key_field":
            continue
        _check_scalar_field(scalar, layout, refuse)


def _check_scalar_field(field: ScalarField, layout: Layout, refuse: Any) -> None:
    column = layout.columns.get(field.name)
    what = f"scalar field {field.name!r}"
    detailed = field.argument == "scalar_fields"
    if column is None:
        if detailed and layout.dynamic:
            remedy = "Leave it out: filters find the key in the dynamic field"
            refuse(what, "no such field", f"a column of type {field.type.name}", remedy)
        if not layout.dynamic:
            refuse(what, "no such field", field.type.name, "Leave it out")
        return
    if column.type != field.type:
        argument = "scalar_fields" if detailed else "scalar_field_types"
        remedy = f"Pass DataType.{column.type.name} in {argument}"
        refuse(what, column.type.name, field.type.name, remedy)
    has_null = layout.engine.has_null
    for key, found, asked in (
        ("element_type", column.element_type, field.element_type),
        ("max_length", column.max_bytes, field.max_length),
        ("max_capacity", column.max_capacity, field.max_capacity),
        ("nullable", column.nullable, (field.nullable or None) if has_null else None),
        ("default", column.default, field.default if has_null else None),
    ):
        # What was not asked for may be anything; Milvus Lite does not tell the length of elements.
        if not detailed or asked is None or (key == "max_length" and found is None):
            continue
        equal = _equal_defaults(found, asked, field.type) if key == "default" else found == asked
        if not equal:
            shown = f"DataType.{found.name}" if isinstance(found, DataType) else repr(found)
            refuse(what, f"{key}={shown}", f"{key}={asked!r}", f"Pass {key!r}: {shown} for it")


def _equal_defaults(found: Any, asked: Any, kind: DataType) -> bool:
    """Whether a column has a default, as Milvus tells it."""
    if kind in (DataType.FLOAT, DataType.DOUBLE) and isinstance(found, float):
        return math.isclose(found, asked, rel_tol=1e-6)
    if kind is DataType.TIMESTAMPTZ:  # Milvus writes it as UTC, and Milvus Lite as a number
        found = from_microseconds(found) if isinstance(found, int) else point_in_time(str(found))
        asked = point_in_time(asked)
    return bool(found == asked)


def check_collection(
    description: Mapping[str, Any], settings: CollectionSettings, engine: Engine
) -> None:
    """Check what an existing collection is beside its fields.

    Raises:
        CollectionError: Shards or description are not those that were asked for.
    """
    if not engine.keeps_shards:
        return
    properties = description.get("properties") or {}
    isolated = str(properties.get(ISOLATION_PROPERTY)).lower() == "true"
    for name, asked, found in (
        ("num_shards", settings.num_shards, description.get("num_shards")),
        ("num_partitions", settings.num_partitions, description.get("num_partitions")),
        ("description", settings.description, description.get("description")),
        ("partition_key_isolation", settings.partition_key_isolation or None, isolated),
    ):
        if asked is not None and found != asked:
            raise CollectionError(
                f"Collection {settings.collection_name!r}: found {name}={found!r}, asked for "
                f"{name}={asked!r}. Pass {name}={found!r}, or leave it out, or use another "
                "collection_name, or overwrite=True to make it anew."
            )


def check_replicas(settings: CollectionSettings, found: int) -> None:
    """Check how many copies of a loaded collection there are.

    Raises:
        CollectionError: Not so many as were asked for.
    """
    asked = settings.replica_number
    if found != asked:
        name = settings.collection_name
        raise CollectionError(
            f"Collection {name!r}: it is loaded with replica_number={found}, asked for "
            f"replica_number={asked}. Pass replica_number={found}, or leave it out; or release it "
            f"with a MilvusClient, release_collection({name!r}), and the store loads it anew."
        )


def check_scalar_index(found: Mapping[str, Any], index: ScalarIndex, collection_name: str) -> None:
    """Check the type of an existing index of a scalar column, or of a path.

    Raises:
        CollectionError: It is not the one that was asked for.
    """
    cast, name = found.get("json_cast_type"), found.get("index_name")
    if index.cast is not None and cast is not None and str(cast).upper() != index.cast:
        raise CollectionError(
            f"Collection {collection_name!r}, index of the path {index.path}: it is for values of "
            f"type {cast}, asked for {index.cast}. Pass that type in metadata_indexes; or have it "
            f"built anew: drop it with a MilvusClient, release_collection({collection_name!r}) and "
            f"drop_index({collection_name!r}, {name!r})."
        )
    kind = str(found.get("index_type", ""))
    if not index.any_type and kind.upper() != index.type.upper():
        raise CollectionError(
            f"Collection {collection_name!r}, index of {index.column!r}: found {kind}, asked for "
            f"{index.type}. Pass {kind!r} or True as its index; or have it built anew: drop it "
            f"with a MilvusClient, release_collection({collection_name!r}) and "
            f"drop_index({collection_name!r}, {name!r})."
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
        remedy = (
            f"Pass sparse_embedding_field= one of {names}" if names else "Leave enable_sparse out"
        )
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
        # Where rows are documents, the id of one is its primary key.
        is_key = argument == "doc_id_field" and name == layout.primary_key
        if column is not None and column.type is not DataType.VARCHAR and not is_key:
            refuse(
                f"field {name!r}",
                column.type.name,
                f"VARCHAR, as {argument}={name!r} needs",
                f"Pass {argument}= one of {texts}",
            )
        # A collection without document ids can be read and queried, only not deleted from by
        # document, so that a missing doc_id_field is allowed.
        if column is None and not layout.dynamic and argument == "text_key":
            refuse(
                f"field {name!r}",
                "no such field",
                f"{argument}={name!r}",
                f"Pass {argument}= one of {texts}",
            )


def check_index_metric(index: Mapping[str, Any], field: VectorField, collection_name: str) -> None:
    """Check the metric of an existing index against the one that was asked for, if any was.

    Raises:
        CollectionError: They differ; scores would be read in the wrong direction.
    """
    asked = field.asked_metric
    found = str(index.get("metric_type") or asked)
    index_name = index.get("index_name") or field.name
    if asked is not None and found.upper() != asked.upper():
        raise CollectionError(
            f"Collection {collection_name!r}, index of {field.name!r}: found metric {found}, "
            f"asked for {field.metric_setting(asked)}. Pass {field.metric_setting(found)}, or "
            "leave the metric out; or have the index built anew: drop it with a MilvusClient, "
            f"release_collection({collection_name!r}) and drop_index({collection_name!r}, "
            f"{index_name!r})."
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
