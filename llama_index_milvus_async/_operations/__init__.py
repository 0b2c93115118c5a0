"""Every operation of the store, written once, as a coroutine over a `Context`.

Nothing here knows whether it runs on an event loop or in a blocking call.
"""

from .._translation.row_update import MetadataChange
from .context import Context
from .maintenance import (
    IdIteration,
    Iteration,
    NodeIteration,
    RowIteration,
    count,
    list_documents,
    next_page,
)
from .queries import query, query_many
from .reads import get_nodes
from .setup import (
    FirstNodes,
    Missing,
    Overwrite,
    Ready,
    collection_gone,
    index_params_of_new,
    schema_of_new,
    set_up,
)
from .updates import update_metadata
from .writes import add, clear, delete, delete_nodes

__all__ = [
    "Context",
    "FirstNodes",
    "IdIteration",
    "Iteration",
    "MetadataChange",
    "Missing",
    "NodeIteration",
    "Overwrite",
    "Ready",
    "RowIteration",
    "add",
    "clear",
    "collection_gone",
    "count",
    "delete",
    "delete_nodes",
    "get_nodes",
    "index_params_of_new",
    "list_documents",
    "next_page",
    "query",
    "query_many",
    "schema_of_new",
    "set_up",
    "update_metadata",
]
