"""Names that callers misspell, and those that they meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

#: How alike two names have to be (`difflib.SequenceMatcher.ratio`): "colection_name" is to
#: "collection_name", and "use_async" is not to "use_async_client".
_CUTOFF = 0.75


def nearest(
    name: str, known: Iterable[str], synonyms: Mapping[str, Iterable[str]] | None = None
) -> str | None:
    """Find the known name that a caller has probably meant.

    Args:
        name: What the caller wrote.
        known: The names that there are.
        synonyms: Known names, each with what others call it.

    Returns:
        The known name, `None` where none is like it.
    """
    meant: dict[str, str] = {}
    for each in known:
        meant |= {_folded(word): each for word in (*(synonyms or {}).get(each, ()), each)}
    close = difflib.get_close_matches(_folded(name), meant, n=1, cutoff=_CUTOFF)
    return meant[close[0]] if close else None


def did_you_mean(
    name: str, known: Iterable[str], synonyms: Mapping[str, Iterable[str]] | None = None
) -> str:
    """Return what to append to the message that refuses a name; empty where nothing is like it."""
    meant = nearest(name, known, synonyms)
    return "" if meant is None else f"; did you mean {meant!r}?"


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
