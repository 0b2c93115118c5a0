"""Answer queries that ask for nodes by their metadata alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult

from .._retrieval.options import SearchOptions
from .._retrieval.plan import SearchPlanner
from .._retrieval.results import empty_result
from ..errors import ServerError
from .context import Context
from .missing_keys import warn_of_missing_filters
from .pages import read_some
from .setup import Ready

# How Milvus, and Milvus Lite, begin to say where an expression goes wrong.
_CANNOT_PARSE = re.compile(r"cannot parse expression|^.+ at column \d+\n")


async def list_matching(
    context: Context, queries: Sequence[VectorStoreQuery], options: SearchOptions
) -> list[VectorStoreQueryResult]:
    """The first nodes that match each query, by the order of their ids, without similarities."""

    async def read(ready: Ready) -> list[VectorStoreQueryResult]:
        planner = SearchPlanner(
            options, ready.layout, ready.indexes, context.options, ready.searches
        )
        return [await _read(context, ready, planner, query, options) for query in queries]

    return await context.with_ready(read, missing=[empty_result() for _ in queries])


async def _read(
    context: Context,
    ready: Ready,
    planner: SearchPlanner,
    query: VectorStoreQuery,
    options: SearchOptions,
) -> VectorStoreQueryResult:
    expression, reader = planner.prepare_listing(query)
    wanted = options.offset + int(query.similarity_top_k)
    try:
        rows = await read_some(context, ready.layout, expression, reader.fields, options, wanted)
    except ServerError as error:
        raise explained(error, options) from error
    if not rows:
        await warn_of_missing_filters(context, ready, query.filters, options.milvus_scalar_filters)
    nodes = await context.backend.convert(rows[options.offset :], reader.node)
    return VectorStoreQueryResult(nodes=nodes, ids=[node.node_id for node in nodes])


def explained(error: ServerError, options: SearchOptions) -> ServerError:
    """The error of a search, in our words first where they say what to do."""
    refused = error.is_answer and _CANNOT_PARSE.search(error.message)
    if options.string_expr is None or not refused:
        return error
    return ServerError(
        error.operation,
        f"string_expr is {options.string_expr!r}, which is not in Milvus' language "
        "(https://milvus.io/docs/boolean.md): equality is ==; and, or, not are in small letters; "
        f"texts are in quotes ({error.message})",
        error.code,
    )
