"""Copy the nodes of one collection to another one, vectors included."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from types import NoneType
from typing import Any, TypeAlias, cast

from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import MetadataFilters

from .._concurrency.drivers import acall, gather_or_cancel, is_asynchronous, run_on_own_loop
from .._concurrency.in_order import map_in_order
from .._lifecycle import changes_of_file, check_store
from .._retrieval.values import check_count, check_flag, described
from ..errors import (
    CollectionError,
    ConfigurationError,
    FilterError,
    MigrationError,
    NodeError,
)
from ..store import MilvusVectorStore
from ._ids import (
    SHOWN_IDS,
    Comparison,
    IdDigest,
    IdOrder,
    PresentIds,
    compare_ids,
    warn_of_shared_ids,
)
from ._progress import Meter, ProgressCallback, check_callback, count_of
from ._sides import STRONG, Vectors, check_fit, named, open_source, open_target

#: Nodes that are changed and written at a time. With three batches in memory, of 768 dimensions,
#: a process stays below 400 MB.
DEFAULT_BATCH_SIZE = 500
#: Nodes that are read at a time: Milvus Lite goes through all rows for each page.
_PAGE_SIZE = 1_000
#: Characters of the texts of a batch, beyond which it has fewer nodes.
_BATCH_CHARACTERS = 8 * 2**20
#: How often rows are fetched that were added to the source meanwhile.
_ROUNDS = 4
#: Batches that are being written while the next one is read: with one, the target would be idle at
#: the end of each.
_BATCHES_BEING_WRITTEN = 2

#: What is done with each node on its way: a function, plain or `async`, that returns the node to
#: write, or `None` to leave it out.
Transform: TypeAlias = Callable[[BaseNode], BaseNode | Awaitable[BaseNode | None] | None]


@dataclass(frozen=True)
class CopyReport:
    """What a copy has done.

    Attributes:
        copied: The nodes that this call has written.
        already_there: The nodes that an earlier call had written, and this one left alone.
        left_out: The nodes that `transform` has left out.
        extra: The nodes of the target that are not the source's, where `keep_extra` allows them.
        seconds: The time that it took.
    """

    copied: int
    already_there: int
    left_out: int
    extra: int
    seconds: float


def copy_nodes(
    source: MilvusVectorStore,
    target: MilvusVectorStore,
    *,
    filters: MetadataFilters | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    transform: Transform | None = None,
    resume: bool = True,
    keep_extra: bool = False,
    on_progress: ProgressCallback | None = None,
) -> CopyReport:
    """Copy the nodes of one collection to another one. Blocks.

    The nodes go with their ids, texts, metadata, relationships and vectors, those of `dense_fields`
    and sparse ones included. Only what a BM25 function has computed is computed anew, by the
    target. Both collections are what their stores say: another Milvus, another layout, other
    columns, another partition key. A target that does not exist is created; it gets the dimension
    and the metric of the source where its store names none.

    Interrupted at any point and called again it goes on: it compares the ids of both, and writes
    what is missing. What it writes it checks in the same way at the end, so that it returns only
    where the target has exactly the nodes of the source. Nodes that are added to the source
    meanwhile are fetched; for those that are changed meanwhile, or between two calls, see `resume`,
    and `check_nodes`.

    Memory holds some batches, and not the collection: 8 bytes for each id where the primary key of
    one collection is a number and that of the other one a string.

    Args:
        source: A store of the collection to read. It is not changed.
        target: A store of the collection to write to.
        filters: Metadata filters; all nodes by default.
        batch_size: Nodes that are changed and written at a time.
        transform: What is done with each node: a function, plain or `async`, that returns the node
            to write, or `None` to leave it out. The same node has to become the same again, id
            included. A plain one runs in a thread; of an `async` one, all calls of a batch run at
            the same time. With it, every node is read and written again when a copy goes on.
        resume: Whether nodes whose ids the target has already are left as they are there. `False`
            writes all of them again, also those that are changed.
        keep_extra: Whether the target may have nodes that the source does not have. By default that
            is an error, before anything is written; with a `transform`, which may give nodes other
            ids, at the end.
        on_progress: What is called with a `Progress` after each batch.

    Returns:
        What was done.

    Raises:
        ConfigurationError: An argument is not allowed, or both stores have the same collection.
        CollectionError: There is no source, its vectors do not fit the target, or the target has
            nodes that the source does not have. Nothing was written.
        MigrationError: A node does not fit the target, or the target does not have exactly the
            nodes of the source at the end. What has arrived stays.
        FilterError: A filter cannot be expressed.
        RowError: A row of the source holds no readable node.
        PartialWriteError: A batch failed after others were written; call again to go on.
        ServerError: One Milvus refused or could not be reached; call again to go on.
        Exception: What `transform` or `on_progress` raised.
    """
    return run_on_own_loop(
        acopy_nodes(
            source,
            target,
            filters=filters,
            batch_size=batch_size,
            transform=transform,
            resume=resume,
            keep_extra=keep_extra,
            on_progress=on_progress,
        )
    )


async def acopy_nodes(
    source: MilvusVectorStore,
    target: MilvusVectorStore,
    *,
    filters: MetadataFilters | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    transform: Transform | None = None,
    resume: bool = True,
    keep_extra: bool = False,
    on_progress: ProgressCallback | None = None,
) -> CopyReport:
    """Copy nodes without blocking the event loop; see `copy_nodes`."""
    check_store("target", target)
    check_count("batch_size", batch_size, ConfigurationError)
    check_flag("resume", resume)
    check_flag("keep_extra", keep_extra)
    check_callback(on_progress)
    if transform is not None and not callable(transform):
        raise ConfigurationError(
            f"transform is {described(transform)}; it must be a function that takes a node and "
            "returns a node or None"
        )
    began = time.perf_counter()
    from_ready = await open_source(source)
    to_ready = await open_target(target, source, from_ready)
    vectors = check_fit(from_ready, to_ready, target, is_transformed=transform is not None)
    copy = _Copy(
        source,
        target,
        filters,
        batch_size=batch_size,
        transform=transform,
        vectors=vectors,
        order=IdOrder(from_ready.layout.integer_ids, to_ready.layout.integer_ids),
    )
    await copy.run(resume=resume, keep_extra=keep_extra, on_progress=on_progress)
    seconds = time.perf_counter() - began
    return CopyReport(copy.copied, copy.already_there, copy.left_out, copy.extra, seconds)


class _Copy:
    """One call of `acopy_nodes`, whose arguments are checked."""

    def __init__(
        self,
        source: MilvusVectorStore,
        target: MilvusVectorStore,
        filters: MetadataFilters | None,
        *,
        batch_size: int,
        transform: Transform | None,
        vectors: Vectors,
        order: IdOrder,
    ) -> None:
        self._source = source
        self._target = target
        self._filters = filters
        self._batch_size = batch_size
        self._transform = transform
        self._vectors = vectors
        self._order = order
        # What the source's file was like when its ids were read.
        self._since: object = None
        self._on_progress: ProgressCallback | None = None
        self._total: int | None = None
        self._meter = Meter("copy", None, None)
        self.copied = 0
        self.already_there = 0
        self.left_out = 0
        self.extra = 0

    async def run(
        self, *, resume: bool, keep_extra: bool, on_progress: ProgressCallback | None
    ) -> None:
        self._on_progress = on_progress
        self._total = await self._source.acount(self._filters, consistency_level=STRONG)
        before = await self._target.acount(consistency_level=STRONG)
        if before and not resume and not self._target.upsert_mode:
            raise ConfigurationError(
                "resume=False writes nodes again that the target has already, which it would keep "
                "twice with upsert_mode=False; build its store with upsert_mode=True, or clear() "
                "the target"
            )
        found: Comparison | None = None
        if before and self._transform is None:
            found = await self._compare()
            if found.extra_count and not keep_extra:
                raise CollectionError(
                    f"the target {named(self._target)} has {count_of(found.extra_count)} that the "
                    f"source does not have, such as {found.extra[:SHOWN_IDS]}; pass keep_extra to "
                    "keep them, or clear() the target, or name another collection. Nothing was "
                    "written"
                )
        if found is not None and resume:
            self.already_there = found.common
        self._meter = Meter("copy", self._total, on_progress, already=self.already_there)
        self._meter.add(0)
        if self._transform is not None:
            # Written again, unless that would double them: they may have become others.
            skip = bool(before) and resume and not self._target.upsert_mode
            await self._write(self._batches(None, IdDigest()), skip_present=skip)
            await self._check_count(keep_extra)
            await self._warn_of_shared_ids(self.copied + self.already_there + self.left_out)
            return
        if found is None or not resume:
            found = await self._write_and_compare(None)
        for _ in range(_ROUNDS):
            if not found.missing_count:
                break
            found = await self._write_and_compare(found)
        self.extra = found.extra_count
        self._check(found, keep_extra)
        await self._warn_of_shared_ids(found.common)

    async def _warn_of_shared_ids(self, ids: int) -> None:
        await warn_of_shared_ids(self._source, self._filters, self._total, ids)

    async def _write_and_compare(self, found: Comparison | None) -> Comparison:
        """Write what is missing, or everything where nothing is known; returns what is then found.

        That is known without reading all ids again where every write was acknowledged, the target
        has as many nodes as it should have, and the source is as it was.
        """
        if found is None:
            self._since = changes_of_file(self._source)
        before, digest = self.copied, IdDigest()
        skip = found is not None and not self._order.is_order_of_source
        await self._write(self._batches(found, digest), skip_present=skip)
        copied = self.copied - before
        if found is None:
            now = Comparison(source_digest=digest.value, common=copied)
        elif copied == found.missing_count:
            now = replace(found, common=found.common + copied, missing_count=0, missing=[])
        else:
            return await self._compare()
        count = await self._target.acount(consistency_level=STRONG)
        if count == now.common + now.extra_count and await self._is_unchanged(now.source_digest):
            return now
        return await self._compare()

    async def _is_unchanged(self, digest: bytes) -> bool:
        """Whether the source has still the ids that it had when they were read."""
        if self._since is not None and self._since == changes_of_file(self._source):
            return True
        again = IdDigest()
        async with aclosing(self._order.source_ids(self._source, self._filters)) as ids:
            async for node_id in ids:
                again.add(node_id)
        return again.value == digest

    async def _compare(self) -> Comparison:
        self._since = changes_of_file(self._source)
        meter = Meter("compare", self._total, self._on_progress)
        return await compare_ids(self._source, self._target, self._filters, self._order, meter)

    async def _batches(
        self, found: Comparison | None, digest: IdDigest
    ) -> AsyncGenerator[list[BaseNode], None]:
        """The nodes of the source; those that were found to be missing, where that is known.

        Args:
            found: What is known.
            digest: What is told the ids that are read.
        """
        in_order = found is not None and self._order.is_order_of_source
        after = found.complete_until if found is not None and in_order else None
        last = found.last_missing if found is not None and in_order else None
        async with (
            aclosing(
                self._source.aiter_nodes(
                    self._filters,
                    batch_size=max(self._batch_size, _PAGE_SIZE),
                    include_embeddings=True,
                    after=after,
                    consistency_level=STRONG,
                )
            ) as nodes,
            aclosing(self._order.target_ids(self._target, after=after)) as ids,
        ):
            present = PresentIds(ids, self._order) if in_order else None
            batch: list[BaseNode] = []
            characters = 0
            async for node in nodes:
                node_id = node.node_id
                digest.add(node_id)
                if last is not None and self._order.key(node_id) > self._order.key(last):
                    break
                if present is not None and await present.has(node_id):
                    continue
                batch.append(node)
                characters += len(node.get_content(metadata_mode=MetadataMode.NONE))
                if len(batch) >= self._batch_size or characters >= _BATCH_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
            if batch:
                yield batch

    async def _write(
        self, batches: AsyncGenerator[list[BaseNode], None], *, skip_present: bool = False
    ) -> None:
        """Write batches, while the next ones are read and changed.

        Args:
            batches: The nodes.
            skip_present: Whether some of them may be in the target, and are left as they are.
        """
        add = partial(self._add, skip_present=skip_present)
        writing = map_in_order(self._changed_batches(batches), add, _BATCHES_BEING_WRITTEN)
        async with aclosing(writing):
            async for _ in writing:
                pass

    async def _changed_batches(
        self, batches: AsyncGenerator[list[BaseNode], None]
    ) -> AsyncGenerator[list[BaseNode], None]:
        async with aclosing(batches):
            async for batch in batches:
                nodes = await self._changed(batch)
                if left_out := len(batch) - len(nodes):
                    self.left_out += left_out
                    self._meter.add(left_out)
                yield nodes

    async def _changed(self, batch: list[BaseNode]) -> list[BaseNode]:
        """What becomes of nodes on their way."""
        ours, theirs = self._vectors.sparse_from, self._vectors.sparse_to
        if ours is not None and ours != theirs:
            for node in batch:
                vector = node.metadata.pop(ours, None)
                if vector is not None and theirs is not None:
                    node.metadata[theirs] = vector
        if (transform := self._transform) is None:
            return batch
        changed: list[Any]
        if is_asynchronous(transform):
            changed = await gather_or_cancel(cast(Any, transform(node)) for node in batch)
        else:
            changed = await acall(lambda: [transform(node) for node in batch])
        for one in changed:
            if not isinstance(one, (BaseNode, NoneType)):
                raise ConfigurationError(
                    f"transform returned {described(one)}; it must return a node, or None to "
                    "leave one out"
                )
        return [one for one in changed if one is not None]

    async def _add(self, nodes: Sequence[BaseNode], *, skip_present: bool) -> None:
        try:
            if skip_present and nodes:
                nodes = await self._missing(nodes)
            await self._target.async_add(nodes)
        except (NodeError, FilterError) as error:  # an id may not even be one to look for
            raise MigrationError(
                f"the copy stopped after {count_of(self.copied)}: one does not fit the target "
                f"{named(self._target)}. Change it by a transform, or have that leave it out, or "
                f"change the target, and call again to go on. {error}"
            ) from error
        self.copied += len(nodes)
        self._meter.add(len(nodes))

    async def _missing(self, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        """Those of some nodes that the target does not have yet."""
        found = await self._target.aget_nodes(
            [node.node_id for node in nodes], include_embeddings=False, consistency_level=STRONG
        )
        present = {node.node_id for node in found}
        if self._transform is not None:  # otherwise they are counted already
            self.already_there += len(present)
            self._meter.add(len(present))
        return [node for node in nodes if node.node_id not in present]

    def _check(self, found: Comparison, keep_extra: bool) -> None:
        """Check that the target has what it should have.

        Raises:
            MigrationError: It has not.
        """
        if found.missing_count:
            raise MigrationError(
                f"{count_of(found.missing_count)} of the source did not arrive in the target "
                f"{named(self._target)}, such as {found.missing[:SHOWN_IDS]}: they were added "
                "meanwhile, or deleted from the target. Stop writing to both, and call again to go "
                "on",
                found.missing,
                found.extra,
            )
        if found.extra_count and not keep_extra:
            raise MigrationError(
                f"everything has arrived, and the target {named(self._target)} has "
                f"{count_of(found.extra_count)} that the source does not have any more, such as "
                f"{found.extra[:SHOWN_IDS]}: they were deleted from the source, or added to the "
                "target meanwhile. Delete them with delete_nodes(error.extra), or pass keep_extra",
                (),
                found.extra,
            )

    async def _check_count(self, keep_extra: bool) -> None:
        """Check how many nodes the target has, where ids may have changed on the way.

        Raises:
            MigrationError: They are not as many as they should be.
        """
        wanted = self.copied + self.already_there
        count = await self._target.acount(consistency_level=STRONG)
        self.extra = max(0, count - wanted)
        if count < wanted:
            raise MigrationError(
                f"{count_of(wanted)} were written, and the target {named(self._target)} has "
                f"{count:,}: transform has given the same id to several nodes, or nodes were "
                "deleted from the target meanwhile"
            )
        if self.extra and not keep_extra:
            raise MigrationError(
                f"everything has arrived, and the target {named(self._target)} has "
                f"{count_of(self.extra)} beside the {wanted:,} of this copy; pass "
                "keep_extra if they are to stay, or clear() the target and copy again"
            )
