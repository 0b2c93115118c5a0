"""What `list_documents` returns."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoredDocument"]


@dataclass(frozen=True)
class StoredDocument:
    """A document of which a store has nodes.

    Attributes:
        doc_id: Its id, which `delete` takes; that of the node, where the document was stored
            whole, as a node. `None` stands for all nodes that have no document.
        node_count: The number of its nodes.
    """

    doc_id: str | None
    node_count: int
