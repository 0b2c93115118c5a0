"""Fusion of hybrid searches and the forms of rankers, as pure functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus import Function, FunctionType, RRFRanker, WeightedRanker

from llama_index_milvus_async._ranking import (
    CallableRanker,
    Rrf,
    ServerRanker,
    Weighted,
    check_weights,
    normalized,
    ranker_of,
    similarity,
)
from llama_index_milvus_async.errors import ConfigurationError, QueryError

METRICS = ["COSINE", "IP", "L2", "BM25", "HAMMING", "JACCARD"]
FALLING = ["L2", "HAMMING", "JACCARD"]  # a larger distance is less similar


def two_legs():
    return [[("a", 0.9), ("b", 0.5), ("c", 0.1)], [("c", 8.0), ("a", 2.0), ("d", 1.0)]]


# What `similarity` and `normalized` promise for every metric

distances = st.floats(0, 1).map(lambda x: round(x, 6))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("read", [similarity, normalized])
@given(one=distances, other=distances)
def test_more_relevant_is_never_less(metric, read, one, other):
    low, high = sorted((one, other), reverse=metric in FALLING)
    assert read(metric, low) <= read(metric, high)


@pytest.mark.parametrize("metric", METRICS)
@given(distance=st.floats(0, 1e9))
def test_what_is_normalized_is_in_0_to_1(metric, distance):
    if metric in ("COSINE", "JACCARD"):
        distance /= 1e9
    assert 0 <= normalized(metric, distance) <= 1


@pytest.mark.parametrize(
    ("metric", "distance", "expected"),
    [
        ("COSINE", -1.0, 0.0),
        ("COSINE", 0.0, 0.5),
        ("COSINE", 1.0, 1.0),
        ("IP", 0.0, 0.5),
        ("IP", 1.0, 0.75),
        ("IP", -1.0, 0.25),
        ("BM25", 0.0, 0.0),
        ("BM25", 1.0, 0.5),
        ("BM25", -1.0, 0.5),  # as Milvus Lite tells it
        ("L2", 0.0, 1.0),
        ("L2", 1.0, 0.5),
        ("HAMMING", 0.0, 1.0),
        ("JACCARD", 1.0, 0.5),
    ],
)
def test_the_formulas_of_milvus(metric, distance, expected):
    assert normalized(metric, distance) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [-3.5, 3.5])
def test_a_score_of_bm25_is_positive(distance):
    assert similarity("BM25", distance) == 3.5


@pytest.mark.parametrize(("distance", "expected"), [(0, 1.0), (3, 0.25)])
def test_similarity_of_bits(distance, expected):
    assert similarity("HAMMING", distance) == expected
    assert similarity("JACCARD", 0.25) == 0.75


# Reciprocal rank fusion


def test_rrf_adds_reciprocal_ranks():
    fused = Rrf(10).fuse(two_legs(), ["COSINE", "BM25"])
    assert fused == [
        ("a", pytest.approx(1 / 11 + 1 / 12)),
        ("c", pytest.approx(1 / 13 + 1 / 11)),
        ("b", pytest.approx(1 / 12)),
        ("d", pytest.approx(1 / 13)),
    ]


def test_rrf_looks_at_ranks_alone():
    legs = two_legs()
    far = [[(one, -1000 * distance) for one, distance in leg] for leg in legs]
    assert Rrf().fuse(legs, ["IP", "IP"]) == Rrf().fuse(far, ["L2", "BM25"])


def test_of_equal_ranks_the_one_of_the_first_leg_comes_first():
    legs = [[("b", 1.0), ("x", 0.5)], [("a", 1.0), ("y", 0.5)]]
    fused = Rrf().fuse(legs, ["IP", "IP"])
    assert [one for one, _ in fused] == ["b", "a", "x", "y"]


@pytest.mark.parametrize("ranker", [Rrf(), Weighted((1.0, 0.5))])
def test_nothing_is_fused_of_nothing(ranker):
    assert ranker.fuse([[], []], ["COSINE", "IP"]) == []


def test_one_leg_keeps_its_order():
    leg = two_legs()[0]
    for ranker in (Rrf(), Weighted((0.5,)), Weighted((0.5,), normalize=False)):
        assert [one for one, _ in ranker.fuse([leg], ["COSINE"])] == ["a", "b", "c"]


@given(
    legs=st.lists(st.lists(st.integers(0, 20), unique=True, max_size=15), min_size=1, max_size=4),
    k=st.integers(1, 100),
)
def test_rrf_is_its_definition(legs, k):
    pairs = [[(one, 1.0 / position) for position, one in enumerate(leg, 1)] for leg in legs]
    fused = Rrf(k).fuse(pairs, ["IP"] * len(legs))
    everything = {one for leg in legs for one in leg}
    expected = {
        one: sum(1 / (k + leg.index(one) + 1) for leg in legs if one in leg) for one in everything
    }
    assert dict(fused) == pytest.approx(expected)
    assert len(fused) == len(everything)
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)


# Weighted fusion


def test_weights_of_normalized_scores():
    fused = Weighted((0.25, 1.0)).fuse(two_legs(), ["COSINE", "BM25"])
    expected = {
        "a": 0.25 * 0.95 + 2 * math.atan(2) / math.pi,
        "b": 0.25 * 0.75,
        "c": 0.25 * 0.55 + 2 * math.atan(8) / math.pi,
        "d": 2 * math.atan(1) / math.pi,
    }
    assert dict(fused) == pytest.approx(expected)
    assert [one for one, _ in fused] == ["c", "a", "d", "b"]


def test_weights_of_scores_as_they_are():
    fused = Weighted((0.5, 1.0), normalize=False).fuse(two_legs(), ["COSINE", "IP"])
    assert dict(fused) == pytest.approx({"a": 2.45, "b": 0.25, "c": 8.05, "d": 1.0})
    assert [one for one, _ in fused] == ["c", "a", "d", "b"]


@pytest.mark.parametrize("metric", FALLING)
def test_normalized_distances_fall(metric):
    leg = [("near", 0.1), ("far", 0.9)]
    fused = Weighted((1.0,)).fuse([leg], [metric])
    assert [one for one, _ in fused] == ["near", "far"]


UNTURNED = pytest.mark.xfail(reason="Weighted.fuse(normalize=False) takes distances as scores")


@UNTURNED
@pytest.mark.parametrize("metric", FALLING)
def test_of_distances_as_they_are_the_least_comes_first(metric):
    """So that the one leg of a query with alpha=1 keeps its order on Milvus 2.3."""
    fused = Weighted((1.0,), normalize=False).fuse([[("near", 0.1), ("far", 0.9)]], [metric])
    assert [one for one, _ in fused] == ["near", "far"]


@UNTURNED
@pytest.mark.parametrize("metric", FALLING)
def test_distances_as_they_are_fall_beside_scores(metric):
    """Milvus turns those of mixed metrics round: `1 - 2 atan(d) / π`."""
    legs = [[("near", 0.1), ("far", 0.9)], [("near", 1.0), ("far", 1.0)]]
    fused = Weighted((1.0, 1.0), normalize=False).fuse(legs, [metric, "IP"])
    assert [one for one, _ in fused] == ["near", "far"]
    assert fused[0][1] == pytest.approx(2 - 2 * math.atan(0.1) / math.pi)


@UNTURNED
def test_bm25_of_lite_as_it_is_rises():
    leg = [("best", -3.0), ("next", -1.0)]
    fused = Weighted((1.0,), normalize=False).fuse([leg], ["BM25"])
    assert fused == [("best", 3.0), ("next", 1.0)]


def test_a_weight_of_zero_keeps_the_hits_of_its_leg():
    fused = Weighted((1.0, 0.0)).fuse(two_legs(), ["COSINE", "IP"])
    assert fused[-1] == ("d", 0.0)


# Which rankers there are


@pytest.mark.parametrize(
    ("value", "params", "expected"),
    [
        ("RRFRanker", None, Rrf(60)),
        ("RRFRanker", {}, Rrf(60)),
        ("RRFRanker", {"k": 1}, Rrf(1)),
        ("RRFRanker", {"k": 0.5}, Rrf(0.5)),
        ("RRFRanker", {"k": 16_383}, Rrf(16_383)),
        (RRFRanker(), None, Rrf(60)),
        (RRFRanker(5), {}, Rrf(5)),
        (RRFRanker(5), {"k": 7}, Rrf(7)),
        ("WeightedRanker", None, Weighted((1.0, 1.0))),
        ("WeightedRanker", {"weights": [1, 0]}, Weighted((1.0, 0.0))),
        ("WeightedRanker", {"weights": (0.5,)}, Weighted((0.5,))),
        (
            "WeightedRanker",
            {"weights": [0.25, 0.5, 1], "norm_score": False},
            Weighted((0.25, 0.5, 1.0), normalize=False),
        ),
        (WeightedRanker(0.7, 0.3), None, Weighted((0.7, 0.3))),
        (WeightedRanker(0.7, 0.3, norm_score=False), {}, Weighted((0.7, 0.3), normalize=False)),
    ],
    ids=repr,
)
def test_rankers(value, params, expected):
    assert ranker_of(value, params, "hybrid_ranker") == expected


def test_a_function_of_milvus():
    function = Function("f", FunctionType.RERANK, [], params={"reranker": "rrf"})
    ranker = ranker_of(function, None, "hybrid_ranker")
    assert isinstance(ranker, ServerRanker)
    assert ranker.for_milvus() is function


def test_a_callable():
    def rank(query, legs):
        return legs[0]

    ranker = ranker_of(rank, None, "hybrid_ranker")
    assert isinstance(ranker, CallableRanker)
    assert ranker.rank is rank


@pytest.mark.parametrize("ranker", [Rrf(7), Weighted((0.5, 0.25)), Weighted((1.0, 0.5), False)])
def test_a_ranker_is_what_pymilvus_makes_of_it(ranker):
    assert ranker_of(ranker.for_milvus(), None, "milvus_ranker") == ranker


@pytest.mark.parametrize(
    ("value", "params", "message"),
    [
        ("BestRanker", None, r"^here is 'BestRanker'; it must be one of \['RRFRanker', 'Weighted"),
        ("rrfranker", None, "^here is 'rrfranker'"),
        ("", None, "^here is ''"),
        (None, None, "^here is None"),
        (3, None, "^here is 3"),
        (["RRFRanker"], None, r"^here is \['RRFRanker'\]"),
        ({"k": 60}, None, r"^here is \{'k': 60\}"),
        ("RRFRanker", "k", "^here_params is 'k'; it must be a dictionary, such as {\"k\": 60}"),
        ("RRFRanker", [("k", 1)], "^here_params is .*; it must be a dictionary"),
        ("RRFRanker", {"weights": [1, 1]}, r"^here_params has \['weights'\]; RRFRanker takes"),
        ("WeightedRanker", {"k": 1}, r"^here_params has \['k'\]; WeightedRanker takes \['norm_"),
        (RRFRanker(), {"weights": [1]}, r"^here_params has \['weights'\]; RRFRanker takes"),
        ("RRFRanker", {"k": 0}, r"has k=0; it must be a number in \(0, 16384\)"),
        ("RRFRanker", {"k": -1}, "has k=-1"),
        ("RRFRanker", {"k": 16_384}, "has k=16384"),
        ("RRFRanker", {"k": True}, "has k=True"),
        ("RRFRanker", {"k": "60"}, "has k='60'"),
        ("RRFRanker", {"k": None}, "has k=None"),
        ("RRFRanker", {"k": math.nan}, "has k=nan"),
        (RRFRanker(0), None, "has k=0"),
        ("WeightedRanker", {"weights": []}, r"has weights=\[\]; they must be numbers in 0\.\.1"),
        ("WeightedRanker", {"weights": [0, 0]}, r"has weights=\[0, 0\]; .* not all 0"),
        ("WeightedRanker", {"weights": [1, 2]}, r"has weights=\[1, 2\]"),
        ("WeightedRanker", {"weights": [1, -0.1]}, r"has weights=\[1, -0\.1\]"),
        ("WeightedRanker", {"weights": [1, math.nan]}, r"has weights=\[1, nan\]"),
        ("WeightedRanker", {"weights": [1, True]}, r"has weights=\[1, True\]"),
        ("WeightedRanker", {"weights": ["1", "1"]}, r"has weights=\['1', '1'\]"),
        ("WeightedRanker", {"weights": "11"}, "has weights='11'"),
        ("WeightedRanker", {"weights": 1}, "has weights=1"),
        ("WeightedRanker", {"weights": None}, "has weights=None"),
        ("WeightedRanker", {"norm_score": 1}, "has norm_score=1; it must be True or False"),
        ("WeightedRanker", {"norm_score": "no"}, "has norm_score='no'"),
        (WeightedRanker(), None, r"has weights=\[\]"),
        (WeightedRanker(2, 1), None, r"has weights=\[2, 1\]"),
        (
            Function("f", FunctionType.BM25, ["text"], ["sparse"]),
            None,
            "^here is a function of type BM25; it must be of type RERANK",
        ),
    ],
    ids=str,
)
def test_what_is_no_ranker_is_refused_and_named(value, params, message):
    with pytest.raises(ConfigurationError, match=message):
        ranker_of(value, params, "here")


@pytest.mark.xfail(reason="ranker_of takes a class of pymilvus for a callable of the user's")
def test_a_class_in_place_of_its_object_is_refused():
    with pytest.raises(ConfigurationError, match="here is"):
        ranker_of(RRFRanker, None, "here")


@pytest.mark.xfail(reason="ranker_of drops the parameters of functions and callables")
@pytest.mark.parametrize("value", [len, Function("f", FunctionType.RERANK, [])])
def test_parameters_that_a_ranker_does_not_take_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"here_params has \['k'\]"):
        ranker_of(value, {"k": 60}, "here")


# One weight for each leg


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.5, 0.25)])
def test_the_number_of_weights_is_that_of_the_legs(weights):
    message = (
        rf"the ranker has {len(weights)} weights and the query searches 2 fields, "
        r"\['embedding', 'sparse_embedding'\]; pass one weight for each"
    )
    with pytest.raises(QueryError, match=message):
        check_weights(Weighted(weights), ["embedding", "sparse_embedding"])


@pytest.mark.parametrize("ranker", [Rrf(), Weighted((1.0, 0.5)), CallableRanker(len)])
def test_rankers_that_fit(ranker):
    check_weights(ranker, ["embedding", "sparse_embedding"])
