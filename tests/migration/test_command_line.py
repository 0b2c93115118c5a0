"""`python -m llama_index_milvus_async`: what it says, its exit status; and no secret in it."""

from __future__ import annotations

import io
import os
import sys

import pytest

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import ConfigurationError, UnreachableError
from llama_index_milvus_async.migration import Progress, _command_line, copy_nodes
from llama_index_milvus_async.migration._command_line import Display, main, progress_line
from llama_index_milvus_async.migration._places import Place, tokens_of
from llama_index_milvus_async.migration._progress import Meter
from tests.fixtures.engines import new_client
from tests.fixtures.stores import collection_name, make_nodes


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    for name in ("MILVUS_TOKEN", "SOURCE_MILVUS_TOKEN", "TARGET_MILVUS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    """Runs a command; returns its status, what it wrote, and its errors."""

    def run(*arguments):
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


@pytest.fixture
def new_name(lite):
    """A collection that is dropped at the end."""
    name = collection_name("command")
    yield name
    client = new_client(lite.uri)
    client.drop_collection(name)
    client.close()


def test_a_collection_is_copied_and_compared(run, source, lite, new_name):
    there, here = f"{lite.uri}#{source.collection_name}", f"{lite.uri}#{new_name}"
    status, out, err = run("copy", there, here)
    assert status == 0, err
    assert out.startswith("copied 60 nodes in ")
    assert "copy: 60 of 60 (100%) nodes" in err
    status, out, _ = run("copy", there, here)
    assert (status, out.split(", ")[1]) == (0, "60 were there already\n")
    assert run("check", there, here)[:2] == (0, "equal: 60 nodes in both\n")

    target = MilvusVectorStore(lite.uri, collection_name=new_name)
    target.add(make_nodes(1, prefix="other"))
    target.close()
    status, out, _ = run("check", there, here)
    assert status == 1
    assert "1 in the target only: other-0" in out
    status, _, err = run("copy", there, here)
    assert status == 1
    assert "has 1 node that the source does not have" in err
    status, out, _ = run("copy", "--keep-extra", "--replace", there, here)
    assert (status, out.split(", ")[1:]) == (0, ["1 others are there too\n"])


def test_a_new_collection_is_like_the_source(run, lite, new_name, make_lite_store):
    """Everything that a store can ask for, and Milvus Lite has."""
    source = make_lite_store(
        dim=8,
        id_field="key",
        text_key="body",
        embedding_field="vector",
        similarity_metric="L2",
        index_config={"index_type": "HNSW", "M": 8, "efConstruction": 80},
        dense_fields={"image": {"dim": 4, "metric_type": "COSINE"}},
        enable_sparse=True,
        sparse_embedding_function=(lambda _: [], lambda texts: [{1: 0.5}] * len(texts)),
        scalar_fields={
            "year": {"type": "INT64", "nullable": True},
            "tags": {"type": "ARRAY", "element_type": "VARCHAR", "max_capacity": 9},
        },
        partition_key_field="tenant",
    )
    nodes = make_nodes(6, tenant="a", tags=["x", "y"], image=[1.0, 0.0, 0.0, 0.0])
    source.add(nodes)
    there, here = f"{lite.uri}#{source.collection_name}", f"{lite.uri}#{new_name}"
    options = ["--source-option", "text_key=body"]
    status, _, err = run("copy", there, here, *options)
    assert status == 0, err
    status, out, err = run("check", there, here, *options, "--target-option", "text_key=body")
    assert (status, out) == (0, "equal: 6 nodes in both\n"), err

    client = source.client
    old, new = (client.describe_collection(name) for name in (source.collection_name, new_name))
    assert new["fields"] == old["fields"]
    for field in ("vector", "image", "sparse_embedding"):
        indexes = [
            client.describe_index(name, field) for name in (source.collection_name, new_name)
        ]
        assert indexes[0] == indexes[1]


def test_the_column_of_the_texts_is_asked_for(run, lite, new_name):
    client = new_client(lite.uri)
    schema = client.create_schema(enable_dynamic_field=True)
    for name in ("pk", "body"):
        schema.add_field(name, 21, max_length=100, is_primary=name == "pk")
    schema.add_field("vector", 101, dim=2)
    indexes = client.prepare_index_params()
    indexes.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(new_name, schema=schema, index_params=indexes)
    client.insert(new_name, [{"pk": "a", "body": "b", "vector": [1.0, 2.0]}])
    client.close()
    place = f"{lite.uri}#{new_name}"
    status, _, err = run("check", place, place)
    assert status == 1
    assert "which column of" in err and "['body']; pass --source-option text_key=NAME" in err
    option = ["--source-option", "text_key=body", "--target-option", "text_key=body"]
    assert run("check", place, place, *option)[0] == 0


def test_what_is_wrong_is_said(run, lite, tmp_path):
    there = f"{lite.uri}#no_such"
    for arguments, status, message in (
        (("copy", lite.uri, there), 2, f"{lite.uri}#notes"),
        (("copy", "localhost:19530#a", there), 2, "http://localhost:19530"),
        (("copy", f"{lite.uri}#a", f"{lite.uri}#"), 2, "names no collection"),
        (("copy", there, there, "--source-option", "tex_key=a"), 2, "did you mean 'text_key'?"),
        (("copy", there, there, "--source-option", "dim"), 2, "write NAME=VALUE"),
        (("copy", there, there, "--target-option", "token=x"), 2, "come from the environment"),
        (("copy", there, there), 1, "there is no collection 'no_such' at"),
        (("check", f"{tmp_path}/typo.db#a", there), 1, "there is no collection 'a' at"),
        ((), 2, "required"),
        (("copy",), 2, "required"),
    ):
        found, out, err = run(*arguments)
        assert (found, out) == (status, ""), err
        assert message in err
        assert "goes on" not in err
    assert not (tmp_path / "typo.db").exists()


def test_help_says_how_to_name_a_collection(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "./notes.db#notes" in out and "SOURCE_MILVUS_TOKEN" in out
    status, out, _ = run("copy", "--help")
    assert status == 0
    assert "--keep-extra" in out and "TARGET_MILVUS_TOKEN" in out


# Secrets


def test_credentials_in_an_address_are_refused_and_not_shown(run):
    for uri in ("http://root:s3cret@localhost:1#a", "http://root:s3cret@localhost:1"):
        status, out, err = run("copy", uri, "./x.db#a")
        assert status == 2
        assert "environment variable SOURCE_MILVUS_TOKEN" in err
        assert "s3cret" not in out + err
    status, _, err = run("copy", "./x.db#a", "http://root:s3/cret@localhost:1#a")
    assert status == 2
    assert "cret@" not in err


def test_each_side_has_its_token(monkeypatch):
    here = Place.parse("http://localhost:19530#a", "SOURCE")
    same = Place.parse("http://127.0.0.1:19530/db#b", "TARGET")
    other = Place.parse("http://localhost:19531#a", "TARGET")
    file = Place.parse("./notes.db#notes", "TARGET")
    assert tokens_of(here, other) == ["", ""]
    monkeypatch.setenv("MILVUS_TOKEN", "common")
    assert tokens_of(here) == ["common"]
    assert tokens_of(here, same) == ["common", "common"]
    assert tokens_of(here, file) == ["common", ""]
    with pytest.raises(ConfigurationError, match="SOURCE_MILVUS_TOKEN and TARGET_MILVUS_TOKEN"):
        tokens_of(here, other)
    monkeypatch.setenv("SOURCE_MILVUS_TOKEN", "ours")
    with pytest.raises(ConfigurationError, match="two servers"):
        tokens_of(here, other)
    monkeypatch.setenv("TARGET_MILVUS_TOKEN", "theirs")
    assert tokens_of(here, other) == ["ours", "theirs"]


def test_a_token_is_not_told_where_a_server_does_not_answer(run, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "root:s3cret")
    arguments = ("--source-option", "timeout=0.5")
    status, out, err = run("check", "http://127.0.0.1:1#a", "./x.db#a", *arguments)
    assert status == 1
    assert "127.0.0.1:1" in err
    assert "s3cret" not in out + err


# Stopping, and the progress


@pytest.mark.parametrize(
    ("error", "status", "first"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (UnreachableError("query", "gone"), 1, "error: query failed: gone"),
    ],
)
def test_a_copy_that_stops_says_how_to_go_on(
    run, source, lite, new_name, monkeypatch, error, status, first
):
    async def stop(source, target, *, on_progress, **arguments):
        on_progress(Progress("copy", 20, 60, 1.0))
        raise error

    monkeypatch.setattr(_command_line, "acopy_nodes", stop)
    copy_nodes(source, MilvusVectorStore(lite.uri, collection_name=new_name))
    there, here = f"{lite.uri}#{source.collection_name}", f"{lite.uri}#{new_name}"
    found, out, err = run("copy", there, here)
    assert (found, out) == (status, "")
    assert err.splitlines()[-2:] == [first, "What has arrived stays. The same command goes on."]
    assert "The same command without --replace goes on." in run("copy", there, here, "--replace")[2]


PROGRAM = """
import os, runpy, signal, sys
from llama_index_milvus_async.migration import _command_line

class Interrupted(_command_line.Display):
    def __call__(self, progress):
        super().__call__(progress)
        if progress.done:
            os.kill(os.getpid(), signal.SIGINT)

_command_line.Display = Interrupted
runpy.run_module("llama_index_milvus_async", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_what_can_be_resumed(run, source, lite, new_name, python_with_package):
    places = f"{lite.uri}#{source.collection_name}", f"{lite.uri}#{new_name}"
    ended = python_with_package.run(
        "-c", PROGRAM, "copy", *places, "--batch-size", "10", status=130
    )
    assert "Interrupted.\nWhat has arrived stays. The same command goes on." in ended.stderr
    assert "Traceback" not in ended.stderr
    assert run("copy", *places)[0] == 0
    assert run("check", *places)[0] == 0


def test_the_progress_is_a_line():
    progress = Progress("copy", 12_000, 100_000, 10.0, already=2_000)
    assert progress_line(progress) == (
        "copy: 12,000 of 100,000 (12%) nodes, 1,000 a second, 0:01:28 left"
    )
    assert progress_line(Progress("export", 5, None, 0.0)) == "export: 5 nodes"
    assert Progress("copy", 100, 100, 5.0).seconds_left == 0
    assert Progress("copy", 0, 100, 5.0).seconds_left is None


def test_rows_that_are_counted_one_by_one_are_told_together():
    told = []
    meter = Meter("check", 2_600, lambda progress: told.append(progress.done), already=100)
    for _ in range(1_500):
        meter.count()
    meter.add(1_000)
    for _ in range(999):
        meter.count()
    meter.add(0)
    assert told == [1_100, 2_600, 3_599]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_one_line_that_changes(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(_command_line.time, "monotonic", lambda: next(now))
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        display = Display(stream)
        for done in (10, 20, 30):
            display(Progress("copy", done, 30, 1.0))
        display.end()
        display.end()
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().count("\r") == 4
    # A file has few lines.
    assert file.getvalue() == "copy: 30 of 30 (100%) nodes, 30 a second, 0:00:00 left\n"


def test_a_reader_that_has_gone_stops_nothing():
    """As in `... check A B | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as closed:
        display = Display(closed)
        display(Progress("copy", 10, 30, 1.0))
        display.end()
        _command_line._print("copied", file=closed)
