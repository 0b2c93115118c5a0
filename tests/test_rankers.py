"""Fusion of hybrid searches and the forms of rankers, as pure functions."""

from __future__ import annotations

import json
import math
import time
from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import Function, FunctionScore, FunctionType, RRFRanker, WeightedRanker

from llama_index_milvus_async import NewestFirst
from llama_index_milvus_async._retrieval.ranking import (
    CallableRanker,
    RelativeScore,
    Rrf,
    ServerRanker,
    Weighted,
    check_weights,
    only_fuses,
    ranker_of,
    similarity,
)
from llama_index_milvus_async.errors import ConfigurationError, QueryError
from tests.fixtures.labels import label

METRICS = ["COSINE", "IP", "L2", "BM25", "HAMMING", "JACCARD"]
FALLING = ["L2", "HAMMING", "JACCARD"]  # a larger distance is less similar


# Similarities of the metrics that legs of a hybrid search may have

distances = st.floats(0, 1).map(lambda x: round(x, 6))


@pytest.mark.parametrize("metric", METRICS)
@given(one=distances, other=distances)
def test_more_relevant_is_never_less_similar(metric, one, other):
    low, high = sorted((one, other), reverse=metric in FALLING)
    assert similarity(metric, low) <= similarity(metric, high)


@pytest.mark.parametrize("distance", [-3.5, 3.5])
def test_a_score_of_bm25_is_positive(distance):
    assert similarity("BM25", distance) == 3.5


@pytest.mark.parametrize(
    ("metric", "distance", "expected"),
    [("HAMMING", 0, 1.0), ("HAMMING", 3, 0.25), ("JACCARD", 0.0, 1.0), ("JACCARD", 0.25, 0.75)],
)
def test_similarity_of_bits(metric, distance, expected):
    assert similarity(metric, distance) == expected


# Relative scores, which `alpha` weighs


def test_of_each_leg_the_least_is_0_and_the_most_1():
    legs = [[("a", 0.9), ("b", 0.5), ("c", 0.1)], [("c", 8.0), ("a", 2.0), ("d", 0.0)]]
    fused = RelativeScore((0.25, 0.75)).fuse(legs, ["COSINE", "IP"])
    assert fused == [
        ("c", pytest.approx(0.75)),
        ("a", pytest.approx(0.25 + 0.75 * 0.25)),
        ("b", pytest.approx(0.25 * 0.5)),
        ("d", 0.0),
    ]


@pytest.mark.parametrize(
    ("metric", "leg"),
    [
        ("COSINE", [("best", 1.0), ("mid", 0.5), ("last", -1.0)]),
        ("IP", [("best", 40.0), ("mid", 3.0), ("last", -5.0)]),
        ("BM25", [("best", 9.0), ("mid", 3.0), ("last", 0.5)]),
        ("BM25", [("best", -9.0), ("mid", -3.0), ("last", -0.5)]),  # as Milvus Lite tells it
        ("L2", [("best", 0.0), ("mid", 3.0), ("last", 9.0)]),
        ("HAMMING", [("best", 0.0), ("mid", 3.0), ("last", 9.0)]),
        ("JACCARD", [("best", 0.0), ("mid", 0.3), ("last", 1.0)]),
    ],
)
def test_the_best_of_every_metric_has_the_most(metric, leg):
    fused = RelativeScore((0.5,)).fuse([leg], [metric])
    assert [one for one, _ in fused] == ["best", "mid", "last"]
    assert (fused[0][1], fused[2][1]) == (0.5, 0.0)


def test_equals_and_single_hits_have_the_most():
    legs = [[("a", 0.5), ("b", 0.5)], [("c", 0.1)]]
    fused = RelativeScore((0.25, 0.75)).fuse(legs, ["IP", "IP"])
    assert fused == [("c", 0.75), ("a", 0.25), ("b", 0.25)]


def test_of_equal_scores_the_one_of_the_first_leg_comes_first():
    legs = [[("b", 1.0), ("x", 0.5)], [("a", 7.0), ("y", 3.0)]]
    fused = RelativeScore((0.5, 0.5)).fuse(legs, ["IP", "IP"])
    assert [one for one, _ in fused] == ["b", "a", "x", "y"]


def test_nothing_is_fused_of_nothing():
    assert RelativeScore((0.5, 0.5)).fuse([[], []], ["COSINE", "IP"]) == []


def test_a_leg_without_hits_adds_nothing():
    fused = RelativeScore((0.5, 0.5)).fuse([[("a", 2.0), ("b", 1.0)], []], ["IP", "BM25"])
    assert fused == [("a", 0.5), ("b", 0.0)]


legs = st.lists(
    st.dictionaries(st.integers(0, 20), st.floats(-10, 10), max_size=12), min_size=1, max_size=4
)


@given(legs)
def test_relative_scores_are_in_order_and_in_0_to_1(legs):
    pairs = [sorted(leg.items(), key=lambda hit: -hit[1]) for leg in legs]
    weights = (1 / len(legs),) * len(legs)
    fused = RelativeScore(weights).fuse(pairs, ["IP"] * len(legs))
    assert {one for one, _ in fused} == {one for leg in legs for one in leg}
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 + 1e-9 for score in scores)


@given(legs, st.floats(0.5, 4), st.floats(-3, 3))
def test_relative_scores_have_no_unit(legs, scale, shift):
    """Whatever a leg's scores are measured in, and from where."""
    pairs = [sorted(leg.items(), key=lambda hit: -hit[1]) for leg in legs]
    others = [[(one, round(s, 3) * scale + shift) for one, s in leg] for leg in pairs]
    pairs = [[(one, round(s, 3)) for one, s in leg] for leg in pairs]
    ranker, metrics = RelativeScore((1.0,) * len(legs)), ["IP"] * len(legs)
    assert dict(ranker.fuse(pairs, metrics)) == pytest.approx(dict(ranker.fuse(others, metrics)))


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
    ids=label,
)
def test_rankers(value, params, expected):
    assert ranker_of(value, params, "hybrid_ranker") == expected


def test_a_function_of_milvus():
    function = Function("f", FunctionType.RERANK, [], params={"reranker": "rrf"})
    ranker = ranker_of(function, None, "hybrid_ranker")
    assert isinstance(ranker, ServerRanker)
    assert ranker == ranker_of(FunctionScore([function]), None, "hybrid_ranker")


def test_a_callable():
    def rank(query, legs):
        return legs[0]

    ranker = ranker_of(rank, None, "hybrid_ranker")
    assert isinstance(ranker, CallableRanker)
    assert ranker.rank is rank


@pytest.mark.parametrize(
    ("ranker", "of_pymilvus"),
    [
        (Rrf(7), RRFRanker(7)),
        (Weighted((0.5, 0.25)), WeightedRanker(0.5, 0.25)),
        (Weighted((1.0, 0.5), False), WeightedRanker(1.0, 0.5, norm_score=False)),
    ],
)
def test_a_ranker_is_what_pymilvus_makes_of_it(ranker, of_pymilvus):
    assert ranker.for_milvus() == of_pymilvus.dict()
    assert ranker_of(of_pymilvus, None, "milvus_ranker") == ranker


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
        ("RRFRanker", {"weights": [1, 1]}, r"^here(_params)? has .*weights.*; RRFRanker takes"),
        ("WeightedRanker", {"k": 1}, r"^here_params has \['k'\]; WeightedRanker takes \['norm_"),
        (RRFRanker(), {"weights": [1]}, r"^here(_params)? has .*weights.*; RRFRanker takes"),
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
    ids=label,
)
def test_what_is_no_ranker_is_refused_and_named(value, params, message):
    with pytest.raises(ConfigurationError, match=message):
        ranker_of(value, params, "here")


def test_a_class_in_place_of_its_object_is_refused():
    with pytest.raises(ConfigurationError, match="here is"):
        ranker_of(RRFRanker, None, "here")


@pytest.mark.parametrize("value", [len, Function("f", FunctionType.RERANK, []), FunctionScore([])])
def test_parameters_that_a_ranker_does_not_take_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"here_params is \{'k': .*own parameters"):
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


def test_a_ranker_of_fewer_legs_has_their_weights():
    assert Rrf(3).of_legs([0]) == Rrf(3)
    assert Weighted((0.1, 0.2, 0.3), False).of_legs([0, 2]) == Weighted((0.1, 0.3), False)
    ranker = functions(rerank(reranker="weighted", weights=[0.1, 0.2, 0.3], norm_score=True))
    assert ranker.of_legs([0, 1]) == functions(
        rerank(reranker="weighted", weights=[0.1, 0.2], norm_score=True)
    )
    boost = functions(rerank(reranker="boost", weight=2))
    assert boost.of_legs([0]) == boost


# Functions of Milvus


def rerank(*fields, name="r", **params):
    return Function(name, FunctionType.RERANK, list(fields), params=params)


def functions(value):
    return ranker_of(value, None, "milvus_ranker")


DECAY = {"reranker": "decay", "function": "exp", "origin": 2000, "scale": 10}


def test_equal_functions_are_equal_rankers_whatever_becomes_of_them():
    """Queries whose rankers are equal share RPCs; a decay from now is made anew for each."""
    given = rerank("year", **DECAY)
    ranker = functions(given)
    assert ranker == functions(rerank("year", **DECAY))
    assert hash(ranker) == hash(functions(rerank("year", **DECAY)))
    given.params["origin"] = 2020
    assert ranker != functions(given)
    assert ranker != functions(FunctionScore([rerank("year", **DECAY)], {"boost_mode": "sum"}))


@pytest.mark.parametrize(
    ("value", "fuses", "keeps_metric"),
    [
        (rerank("year", **DECAY), False, False),
        (rerank(reranker="boost", weight=2), False, True),
        (rerank(reranker="Boost", weight=2), False, True),
        (FunctionScore([rerank(reranker="boost", weight=w) for w in (2, 3)]), False, True),
        (
            FunctionScore([rerank(reranker="boost", weight=2), rerank("year", **DECAY)]),
            False,
            False,
        ),
        (rerank(reranker="rrf", k=60), True, False),
        (rerank(reranker="weighted", weights=[1, 1]), True, False),
        (rerank("text", reranker="model", provider="tei"), False, False),
        (rerank("a", "b", reranker="not known here"), False, False),
    ],
    ids=label,
)
def test_what_a_function_does_to_scores(value, fuses, keeps_metric):
    ranker = functions(value)
    assert (ranker.fuses, only_fuses(ranker)) == (fuses, fuses)
    assert ranker.keeps_metric is keeps_metric


def test_a_model_reads_the_text_of_each_question_in_an_rpc_of_its_own():
    ranker = functions(rerank("text", reranker="model", provider="tei"))
    [one, other] = [ranker.of_query(VectorStoreQuery(query_str="ü")) for _ in range(2)]
    assert one.functions.functions[0].param("queries") == json.dumps(["ü"])
    assert one != other
    given = functions(rerank("text", reranker="model", provider="tei", queries=["a", "b"]))
    assert given.of_query(VectorStoreQuery(query_str="c")) == given
    assert given != functions(rerank("text", reranker="model", provider="tei", queries=["a", "b"]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (FunctionScore([]), r"^here is a FunctionScore of \[\]; pass it a list of Functions"),
        (FunctionScore([3]), r"^here is a FunctionScore of \['int'\]"),
        (FunctionScore(None), "^here is a FunctionScore of NoneType"),
        (
            FunctionScore([Function("f", FunctionType.BM25, ["text"], ["sparse"])]),
            "^here is a function of type BM25; it must be of type RERANK",
        ),
        (rerank(), r"^here is the function 'r' without params\['reranker'\]"),
        (
            rerank("year", reranker="decay", origin=3),
            r"'decay', and its params lack \['function', 'scale'\]; pass them",
        ),
        (rerank(reranker="boost"), r"its params lack \['weight'\]"),
        (rerank(**DECAY), r"its input_field_names are \[\]; it reads one column"),
        (rerank("a", "b", **DECAY), r"are \['a', 'b'\]; it reads one column"),
        (rerank("a", reranker="boost", weight=1), r"are \['a'\]; it reads no column"),
        (rerank("a", reranker="model"), r"its params lack \['provider'\]"),
    ],
    ids=label,
)
def test_functions_that_cannot_work_are_refused_and_named(value, message):
    with pytest.raises(ConfigurationError, match=message):
        ranker_of(value, None, "here")


# Newest first


def hit(one, score, **metadata):
    return NodeWithScore(node=TextNode(id_=one, text=one, metadata=metadata), score=score)


def ids_of(hits):
    return [hit.node.node_id for hit in hits]


def test_newest_first_reads_every_kind_of_date():
    day = datetime(2024, 5, 17, 12, tzinfo=timezone.utc)
    values = {
        "naive is UTC": day.replace(tzinfo=None) + timedelta(hours=5),
        "seconds": day.timestamp() + 4 * 3600,
        "datetime": day + timedelta(hours=3),
        "text": (day + timedelta(hours=2)).isoformat(),
        "text with Z": "2024-05-17T13:00:00Z",
        "other zone": "2024-05-17T14:30:00+02:00",
        "day": "2024-05-17",
        "date": date(2024, 5, 16),
        "integer": 86_400,
        "before 1970": "1969-01-01",
        "junk": "yesterday",
        "list": [2024],
        "flag": True,
        "nan": math.nan,
        "none": None,
    }
    hits = [hit(one, 0.5, at=value) for one, value in values.items()] + [hit("missing", 0.5)]
    dated = list(values)[:10]
    ranked = NewestFirst("at")(VectorStoreQuery(), [sorted(hits, key=lambda h: h.node.node_id)])
    assert ids_of(ranked)[: len(dated)] == dated
    assert ids_of(ranked)[len(dated) :] == sorted({h.node.node_id for h in hits} - {*dated})
    assert {one.score for one in ranked} == {0.5}


def test_half_life_weighs_similarity_against_age():
    now, day = time.time(), 86_400
    hits = [
        hit("alike", 0.9, at=now - 10 * day),
        hit("new", 0.3, at=now),
        hit("future", 0.2, at=now + 100 * day),
        hit("old", 0.8, at=now - 1_000_000 * day),
        hit("undated", 0.95),
        hit("unlike", -0.4, at=now - 30 * day),
    ]
    ranked = NewestFirst("at", half_life=timedelta(days=10))(VectorStoreQuery(), [hits])
    assert ids_of(ranked) == ["alike", "new", "future", "old", "undated", "unlike"]
    scores = [one.score for one in ranked]
    assert scores == pytest.approx([0.45, 0.3, 0.2, 0, 0, -0.4], abs=1e-6)
    assert hits[0].score == 0.9
    longer = NewestFirst("at", half_life=timedelta(days=1000))(VectorStoreQuery(), [hits])
    assert ids_of(longer)[0] == "alike"


def test_the_hits_of_several_searches_are_fused_before_they_age():
    now = time.time()
    both, dense, sparse = (hit(one, 9.0, at=now) for one in ("both", "dense", "sparse"))
    legs = [[dense, both], [sparse, both]]
    ranked = NewestFirst("at", half_life=timedelta(days=1))(VectorStoreQuery(), legs)
    assert ids_of(ranked) == ["both", "dense", "sparse"]
    assert [one.score for one in ranked] == pytest.approx([2 / 62, 1 / 61, 1 / 61], rel=1e-3)
    assert NewestFirst("at")(VectorStoreQuery(), [[], []]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "key is ''; it must be the metadata key of a date"),
        ((3,), "key is 3"),
        (("at", timedelta(0)), "half_life is datetime.timedelta"),
        (("at", 30), "half_life is 30; it must be a timedelta of more than 0"),
    ],
)
def test_bad_arguments_of_newest_first(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        NewestFirst(*arguments)
