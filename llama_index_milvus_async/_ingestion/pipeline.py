"""Batches on their way from a source to rows, several at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from llama_index.core.schema import BaseNode

from .._concurrency.drivers import cancel_all
from .._concurrency.in_order import map_in_order
from .._operations.writes import write_outcome
from .._retrieval.values import one_line
from ..errors import IngestionError, MilvusVectorStoreError, NodeError, PartialWriteError
from ..store import MilvusVectorStore
from .documents import Documents, Group
from .source import read_batches
from .transformations import Transformations

#: Characters of a passage, as a splitter makes them: they bound the documents that are read for a
#: batch of passages.
CHARACTERS = 1_000


@dataclass(eq=False)
class Batch:
    """Nodes that are embedded and written together.

    Attributes:
        group: The documents that they are of.
        nodes: The nodes; there may be none.
        is_last: Whether the documents have no further nodes.
        outcome: `True` once they are written, or why they are not.
    """

    group: Group
    nodes: list[BaseNode]
    is_last: bool
    outcome: Exception | bool | None = None

    def depends_on(self, other: Batch) -> bool:
        """Whether it must not be written before, or together with, an earlier batch."""
        ids = {node.node_id for node in other.nodes}
        if any(node.node_id in ids for node in self.nodes):
            return True
        if self.group is other.group:
            return False
        return not self.group.replaced_ids.isdisjoint(other.group.replaced_ids)


@dataclass
class Busy:
    """How long something was under way."""

    _past: float = 0.0
    _under_way: int = 0
    _since: float = 0.0

    @property
    def seconds(self) -> float:
        """The seconds so far in which at least one was under way."""
        return self._past + (time.perf_counter() - self._since if self._under_way else 0.0)

    @contextmanager
    def working(self) -> Iterator[None]:
        """What is done inside is under way."""
        if not self._under_way:
            self._since = time.perf_counter()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._past += time.perf_counter() - self._since


@dataclass
class Counts:
    """What has been done so far; see `IngestResult`."""

    documents: int = 0
    unchanged: int = 0
    deleted: int = 0
    nodes: int = 0
    transforming: Busy = field(default_factory=Busy)
    embedding: Busy = field(default_factory=Busy)
    writing: Busy = field(default_factory=Busy)


class Pipeline:
    """One ingestion.

    Args:
        store: Where rows are written.
        documents: Decides which documents are ingested.
        transformations: What is done to them.
        batch_size: Most nodes of a batch.
        max_in_flight: Most batches that are embedded, and most that are written, at once.
        arguments: Keyword arguments of `async_add`.
        report: Called after each batch.
    """

    def __init__(
        self,
        store: MilvusVectorStore,
        documents: Documents,
        transformations: Transformations,
        *,
        batch_size: int,
        max_in_flight: int,
        arguments: dict[str, Any],
        report: Callable[[], Awaitable[None]],
    ) -> None:
        self.counts = Counts()
        self._store = store
        self._documents = documents
        self._transformations = transformations
        self._batch_size = batch_size
        self._max_in_flight = max_in_flight
        self._arguments = arguments
        self._report = report
        self._split: deque[Batch] = deque()  # in their order, and not accounted for
        self._writes: deque[tuple[Batch, asyncio.Task[None]]] = deque()  # in their order

    async def run(self, source: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Ingest a source.

        Raises:
            IngestionError: Something failed. What was being written then is written.
        """
        await self._documents.begin()
        try:
            async with aclosing(self._embedded(source)) as batches:
                await self._write_all(batches)
            self.counts.deleted = await self._documents.delete_missing()
        except Exception as error:
            await asyncio.gather(*(task for _, task in self._writes))
            with suppress(Exception):  # the first failure is the one to tell
                while self._split and self._split[0].outcome is True:
                    await self._account(self._split[0])
            raise self._failure(error) from error
        finally:
            await cancel_all([task for _, task in self._writes])

    async def _embedded(
        self, source: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncGenerator[Batch, None]:
        batches = self._cut(map_in_order(self._chosen(source), self._split_group, 1))
        async with aclosing(map_in_order(batches, self._embed, self._max_in_flight)) as embedded:
            async for batch in embedded:
                yield batch

    async def _chosen(
        self, source: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncGenerator[Group, None]:
        characters = CHARACTERS * self._batch_size
        async with aclosing(read_batches(source, self._batch_size, characters)) as read:
            async for documents in read:
                yield await self._documents.choose(documents)

    async def _split_group(self, group: Group) -> list[Batch]:
        with self.counts.transforming.working():
            nodes = list(await self._transformations.split(group.documents))
        count = max(1, -(-len(nodes) // self._batch_size))
        bounds = [len(nodes) * n // count for n in range(count + 1)]
        batches = [
            Batch(group, nodes[start:end], end == len(nodes)) for start, end in pairwise(bounds)
        ]
        self._split += batches
        return batches

    async def _cut(self, groups: AsyncGenerator[list[Batch], None]) -> AsyncGenerator[Batch, None]:
        async with aclosing(groups):
            async for batches in groups:
                for batch in batches:
                    yield batch

    async def _embed(self, batch: Batch) -> Batch:
        with self.counts.embedding.working():
            batch.nodes = list(await self._transformations.embed(batch.nodes))
        return batch

    async def _write_all(self, batches: AsyncGenerator[Batch, None]) -> None:
        """Write batches while the next ones are embedded, and account for them in their order."""
        coming: asyncio.Future[Batch] | None = asyncio.ensure_future(anext(batches))
        try:
            while coming is not None or self._writes:
                waiting: list[asyncio.Future[Any]] = [self._writes[0][1]] if self._writes else []
                if coming is not None and len(self._writes) < self._max_in_flight:
                    waiting.append(coming)
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                while self._writes and self._writes[0][1].done():
                    await self._account(self._writes[0][0])
                    self._writes.popleft()
                if coming in waiting and coming is not None and coming.done():
                    try:
                        batch = coming.result()
                    except StopAsyncIteration:
                        coming = None
                    else:
                        self._writes.append((batch, asyncio.create_task(self._write(batch))))
                        coming = asyncio.ensure_future(anext(batches))
        finally:
            if coming is not None:
                await cancel_all([coming])

    async def _write(self, batch: Batch) -> None:
        """Write a batch once those before it that it depends on are written; raises nothing."""
        own = asyncio.current_task()
        for other, task in list(self._writes):
            if task is own:
                break
            if batch.depends_on(other):
                await asyncio.wait([task])
        try:
            with self.counts.writing.working():
                await self._documents.delete_stale(batch.group)
                if batch.nodes:
                    await self._store.async_add(batch.nodes, **self._arguments)
            batch.outcome = True
        except Exception as error:
            batch.outcome = error

    async def _account(self, batch: Batch) -> None:
        """Count a batch that is written; all before it are.

        Raises:
            Exception: Why it is not written.
        """
        if isinstance(batch.outcome, Exception):
            raise batch.outcome
        group, counts = batch.group, self.counts
        if batch.is_last:
            await self._documents.remember(group)
            counts.documents += group.read
            counts.unchanged += group.read - len(group.documents)
        counts.nodes += len(batch.nodes)
        group.written += [node.node_id for node in batch.nodes]
        self._split.popleft()
        await self._report()

    def _failure(self, error: Exception) -> IngestionError:
        """The error that says what was written."""
        ids: dict[str, list[str]] = {"written": [], "not_written": [], "unknown": []}
        for batch in self._split:
            outcome = batch.outcome
            if isinstance(outcome, PartialWriteError):
                for name, some in ids.items():
                    some += getattr(outcome, name)
            else:
                name = "not_written" if outcome is None else write_outcome(outcome)
                ids[name] += [node.node_id for node in batch.nodes]
        nodes = self.counts.nodes + len(ids["written"])
        if self._split:  # what was accounted for already of a document that is not complete
            ids["written"] = [*self._split[0].group.written, *ids["written"]]
        return IngestionError(_reason(error), self.counts.documents, nodes, **ids)


def _reason(error: Exception) -> str:
    if isinstance(error, NodeError):
        # Other nodes than those of the message have been written.
        return str(error).removeprefix(NodeError.NOTHING_WRITTEN)
    if isinstance(error, MilvusVectorStoreError):
        return str(error)
    return one_line(error)
