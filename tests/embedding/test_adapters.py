"""What is known of LlamaIndex's models, with classes that have their names and their methods."""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import PrivateAttr

from llama_index_milvus_async import CoalescingEmbedding
from tests.embedding.models import is_loop_running


def label(*parts: object) -> Embedding:
    """An embedding that tells what it was made of, equal only for equal parts."""
    return [float(ord(character)) for part in parts for character in f"{part} "]


def known_as(package: str):
    """Have a class stand in a package of LlamaIndex."""

    def move(cls):
        name = f"llama_index.embeddings.{package}.base"
        cls.__module__ = name
        return cls

    return move


class Noted(BaseEmbedding):
    """Notes the texts of each request, and whether it was sent from a loop."""

    _requests: list[tuple[bool, list[Any]]] = PrivateAttr(default_factory=list)

    def note(self, texts, *parts):
        self._requests.append((is_loop_running(), list(texts)))
        return [label(*parts, text) for text in texts]

    async def anote(self, texts, *parts):
        embeddings = self.note(texts, *parts)
        await asyncio.sleep(0)
        return embeddings

    def _get_query_embedding(self, query):
        return self._get_query_embeddings([query])[0]

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text):
        return self._get_text_embeddings([text])[0]


def retried(function):
    @functools.wraps(function)
    def again(*args, **kwargs):
        raise AssertionError("computing again does not help")

    return again


@known_as("huggingface")
class HuggingFaceEmbedding(Noted):
    query_instruction: str = "query:"
    text_instruction: str = "text:"

    def _embed_with_retry(self, inputs, prompt_name=None):
        return self.note(inputs, getattr(self, f"{prompt_name}_instruction"))

    def _embed(self, inputs, prompt_name=None):
        return self._embed_with_retry(inputs, prompt_name)

    def _get_query_embedding(self, query):
        return self._embed([query], prompt_name="query")[0]

    def _get_text_embedding(self, text):
        return self._embed([text], prompt_name="text")[0]

    def _get_text_embeddings(self, texts):
        return self._embed(texts, prompt_name="text")


@known_as("fastembed")
class FastEmbedEmbedding(Noted):
    @property
    def _model(self):
        np = pytest.importorskip("numpy")
        note = self.note
        return types.SimpleNamespace(
            query_embed=lambda texts: map(np.array, note([texts] if texts is str else texts, "q"))
        )

    def _get_query_embedding(self, query):
        return next(iter(self._model.query_embed([query]))).tolist()

    def _get_text_embeddings(self, texts):
        return self.note(texts, "passage")


class Service(Noted):
    """Questions and texts as one service sees them."""

    def _get_query_embedding(self, query):
        return self.note([query], *self.question_parts())[0]

    async def _aget_query_embedding(self, query):
        return (await self.anote([query], *self.question_parts()))[0]

    def _get_text_embeddings(self, texts):
        return self.note(texts, *self.text_parts())

    async def _aget_text_embeddings(self, texts):
        return await self.anote(texts, *self.text_parts())


@known_as("openai")
class OpenAIEmbedding(Service):
    _query_engine: str = PrivateAttr(default="one engine")
    _text_engine: str = PrivateAttr(default="one engine")

    def question_parts(self):
        return [self._query_engine]

    def text_parts(self):
        return [self._text_engine]


class AzureOpenAIEmbedding(OpenAIEmbedding):
    pass


@known_as("ollama")
class OllamaEmbedding(Service):
    query_instruction: str | None = "query:"
    text_instruction: str | None = None

    def question_parts(self):
        return [self.query_instruction]

    def text_parts(self):
        return [self.text_instruction]


@known_as("cohere")
class CohereEmbedding(Service):
    input_type: str | None = None

    def question_parts(self):
        return [self.input_type or "search_query"]

    def text_parts(self):
        return [self.input_type or "search_document"]


@known_as("jinaai")
class JinaEmbedding(Service):
    _encoding_queries: str = PrivateAttr(default="float")
    _encoding_documents: str = PrivateAttr(default="ubinary")
    _late_chunking: bool | None = PrivateAttr(default=None)

    def question_parts(self):
        return [self._encoding_queries]

    def text_parts(self):
        return [self._encoding_documents]


@known_as("google_genai")
class GoogleGenAIEmbedding(Service):
    def _embed_texts(self, texts, task_type):
        return self.note(texts, task_type)

    async def _aembed_texts(self, texts, task_type):
        return await self.anote(texts, task_type)

    def question_parts(self):
        return ["RETRIEVAL_QUERY"]

    def text_parts(self):
        return ["RETRIEVAL_DOCUMENT"]


@known_as("mistralai")
class MistralAIEmbedding(Service):
    def question_parts(self):
        return ["mistral"]

    def text_parts(self):
        return ["mistral"]


@known_as("litellm")
class LiteLLMEmbedding(MistralAIEmbedding):
    async def _aget_query_embedding(self, query):
        raise AssertionError("blocks")

    async def _aget_text_embeddings(self, texts):
        raise AssertionError("blocks")


@known_as("voyageai")
class VoyageEmbedding(Service):
    model_name: str = "voyage-3"

    def _embed(self, texts, input_type):
        if self.model_name == "voyage-context-3":
            return self.note(texts, input_type, *texts)  # each depends on the others
        return self.note(texts, input_type)

    def _get_query_embedding(self, query):
        return self._embed([query], "query")[0]

    def _get_text_embeddings(self, texts):
        return self._embed(texts, "document")


@known_as("text_embeddings_inference")
class TextEmbeddingsInference(Service):
    query_instruction: str | None = "query:"

    def _call_api(self, texts):
        return self.note(texts)

    async def _acall_api(self, texts):
        return await self.anote(texts)

    def _get_query_embedding(self, query):
        return self._call_api([f"{self.query_instruction} {query}"])[0]

    def text_parts(self):
        return []


@known_as("nvidia")
class NVIDIAEmbedding(Service):
    def question_parts(self):
        return ["query"]

    def text_parts(self):
        return ["passage"]

    def _get_query_embedding(self, query):
        raise AssertionError("embeds a question as a passage")


@known_as("together")
class TogetherEmbedding(MistralAIEmbedding):
    pass


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    for name, contents in {
        "voyageai": {"CONTEXT_MODELS": ["voyage-context-3"]},
        "text_embeddings_inference": {
            "format_query": lambda text, model_name, instruction: f"{instruction} {text}"
        },
    }.items():
        module = types.ModuleType(f"llama_index.embeddings.{name}.base")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def unlike(model, **private):
    for name, value in private.items():
        setattr(model, name, value)
    return model


async def own(model, text, sort):
    """What the model itself makes of a text."""
    if isinstance(model, HuggingFaceEmbedding):
        return label(getattr(model, f"{sort}_instruction"), text)
    if sort == "query":
        return await (
            model._aget_query_embedding(text)
            if isinstance(model, NVIDIAEmbedding)
            else asyncio.to_thread(model._get_query_embedding, text)
        )
    return await asyncio.to_thread(model._get_text_embedding, text)


BATCHED_ON_LOOP = [
    OpenAIEmbedding(),
    AzureOpenAIEmbedding(),
    unlike(OpenAIEmbedding(), _query_engine="query engine"),
    OllamaEmbedding(),
    OllamaEmbedding(query_instruction=None),
    CohereEmbedding(),
    CohereEmbedding(input_type="clustering"),
    JinaEmbedding(),
    GoogleGenAIEmbedding(),
    MistralAIEmbedding(),
    TextEmbeddingsInference(),
]
BATCHED_IN_THREADS = [
    HuggingFaceEmbedding(),
    FastEmbedEmbedding(),
    LiteLLMEmbedding(),
    VoyageEmbedding(),
]
ONE_BY_ONE = [NVIDIAEmbedding(), TogetherEmbedding()]
QUESTIONS = ["Who stole the tarts?", "Who made them?", "Why?"]


def name(model):
    return type(model).__name__


@pytest.mark.parametrize("model", BATCHED_ON_LOOP + BATCHED_IN_THREADS + ONE_BY_ONE, ids=name)
async def test_embeddings_are_those_of_the_model(model):
    wrapped = CoalescingEmbedding(model)
    found = await asyncio.gather(
        *map(wrapped.aget_query_embedding, QUESTIONS), *map(wrapped.aget_text_embedding, QUESTIONS)
    )
    assert found == [
        *[await own(model, text, "query") for text in QUESTIONS],
        *[await own(model, text, "text") for text in QUESTIONS],
    ]


@pytest.mark.parametrize("model", BATCHED_ON_LOOP + BATCHED_IN_THREADS + ONE_BY_ONE, ids=name)
async def test_how_a_known_model_is_asked(model):
    wrapped = CoalescingEmbedding(model)
    model._requests.clear()
    await asyncio.gather(*map(wrapped.aget_query_embedding, QUESTIONS))
    requests = model._requests[:]
    assert len(requests) == (3 if model in ONE_BY_ONE else 1)
    assert all(on_loop != (model in BATCHED_IN_THREADS) for on_loop, _ in requests)


def test_coroutines_of_a_service_stay_on_the_loop_that_first_used_them():
    model = OpenAIEmbedding()
    wrapped = CoalescingEmbedding(model)
    for _ in range(3):
        assert asyncio.run(wrapped.aget_query_embedding("a")) == label("one engine", "a")
    assert [on_loop for on_loop, _ in model._requests] == [True, False, False]


@pytest.mark.parametrize(
    "model",
    [
        unlike(JinaEmbedding(), _late_chunking=True),
        VoyageEmbedding(model_name="voyage-context-3"),
    ],
    ids=name,
)
async def test_texts_that_depend_on_those_beside_them_travel_as_their_caller_gave_them(model):
    wrapped = CoalescingEmbedding(model)
    lists = [["a", "b", "a"], ["c"]]
    found = await asyncio.gather(*map(wrapped.aget_text_embedding_batch, lists))
    assert [texts for _, texts in model._requests] == lists
    assert found == [await asyncio.to_thread(model._get_text_embeddings, texts) for texts in lists]
    model._requests.clear()
    await asyncio.gather(*map(wrapped.aget_query_embedding, "ab"))
    assert [texts for _, texts in model._requests] == [["a"], ["b"]]


async def test_a_subclass_that_embeds_in_its_own_way_is_not_taken_for_what_it_extends():
    class Mine(HuggingFaceEmbedding):
        def _get_query_embedding(self, query):
            return label("mine", query)

    wrapped = CoalescingEmbedding(Mine())
    found = await asyncio.gather(*map(wrapped.aget_query_embedding, QUESTIONS))
    assert found == [label("mine", question) for question in QUESTIONS]


async def test_another_version_of_a_known_class_is_asked_as_one_that_is_not_known():
    @known_as("huggingface")
    class HuggingFaceEmbedding(Noted):
        def _get_query_embedding(self, query):
            return self.note([query], "old")[0]

        def _get_text_embeddings(self, texts):
            return self.note(texts, "old")

    model = HuggingFaceEmbedding()
    found = await asyncio.gather(*map(CoalescingEmbedding(model).aget_query_embedding, QUESTIONS))
    assert found == [label("old", question) for question in QUESTIONS]
    assert len(model._requests) == 3


HuggingFaceEmbedding._embed_with_retry = retried(HuggingFaceEmbedding._embed_with_retry)
