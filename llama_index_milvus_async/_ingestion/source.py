"""Documents of a source in batches, which are never read on the event loop."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode

from .._concurrency.drivers import run_in
from .._retrieval.values import described
from ..errors import ConfigurationError


def check_source(source: Any) -> None:
    """Check that documents can be read of a source.

    Raises:
        ConfigurationError: It is not one.
    """
    if isinstance(source, (str, bytes, Mapping, BaseNode)) or not isinstance(
        source, (Iterable, AsyncIterable)
    ):
        raise ConfigurationError(
            f"source is {described(source)}; it must be a list, a generator or an async generator "
            "of documents or nodes"
        )


async def read_batches(
    source: Iterable[Any] | AsyncIterable[Any], most: int, most_characters: int
) -> AsyncGenerator[list[BaseNode], None]:
    """Read a source.

    A plain one is read in a thread of its own, always the same. A generator is closed at the end,
    also where that comes early.

    Args:
        source: Documents, or lists of them.
        most: Most documents of a batch.
        most_characters: A batch is complete when its texts have as many.

    Raises:
        ConfigurationError: The source has something that is not a document or a node.
        Exception: What the source raises.
    """
    if isinstance(source, AsyncIterable):
        async for batch in _read_async(source, _Collector(most, most_characters)):
            yield batch
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="source") as thread:
        batches = _read(source, _Collector(most, most_characters))
        try:
            while (batch := await run_in(thread, next, batches, None)) is not None:
                yield batch
        finally:
            await run_in(thread, batches.close)
            if inspect.isgenerator(source):
                await run_in(thread, source.close)


async def _read_async(
    source: AsyncIterable[Any], collector: _Collector
) -> AsyncGenerator[list[BaseNode], None]:
    closing = aclosing(source) if isinstance(source, AsyncGenerator) else nullcontext()
    async with closing:
        try:
            async for item in source:
                for batch in collector.add(item):
                    yield batch
        except Exception:
            if collector.batch:  # what came before the failure is ingested
                yield collector.batch
            raise
    if collector.batch:
        yield collector.batch


def _read(source: Iterable[Any], collector: _Collector) -> Generator[list[BaseNode], None, None]:
    try:
        for item in source:
            yield from collector.add(item)
    except Exception:
        if collector.batch:  # what came before the failure is ingested
            yield collector.batch
        raise
    if collector.batch:
        yield collector.batch


class _Collector:
    """Collects documents until a batch is complete."""

    def __init__(self, most: int, most_characters: int) -> None:
        self._most = most
        self._most_characters = most_characters
        self.batch: list[BaseNode] = []
        self._characters = 0
        self._ids: set[str] = set()

    def add(self, item: Any) -> Iterator[list[BaseNode]]:
        """Add a document, or a list of them as LlamaIndex's readers yield; yields batches."""
        for document in item if isinstance(item, (list, tuple)) else [item]:
            if not isinstance(document, BaseNode):
                raise ConfigurationError(
                    f"source has {described(document)}; it must have documents or nodes, or lists "
                    "of them"
                )
            # The second of two versions of a document replaces the first one.
            if document.id_ in self._ids:
                yield self._complete()
            self.batch.append(document)
            self._ids.add(document.id_)
            self._characters += len(document.get_content(metadata_mode=MetadataMode.NONE))
            if len(self.batch) >= self._most or self._characters >= self._most_characters:
                yield self._complete()

    def _complete(self) -> list[BaseNode]:
        batch, self.batch = self.batch, []
        self._ids, self._characters = set(), 0
        return batch
