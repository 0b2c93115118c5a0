"""The parameters of searches, in the form that Milvus takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .._translation.layout import Index, Layout
from .._translation.numbers import is_number
from ..errors import QueryError

logger = logging.getLogger(__name__)

#: Milvus Lite's own `ef` of an HNSW search that names none.
LITE_DEFAULT_EF = 64
#: What has an index of Milvus Lite visit every row, by the beginning of its type's name. Its
#: `AUTOINDEX` is an HNSW.
LITE_EXHAUSTIVE = {
    "HNSW": {"ef": 2**20},
    "AUTOINDEX": {"ef": 2**20},
    "IVF": {"nprobe": 2**16},
}


def search_params(
    config: Mapping[str, Any], index: Index, limit: int, layout: Layout, *, raise_ef: bool
) -> dict[str, Any]:
    """Turn a search config, flat or with nested `params`, into pymilvus' form.

    The server reads the parameters of an index type only from the nested dictionary.
    """
    top_level = {"metric_type", "ignore_growing", "hints", "round_decimal", "analyzer_name"}
    outer = {key: value for key, value in config.items() if key in top_level}
    params = {key: value for key, value in config.items() if key not in {*top_level, "params"}}
    params.update(config.get("params") or {})
    if raise_ef:
        # Lite answers with fewer than `limit` hits where `ef` is less; a server never does.
        try:
            ef = int(params.get("ef", LITE_DEFAULT_EF))
        except (TypeError, ValueError) as error:
            raise QueryError(
                f"search parameter ef is {params['ef']!r}; it must be a number"
            ) from error
        params["ef"] = max(limit, ef)
    if index.metric == "BM25" and layout.engine.negates_bm25:
        for name in {"radius", "range_filter"} & params.keys():
            if not is_number(params[name]):
                raise QueryError(
                    f"search parameter {name} is {params[name]!r}; it must be a number"
                )
            params[name] = -params[name]
    return {**outer, "params": params}


def exhaustive_params(field: str, index: Index, layout: Layout) -> Mapping[str, int]:
    """What has an approximate index of Milvus Lite visit every row; nothing for others."""
    if layout.engine.drops_hits_after_search and field != layout.sparse_field:
        for beginning, params in LITE_EXHAUSTIVE.items():
            if index.type.upper().startswith(beginning):
                return params
    return {}


@lru_cache(maxsize=1024)
def warn_of_ignored(
    collection_name: str, field: str, index_type: str, names: tuple[str, ...]
) -> None:
    """Warn once of search parameters that have no effect."""
    logger.warning(
        "search parameters %s have no effect: the index of %r in collection %r is of type %s",
        list(names),
        field,
        collection_name,
        index_type,
    )
