"""The events of the store's operations, for handlers of LlamaIndex's instrumentation.

They hold names, modes and counts. Texts, vectors, filters and ids are not in them, and neither are
messages of errors, which may quote them.
"""

from __future__ import annotations

from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation.events import BaseEvent

__all__ = ["MilvusOperationEndEvent", "MilvusOperationStartEvent"]


class _OperationEvent(BaseEvent):
    # What both events say. None of them is the other, so that `isinstance` tells them apart.
    operation: str
    collection_name: str
    mode: str | None = None
    top_k: int | None = None
    count: int | None = None


class MilvusOperationStartEvent(_OperationEvent):
    """An operation of the store begins.

    Attributes:
        operation: The public method, such as `"aquery"`.
        collection_name: The collection.
        mode: The mode of a query.
        top_k: Its `similarity_top_k`.
        count: Nodes to write, ids to read or delete, or queries.
    """

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes the class."""
        return "MilvusOperationStartEvent"


class MilvusOperationEndEvent(_OperationEvent):
    """An operation of the store has ended.

    Attributes:
        operation: The public method, such as `"aquery"`.
        collection_name: The collection.
        mode: The mode of a query.
        top_k: Its `similarity_top_k`.
        count: Nodes to write, ids to read or delete, or queries.
        seconds: How long it took.
        results: Nodes found, read, counted or written, or documents listed.
        shared: Kind of request to the number of callers that the operation's largest RPC of this
            kind served, itself included.
        error: The class of the exception that ended it.
    """

    seconds: float
    results: int | None = None
    shared: dict[str, int] = Field(default_factory=dict)
    error: str | None = None

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes the class."""
        return "MilvusOperationEndEvent"
