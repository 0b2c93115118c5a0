"""The documentation: its Python runs, what it names exists, and the site builds.

Every Python block of README.md and docs/ is run, those of a page one after the other in one
namespace, on Milvus Lite: the paths of its files are relative ones, in a folder of the test's own,
the `uri` of a server is replaced by such a path, and `HuggingFaceEmbedding` by a model without
weights. `await` works at the top level, on one event loop for each page; a block without it runs
outside a loop, so that it may call `asyncio.run`. What a block printed is compared with the `text`
block that follows it directly, where there is one. Each page defines what it uses.

A block that cannot run here is preceded by `<!-- not run: the reason -->`.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from llama_index.core import Settings
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.vector_stores import FilterOperator

import llama_index_milvus_async
import mkdocs_hooks
from llama_index_milvus_async import FilterOperatorFunction, MilvusVectorStore, errors
from tests.fixtures.programs import Python
from tests.fixtures.words import WordEmbedding

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
#: Whose commands and links are checked as well.
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md"]
PACKAGE = "llama_index_milvus_async"
#: Packages whose messages the troubleshooting explains as well.
BELOW = ("milvus_lite", "pymilvus", "llama_index.core.node_parser")
SITE_PACKAGES = (
    "merm",
    "mkdocs",
    "mkdocs-jupyter",
    "mkdocs-material",
    "mkdocstrings",
    "mkdocstrings-python",
)

MOST_NOT_RUN = 0.1

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n^```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None
    printed: str | None


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page,
            text.count("\n", 0, match.start("code")),
            match["language"],
            match["code"],
            match["reason"],
            match["printed"],
        )
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language in languages]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PYTHON = {page: blocks(page, "python") for page in PAGES}


class _OnLite(ast.NodeTransformer):
    """Replaces the address of a server in a `uri="..."`."""

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        uri = node.value.value if isinstance(node.value, ast.Constant) else None
        if node.arg == "uri" and isinstance(uri, str) and "://" in uri:
            node.value = ast.copy_location(ast.Constant("./server.db"), node.value)
        return node


def run(block: Block, names: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
    tree = _OnLite().visit(ast.parse(block.code))
    ast.increment_lineno(tree, block.line)  # tracebacks show the line of the page
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(tree, str(block.page), "exec", flags=flags, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        loop.run_until_complete(eval(code, names))
    else:
        exec(code, names)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The namespace of a page's blocks.

    The working directory is a temporary one, and LlamaIndex has no default models.
    """
    for dispatcher in (get_dispatcher(), get_dispatcher(PACKAGE)):
        monkeypatch.setattr(dispatcher, "event_handlers", [*dispatcher.event_handlers])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILVUS_URI", "")  # and set back at the end
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "_llm", None)
    without_weights = types.ModuleType("llama_index.embeddings.huggingface")
    vars(without_weights)["HuggingFaceEmbedding"] = lambda name: WordEmbedding(dim=384)
    monkeypatch.setitem(sys.modules, without_weights.__name__, without_weights)
    return {"__name__": "documentation"}


@pytest.fixture
def loop(names: dict[str, Any]) -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of a page; at the end its stores are closed, and nothing else is left."""
    loop = asyncio.new_event_loop()
    yield loop
    for store in {id(v): v for v in names.values() if isinstance(v, MilvusVectorStore)}.values():
        loop.run_until_complete(store.aclose())
    left = asyncio.all_tasks(loop)
    loop.close()
    assert not left, f"tasks left pending: {left}"


@pytest.mark.starts
@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON[page]], ids=name_of)
def test_python_blocks_run(
    page: Path,
    names: dict[str, Any],
    loop: asyncio.AbstractEventLoop,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for block in PYTHON[page]:
        if block.reason is not None:
            continue
        capsys.readouterr()
        run(block, names, loop)
        printed = capsys.readouterr().out
        if block.printed is not None:
            assert printed == block.printed, f"{name_of(page)}:{block.line}"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnreachableError("search", "gone"), 503),
        (errors.RequestTimeoutError("search", "late"), 504),
        (errors.QueryError("no such mode"), 422),
        (errors.CollectionError("dropped"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_service_of_the_page_gives_errors_a_status(
    error: Exception, status: int, names: dict[str, Any]
) -> None:
    pytest.importorskip("fastapi")
    service = PYTHON[DOCS / "fastapi.md"][0]
    exec(service.code, names)
    answer = await names["answer_store_error"](None, error)
    assert answer.status_code == status


def test_what_a_newcomer_reads_is_short() -> None:
    limits = {ROOT / "README.md": 120} | dict.fromkeys((ROOT / "examples").glob("*.py"), 200)
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in limits}
    assert {name_of(file): lines[file] for file in limits if lines[file] > limits[file]} == {}


def test_few_blocks_are_not_run() -> None:
    every = [block for found in PYTHON.values() for block in found]
    left_out = [block for block in every if block.reason is not None]
    assert len(left_out) <= MOST_NOT_RUN * len(every), left_out


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_is_hidden_from_the_tests(page: Path) -> None:
    """An indented one, or one whose language is spelled in another way, would not be run."""
    for match in re.finditer(r"^( *)```(\w+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert match[1] == ""
        assert match[2] in {"python", "sh", "text", "diff", "yaml", "mermaid"}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_commands_name_what_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, section = project.partition("[project.optional-dependencies]\n")
    extras = set(re.findall(r"^([a-z]+) = ", section.partition("\n[")[0], re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(block.code for block in blocks(page, "sh"))
    inline = "\n".join(re.findall(r"`([^`\n]+)`", text))

    for words in re.findall(r"^(?:\S+=\S+ )*make ([^#\n]+)", f"{shell}\n{inline}", re.MULTILINE):
        for word in re.sub(r'"[^"]*"', "", words).split():
            if "=" not in word:
                assert word in targets
    for named in re.findall(r"(?:llama-index-milvus-async|\.)\[([a-z,]+)\]", shell + inline):
        assert set(named.split(",")) <= extras
    for script in re.findall(r"(?<=python )(?!-)\S+\.py", shell + inline):
        assert (ROOT / script).is_file()


def test_contributing_names_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text, _, _ = text.partition("### The way of one")  # other folders are listed after it
    rows = re.findall(r"^\| (`\w+(?:\.py|/)`[^|]*) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+\.py|\w+/)`", row)}
    modules = {file.name for file in (ROOT / PACKAGE).glob("*.py")} - {"__init__.py"}
    packages = {f"{file.parent.name}/" for file in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert named == modules | packages


def test_words_are_those_of_the_list() -> None:
    """CONTRIBUTING.md names words that are written in another way."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, section = contributing.partition("## Words\n")
    section, _, _ = section.partition("## Habits\n")
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|$", section, re.MULTILINE)
    spelling = section.rpartition("|\n")[2].partition("Not ")[2]
    avoided = {word for row in [*rows, spelling] for word in re.findall(r"`([^`]+)`", row)}
    assert {"time-out", "behavior"} <= avoided
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(avoided)))})\b", re.IGNORECASE)
    files = [*PAGES, *sorted((ROOT / PACKAGE).rglob("*.py"))]
    found = [
        f"{name_of(file)}: {match[0]}"
        for file in files
        for match in pattern.finditer(file.read_text(encoding="utf-8"))
    ]
    assert found == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and MkDocs in docs/."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    made = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        if named := re.search(r"\{ ?#([\w-]+) ?\}$", heading):
            made.add(named[1])
            continue
        slug = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        made.add(re.sub(r"[-\s]+" if DOCS in page.parents else r"\s", "-", slug))
    return made


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"\w+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if DOCS in page.parents and name_of(file).removeprefix("docs/") in mkdocs_hooks.ELSEWHERE:
            continue
        assert file.exists(), target
        if DOCS in page.parents:
            assert DOCS in file.parents, f"{target} is not part of the site"
        if anchor:
            assert anchor in anchors(file), target


def test_every_public_name_is_in_the_reference() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE))
    for name in llama_index_milvus_async.__all__:
        places = {f"{PACKAGE}.{name}", f"{PACKAGE}.sparse.{name}"}
        if name in errors.__all__:  # all on one page
            places.add(f"{PACKAGE}.errors")
        assert shown & places, name


def test_every_operator_is_explained() -> None:
    text = (DOCS / "concepts" / "filters.md").read_text(encoding="utf-8")
    first_columns = "".join(re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE))
    for operator in (*FilterOperator, *FilterOperatorFunction):
        assert f"`{operator.name}`" in first_columns


def test_every_error_is_explained() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.MilvusVectorStoreError):
            assert f"`{name}`" in text


def test_messages_are_those_of_the_package() -> None:
    """Headings of the troubleshooting quote messages; `…` stands for what varies.

    Some are those of packages beneath this one.
    """
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`(?: \{.*\})?$", text, re.MULTILINE)
    assert quoted
    for message in quoted:
        for part in filter(None, map(str.strip, message.split("…"))):
            known = any(part in text for name in (PACKAGE, *BELOW) for text in texts_in(name))
            assert known, part


@functools.cache
def texts_in(name: str) -> list[str]:
    """The texts in the sources of a package; what varies in an f-string is `…`."""
    texts = []
    [folder] = importlib.util.find_spec(name).submodule_search_locations
    for file in sorted(Path(folder).rglob("*.py")):
        if file.parent.name == "grpc_gen":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_the_compose_file_is_pinned_and_checked() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert set(compose["services"]) == {"etcd", "minio", "milvus"}
    for service in compose["services"].values():
        _, _, tag = service["image"].rpartition(":")
        assert re.search(r"\d{4}-\d\d-\d\d|v\d+\.\d+\.\d+", tag), service["image"]
        assert service["healthcheck"]["test"]
        [volume] = service["volumes"]
        assert volume.partition(":")[0] in compose["volumes"]
    conditions = compose["services"]["milvus"]["depends_on"].values()
    assert {each["condition"] for each in conditions} == {"service_healthy"}


def _not_installed() -> list[str]:
    missing = []
    for package in SITE_PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return missing


@pytest.mark.skipif(bool(_not_installed()), reason=f"not installed: {', '.join(_not_installed())}")
def test_the_site_builds_without_warnings(new_python: Python, tmp_path: Path) -> None:
    command = ["build", "--strict", "--site-dir", str(tmp_path / "site")]
    new_python.run("-m", "mkdocs", *command, cwd=ROOT, NO_COLOR=1)
    pages = (tmp_path / "site" / "reference").rglob("*.html")
    reference = "".join(page.read_text(encoding="utf-8") for page in pages)
    for name in llama_index_milvus_async.__all__:
        assert re.search(rf'id="{PACKAGE}\.(\w+\.)?{name}"', reference), name
