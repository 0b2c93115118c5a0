"""The commands of the documentation run, one page after the other, as they are written there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.migration._command_line import main
from tests.fixtures.stores import make_nodes

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = re.compile(r"^python -m llama_index_milvus_async (.+)$", re.MULTILINE)
SERVER = "http://localhost:19530"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a file of Milvus Lite, as the pages have it."""
    monkeypatch.chdir(tmp_path)
    with MilvusVectorStore("./notes.db", collection_name="notes") as store:
        store.add(make_nodes(5))
    return tmp_path


@pytest.mark.parametrize("page", ["backup.md", "moving.md", "parquet.md"])
def test_its_commands_run(page, home, capsys):
    commands = COMMAND.findall((DOCS / page).read_text(encoding="utf-8"))
    assert commands
    for command in commands:
        arguments = [word.replace(SERVER, "./server.db") for word in shlex.split(command)]
        assert main(arguments) == 0, (command, capsys.readouterr())
