"""Maximal marginal relevance (MMR): hits that are relevant, and different from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: MMR's balance where neither the query nor the call names one, as in LlamaIndex.
DEFAULT_MMR_THRESHOLD = 0.5

# A matrix product gives equal vectors scores that differ in their last digits.
_EQUAL = 1e-12


def mmr(
    query: Sequence[float] | npt.NDArray[Any],
    candidates: npt.NDArray[Any],
    top_k: int,
    threshold: float | None = None,
) -> tuple[list[int], list[float]]:
    """Choose candidates by maximal marginal relevance.

    The choice is that of `llama_index.core.indices.query.embedding_utils`'
    `get_top_k_mmr_embeddings`: each step takes the candidate with the highest
    `threshold * sim(query, c) - (1 - threshold) * sim(previous choice, c)`, with the cosine
    similarity, the first of equals winning.

    Args:
        query: The query's vector, shape `(dimension,)`.
        candidates: The candidates' vectors, shape `(candidates, dimension)`.
        top_k: How many to choose at most.
        threshold: 0 avoids what resembles the previous choice, 1 asks for relevance alone;
            `None` is 0.5.

    Returns:
        The positions of the chosen candidates in the order of choice, and their MMR scores.
    """
    if not len(candidates):
        return [], []
    balance = DEFAULT_MMR_THRESHOLD if threshold is None else threshold
    vectors = _unit(np.asarray(candidates, dtype=np.float64))
    relevance = balance * (vectors @ _unit(np.asarray(query, dtype=np.float64)))
    scores = relevance.copy()
    available = np.ones(len(vectors), dtype=bool)
    chosen: list[int] = []
    chosen_scores: list[float] = []
    while len(chosen) < min(top_k, len(vectors)):
        open_scores = np.where(available, scores, -np.inf)
        best = int(np.argmax(open_scores >= open_scores.max() - _EQUAL))
        chosen.append(best)
        chosen_scores.append(float(scores[best]))
        available[best] = False
        scores = relevance - (1 - balance) * (vectors @ vectors[best])
    return chosen, chosen_scores


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale to length one; a vector of zeros stays zero rather than NaN."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: npt.NDArray[np.float64] = vectors / np.where(norms == 0, 1.0, norms)
    return unit
