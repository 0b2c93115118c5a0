"""Who runs LlamaIndex's transformations where, so that none holds the event loop up."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, TransformComponent

from .._concurrency.drivers import run_in
from .._retrieval.values import are_several, described
from ..embeddings import CoalescingEmbedding
from ..errors import ConfigurationError


def check_transformations(transformations: Any) -> list[TransformComponent]:
    """Check transformations.

    Raises:
        ConfigurationError: They are not a list of transformations.
    """
    if not are_several(transformations):
        raise ConfigurationError(
            f"transformations is {described(transformations)}; it must be a list of LlamaIndex's "
            "transformations, such as [SentenceSplitter(), embed_model]"
        )
    for position, each in enumerate(transformations):
        if not isinstance(each, TransformComponent):
            raise ConfigurationError(
                f"transformations[{position}] is {described(each)}; it must be a transformation "
                "of LlamaIndex (a TransformComponent)"
            )
    return list(transformations)


class Transformations:
    """What is done to documents before they are written, in two parts.

    The first part takes whole documents, because splitters and extractors look at them as wholes.
    The second one begins with the first embedding model, and takes any batch of nodes.

    Args:
        transformations: All of them, in their order. Embedding models share calls among the batches
            that are under way, as `CoalescingEmbedding` does.
    """

    def __init__(self, transformations: Sequence[TransformComponent]) -> None:
        steps = [
            CoalescingEmbedding(step)
            if isinstance(step, BaseEmbedding) and not isinstance(step, CoalescingEmbedding)
            else step
            for step in transformations
        ]
        models = [n for n, step in enumerate(steps) if isinstance(step, BaseEmbedding)]
        first = models[0] if models else len(steps)
        self._of_documents = steps[:first]
        self._of_nodes = steps[first:]
        # One, because tokenizers are not made for two threads at once.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformations")

    async def split(self, documents: Sequence[BaseNode]) -> Sequence[BaseNode]:
        """Run what takes whole documents."""
        return await self._run(self._of_documents, documents)

    async def embed(self, nodes: Sequence[BaseNode]) -> Sequence[BaseNode]:
        """Run the rest, from the first embedding model on."""
        return await self._run(self._of_nodes, nodes)

    def close(self) -> None:
        """End the thread; nothing runs in it any more."""
        self._thread.shutdown(wait=False)

    async def _run(
        self, steps: Sequence[TransformComponent], nodes: Sequence[BaseNode]
    ) -> Sequence[BaseNode]:
        for step in steps:
            if not nodes:
                return []
            if _is_awaited(step):
                nodes = await step.acall(nodes)
            else:
                nodes = await run_in(self._thread, step, nodes)
        return nodes


def _is_awaited(step: TransformComponent) -> bool:
    """Whether a transformation has a coroutine of its own.

    Those of node parsers compute on the event loop.
    """
    return type(step).acall is not TransformComponent.acall and not isinstance(step, NodeParser)
