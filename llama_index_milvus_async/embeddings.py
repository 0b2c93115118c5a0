"""Embedding models for concurrent callers."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr, SerializeAsAny

from ._concurrency.drivers import is_asynchronous
from ._embedding.adapters import (
    Adapter,
    Route,
    adapter_for,
    embed_question,
    embed_text,
    embed_texts,
)
from ._embedding.engine import Engine
from ._names import did_you_mean
from .errors import ConfigurationError
from .stats import KindStats

logger = logging.getLogger(__name__)

__all__ = ["CoalescingEmbedding"]

#: Texts to embeddings, one for each, in their order.
EmbedFunction: TypeAlias = Callable[
    [list[str]], "Sequence[Sequence[float]] | Awaitable[Sequence[Sequence[float]]]"
]

#: Most texts of one call of a model in this process by default, unless its own batches are larger:
#: more would keep a question waiting longer, and gain little.
DEFAULT_MAX_TEXTS = 32
#: The same for questions. They are short, those behind them wait for them anyway, and those that
#: leave together search together, beside no further call that takes their cores.
DEFAULT_MAX_QUESTIONS = 256
#: What a `CoalescingEmbedding` has of its model, unless it is given.
OF_THE_MODEL = (
    *("model_name", "embed_batch_size", "num_workers", "callback_manager", "embeddings_cache"),
)
#: One engine is made, whichever thread comes first.
_making = threading.Lock()


class CoalescingEmbedding(BaseEmbedding):
    """An embedding model whose concurrent callers share calls of the model.

    It stands in for the model that it wraps wherever LlamaIndex takes one: `VectorStoreIndex`,
    `IngestionPipeline`, `Settings.embed_model`, retrievers. Its embeddings are those of the model.

        embed_model = CoalescingEmbedding(HuggingFaceEmbedding("BAAI/bge-small-en-v1.5"))
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)

    What `aget_query_embedding`, `aget_text_embedding` and `aget_text_embedding_batch` ask for while
    the model is at work is embedded in its next call: questions before documents, never both in one
    call, and equal texts once. A model that computes in this process runs in a thread, one call at
    a time; a service has several requests under way. A text that the model refuses fails alone, and
    callers that are cancelled leave the others undisturbed. Sync methods call the model's own.

    LlamaIndex's models for HuggingFace, FastEmbed, Instructor, Optimum, OpenAI (with Azure and
    compatible endpoints), Ollama, Cohere, Google GenAI, Mistral, Voyage, Jina, Text Embeddings
    Inference, DashScope, Nomic, LiteLLM, NVIDIA, Bedrock, Together and HuggingFace's Inference API
    are known: how they treat questions, and whether they are services. Any other model embeds
    questions one by one, unless `embed_queries` is given, and counts as a service if it has a field
    such as `api_key` or `base_url`.

    Args:
        model: The model.
        embed_queries: Embeds a list of questions: plain, and then called in a thread, or `async`.
        embed_texts: Embeds a list of texts, likewise.
        max_batch: Most texts of one call. By default `embed_batch_size` for a service, and as many
            times that as fit into 256 questions or 32 texts for a model in this process.
        max_in_flight: Most calls under way on each event loop. By default 1 for what computes in
            this process, because tokenizers are not made for more, and 8 for services and `async`
            functions. With 2 or more, one is kept for questions while documents are embedded.
        **kwargs: Fields of `BaseEmbedding`, such as `embed_batch_size` and `callback_manager`; by
            default the model's.

    Raises:
        ConfigurationError: An argument is not allowed.
    """

    # Representations of models show the keys of their services.
    model: SerializeAsAny[BaseEmbedding] = Field(description="The model that embeds.", repr=False)
    embed_queries: EmbedFunction | None = Field(default=None, exclude=True, repr=False)
    embed_texts: EmbedFunction | None = Field(default=None, exclude=True, repr=False)
    max_batch: int | None = Field(default=None, description="Most texts of one call.")
    max_in_flight: int | None = Field(default=None, description="Most calls under way at once.")

    _engine: Engine | None = PrivateAttr(default=None)
    _engine_settings: tuple[Any, ...] = PrivateAttr(default=())

    def __init__(
        self,
        model: BaseEmbedding,
        *,
        embed_queries: EmbedFunction | None = None,
        embed_texts: EmbedFunction | None = None,
        max_batch: int | None = None,
        max_in_flight: int | None = None,
        **kwargs: Any,
    ) -> None:
        _check_model(model)
        for name, function in (("embed_queries", embed_queries), ("embed_texts", embed_texts)):
            if function is not None and not callable(function):
                raise ConfigurationError(
                    f"{name} is {function!r}; it must be a function of a list of texts that "
                    "returns a list of embeddings"
                )
        for name, bound in (("max_batch", max_batch), ("max_in_flight", max_in_flight)):
            if bound is not None and (not isinstance(bound, int) or bound < 1 or bound is True):
                raise ConfigurationError(f"{name} is {bound!r}; it must be a positive integer")
        unknown = sorted(kwargs.keys() - BaseEmbedding.model_fields.keys())
        if unknown:
            raise ConfigurationError(
                f"CoalescingEmbedding() got the unknown argument {unknown[0]!r}. It takes its own, "
                "and those of every embedding model: "
                f"{', '.join(BaseEmbedding.model_fields)}"
                f"{did_you_mean(unknown[0], type(self).model_fields)}"
            )
        for name in OF_THE_MODEL:
            kwargs.setdefault(name, getattr(model, name, None))
        kwargs |= {"model": model, "embed_queries": embed_queries, "embed_texts": embed_texts}
        super().__init__(**kwargs | {"max_batch": max_batch, "max_in_flight": max_in_flight})

    @classmethod
    def class_name(cls) -> str:
        """Name the class for what LlamaIndex serializes."""
        return "CoalescingEmbedding"

    def stats(self) -> Mapping[str, KindStats]:
        """Count what was asked for and how often the model was called, since this object was made.

        Returns:
            A snapshot over all event loops of this process, for the kinds `query` and `text`:
            `calls` are the questions or texts asked for, `rpcs` the calls of the model, and `items`
            what they embedded.
        """
        return self._current_engine().stats()

    # What LlamaIndex's public methods call; they have told their events by then.

    def _get_query_embedding(self, query: str) -> Embedding:
        _check_text(query)
        self._await_rate_limit()
        with self._current_engine().question_turn():
            return embed_question(self.model, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        _check_text(text)
        self._await_rate_limit()
        with self._current_engine().text_turn():
            return embed_text(self.model, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        for text in texts:
            _check_text(text)
        self._await_rate_limit()
        with self._current_engine().text_turn():
            return embed_texts(self.model, texts)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        _check_text(query)
        [embedding] = await self._current_engine().embed_questions([query])
        return embedding

    async def _aget_text_embedding(self, text: str) -> Embedding:
        _check_text(text)
        [embedding] = await self._current_engine().embed_texts([text])
        return embedding

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        for text in texts:
            _check_text(text)
        return await self._current_engine().embed_texts(texts)

    def _await_rate_limit(self) -> None:
        limiter = getattr(self.model, "rate_limiter", None)
        if limiter is not None:
            limiter.acquire()

    def _current_engine(self) -> Engine:
        """The engine of the present settings; a copy, or a changed setting, gets one of its own."""
        settings = (
            *(id(self.model), self.embed_queries, self.embed_texts),
            *(self.max_batch, self.max_in_flight, self.embed_batch_size),
        )
        engine = self._engine
        if engine is None or self._engine_settings != settings:
            with _making:
                engine = self._engine
                if engine is None or self._engine_settings != settings:
                    engine = self._engine = self._new_engine()
                    self._engine_settings = settings
        return engine

    def _new_engine(self) -> Engine:
        adapter = adapter_for(self.model)
        if self.embed_queries is not None:
            adapter = Adapter(_route_of(self.embed_queries, adapter.questions), adapter.texts)
        if self.embed_texts is not None:
            adapter = Adapter(adapter.questions, _route_of(self.embed_texts, adapter.texts))

        def max_batch(route: Route, default: int) -> int:
            # Whole batches, because the model cuts what it is given into batches of this size.
            batches = 1 if route.is_service else default // self.embed_batch_size
            return self.max_batch or max(1, batches) * self.embed_batch_size

        return Engine(
            self.model,
            adapter,
            max_questions=max_batch(adapter.questions, DEFAULT_MAX_QUESTIONS),
            max_texts=max_batch(adapter.texts, DEFAULT_MAX_TEXTS),
            max_in_flight=self.max_in_flight,
        )

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's leaves out what cannot be pickled, and takes it from this object, too. Here
        # that goes for what a copy can do without; without its model or functions it would be
        # another one.
        state = BaseModel.__getstate__(self)
        state["__dict__"] = fields = dict(state["__dict__"])
        for name in BaseEmbedding.model_fields:
            try:
                pickle.dumps(fields[name])
            except Exception:
                logger.warning("The pickle of a CoalescingEmbedding leaves out %s", name)
                del fields[name]
        return state


def _check_model(model: Any) -> None:
    if isinstance(model, CoalescingEmbedding):
        raise ConfigurationError("model is a CoalescingEmbedding already; pass the model inside it")
    if not isinstance(model, BaseEmbedding):
        raise ConfigurationError(
            f"model is of type {type(model).__name__}; it must be an embedding model of LlamaIndex "
            "(a BaseEmbedding)"
        )


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ConfigurationError(
            f"The text to embed is of type {type(text).__name__}; it must be a string"
        )


def _route_of(function: EmbedFunction, own: Route) -> Route:
    """How a function of the user is called, in the place of the model's own route."""
    if is_asynchronous(function):
        return Route(awaited=function, is_service=True)  # type: ignore[arg-type]
    return Route(function, is_service=own.is_service)  # type: ignore[arg-type]
