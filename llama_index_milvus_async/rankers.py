"""Rankers that run on this side, and so with every engine and in every mode.

They are passed to a store as `query_ranker` or `hybrid_ranker`, or to a query as `milvus_ranker`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any

from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQuery

from ._retrieval.ranking import DEFAULT_RRF_K
from .errors import ConfigurationError

__all__ = ["NewestFirst"]


@dataclass(frozen=True)
class NewestFirst:
    """Ranks the hits of a query by the date in their metadata.

    Without `half_life` the newest hit is the first, and the scores stay what they are. With it the
    score of a hit is halved each time that its age grows by `half_life`, and the highest is first:
    a hit that is much more similar stays before a newer one.

    Hits without a date that can be read come last; with `half_life` their score is 0, or stays what
    it is where that is less. Hits of several searches, in mode `HYBRID`, are fused by their ranks
    first: the score of each is the sum of `1 / (60 + rank)`.

    Args:
        key: The metadata key of the date: a `datetime` or `date`, its text in ISO 8601, or seconds
            since 1970. Dates without a time zone are in UTC.
        half_life: The age at which a hit counts half.

    Raises:
        ConfigurationError: An argument is not allowed.

    Examples:
        ```python
        from datetime import timedelta

        store = MilvusVectorStore(dim=384, query_ranker=NewestFirst("published"))
        month = NewestFirst("published", half_life=timedelta(days=30))
        result = await store.aquery(query, milvus_ranker=month)
        ```
    """

    key: str
    half_life: timedelta | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key:
            raise ConfigurationError(
                f"key is {self.key!r}; it must be the metadata key of a date, a string"
            )
        if self.half_life is not None and not (
            isinstance(self.half_life, timedelta) and self.half_life > timedelta(0)
        ):
            raise ConfigurationError(
                f"half_life is {self.half_life!r}; it must be a timedelta of more than 0, such as "
                "timedelta(days=30)"
            )

    def __call__(
        self, query: VectorStoreQuery, legs: Sequence[Sequence[NodeWithScore]]
    ) -> list[NodeWithScore]:
        """Rank the hits of each search of a query; see `query_ranker`."""
        hits = list(legs[0]) if len(legs) == 1 else _fused(legs)
        dated = [(self._seconds(hit), hit) for hit in hits]
        if self.half_life is None:
            return [hit for _, hit in sorted(dated, key=lambda one: -one[0])]
        now, half_life = time.time(), self.half_life.total_seconds()
        ranked = []
        for seconds, hit in dated:
            score = hit.score or 0.0
            weight = 0.5 ** (max(0.0, now - seconds) / half_life)
            # Age must not bring a negative score nearer to 0, which would be better.
            ranked.append(NodeWithScore(node=hit.node, score=min(score, score * weight)))
        return sorted(ranked, key=lambda hit: -(hit.score or 0.0))

    def _seconds(self, hit: NodeWithScore) -> float:
        """The date of a hit, in seconds since 1970; minus infinity for none."""
        try:
            return _seconds_of(hit.node.metadata.get(self.key))
        except (ValueError, OverflowError):
            return -math.inf


def _seconds_of(value: Any) -> float:
    """A date in seconds since 1970.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, str):
        if value.endswith(("Z", "z")):  # which Python 3.10 does not read
            value = f"{value[:-1]}+00:00"
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(value)
    return float(value)


def _fused(legs: Sequence[Sequence[NodeWithScore]]) -> list[NodeWithScore]:
    """The hits of several searches, best first, by reciprocal rank fusion."""
    scores: dict[str, float] = {}
    nodes = {hit.node.node_id: hit.node for leg in legs for hit in leg}
    for leg in legs:
        for rank, hit in enumerate(leg, 1):
            one = hit.node.node_id
            scores[one] = scores.get(one, 0.0) + 1 / (DEFAULT_RRF_K + rank)
    ordered = sorted(scores.items(), key=lambda item: -item[1])
    return [NodeWithScore(node=nodes[one], score=score) for one, score in ordered]
