"""The query modes, one entry each: what a mode searches, and what becomes of its hits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from .options import SearchOptions
from .values import MAX_TOP_K

#: Candidates that MMR chooses from, as a multiple of the top k; upstream's default.
DEFAULT_MMR_PREFETCH_FACTOR = 4.0
#: Hits that a ranker orders, as a multiple of those that are wanted of them.
RANKER_PREFETCH_FACTOR = 4


@dataclass(frozen=True)
class Mode:
    """How the queries of a mode are answered.

    Attributes:
        name: The mode's name, for messages.
        dense: Whether it searches dense fields, for which a query needs an embedding.
        sparse: Whether it searches the sparse field, for which a query needs a text. A mode that
            searches both fuses what it finds; there `alpha` 0 or 1 leaves one of them out.
        top_k: The attribute of a query that says how many hits to return; where that is `None`,
            `similarity_top_k` does.
        diversifies: Whether maximal marginal relevance (MMR) chooses the hits, of candidates that
            are more. It compares embeddings, so that a query needs one in any case.
    """

    name: str
    dense: bool = False
    sparse: bool = False
    top_k: str = "similarity_top_k"
    diversifies: bool = False

    @property
    def is_hybrid(self) -> bool:
        """Whether it is for searching dense and sparse fields."""
        return self.dense and self.sparse

    def searches_dense(self, query: VectorStoreQuery) -> bool:
        """Whether a query searches dense fields."""
        return self.dense and not (self.is_hybrid and query.alpha == 0)

    def searches_sparse(self, query: VectorStoreQuery) -> bool:
        """Whether a query searches the sparse field."""
        return self.sparse and not (self.is_hybrid and query.alpha == 1)

    def needs_embedding(self, query: VectorStoreQuery) -> bool:
        """Whether a query needs an embedding."""
        return self.diversifies or self.searches_dense(query)

    def page_size(self, query: VectorStoreQuery) -> int:
        """How many hits a query returns at most."""
        return int(getattr(query, self.top_k) or query.similarity_top_k)

    def candidates(self, query: VectorStoreQuery, options: SearchOptions, *, sparse: bool) -> int:
        """How many hits the sparse leg, or a dense one, of a hybrid search finds."""
        if sparse and query.sparse_top_k is not None:
            return query.sparse_top_k
        return self.limit(query, options) if self.diversifies else query.similarity_top_k

    def limit(self, query: VectorStoreQuery, options: SearchOptions) -> int:
        """How many hits to ask Milvus for, those that it skips not counted."""
        if self.diversifies:
            return mmr_candidates(query.similarity_top_k, options)
        return self.page_size(query)


_Name = VectorStoreQueryMode
MODES = {
    _Name.DEFAULT: Mode("DEFAULT", dense=True),
    _Name.SPARSE: Mode("SPARSE", sparse=True, top_k="sparse_top_k"),
    _Name.TEXT_SEARCH: Mode("TEXT_SEARCH", sparse=True, top_k="sparse_top_k"),
    _Name.HYBRID: Mode("HYBRID", dense=True, sparse=True, top_k="hybrid_top_k"),
    _Name.MMR: Mode("MMR", dense=True, diversifies=True),
}
#: Where the candidates of MMR come from, by the value of `mmr_over`.
MMR_OVER = {
    "dense": MODES[_Name.MMR],
    "hybrid": replace(MODES[_Name.MMR], sparse=True),
}


def mode_of(query: VectorStoreQuery, options: SearchOptions) -> Mode:
    """The mode of a query that `check_query` has passed."""
    mode = MODES[VectorStoreQueryMode(query.mode)]
    return MMR_OVER[options.mmr_over] if mode.diversifies else mode


def mmr_candidates(top_k: int, options: SearchOptions) -> int:
    """How many candidates MMR chooses a top k from."""
    if options.mmr_prefetch_k is not None:
        return max(top_k, int(options.mmr_prefetch_k))
    factor = options.mmr_prefetch_factor
    return min(MAX_TOP_K, int(top_k * (DEFAULT_MMR_PREFETCH_FACTOR if factor is None else factor)))


def ranked_candidates(count: int, options: SearchOptions) -> int:
    """How many hits of one search a ranker orders, where so many are wanted of them."""
    if options.ranker_prefetch_k is not None:
        return max(count, int(options.ranker_prefetch_k))
    return min(MAX_TOP_K, count * RANKER_PREFETCH_FACTOR)


def mmr_threshold(query: VectorStoreQuery, options: SearchOptions) -> float | None:
    """MMR's balance between relevance and difference, `None` for the default."""
    return query.mmr_threshold if options.mmr_threshold is None else options.mmr_threshold
