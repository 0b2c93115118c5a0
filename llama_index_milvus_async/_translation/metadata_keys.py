"""The names under which the dynamic field has the filterable copies of metadata keys.

A key stands there under its own name, unless the row uses that name for something else: a column
of the store, a key that LlamaIndex's own rows have (`_node_content`, `document_id`), or `$meta`.
Such a key is *shadowed*: its copy has another name, which only `RowPacker` and `keys.target_of`
know, and a mark beside it says that the row has it, even if it is null. The serialized node has
every key under its own name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

_PREFIX = "_shadowed_"
#: Most keys that are remembered as not shadowed.
_MAX_KNOWN = 10_000


class MetadataKeys:
    """Which keys are shadowed in one collection, and the names of their copies.

    Args:
        taken: The names that a row uses for something else.
        columns: The columns of the collection.
    """

    def __init__(self, taken: Collection[str], columns: Iterable[str]) -> None:
        self._taken = frozenset(taken)
        prefix = _PREFIX
        while any(name.startswith((prefix, f"_has{prefix}")) for name in columns):
            prefix = f"_{prefix}"
        self._copy, self._mark = prefix, f"_has{prefix}"
        # Metadata has the same few keys in nearly all nodes.
        self._plain: set[str] = set()

    def is_taken(self, key: str) -> bool:
        """Whether the row uses a name for something that a filter can mean as well."""
        return key in self._taken

    def is_shadowed(self, key: str) -> bool:
        """Whether the copy of a key has another name."""
        # What looks like the name of a copy is shadowed itself, so that no two keys share a name.
        return key in self._taken or key.startswith((self._copy, self._mark))

    def name(self, key: str) -> str:
        """The name of the copy of a key."""
        return self._copy + key if self.is_shadowed(key) else key

    def mark(self, key: str) -> str:
        """The key of the dynamic field that is there where the copy of a taken key is."""
        return self._mark + key

    def has_shadowed(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a key of some metadata is shadowed."""
        if self._plain.issuperset(metadata):
            return False
        if any(map(self.is_shadowed, metadata)):
            return True
        if len(self._plain) < _MAX_KNOWN:
            self._plain.update(metadata)
        return False

    def renamed(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The filterable copy of metadata: its keys by their names, and the marks."""
        copy = {self.name(key): value for key, value in metadata.items()}
        copy.update((self.mark(key), True) for key in metadata if self.is_taken(key))
        return copy
