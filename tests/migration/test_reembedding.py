"""Another embedding model: the right vectors at the end, and right answers all the time."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import MilvusException

from llama_index_milvus_async import CollectionError, ConfigurationError, EncoderError
from llama_index_milvus_async.errors import MigrationError
from llama_index_milvus_async.migration import (
    _models,
    acheck_nodes,
    acurrent_collection,
    areembed,
    current_collection,
    reembed,
)
from llama_index_milvus_async.migration._command_line import main
from tests.fixtures import words
from tests.fixtures.stores import collection_name
from tests.fixtures.words import WordEmbedding

DIM = 16
OLD = WordEmbedding(dim=DIM)


class OtherEmbedding(WordEmbedding):
    """Another model of the same dimension: vectors of the one mean nothing to the other."""

    def _embed(self, text):
        return super()._embed(f"other {text} words")[::-1]


NEW = OtherEmbedding(dim=DIM)


def text(number, version=0):
    return f"passage {number} version {version}"


def notes(numbers, model=OLD, version=0):
    made = [
        TextNode(id_=f"note-{n:03}", text=text(n, version), metadata={"number": n}) for n in numbers
    ]
    for node in made:
        node.embedding = model.get_text_embedding(node.get_content("embed"))
    return made


@pytest.fixture
def make_notes(make_lite_store):
    """Makes collections with notes."""

    def make(numbers=range(10), **arguments):
        given = {"dim": DIM, "similarity_metric": "COSINE", **arguments}
        store = make_lite_store(**given)
        store.add(notes(numbers))
        return store

    return make


@pytest.fixture
def alias(lite):
    """The name of an alias, which is removed at the end."""
    made = []

    def point(store):
        made.append((store, collection_name("alias")))
        store.client.create_alias(store.collection_name, made[-1][1])
        return made[-1][1]

    yield point
    for store, name in made:
        with suppress(MilvusException):
            store.client.drop_alias(name)


def right_vectors(store, model=NEW):
    """Whether every node has the vector that a model makes of its text."""
    return all(
        node.embedding == pytest.approx(model.get_text_embedding(node.get_content("embed")))
        for node in store.iter_nodes(include_embeddings=True)
    )


@pytest.mark.parametrize("engine_name", ["lite", "standalone"])
async def test_questions_and_writes_go_on(engine_name, get_engine, make_lite_store):
    """Both models have the same dimension, so that nothing but care keeps them apart."""
    engine = get_engine(engine_name)
    place = {"uri": engine.uri, "token": engine.token, "consistency_level": "Strong"}
    old = make_lite_store(dim=DIM, similarity_metric="COSINE", **place)
    new = make_lite_store(dim=DIM, similarity_metric="COSINE", **place)
    service = make_lite_store(collection_name=collection_name("alias"), **place)
    await old.async_add(notes(range(40)))
    old.client.create_alias(old.collection_name, service.collection_name)
    served = {old.collection_name: (old, OLD), new.collection_name: (new, NEW)}
    asked = dict.fromkeys(served, 0)
    writing, done, answered = asyncio.Lock(), asyncio.Event(), asyncio.Event()
    written = dict.fromkeys(range(40), 0)  # the version of each note

    async def ask():
        while not done.is_set() or not asked[new.collection_name]:
            name = await acurrent_collection(service)
            store, model = served[name]
            [note] = notes([1], model)  # which nobody changes
            query = VectorStoreQuery(query_embedding=note.embedding, similarity_top_k=1)
            found = await store.aquery(query)
            assert found.ids == ["note-001"]
            assert found.similarities[0] > 0.99
            asked[name] += 1
            answered.set()
        answered.set()

    async def write():
        number = 100
        while not done.is_set():
            async with writing:
                store, model = served[await acurrent_collection(service)]
                await store.async_add(notes([number], model))
                await store.async_add(notes([number % 30 + 5], model, version=number))
                await store.adelete_nodes([f"note-{number % 3 + 2:03}"])
            written.update({number: 0, number % 30 + 5: number})
            written.pop(number % 3 + 2, None)
            number += 1
            if not done.is_set():
                answered.clear()
                await answered.wait()

    async def move():
        report = await areembed(
            old,
            NEW,
            into=new,
            alias=service.collection_name,
            batch_size=16,
            pause_writers=writing,
        )
        done.set()
        return report

    *_, report = await asyncio.gather(ask(), write(), move())
    assert (report.collection, report.previous) == (new.collection_name, old.collection_name)
    assert all(asked.values()), asked
    assert current_collection(service) == new.collection_name
    found = {node.metadata["number"]: node.text for node in new.iter_nodes()}
    assert found == {number: text(number, version) for number, version in written.items()}
    assert right_vectors(new)
    assert right_vectors(old, OLD)  # it is kept
    old.client.drop_alias(service.collection_name)


async def test_what_is_written_meanwhile_is_caught_up(make_notes, make_lite_store):
    old, new = make_notes(range(20)), make_lite_store(dim=DIM)
    model = OtherEmbedding(dim=DIM)

    async def change(progress):
        if progress.operation != "reembed" or progress.done != 5:
            return
        old.delete_nodes(["note-001", "note-015"])
        old.add(notes([0, 12], version=1))
        old.add(notes([30]))

    changes = []

    def on_progress(progress):
        changes.append(asyncio.ensure_future(change(progress)))

    report = await areembed(old, model, into=new, batch_size=5, on_progress=on_progress)
    await asyncio.gather(*changes)
    assert report.removed == 1
    assert (await acheck_nodes(old, new, vectors=False)).is_equal
    assert right_vectors(new)


def test_it_goes_on_where_it_was_interrupted(make_notes, make_lite_store):
    old = make_notes()
    into = make_lite_store().collection_name

    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reembed(old, NEW, into=into, batch_size=4, on_progress=stop)
    old.delete_nodes(["note-000"])
    with pytest.raises(CollectionError, match=r"has 1 nodes? that the old one does not have.*000"):
        reembed(old, NEW, into=into, batch_size=4)
    report = reembed(old, NEW, into=into, batch_size=4, remove_extra=True)
    assert (report.embedded, report.already_there, report.removed) == (6, 3, 1)
    new = make_lite_store(collection_name=into)
    assert right_vectors(new)
    assert new.count() == 9
    assert new._ready.get().indexes["embedding"].metric == "COSINE"


def test_an_alias_is_made_and_switched(make_notes, make_lite_store, alias):
    old = make_notes()
    name = alias(old)
    served = make_lite_store(collection_name=name)
    assert current_collection(served) == old.collection_name
    second, third = (make_lite_store().collection_name for _ in range(2))
    report = reembed(served, NEW, into=second, alias=name, pause_writers=threading.Lock())
    assert (report.alias, report.previous) == (name, old.collection_name)
    assert current_collection(served) == second
    # Again there is nothing to do, by whichever name; unless it is another model.
    for store in (served, old):
        assert reembed(store, NEW, into=second, alias=name).embedded == 0
        with pytest.raises(ConfigurationError, match=r"are not those of embed_model"):
            reembed(store, OLD, into=second, alias=name)
    assert reembed(served, WordEmbedding(dim=4), into=third, alias=name).embedded == 10
    assert current_collection(served) == third
    assert {old.count(), make_lite_store(collection_name=second).count()} == {10}


def test_another_layout_and_vectors_of_others(make_notes, make_lite_store):
    fields = {"title": {"dim": 2}}
    old = make_lite_store(dim=DIM, dense_fields=fields)
    nodes = notes(range(3))
    for number, node in enumerate(nodes):
        node.metadata["title"] = [float(number), 1.0]
    old.add(nodes)
    settings = {"enable_sparse": True, "similarity_metric": "L2", "overwrite": True}
    new = make_lite_store(dense_fields=fields, **settings)
    assert reembed(old, WordEmbedding(dim=4), into=new, batch_size=2).embedded == 3
    found = list(new.iter_nodes(include_embeddings=True))
    assert [node.metadata["title"] for node in found] == [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
    plain = notes(range(3), WordEmbedding(dim=4))
    assert [node.embedding for node in found] == [pytest.approx(node.embedding) for node in plain]
    query = VectorStoreQuery(query_str="2", mode="text_search", similarity_top_k=1)
    assert new.query(query).ids == ["note-002"]


def test_a_collection_of_another_model_is_refused(make_notes):
    old, other = make_notes(), make_notes()
    with pytest.raises(ConfigurationError, match="are not those of embed_model"):
        reembed(old, NEW, into=other.collection_name)
    assert right_vectors(other, OLD)
    strangers = make_notes(range(50, 53))
    with pytest.raises(CollectionError, match=r"has 3 nodes that the old one does not have"):
        reembed(old, OLD, into=strangers.collection_name)
    assert strangers.count() == 3


class BrokenEmbedding(WordEmbedding):
    async def _aget_text_embeddings(self, texts):
        return []


def test_bad_input_is_refused_before_anything_is_made(make_notes, make_lite_store, alias):
    old, other = make_notes(), make_notes(range(2))
    name, elsewhere = alias(old), alias(other)
    new = make_lite_store(dim=4)
    into = new.collection_name
    cases = [
        ({"into": 7}, "into is 7"),
        ({"into": "1-b"}, "into is '1-b'; Milvus takes letters"),
        ({"into": old.collection_name}, "is the old collection"),
        ({"into": name}, "is an alias of"),
        ({"into": new}, "has 4 dimensions in 'embedding', and embed_model makes 16"),
        ({"into": new.model_copy(update={"upsert_mode": False})}, "upsert_mode=True"),
        ({"alias": other.collection_name}, "is the name of a collection"),
        ({"alias": elsewhere}, "neither to the old one"),
        ({"alias": into}, "is the name of the new collection"),
        ({"alias": "a b"}, "alias is 'a b'"),
        ({"alias": 7}, "alias is 7"),
        ({"embed_model": "openai"}, "must be an embedding model of LlamaIndex"),
        ({"pause_writers": asyncio.Lock()}, r"areembed\(\) takes an asynchronous one"),
        ({"store": None}, "store is None"),
    ]
    for changed, message in cases:
        arguments = {"store": old, "embed_model": NEW, "into": into, **changed}
        with pytest.raises(ConfigurationError, match=message):
            reembed(**arguments)
    with pytest.raises(EncoderError, match="0 embeddings for 1 texts"):
        reembed(old, BrokenEmbedding(), into=into)
    blank = make_lite_store(dim=DIM)
    blank.add([TextNode(id_="a", text=" ", embedding=[1.0] * DIM)])
    with pytest.raises(CollectionError, match="has no texts to embed"):
        reembed(blank, NEW, into=into)
    missing = make_lite_store()
    with pytest.raises(CollectionError, match="there is no collection"):
        reembed(missing, NEW, into=into)
    with pytest.raises(CollectionError, match="neither a collection nor an alias"):
        current_collection(missing)
    assert not old.client.has_collection(into)


async def test_writers_who_are_not_paused_are_told(make_notes, make_lite_store, alias):
    old, new = make_notes(), make_lite_store()
    name = alias(old)
    number = iter(range(100, 200))

    class Deaf(OtherEmbedding):
        async def _aget_text_embeddings(self, texts):
            old.add(notes([next(number)]))
            return await super()._aget_text_embeddings(texts)

    with pytest.raises(MigrationError, match="was written to although pause_writers"):
        await areembed(old, Deaf(dim=DIM), into=new, alias=name, pause_writers=asyncio.Lock())
    assert current_collection(make_lite_store(collection_name=name)) == old.collection_name


def test_the_same_from_a_shell(make_notes, make_lite_store, alias, capsys, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "")
    old = make_notes(index_config={"index_type": "HNSW", "M": 8, "efConstruction": 40})
    name, new = alias(old), make_lite_store()
    command = ["reembed", f"{old.uri}#{name}", "--into", new.collection_name, "--alias", name]
    model = "tests.fixtures.words:WordEmbedding"
    assert main([*command, "--embed-model", model, "--embed-option", "dim=4"]) == 0
    printed = capsys.readouterr().out
    assert "embedded 10 nodes" in printed
    assert f"{name} points to {new.collection_name} now" in printed
    assert new.connect()._ready.get().indexes["embedding"].type == "HNSW"
    for wrong in ("words", "tests.fixtures.words:Nothing", "tests.nowhere:Model", "json:dumps"):
        assert main([*command, "--embed-model", wrong]) == 2
        assert "embed-model" in capsys.readouterr().err
    assert main([*command, "--embed-model", model, "--embed-option", "dim=s3cret"]) == 2
    printed = capsys.readouterr().err
    assert "(dim: Input should be a valid integer" in printed
    assert "s3cret" not in printed


def test_a_model_that_fails_is_told_in_a_sentence(make_notes, make_lite_store, capsys, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "")
    old, new = make_notes(), make_lite_store()
    embed, fails = WordEmbedding._get_text_embedding, True

    def fail_sometimes(self, text):
        if fails and "passage 9" in text:
            raise ConnectionError("no quota\nfor the key s3cret-s3cret")
        return embed(self, text)

    monkeypatch.setattr(WordEmbedding, "_get_text_embedding", fail_sometimes)
    command = ["reembed", f"{old.uri}#{old.collection_name}", "--into", new.collection_name]
    command += ["--embed-model", "tests.fixtures.words:WordEmbedding", "--batch-size", "4"]
    options = ("dim=4", "model_name=words-v2", "api_key=s3cret-s3cret")
    monkeypatch.setattr(WordEmbedding, "__init__", make_without_key(WordEmbedding.__init__))
    command += [argument for option in options for argument in ("--embed-option", option)]
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: re-embedding stopped: the model WordEmbedding 'words-v2' failed on 2 nodes, "
        "'note-008' to 'note-009' (ConnectionError: no quota for the key ***). Nothing was "
        "switched; call again to go on",
        "What has arrived stays. The same command goes on.",
    ]
    fails = False
    assert main(command) == 0
    assert "were there already" in capsys.readouterr().out
    assert right_vectors(new, WordEmbedding(dim=4))


def make_without_key(make):
    """What makes a model, and takes a key as models of services do."""
    return lambda self, api_key=None, **arguments: make(self, **arguments)


def raising(error):
    """A property of a module, or what makes a model: raises."""

    def make(*arguments, **settings):
        raise error

    return make


@pytest.mark.parametrize("error", [RuntimeError("no weights"), OSError("no weights")])
def test_a_model_that_cannot_be_loaded_is_told_in_a_sentence(error, monkeypatch):
    monkeypatch.setattr(words, "Model", raising(error), raising=False)
    for name, place in (("tests.fixtures.words:Model", None), ("tests.x:Model", "import_module")):
        if place:
            monkeypatch.setattr(_models, place, raising(error))
        with pytest.raises(ConfigurationError, match=r"cannot be loaded \(\w+: no weights\)"):
            _models.embed_model_of(name)
    monkeypatch.setattr(_models, "resolve_embed_model", raising(error))
    with pytest.raises(ConfigurationError, match=r"'local:a/b' cannot be loaded \(\w+: no weights"):
        _models.embed_model_of("local:a/b")
