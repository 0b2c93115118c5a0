"""The data requests: each sends one RPC, for items that may be of several callers.

The result has one entry for each item.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from .._rpc import DeleteDocuments, GetByIds, HybridSearch, Insert, Query, Row, Search
from .._wire import requests, responses
from ..errors import ServerError
from .limits import MAX_ROWS
from .transport import Left, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Milvus' code for a collection that is not in memory: it was released, or its server restarted.
_NOT_LOADED = 101
# How often a request has it loaded: a server may restart again meanwhile.
_MOST_LOADS = 3


async def send_insert(
    transport: Transport,
    request: Insert,
    rows: Sequence[Row],
    left: Left,
    *,
    rewriting: bool = False,
) -> Sequence[None]:
    """Insert or upsert rows; `rewriting` as in `Transport.rpc`."""
    items = len(rows)
    if request.upsert:
        # Of equal ids in one upsert a server keeps the first, or refuses all of them.
        rows = list({row[request.primary_key]: row for row in rows}.values())
    database = transport.session.database
    message = requests.insert(request, rows, database)
    operation, rpc = ("upsert", "Upsert") if request.upsert else ("insert", "Insert")
    response = await transport.rpc(
        operation, rpc, request.collection_name, message, left, rewriting=rewriting
    )
    transport.session.memory(request.collection_name).note_write(response.timestamp)
    return [None] * items


async def send_search(
    transport: Transport, request: Search, data: Sequence[Any], left: Left
) -> responses.SearchResponse:
    """Search a vector column for each of the data."""
    name = request.collection_name
    bound = transport.session.read_bound(name, request.consistency_level)
    message = requests.search(request, data, *bound, transport.session.database)
    response = await transport.rpc("search", "Search", name, message, left)
    return responses.hits(response)


async def send_hybrid_search(
    transport: Transport, request: HybridSearch, data: Sequence[tuple[Any, ...]], left: Left
) -> responses.SearchResponse:
    """Search several vector columns for each of the data."""
    name = request.collection_name
    bound = transport.session.read_bound(name, request.consistency_level)
    message = requests.hybrid_search(request, data, *bound, transport.session.database)
    response = await transport.rpc("hybrid_search", "HybridSearch", name, message, left)
    return responses.hits(response)


async def send_query(transport: Transport, request: Query, left: Left) -> responses.ResponseRows:
    """Read rows."""
    name = request.collection_name
    bound = transport.session.read_bound(name, request.consistency_level)
    message = requests.query(request, *bound, transport.session.database)
    return responses.rows(await transport.rpc("query", "Query", name, message, left))


async def send_get(
    transport: Transport, request: GetByIds, ids: Sequence[str], left: Left
) -> list[list[Row]]:
    """Read the rows of each id: one, or none, or several that were written without upserting."""
    rows_of: dict[str, list[Row]] = {one: [] for one in ids}
    query = Query(
        request.collection_name,
        request.select(list(rows_of)),
        request.output_fields,
        request.partition_names,
        request.consistency_level,
        # Without a limit, Milvus 2.3.5 loses rows where others have the same id.
        limit=MAX_ROWS,
    )
    for row in await send_query(transport, query, left):
        # Milvus has numbers that are asked for as "7" and as "007".
        rows_of.setdefault(str(row[request.primary_key]), []).append(row)
    return [rows_of[one] for one in ids]


async def send_delete(
    transport: Transport,
    collection_name: str,
    expression: str,
    partition_name: str | None,
    left: Left,
) -> None:
    """Delete the rows that an expression matches."""
    database = transport.session.database
    message = requests.delete(collection_name, expression, partition_name, database)
    try:
        await transport.rpc("delete", "Delete", collection_name, message, left)
    finally:
        # Also after a failure: the server may have deleted all the same.
        transport.session.memory(collection_name).note_delete()


async def send_delete_documents(
    transport: Transport, request: DeleteDocuments, doc_ids: Sequence[str], left: Left
) -> Sequence[None]:
    """Delete the rows of documents."""
    expression = request.select(list(dict.fromkeys(doc_ids)))
    name, partition = request.collection_name, request.partition_name
    await send_delete(transport, name, expression, partition, left)
    return [None] * len(doc_ids)


def load_options(transport: Transport, collection_name: str) -> dict[str, Any]:
    """The arguments with which a collection is loaded."""
    replicas = transport.session.memory(collection_name).replica_number
    return {} if replicas is None else {"replica_number": replicas}


async def loaded(
    transport: Transport, collection_name: str, send: Callable[[], Awaitable[T]], left: Left
) -> T:
    """Make a request that needs the collection in memory; load it where it is no longer."""
    for _ in range(_MOST_LOADS):
        try:
            return await send()
        except ServerError as error:
            if error.code != _NOT_LOADED:
                raise
        logger.info("loading collection %r again", collection_name)
        options = load_options(transport, collection_name)
        await transport.call("load_collection", collection_name, left=left, **options)
    return await send()
