"""What is around the package when it is imported, and what it imports itself, and when."""

from __future__ import annotations

import pytest

from tests.fixtures.stores import collection_name

IMPORT = """
import os, sys
assert "pymilvus" not in sys.modules
{before}
import llama_index_milvus_async as package
import pymilvus
assert os.environ.get("MILVUS_URI") == {uri!r}, os.environ.get("MILVUS_URI")
assert pymilvus.DefaultConfig.MILVUS_URI == {kept!r}, pymilvus.DefaultConfig.MILVUS_URI
assert issubclass(package.ServerError, pymilvus.MilvusException)
store = package.MilvusVectorStore(uri={path!r}, dim=4)
store.connect()
assert pymilvus.MilvusClient in type(store.client).__mro__
store.close()
"""
SERVER = "http://localhost:19530"

#: What comes before the import, by what is in `MILVUS_URI` then.
FAILED_BEFORE = """
try:
    import pymilvus
except Exception as error:
    assert "Illegal uri" in str(error)
else:
    raise AssertionError("pymilvus has learned to take it")
"""
DOTENV = """
import dotenv.main
dotenv.main.find_dotenv = lambda: ".env"  # it looks above the package that asks, not here
"""


@pytest.mark.parametrize(
    ("uri", "kept", "before"),
    [
        pytest.param("./x.db", "", "", id="a file"),
        pytest.param("http://host:99999", "", "", id="no port"),
        pytest.param(SERVER, SERVER, "", id="a server"),
        pytest.param("./x.db", "", FAILED_BEFORE, id="pymilvus has failed before"),
        pytest.param(SERVER, SERVER, "import pymilvus", id="pymilvus was there before"),
    ],
)
def test_the_package_is_imported_whatever_is_in_the_environment(
    python_with_model, tmp_path, uri, kept, before
):
    pytest.importorskip("milvus_lite")
    path = str(tmp_path / "milvus.db")
    code = IMPORT.format(before=before, uri=uri, kept=kept, path=path)
    python_with_model.run("-c", code, cwd=tmp_path, MILVUS_URI=uri)


def test_the_package_is_imported_whatever_is_in_a_file_dotenv(python_with_model, tmp_path):
    pytest.importorskip("milvus_lite")
    (tmp_path / ".env").write_text("MILVUS_URI=./x.db\nOTHER=seen\n")
    code = IMPORT.format(before=DOTENV, uri="./x.db", kept="", path=str(tmp_path / "milvus.db"))
    python_with_model.run("-c", code + "assert os.environ['OTHER'] == 'seen'", cwd=tmp_path)


FIRST_OPERATIONS = """
import asyncio, sys
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter, MetadataFilters, VectorStoreQuery, VectorStoreQueryMode
)
from llama_index_milvus_async import MilvusVectorStore

async def main():
    uri, token, name = sys.argv[1:]
    store = MilvusVectorStore(uri=uri, token=token, collection_name=name, dim=4)
    await store.aconnect()
    connected = set(sys.modules)
    filters = MetadataFilters(filters=[MetadataFilter(key="year", value=1999)])
    query = VectorStoreQuery(query_embedding=[1.0] * 4, similarity_top_k=2)
    node = TextNode(id_="a", text="text", embedding=[1.0] * 4, metadata={"year": 1999})
    await store.async_add([node])
    await store.aquery(query)
    await store.aquery(query, consistency_level="Strong")
    query.filters = filters
    await store.aquery(query)
    query.mode = VectorStoreQueryMode.MMR
    await store.aquery(query)
    await store.aquery_many([query, query])
    await store.aget_nodes(["a"])
    await store.adelete_nodes(filters=filters)
    await store.adelete("a")
    print(*sorted(set(sys.modules) - connected))
    store.client.drop_collection(name)
    await store.aclose()

asyncio.run(main())
"""


def test_nothing_is_imported_by_the_first_operations(python_with_package, engine):
    # An import would hold the event loop; scipy's took 80 ms of it.
    arguments = ["-c", FIRST_OPERATIONS, engine.uri, engine.token, collection_name()]
    assert python_with_package.start(*arguments).succeed() == [""]
