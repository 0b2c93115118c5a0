"""Files of Milvus Lite 2 are opened by it, in this process, and their nodes move to Milvus Lite 3.

The code blocks are those of the migration page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import lite2

pytestmark = [pytest.mark.starts, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
WRITE = """
from llama_index.core.schema import TextNode
from llama_index_milvus_async import MilvusVectorStore
nodes = [
    TextNode(id_=str(n), text=f"text {n}", metadata={"n": n, "l": ["a"]}, embedding=[n, 1.0])
    for n in range(5)
]
with MilvusVectorStore(uri="./old.db", dim=2) as store:
    store.add(nodes)
    store.add(nodes[:2])
    store.delete_nodes(["4"])
"""
READ = """
from llama_index_milvus_async import MilvusVectorStore
with MilvusVectorStore(uri="./new.db") as store:
    found = store.iter_nodes(include_embeddings=True)
    print([(n.node_id, n.text, n.metadata, n.embedding) for n in found])
"""


def test_the_migration_page_moves_the_nodes_of_milvus_lite_2(tmp_path: Path) -> None:
    if reason := lite2.why_not():
        pytest.skip(reason)
    try:
        lite2.install()
    except ConnectionError as error:
        pytest.skip(str(error))
    page = (ROOT / "docs" / "migration.md").read_text()
    section = page.partition("### Coming from Milvus Lite 2")[2].partition("\n## ")[0]
    export, load = re.findall(r"```python\n(.*?)```", section, re.DOTALL)

    def run(program: str, *path: Path) -> str:
        places = os.pathsep.join(map(str, (*path, ROOT)))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": places},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(WRITE, lite2.FOLDER)
    assert (tmp_path / "old.db").is_file()
    run(export, lite2.FOLDER)
    run(load)
    assert (tmp_path / "new.db").is_dir()
    expected = [(str(n), f"text {n}", {"n": n, "l": ["a"]}, [float(n), 1.0]) for n in range(4)]
    assert run(READ).strip() == str(expected)
