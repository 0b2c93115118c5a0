"""Who looks after the indexes of a collection."""

from __future__ import annotations

from enum import Enum

__all__ = ["IndexManagement"]


class IndexManagement(str, Enum):
    """What initializing the store does about indexes.

    Attributes:
        NO_VALIDATION: It creates none; whoever manages them loads the collection, too.
        CREATE_IF_NOT_EXISTS: It creates the one that is missing.
    """

    NO_VALIDATION = "no_validation"
    CREATE_IF_NOT_EXISTS = "create_if_not_exists"
