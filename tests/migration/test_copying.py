"""`copy_nodes`: the nodes of the source, vectors included, and no others; or an error before."""

from __future__ import annotations

import pytest
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import (
    CollectionError,
    ConfigurationError,
    MigrationError,
)
from llama_index_milvus_async.migration import acheck_nodes, acopy_nodes, copy_nodes
from llama_index_milvus_async.migration._ids import warn_of_shared_ids
from tests.fixtures.stores import DIM, collection_name, make_nodes
from tests.migration.conftest import NODES

ENGLISH = MetadataFilters(filters=[MetadataFilter(key="language", value="en")])


@pytest.fixture
def target(make_lite_store):
    """A collection that does not exist yet."""
    return make_lite_store()


async def test_a_copy_has_what_the_source_has(source, engine, make_store, make_lite_store):
    target = make_store(dim=None)
    seen = []
    report = await acopy_nodes(source, target, batch_size=25, on_progress=seen.append)
    assert (report.copied, report.already_there, report.extra) == (60, 0, 0)
    assert [progress.done for progress in seen] == [0, 25, 50, 60]
    assert {progress.total for progress in seen} == {60}
    checked = await acheck_nodes(source, target)
    assert checked.is_equal, checked
    assert checked.source_count == checked.target_count == 60

    # It goes on where something is missing, and then there is nothing to do.
    await target.adelete_nodes([NODES[3].node_id, NODES[40].node_id])
    seen.clear()
    report = await acopy_nodes(source, target, on_progress=seen.append)
    assert (report.copied, report.already_there) == (2, 58)
    told = [(progress.operation, progress.done) for progress in seen]
    assert told == [("compare", 60), ("copy", 58), ("copy", 60)]
    assert (await acopy_nodes(source, target)).copied == 0
    assert (await acheck_nodes(source, target)).is_equal

    back = make_lite_store()
    assert (await acopy_nodes(target, back)).copied == 60
    assert (await acheck_nodes(source, back)).is_equal


def test_a_new_target_has_dimension_and_metric_of_the_source(source, target):
    copy_nodes(source, target)
    index = target.client.describe_index(target.collection_name, "embedding")
    assert index["metric_type"] == "COSINE"


async def test_the_blocking_call_works_inside_of_a_loop(source, target):
    assert copy_nodes(source, target, filters=ENGLISH).copied == 20


def test_some_nodes_are_copied(source, target):
    copy_nodes(source, target, filters=ENGLISH)
    assert set(target.iter_ids()) == {node.node_id for node in NODES[::3]}
    assert copy_nodes(source, target).copied == 40


def test_what_is_there_is_left_alone_or_replaced(source, target):
    copy_nodes(source, target)
    changed = NODES[0].model_copy(update={"text": "changed"})
    target.add([changed])
    copy_nodes(source, target)
    assert target.get_nodes([changed.node_id])[0].text == "changed"
    assert copy_nodes(source, target, resume=False).copied == 60
    assert target.get_nodes([changed.node_id])[0].text == NODES[0].text


def test_nodes_of_others_in_the_target_are_refused(source, make_lite_store):
    target = make_lite_store(similarity_metric="COSINE")
    target.add(make_nodes(1, prefix="other"))
    with pytest.raises(CollectionError, match=r"has 1 node .*'other-0'.*Nothing was written"):
        copy_nodes(source, target)
    assert target.count() == 1
    assert copy_nodes(source, target, keep_extra=True).extra == 1
    assert target.count() == 61


# Changing nodes on the way


def shortened(node):
    if node.metadata["language"] == "en":
        return None
    node.text = node.text[:4]
    return node


async def shortened_later(node):
    return shortened(node)


@pytest.mark.parametrize("transform", [shortened, shortened_later])
def test_nodes_are_changed_on_the_way(source, target, transform):
    report = copy_nodes(source, target, transform=transform, batch_size=25)
    assert (report.copied, report.left_out) == (40, 20)
    assert {node.text for node in target.iter_nodes()} == {"text"}
    assert source.get_nodes([NODES[1].node_id])[0].text == NODES[1].text
    # Again, with rows of before.
    target.delete_nodes([NODES[1].node_id])
    assert copy_nodes(source, target, transform=transform).copied == 40
    assert target.count() == 40


def test_what_is_inserted_plainly_is_not_doubled(source, make_lite_store):
    target = make_lite_store(upsert_mode=False)
    copy_nodes(source, target, transform=shortened)
    target.delete_nodes([NODES[1].node_id])
    report = copy_nodes(source, target, transform=shortened)
    assert (report.copied, report.already_there) == (1, 39)
    with pytest.raises(ConfigurationError, match="upsert_mode"):
        copy_nodes(source, target, resume=False)


def test_several_nodes_of_one_id_are_noticed(source, target):
    def same(node):
        node.id_ = f"{int(node.node_id[5:]) // 2}"
        return node

    with pytest.raises(MigrationError, match=r"60 nodes were written.* has 30.*the same id"):
        copy_nodes(source, target, transform=same)


def test_what_is_beside_changed_nodes_is_noticed(source, target):
    target.add(make_nodes(1, prefix="other"))
    with pytest.raises(MigrationError, match="1 node beside the 40 of this copy"):
        copy_nodes(source, target, transform=shortened)
    assert copy_nodes(source, target, transform=shortened, keep_extra=True).extra == 1


# What is refused before anything is written


def refuse(error, match, source, target, **arguments):
    with pytest.raises(error, match=match):
        copy_nodes(source, target, **arguments)


def test_arguments_are_checked(source, target):
    refuse(ConfigurationError, "source is 'notes'", "notes", target)
    refuse(ConfigurationError, "target is None", source, None)
    refuse(ConfigurationError, "batch_size is 0", source, target, batch_size=0)
    refuse(ConfigurationError, "resume", source, target, resume="x.json")
    refuse(ConfigurationError, "keep_extra", source, target, keep_extra=1)
    refuse(ConfigurationError, "on_progress is 3", source, target, on_progress=3)
    refuse(ConfigurationError, "transform is 'upper'", source, target, transform="upper")
    refuse(ConfigurationError, "transform returned 'x'", source, target, transform=lambda _: "x")
    assert target.count() == 0


def test_a_missing_source_is_not_created(make_lite_store, target, tmp_path):
    missing = make_lite_store(dim=DIM)
    refuse(CollectionError, f"no collection '{missing.collection_name}'", missing, target)
    assert not target.client.has_collection(missing.collection_name)
    path = tmp_path / "typo.db"
    refuse(
        CollectionError,
        "no collection 'notes' at .*typo.db",
        missing.model_copy(update={"uri": str(path), "collection_name": "notes"}),
        target,
    )
    assert not path.exists()


def test_a_source_that_would_be_dropped_is_not(source, target):
    dropping = source.model_copy(update={"overwrite": True})
    refuse(ConfigurationError, "source was built with overwrite=True", dropping, target)
    assert source.count() == 60


def test_a_collection_is_not_copied_to_itself(source, make_lite_store):
    alias = collection_name("alias")
    source.client.create_alias(source.collection_name, alias)
    refuse(ConfigurationError, "the same collection", source, source)
    refuse(
        ConfigurationError, "the same collection", source, make_lite_store(collection_name=alias)
    )
    source.client.drop_alias(alias)


def test_vectors_that_do_not_fit_are_refused(source, make_lite_store):
    refuse(CollectionError, "8 dimensions .* 4 in the target", source, make_lite_store(dim=4))
    ip = make_lite_store(dim=DIM)
    ip.connect()
    refuse(CollectionError, "by COSINE, and the target .* by IP", source, ip)
    meant = ip.model_copy(update={"similarity_metric": "IP"})
    assert copy_nodes(source, meant).copied == 60
    meant.close()


async def test_rows_that_share_an_id_are_told(monkeypatch, caplog):
    """On a server, where an id may be in several partitions."""
    counts = iter([12, 10])
    store = MilvusVectorStore(uri="http://localhost:19530", dim=2)

    async def count(self, filters=None, **arguments):
        return next(counts)

    monkeypatch.setattr(MilvusVectorStore, "acount", count)
    await warn_of_shared_ids(store, None, 12, 10)
    assert "has 12 rows, and 10 ids" in caplog.text
    caplog.clear()
    await warn_of_shared_ids(store, None, 12, 10)  # two were deleted meanwhile
    await warn_of_shared_ids(store, None, 10, 10)
    assert not caplog.text
