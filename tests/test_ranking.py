"""Order and score, as pure functions of numbers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings

from llama_index_milvus_async._retrieval.mmr import mmr
from llama_index_milvus_async._retrieval.ranking import similarity

thresholds = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.01, 0.99))


def random_vectors(seed, n, dim):
    """Vectors of any length; no two pairs are equally similar, so that the choice is unique."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(n + 1, dim)) * generator.uniform(0.1, 10, size=(n + 1, 1))
    return vectors[0], vectors[1:]


def assert_same_as_core(query, candidates, top_k, threshold):
    scores, ids = get_top_k_mmr_embeddings(
        query.tolist(), candidates.tolist(), similarity_top_k=top_k, mmr_threshold=threshold
    )
    chosen, chosen_scores = mmr(query, candidates, top_k, threshold)
    assert chosen == ids
    assert chosen_scores == pytest.approx(scores, abs=1e-9)


# The distances are what Milvus measured: similarities for COSINE and IP, squared for L2.


@pytest.mark.parametrize("metric", ["COSINE", "IP"])
@pytest.mark.parametrize("distance", [-0.5, 0.0, 0.25, 7.5])
def test_a_similarity_of_milvus_stays_as_it_is(metric, distance):
    assert similarity(metric, distance) == distance


@pytest.mark.parametrize(("distance", "expected"), [(0.0, 1.0), (1.0, 0.5), (3.0, 0.25)])
def test_a_squared_distance_becomes_a_similarity(distance, expected):
    assert similarity("L2", distance) == expected


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_smaller_distance_is_never_less_similar(one, other):
    near, far = sorted((one, other))
    assert 0 < similarity("L2", far) <= similarity("L2", near) <= 1


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    dim=st.integers(2, 24),
    top_k=st.integers(1, 45),
    threshold=thresholds,
)
@example(seed=0, n=3, dim=2, top_k=45, threshold=None)
def test_mmr_chooses_and_scores_as_llama_index_does(seed, n, dim, top_k, threshold):
    query, candidates = random_vectors(seed, n, dim)
    assert_same_as_core(query, candidates, top_k, threshold)


@given(
    seed=st.integers(0, 2**32 - 1),
    copies=st.lists(st.integers(0, 5), min_size=2, max_size=30),
    dim=st.integers(2, 24),
    threshold=thresholds,
)
def test_of_equal_candidates_the_first_is_chosen_as_in_llama_index(seed, copies, dim, threshold):
    query, originals = random_vectors(seed, 6, dim)
    assert_same_as_core(query, originals[copies], len(copies), threshold)


def test_the_nearest_is_chosen_first_and_what_resembles_it_last():
    query = np.array([1.0, 0.0])
    near, twin, other = [1.0, 0.1], [1.0, 0.11], [0.5, -0.8]
    chosen, _ = mmr(query, np.array([twin, other, near]), 3, 0.5)
    assert chosen == [2, 1, 0]


def test_threshold_one_asks_for_relevance_alone():
    query, candidates = random_vectors(seed=1, n=20, dim=6)
    cosines = candidates @ query / np.linalg.norm(candidates, axis=1) / np.linalg.norm(query)
    chosen, scores = mmr(query, candidates, 20, 1.0)
    assert chosen == np.argsort(-cosines).tolist()
    assert scores == pytest.approx(sorted(cosines, reverse=True))


def test_no_threshold_is_a_half():
    query, candidates = random_vectors(seed=2, n=20, dim=6)
    assert mmr(query, candidates, 10) == mmr(query, candidates, 10, 0.5)
    assert mmr(query, candidates, 10) != mmr(query, candidates, 10, 0.6)


def test_threshold_zero_is_no_missing_threshold():
    query, candidates = random_vectors(seed=3, n=20, dim=6)
    assert mmr(query, candidates, 10, 0.0) != mmr(query, candidates, 10, 0.5)


def test_nothing_is_chosen_from_nothing():
    assert mmr([1.0, 0.0], np.empty((0, 2)), 5) == ([], [])


def test_vectors_of_zeros_score_zero_rather_than_nan():
    chosen, scores = mmr([1.0, 0.0], np.array([[0.0, 0.0], [0.6, 0.8]]), 2, 1.0)
    assert chosen == [1, 0]
    assert scores == [pytest.approx(0.6), 0.0]
