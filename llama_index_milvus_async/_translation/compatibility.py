"""Whether an engine, or an existing collection, is what the store's arguments ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymilvus import DataType

from ..errors import CollectionError, ConfigurationError
from .engine import Engine
from .layout import Layout
from .settings import CollectionSettings, VectorField
from .vectors import DENSE_METRICS

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
