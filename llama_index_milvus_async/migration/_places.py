"""Stores of collections that are named on a command line: `URI#COLLECTION`, and what they have."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from llama_index.core.schema import MetadataMode
from pymilvus import DataType

from .._checks import CONSISTENCY_LEVELS, check_uri, split_credentials
from .._lifecycle import Found, find_collection
from .._names import did_you_mean
from .._translation.compatibility import ISOLATION_PROPERTY
from .._translation.key_syntax import subscripted
from .._translation.layout import (
    DYNAMIC_FIELD,
    NODE_CONTENT_FIELD,
    NODE_TYPE_FIELD,
    VECTOR_TYPES,
    plain_default,
)
from .._translation.metadata_indexes import settings_of_cast
from .._translation.points_in_time import from_microseconds
from .._translation.scalar_fields import COLUMN_TYPES
from .._translation.scalar_indexes import steps_of_path
from .._translation.vectors import DENSE_METRICS
from .._wire.address import CLIENT_OPTIONS, Address
from ..errors import CollectionError, ConfigurationError
from ..sparse import BM25BuiltInFunction
from ..store import MilvusVectorStore
from ._sides import first_nodes

logger = logging.getLogger(__name__)

#: What an index is described by that is no parameter of it.
_NO_INDEX_PARAMETERS = frozenset(
    {
        "field_name",
        "index_name",
        "state",
        "total_rows",
        "indexed_rows",
        "pending_index_rows",
        "index_type",
        "metric_type",
    }
)
#: Arguments that name columns, with their defaults.
_NAMES = {
    name: signature(MilvusVectorStore.__init__).parameters[name].default
    for name in ("text_key", "doc_id_field", "embedding_field", "sparse_embedding_field")
}
#: Properties that a copy has, too.
_PROPERTIES = frozenset({"collection.ttl.seconds", "mmap.enabled", "timezone"})
#: Index types of scalar columns that `True` stands for: each engine has its own of them.
_USUAL_INDEXES = frozenset({"", "AUTOINDEX", "INVERTED", "STL_SORT", "TRIE", "MARISA-TRIE"})
#: Rows that are looked at for texts.
_ROWS_TO_LOOK_AT = 20
#: Arguments of a store that come from the environment, or that a command decides itself.
_NOT_OPTIONS = frozenset({"uri", "token", "user", "password", "collection_name", "overwrite"})
_OPTIONS = sorted(
    {*signature(MilvusVectorStore.__init__).parameters, *CLIENT_OPTIONS}
    - {"self", "kwargs", *_NOT_OPTIONS}
)
#: Those by which a store finds Milvus, before anything is known of its collection.
_TO_CONNECT = CLIENT_OPTIONS | {"timeout"}


@dataclass(frozen=True)
class Place:
    """A collection as a command line names it.

    Attributes:
        uri: Where Milvus is.
        collection: The collection.
        side: Which of the two of a command it is, in capitals: `"SOURCE"`, `"TARGET"`.
        options: Arguments of its store beside these.
    """

    uri: str
    collection: str
    side: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, side: str, options: Sequence[str] = ()) -> Place:
        """Read `URI#COLLECTION`, and options as `NAME=VALUE`.

        Raises:
            ConfigurationError: It is not that.
        """
        uri, hash_sign, collection = text.rpartition("#")
        shown = split_credentials(check_uri(uri or text))[0]
        if shown != (uri or text):
            raise ConfigurationError(
                "a user and password in an address are seen by everybody on this machine; put them "
                f"into the environment variable {side}_MILVUS_TOKEN, as user:password"
            )
        if not hash_sign or not collection:
            raise ConfigurationError(
                f"{text!r} names no collection; write the address, # and the collection, such as "
                f"{shown}#notes"
            )
        return cls(uri, collection, side, dict(map(_store_option, options)))

    @property
    def named(self) -> str:
        """The collection as messages name it; see `_sides.named`."""
        return f"{self.collection!r} at {self.uri}"

    @property
    def address(self) -> Address:
        """Where Milvus is."""
        return Address(self.uri)


def read_option(text: str) -> tuple[str, Any]:
    """Read `NAME=VALUE`, whose value is JSON, or a string where it is not.

    Raises:
        ConfigurationError: It is not that.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"the option {name!r} has no value; write NAME=VALUE")
    return name, _parsed(value)


def _store_option(text: str) -> tuple[str, Any]:
    """Read an argument of a store."""
    name, value = read_option(text)
    if name in _NOT_OPTIONS:
        raise ConfigurationError(
            f"{name} is not an option; address and collection are URI#COLLECTION, and tokens come "
            "from the environment (see --help)"
        )
    if name not in _OPTIONS:
        raise ConfigurationError(
            f"{name!r} is not an argument of MilvusVectorStore{did_you_mean(name, _OPTIONS)}"
        )
    return name, value


def tokens_of(*places: Place) -> list[str]:
    """The token of each place, from the environment.

    `MILVUS_TOKEN` is for the only server of a command: with two of them, one would be told the
    token of the other one.

    Raises:
        ConfigurationError: It is not clear whose a token is.
    """
    servers = {place.address.place for place in places if not place.address.is_lite}
    common = os.environ.get("MILVUS_TOKEN", "")
    found = []
    for place in places:
        own = os.environ.get(f"{place.side}_MILVUS_TOKEN", "")
        if not own and common and len(servers) > 1:
            names = " and ".join(f"{each.side}_MILVUS_TOKEN" for each in places)
            raise ConfigurationError(
                f"MILVUS_TOKEN is set, and the command has two servers; set {names} instead"
            )
        found.append("" if place.address.is_lite else own or common)
    return found


class ExistingSparseVectors:
    """Stands for the encoder of sparse vectors that exist already, and are not computed anew."""

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Refuse; nobody asks questions here."""
        return self.encode_documents(queries)

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Refuse to encode."""
        raise CollectionError(
            "the collection has sparse vectors that its application computes, and nodes come "
            "without theirs; copy them in Python, with the sparse_embedding_function of the target"
        )


async def open_existing(
    place: Place, token: str, *, whole: bool = False
) -> MilvusVectorStore | None:
    """A store for a collection as it is; `None` where there is none.

    Args:
        place: The collection.
        token: The token.
        whole: Whether the store has all arguments by which the collection could be made, too.

    Raises:
        CollectionError: It is not clear which columns are which.
        MilvusVectorStoreError: As `connect` does.
    """
    options = place.options
    to_connect = {name: value for name, value in options.items() if name in _TO_CONNECT}
    async with closing_store(
        MilvusVectorStore(place.uri, token, place.collection, **to_connect)
    ) as probe:
        found = await find_collection(probe)
    if found is None:
        return None
    arguments = {**arguments_of(found, options), **options}
    if whole:
        known = {**_NAMES, **arguments}
        on_server = not place.address.is_lite
        arguments = {**arguments, **new_arguments(found, known, on_server=on_server), **options}
    store = MilvusVectorStore(place.uri, token, place.collection, **arguments)
    try:
        if "text_key" not in options:
            await _check_texts(store, found)
    except BaseException:
        await store.aclose()
        raise
    return store


@asynccontextmanager
async def closing_store(store: MilvusVectorStore) -> AsyncIterator[MilvusVectorStore]:
    """Close a store at the end, without initializing it at the beginning."""
    try:
        yield store
    finally:
        await store.aclose()


async def open_like(place: Place, token: str, like: MilvusVectorStore) -> MilvusVectorStore:
    """A store for a collection that does not exist yet, and is made like that of another store.

    Raises:
        CollectionError: The collection of the other store is gone.
        ConfigurationError: An option is not allowed.
    """
    found = await find_collection(like)
    if found is None:
        raise CollectionError(f"the collection {like.collection_name!r} is gone")
    known = {name: getattr(like, name) for name in _NAMES}
    on_server = not place.address.is_lite and not Address(like.uri).is_lite
    arguments = {
        **known,
        **arguments_of(found, known),
        **new_arguments(found, known, on_server=on_server),
        **place.options,
    }
    return MilvusVectorStore(place.uri, token, place.collection, **arguments)


def arguments_of(found: Found, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by which a store finds the columns of a collection.

    Args:
        found: The collection.
        options: Arguments that are known already.

    Raises:
        CollectionError: The collection has vectors that a store has no place for.
    """
    name = found.description.get("collection_name")
    columns = _columns(found)
    sparse = [each for each, kind in columns.items() if kind is DataType.SPARSE_FLOAT_VECTOR]
    if len(sparse) > 1 and "sparse_embedding_field" not in options:
        raise CollectionError(
            f"collection {name!r} has the sparse vectors {sparse}, and nodes carry those of one "
            "field; pass its name as the option sparse_embedding_field"
        )
    odd = [each for each, kind in columns.items() if kind in VECTOR_TYPES]
    odd = [each for each in odd if columns[each] not in DENSE_METRICS and each not in sparse]
    if odd:
        raise CollectionError(
            f"collection {name!r} has vectors in {odd} of a type that nodes cannot carry"
        )
    arguments: dict[str, Any] = {"id_field": _primary_key(found)}
    arguments |= _dense_arguments(found, columns, options)
    if sparse:
        field = options.get("sparse_embedding_field", sparse[0])
        function = _function_of(found, field) or ExistingSparseVectors()
        arguments |= {"enable_sparse": True, "sparse_embedding_field": field}
        arguments["sparse_embedding_function"] = function
    return arguments


def _columns(found: Found) -> dict[str, DataType]:
    return {each["name"]: DataType(each["type"]) for each in found.fields}


def _primary_key(found: Found) -> str:
    return str(next(each["name"] for each in found.fields if each.get("is_primary")))


def _dense_arguments(
    found: Found, columns: Mapping[str, DataType], options: Mapping[str, Any]
) -> dict[str, Any]:
    dims = {each["name"]: int((each.get("params") or {}).get("dim", 0)) for each in found.fields}
    dense = [name for name, kind in columns.items() if kind in DENSE_METRICS]
    floats = [name for name in dense if columns[name] is DataType.FLOAT_VECTOR]
    main = options.get("embedding_field", "embedding")
    if main not in floats:
        main = floats[0] if floats else None
    further = {name: {"dim": dims[name], "type": columns[name]} for name in dense if name != main}
    arguments: dict[str, Any] = {"enable_dense": main is not None, "dense_fields": further}
    if main is not None:
        arguments |= {"embedding_field": main, "dim": dims[main]}
    return arguments


def _function_of(found: Found, field: str) -> BM25BuiltInFunction | None:
    """The function by which Milvus computes a sparse field."""
    for function in found.description.get("functions") or ():
        if field in (function.get("output_field_names") or ()):
            [read] = function["input_field_names"]
            params = next(each for each in found.fields if each["name"] == read).get("params") or {}
            given = {
                key: _parsed(params[key])
                for key in ("analyzer_params", "multi_analyzer_params", "enable_match")
                if params.get(key)
            }
            given |= {
                argument: function[key]
                for argument, key in (
                    ("function_name", "name"),
                    ("function_description", "description"),
                    ("function_params", "params"),
                )
                if function.get(key)
            }
            return BM25BuiltInFunction(read, field, **given)
    return None


def new_arguments(found: Found, known: Mapping[str, Any], *, on_server: bool) -> dict[str, Any]:
    """The arguments by which a store makes a collection like another one, beside its columns.

    Args:
        found: The other collection.
        known: The arguments that name its columns.
        on_server: Whether both are on servers, which keep more of a collection than Milvus Lite.
    """
    columns = _columns(found)
    arguments: dict[str, Any] = {}
    main, sparse = known["embedding_field"], known["sparse_embedding_field"]
    for argument, name in (("index_config", main), ("sparse_index_config", sparse)):
        if columns.get(name) in VECTOR_TYPES:
            arguments[argument] = index_settings(found.indexes.get(name))
    dense = _dense_arguments(found, columns, known)["dense_fields"]
    arguments["dense_fields"] = {
        name: {**settings, **index_settings(found.indexes.get(name))}
        for name, settings in dense.items()
    }
    own = {_primary_key(found), known["text_key"], known["doc_id_field"]}
    own |= {NODE_CONTENT_FIELD, NODE_TYPE_FIELD}
    arguments["scalar_fields"] = {
        each["name"]: _scalar_settings(each, found.indexes.get(each["name"]), on_server=on_server)
        for each in found.fields
        if each["name"] not in own and DataType(each["type"]) in COLUMN_TYPES
    }
    arguments["partition_key_field"] = next(
        (each["name"] for each in found.fields if each.get("is_partition_key")), None
    )
    if arguments["partition_key_field"] is not None:
        arguments["num_partitions"] = found.description.get("num_partitions") or None
    return {**arguments, **(_server_arguments(found, known) if on_server else {})}


def _server_arguments(found: Found, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a server keeps of a collection beside its columns, and Milvus Lite does not."""
    description = found.description
    properties = description.get("properties") or {}
    kept = {key: value for key, value in properties.items() if key in _PROPERTIES}
    level = description.get("consistency_level_name")
    arguments = {
        "num_shards": description.get("num_shards") or None,
        "description": description.get("description") or None,
        "collection_properties": kept or None,
        "metadata_indexes": _metadata_indexes(found) or None,
        "partition_key_isolation": str(properties.get(ISOLATION_PROPERTY)).lower() == "true",
    }
    if level in CONSISTENCY_LEVELS:
        arguments["consistency_level"] = level
    if NODE_CONTENT_FIELD in _columns(found):
        # Collections of the other package have none, and never had the choice.
        arguments["index_doc_id"] = known["doc_id_field"] in found.indexes
    return arguments


def _metadata_indexes(found: Found) -> dict[str, dict[str, DataType]]:
    """The metadata keys whose paths have an index, and the settings of each."""
    keys: dict[str, dict[str, DataType]] = {}
    for index in found.path_indexes:
        column, steps = index["field_name"], steps_of_path(str(index["json_path"]))
        if column != DYNAMIC_FIELD and steps[0] != column:
            steps = [column, *steps]
        [first, *rest] = map(str, steps)
        if subscripted(first) is not None:
            continue  # the other reading of a key in Milvus' syntax, whose path has one as well
        if any(set(step) & set(".[]") for step in rest):
            key = first + "".join(f"[{json.dumps(step, ensure_ascii=False)}]" for step in rest)
        else:
            key = ".".join([first, *rest])
        settings = settings_of_cast(str(index["json_cast_type"]))
        if settings is None:
            logger.warning(
                "the index of %r is not made: metadata_indexes has none for values of type %s",
                key,
                index["json_cast_type"],
            )
            continue
        keys[key] = settings
    return keys


def index_settings(index: Mapping[str, Any] | None) -> dict[str, Any]:
    """Type, metric and parameters of an index, flat, as a store takes them."""
    if index is None:
        return {}
    given = {**index, **(_parsed(index.get("params")) or {})}
    given.pop("params", None)
    kept = {key: _parsed(value) for key, value in given.items() if key not in _NO_INDEX_PARAMETERS}
    kinds = {key: index[key] for key in ("index_type", "metric_type") if index.get(key)}
    return {**kinds, **kept}


def _scalar_settings(
    described: Mapping[str, Any], index: Mapping[str, Any] | None, *, on_server: bool
) -> dict[str, Any]:
    params, kind = described.get("params") or {}, DataType(described["type"])
    settings: dict[str, Any] = {"type": kind}
    for name in ("max_length", "max_capacity"):
        if params.get(name) is not None:
            settings[name] = int(params[name])
    if described.get("element_type"):
        settings["element_type"] = DataType(described["element_type"])
    if described.get("nullable"):
        settings["nullable"] = True
    default = plain_default(described.get("default_value"))
    if default is not None and not described.get("is_partition_key"):
        is_number_of_time = kind is DataType.TIMESTAMPTZ and isinstance(default, int)
        settings["default"] = from_microseconds(default) if is_number_of_time else default
    if index is not None and kind is not DataType.JSON:
        usual = str(index.get("index_type", "")).upper() in _USUAL_INDEXES
        settings["index"] = True if usual or not on_server else index_settings(index)
    return settings


def _parsed(value: Any) -> Any:
    """A value that is written as JSON, such as a number or a dictionary, or else a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


async def _check_texts(store: MilvusVectorStore, found: Found) -> None:
    """Check that the column of the texts is known, where rows were not written by LlamaIndex."""
    if store.text_key in (columns := _columns(found)):
        return
    not_texts = (store.id_field, store.doc_id_field, NODE_CONTENT_FIELD, NODE_TYPE_FIELD)
    others = [
        name for name, kind in columns.items() if kind is DataType.VARCHAR and name not in not_texts
    ]
    problem = "its first rows have none in the dynamic field"
    try:
        # Rows of the package that this one replaces have the text there.
        nodes = await first_nodes(store, _ROWS_TO_LOOK_AT)
        texts = [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
        if not nodes or not others or any(texts):
            return
    except CollectionError as error:
        problem = str(error)
    raise CollectionError(
        f"which column of {store.collection_name!r} has the texts? Its columns of texts are "
        f"{others}; pass --source-option text_key=NAME, or --target-option for the target "
        f"({problem})"
    )
