"""Embedding models that note their calls; none needs weights or a network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import PrivateAttr

QUESTION, TEXT = 1.0, 2.0


def vector(sort: float, text: str) -> Embedding:
    """An embedding that tells what it was made of."""
    return [sort, float(len(text)), float(sum(map(ord, text)))]


def is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Calls:
    """Notes calls of a model, and lets them go on when the test says so."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.on_loop = 0
        self.most_at_once = 0
        self.threads: set[int] = set()
        self._at_once = 0
        self._lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, ()

    @contextmanager
    def call(self, texts: Sequence[str]) -> Iterator[None]:
        with self._lock:
            self.lists.append(list(texts))
            self.threads.add(threading.get_ident())
            self.on_loop += is_loop_running()
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self.entered.release()
        try:
            assert self.gate.wait(60)
            if any("bad" in text for text in texts):
                raise ValueError(f"cannot embed {[text for text in texts if 'bad' in text]}")
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep calls from returning."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    async def until_entered(self) -> None:
        """Wait until the model has been called once more."""
        await asyncio.to_thread(self.entered.acquire)


class LocalModel(BaseEmbedding):
    """A model as users write it: questions one by one, and coroutines that block."""

    _calls: Calls = PrivateAttr(default_factory=Calls)

    def _get_query_embedding(self, query: str) -> Embedding:
        with self._calls.call([query]):
            return vector(QUESTION, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        with self._calls.call([text]):
            return vector(TEXT, text)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return self._get_query_embedding(query)


class BatchModel(LocalModel):
    """One that embeds lists of texts at once."""

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        with self._calls.call(texts):
            return [vector(TEXT, text) for text in texts]


class ServiceModel(BatchModel):
    """One that has the field of a service, and is not known otherwise."""

    api_key: str = "key"


class Functions:
    """`embed_queries` and `embed_texts`, plain and `async`."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.opened: asyncio.Event | None = None
        self.at_once = self.most_at_once = 0

    def embed_queries(self, texts: list[str]) -> list[Embedding]:
        with self.calls.call(texts):
            return [vector(QUESTION, text) for text in texts]

    def embed_texts(self, texts: list[str]) -> list[Embedding]:
        with self.calls.call(texts):
            return [vector(TEXT, text) for text in texts]

    async def aembed_queries(self, texts: list[str]) -> list[Embedding]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.opened is not None:
                await self.opened.wait()
            else:
                await asyncio.sleep(0)
            return self.embed_queries(texts)
        finally:
            self.at_once -= 1
