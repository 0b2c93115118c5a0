"""Which names Milvus takes for a collection and its fields.

Milvus Lite takes any name. A collection that is made there could not move to a server, so that the
rules of the server hold on both (https://milvus.io/docs/limitations.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import ConfigurationError
from .settings import CollectionSettings

_MAX_LENGTH = 255
# Newer servers take a "$" as well, and can be told to take further characters (`allowedChars`).
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_SYSTEM_FIELDS = ("RowID", "Timestamp")
_FOREIGN = re.compile(r"[^A-Za-z0-9_$]")


def check_new_names(settings: CollectionSettings) -> None:
    """Check the names of a collection that is to be made.

    Raises:
        ConfigurationError: Milvus would refuse one, or two fields have the same.
    """
    check_new_name("collection_name", settings.collection_name)
    taken: dict[str, str] = {}
    for argument, name in _fields(settings):
        check_new_name(argument, name)
        if name in _SYSTEM_FIELDS:
            raise ConfigurationError(
                f"{argument} is {name!r}, the name of a column that Milvus itself has; use another"
            )
        if name in taken:
            raise ConfigurationError(
                f"{argument} is {name!r}, which is also {taken[name]}; the fields of a new "
                "collection need distinct names"
            )
        taken[name] = argument


def is_name(name: str) -> bool:
    """Whether Milvus takes a name."""
    return len(name) <= _MAX_LENGTH and _NAME.fullmatch(name) is not None


def check_new_name(argument: str, name: str) -> None:
    """Check the name of what is to be made.

    Raises:
        ConfigurationError: Milvus would refuse it.
    """
    if is_name(name):
        return
    right = _FOREIGN.sub("_", name)[:_MAX_LENGTH]
    if not _NAME.match(right):
        right = f"_{right}"[:_MAX_LENGTH]
    shown = name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}…"
    raise ConfigurationError(
        f"{argument} is {shown!r}; Milvus takes letters, digits and underscores, no digit at the "
        f"beginning, and {_MAX_LENGTH} characters at most. {right!r} is such a name"
    )


def _fields(settings: CollectionSettings) -> Iterator[tuple[str, str]]:
    """The argument that names a field, and the name, of each."""
    yield "id_field", settings.id_field
    yield "doc_id_field", settings.doc_id_field
    yield "text_key", settings.text_key
    for field in settings.scalar_fields.values():
        yield field.argument, field.name
    for vector in settings.dense:
        yield "dense_fields" if vector.in_dense_fields else "embedding_field", vector.name
    if settings.sparse is not None:
        yield "sparse_embedding_field", settings.sparse.name
