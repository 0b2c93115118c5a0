"""`aingest` and `ingest`: from documents to rows, in one collection for all tests."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence

import pytest
from llama_index.core import Document, Settings
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.ingestion import DocstoreStrategy
from llama_index.core.schema import BaseNode, MetadataMode, TextNode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataFilters

from llama_index_milvus_async import (
    CoalescingEmbedding,
    ConfigurationError,
    IngestionError,
    IngestResult,
    KindStats,
    MilvusVectorStore,
    NodeError,
    PartialWriteError,
    StoreClosedError,
    aingest,
    ingest,
)
from tests.embedding.models import BatchModel, vector
from tests.fixtures.stores import make_nodes

DIM = 3


class Lines(TransformComponent):
    """Splits documents into lines with random ids, as LlamaIndex's splitters do."""

    _threads: set[int] = PrivateAttr(default_factory=set)

    def __call__(self, nodes: Sequence[BaseNode], **kwargs) -> list[BaseNode]:
        self._threads.add(threading.get_ident())
        return [
            TextNode(text=line, relationships={"1": document.as_related_node_info()})
            for document in nodes
            for line in document.get_content(metadata_mode=MetadataMode.NONE).splitlines()
        ]


class Gated(MilvusVectorStore):
    """A store that waits before it writes, until the test says so."""

    _entered: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)
    _opened: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    async def async_add(self, nodes, **kwargs):
        self._entered.set()
        await asyncio.wait_for(self._opened.wait(), 60)
        return await super().async_add(nodes, **kwargs)


@pytest.fixture(scope="module")
def shared(make_shared_store) -> MilvusVectorStore:
    store = make_shared_store(dim=DIM)
    store.add(make_nodes(1, dim=DIM, prefix="there"))  # so that the collection is not empty
    return store


@pytest.fixture
def gated(shared):
    store = Gated(
        uri=shared.uri,
        token=shared.token,
        collection_name=shared.collection_name,
        consistency_level="Strong",
    )
    yield store
    store.close()


@pytest.fixture
def name(request) -> str:
    return request.node.name


def documents_of(name: str, count: int, lines: int = 2, version: int = 1) -> list[Document]:
    return [
        Document(
            id_=f"{name} {n}",
            text="\n".join(f"{name} {n}.{line} v{version}" for line in range(lines)),
        )
        for n in range(count)
    ]


async def texts_of(store: MilvusVectorStore, documents: Sequence[BaseNode]) -> list[str]:
    """What the store has of documents."""
    ids = [document.id_ for document in documents]
    nodes = [node async for node in store.aiter_nodes() if (node.ref_doc_id or node.id_) in ids]
    return sorted(node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes)


def lines_of(documents: Sequence[Document]) -> list[str]:
    return sorted(line for document in documents for line in document.text.splitlines())


async def asynchronous(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda items: (item for item in items),
        asynchronous,
        lambda items: [items[:3], items[3:]],
    ],
    ids=["list", "generator", "async generator", "lists"],
)
async def test_documents_become_rows(shared, name, make):
    documents = documents_of(name, 7)
    model = BatchModel()
    result = await aingest(shared, make(documents), [Lines(), model], batch_size=4)
    assert (result.documents, result.unchanged, result.nodes) == (7, 0, 14)
    assert result.seconds > 0
    assert await texts_of(shared, documents) == lines_of(documents)
    assert model._calls.on_loop == 0
    some = await shared.aget_nodes(filters=MetadataFilters(filters=[]))
    node = next(node for node in some if node.ref_doc_id == f"{name} 0")
    assert node.embedding == vector(2.0, node.get_content(metadata_mode=MetadataMode.EMBED))


@pytest.mark.engines("lite")
@pytest.mark.parametrize("inside", [False, True], ids=["no loop", "inside a loop"])
def test_the_blocking_twin(shared, name, inside):
    documents = documents_of(name, 3)

    def run() -> IngestResult:
        return ingest(shared, documents, [Lines(), CoalescingEmbedding(BatchModel())], batch_size=2)

    async def run_inside() -> IngestResult:
        return run()

    result = asyncio.run(run_inside()) if inside else run()
    assert (result.documents, result.nodes) == (3, 6)
    assert asyncio.run(texts_of(shared, documents)) == lines_of(documents)


@pytest.mark.engines("lite")
@pytest.mark.skipif(sys.platform == "win32", reason="uvloop")
def test_uvloop(shared, name):
    uvloop = pytest.importorskip("uvloop")
    documents = documents_of(name, 5)

    async def run() -> IngestResult:
        result = await aingest(
            shared, asynchronous(documents), [Lines(), BatchModel()], batch_size=2
        )
        assert await texts_of(shared, documents) == lines_of(documents)
        return result

    assert uvloop.run(run()).nodes == 10


async def test_a_document_replaces_its_earlier_version(shared, name):
    old, new = documents_of(name, 3, lines=3), documents_of(name, 2, lines=1, version=2)
    for documents in (old, old, new):
        await aingest(shared, documents, [Lines(), BatchModel()], batch_size=2)
    assert await texts_of(shared, old) == sorted([*lines_of(new), *lines_of(old[2:])])


@pytest.mark.parametrize("batch_size", [1, 10])
async def test_of_two_versions_in_a_source_the_last_is_kept(shared, name, batch_size):
    first, second = documents_of(name, 2, lines=3), documents_of(name, 2, lines=2, version=2)
    await aingest(shared, [*first, *second], [Lines(), BatchModel()], batch_size=batch_size)
    assert await texts_of(shared, first) == lines_of(second)


@pytest.mark.parametrize("batch_size", [1, 10])
async def test_of_two_nodes_with_an_id_the_last_is_kept(shared, name, batch_size):
    nodes = [TextNode(id_=name, text=f"text {n}", embedding=[0.0, 1.0, n]) for n in range(5)]
    await aingest(shared, nodes, [], batch_size=batch_size)
    [node] = await shared.aget_nodes([name])
    assert node.get_content() == "text 4"


async def test_nodes_leave_other_nodes_of_their_document_alone(shared, name):
    [document] = documents_of(name, 1)
    await aingest(shared, [document], [Lines(), BatchModel()])
    more = TextNode(text="a summary", relationships={"1": document.as_related_node_info()})
    await aingest(shared, [more], [BatchModel()])
    assert await texts_of(shared, [document]) == sorted(["a summary", *lines_of([document])])


async def test_a_first_load_deletes_nothing(shared, name):
    await shared.aclear()
    documents = documents_of(name, 5)

    def deletes():
        return shared.stats().get("delete", KindStats()).calls

    before = deletes()
    await aingest(shared, documents, [Lines(), BatchModel()], batch_size=2)
    assert deletes() == before
    assert await texts_of(shared, documents) == lines_of(documents)
    await aingest(shared, documents, [Lines(), BatchModel()], batch_size=2)
    assert deletes() > before
    assert await texts_of(shared, documents) == lines_of(documents)


async def test_what_the_docstore_knows_is_left_out(shared, name):
    docstore = SimpleDocumentStore()
    model = BatchModel()
    old, new = documents_of(name, 4), documents_of(name, 1, version=2)
    first = await aingest(shared, old, [Lines(), model], docstore=docstore, batch_size=3)
    again = await aingest(
        shared, [*new, *old[1:]], [Lines(), model], docstore=docstore, batch_size=3
    )
    assert (first.documents, first.unchanged, first.nodes) == (4, 0, 8)
    assert (again.documents, again.unchanged, again.nodes) == (4, 3, 2)
    assert sum(map(len, model._calls.lists)) == 10
    assert await texts_of(shared, old) == lines_of([*new, *old[1:]])
    # Where the collection was emptied, the docstore is no reason to leave anything out.
    await shared.aclear()
    once_more = await aingest(shared, old, [Lines(), model], docstore=docstore)
    assert (once_more.unchanged, once_more.nodes) == (0, 8)


async def test_the_other_strategies_of_a_docstore(shared, name, caplog):
    docstore = SimpleDocumentStore()
    old = documents_of(name, 4)

    async def run(documents, strategy):
        return await aingest(
            shared,
            documents,
            [Lines(), BatchModel()],
            docstore=docstore,
            docstore_strategy=strategy,
        )

    await run(old, DocstoreStrategy.UPSERTS)
    result = await run(old[:3], DocstoreStrategy.UPSERTS_AND_DELETE)
    assert (result.documents, result.unchanged, result.deleted) == (3, 3, 1)
    assert await texts_of(shared, old) == lines_of(old[:3])
    result = await run([], "upserts_and_delete")
    assert (result.documents, result.deleted) == (0, 0)
    assert "the source was empty" in caplog.text
    copies = [Document(id_=f"{name} copy", text=old[0].text), *documents_of(name, 1, version=2)]
    twin = Document(id_=f"{name} twin", text=copies[1].text)
    result = await run([*copies, twin], DocstoreStrategy.DUPLICATES_ONLY)
    assert (result.documents, result.unchanged) == (3, 2)
    found = await texts_of(shared, [*old, twin])
    assert found == sorted([*lines_of(old[:3]), *lines_of(copies[1:])])


@pytest.mark.engines("lite")
async def test_without_transformations_those_of_the_settings_are_used(shared, name, monkeypatch):
    monkeypatch.setattr(Settings, "_transformations", [Lines()])
    monkeypatch.setattr(Settings, "_embed_model", BatchModel())
    documents = documents_of(name, 2)
    assert (await aingest(shared, documents)).nodes == 4


@pytest.mark.engines("lite")
async def test_blocking_work_is_done_in_threads_and_what_awaits_on_the_loop(shared, name):
    class Awaited(TransformComponent):
        _threads: set[int] = PrivateAttr(default_factory=set)

        def __call__(self, nodes, **kwargs):
            raise AssertionError("has a coroutine")

        async def acall(self, nodes, **kwargs):
            self._threads.add(threading.get_ident())
            return nodes

    lines, awaited, model = Lines(), Awaited(), BatchModel()
    read_in: set[int] = set()

    def source():
        for document in documents_of(name, 3):
            read_in.add(threading.get_ident())
            yield document

    await aingest(shared, source(), [lines, awaited, model], batch_size=1)
    here = {threading.get_ident()}
    assert awaited._threads == here
    for threads in (lines._threads, read_in, model._calls.threads):
        assert len(threads) == 1
        assert threads != here


@pytest.mark.engines("lite")
async def test_the_next_batch_is_embedded_while_one_is_written(gated, name):
    model = BatchModel()
    task = asyncio.create_task(aingest(gated, documents_of(name, 8, 1), [model], batch_size=1))
    for _ in range(3):  # nothing is written meanwhile
        await asyncio.wait_for(model._calls.until_entered(), 60)
    gated._opened.set()
    assert (await task).nodes == 8


@pytest.mark.engines("lite")
async def test_a_slow_stage_stops_those_before_it(shared, name):
    read = written = lead = 0

    def source():
        nonlocal read, lead
        for document in documents_of(name, 60, 1):
            read += 1
            lead = max(lead, read - written)
            yield document

    async def note(progress: IngestResult) -> None:
        nonlocal written
        written = progress.documents

    await aingest(shared, source(), [BatchModel()], batch_size=2, max_in_flight=1, on_progress=note)
    # In batches: being read, chosen, split and waiting, embedded and waiting, written.
    assert (read, written) == (60, 60)
    assert lead <= 2 * 10


@pytest.mark.engines("lite")
@pytest.mark.parametrize("asynchronously", [False, True], ids=["plain", "async"])
async def test_progress_is_told_after_each_batch(shared, name, asynchronously):
    told: list[IngestResult] = []

    async def anote(progress: IngestResult) -> None:
        told.append(progress)

    result = await aingest(
        shared,
        documents_of(name, 5),
        [Lines(), BatchModel()],
        batch_size=2,
        on_progress=anote if asynchronously else told.append,
        show_progress=True,
    )
    assert [each.nodes for each in told] == [2, 4, 6, 8, 10]
    assert [each.documents for each in told] == [0, 2, 2, 4, 5]
    assert result.nodes == told[-1].nodes


def failing(documents, after):
    yield from documents[:after]
    raise OSError("the disk is gone")


@pytest.mark.engines("lite")
async def test_a_source_that_fails_leaves_what_was_written(shared, name):
    documents = documents_of(name, 9)
    with pytest.raises(IngestionError, match="stopped: OSError: the disk is gone") as raised:
        await aingest(shared, failing(documents, 5), [Lines(), BatchModel()], batch_size=2)
    error = raised.value
    assert isinstance(error.__cause__, OSError)
    assert (error.documents, error.nodes, error.not_written) == (5, 10, [])
    assert await texts_of(shared, documents) == lines_of(documents[:5])


@pytest.mark.engines("lite")
async def test_a_model_that_fails_leaves_what_was_written(shared, name):
    documents = documents_of(name, 6)
    documents[4].text_resource.text = "one\nbad two\nthree"
    docstore = SimpleDocumentStore()
    with pytest.raises(IngestionError, match="ValueError: cannot embed"):
        await aingest(shared, documents, [Lines(), BatchModel()], batch_size=1, docstore=docstore)
    assert set(docstore.get_all_document_hashes().values()) == {d.id_ for d in documents[:4]}
    # The next run goes on where this one stopped, and what was written in part is not there twice.
    documents[4].text_resource.text = "one\ntwo\nthree"
    result = await aingest(
        shared, documents, [Lines(), BatchModel()], batch_size=1, docstore=docstore
    )
    assert (result.documents, result.unchanged) == (6, 4)
    assert await texts_of(shared, documents) == lines_of(documents)


async def test_a_write_that_fails_says_what_was_written(shared, name):
    nodes = [TextNode(id_=f"{name} {n}", text="x", embedding=[0.0, 1.0, n]) for n in range(10)]
    nodes[5].embedding = [1.0]
    with pytest.raises(IngestionError, match=r"stopped: node .*dimension") as raised:
        await aingest(shared, nodes, [], batch_size=2, max_in_flight=1)
    error = raised.value
    assert isinstance(error.__cause__, NodeError)
    assert "Nothing was written" not in str(error)
    assert (error.documents, error.nodes, error.written) == (4, 4, [])
    assert error.not_written[:2] == [f"{name} 4", f"{name} 5"]
    there = {node.node_id for node in await shared.aget_nodes([node.node_id for node in nodes])}
    assert there == {f"{name} {n}" for n in range(4)}


@pytest.mark.engines("lite")
async def test_a_batch_of_which_a_part_was_written_is_told_by_id(gated, name, monkeypatch):
    async def add(self, nodes, **kwargs):
        ids = [node.node_id for node in nodes]
        if ids[0].endswith(" 4"):
            raise PartialWriteError("insert", "gone", 0, ids[:1], ids[1:2], ids[2:])
        return await MilvusVectorStore.async_add(self, nodes, **kwargs)

    monkeypatch.setattr(Gated, "async_add", add)
    nodes = [TextNode(id_=f"{name} {n}", text="x", embedding=[0.0, 1.0, n]) for n in range(8)]
    with pytest.raises(IngestionError) as raised:
        await aingest(gated, nodes, [], batch_size=4)
    error = raised.value
    assert (error.documents, error.nodes) == (4, 5)
    assert error.written == [f"{name} 4"]
    assert error.not_written == [f"{name} 5"]
    assert error.unknown == [f"{name} 6", f"{name} 7"]


@pytest.mark.engines("lite")
async def test_one_that_is_cancelled_leaves_nothing_running(gated, name):
    closed: list[bool] = []

    def source():
        try:
            yield from documents_of(name, 1_000, 1)
        finally:
            closed.append(True)

    model = BatchModel()
    await gated.aconnect()
    before = asyncio.all_tasks()
    task = asyncio.create_task(aingest(gated, source(), [Lines(), model], batch_size=1))
    await asyncio.wait_for(gated._entered.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [True]
    assert asyncio.all_tasks() <= before
    calls = len(model._calls.lists)
    gated._opened.set()
    assert await texts_of(gated, documents_of(name, 1_000, 1)) == []
    assert len(model._calls.lists) == calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"store": "uri"}, "store is 'uri', a value of type str; it must be a MilvusVectorStore"),
        ({"source": "folder"}, "source is 'folder', .* a list, a generator or an async generator"),
        ({"source": None}, "source is None"),
        (
            {"transformations": BatchModel()},
            "transformations is a value of type BatchModel; it mus",
        ),
        ({"transformations": [len]}, r"transformations\[0\] is a value of type builtin"),
        ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
        ({"max_in_flight": True}, "max_in_flight is True; it must be an integer"),
        ({"docstore": {}}, "docstore is a value of type dict; it must be a document store"),
        (
            {"docstore_strategy": "upsert"},
            "docstore_strategy is 'upsert'; .* did you mean 'upserts'",
        ),
        ({"on_progress": 1}, "on_progress is 1, a value of type int; it must be a function"),
        ({"show_progress": "no"}, "show_progress is 'no'; it must be True or False"),
        ({"milvus_partition_name": 1}, "milvus_partition_name is 1; it must be the name of a"),
        ({"timeout": 0}, "timeout is 0; it must be a number of seconds above 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_what_is_not_allowed_is_named_before_anything_is_read(arguments, message):
    store = MilvusVectorStore(uri="http://127.0.0.1:1", dim=DIM)
    given = {"store": store, "source": failing([], 0), "transformations": [], **arguments}
    with pytest.raises(ConfigurationError, match=message):
        await aingest(**given)


async def test_a_store_that_is_closed_reads_nothing():
    store = MilvusVectorStore(uri="http://127.0.0.1:1", dim=DIM)
    await store.aclose()
    with pytest.raises(StoreClosedError):
        await aingest(store, failing([], 0), [])
