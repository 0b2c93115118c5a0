"""What the arguments of a store may be; each error says what is allowed."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
from llama_index.core.bridge.pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
)
from pymilvus import DataType

from ._names import did_you_mean, nearest
from ._translation.index_types import METRIC_SYNONYMS, check_index_config
from ._translation.layout import NODE_CONTENT_FIELD, NODE_TYPE_FIELD
from ._translation.settings import MAX_DIMENSION, SCALAR_TYPES, settings_of_fields
from ._translation.vectors import DENSE_METRICS
from ._wire.address import CLIENT_OPTIONS
from .errors import ConfigurationError

CONSISTENCY_LEVELS = ("Strong", "Session", "Bounded", "Eventually")

#: Arguments of the constructor, with what other stores, pymilvus and tutorials call them.
SYNONYMS = {
    "uri": (
        *("host", "port", "address", "url", "endpoint", "path", "db_path", "persist_dir"),
        *("milvus_uri", "milvus_host", "milvus_port", "server_address", "connection_args"),
    ),
    "token": ("api_key", "apikey", "key", "access_token", "milvus_token", "credentials"),
    "collection_name": ("collection", "index_name", "table_name", "milvus_collection"),
    "overwrite": ("drop_old", "recreate", "reset"),
    "upsert_mode": ("upsert",),
    "collection_properties": ("properties",),
    "doc_id_field": ("doc_id_key", "document_id_field"),
    "text_key": ("text_field", "content_field", "content_key"),
    "dim": (
        *("dimension", "dimensions", "embed_dim", "embedding_dim", "embedding_dimension"),
        *("vector_dim", "vector_size", "n_dim"),
    ),
    "embedding_field": ("vector_field", "vector_key", "embedding_key"),
    "enable_sparse": ("enable_hybrid", "hybrid", "sparse", "enable_bm25"),
    "sparse_embedding_field": ("sparse_field", "sparse_vector_field"),
    "scalar_fields": ("scalar_columns", "metadata_fields", "columns", "schema_fields"),
    "partition_key_field": ("partition_key", "tenant_field"),
    "num_shards": ("shards", "shards_num"),
    "replica_number": ("replicas", "num_replicas"),
    "description": ("collection_description",),
    "sparse_embedding_function": ("sparse_encoder", "sparse_embed_model"),
    "batch_size": ("insert_batch_size",),
    "index_config": ("index_params", "index_type", "index"),
    "sparse_index_config": ("sparse_index_params",),
    "search_config": ("search_params", "search_kwargs"),
    "similarity_metric": ("metric", "metric_type", "distance", "similarity", "distance_metric"),
    "consistency_level": ("consistency",),
    "hybrid_ranker": ("ranker", "reranker"),
    "id_field": ("primary_field", "primary_key", "pk", "pk_field", "id_key"),
    "max_in_flight": ("max_concurrency", "max_workers"),
    "db_name": ("database", "db", "database_name", "database_id"),
    "user": ("username", "user_name"),
    "secure": ("tls", "ssl", "use_tls", "use_ssl", "use_secure"),
}
_SCALARS = {"scalar_field_names", "scalar_fields"}
_SHARED_ROLES = {"id_field", "doc_id_field", "text_key", *_SCALARS}
_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,9}(\.[0-9]+)?\s*")
_TEXT: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        str,
        BeforeValidator(lambda value: str(value) if isinstance(value, PurePath) else value),
        Field(strict=True),
    ]
)
_CLIENT_OPTION_TYPES: dict[str, tuple[TypeAdapter[Any], str]] = {
    "dedicated": (TypeAdapter(bool), "True or False"),
    "grpc_options": (TypeAdapter(dict[str, Any]), "a dictionary"),
    "keep_alive": (TypeAdapter(bool), "True or False"),
    "option": (TypeAdapter(dict[str, Any]), "a dictionary"),
    "secure": (TypeAdapter(bool), "True or False"),
}


def unknown_arguments(name: str, unknown: Iterable[str], known: Iterable[str]) -> str:
    """What to say of arguments of the constructor that nobody knows; their values are not shown.

    Args:
        name: The class.
        unknown: The arguments.
        known: The fields of the class.
    """
    choices = [*known, *CLIENT_OPTIONS]
    described = []
    for each in sorted(unknown):
        meant = nearest(each, choices, SYNONYMS)
        described.append(repr(each) + (f" (did you mean {meant!r}?)" if meant else ""))
    return (
        f"{name}() got unknown arguments: {', '.join(described)}. It takes its own, and those of "
        f"pymilvus' clients: {', '.join(sorted(CLIENT_OPTIONS))}"
    )


def check_client_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the types of arguments of pymilvus' clients, which itself would fail with any error."""
    checked = {}
    for name, value in options.items():
        kind, rule = _CLIENT_OPTION_TYPES.get(name, (_TEXT, "a string"))
        try:
            checked[name] = None if value is None else kind.validate_python(value)
        except ValidationError:
            raise ConfigurationError(
                f"{name} is a value of type {type(value).__name__}; it must be {rule}"
            ) from None
    return checked


def check_uri(uri: Any) -> str:
    """Check that a URI is an address or a path of Milvus Lite."""
    # pymilvus refuses pathlib.Path with a message about something else.
    text = "" if uri is None else str(uri)
    if not text:
        raise ConfigurationError(
            f"uri is {'None' if uri is None else 'empty'}; pass a server's address such as "
            '"http://localhost:19530", or a path '
            'that ends in ".db"'
        )
    is_file = text.endswith(".db")
    # pymilvus would take "http://host/x.db" for a file.
    if is_file if "://" in text else not is_file and not text.startswith("unix:"):
        shown = None if uri is None else without_credentials(text)
        raise ConfigurationError(
            f"uri is {shown!r}; it must be a server's address such as "
            '"http://localhost:19530", or a path that ends in ".db" for Milvus Lite'
        )
    return text


def without_credentials(text: str) -> str:
    """Cut out of a malformed URI what may be a user and a password."""
    return re.sub(r"^(\w+://)?.*@", r"\1***@", text, flags=re.DOTALL)


def split_credentials(uri: str) -> tuple[str, str]:
    """Take `user:password` out of a URI, so that the URI can be shown."""
    if "://" not in uri:
        return uri, ""
    try:
        parts = urlsplit(uri)
        malformed = "@" in f"{parts.path}{parts.query}{parts.fragment}"
        malformed |= not (parts.hostname or parts.scheme == "unix") or parts.port == 0
    except ValueError:
        malformed = True
    if malformed and "@" not in uri:
        raise ConfigurationError(
            f"uri is {uri!r}; it must be a server's address such as "
            '"http://localhost:19530", with a host and a port in 1..65535'
        )
    if malformed:
        # A "/", "?" or "#" ends the part before the host: the password would stay in the URI.
        raise ConfigurationError(
            f"uri is {without_credentials(uri)!r}; characters such as / ? # [ ] in the user or "
            "password have to be percent-encoded, or pass them as token"
        )
    if "@" not in parts.netloc:
        return uri, ""
    credentials, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)), unquote(credentials)


def check_distinct(names: Iterable[tuple[str, str]]) -> None:
    """Check that no two fields have one name, where a collection can have only one of them.

    In an existing collection one column may hold ids, texts and metadata at once. Those of a new
    one are checked where it is made.

    Args:
        names: For each field the argument that names it, and its name.
    """
    taken = {
        NODE_CONTENT_FIELD: "the column of the serialized node",
        NODE_TYPE_FIELD: "the node's class",
    }
    for role, name in names:
        other = taken.get(name)
        shared = role != other and {role, other} <= _SHARED_ROLES and {role, other} != _SCALARS
        if other is not None and not shared:
            raise ConfigurationError(
                f"{role} is {name!r}, which is also {other}; fields need distinct names"
            )
        taken[name] = role


def check_scalar_types(names: Any, types: Any) -> list[DataType] | None:
    """Check that each scalar field has a type that a column can have."""
    if not isinstance(types, (Sequence, type(None))) or isinstance(types, (str, bytes)):
        raise ConfigurationError(
            f"scalar_field_types is {types!r}; it must be a list of pymilvus.DataType"
        )
    if len(names or ()) != len(types or ()):
        raise ConfigurationError(
            f"scalar_field_names has a length of {len(names or ())}, and scalar_field_types of "
            f"{len(types or ())}; pass one type for each name"
        )
    allowed = ", ".join(data_type.name for data_type in SCALAR_TYPES)
    for name, data_type in zip(names or (), types or (), strict=True):
        if data_type not in SCALAR_TYPES:
            raise ConfigurationError(
                f"scalar_field_types has {data_type!r} for {name!r}; allowed DataTypes are "
                f"{allowed}"
            )
    return None if types is None else [DataType(data_type) for data_type in types]


def check_dense_fields(fields: Any) -> dict[str, dict[str, Any]]:
    """Check the specifications of further dense fields."""
    example = 'field name to settings, such as {"image": {"dim": 512}}'
    checked: dict[str, dict[str, Any]] = {}
    for name, given in settings_of_fields("dense_fields", fields, example):
        if not isinstance(given, Mapping):
            raise ConfigurationError(
                f"dense_fields[{name!r}] is {given!r}; it must be a dictionary with dim, and "
                "optionally metric_type, type, index_type and parameters of the index"
            )
        settings = dict(given)
        dim = check_dim(settings.pop("dim", None), f"dense_fields[{name!r}]: dim")
        kind = settings.pop("type", DataType.FLOAT_VECTOR)
        if not isinstance(kind, int) or kind not in DENSE_METRICS:
            allowed = ", ".join(one.name for one in DENSE_METRICS)
            raise ConfigurationError(
                f"dense_fields[{name!r}] has type={kind!r}; allowed DataTypes are {allowed}"
            )
        kind = DataType(kind)
        settings = check_index_config(f"dense_fields[{name!r}]", settings, kind)
        if kind == DataType.BINARY_VECTOR and dim is not None and dim % 8:
            raise ConfigurationError(
                f"dense_fields[{name!r}] has dim={dim}; it must be a multiple of 8 for a "
                "BINARY_VECTOR"
            )
        # Without a metric the field takes that of an existing index.
        checked[name] = {"dim": dim, "type": kind, **settings}
    return checked


def number_of(value: Any) -> Any:
    """A number for a text that is one, as the environment has them, and for one of numpy."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    return value.item() if isinstance(value, np.number) else value


def check_dim(dim: Any, argument: str = "dim") -> int | None:
    dim = number_of(dim)
    if dim is None:
        return None
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= MAX_DIMENSION:
        raise ConfigurationError(
            f"{argument} is {dim!r}; it must be an integer in 1..{MAX_DIMENSION}"
        )
    return dim


def check_description(description: Any) -> Any:
    """Check that a text can be sent; pydantic checks that it is one."""
    try:
        if isinstance(description, str):
            description.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"description has a lone surrogate at position {error.start}, which UTF-8 cannot "
            "encode; leave it out"
        ) from None
    return description


def check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    # Locks and event loops cannot wait longer.
    if not number or not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ConfigurationError(
            f"timeout is {timeout!r}; it must be a number of seconds above 0, or None"
        )
    return float(timeout)


def check_metric(metric: Any) -> str | None:
    if metric is None:
        return None
    metrics = DENSE_METRICS[DataType.FLOAT_VECTOR]
    name = str(metric).upper()
    name = METRIC_SYNONYMS.get(name, name)
    if name not in metrics:
        choices = [*metrics, *METRIC_SYNONYMS]
        raise ConfigurationError(
            f"similarity_metric is {metric!r}; it must be one of {choices}"
            f"{did_you_mean(str(metric), choices)}"
        )
    return name


def check_consistency_level(level: Any) -> str:
    """Return the level as Milvus spells it.

    Raises:
        ConfigurationError: There is no such level.
    """
    return str(one_of("consistency_level", level, CONSISTENCY_LEVELS))


def one_of(argument: str, value: Any, allowed: Any) -> Any:
    """Look a value up among enumeration members or names, names in any case."""
    choices = list(allowed)
    if isinstance(value, Enum):  # also one of the upstream plugin
        value = value.value
    for choice in choices:
        if value == choice or str(value).lower() == str(getattr(choice, "value", choice)).lower():
            return choice
    shown = [getattr(choice, "value", choice) for choice in choices]
    raise ConfigurationError(
        f"{argument} is {value!r}; it must be one of {shown}{did_you_mean(str(value), shown)}"
    )
