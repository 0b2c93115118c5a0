"""Similarities, and what ranks hits: fuses those of hybrid searches, or orders those of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import Function, FunctionScore, RRFRanker, WeightedRanker

from .._rpc import RankByFunctions
from ..errors import ConfigurationError, QueryError
from .rerank_functions import BOOST, FUSING, MODEL, read_functions, with_texts, with_weights_of

Id = TypeVar("Id", bound=Hashable)

#: Ranks on the client: query and the hits of each leg to the hits of the result, best first; may
#: be a coroutine function.
ClientRanker = Callable[[VectorStoreQuery, Sequence[Sequence[NodeWithScore]]], Any]

#: The rankers that are named by text, as the upstream plugin has them.
RANKERS = ("RRFRanker", "WeightedRanker")
#: Milvus' default of reciprocal rank fusion.
DEFAULT_RRF_K = 60
#: Milvus takes a `k` in (0, 16,384) (https://milvus.io/docs/rrf-ranker.md).
MAX_RRF_K = 16_384


def similarity(metric: str, distance: float) -> float:
    """Turn what Milvus calls a distance into a similarity, which rises with relevance.

    `COSINE`, `IP` and `BM25` are similarities already. For `L2`, the squared Euclidean distance,
    and for `HAMMING` a distance `d` becomes `1 / (1 + d)`, in (0, 1]; for `JACCARD` `1 - d`.
    Milvus Lite gives the scores of BM25 a minus; no score of BM25 is negative. A distance is
    negative only where a ranker boosts by a sum.
    """
    if metric == "L2" or metric == "HAMMING":
        return 1.0 / (1.0 + distance) if distance >= 0 else 1.0 - distance
    if metric == "BM25":
        return abs(distance)
    return 1.0 - distance if metric == "JACCARD" else distance


@dataclass(frozen=True)
class Rrf:
    """Reciprocal rank fusion: a hit's score is the sum over the legs of `1 / (k + rank)`.

    Ranks count from 1. G. Cormack, C. Clarke, S. Büttcher: Reciprocal rank fusion outperforms
    Condorcet and individual rank learning methods, SIGIR 2009.
    """

    k: float = DEFAULT_RRF_K

    def of_legs(self, legs: Sequence[int]) -> Rrf:
        """The same where only these legs, by their numbers, are searched."""
        return self

    def for_milvus(self) -> Any:
        """The ranker as requests have it."""
        return {"strategy": "rrf", "params": {"k": self.k}}


@dataclass(frozen=True)
class Weighted:
    """A weighted sum of the legs' scores.

    With `normalize` each is brought into 0..1 first, by Milvus' formulas
    (https://milvus.io/docs/weighted-ranker.md): `(1 + s) / 2` for COSINE, `1/2 + atan(s) / π` for
    IP, `2 atan(s) / π` for BM25, `1 - 2 atan(d) / π` for distances.
    """

    weights: tuple[float, ...]
    normalize: bool = True

    def of_legs(self, legs: Sequence[int]) -> Weighted:
        """The same where only these legs, by their numbers, are searched."""
        return replace(self, weights=tuple(self.weights[leg] for leg in legs))

    def for_milvus(self) -> Any:
        """The ranker as requests have it."""
        params = {"weights": list(self.weights), "norm_score": self.normalize}
        return {"strategy": "weighted", "params": params}


@dataclass(frozen=True)
class RelativeScore:
    """A weighted sum of the legs' similarities, each leg's brought to 0..1 by its least and most.

    What LlamaIndex means by `alpha` (`relative_score_fusion` of its Qdrant store). Milvus'
    normalization does not look at the hits at hand: by it the worst hit of BM25 beats the best of
    COSINE, and a weight of one half is BM25 alone. Milvus cannot compute this one.
    """

    weights: tuple[float, ...]

    def fuse(
        self, legs: Sequence[Sequence[tuple[Id, float]]], metrics: Sequence[str]
    ) -> list[tuple[Id, float]]:
        """Fuse hits: id and distance of each, best first, in; id and fused score out."""
        scores: dict[Id, float] = {}
        for leg, metric, weight in zip(legs, metrics, self.weights, strict=True):
            similarities = [similarity(metric, distance) for _, distance in leg]
            least = min(similarities, default=0.0)
            spread = max(similarities, default=0.0) - least
            for (one, _), score in zip(leg, similarities, strict=True):
                relative = (score - least) / spread if spread else 1.0
                scores[one] = scores.get(one, 0.0) + weight * relative
        # Stable: of equal scores the one that an earlier leg found first comes first.
        return sorted(scores.items(), key=lambda hit: -hit[1])


@dataclass(frozen=True)
class ServerRanker:
    """A ranker that Milvus alone can compute: functions of type `RERANK`."""

    functions: RankByFunctions

    @property
    def fuses(self) -> bool:
        """Whether it is for making one list of several."""
        return any(function.kind in FUSING for function in self.functions.functions)

    @property
    def keeps_metric(self) -> bool:
        """Whether what it gives hits is still what the metric says, a distance for `L2`.

        A boost weighs that; everything else replaces it by a score that rises with relevance.
        """
        return all(function.kind == BOOST for function in self.functions.functions)

    def of_legs(self, legs: Sequence[int]) -> ServerRanker:
        """The same where only these legs, by their numbers, are searched."""
        return ServerRanker(with_weights_of(self.functions, list(legs)))

    def of_query(self, query: VectorStoreQuery) -> ServerRanker:
        """The same for a question, whose text a model may have to read."""
        if all(function.kind != MODEL for function in self.functions.functions):
            return self
        return ServerRanker(with_texts(self.functions, query.query_str or ""))

    def for_milvus(self) -> Any:
        """The ranker as requests have it."""
        return self.functions


@dataclass(frozen=True, eq=False)
class CallableRanker:
    """The user's own ranker, which runs here."""

    rank: ClientRanker


Ranker = Rrf | Weighted | RelativeScore | ServerRanker | CallableRanker


def only_fuses(ranker: Ranker) -> bool:
    """Whether a ranker has nothing to do where one list of hits was found."""
    if isinstance(ranker, ServerRanker):
        return ranker.fuses
    return not isinstance(ranker, CallableRanker)


def ranker_of(value: Any, params: Any, argument: str) -> Ranker:
    """Read a ranker: a name with its parameters, a pymilvus object, or a callable.

    Args:
        value: `"RRFRanker"` or `"WeightedRanker"`, a pymilvus ranker, a pymilvus `Function` of
            type `RERANK` or a `FunctionScore` of such, or a callable.
        params: The parameters of a name: `{"k": 60}` or `{"weights": [0.7, 0.3]}`.
        argument: What to call it in messages; its parameters' name is that with `_params`.

    Raises:
        ConfigurationError: It is none of these, or its parameters are out of range.
    """
    if not isinstance(params, (Mapping, type(None))):
        raise ConfigurationError(
            f'{argument}_params is {params!r}; it must be a dictionary, such as {{"k": 60}}'
        )
    named = f"{argument}_params"
    if isinstance(value, (RRFRanker, WeightedRanker)):
        settings: Any = value.dict()  # public: rankers of users have to have it, too
        value, params = type(value).__name__, {**settings["params"], **(params or {})}
        named = argument
    params = dict(params or {})
    if isinstance(value, type):
        raise ConfigurationError(
            f"{argument} is the class {value.__name__}; pass an object, {value.__name__}(...)"
        )
    if params and not isinstance(value, str):
        raise ConfigurationError(
            f"{named} is {params!r}, and {argument} is not a name but a ranker, which has its own "
            "parameters; leave them out"
        )
    if isinstance(value, (Function, FunctionScore)):
        return ServerRanker(read_functions(value, argument))
    if callable(value):
        return CallableRanker(value)
    if value not in RANKERS:
        raise ConfigurationError(
            f"{argument} is {value!r}; it must be one of {list(RANKERS)}, a pymilvus ranker, a "
            "Function of type RERANK, a FunctionScore, or a callable"
        )
    known = {"RRFRanker": {"k"}, "WeightedRanker": {"weights", "norm_score"}}[value]
    unknown = sorted(set(params) - known)
    if unknown:
        raise ConfigurationError(f"{named} has {unknown}; {value} takes {sorted(known)}")
    if value == "RRFRanker":
        return Rrf(_rrf_k(params.get("k", DEFAULT_RRF_K), named))
    normalize = params.get("norm_score", True)
    if not isinstance(normalize, bool):
        raise ConfigurationError(f"{named} has norm_score={normalize!r}; it must be True or False")
    return Weighted(_weights(params.get("weights", (1.0, 1.0)), named), normalize)


def check_query_ranker(value: Any) -> None:
    """Check a ranker for every mode; `None` is none.

    Raises:
        ConfigurationError: It is not a ranker, or one that fuses.
    """
    if value is None:
        return
    if isinstance(value, str) or only_fuses(ranker_of(value, None, "query_ranker")):
        found = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise ConfigurationError(
            f"query_ranker is {found}; it must be a Function with reranker='decay' or 'boost', a "
            "FunctionScore, or a callable. What fuses the hits of several searches is a "
            "hybrid_ranker: most modes make one"
        )


def _rrf_k(k: Any, named: str) -> float:
    if not isinstance(k, (int, float)) or isinstance(k, bool) or not 0 < k < MAX_RRF_K:
        raise ConfigurationError(f"{named} has k={k!r}; it must be a number in (0, {MAX_RRF_K})")
    return k


def _weights(weights: Any, named: str) -> tuple[float, ...]:
    if (
        not isinstance(weights, (list, tuple))
        or not weights
        or not all(
            isinstance(w, (int, float)) and not isinstance(w, bool) and 0 <= w <= 1 for w in weights
        )
        or not any(weights)
    ):
        raise ConfigurationError(
            f"{named} has weights={weights!r}; they must be numbers in 0..1, not all 0, "
            "one for each vector field that is searched: dense, then sparse"
        )
    return tuple(float(weight) for weight in weights)


def check_weights(ranker: Ranker, legs: Sequence[str]) -> None:
    """Check that a ranker has a weight for each leg.

    Raises:
        QueryError: It has not.
    """
    if isinstance(ranker, Weighted) and len(ranker.weights) != len(legs):
        raise QueryError(
            f"the ranker has {len(ranker.weights)} weights and the query searches {len(legs)} "
            f"fields, {list(legs)}; pass one weight for each"
        )
