"""What `list_documents` returns."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoredDocument"]


@dataclass(frozen=True)
class StoredDocument:
    """A document of which a store has nodes.

    Attributes:
        doc_id: Its id, which `delete` takes; `None` stands for all nodes that have no document.
            That of a document which was stored whole, as a node, is the id of that node, which
            `delete_nodes` takes.
        node_count: The number of its nodes.
    """

    doc_id: str | None
    node_count: int
