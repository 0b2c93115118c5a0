"""How models of LlamaIndex embed lists of questions, and of texts.

`BaseEmbedding` takes questions one by one, and says neither whether a model computes in this
process nor whether its coroutines give the event loop back. What is known here of LlamaIndex's
classes is found by their names, so that none of them is imported. The methods called are those that
a subclass of `BaseEmbedding` implements, not the public ones: these would tell of each text twice.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding

#: Texts in, embeddings out, in their order; a text's own failure takes its embedding's place.
Embed: TypeAlias = Callable[[list[str]], Sequence[Any]]
AsyncEmbed: TypeAlias = Callable[[list[str]], Awaitable[Sequence[Any]]]

#: What a model that speaks to a service is built with.
SERVICE_FIELDS = frozenset(
    ("api_base", "api_key", "api_url", "base_url", "endpoint", "endpoint_name", "endpoint_url")
)
#: The methods by which an adapter embeds; who overrides one of them means something else by it.
EMBEDDING_METHODS = (
    "_get_query_embedding",
    "_aget_query_embedding",
    "_get_text_embedding",
    "_get_text_embeddings",
    "_aget_text_embeddings",
)


@dataclass(frozen=True)
class Route:
    """How texts of one sort become embeddings.

    Attributes:
        blocking: Is called in a thread; `None` where there is none.
        awaited: Gives the event loop back while it waits; `None` where there is none.
        one_by_one: A call takes one text.
        as_given: A call takes the texts of one caller as they are, because each embedding depends
            on the texts beside it.
        is_service: The work is done elsewhere, so that several calls may be under way.
    """

    blocking: Embed | None = None
    awaited: AsyncEmbed | None = None
    one_by_one: bool = False
    as_given: bool = False
    is_service: bool = False


@dataclass(frozen=True)
class Adapter:
    """How a model is called.

    Attributes:
        questions: How it embeds questions.
        texts: How it embeds texts.
    """

    questions: Route
    texts: Route


def adapter_for(model: BaseEmbedding) -> Adapter:
    """Find out how a model is called."""
    for cls in type(model).__mro__:
        make = _KNOWN.get(cls.__name__)
        if make is not None and cls.__module__.startswith("llama_index.embeddings."):
            if not any(_overrides(type(model), cls, name) for name in EMBEDDING_METHODS):
                adapter = make(model)
                if adapter is not None:
                    return adapter
            break
    if SERVICE_FIELDS & type(model).model_fields.keys():
        return _sync_service(model)
    return _local(model)


def embed_question(model: BaseEmbedding, question: str) -> Embedding:
    """Embed a question by the model's own sync method."""
    return model._get_query_embedding(question)


def embed_text(model: BaseEmbedding, text: str) -> Embedding:
    """Embed a text by the model's own sync method."""
    return model._get_text_embedding(text)


def embed_texts(model: BaseEmbedding, texts: list[str]) -> list[Embedding]:
    """Embed texts by the model's own sync method."""
    return model._get_text_embeddings(texts)


def _overrides(subclass: type, base: type, name: str) -> bool:
    return inspect.getattr_static(subclass, name) is not inspect.getattr_static(base, name)


# What holds for every model


def _each(embed: Callable[[str], Any]) -> Embed:
    """Embed texts one after the other; a failure is its text's own."""

    def embed_each(texts: list[str]) -> list[Any]:
        embeddings: list[Any] = []
        for text in texts:
            try:
                embeddings.append(embed(text))
            except Exception as error:
                embeddings.append(error)
        return embeddings

    return embed_each


def _one(embed: Callable[[str], Any]) -> Embed:
    return lambda texts: [embed(text) for text in texts]


def _aone(embed: Callable[[str], Awaitable[Any]]) -> AsyncEmbed:
    async def embed_one(texts: list[str]) -> list[Any]:
        return [await embed(text) for text in texts]

    return embed_one


def _texts(model: BaseEmbedding) -> Route:
    if _overrides(type(model), BaseEmbedding, "_get_text_embeddings"):
        return Route(model._get_text_embeddings)
    return Route(_each(model._get_text_embedding))


def _local(model: BaseEmbedding) -> Adapter:
    """A model that computes in this process, and takes questions one by one."""
    return Adapter(Route(_each(model._get_query_embedding)), _texts(model))


def _request(
    blocking: Embed | None = None, awaited: AsyncEmbed | None = None, *, one_by_one: bool = False
) -> Route:
    return Route(blocking, awaited, one_by_one, is_service=True)


def _sync_service(model: BaseEmbedding) -> Adapter:
    """A service whose coroutines may block, so that it is asked in threads."""
    questions = _request(_one(model._get_query_embedding), one_by_one=True)
    if _overrides(type(model), BaseEmbedding, "_get_text_embeddings"):
        return Adapter(questions, _request(model._get_text_embeddings))
    return Adapter(questions, _request(_one(model._get_text_embedding), one_by_one=True))


def _service(model: BaseEmbedding) -> Adapter:
    """A service that takes questions one by one, and gives the event loop back."""
    questions = _request(
        _one(model._get_query_embedding), _aone(model._aget_query_embedding), one_by_one=True
    )
    return Adapter(questions, _text_requests(model))


def _text_requests(model: BaseEmbedding) -> Route:
    return _request(model._get_text_embeddings, model._aget_text_embeddings)


def _like_texts(model: BaseEmbedding) -> Adapter:
    """A service that makes no difference between questions and texts."""
    route = _text_requests(model)
    return Adapter(route, route)


def _questions_by_twin(model: BaseEmbedding, **changes: Any) -> Adapter:
    """A service whose questions are texts for a copy of the model with other settings."""
    twin = model.model_copy()
    for name, value in changes.items():
        setattr(twin, name, value)
    return Adapter(_text_requests(twin), _text_requests(model))


# What is known of LlamaIndex's classes. Where a version of one lacks what is used here, the adapter
# is `None`, and the model is called as one that is not known.


def _huggingface(model: Any) -> Adapter | None:
    encode = getattr(type(model), "_embed_with_retry", None)
    # Repeating what is computed does not help, and its pauses would keep the others waiting.
    encode = getattr(encode, "__wrapped__", None)
    if encode is None or "prompt_name" not in inspect.signature(encode).parameters:
        return None
    if _overrides(type(model), _class_named(type(model), "HuggingFaceEmbedding"), "_embed"):
        return None
    return Adapter(
        Route(lambda texts: encode(model, texts, "query")),
        Route(lambda texts: encode(model, texts, "text")),
    )


def _fastembed(model: Any) -> Adapter:
    questions = Route(lambda texts: [each.tolist() for each in model._model.query_embed(texts)])
    return Adapter(questions, _texts(model))


def _instructor(model: Any) -> Adapter:
    def embed_questions(texts: list[str]) -> Any:
        return model._embed([model._format_query_text(text) for text in texts])

    return Adapter(Route(embed_questions), _texts(model))


def _optimum(model: Any) -> Adapter:
    def embed_questions(texts: list[str]) -> Any:
        return model._embed(_formatted_questions(model, "OptimumEmbedding", texts))

    return Adapter(Route(embed_questions), _texts(model))


def _openai(model: Any) -> Adapter:
    if model._query_engine == model._text_engine:
        return _like_texts(model)
    return _questions_by_twin(model, _text_engine=model._query_engine)


def _ollama(model: Any) -> Adapter:
    if model.query_instruction == model.text_instruction:
        return _like_texts(model)
    return _questions_by_twin(model, text_instruction=model.query_instruction)


def _cohere(model: Any) -> Adapter:
    return _questions_by_twin(model, input_type=model.input_type or "search_query")


def _dashscope(model: Any) -> Adapter:
    # Its coroutines block.
    return _in_threads(_questions_by_twin(model, _text_type="query"))


def _jina(model: Any) -> Adapter:
    adapter = _questions_by_twin(model, _encoding_documents=model._encoding_queries)
    if not model._late_chunking:
        return adapter
    # The texts of one request are taken for parts of one document.
    return Adapter(
        replace(adapter.questions, one_by_one=True), replace(adapter.texts, as_given=True)
    )


def _google_genai(model: Any) -> Adapter:
    questions = _request(
        lambda texts: model._embed_texts(texts, task_type="RETRIEVAL_QUERY"),
        lambda texts: model._aembed_texts(texts, task_type="RETRIEVAL_QUERY"),
    )
    return Adapter(questions, _text_requests(model))


def _voyage(model: Any) -> Adapter:
    # It counts tokens before it asks, which is why its coroutines are not awaited.
    module = _module_of(model, "VoyageEmbedding")
    is_contextual = model.model_name in getattr(module, "CONTEXT_MODELS", ())
    questions = _request(lambda texts: model._embed(texts, input_type="query"))
    texts = _request(model._get_text_embeddings)
    if is_contextual:
        questions, texts = replace(questions, one_by_one=True), replace(texts, as_given=True)
    return Adapter(questions, texts)


def _text_embeddings_inference(model: Any) -> Adapter:
    def format_all(texts: list[str]) -> list[str]:
        return _formatted_questions(model, "TextEmbeddingsInference", texts)

    questions = _request(
        lambda texts: model._call_api(format_all(texts)),
        lambda texts: model._acall_api(format_all(texts)),
    )
    return Adapter(questions, _text_requests(model))


def _nomic(model: Any) -> Adapter:
    mode = getattr(model.inference_mode, "value", model.inference_mode)
    questions = Route(lambda texts: model._embed_text(texts, task_type=model.query_task_type))
    texts = _texts(model)
    is_service = mode == "remote"
    return Adapter(replace(questions, is_service=is_service), replace(texts, is_service=is_service))


def _nvidia(model: BaseEmbedding) -> Adapter:
    # Its sync method embeds questions as passages.
    questions = _request(awaited=_aone(model._aget_query_embedding), one_by_one=True)
    return Adapter(questions, _text_requests(model))


def _huggingface_api(model: BaseEmbedding) -> Adapter:
    # Its sync methods start an event loop for each call, and share one client among them.
    questions = _request(awaited=_aone(model._aget_query_embedding), one_by_one=True)
    return Adapter(questions, _request(awaited=model._aget_text_embeddings))


def _litellm(model: BaseEmbedding) -> Adapter:
    return _in_threads(_like_texts(model))


def _in_threads(adapter: Adapter) -> Adapter:
    """The same without coroutines, because they block."""
    return Adapter(replace(adapter.questions, awaited=None), replace(adapter.texts, awaited=None))


def _formatted_questions(model: Any, known_as: str, texts: list[str]) -> list[str]:
    format_query = _module_of(model, known_as).format_query
    return [format_query(text, model.model_name, model.query_instruction) for text in texts]


def _module_of(model: Any, known_as: str) -> Any:
    return sys.modules[_class_named(type(model), known_as).__module__]


def _class_named(subclass: type, name: str) -> type:
    return next(cls for cls in subclass.__mro__ if cls.__name__ == name)


_KNOWN: dict[str, Callable[[Any], Adapter | None]] = {
    "BedrockEmbedding": _sync_service,
    "CohereEmbedding": _cohere,
    "DashScopeEmbedding": _dashscope,
    "FastEmbedEmbedding": _fastembed,
    "GoogleGenAIEmbedding": _google_genai,
    "HuggingFaceEmbedding": _huggingface,
    "HuggingFaceInferenceAPIEmbedding": _huggingface_api,
    "InstructorEmbedding": _instructor,
    "JinaEmbedding": _jina,
    "LiteLLMEmbedding": _litellm,
    "MistralAIEmbedding": _like_texts,
    "NVIDIAEmbedding": _nvidia,
    "NomicEmbedding": _nomic,
    "OllamaEmbedding": _ollama,
    "OpenAIEmbedding": _openai,
    "OptimumEmbedding": _optimum,
    "TextEmbeddingsInference": _text_embeddings_inference,
    "TogetherEmbedding": _service,
    "VoyageEmbedding": _voyage,
}
