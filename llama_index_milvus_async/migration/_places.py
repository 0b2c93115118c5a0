"""Stores of collections that are named on a command line: `URI#COLLECTION`, and what they have."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.schema import MetadataMode
from pymilvus import DataType

from .._checks import check_uri, split_credentials
from .._lifecycle import Found, find_collection
from .._names import did_you_mean
from .._translation.layout import (
    NODE_CONTENT_FIELD,
    NODE_TYPE_FIELD,
    VECTOR_TYPES,
)
from .._translation.vectors import DENSE_METRICS
from .._wire.address import Address
from ..errors import CollectionError, ConfigurationError
from ..sparse import BM25BuiltInFunction
from ..store import MilvusVectorStore

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
#: Arguments of a store that come from the environment, or that a command decides itself.
_NOT_OPTIONS = frozenset({"uri", "token", "user", "password", "collection_name", "overwrite"})


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
        return cls(uri, collection, side, dict(map(_option, options)))

    @property
    def address(self) -> Address:
        """Where Milvus is."""
        return Address(self.uri)


def _option(text: str) -> tuple[str, Any]:
    """Read `NAME=VALUE`, whose value is JSON, or a text where it is not."""
    name, equals, value = text.partition("=")
    known = sorted(MilvusVectorStore.model_fields.keys() | {"db_name"})
    if not equals or not name:
        raise ConfigurationError(f"the option {name!r} has no value; write NAME=VALUE")
    if name in _NOT_OPTIONS:
        raise ConfigurationError(
            f"{name} is not an option; the address and the collection are URI#COLLECTION, and "
            "tokens come from the environment (see --help)"
        )
    if name not in known:
        raise ConfigurationError(
            f"{name!r} is not an argument of MilvusVectorStore{did_you_mean(name, known)}"
        )
    try:
        return name, json.loads(value)
    except ValueError:
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


async def open_existing(place: Place, token: str) -> MilvusVectorStore | None:
    """A store for a collection as it is; `None` where there is none.

    Raises:
        CollectionError: It is not clear which columns are which.
        MilvusVectorStoreError: As `connect` does.
    """
    # The arguments matter only once it is set up.
    probe = MilvusVectorStore(
        place.uri,
        token,
        place.collection,
        **{name: place.options[name] for name in ("db_name", "timeout") if name in place.options},
    )
    try:
        found = await find_collection(probe)
    finally:
        await probe.aclose()
    if found is None:
        return None
    arguments = {**arguments_of(found, place.options), **place.options}
    store = MilvusVectorStore(place.uri, token, place.collection, **arguments)
    try:
        await _check_texts(store, found)
    except BaseException:
        await store.aclose()
        raise
    return store


async def open_like(place: Place, token: str, like: MilvusVectorStore) -> MilvusVectorStore:
    """A store for a collection that does not exist yet, and is made like that of another store.

    Raises:
        ConfigurationError: An option is not allowed.
    """
    found = await find_collection(like)
    if found is None:
        raise CollectionError(f"the collection {like.collection_name!r} is gone")
    arguments = arguments_of(found, {"text_key": like.text_key, "doc_id_field": like.doc_id_field})
    arguments |= {
        "text_key": like.text_key,
        "doc_id_field": like.doc_id_field,
        "description": found.description.get("description") or None,
    }
    if not place.address.is_lite:
        arguments["num_shards"] = found.description.get("num_shards") or None
    return MilvusVectorStore(place.uri, token, place.collection, **{**arguments, **place.options})


def no_collection(place: Place) -> CollectionError:
    """The error of a place that has no such collection."""
    return CollectionError(
        f"there is no collection {place.collection!r} at {place.uri}; look for a typing error in "
        "its name, in the database or in the path"
    )


def arguments_of(found: Found, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of a store by which it finds a collection, or makes one like it.

    Args:
        found: The collection.
        options: Arguments that are known already.
    """
    options = options or {}
    fields = {each["name"]: each for each in found.description["fields"]}
    kinds = {name: DataType(each["type"]) for name, each in fields.items()}
    primary = next(name for name, each in fields.items() if each.get("is_primary"))
    arguments: dict[str, Any] = {"id_field": primary}
    text_key = options.get("text_key", "text")
    doc_id_field = options.get("doc_id_field", "doc_id")
    arguments |= _dense_arguments(found, fields, kinds, options)
    arguments |= _sparse_arguments(found, fields, kinds, text_key)
    key = next((name for name, each in fields.items() if each.get("is_partition_key")), None)
    if key is not None:
        arguments["partition_key_field"] = key
    own = {primary, text_key, doc_id_field, NODE_CONTENT_FIELD, NODE_TYPE_FIELD}
    arguments["scalar_fields"] = {
        name: _scalar_settings(fields[name], kind, is_indexed=name in found.indexes)
        for name, kind in kinds.items()
        if name not in own and kind not in VECTOR_TYPES and not fields[name].get("is_dynamic")
    }
    return arguments


def _dense_arguments(
    found: Found,
    fields: Mapping[str, Any],
    kinds: Mapping[str, DataType],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    dense = [name for name, kind in kinds.items() if kind in DENSE_METRICS]
    floats = [name for name in dense if kinds[name] is DataType.FLOAT_VECTOR]
    main = options.get("embedding_field", "embedding")
    if main not in floats:
        main = floats[0] if floats else None
    further: dict[str, dict[str, Any]] = {}
    arguments: dict[str, Any] = {"enable_dense": main is not None, "dense_fields": further}
    for name in dense:
        dim = int(fields[name]["params"]["dim"])
        index = index_settings(found.indexes.get(name))
        if name == main:
            arguments |= {"embedding_field": name, "dim": dim, "index_config": index}
        else:
            further[name] = {"dim": dim, "type": kinds[name], **index}
    return arguments


def _sparse_arguments(
    found: Found, fields: Mapping[str, Any], kinds: Mapping[str, DataType], text_key: str
) -> dict[str, Any]:
    name = next((n for n, kind in kinds.items() if kind is DataType.SPARSE_FLOAT_VECTOR), None)
    if name is None:
        return {}
    arguments = {
        "enable_sparse": True,
        "sparse_embedding_field": name,
        "sparse_index_config": index_settings(found.indexes.get(name)),
    }
    for function in found.description.get("functions") or ():
        if name in (function.get("output_field_names") or ()):
            [read] = function["input_field_names"]
            params = fields[read].get("params") or {}
            given = {
                key: _parsed(params[key])
                for key in ("analyzer_params", "multi_analyzer_params", "enable_match")
                if params.get(key)
            }
            arguments["sparse_embedding_function"] = BM25BuiltInFunction(read, name, **given)
            return arguments
    return {**arguments, "sparse_embedding_function": ExistingSparseVectors()}


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
    described: Mapping[str, Any], kind: DataType, *, is_indexed: bool
) -> dict[str, Any]:
    params = described.get("params") or {}
    settings: dict[str, Any] = {"type": kind}
    for name in ("max_length", "max_capacity"):
        if params.get(name) is not None:
            settings[name] = int(params[name])
    if described.get("element_type"):
        settings["element_type"] = DataType(described["element_type"])
    if described.get("nullable"):
        settings["nullable"] = True
    if is_indexed and kind not in (DataType.ARRAY, DataType.JSON):
        settings["index"] = True
    return settings


def _parsed(value: Any) -> Any:
    """A value that Milvus has as text: a number, a dictionary, ..."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


async def _check_texts(store: MilvusVectorStore, found: Found) -> None:
    """Check that the column of the texts is known, where rows were not written by LlamaIndex."""
    fields = {each["name"]: DataType(each["type"]) for each in found.description["fields"]}
    if store.text_key in fields:
        return
    others = [
        name
        for name, kind in fields.items()
        if kind is DataType.VARCHAR and name not in (store.id_field, store.doc_id_field)
    ]
    problem = None
    try:
        if not others:
            return
        # Rows of the package that this one replaces have the text in the dynamic field.
        async for node in store.aiter_nodes(batch_size=1):
            if node.get_content(metadata_mode=MetadataMode.NONE):
                return
            break
        problem = "its first row has no text"
    except CollectionError as error:
        problem = str(error)
    raise CollectionError(
        f"which column of {store.collection_name!r} has the texts? Its texts are {others}; pass "
        f"--source-option text_key=NAME, or --target-option for the target ({problem})"
    )
