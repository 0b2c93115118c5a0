"""What an application can observe of the store's operations.

Each public operation is a span and a pair of events of LlamaIndex's instrumentation, and a span
and a duration of OpenTelemetry where its API is installed and set up. It costs nothing where nobody
listens. Texts, vectors, filters, ids and messages of errors, which may quote them, are recorded
nowhere: only names, modes and counts.
"""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import NullEventHandler
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult

from ._concurrency.coalescing import recording_batch_sizes
from .events import MilvusOperationEndEvent, MilvusOperationStartEvent

metrics: Any = None
trace: Any = None
with suppress(ImportError):  # an optional dependency
    from opentelemetry import metrics, trace

_NAME = "llama_index_milvus_async"
_dispatcher = get_dispatcher(_NAME)
# What LlamaIndex puts where nobody listens.
_NULL_HANDLERS = (NullEventHandler, NullSpanHandler)


@dataclass
class Outcome:
    """What an operation has come to.

    Attributes:
        result: What it returned.
    """

    result: Any = None


def is_observed() -> bool:
    """Whether anybody listens."""
    return _has_handlers() or _is_traced()


@contextmanager
def observing(store: Any, operation: str, collection_name: str, subject: Any) -> Iterator[Outcome]:
    """Tell those who listen of an operation that runs inside.

    Args:
        store: The store.
        operation: The public method.
        collection_name: The collection.
        subject: What it is given: a query, or nodes, ids or queries.
    """
    described = _described(subject)
    start = MilvusOperationStartEvent(
        operation=operation, collection_name=collection_name, **described
    )
    outcome, error = Outcome(), None
    began = time.perf_counter()
    with ExitStack() as stack:
        shares = stack.enter_context(recording_batch_sizes())
        if _has_handlers():
            stack.enter_context(_span_of_llama_index(store, start, outcome))
            _dispatcher.event(start)
        span = stack.enter_context(_span_of_opentelemetry(start)) if _is_traced() else None
        try:
            yield outcome
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            end = MilvusOperationEndEvent(
                operation=operation,
                collection_name=collection_name,
                **described,
                seconds=time.perf_counter() - began,
                results=_count(outcome.result),
                shared=shares,
                error=error,
            )
            if _has_handlers():
                _dispatcher.event(end)
            if span is not None:
                _record(span, end)


def _described(subject: Any) -> dict[str, Any]:
    if isinstance(subject, (str, BaseNode)):  # one id, or one node
        return {"count": 1}
    if not isinstance(subject, VectorStoreQuery):
        return {"count": len(subject) if isinstance(subject, Sized) else None}
    mode, top_k = subject.mode, subject.similarity_top_k
    return {
        "mode": str(getattr(mode, "value", mode)),
        "top_k": top_k if isinstance(top_k, int) else None,
    }


def _count(result: Any) -> int | None:
    if isinstance(result, VectorStoreQueryResult):
        return len(result.nodes or ())
    if isinstance(result, int):
        return result
    return len(result) if isinstance(result, list) else None


def _has_handlers() -> bool:
    current: Any = _dispatcher
    while current is not None:
        for handlers in (current.event_handlers, current.span_handlers):
            for handler in handlers:
                if not isinstance(handler, _NULL_HANDLERS):
                    return True
        current = current.parent if current.propagate else None
    return False


@contextmanager
def _span_of_llama_index(
    store: Any, start: MilvusOperationStartEvent, outcome: Outcome
) -> Iterator[None]:
    # Not by the decorator of the dispatcher, which hands the arguments themselves to the handlers.
    arguments = _arguments(start.collection_name, start.mode, start.top_k, start.count)
    span_id = f"{type(store).__name__}.{start.operation}-{uuid.uuid4()}"
    parent_id, token = active_span_id.get(), active_span_id.set(span_id)
    start.span_id = span_id
    _dispatcher.span_enter(span_id, arguments, instance=store, parent_id=parent_id)
    try:
        yield
    except BaseException as error:
        _dispatcher.span_drop(span_id, arguments, instance=store, err=error)
        raise
    else:
        _dispatcher.span_exit(span_id, arguments, instance=store, result=_count(outcome.result))
    finally:
        active_span_id.reset(token)


def _arguments(
    collection_name: str, mode: str | None, top_k: int | None, count: int | None
) -> inspect.BoundArguments:
    return inspect.signature(_arguments).bind(collection_name, mode, top_k, count)


def _is_traced() -> bool:
    """Whether OpenTelemetry is installed and somebody has set it up."""
    if trace is None:
        return False
    proxies = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
    return not isinstance(trace.get_tracer_provider(), proxies)


@contextmanager
def _span_of_opentelemetry(start: MilvusOperationStartEvent) -> Iterator[Any]:
    # Names of attributes: https://opentelemetry.io/docs/specs/semconv/database/
    attributes = {
        "db.system.name": "milvus",
        "db.operation.name": start.operation,
        "db.collection.name": start.collection_name,
        **_present({"mode": start.mode, "top_k": start.top_k, "count": start.count}),
    }
    with trace.get_tracer(_NAME).start_as_current_span(
        f"{start.operation} {start.collection_name}",
        kind=trace.SpanKind.CLIENT,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def _record(span: Any, end: MilvusOperationEndEvent) -> None:
    shared = {f"shared.{kind}": callers for kind, callers in end.shared.items()}
    span.set_attributes(_present({"results": end.results, **shared}))
    attributes = {
        "db.system.name": "milvus",
        "db.operation.name": end.operation,
        "db.collection.name": end.collection_name,
    }
    if end.error is not None:
        span.set_attribute("error.type", end.error)
        span.set_status(trace.Status(trace.StatusCode.ERROR, end.error))
        attributes["error.type"] = end.error
    duration = metrics.get_meter(_NAME).create_histogram("db.client.operation.duration", unit="s")
    duration.record(end.seconds, attributes)


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"milvus.{name}": value for name, value in values.items() if value is not None}
