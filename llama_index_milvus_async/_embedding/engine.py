"""Who calls an embedding model, when and where: queues for each loop, threads, turns."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding

from .._concurrency.coalescing import Coalescer, RequestKind
from .._concurrency.drivers import run_in
from .._concurrency.exceptions import own_copy
from .._concurrency.single_flight import SingleFlight
from ..errors import EncoderError
from ..stats import KindStats
from .adapters import Adapter, Embed, Route

#: Most requests to a service under way on each loop.
MAX_REQUESTS = 8
#: What a call asks for: a text, or all texts of a caller for a model that takes them as they are.
Item: TypeAlias = "str | tuple[str, ...]"
Kind: TypeAlias = "RequestKind[None, Item, Any]"

#: Statuses of HTTP, and words in names of exceptions, that do not concern the texts of a request.
NOT_ABOUT_TEXTS = frozenset((401, 402, 403, 404, 407, 408, 429, 502, 503, 504))
NOT_ABOUT_TEXTS_WORDS = (
    "Authentication",
    "Connect",
    "Permission",
    "RateLimit",
    "Throttl",
    "Timeout",
)


class Engine:
    """Calls a model for callers on any number of event loops and threads.

    Args:
        model: The model.
        adapter: How it is called.
        max_questions: Most questions of one call.
        max_texts: Most texts of one call.
        max_in_flight: Most calls under way on each loop; by default what fits each route.
    """

    def __init__(
        self,
        model: BaseEmbedding,
        adapter: Adapter,
        *,
        max_questions: int,
        max_texts: int,
        max_in_flight: int | None = None,
    ) -> None:
        self.model = model
        self._adapter = adapter
        self._most = max_in_flight
        # Questions before documents: somebody waits for the answer.
        self._questions = self._kind("query", adapter.questions, max_questions, priority=1)
        self._texts = self._kind("text", adapter.texts, max_texts, priority=0)
        self._max_in_flight = max(
            self._in_flight(adapter.questions), self._in_flight(adapter.texts)
        )
        # The loop that first used coroutines of the model: connections that they keep are bound to
        # it. On other loops the model is called in threads.
        self._home: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._processes: dict[int, _Process] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles of what has an engine make one of their own.
        return _nothing, ()

    async def embed_questions(self, questions: Sequence[str]) -> list[Embedding]:
        """Embed questions, in calls that others share."""
        return await self._submit(self._questions, [(text, len(text)) for text in questions])

    async def embed_texts(self, texts: Sequence[str]) -> list[Embedding]:
        """Embed texts, in calls that others share."""
        if not self._adapter.texts.as_given:
            return await self._submit(self._texts, [(text, len(text)) for text in texts])
        if not texts:
            return []
        [embeddings] = await self._submit(self._texts, [(tuple(texts), sum(map(len, texts)))])
        return list(embeddings)

    def turn(self, route: Route) -> AbstractContextManager[Any]:
        """What a thread holds while it calls the model."""
        return self._process().turn.lock if self._in_flight(route) == 1 else nullcontext()

    def question_turn(self) -> AbstractContextManager[Any]:
        """What a caller holds who embeds questions without this engine."""
        return self.turn(self._adapter.questions)

    def text_turn(self) -> AbstractContextManager[Any]:
        """What a caller holds who embeds texts without this engine."""
        return self.turn(self._adapter.texts)

    def stats(self) -> Mapping[str, KindStats]:
        """Counts since the engine was made, over all loops of this process."""
        return self._process().stats()

    async def _submit(self, kind: Kind, items: Sequence[tuple[Item, int]]) -> list[Any]:
        results = await self._process().queue(asyncio.get_running_loop()).submit(kind, items)
        for result in results:
            if isinstance(result, Exception):
                raise own_copy(result)
        # Callers that asked for equal texts get lists of their own.
        return [list(result) for result in results]

    def _process(self) -> _Process:
        """The state of this process: threads and locks do not outlive a fork."""
        pid = os.getpid()
        process = self._processes.get(pid)
        if process is None:
            # Of several threads that come here together one wins.
            process = self._processes.setdefault(pid, _Process(self.model, self._max_in_flight))
        return process

    def _in_flight(self, route: Route) -> int:
        return self._most or (MAX_REQUESTS if route.is_service else 1)

    def _kind(self, name: str, route: Route, max_items: int, priority: int) -> Kind:
        async def call(key: None, items: Sequence[Item], timeout: float | None) -> Sequence[Any]:
            if not route.as_given:
                return await self._call(route, [str(item) for item in items])
            [texts] = items
            return [await self._call(route, list(texts))]

        is_alone = route.one_by_one or route.as_given
        return RequestKind(
            name,
            call,
            max_items=1 if is_alone else max_items,
            max_weight=sys.maxsize,
            max_bytes=sys.maxsize,
            is_separable=concerns_texts,
            # The models themselves try again.
            may_resend=lambda key, error: False,
            max_in_flight=self._in_flight(route),
            priority=priority,
        )

    async def _call(self, route: Route, texts: list[str]) -> list[Any]:
        limiter = getattr(self.model, "rate_limiter", None)
        if limiter is not None:
            await limiter.async_acquire()
        embed = route.blocking
        if route.awaited is not None and (embed is None or self._is_at_home()):
            return checked(await route.awaited(texts), texts)
        assert embed is not None
        result = await self._in_thread(route, embed, texts)
        if inspect.isawaitable(result):  # of a function that is not declared as a coroutine
            result = checked(await result, texts)
        return list(result)

    def _is_at_home(self) -> bool:
        loop = asyncio.get_running_loop()
        if self._home is None:
            self._home = weakref.ref(loop)
        return self._home() is loop

    async def _in_thread(self, route: Route, embed: Embed, texts: list[str]) -> Any:
        def work() -> Any:
            with self.turn(route):
                result = embed(texts)
            return result if inspect.isawaitable(result) else checked(result, texts)

        return await run_in(self._process().threads, work)


def _nothing() -> None:
    """What is left of an engine in a copy or a pickle."""


def concerns_texts(error: Exception) -> bool:
    """Whether other texts of the same call may have done nothing wrong."""
    response = getattr(error, "response", None)
    for status in (
        getattr(error, "status_code", None),
        getattr(error, "code", None),
        getattr(response, "status_code", None),
    ):
        if isinstance(status, int) and status in NOT_ABOUT_TEXTS:
            return False
    if isinstance(error, OSError):
        return False
    names = [cls.__name__ for cls in type(error).__mro__]
    return not any(word in name for name in names for word in NOT_ABOUT_TEXTS_WORDS)


def checked(result: Any, texts: Sequence[str]) -> list[Any]:
    """Check that there is an embedding for each text; arrays become lists.

    Raises:
        EncoderError: There is not.
    """
    found = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(found, (list, tuple)):
        raise EncoderError(
            f"The embedding model returned {type(result).__name__}; a list with an embedding for "
            "each text is needed"
        )
    if len(found) != len(texts):
        raise EncoderError(
            f"The embedding model returned {len(found)} embeddings for {len(texts)} texts; it must "
            "return one for each, in their order"
        )
    embeddings = [each.tolist() if hasattr(each, "tolist") else each for each in found]
    for each in embeddings:
        if not isinstance(each, (list, tuple, Exception)):
            raise EncoderError(
                f"The embedding model returned {type(each).__name__} as the embedding of a text; a "
                "list of numbers is needed"
            )
    return embeddings


class _Turn:
    """One thread at a time calls a model; held as long as one of the model's engines."""

    def __init__(self, model: BaseEmbedding) -> None:
        self.model = model  # alive, so that no other gets its `id`
        # Reentrant: a model may be made of others, and be among them.
        self.lock = threading.RLock()


class _Turns:
    """The turns of each model: several engines may have the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: weakref.WeakValueDictionary[int, _Turn] = weakref.WeakValueDictionary()

    def forget(self) -> None:
        """Begin anew in a child: a thread of the parent may have held a lock."""
        self.__init__()  # type: ignore[misc]

    def of(self, model: BaseEmbedding) -> _Turn:
        with self._lock:
            turn = self._turns.get(id(model))
            if turn is None:
                turn = self._turns[id(model)] = _Turn(model)
            return turn


_turns = _Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.forget)


@dataclass(eq=False)
class _Loop:
    """The queue of an event loop, which may be gone."""

    loop: weakref.ref[asyncio.AbstractEventLoop]
    queue: SingleFlight

    @property
    def is_over(self) -> bool:
        loop = self.loop()
        return loop is None or loop.is_closed()


class _Process:
    """What an engine has in one process."""

    def __init__(self, model: BaseEmbedding, max_in_flight: int) -> None:
        self.turn = _turns.of(model)
        self.threads = ThreadPoolExecutor(max_in_flight, thread_name_prefix="embedding")
        self._max_in_flight = max_in_flight
        self._lock = threading.Lock()
        self._loops: dict[int, _Loop] = {}
        self._past: dict[str, KindStats] = {}  # of loops that are over

    def queue(self, loop: asyncio.AbstractEventLoop) -> SingleFlight:
        """The queue of a running loop."""
        known = self._loops.get(id(loop))
        if known is not None and known.loop() is loop:
            return known.queue
        coalescer = Coalescer(max_in_flight=self._max_in_flight, max_queued_bytes=sys.maxsize)
        queue = SingleFlight(coalescer)
        with self._lock:
            for key, each in list(self._loops.items()):
                if each.is_over:
                    _add(self._past, each.queue.coalescer.stats())
                    del self._loops[key]
            self._loops[id(loop)] = _Loop(weakref.ref(loop), queue)
        return queue

    def stats(self) -> Mapping[str, KindStats]:
        with self._lock:
            total = {name: replace(counts) for name, counts in self._past.items()}
            for each in self._loops.values():
                _add(total, each.queue.coalescer.stats())
        return total


def _add(total: dict[str, KindStats], counts: Mapping[str, KindStats]) -> None:
    for name, each in counts.items():
        known = total.setdefault(name, KindStats())
        for field in fields(KindStats):
            setattr(known, field.name, getattr(known, field.name) + getattr(each, field.name))
