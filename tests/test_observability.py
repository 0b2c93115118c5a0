"""What listeners are told of operations, and what they are not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.vector_stores.types import VectorStoreQuery
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llama_index_milvus_async import (
    MilvusOperationEndEvent,
    MilvusOperationStartEvent,
    _observability,
)
from llama_index_milvus_async.errors import QueryError
from tests.fixtures.stores import make_nodes

SECRET = "what nobody should read"


class Events(BaseEventHandler):
    """Keeps the events of the store."""

    kept: list[Any] = []  # noqa: RUF012 (a pydantic field)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, (MilvusOperationStartEvent, MilvusOperationEndEvent)):
            self.kept.append(event)


class Spans(BaseSpanHandler[BaseSpan]):
    """Keeps what it is told of spans, as texts."""

    told: list[tuple[str, str, str]] = []  # noqa: RUF012 (a pydantic field)

    def new_span(self, id_: str, bound_args: Any, **kwargs: Any) -> BaseSpan:
        self.told.append(("enter", id_, str(dict(bound_args.arguments))))
        return BaseSpan(id_=id_, parent_id=kwargs.get("parent_span_id"))

    def prepare_to_exit_span(self, id_: str, bound_args: Any, **kwargs: Any) -> BaseSpan:
        self.told.append(("exit", id_, str(kwargs.get("result"))))
        return self.open_spans[id_]

    def prepare_to_drop_span(self, id_: str, bound_args: Any, **kwargs: Any) -> BaseSpan:
        self.told.append(("drop", id_, type(kwargs.get("err")).__name__))
        return self.open_spans[id_]


@pytest.fixture
def llama_index() -> Iterator[tuple[Events, Spans]]:
    """Handlers of LlamaIndex's instrumentation, at its root."""
    root = get_dispatcher()
    handlers = Events(kept=[]), Spans()
    handlers[1].told = []
    before = root.event_handlers, root.span_handlers
    root.event_handlers = [*before[0], handlers[0]]
    root.span_handlers = [*before[1], handlers[1]]
    yield handlers
    root.event_handlers, root.span_handlers = before


@pytest.fixture
def opentelemetry(monkeypatch) -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """OpenTelemetry, set up to keep spans and metrics."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    # The global providers can be set once in a process.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
    monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", meters.get_meter)
    return exporter, reader


def asking(node: Any, **kwargs: Any) -> VectorStoreQuery:
    return VectorStoreQuery(
        query_embedding=node.embedding, query_str=SECRET, similarity_top_k=3, **kwargs
    )


async def test_every_operation_is_a_pair_of_events(shared, coloured, colour, llama_index):
    events, spans = llama_index
    store, nodes = coloured(shared), make_nodes(2, prefix="seen")
    await store.add(nodes)
    await store.query(asking(nodes[0]))
    await store.query_many([asking(nodes[0]), asking(nodes[1])])
    await store.get_nodes(["seen-0"])
    await store.count(node_ids=["seen-0"])
    await store.delete("doc-7")
    await store.delete_nodes(["seen-0", "seen-1"])

    names = ["add", "query", "query_many", "get_nodes", "count", "delete", "delete_nodes"]
    if colour == "async":
        names = ["async_add", *(f"a{name}" for name in names[1:])]
    kinds = (MilvusOperationStartEvent, MilvusOperationEndEvent)
    assert [(type(event), event.operation) for event in events.kept] == [
        (kind, name) for name in names for kind in kinds
    ]
    assert [event.class_name() for event in events.kept[:2]] == [kind.__name__ for kind in kinds]
    assert {event.collection_name for event in events.kept} == {shared.collection_name}
    ends = [event for event in events.kept if isinstance(event, MilvusOperationEndEvent)]
    assert [end.count for end in ends] == [2, None, 2, 1, None, 1, 2]
    assert [end.results for end in ends] == [2, 3, 2, 1, 1, None, None]
    assert (ends[1].mode, ends[1].top_k) == ("default", 3)
    assert all(end.seconds > 0 and end.error is None for end in ends)

    assert [(what, span.partition("-")[0]) for what, span, _ in spans.told] == [
        (what, f"MilvusVectorStore.{name}") for name in names for what in ("enter", "exit")
    ]


async def test_events_belong_to_the_span_of_their_operation(shared, llama_index):
    events, spans = llama_index
    await shared.aget_nodes(["node-0"])
    assert {event.span_id for event in events.kept} == {spans.told[0][1]}


async def test_a_failure_is_an_event_with_its_class_and_drops_the_span(shared, llama_index):
    events, spans = llama_index
    with pytest.raises(QueryError):
        await shared.aquery(VectorStoreQuery(query_str=SECRET, similarity_top_k=3))
    assert events.kept[-1].error == "QueryError"
    assert [what for what, _, _ in spans.told] == ["enter", "drop"]


async def test_events_say_how_many_callers_shared_the_rpc(shared, llama_index):
    events, _ = llama_index
    nodes = make_nodes(30)
    await asyncio.gather(*(shared.aquery(asking(node)) for node in nodes))
    ends = [event for event in events.kept if isinstance(event, MilvusOperationEndEvent)]
    assert len(ends) == 30
    # Those that were ready while the first RPCs left travelled in smaller companies.
    assert max(end.shared["search"] for end in ends) >= 10
    assert all(1 <= end.shared["search"] <= 30 for end in ends)


async def test_texts_vectors_and_filters_are_recorded_nowhere(
    shared, llama_index, opentelemetry, caplog
):
    events, spans = llama_index
    exporter, _ = opentelemetry
    (node,) = make_nodes(1)
    with caplog.at_level(logging.DEBUG, logger="llama_index_milvus_async"):
        await shared.aquery(asking(node), string_expr='doc_id != "hidden words"')
    recorded = [event.model_dump_json() for event in events.kept]
    recorded += [str(told) for told in spans.told]
    recorded += [span.to_json() for span in exporter.get_finished_spans()]
    recorded += [record.getMessage() for record in caplog.records]
    assert len(recorded) >= 5
    for text in recorded:
        assert SECRET not in text
        assert "hidden words" not in text
        for number in node.embedding:
            assert str(number)[:8] not in text


async def test_an_operation_is_a_span_of_opentelemetry(shared, opentelemetry):
    exporter, reader = opentelemetry
    await shared.aquery(asking(make_nodes(1)[0]))
    with pytest.raises(QueryError):
        await shared.adelete_nodes()
    query, delete = exporter.get_finished_spans()
    assert query.name == f"aquery {shared.collection_name}"
    assert query.kind is trace.SpanKind.CLIENT
    assert dict(query.attributes) == {
        "db.system.name": "milvus",
        "db.operation.name": "aquery",
        "db.collection.name": shared.collection_name,
        "milvus.mode": "default",
        "milvus.top_k": 3,
        "milvus.results": 3,
        "milvus.shared.search": 1,
    }
    assert delete.attributes["error.type"] == "QueryError"
    assert not delete.status.is_ok
    assert delete.events == ()  # an exception's message may quote data

    [metric] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("db.client.operation.duration", "s")
    points = {point.attributes["db.operation.name"]: point for point in metric.data.data_points}
    assert points["aquery"].count == points["adelete_nodes"].count == 1


async def test_spans_are_children_of_the_callers(shared, opentelemetry):
    exporter, _ = opentelemetry
    with trace.get_tracer("application").start_as_current_span("request"):
        await shared.aget_nodes(["node-0"])
    inner, outer = exporter.get_finished_spans()
    assert outer.name == "request"
    assert inner.parent.span_id == outer.context.span_id


async def test_without_opentelemetry_nothing_is_traced(shared, monkeypatch, llama_index):
    monkeypatch.setattr(_observability, "trace", None)
    events, _ = llama_index
    await shared.aget_nodes(["node-0"])
    assert len(events.kept) == 2


def test_nobody_is_told_where_nobody_listens():
    assert not _observability.is_observed()


async def test_one_line_of_log_for_each_rpc_and_no_handler(shared, caplog):
    assert logging.getLogger("llama_index_milvus_async").handlers == []
    with caplog.at_level(logging.DEBUG, logger="llama_index_milvus_async"):
        await shared.aquery(asking(make_nodes(1)[0]))
    [line] = [r.getMessage() for r in caplog.records if "kind=search" in r.getMessage()]
    assert "items=1 " in line


async def test_progress_is_shown_where_it_is_wanted(make_store, coloured, capsys):
    store = coloured(make_store(batch_size=10))
    await store.add(make_nodes(25), show_progress=True)
    shown = capsys.readouterr().err
    assert "Writing" in shown
    assert "25/25" in shown
    await store.add(make_nodes(5, prefix="quiet"))
    assert capsys.readouterr().err == ""


async def test_each_page_of_an_iteration_is_an_operation(shared, coloured, colour, llama_index):
    events, _ = llama_index
    assert len([node async for node in coloured(shared).iter_nodes(batch_size=3)]) == 4
    ends = [event for event in events.kept if isinstance(event, MilvusOperationEndEvent)]
    assert {end.operation for end in ends} == {"aiter_nodes" if colour == "async" else "iter_nodes"}
    assert [end.results for end in ends if end.results] == [3, 1]
