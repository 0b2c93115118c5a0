"""Compare two collections, node by node."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import MetadataFilters

from .._concurrency.drivers import run_on_own_loop
from .._operations import Ready
from .._retrieval.values import check_count, check_flag
from ..errors import ConfigurationError
from ..store import MilvusVectorStore
from ._ids import MAX_KEPT_IDS, Comparison, IdOrder, merged
from ._progress import Meter, ProgressCallback, check_callback, count_of
from ._sides import STRONG, open_source

#: Nodes that are read at a time.
DEFAULT_BATCH_SIZE = 1_000
_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """A node that two collections have, and that is not the same in both.

    Attributes:
        node_id: Its id.
        fields: What differs: `"text"`, `"metadata['year']"`, `"embedding"`, ...
    """

    node_id: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """What a comparison of two collections has found.

    Attributes:
        source_count: The nodes of the source.
        target_count: The nodes of the target.
        missing_count: The nodes of the source that the target does not have.
        missing: Their ids, the first thousand of them.
        extra_count: The nodes of the target that the source does not have.
        extra: Their ids, the first thousand of them.
        different_count: The nodes that are not the same in both.
        different: Which they are, the first thousand of them.
        seconds: The time that it took.
    """

    source_count: int
    target_count: int
    missing_count: int
    missing: list[str]
    extra_count: int
    extra: list[str]
    different_count: int
    different: list[Difference]
    seconds: float

    @property
    def is_equal(self) -> bool:
        """Whether both have the same nodes."""
        return not (self.missing_count or self.extra_count or self.different_count)

    def __str__(self) -> str:
        """What was found, and what to do, for people."""
        if self.is_equal:
            return f"equal: {count_of(self.source_count)} in both"
        lines = [
            f"not equal: {count_of(self.source_count)} in the source, {self.target_count:,} in the "
            "target"
        ]
        if self.missing_count:
            lines.append(
                f"  {self.missing_count:,} missing in the target: {_shown(self.missing)}\n"
                "    copy again, which writes what is missing"
            )
        if self.extra_count:
            lines.append(
                f"  {self.extra_count:,} in the target only: {_shown(self.extra)}\n"
                "    delete them there, if they are not meant to be there"
            )
        if self.different_count:
            some = [f"{one.node_id} ({', '.join(one.fields)})" for one in self.different]
            lines.append(
                f"  {self.different_count:,} different: {_shown(some)}\n"
                "    copy again without resuming, which replaces them"
            )
        return "\n".join(lines)


def _shown(items: list[str]) -> str:
    some = ", ".join(items[:_SHOWN])
    return some + (", ..." if len(items) > _SHOWN else "")


def check_nodes(
    source: MilvusVectorStore,
    target: MilvusVectorStore,
    *,
    filters: MetadataFilters | None = None,
    vectors: bool = True,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_progress: ProgressCallback | None = None,
) -> CheckReport:
    """Compare two collections, node by node: what is missing, extra, different. Blocks.

    Nodes of the same id are compared in everything that LlamaIndex knows of them: class, text,
    metadata, relationships, and vectors as both stores have them. Neither collection is changed.
    No more than some pages of each are in memory.

    Args:
        source: A store of the one collection.
        target: A store of the other one.
        filters: Metadata filters, for both; all nodes by default.
        vectors: Whether to compare the vectors; `False` where the embedding models differ.
        batch_size: Nodes that are read at a time.
        on_progress: What is called with a `Progress` now and then.

    Returns:
        What was found; `report.is_equal`, and `print(report)`.

    Raises:
        ConfigurationError: An argument is not allowed.
        CollectionError: There is no such collection.
        FilterError: A filter cannot be expressed.
        RowError: A row holds no readable node.
        ServerError: One Milvus refused or could not be reached.
    """
    return run_on_own_loop(
        acheck_nodes(
            source,
            target,
            filters=filters,
            vectors=vectors,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    )


async def acheck_nodes(
    source: MilvusVectorStore,
    target: MilvusVectorStore,
    *,
    filters: MetadataFilters | None = None,
    vectors: bool = True,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_progress: ProgressCallback | None = None,
) -> CheckReport:
    """Compare two collections without blocking the event loop; see `check_nodes`."""
    check_count("batch_size", batch_size, ConfigurationError)
    check_flag("vectors", vectors)
    check_callback(on_progress)
    began = time.perf_counter()
    ours, theirs = await open_source(source), await open_source(target, "target")
    total = await source.acount(filters, consistency_level=STRONG)
    meter = Meter("check", total, on_progress)
    order = IdOrder(ours.layout.integer_ids, theirs.layout.integer_ids)
    differences = Differences(ours, theirs, vectors=vectors, sparse=order.is_of_one_kind)
    check = _Check(differences, meter)
    pairs = pairs_of_nodes(source, target, filters, order, vectors=vectors, batch_size=batch_size)
    async with aclosing(pairs):
        async for one, other in pairs:
            check.note(one, other)
    return check.report(time.perf_counter() - began)


async def pairs_of_nodes(
    source: MilvusVectorStore,
    target: MilvusVectorStore,
    filters: MetadataFilters | None,
    order: IdOrder,
    *,
    vectors: bool,
    batch_size: int,
) -> AsyncGenerator[tuple[BaseNode | None, BaseNode | str | None], None]:
    """The nodes of both, those of the same id together.

    One that only the target has may come as its id.
    """

    def nodes_of(store: MilvusVectorStore) -> AsyncGenerator[BaseNode, None]:
        return store.aiter_nodes(
            filters,
            batch_size=batch_size,
            include_embeddings=vectors,
            consistency_level=STRONG,
        )

    async with aclosing(nodes_of(source)) as ours:
        if order.is_of_one_kind:
            async with aclosing(nodes_of(target)) as theirs:
                async for pair in merged(ours, theirs, lambda node: order.key(node.node_id)):
                    yield pair
            return
        # They come in different orders.
        batch: list[BaseNode] = []
        async for node in ours:
            batch.append(node)
            if len(batch) == batch_size:
                async for pair in _with_those_of(target, batch, filters, vectors=vectors):
                    yield pair
                batch = []
        async for pair in _with_those_of(target, batch, filters, vectors=vectors):
            yield pair
    async with (
        aclosing(order.source_ids(source, filters)) as our_ids,
        aclosing(order.target_ids(target, filters)) as their_ids,
    ):
        async for one, other in merged(our_ids, their_ids, order.key):
            if one is None:
                yield None, other


async def _with_those_of(
    target: MilvusVectorStore,
    nodes: list[BaseNode],
    filters: MetadataFilters | None,
    *,
    vectors: bool,
) -> AsyncGenerator[tuple[BaseNode, BaseNode | None], None]:
    """Nodes, each with that of its id in the target."""
    ids = [node.node_id for node in nodes]
    found = await target.aget_nodes(
        ids, filters, include_embeddings=vectors, consistency_level=STRONG
    )
    by_id = {node.node_id: node for node in found}
    for node in nodes:
        yield node, by_id.get(node.node_id)


class Differences:
    """Finds in what nodes of two collections differ.

    Args:
        ours: The one collection.
        theirs: The other one.
        vectors: Whether their vectors are compared.
        sparse: Whether their sparse vectors are, too.
    """

    # Compared by themselves, or part of what is.
    _OWN = frozenset({"embedding", "metadata", "text", "text_resource"})

    def __init__(self, ours: Ready, theirs: Ready, *, vectors: bool, sparse: bool) -> None:
        old, new = ours.layout, theirs.layout
        self._dense = vectors and bool(old.embedding_field and new.embedding_field)
        self._keys = [(field, field) for field in old.dense_fields[1:]]
        self._only_theirs = [f for f in new.dense_fields[1:] if f not in old.dense_fields[1:]]
        if old.encodes_sparse:
            self._keys.append((str(old.sparse_field), str(new.sparse_field)))
        elif new.encodes_sparse:
            self._only_theirs.append(str(new.sparse_field))
        shared = {*new.dense_fields[1:]}
        if vectors and sparse and new.encodes_sparse:
            shared.add(str(new.sparse_field))
        self._compared = shared if vectors else set()

    def between(self, one: BaseNode, other: BaseNode) -> tuple[str, ...]:
        """The fields in which two nodes differ."""
        found = [] if type(one) is type(other) else ["class"]
        for ours, theirs in self._keys:
            vectors = one.metadata.pop(ours, None), other.metadata.pop(theirs, None)
            if theirs in self._compared and vectors[0] != vectors[1]:
                found.append(ours)
        for field in self._only_theirs:
            other.metadata.pop(field, None)
        if self._dense and one.embedding != other.embedding:
            found.append("embedding")
        texts = [node.get_content(metadata_mode=MetadataMode.NONE) for node in (one, other)]
        if texts[0] != texts[1]:
            found.append("text")
        keys = [*one.metadata, *(key for key in other.metadata if key not in one.metadata)]
        nothing = object()
        found += [
            f"metadata[{key!r}]"
            for key in keys
            if one.metadata.get(key, nothing) != other.metadata.get(key, nothing)
        ]
        if type(one) is type(other):
            found += [
                name
                for name in type(one).model_fields
                if name not in self._OWN and getattr(one, name) != getattr(other, name)
            ]
        return tuple(found)


class _Check:
    """What a comparison has found so far.

    Args:
        differences: Finds in what two nodes differ.
        meter: Counts the nodes of the source.
    """

    def __init__(self, differences: Differences, meter: Meter) -> None:
        self._differences = differences
        self._meter = meter
        self._ids = Comparison()
        self._different: list[Difference] = []
        self._different_count = 0

    def note(self, one: BaseNode | None, other: BaseNode | str | None) -> None:
        """Note what both collections have of one id."""
        if one is None:
            self._ids.note_extra(other.node_id if isinstance(other, BaseNode) else str(other))
            return
        if isinstance(other, BaseNode):
            self._ids.note_common(one.node_id)
            if fields := self._differences.between(one, other):
                self._different_count += 1
                if len(self._different) < MAX_KEPT_IDS:
                    self._different.append(Difference(one.node_id, fields))
        else:
            self._ids.note_missing(one.node_id)
        self._meter.count()

    def report(self, seconds: float) -> CheckReport:
        """What was found."""
        self._meter.add(0)
        ids = self._ids
        return CheckReport(
            ids.common + ids.missing_count,
            ids.common + ids.extra_count,
            ids.missing_count,
            ids.missing,
            ids.extra_count,
            ids.extra,
            self._different_count,
            self._different,
            seconds,
        )
