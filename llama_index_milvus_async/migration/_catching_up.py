"""Fill a collection of another embedding model from an old one, and keep up with the old one."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode

from .._concurrency.drivers import gather_or_cancel
from .._embedding.engine import checked
from .._operations import Ready
from .._retrieval.values import one_line
from .._translation.layout import Layout
from ..errors import (
    CollectionError,
    ConfigurationError,
    MigrationError,
    MilvusVectorStoreError,
    NodeError,
)
from ..store import MilvusVectorStore
from ._checking import Differences, pairs_of_nodes
from ._ids import SHOWN_IDS, IdOrder, compare_ids, warn_of_shared_ids
from ._progress import Meter, ProgressCallback, count_of
from ._sides import STRONG, first_nodes, named

#: How often what was written meanwhile is looked for, where there is something each time.
_PASSES = 6
#: Nodes that are embedded again, to see whether it was the same model.
_SAMPLE = 4
#: How similar two embeddings of a text by one model are at least: hosted models are not exact.
_SAME_MODEL = 0.98
#: What LlamaIndex calls a model that was given no name.
_UNNAMED = "unknown"


class Reembedding:
    """The nodes of one collection, embedded anew, on their way to another one.

    Args:
        source: The old collection.
        target: The new one.
        carried: The vectors of other models, which nodes keep.
        old: What is known of the old one.
        new: What is known of the new one.
        embed_model: The new model.
        batch_size: Nodes that are embedded and written at a time.
        on_progress: What is told of the progress.

    Attributes:
        embedded: The nodes that were embedded and written.
        already_there: The nodes that were there at the beginning, and have not changed.
        removed: The nodes that were deleted.
    """

    def __init__(
        self,
        source: MilvusVectorStore,
        target: MilvusVectorStore,
        carried: Sequence[str],
        old: Ready,
        new: Ready,
        embed_model: BaseEmbedding,
        batch_size: int,
        on_progress: ProgressCallback | None,
    ) -> None:
        self._source = source
        self._target = target
        self._order = IdOrder(old.layout.integer_ids, new.layout.integer_ids)
        self._differences = Differences(old, new, vectors=False, sparse=False)
        self._carried = carried
        self._model = embed_model
        self._batch_size = batch_size
        self._on_progress = on_progress
        self._meter = Meter("reembed", None, None)
        self._rows = 0
        self._same = 0
        self._changes = 0
        self.embedded = 0
        self.already_there = 0
        self.removed = 0

    async def check_begun(self, *, remove_extra: bool) -> None:
        """Check that a new collection which is there already is one that an earlier call has begun.

        Raises:
            CollectionError: It has nodes that the old one does not have.
            ConfigurationError: Its vectors are those of another model.
        """
        if not await self._target.acount(consistency_level=STRONG):
            return
        found = await compare_ids(self._source, self._target, None, self._order)
        if found.extra_count and not remove_extra:
            raise CollectionError(
                f"the new collection {named(self._target)} has {found.extra_count:,} nodes that "
                f"the old one does not have, such as {found.extra[:SHOWN_IDS]}. Name another one "
                "if it is not what an earlier call has begun; if it is, they were deleted from the "
                "old one since, and remove_extra=True deletes them. Nothing was written"
            )
        await check_model(self._target, self._model)

    async def fill(self) -> None:
        """Embed and write what is missing or has changed, all of it at first."""
        self._changes = await self._pass("reembed")
        self.already_there = self._same
        await warn_of_shared_ids(self._source, None, self._rows, self._same + self.embedded)

    async def catch_up(self, *, until: int) -> None:
        """Do so again until no more than some nodes were written or deleted meanwhile.

        Where writers are as fast as this is, it ends as well: each time takes as long as going
        through both collections, and so leaves as much to do as the one before.
        """
        for _ in range(_PASSES):
            before, self._changes = self._changes, await self._pass("catch up")
            if self._changes <= until or self._changes >= before:
                break

    async def finish(self) -> None:
        """Do so until both collections have the same, while nobody writes.

        Raises:
            MigrationError: Somebody does.
        """
        for _ in range(3):
            if not await self._pass("catch up"):
                return
        raise MigrationError(
            f"the collection {named(self._source)} was written to although pause_writers should "
            "have kept everybody from it; nothing was switched. Call again to go on"
        )

    async def _pass(self, operation: str) -> int:
        """Go through both collections; returns how many nodes had to be written or deleted."""
        self._rows = await self._source.acount(consistency_level=STRONG)
        self._meter = Meter(operation, self._rows, self._on_progress)
        self._meter.add(0)
        self._same = 0
        before = self.embedded + self.removed
        waiting: list[BaseNode] = []
        async with aclosing(self._batches()) as batches:
            async for nodes in batches:
                # The model works while Milvus writes what it has made before.
                waiting, _ = await gather_or_cancel([self._embed(nodes), self._write(waiting)])
        await self._write(waiting)
        return self.embedded + self.removed - before

    async def _batches(self) -> AsyncGenerator[list[BaseNode], None]:
        """The nodes that the target does not have as they are; deletes those that it has alone."""
        changed: list[BaseNode] = []
        extra: list[str] = []
        pairs = pairs_of_nodes(
            self._source,
            self._target,
            None,
            self._order,
            vectors=False,
            batch_size=self._batch_size,
        )
        async with aclosing(pairs):
            async for one, other in pairs:
                if one is None:
                    extra.append(other.node_id if isinstance(other, BaseNode) else str(other))
                elif not isinstance(other, BaseNode) or self._differences.between(one, other):
                    changed.append(one)
                else:
                    self._same += 1
                    self._meter.count()
                if len(changed) == self._batch_size:
                    yield changed
                    changed = []
                if len(extra) == self._batch_size:
                    await self._remove(extra)
                    extra = []
        await self._remove(extra)
        self._meter.add(0)
        if changed:
            yield changed

    async def _embed(self, nodes: list[BaseNode]) -> list[BaseNode]:
        vectors = await embed_nodes(self._model, nodes)
        for node, vector in zip(nodes, vectors, strict=True):
            node.embedding = vector
        return await self._with_carried(nodes) if self._carried else nodes

    async def _with_carried(self, nodes: list[BaseNode]) -> list[BaseNode]:
        """Nodes with their other vectors in the metadata, which must not be there when embedded."""
        found = await self._source.aget_nodes(
            [node.node_id for node in nodes],
            include_embeddings=False,
            output_fields=list(self._carried),
            consistency_level=STRONG,
        )
        by_id = {node.node_id: node.metadata for node in found}
        nodes = [node for node in nodes if node.node_id in by_id]  # the others were just deleted
        for node in nodes:
            metadata = by_id[node.node_id]
            node.metadata |= {key: metadata[key] for key in self._carried if key in metadata}
        return nodes

    async def _write(self, nodes: list[BaseNode]) -> list[BaseNode]:
        try:
            await self._target.async_add(nodes)
        except NodeError as error:
            raise MigrationError(
                f"re-embedding stopped after {self.embedded:,} nodes: one does not fit the new "
                f"collection {named(self._target)}. Nothing was switched. {error}"
            ) from error
        self.embedded += len(nodes)
        self._meter.add(len(nodes))
        return nodes

    async def _remove(self, ids: Sequence[str]) -> None:
        if ids:
            await self._target.adelete_nodes(list(ids))
            self.removed += len(ids)


def carried_vectors(old: Layout, new: Layout, *, with_sparse: bool) -> list[str]:
    """The columns of vectors that nodes take along, because the new model does not make them.

    Args:
        old: The old collection.
        new: The new one.
        with_sparse: Whether both have sparse vectors by the same function.
    """
    carried = [name for name in old.dense_fields[1:] if name in new.dense_fields[1:]]
    if with_sparse and old.encodes_sparse and new.encodes_sparse:
        carried.append(str(old.sparse_field))
    return carried


async def check_model(store: MilvusVectorStore, embed_model: BaseEmbedding) -> None:
    """Check that the vectors of a collection are those of a model, by embedding some texts again.

    Raises:
        ConfigurationError: They are not.
    """
    nodes = await first_nodes(store, _SAMPLE, include_embeddings=True)
    vectors = await embed_nodes(embed_model, nodes)
    for node, vector in zip(nodes, vectors, strict=True):
        if not _are_alike(node.embedding or [], vector):
            raise ConfigurationError(
                f"the vectors in {named(store)} are not those of embed_model: that of the node "
                f"{node.node_id!r} is another one than the model makes of its text. Name another "
                "collection as into, or drop this one first"
            )


def _are_alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two vectors are nearly the same but for their length."""
    if len(one) != len(other):
        return False
    lengths = math.hypot(*one) * math.hypot(*other)
    product = sum(x * y for x, y in zip(one, other, strict=True))
    return lengths == 0 or product / lengths >= _SAME_MODEL


async def embed_nodes(embed_model: BaseEmbedding, nodes: Sequence[BaseNode]) -> list[list[float]]:
    """Embed the texts of nodes.

    Raises:
        EncoderError: The model returned something else than an embedding for each.
        MigrationError: It raised something.
    """
    if not nodes:
        return []
    texts = [text_of(node) for node in nodes]
    try:
        return checked(await embed_model.aget_text_embedding_batch(texts), texts)
    except MilvusVectorStoreError:
        raise
    except Exception as error:  # services and models have errors of their own
        ids = [repr(node.node_id) for node in nodes]
        shown = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
        raise MigrationError(
            f"re-embedding stopped: the model {_model_name(embed_model)} failed on "
            f"{count_of(len(nodes))}, {shown} ({one_line(error)}). Nothing was switched; call "
            "again to go on"
        ) from error


def _model_name(embed_model: BaseEmbedding) -> str:
    kind, name = type(embed_model).__name__, embed_model.model_name
    return kind if name == _UNNAMED else f"{kind} {name!r}"


def text_of(node: BaseNode) -> str:
    """The text of a node that LlamaIndex embeds."""
    return node.get_content(metadata_mode=MetadataMode.EMBED)
