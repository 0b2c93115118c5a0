"""What a user installs: wheel, sdist, their metadata, and the wheel in a new environment.

The environment is made once, without extras, and gets some afterwards: the order matters. In a
short form pip finds there what the tests' own environment has, and brings the rest; to bring all
takes it a minute, and is left to the slow tests. Not there are the extras that bring gigabytes
(`huggingface`, `demo`) or a whole Jupyter (`notebooks`).
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.fixtures.pip import NO_NETWORK
from tests.fixtures.servers import LiteServer
from tests.fixtures.upstream import REQUIREMENT as UPSTREAM

for tool in ("build", "hatchling", "readme_renderer.markdown", "twine"):
    pytest.importorskip(tool, reason=f"{tool} is not installed; the extra dev brings it")

# The first test with the environment also pays for making it.
pytestmark = [pytest.mark.starts, pytest.mark.in_order, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
PACKAGE = "llama_index_milvus_async"
ALIAS = "llama_index/vector_stores/milvus_async"
# In the repository, not in the sdist.
NOT_SHIPPED = (".ci/", ".github/")
EXTRAS = {
    "demo",
    "dev",
    "examples",
    "huggingface",
    "lite",
    "notebooks",
    "openai",
    "opentelemetry",
    "parquet",
    "ray",
    "test",
}
#: Modules that nothing else imports unless it is asked for what an extra brings.
OF_AN_EXTRA = {
    f"{PACKAGE}/migration/_arrow.py": "parquet",
    f"{PACKAGE}/migration/_parquet_files.py": "parquet",
    f"{PACKAGE}/ray.py": "ray",
}
#: Of the time of the dependencies' import; 0.06 to 0.08 were measured. A package that is imported
#: needlessly is more.
IMPORT_SHARE = 1 / 8
IMPORTS = 5
ATTEMPTS = 3

# A store on the URI it is given; prints what it found as JSON.
USE_A_STORE = """
import asyncio, json, sys
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import VectorStoreQuery
from llama_index.vector_stores.milvus_async import MilvusVectorStore

VECTORS = {"east": [1.0, 0.0], "north": [0.0, 1.0]}
QUERY = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=2)
NODES = [
    TextNode(
        id_=name,
        text=f"to the {name}",
        embedding=vector,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"document-{name}")},
    )
    for name, vector in VECTORS.items()
]

async def main():
    async with MilvusVectorStore(uri=sys.argv[1], dim=2, consistency_level="Strong") as store:
        added = await store.async_add(NODES)
        both = await store.aquery(QUERY)
        await store.adelete("document-east")
        left = await store.aquery(QUERY)
        await store.aclear()
        texts = [node.get_content() for node in both.nodes]
        print(json.dumps([added, both.ids, texts, left.ids]))

asyncio.run(main())
"""
FOUND = [["east", "north"], ["east", "north"], ["to the east", "to the north"], ["north"]]

# CPU time, in milliseconds: unlike wall-clock time it hardly counts what else runs here. What the
# import has loaded is forgotten after each time, which spares a process with LlamaIndex for each.
TIME_THE_IMPORT = """
import sys, time
start = time.thread_time()
import llama_index.core, pymilvus
print(1000 * (time.thread_time() - start))
before = set(sys.modules)
for _ in range(int(sys.argv[1])):
    start = time.thread_time()
    import llama_index_milvus_async
    print(1000 * (time.thread_time() - start))
    for name in set(sys.modules) - before:
        del sys.modules[name]
"""

NAME_INSTALLED_FILES = """
import importlib.metadata
for file in importlib.metadata.files("llama-index-milvus-async"):
    print(file.locate())
"""


class Distributions:
    """Wheel and sdist of a clean copy, and the wheel that the sdist makes."""

    def __init__(self, folder: Path) -> None:
        self.files = project_files()
        self.source = folder / "source"
        for name in self.files:
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.source / name)
        build("--wheel", "--sdist", self.source, folder / "dist")
        (self.wheel,) = (folder / "dist").glob("*.whl")
        (self.sdist,) = (folder / "dist").glob("*.tar.gz")

        with tarfile.open(self.sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (self.unpacked,) = (folder / "unpacked").iterdir()
        build("--wheel", self.unpacked, folder / "dist-of-sdist")
        (self.wheel_of_sdist,) = (folder / "dist-of-sdist").glob("*.whl")

        self.contents = contents(self.wheel)
        (info,) = {name.split("/")[0] for name in self.contents if ".dist-info/" in name}
        self.info = info
        self.metadata = metadata_of(self.wheel)


class Environment:
    """A virtual environment, in which nothing is but what pip installs for its user.

    Args:
        folder: Where it is made.
        linked: Whether pip finds there already what the tests' own environment has of it.
    """

    def __init__(self, folder: Path, *, linked: bool) -> None:
        # The pip of the tests' own environment serves this one as well.
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True)
        self.folder = folder
        self.linked = linked
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.packages = Path(
            self.output("-c", "import site; print(site.getsitepackages()[0])")[:-1]
        )

    def pip(self, command: str, *arguments: str) -> None:
        """Runs pip; skips the test where pip cannot reach its index."""
        pip = [sys.executable, "-I", "-m", "pip", "--python", str(self.python)]
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(
            [*pip, command, "--quiet", *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            env=inherited,
        )
        if result.returncode and any(sign in result.stderr for sign in NO_NETWORK):
            pytest.skip("the package index cannot be reached to fill the new environment")
        assert result.returncode == 0, result.stderr

    def install(self, wheel: Path, extras: str = "") -> None:
        """Installs a wheel with what it requires."""
        if self.linked:
            requirements = metadata_of(wheel).requires_dist or []
            for each in required(requirements, extras.strip("[]").split(","), set()):
                self.link(each)
        # Byte code is made of the few modules that are imported, when they are.
        self.pip("install", "--no-compile", f"{wheel}{extras}")

    def link(self, installed: Distribution) -> None:
        for file in installed.files or []:
            target, link = Path(str(file.locate())), self.packages / file
            # Beside the packages are scripts, which nobody runs.
            if ".." not in file.parts and target.exists() and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Isolated: neither the checkout nor PYTHONPATH is looked into.
        return subprocess.run(
            [str(self.python), "-I", *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )

    def output(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout


def required(
    requirements: Iterable[Requirement], extras: Iterable[str], seen: set[str]
) -> Iterator[Distribution]:
    """What they require, as far as the tests' environment has it.

    Args:
        requirements: Of a distribution.
        extras: Those of its extras that are wanted.
        seen: The requirements that were looked at.
    """
    for each in requirements:
        markers = [{"extra": extra} for extra in ("", *extras)]
        if str(each) in seen or (each.marker and not any(map(each.marker.evaluate, markers))):
            continue
        seen.add(str(each))
        with contextlib.suppress(PackageNotFoundError):
            found = distribution(each.name)
            yield found
            yield from required(map(Requirement, found.requires or []), each.extras, seen)


def project_files() -> list[str]:
    """The files that are tracked, and those that are new and not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout says which files belong to the project")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, encoding="utf-8")
    return sorted(name for name in listed.stdout.split("\0") if (ROOT / name).is_file())


def build(*arguments: str | Path) -> None:
    """Builds a source folder, the last argument but one, into a folder, the last."""
    *options, source, folder = map(str, arguments)
    command = ["-m", "build", "--no-isolation", *options, "--outdir", folder, source]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def metadata_of(wheel: Path) -> Metadata:
    [text] = (text for name, text in contents(wheel).items() if name.endswith("/METADATA"))
    return Metadata.from_email(text)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return Distributions(tmp_path_factory.mktemp("packaging"))


@pytest.fixture(
    scope="module", params=["linked", pytest.param("installed", marks=pytest.mark.slow)]
)
def bare(
    built: Distributions, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Environment]:
    """The environment with the wheel and without extras; installed by pip it has 400 MB."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    try:
        environment = Environment(folder, linked=request.param == "linked")
        environment.install(built.wheel)
        environment.output("-c", f"import {PACKAGE}")  # makes the byte code
        yield environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def with_extras(built: Distributions, bare: Environment) -> Environment:
    bare.install(built.wheel, "[lite,openai,opentelemetry]")
    return bare


# Wheel and sdist


def test_the_sdist_makes_the_same_wheel(built: Distributions) -> None:
    assert built.wheel_of_sdist.name == built.wheel.name
    assert contents(built.wheel_of_sdist) == built.contents


def test_the_sdist_has_every_file_of_the_project(built: Distributions) -> None:
    shipped = {
        path.relative_to(built.unpacked).as_posix()
        for path in built.unpacked.rglob("*")
        if path.is_file()
    }
    expected = {name for name in built.files if not name.startswith(NOT_SHIPPED)}
    assert shipped == expected | {"PKG-INFO"}
    needed = ("examples/data", "llama_index", "notebooks", "tests/fixtures")
    assert all((built.unpacked / name).is_dir() for name in needed)


def test_the_wheel_has_the_package_and_its_alias_only(built: Distributions) -> None:
    modules = {name for name in built.files if name.startswith((f"{PACKAGE}/", f"{ALIAS}/"))}
    info = {f"{built.info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    assert set(built.contents) == modules | info
    assert {f"{PACKAGE}/py.typed", f"{ALIAS}/py.typed", f"{ALIAS}/__init__.py"} <= modules
    assert f"{ALIAS}/errors.py" in modules
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_leaves_the_namespace_of_llama_index_open(built: Distributions) -> None:
    # One of these would hide every other package of LlamaIndex.
    closed = {"llama_index/__init__.py", "llama_index/vector_stores/__init__.py"}
    assert not closed & {*built.contents, *built.files}


# Metadata


def test_twine_finds_nothing_to_say(built: Distributions) -> None:
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict"]
    result = subprocess.run(
        [*command, str(built.wheel), str(built.sdist)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("PASSED") == 2, result.stdout


def test_the_metadata_say_what_the_project_is(built: Distributions) -> None:
    metadata = built.metadata
    assert metadata.name == "llama-index-milvus-async"
    assert built.wheel.name.startswith(f"{PACKAGE}-{metadata.version}-")
    assert built.sdist.name == f"{PACKAGE}-{metadata.version}.tar.gz"
    assert metadata.summary
    assert metadata.license_expression == "MIT"
    assert metadata.license_files == ["LICENSE"]
    assert metadata.provides_extra is not None
    assert set(metadata.provides_extra) >= EXTRAS
    assert metadata.keywords is not None
    assert {"llama-index", "milvus", "async"} <= set(metadata.keywords)
    assert all(url.startswith("https://") for url in (metadata.project_urls or {}).values())
    assert (built.unpacked / "PKG-INFO").read_bytes() == built.contents[f"{built.info}/METADATA"]


def test_the_classifiers_name_the_supported_pythons(built: Distributions) -> None:
    assert built.metadata.requires_python == SpecifierSet(">=3.10,<3.14")
    prefix = "Programming Language :: Python :: 3."
    classifiers = built.metadata.classifiers or []
    named = {line.removeprefix(prefix) for line in classifiers if line.startswith(prefix)}
    assert named == {"10", "11", "12", "13"}


def test_without_extras_only_what_every_store_needs_is_required(built: Distributions) -> None:
    required = {each.name for each in built.metadata.requires_dist or [] if not each.marker}
    assert {"llama-index-core", "numpy", "pymilvus", "tqdm"} <= required
    assert not {"milvus-lite", "nest-asyncio", "opentelemetry-api", "pytest", "torch"} & required


def test_what_the_package_imports_is_required(built: Distributions) -> None:
    # By the wheel itself; imports within functions and `try` are of what may be missing.
    requirements = built.metadata.requires_dist or []
    required = {canonicalize_name(each.name) for each in requirements if not each.marker}
    # Names of imports, and what has them; parts of LlamaIndex share one name.
    distributions = {**packages_distributions(), "llama_index": ["llama-index-core"]}
    assert {"grpcio", "numpy", "pymilvus"} <= required
    for name, content in built.contents.items():
        if not name.startswith(f"{PACKAGE}/") or not name.endswith(".py"):
            continue
        extra = {"extra": OF_AN_EXTRA.get(name, "")}
        brought = {each for each in requirements if each.marker and each.marker.evaluate(extra)}
        needed = {
            canonicalize_name(distribution)
            for node in ast.parse(content).body
            for module in modules_of(node)
            if module not in (*sys.stdlib_module_names, PACKAGE)
            for distribution in distributions.get(module, [module])
        }
        assert needed <= required | {canonicalize_name(each.name) for each in brought}, name


def modules_of(node: ast.stmt) -> list[str]:
    """The packages of which a statement imports something."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [str(node.module).split(".")[0]]
    return []


def test_the_catalogue_of_llama_index_is_told_where_the_class_is(built: Distributions) -> None:
    settings = (built.unpacked / "pyproject.toml").read_text("utf-8")
    [path] = re.findall(r'^import_path = "(.+)"$', settings, flags=re.MULTILINE)
    [names] = re.findall(r"^\[tool\.llamahub\.class_authors\]\n((?:\w+ = .+\n)+)", settings, re.M)
    assert f"{path.replace('.', '/')}/__init__.py" in built.contents
    for line in names.splitlines():
        assert hasattr(importlib.import_module(path), line.split(" = ")[0])


def test_the_description_is_the_readme(built: Distributions) -> None:
    metadata = built.metadata
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (built.unpacked / "README.md").read_text("utf-8")


def test_the_readme_renders(built: Distributions) -> None:
    # With the renderer of PyPI; twine takes for granted that Markdown renders.
    from readme_renderer import markdown

    text = (built.unpacked / "README.md").read_text("utf-8")
    html = markdown.render(text)
    assert html is not None, "needs readme-renderer[md]"

    def count(pattern: str) -> int:
        return len(re.findall(pattern, html))

    outside_of_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = outside_of_code.splitlines()
    rulers = [line for line in lines if re.fullmatch(r"\|[-|: ]*-[-|: ]*\|", line)]
    assert count("<h1[ >]") == 1
    assert count("<h2[ >]") == sum(line.startswith("## ") for line in lines)
    assert count("<pre[ >]") == len(re.findall("^```.*?^```", text, re.DOTALL | re.MULTILINE))
    assert count("<table[ >]") == len(rulers)
    assert count("<tr[ >]") == sum(line.startswith("|") for line in lines) - len(rulers)


def test_the_readme_has_no_link_that_is_dead_elsewhere(built: Distributions) -> None:
    # A package index shows it without the files beside it, which it names as code instead. The
    # plot is the exception: in its place one reads what it shows.
    text = built.metadata.description or ""
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text)
    assert [target for target in links if "://" not in target] == []
    folders = "benchmarks|docs|examples|notebooks|tests"
    named = re.findall(rf"`((?:{folders})/[\w./-]*|[\w-]+\.md)`", text)
    assert len(named) > 10
    assert [name for name in named if not (built.unpacked / name).exists()] == []


def test_extras_that_texts_and_messages_name_exist(built: Distributions) -> None:
    named: dict[str, str] = {}  # and the last file that does
    for name in built.files:
        if name.endswith((".ipynb", ".md", ".py", ".toml", ".txt")):
            text = (built.source / name).read_text("utf-8")
            for extras in re.findall(r"llama-index-milvus-async\[([a-z0-9, -]+)\]", text):
                named |= {extra.strip(): name for extra in extras.split(",")}
    assert "lite" in named
    existing = built.metadata.provides_extra or []
    assert {extra: name for extra, name in named.items() if extra not in existing} == {}


def test_the_changelog_has_an_entry_for_the_version(built: Distributions) -> None:
    changelog = (built.unpacked / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = re.split(r"^## \[(.+?)\](?: - (.+))?$", changelog, flags=re.MULTILINE)
    versions, dates, texts = parts[1::3], parts[2::3], parts[3::3]
    assert versions[0] == "Unreleased"
    assert versions[1] == str(built.metadata.version), "the newest version is another one"
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", dates[1])
    assert re.search(r"^- ", texts[1], flags=re.MULTILINE)


def test_the_package_exports_every_exception() -> None:
    package = importlib.import_module(PACKAGE)
    assert set(package.errors.__all__) <= set(package.__all__)
    assert package.__all__ == sorted(package.__all__)
    defined = {
        name
        for name, value in vars(package.errors).items()
        if isinstance(value, type) and issubclass(value, package.errors.MilvusVectorStoreError)
    }
    assert defined == set(package.errors.__all__)


# Installed without extras


def test_nothing_optional_is_installed(bare: Environment) -> None:
    optional = ["milvus_lite", "openai", "opentelemetry", "pytest", "torch"]
    find = "import importlib.util, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]))"
    assert bare.output("-c", find, *optional).split() == []


def test_the_import_warns_of_nothing(bare: Environment, built: Distributions) -> None:
    # No warning of a dependency either: pymilvus 3.0 and llama-index-core 0.14 have none.
    script = f"import {PACKAGE}; print({PACKAGE}.__version__)"
    assert bare.output("-W", "error", "-c", script).strip() == str(built.metadata.version)


def test_the_alias_is_the_package(bare: Environment) -> None:
    # The alias first: it must not take the place of what LlamaIndex has beside it.
    script = f"""
import llama_index.vector_stores.milvus_async as alias
from llama_index.vector_stores.milvus_async import errors as alias_errors
import {PACKAGE} as package
import llama_index.core, llama_index.core.ingestion, llama_index.core.vector_stores
import llama_index.vector_stores

assert alias.MilvusVectorStore is package.MilvusVectorStore
assert alias.__all__ == package.__all__
assert all(getattr(alias, name) is getattr(package, name) for name in package.__all__)
assert alias_errors.__all__ == package.errors.__all__
assert all(getattr(alias_errors, n) is getattr(package.errors, n) for n in alias_errors.__all__)
for namespace in (llama_index, llama_index.vector_stores):
    assert namespace.__file__ is None, "no namespace any more"
"""
    bare.output("-W", "error", "-c", script)


def test_a_store_works_on_a_server(bare: Environment, lite_server: LiteServer) -> None:
    assert json.loads(bare.output("-c", USE_A_STORE, lite_server.uri)) == FOUND


def test_a_file_without_lite_is_told_what_to_install(bare: Environment, tmp_path: Path) -> None:
    result = bare.run("-c", USE_A_STORE, str(tmp_path / "milvus.db"))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"{PACKAGE}.LiteNotInstalledError: ")
    assert 'pip install "llama-index-milvus-async[lite]"' in last
    assert list(tmp_path.iterdir()) == []


def test_the_import_adds_little_to_that_of_its_dependencies(bare: Environment) -> None:
    shares = []
    for _ in range(ATTEMPTS):
        times = map(float, bare.output("-c", TIME_THE_IMPORT, str(IMPORTS)).split())
        of_dependencies = next(times)
        shares.append(statistics.median(times) / of_dependencies)
        if shares[-1] < IMPORT_SHARE:
            return
    pytest.fail(f"medians of {IMPORTS} imports: {shares} of the dependencies' time")


# Installed with extras


@pytest.mark.skipif(sys.platform == "win32", reason="Milvus Lite has no build for Windows")
def test_with_lite_a_store_works_on_a_file(with_extras: Environment, tmp_path: Path) -> None:
    path = tmp_path / "milvus.db"
    assert json.loads(with_extras.output("-c", USE_A_STORE, str(path))) == FOUND
    assert path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Milvus Lite has no build for Windows")
def test_the_first_example_of_the_readme_runs(
    with_extras: Environment, built: Distributions
) -> None:
    readme = (built.unpacked / "README.md").read_text("utf-8")
    program, printed = re.findall(r"^```(?:python|text)\n(.*?)^```$", readme, re.M | re.S)[:2]
    assert with_extras.output("-c", program) == printed


def test_with_opentelemetry_it_is_found(with_extras: Environment) -> None:
    script = f"import sys, {PACKAGE}; print('opentelemetry.trace' in sys.modules)"
    assert with_extras.output("-W", "error", "-c", script).strip() == "True"


def test_with_openai_its_models_stand_beside_the_alias(with_extras: Environment) -> None:
    script = """
from llama_index.vector_stores.milvus_async import MilvusVectorStore
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI

OpenAIEmbedding(api_key="none"), OpenAI(api_key="none"), MilvusVectorStore(dim=8)
"""
    with_extras.output("-c", script)


def test_with_extras_a_store_works_on_a_server(
    with_extras: Environment, lite_server: LiteServer
) -> None:
    assert json.loads(with_extras.output("-c", USE_A_STORE, lite_server.uri)) == FOUND


def test_the_environment_is_consistent(with_extras: Environment) -> None:
    with_extras.pip("check")


def test_uninstalled_it_leaves_upstream_alone_and_nothing_behind(with_extras: Environment) -> None:
    # Upstream wants an older pymilvus, so that it is only looked for, not imported.
    find = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]) is not None)"
    upstream, ours = "llama_index.vector_stores.milvus", "llama_index.vector_stores.milvus_async"
    with_extras.pip("install", "--no-compile", "--no-deps", UPSTREAM)
    assert with_extras.output("-c", find, upstream).strip() == "True"
    assert with_extras.output("-c", find, ours).strip() == "True"

    installed = [Path(line) for line in with_extras.output("-c", NAME_INSTALLED_FILES).splitlines()]
    assert all(path.exists() for path in installed if path.suffix == ".py")
    with_extras.pip("uninstall", "--yes", "llama-index-milvus-async")
    assert not [path for path in installed if path.exists()]
    assert with_extras.output("-c", find, upstream).strip() == "True"
    assert with_extras.output("-c", find, ours).strip() == "False"
    with_extras.output("-c", "import llama_index.core")
