"""The dimensions that the first nodes of a collection have, where no argument names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_index.core.schema import BaseNode
from pymilvus import DataType

from ..errors import NodeError
from .settings import MAX_DIMENSION, CollectionSettings, VectorField


class DimensionReader:
    """Reads the dimensions of a new collection from the nodes that are to be its first.

    Args:
        settings: What the collection has to be; fields with a dimension are not looked at.
    """

    def __init__(self, settings: CollectionSettings) -> None:
        self._fields = [
            (field, position) for position, field in enumerate(settings.dense) if field.dim is None
        ]
        self._found: dict[str, int] = {}
        self._problems: list[tuple[str, str]] = []

    def read(self, node: BaseNode) -> None:
        """Look at the embeddings of a node."""
        for field, position in self._fields:
            # As in `RowPacker`: the first field has `node.embedding`, others have metadata.
            embedding = node.embedding if position == 0 else node.metadata.get(field.name)
            name = f" {field.name!r}" if position else ""

            def report(problem: str, node: BaseNode = node) -> None:
                self._problems.append((node.node_id, problem))

            if embedding is None:
                report(f"it has no embedding{name}{', a metadata key' if position else ''}")
            else:
                self._compare(field, embedding, f"its embedding{name}", report)

    def _compare(
        self, field: VectorField, embedding: Any, what: str, report: Callable[[str], None]
    ) -> None:
        dim = _dimension(embedding, field.type)
        if dim is None:
            report(f"{what} is not a list of numbers")
        elif not 1 <= dim <= MAX_DIMENSION or (field.type is DataType.BINARY_VECTOR and dim % 8):
            allowed = "a multiple of 8" if dim % 8 else f"1..{MAX_DIMENSION}"
            report(f"{what} has {dim} dimensions, Milvus allows {allowed}")
        elif (first := self._found.setdefault(field.name, dim)) != dim:
            report(f"{what} has {dim} dimensions, that of the first node {first}")

    def dimensions(self) -> Mapping[str, int]:
        """The dimension of each field that had none.

        Raises:
            NodeError: The nodes have no embeddings, or their dimensions differ; names each node.
        """
        if self._problems:
            raise NodeError(self._problems)
        return self._found


def _dimension(embedding: Any, kind: DataType) -> int | None:
    if kind is DataType.BINARY_VECTOR and isinstance(embedding, bytes):
        return len(embedding) * 8
    if isinstance(embedding, Sequence) and not isinstance(embedding, (str, bytes)):
        return len(embedding)
    shape: tuple[int, ...] = getattr(embedding, "shape", ())
    return int(shape[0]) if len(shape) == 1 else None
