"""Milvus Lite in this process: its folder removed, or left by a crash, and its logins."""

import shutil

import pytest
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import CollectionError
from tests.fixtures.stores import DIM, make_nodes

pytestmark = pytest.mark.starts
pytest.importorskip("milvus_lite")


def query():
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=10)


def new_store(path, **kwargs):
    return MilvusVectorStore(**{"uri": path, "dim": DIM, "timeout": 10, **kwargs})


async def ids_in(store):
    everything = await store.get_nodes(filters=MetadataFilters(filters=[]))
    return sorted(node.node_id for node in everything)


# Removed


@pytest.mark.parametrize("earlier", ["open", "closed"])
async def test_the_next_store_starts_afresh(lite_path, coloured, earlier):
    old, new = coloured(new_store(lite_path)), coloured(new_store(lite_path))
    await old.add(make_nodes(2, prefix="old"))
    if earlier == "closed":
        await old.close()
    shutil.rmtree(lite_path)
    assert (await new.query(query())).ids == []
    await new.add(make_nodes(1, prefix="new"))
    assert await ids_in(new) == ["new-0"]
    assert new.store.client.get(new.store.collection_name, ["new-0"])
    await new.close()
    await old.close()


async def test_a_store_of_a_removed_folder_acknowledges_nothing(lite_path, coloured):
    store = coloured(new_store(lite_path))
    await store.add(make_nodes(2, prefix="old"))
    client = store.store.client
    shutil.rmtree(lite_path)
    for operation in (
        lambda: store.add(make_nodes(1, prefix="lost")),
        lambda: store.delete_nodes(["old-0"]),
        lambda: store.get_nodes(["old-0"]),
        lambda: store.query(query()),
    ):
        with pytest.raises(CollectionError, match=r"call refresh\(\) to create it again"):
            await operation()
    await store.refresh()
    assert store.store.client is not client
    await store.add(make_nodes(1, prefix="new"))
    assert await ids_in(store) == ["new-0"]
    await store.close()


SURVIVE = """
import asyncio, shutil, sys
from llama_index.core.schema import TextNode
from llama_index_milvus_async import MilvusVectorStore

path, removed = sys.argv[1:]
def node(name):
    return [TextNode(id_=name, text="text", embedding=[1.0] * 8)]

async def main():
    old = MilvusVectorStore(uri=path, dim=8)
    await old.async_add(node("old"))
    if removed == "made anew":
        shutil.rmtree(path)
        blocking = MilvusVectorStore(uri=path, dim=8)
        blocking.add(node("blocking"))
    else:
        shutil.move(path, path + ".moved")
    new = MilvusVectorStore(uri=path, dim=8)
    await new.async_add(node("new"))

asyncio.run(main())
"""


@pytest.mark.parametrize("removed", ["made anew", "moved away"])
def test_what_is_written_after_a_removal_survives_the_process(
    python_with_package, lite_path, removed
):
    python_with_package.run("-c", SURVIVE, lite_path, removed)
    store = new_store(lite_path)
    found = store.get_nodes(filters=MetadataFilters(filters=[]))
    expected = {"new", "blocking"} if removed == "made anew" else {"new"}
    assert {node.node_id for node in found} == expected
    store.close()


# Logins


async def test_a_token_that_nobody_checks_is_told_once(lite_path, coloured, caplog):
    for name in ("a", "b"):
        store = coloured(new_store(lite_path, token="root:s3cret", collection_name=name))
        await store.connect()
        await store.close()
    [told] = [text for text in caplog.messages if "token or password" in text]
    assert lite_path in told
    assert "has no logins" in told
    assert "s3cret" not in told


# Left by a crash


@pytest.mark.parametrize("litter", [[], ["schema.json.tmp"]], ids=["empty", "half a schema"])
async def test_a_folder_without_a_schema_is_told_and_can_be_overwritten(
    tmp_path, lite_path, coloured, litter
):
    folder = tmp_path / "milvus.db" / "collections" / "left"
    folder.mkdir(parents=True)
    for name in litter:
        (folder / name).write_text("{")
    store = coloured(new_store(lite_path, collection_name="left", timeout=None))
    with pytest.raises(CollectionError) as caught:
        await store.connect()
    assert str(folder) in str(caught.value)
    assert "Pass overwrite=True" in str(caught.value)
    assert folder.exists()
    await store.close()
    store = coloured(new_store(lite_path, collection_name="left", overwrite=True))
    await store.add(make_nodes(1))
    assert await ids_in(store) == ["node-0"]
    await store.close()
