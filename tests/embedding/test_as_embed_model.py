"""`CoalescingEmbedding` in the place of the model that it wraps."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import sys

import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, TokenCountingHandler
from llama_index.core.callbacks.llama_debug import LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index_milvus_async import CoalescingEmbedding, ConfigurationError
from tests.embedding.models import (
    QUESTION,
    TEXT,
    BatchModel,
    Functions,
    LocalModel,
    vector,
)
from tests.fixtures.words import DIM, WordEmbedding


def embed_each(texts):
    return [vector(QUESTION, text) for text in texts]


class Recorder(BaseEventHandler):
    """Keeps events of embedding."""

    found: list[BaseEvent]

    def handle(self, event, **kwargs):
        if isinstance(event, EmbeddingStartEvent | EmbeddingEndEvent):
            self.found.append(event)


@pytest.fixture
def events():
    dispatcher = get_dispatcher()
    handler = Recorder(found=[])
    dispatcher.add_event_handler(handler)
    yield handler.found
    dispatcher.event_handlers.remove(handler)


# Arguments


def test_what_it_does_not_say_is_the_models():
    manager = CallbackManager([])
    model = BatchModel(
        model_name="small", embed_batch_size=7, num_workers=3, callback_manager=manager
    )
    wrapped = CoalescingEmbedding(model)
    assert (wrapped.model_name, wrapped.embed_batch_size, wrapped.num_workers) == ("small", 7, 3)
    assert wrapped.callback_manager is manager
    assert CoalescingEmbedding(model, embed_batch_size=50).embed_batch_size == 50


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"model": "BAAI/bge-small"}, "model is of type str; it must be an embedding model"),
        ({"model": CoalescingEmbedding(LocalModel())}, "is a CoalescingEmbedding already"),
        ({"embed_queries": 3}, "embed_queries is 3; it must be a function"),
        ({"embed_texts": []}, r"embed_texts is \[\]; it must be a function"),
        ({"max_batch": 0}, "max_batch is 0; it must be a positive integer"),
        ({"max_in_flight": True}, "max_in_flight is True; it must be a positive integer"),
        ({"max_batch": 2.5}, "max_batch is 2.5; it must be a positive integer"),
        ({"batch": 3}, "got the unknown argument 'batch'"),
    ],
)
def test_an_argument_that_is_not_allowed_is_named(arguments, problem):
    with pytest.raises(ConfigurationError, match=problem):
        CoalescingEmbedding(**{"model": LocalModel(), **arguments})


async def test_a_setting_may_change():
    model = BatchModel()
    wrapped = CoalescingEmbedding(model)
    await wrapped.aget_text_embedding("a")
    wrapped.embed_batch_size = wrapped.max_batch = 2
    await wrapped.aget_text_embedding_batch(list("bcd"))
    assert model._calls.lists == [["a"], ["b", "c"], ["d"]]


def test_a_representation_shows_no_key():
    class Service(LocalModel):
        api_key: str = "a secret"

    assert "a secret" not in repr(CoalescingEmbedding(Service()))


# Blocking calls


def test_blocking_calls_are_the_models_own():
    model = BatchModel(embed_batch_size=2)
    wrapped = CoalescingEmbedding(model, embed_queries=embed_each)
    assert wrapped.get_query_embedding("a") == vector(QUESTION, "a")
    assert wrapped.get_text_embedding("b") == vector(TEXT, "b")
    assert wrapped.get_text_embedding_batch(list("cde")) == [vector(TEXT, text) for text in "cde"]
    assert model._calls.lists == [["a"], ["b"], ["c", "d"], ["e"]]
    assert wrapped.stats() == {}


async def test_a_blocking_call_on_the_loop_waits_for_the_model_and_not_for_the_loop():
    model = BatchModel()
    wrapped = CoalescingEmbedding(model)
    with model._calls.held():
        task = asyncio.create_task(wrapped.aget_text_embedding("a"))
        await model._calls.until_entered()
        asyncio.get_running_loop().run_in_executor(None, model._calls.gate.set)
        assert wrapped.get_query_embedding("b") == vector(QUESTION, "b")
    assert await task == vector(TEXT, "a")
    assert model._calls.most_at_once == 1


# What LlamaIndex hears


async def test_each_caller_has_its_events_and_the_model_has_none(events):
    debug, tokens = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler(str.split)
    manager = CallbackManager([debug, tokens])
    wrapped = CoalescingEmbedding(BatchModel(callback_manager=manager))
    await asyncio.gather(
        *map(wrapped.aget_query_embedding, ["one", "two words"]),
        wrapped.aget_text_embedding_batch(["three words here", "one"]),
    )
    ends = [event for event in events if isinstance(event, EmbeddingEndEvent)]
    assert sorted(event.chunks for event in ends) == [
        ["one"],
        ["three words here", "one"],
        ["two words"],
    ]
    assert len(events) == 6
    [start, *_] = events
    assert start.model_dict["class_name"] == "CoalescingEmbedding"
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 3
    assert tokens.total_embedding_token_count == 7


async def test_settings_give_it_their_callbacks(monkeypatch):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([debug]))
    Settings.embed_model = CoalescingEmbedding(BatchModel())
    assert await Settings.embed_model.aget_query_embedding("a") == vector(QUESTION, "a")
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 1


async def test_a_cache_of_the_model_is_used():
    model = BatchModel(embeddings_cache=SimpleKVStore())
    wrapped = CoalescingEmbedding(model)
    for _ in range(2):
        assert await wrapped.aget_text_embedding("a") == vector(TEXT, "a")
        assert await wrapped.aget_text_embedding_batch(["a", "b"]) == [
            vector(TEXT, "a"),
            vector(TEXT, "b"),
        ]
    assert model._calls.lists == [["a"], ["b"]]


async def test_the_models_rate_limiter_is_asked_once_for_each_call():
    class Limiter:
        acquired = 0

        def acquire(self, num_tokens=0):
            self.acquired += 1

        async def async_acquire(self, num_tokens=0):
            self.acquired += 1

    if "rate_limiter" not in BaseEmbedding.model_fields:
        pytest.skip("this LlamaIndex has no rate limiters")
    limiter = Limiter()
    wrapped = CoalescingEmbedding(BatchModel(rate_limiter=limiter))
    await asyncio.gather(*map(wrapped.aget_text_embedding, "abcd"))
    assert limiter.acquired == 1
    wrapped.get_query_embedding("a")
    assert limiter.acquired == 2


async def test_num_workers_bound_the_lists_that_are_asked_for_at_once():
    model = BatchModel(embed_batch_size=1, num_workers=2)
    await CoalescingEmbedding(model).aget_text_embedding_batch(list("abcdef"))
    assert max(map(len, model._calls.lists)) <= 2


# Copies, pickles, processes


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "pickle"],
)
async def test_a_copy_embeds_as_the_original(copied):
    original = CoalescingEmbedding(BatchModel(), embed_queries=embed_each, max_batch=5)
    await original.aget_query_embedding("a")
    twin = copied(original)
    assert (twin.max_batch, twin.embed_queries) == (5, embed_each)
    assert await twin.aget_query_embedding("b") == vector(QUESTION, "b")
    assert await twin.aget_text_embedding("b") == vector(TEXT, "b")


async def test_a_copy_with_another_model_asks_that_model():
    original = CoalescingEmbedding(BatchModel())
    await original.aget_text_embedding("a")
    other = LocalModel()
    assert await original.model_copy(update={"model": other}).aget_text_embedding("b")
    assert other._calls.lists == [["b"]]


def test_what_makes_it_the_model_that_it_is_has_to_be_picklable():
    wrapped = CoalescingEmbedding(BatchModel(), embed_queries=lambda texts: [])
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(wrapped)
    assert wrapped.embed_queries is not None


async def test_what_a_copy_can_do_without_is_left_out(caplog):
    class Handler(LlamaDebugHandler):
        """Of a local class, which cannot be pickled."""

    manager = CallbackManager([Handler()])
    wrapped = CoalescingEmbedding(BatchModel(), callback_manager=manager)
    wrapped.model.callback_manager = CallbackManager([])
    twin = pickle.loads(pickle.dumps(wrapped))
    assert "leaves out callback_manager" in caplog.text
    assert wrapped.callback_manager is manager
    assert await twin.aget_text_embedding("a") == vector(TEXT, "a")


def in_child(wrapped, connection):
    connection.send(asyncio.run(wrapped.aget_query_embedding("child")))


@pytest.mark.starts
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    model = BatchModel()
    wrapped = CoalescingEmbedding(model)
    asyncio.run(wrapped.aget_query_embedding("parent"))
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with wrapped._current_engine().question_turn():  # which the child would wait for
        child = context.Process(target=in_child, args=(wrapped, there))
        child.start()
    assert here.poll(60)
    assert here.recv() == vector(QUESTION, "child")
    child.join()


def test_a_pipeline_tells_models_apart():
    nodes = [TextNode(text="a")]

    def hash_of(**fields):
        return get_transformation_hash(nodes, CoalescingEmbedding(BatchModel(**fields)))

    assert hash_of() == hash_of()
    assert hash_of(model_name="a") != hash_of(model_name="b")


async def test_a_pipeline_embeds_with_it():
    wrapped = CoalescingEmbedding(WordEmbedding())
    documents = [Document(text=f"Document {n}.") for n in range(30)]
    nodes = await IngestionPipeline(transformations=[wrapped]).arun(documents=documents)
    assert [node.embedding for node in nodes] == [
        WordEmbedding()._get_text_embedding(document.text) for document in documents
    ]
    assert wrapped.stats()["text"].items == 30


# A service


@pytest.mark.engines("lite")
async def test_questions_of_a_service_share_calls_of_the_model_and_rpcs(make_store):
    store = make_store(dim=DIM)
    functions = Functions()
    words = WordEmbedding()

    def embed_queries(texts):
        with functions.calls.call(texts):
            return [words._get_query_embedding(text) for text in texts]

    embed_model = CoalescingEmbedding(words, embed_queries=embed_queries)
    index = await asyncio.to_thread(
        VectorStoreIndex.from_documents,
        [Document(text=f"The {word} stole the tarts.") for word in ("Knave", "Queen", "Hatter")],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embed_model,
    )
    before = store.stats()["search"].rpcs if "search" in store.stats() else 0
    retriever = index.as_retriever(similarity_top_k=1)
    questions = [f"Was it the {word}? {n}" for n in range(20) for word in ("Knave", "Queen")]
    found = await asyncio.gather(*map(retriever.aretrieve, questions))
    for question, [hit] in zip(questions, found, strict=True):
        assert question.split()[3].rstrip("?") in hit.node.get_content()
    assert [len(texts) for texts in functions.calls.lists] == [40]
    assert store.stats()["search"].rpcs - before <= 4
