"""Columns for metadata keys: what a store was asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymilvus import DataType

from .._names import did_you_mean
from ..errors import ConfigurationError
from .column_values import sent_value
from .layout import MAX_VARCHAR_BYTES, Column
from .settings import SCALAR_TYPES, ScalarField, settings_of_fields

#: Milvus' most elements of an ARRAY (https://milvus.io/docs/array_data_type.md).
MAX_ARRAY_CAPACITY = 4_096

_ELEMENT_TYPES = tuple(kind for kind in SCALAR_TYPES if kind is not DataType.JSON)
#: The types of a column for a metadata key.
COLUMN_TYPES = (*SCALAR_TYPES, DataType.ARRAY, DataType.TIMESTAMPTZ)
_KEYS = ("type", "max_length", "element_type", "max_capacity", "nullable", "default", "index")
_WITHOUT_DEFAULT = (DataType.ARRAY, DataType.JSON)
#: What is not the configuration of the index of a column, and why.
_NOT_OF_INDEXES = {
    "index_name": "an index has the name of its column; leave it out",
    "field_name": "an index is of its own column; leave it out",
    "metric_type": "only indexes of vectors have a metric; leave it out",
    "json_path": "indexes of paths are in metadata_indexes",
    "json_cast_type": "indexes of paths are in metadata_indexes",
}


@dataclass(frozen=True)
class Given:
    """The settings of one metadata key, as they were passed.

    Attributes:
        argument: The argument that has them.
        name: The key.
        settings: Its settings.
    """

    argument: str
    name: str
    settings: Mapping[str, Any]

    def refuse(self, found: str, wanted: str) -> ConfigurationError:
        """The error of a setting that is not allowed."""
        return ConfigurationError(f"{self.argument}[{self.name!r}] {found}; {wanted}")

    def check_keys(self, allowed: Sequence[str]) -> None:
        """Refuse settings that do not exist."""
        for key in self.settings:
            if key not in allowed:
                meant = did_you_mean(str(key), allowed)
                raise self.refuse(f"has {key!r}", f"it takes {list(allowed)}{meant}")

    def data_type(self, key: str, allowed: Sequence[DataType]) -> DataType:
        """A setting that is a type, by its name or as a `DataType`."""
        value = self.settings.get(key)
        if isinstance(value, str) and value.upper() in DataType.__members__:
            value = DataType[value.upper()]
        if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
            shown = value.name if isinstance(value, DataType) else repr(value)
            found = f"has no {key}" if value is None else f"has {key}={shown}"
            raise self.refuse(
                found, f"allowed DataTypes are {', '.join(one.name for one in allowed)}"
            )
        return DataType(value)

    def count(self, key: str, most: int, takes: bool, what: str) -> int | None:
        """A setting that is a number of something, which only some types have."""
        value = self.settings.get(key)
        if value is None:
            return None
        if not takes:
            raise self.refuse(f"has {key}={value!r}", f"only {what} has one; leave it out")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.refuse(f"has {key}={value!r}", f"it must be an integer in 1..{most}")
        return value

    def flag(self, key: str) -> bool:
        """A setting that is true or false."""
        value = self.settings.get(key, False)
        if not isinstance(value, bool):
            raise self.refuse(f"has {key}={value!r}", "it must be True or False")
        return value


def check_scalar_fields(fields: Any) -> dict[str, dict[str, Any]]:
    """Check the settings of columns for metadata keys.

    Returns:
        The settings, each type as a `DataType`.

    Raises:
        ConfigurationError: No server could make such a column.
    """
    example = (
        "metadata key to settings, "
        'such as {"tenant": {"type": DataType.VARCHAR, "max_length": 256, "index": True}}'
    )
    checked: dict[str, dict[str, Any]] = {}
    for name, settings in settings_of_fields("scalar_fields", fields, example):
        if not isinstance(settings, Mapping):
            settings = {"type": settings}
        checked[name] = _checked(Given("scalar_fields", name, settings))
    return checked


def _checked(given: Given) -> dict[str, Any]:
    settings = given.settings
    given.check_keys(_KEYS)
    kind = given.data_type("type", COLUMN_TYPES)
    checked: dict[str, Any] = {"type": kind}
    element = None
    if kind is DataType.ARRAY:
        element = checked["element_type"] = given.data_type("element_type", _ELEMENT_TYPES)
    elif settings.get("element_type") is not None:
        raise given.refuse("has element_type", "only an ARRAY has one; leave it out")
    is_text = DataType.VARCHAR in (kind, element)
    counts = {
        "max_length": given.count(
            "max_length", MAX_VARCHAR_BYTES, is_text, "a VARCHAR, or an ARRAY of them,"
        ),
        "max_capacity": given.count(
            "max_capacity", MAX_ARRAY_CAPACITY, kind is DataType.ARRAY, "an ARRAY"
        ),
    }
    checked.update((key, value) for key, value in counts.items() if value is not None)
    checked["nullable"] = given.flag("nullable")
    if settings.get("default") is not None:
        checked["default"] = _default(given, kind, checked.get("max_length"))
    index = settings.get("index", False)
    if index not in (None, False):
        if kind is DataType.JSON:
            wanted = f"name the keys inside it in metadata_indexes, such as '{given.name}.key'"
            raise given.refuse("has an index, and a JSON column has none as a whole", wanted)
        checked["index"] = _index(given, index)
    return checked


def _default(given: Given, kind: DataType, max_length: int | None) -> Any:
    value = given.settings["default"]
    if kind in _WITHOUT_DEFAULT:
        raise given.refuse("has a default", f"a column of type {kind.name} has none; leave it out")
    if kind is DataType.TIMESTAMPTZ and isinstance(value, datetime):
        value = value.isoformat()
    problems: list[str] = []
    sent_value(Column(given.name, kind, max_length), value, problems.append)
    if problems:
        raise given.refuse(f"has a default that {problems[0]}", f"it must be of type {kind.name}")
    return value


def _index(given: Given, index: Any) -> Any:
    if isinstance(index, (bool, str)) and index:
        return index
    if (
        isinstance(index, Mapping)
        and isinstance(index.get("index_type", ""), str)
        and isinstance(index.get("params") or {}, Mapping)
    ):
        for key in (*index, *(index.get("params") or {})):
            if key in _NOT_OF_INDEXES:
                raise given.refuse(f"has an index with {key!r}", _NOT_OF_INDEXES[key])
        return dict(index)
    raise given.refuse(
        f"has index={index!r}",
        'it must be True, an index type such as "INVERTED", or a dictionary such as '
        '{"index_type": "NGRAM", "min_gram": 2, "max_gram": 4}',
    )


def scalar_field(name: str, settings: Mapping[str, Any]) -> ScalarField:
    """The column that checked settings describe."""
    return ScalarField(
        name=name,
        type=DataType(settings["type"]),
        argument="scalar_fields",
        max_length=settings.get("max_length"),
        element_type=settings.get("element_type"),
        max_capacity=settings.get("max_capacity"),
        nullable=bool(settings.get("nullable")),
        default=settings.get("default"),
        index=settings.get("index"),
    )


def check_partition_key(
    name: str | None,
    fields: Mapping[str, ScalarField],
    num_partitions: int | None,
    *,
    isolation: bool,
) -> None:
    """Check the column that Milvus is to partition by.

    Args:
        name: The column, `None` without one.
        fields: The columns for metadata keys, that one among them.
        num_partitions: How many partitions were asked for.
        isolation: Whether each value is to have an index of its own.

    Raises:
        ConfigurationError: Milvus cannot partition by it, or there is none.
    """
    if name is None:
        for argument, value in (
            ("num_partitions", num_partitions),
            ("partition_key_isolation", isolation or None),
        ):
            if value is not None:
                raise ConfigurationError(
                    f"{argument}={value!r} has no effect without partition_key_field, the metadata "
                    "key to partition by; pass both"
                )
        return
    field = fields[name]
    if field.type not in (DataType.VARCHAR, DataType.INT64):
        raise ConfigurationError(
            f"partition_key_field is {name!r}, of type {field.type.name}; Milvus partitions by a "
            "VARCHAR or an INT64"
        )
    if field.optional:
        setting = "nullable" if field.nullable else "default"
        raise ConfigurationError(
            f"partition_key_field is {name!r}, for which scalar_fields has {setting!r}: every node "
            "needs a value of its own to be partitioned by; leave it out"
        )
