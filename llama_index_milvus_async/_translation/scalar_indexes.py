"""Indexes of scalar columns and of paths in JSON: what each engine has.

See https://milvus.io/docs/index-explained.md and https://milvus.io/docs/json-indexing.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymilvus import DataType, MilvusClient

from ..errors import ConfigurationError, FilterError
from .engine import Capability, Engine
from .key_syntax import Step, subscripted
from .keys import json_paths
from .layout import INTEGER_TYPES, Layout
from .names import is_name
from .settings import CollectionSettings

_NUMBERS = (*INTEGER_TYPES, DataType.FLOAT, DataType.DOUBLE)

#: As the servers before 2.4 spell it; later ones take both.
_TRIE = "Trie"
#: For each index type, and each type of column that can have it, which engines do.
_ENGINES: dict[str, dict[DataType, Capability]] = {
    _TRIE: {DataType.VARCHAR: Engine.has_classic_scalar_indexes},
    "STL_SORT": {
        **dict.fromkeys(_NUMBERS, Engine.has_classic_scalar_indexes),
        DataType.VARCHAR: Engine.has_newest_scalar_indexes,
        DataType.TIMESTAMPTZ: Engine.has_newest_scalar_indexes,
    },
    "INVERTED": {
        **dict.fromkeys((*_NUMBERS, DataType.BOOL, DataType.VARCHAR), Engine.has_inverted_indexes),
        DataType.ARRAY: Engine.has_array_indexes,
    },
    "BITMAP": dict.fromkeys(
        (*INTEGER_TYPES, DataType.BOOL, DataType.VARCHAR, DataType.ARRAY), Engine.has_array_indexes
    ),
    "AUTOINDEX": dict.fromkeys(
        (*_NUMBERS, DataType.BOOL, DataType.VARCHAR, DataType.ARRAY), Engine.has_array_indexes
    ),
    "NGRAM": {DataType.VARCHAR: Engine.has_newest_scalar_indexes},
}
#: What `True` means, by preference.
_PREFERRED = ("INVERTED", _TRIE, "STL_SORT")


@dataclass(frozen=True)
class ScalarIndex:
    """An index of a scalar column, or of a path in a column of JSON.

    Attributes:
        column: The column, `$meta` for the dynamic field.
        name: The index's name, which is unique in its collection.
        type: Its type.
        params: Its parameters.
        any_type: Whether an existing index of another type will do.
    """

    column: str
    name: str
    type: str
    params: Mapping[str, Any]
    any_type: bool = False

    @property
    def path(self) -> str | None:
        """The path that it is of, as filters write it; `None` for a whole column."""
        return self.params.get("json_path")

    @property
    def cast(self) -> str | None:
        """The type of the values at the path that are in it; `None` for a whole column."""
        return self.params.get("json_cast_type")

    def is_of(self, found: Mapping[str, Any]) -> bool:
        """Whether a description is that of an index of the same path, whoever has made it."""
        if found.get("index_name") == self.name:
            return True
        path = found.get("json_path")
        return path is not None and steps_of_path(str(path)) == steps_of_path(str(self.path))


def scalar_indexes(settings: CollectionSettings, engine: Engine) -> list[ScalarIndex]:
    """The indexes of the scalar columns of a collection.

    Raises:
        ConfigurationError: The engine has no such index for such a column.
    """
    indexes = []
    for field in settings.scalar_fields.values():
        if field.index is None:
            continue
        named = f"scalar_fields[{field.name!r}]"
        if field.index is True:
            if kind := _preferred(field.type, engine):
                indexes.append(ScalarIndex(field.name, field.name, kind, {}, any_type=True))
            continue
        given = field.index
        config: dict[str, Any] = (
            dict(given) if isinstance(given, Mapping) else {"index_type": given}
        )
        kind = config.pop("index_type", None) or _preferred(field.type, engine) or "AUTOINDEX"
        kind = _checked_type(f"{named} has index={field.index!r}", str(kind), field.type, engine)
        params = {**(config.pop("params", None) or {}), **config}
        indexes.append(ScalarIndex(field.name, field.name, kind, params))
    kind = _preferred(DataType.VARCHAR, engine)
    if settings.index_doc_id and kind is not None:
        name = settings.doc_id_field
        indexes.append(ScalarIndex(name, name, kind, {}, any_type=True))
    return indexes


def path_indexes(layout: Layout, settings: CollectionSettings) -> list[ScalarIndex]:
    """The indexes of the paths that filters on metadata keys read.

    Raises:
        ConfigurationError: A key has a column in this collection, or Milvus cannot address it.
    """
    indexes = []
    keys: dict[str, str] = {}
    for key, cast in settings.metadata_indexes.items():
        try:
            paths = json_paths(layout, key)
        except FilterError as error:
            raise ConfigurationError(
                f"metadata_indexes has {key!r}, which cannot have an index in the collection "
                f"{settings.collection_name!r}: {error}. Leave it out; for an index of a column "
                "use scalar_fields, and index_doc_id for that of the document id"
            ) from error
        for column, path in paths:
            if (other := keys.setdefault(path, key)) != key:
                raise ConfigurationError(
                    f"metadata_indexes has {key!r} and {other!r}, which both are the path {path}; "
                    "Milvus has one index of a path. Leave one out"
                )
            params = {"json_path": path, "json_cast_type": cast}
            indexes.append(ScalarIndex(column, _path_name(path), "INVERTED", params, any_type=True))
    return indexes


def _path_name(path: str) -> str:
    """A name for the index of a path: Milvus takes letters, digits and underscores."""
    if is_name(path):
        return path
    digest = hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"path_{re.sub('[^A-Za-z0-9]+', '_', path).strip('_')[:200]}_{digest}"


def steps_of_path(path: str) -> list[Step]:
    """The steps of a path, as filters write it or as Milvus keeps it: `/a/b`."""
    if path.startswith("/"):
        return [step.replace("~1", "/").replace("~0", "~") for step in path[1:].split("/")]
    return subscripted(path) or [path]


def _preferred(kind: DataType, engine: Engine) -> str | None:
    """The index type that `True` means for a type of column; `None` where there is none."""
    has = (name for name in _PREFERRED if kind in _ENGINES[name])
    return next((name for name in has if _ENGINES[name][kind].is_in(engine)), None)


def _checked_type(asked: str, given: str, kind: DataType, engine: Engine) -> str:
    name = _TRIE if given.upper() in ("TRIE", "MARISA-TRIE") else given.upper()
    fitting = [one for one, types in _ENGINES.items() if kind in types]
    if name not in fitting:
        raise ConfigurationError(f"{asked}; one of type {kind.name} has one of {fitting}")
    engine.require(_ENGINES[name][kind], asked, ConfigurationError)
    return name


def new_scalar_index(index: ScalarIndex, engine: Engine) -> Any:
    """Build pymilvus's parameters of the index of a scalar column, or of a path."""
    params = dict(index.params)
    if params and engine.nests_index_params:
        params = {"params": params}
    index_params = MilvusClient.prepare_index_params()
    index_params.add_index(
        field_name=index.column, index_name=index.name, index_type=index.type, **params
    )
    return index_params
