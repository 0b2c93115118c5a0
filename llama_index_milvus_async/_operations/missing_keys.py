"""Tell of keys that no row has: a misspelt one finds nothing, and says nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from llama_index.core.vector_stores.types import MetadataFilters

from .._rpc import Query
from .._translation.filters import everything_expression, existence_expression, keys_of
from .._translation.layout import Layout
from ..errors import FilterError, ServerError
from .context import Context
from .setup import Ready

logger = logging.getLogger(__name__)

#: Seconds for each of the two requests. A collection that takes longer is left alone.
_SECONDS = 2.0
#: Keys that a store asks about; those of filters may come from outside.
_MOST_KEYS = 100


async def warn_of_missing_keys(
    context: Context, ready: Ready, keys: Iterable[str], where: str
) -> None:
    """Warn of keys that are no columns, and under which no row of the collection has a value.

    Each key is looked up once in the life of the collection's layout, by one or two requests. What
    they fail of is not told: the call that has led here has its answer.

    Args:
        context: Where to look.
        ready: The collection.
        keys: The keys.
        where: What names them, for the message.
    """
    looked_up = ready.keys_looked_up
    for key in keys:
        if key in looked_up or key in ready.layout.columns or len(looked_up) >= _MOST_KEYS:
            continue
        looked_up.add(key)  # at once: concurrent calls ask for the same ones
        try:
            missing = await _no_row_has(context, ready.layout, key)
        except (FilterError, ServerError) as error:
            logger.debug("whether a row has the key %r is not known: %s", key, error)
            continue
        if missing:
            logger.warning(
                "no row of collection %r has a value under the key %r, which %s; is it misspelt?",
                ready.layout.collection_name,
                key,
                where,
            )


async def warn_of_missing_filters(
    context: Context, ready: Ready, filters: MetadataFilters | None, scalar_filters: Any = None
) -> None:
    """Warn of keys of filters that may be why nothing matches; see `warn_of_missing_keys`."""
    keys = keys_of(filters, scalar_filters)
    await warn_of_missing_keys(context, ready, keys, "a filter compares")


async def _no_row_has(context: Context, layout: Layout, key: str) -> bool:
    """Whether the collection has rows, and none of them the key."""
    expression = existence_expression(layout, key)
    if expression is None:
        return False

    async def finds_a_row(expression: str) -> bool:
        # "Strong", and all partitions: a row that is just not seen must not be called missing.
        request = Query(
            layout.collection_name, expression, (layout.primary_key,), None, "Strong", limit=1
        )
        return bool(await context.backend.query(request, _SECONDS))

    return not await finds_a_row(expression) and await finds_a_row(everything_expression(layout))
