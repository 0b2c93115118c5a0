"""Filters on lists, in ARRAY columns, JSON columns and metadata.

They are passed to a query as `milvus_scalar_filters`, beside LlamaIndex's own filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from llama_index.core.bridge.pydantic import BaseModel, StrictFloat, StrictInt, StrictStr
from llama_index.core.vector_stores.types import FilterCondition

__all__ = ["FilterOperatorFunction", "ScalarMetadataFilter", "ScalarMetadataFilters"]


class FilterOperatorFunction(str, Enum):
    """Operators on lists. The values are the names that the Milvus plugin of LlamaIndex uses."""

    ARRAY_CONTAINS = "ARRAY_CONTAINS({key}, {value})"
    NARRAY_CONTAINS = "not ARRAY_CONTAINS({key}, {value})"
    ARRAY_CONTAINS_ANY = "ARRAY_CONTAINS_ANY({key}, {value})"
    NARRAY_CONTAINS_ANY = "not ARRAY_CONTAINS_ANY({key}, {value})"
    ARRAY_CONTAINS_ALL = "ARRAY_CONTAINS_ALL({key}, {value})"
    NARRAY_CONTAINS_ALL = "not ARRAY_CONTAINS_ALL({key}, {value})"
    ARRAY_LENGTH = "ARRAY_LENGTH({key}) == {value}"
    NARRAY_LENGTH = "ARRAY_LENGTH({key}) != {value}"


class ScalarMetadataFilter(BaseModel):
    """A condition on an ARRAY column, or on a list in a JSON column or in metadata.

    A row that has no list there matches the negated operators (`NARRAY_...`) only.

    Attributes:
        key: Name of the column, or metadata key.
        value: One value for `(N)ARRAY_CONTAINS`, a list for `..._ANY` and `..._ALL`, a count for
            `(N)ARRAY_LENGTH`.
        operator: What to ask.
    """

    key: str
    value: (
        StrictInt | StrictFloat | StrictStr | list[StrictStr] | list[StrictFloat] | list[StrictInt]
    )
    operator: FilterOperatorFunction = FilterOperatorFunction.ARRAY_CONTAINS

    def to_dict(self) -> dict[str, Any]:
        """Return the filter as a dictionary."""
        return {"key": self.key, "value": self.value, "operator": self.operator.value}

    @classmethod
    def from_dict(cls, filter_dict: Mapping[str, Any]) -> ScalarMetadataFilter:
        """Read what `to_dict` returned."""
        return cls.model_validate(dict(filter_dict))


class ScalarMetadataFilters(BaseModel):
    """Several `ScalarMetadataFilter`, and how they are combined.

    Attributes:
        filters: The filters.
        condition: All of them (`AND`, also for `None`), at least one (`OR`), or none (`NOT`).
    """

    filters: list[ScalarMetadataFilter]
    condition: FilterCondition | None = FilterCondition.AND

    def to_dict(self) -> list[dict[str, Any]] | dict[str, Any]:
        """Return the filters as a list, which means `AND`, or else as `{"filters", "condition"}`.

        The list is the form of LlamaIndex's plugin; it has no place for a condition.
        """
        filters = [each.to_dict() for each in self.filters]
        if self.condition in (None, FilterCondition.AND):
            return filters
        return {"filters": filters, "condition": self.condition.value}

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any] | Iterable[Mapping[str, Any] | ScalarMetadataFilter]
    ) -> ScalarMetadataFilters:
        """Read what `to_dict` returned, or a single filter as a dictionary."""
        if not isinstance(data, Mapping):
            return cls.model_validate({"filters": list(data)})
        return cls.model_validate(dict(data) if "filters" in data else {"filters": [dict(data)]})
