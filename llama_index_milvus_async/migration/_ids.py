"""The ids of two collections, compared without reading the nodes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from llama_index.core.vector_stores.types import MetadataFilters

from ..store import MilvusVectorStore
from ._progress import Meter
from ._sides import STRONG, named

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Ids that are kept for a report.
MAX_KEPT_IDS = 1_000
#: Those of them that a message shows.
SHOWN_IDS = 3

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class IdOrder:
    """The order in which the ids of two collections are compared.

    Milvus orders numbers as numbers and texts as texts. Where one collection has numbers and the
    other one texts, all are ordered as numbers, for which the texts are read first.

    Attributes:
        source_is_integer: Whether the primary key of the source is a number.
        target_is_integer: Whether that of the target is.
    """

    source_is_integer: bool
    target_is_integer: bool

    @property
    def is_of_one_kind(self) -> bool:
        """Whether nodes and ids of both come in the same order."""
        return self.source_is_integer == self.target_is_integer

    @property
    def is_numeric(self) -> bool:
        """Whether ids are compared as numbers."""
        return self.source_is_integer or self.target_is_integer

    @property
    def is_order_of_source(self) -> bool:
        """Whether the nodes of the source come in this order."""
        return self.source_is_integer or not self.target_is_integer

    def key(self, node_id: str) -> Any:
        """What two ids are compared by."""
        if not self.is_numeric:
            return node_id
        number = _number_of(node_id)
        return (1, node_id) if number is None else (0, number)

    async def source_ids(
        self, store: MilvusVectorStore, filters: MetadataFilters | None
    ) -> AsyncGenerator[str, None]:
        """The ids of the source, in this order."""
        sort = self.is_numeric and not self.source_is_integer
        async with aclosing(_ids(store, filters, None, sort=sort)) as ids:
            async for node_id in ids:
                yield node_id

    async def target_ids(
        self,
        store: MilvusVectorStore,
        filters: MetadataFilters | None = None,
        after: str | None = None,
    ) -> AsyncGenerator[str, None]:
        """The ids of the target, in this order."""
        sort = self.is_numeric and not self.target_is_integer
        async with aclosing(_ids(store, filters, after, sort=sort)) as ids:
            async for node_id in ids:
                yield node_id


def _number_of(node_id: str) -> int | None:
    """The number that a primary key has for an id; `None` where it can have none."""
    if not _INTEGER.fullmatch(node_id):
        return None
    number = int(node_id)
    return number if -(2**63) <= number < 2**63 else None


async def _ids(
    store: MilvusVectorStore, filters: MetadataFilters | None, after: str | None, *, sort: bool
) -> AsyncGenerator[str, None]:
    if not sort:
        async with aclosing(store.aiter_ids(filters, after=after, consistency_level=STRONG)) as ids:
            async for node_id in ids:
                yield node_id
        return
    numbers, texts = array("q"), []
    async with aclosing(store.aiter_ids(filters, consistency_level=STRONG)) as ids:
        async for node_id in ids:
            number = _number_of(node_id)
            if number is None:
                texts.append(node_id)
            else:
                numbers.append(number)
    for number in await asyncio.to_thread(np.sort, np.array(numbers, dtype=np.int64)):
        yield str(number)
    for text in texts:
        yield text


@dataclass
class Comparison:
    """Which ids two collections have.

    Attributes:
        source_digest: What stands for the ids of the source, and their order.
        common: How many ids both have.
        complete_until: The id up to which nothing is missing; `None` where the first one is.
        common_until: How many ids both have up to there.
        last_missing: The last id that is missing.
        missing_count: How many ids of the source the target does not have.
        missing: The first of them.
        extra_count: How many ids of the target the source does not have.
        extra: The first of them.
    """

    source_digest: bytes = b""
    common: int = 0
    complete_until: str | None = None
    common_until: int = 0
    last_missing: str | None = None
    missing_count: int = 0
    missing: list[str] = field(default_factory=list)
    extra_count: int = 0
    extra: list[str] = field(default_factory=list)

    def note_common(self, node_id: str) -> None:
        """Note an id that both have."""
        self.common += 1
        if not self.missing_count:
            self.complete_until, self.common_until = node_id, self.common

    def note_missing(self, node_id: str) -> None:
        """Note an id that the target does not have."""
        self.missing_count += 1
        self.last_missing = node_id
        if len(self.missing) < MAX_KEPT_IDS:
            self.missing.append(node_id)

    def note_extra(self, node_id: str) -> None:
        """Note an id that the source does not have."""
        self.extra_count += 1
        if len(self.extra) < MAX_KEPT_IDS:
            self.extra.append(node_id)


async def compare_ids(
    source: MilvusVectorStore,
    target: MilvusVectorStore,
    filters: MetadataFilters | None,
    order: IdOrder,
    meter: Meter | None = None,
) -> Comparison:
    """Compare the ids of two collections, a page of each in memory.

    Args:
        source: The one collection.
        target: The other one.
        filters: Which nodes of the source.
        order: The order of both.
        meter: Counts the ids of the source.
    """
    meter = meter or Meter("compare", None, None)
    comparison, digest = Comparison(), IdDigest()
    async with (
        aclosing(order.source_ids(source, filters)) as ours,
        aclosing(order.target_ids(target)) as theirs,
    ):
        async for one, other in merged(ours, theirs, order.key):
            if one is None:
                comparison.note_extra(str(other))
                continue
            digest.add(one)
            if other is None:
                comparison.note_missing(one)
            else:
                comparison.note_common(one)
            meter.count()
    meter.add(0)
    comparison.source_digest = digest.value
    return comparison


async def warn_of_shared_ids(
    store: MilvusVectorStore, filters: MetadataFilters | None, rows: int | None, ids: int
) -> None:
    """Log a warning where several rows of a server have one id, and one of them was read.

    Args:
        store: What was read.
        filters: Which nodes of it.
        rows: How many rows there were at the beginning.
        ids: How many ids were read.
    """
    if rows is None or rows <= ids:
        return
    rows = await store.acount(filters, consistency_level=STRONG)  # some may have been deleted
    if rows > ids:
        logger.warning(
            "%s has %d rows, and %d ids: of rows with the same id, in several partitions or added "
            "with upsert_mode=False, one was taken",
            named(store),
            rows,
            ids,
        )


class IdDigest:
    """Stands for ids in their order, where they are too many to be remembered."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, node_id: str) -> None:
        """Add the next id."""
        # The length keeps two ids apart from one that is both together.
        self._hash.update(f"{len(node_id)}:{node_id}".encode())

    @property
    def value(self) -> bytes:
        """What stands for the ids so far."""
        return self._hash.digest()


async def merged(
    ours: AsyncIterator[T], theirs: AsyncIterator[T], key: Callable[[T], Any]
) -> AsyncGenerator[tuple[T | None, T | None], None]:
    """Go through two sequences in the order of `key`, those of the same key together."""
    one, other = await anext(ours, None), await anext(theirs, None)
    while one is not None or other is not None:
        first = one is not None and (other is None or key(one) <= key(other))
        second = other is not None and (one is None or key(other) <= key(one))
        yield one if first else None, other if second else None
        if first:
            one = await anext(ours, None)
        if second:
            other = await anext(theirs, None)


class PresentIds:
    """Which ids of the source, asked for in order, the target has.

    Args:
        ids: Those of the target, in order.
        order: The order.
    """

    def __init__(self, ids: AsyncIterator[str], order: IdOrder) -> None:
        self._ids = ids
        self._order = order
        self._next: str | None = ""

    async def has(self, node_id: str) -> bool:
        """Whether the target has an id; ask for ids in their order."""
        if self._next == "":
            self._next = await anext(self._ids, None)
        key = self._order.key
        while self._next is not None and key(self._next) < key(node_id):
            self._next = await anext(self._ids, None)
        return self._next == node_id
