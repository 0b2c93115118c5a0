"""Indexes of metadata keys without a column: what a store was asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymilvus import DataType

from ..errors import ConfigurationError
from .key_syntax import subscripted
from .scalar_fields import Given
from .settings import settings_of_fields

#: What the values at a path can be, beside lists of them; all numbers of JSON are doubles.
_VALUES = (DataType.BOOL, DataType.DOUBLE, DataType.VARCHAR)
_KEYS = ("type", "element_type")


def check_metadata_indexes(indexes: Any) -> dict[str, dict[str, Any]]:
    """Check the settings of indexes of metadata keys.

    Returns:
        The settings, each type as a `DataType`.

    Raises:
        ConfigurationError: No server could make such an index.
    """
    example = 'metadata key to type of its values, such as {"author": DataType.VARCHAR}'
    checked: dict[str, dict[str, Any]] = {}
    for key, settings in settings_of_fields("metadata_indexes", indexes, example):
        if not isinstance(settings, Mapping):
            settings = {"type": settings}
        given = Given("metadata_indexes", key, settings)
        given.check_keys(_KEYS)
        if any(isinstance(step, int) for step in subscripted(key) or ()):
            raise given.refuse(
                "is a place in a list", "an index is of all of it: leave the number out"
            )
        kind = given.data_type("type", (*_VALUES, DataType.ARRAY))
        checked[key] = {"type": kind}
        if kind is DataType.ARRAY:
            checked[key]["element_type"] = given.data_type("element_type", _VALUES)
        elif settings.get("element_type") is not None:
            raise given.refuse("has element_type", "only an ARRAY has one; leave it out")
    return checked


def check_no_columns(keys: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Check that no key has a column.

    Args:
        keys: The keys that are to have an index.
        columns: The names of columns, and the argument that names each.

    Raises:
        ConfigurationError: One has.
    """
    for key in keys & columns.keys():
        raise ConfigurationError(
            f"metadata_indexes has {key!r}, which {columns[key]} makes a column; for an index of a "
            "column use 'index' in scalar_fields, for that of the document id index_doc_id, and "
            f"for one inside a JSON column a key such as '{key}.part'"
        )


def cast_type(settings: Mapping[str, Any]) -> str:
    """What Milvus calls the type of the values at a path."""
    kind = DataType(settings["type"])
    if kind is DataType.ARRAY:
        return f"ARRAY_{DataType(settings['element_type']).name}"
    return str(kind.name)


def settings_of_cast(cast: str) -> dict[str, DataType] | None:
    """The settings whose values Milvus calls so; `None` where there are none."""
    item = cast.upper().removeprefix("ARRAY_")
    if item not in DataType.__members__ or (kind := DataType[item]) not in _VALUES:
        return None
    if item == cast.upper():
        return {"type": kind}
    return {"type": DataType.ARRAY, "element_type": kind}
