"""Which questions and texts share a call of the model, and when and where it is called."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llama_index_milvus_async import CoalescingEmbedding, ConfigurationError, EncoderError
from tests.coalescing.server import turns
from tests.embedding.models import (
    QUESTION,
    TEXT,
    BatchModel,
    Functions,
    LocalModel,
    ServiceModel,
    vector,
)


async def gathered(*awaitables):
    return await asyncio.gather(*awaitables, return_exceptions=True)


# What shares a call


async def test_questions_that_wait_together_share_a_call():
    functions = Functions()
    model = CoalescingEmbedding(BatchModel(), embed_queries=functions.embed_queries)
    questions = [f"question {n}" for n in range(300)]
    embeddings = await gathered(*map(model.aget_query_embedding, questions))
    assert embeddings == [vector(QUESTION, question) for question in questions]
    assert [len(texts) for texts in functions.calls.lists] == [250, 50]
    counts = model.stats()["query"]
    assert (counts.calls, counts.rpcs, counts.items) == (300, 2, 300)


async def test_texts_of_all_callers_share_calls():
    model = BatchModel(embed_batch_size=4)
    wrapped = CoalescingEmbedding(model, max_batch=100)
    with model._calls.held():
        first = asyncio.create_task(wrapped.aget_text_embedding("first"))
        await model._calls.until_entered()
        tasks = [
            asyncio.create_task(wrapped.aget_text_embedding("single")),
            asyncio.create_task(wrapped.aget_text_embedding_batch([f"text {n}" for n in range(9)])),
            asyncio.create_task(wrapped.aget_text_embedding_batch(["more", "and more"])),
        ]
        await turns()
    _, single, batch, other = await gathered(first, *tasks)
    assert single == vector(TEXT, "single")
    assert batch == [vector(TEXT, f"text {n}") for n in range(9)]
    assert other == [vector(TEXT, "more"), vector(TEXT, "and more")]
    assert [len(texts) for texts in model._calls.lists] == [1, 12]


async def test_questions_and_texts_never_share_a_call():
    functions = Functions()
    model = CoalescingEmbedding(
        BatchModel(), embed_queries=functions.embed_queries, embed_texts=functions.embed_texts
    )
    same = await gathered(
        *(model.aget_query_embedding("same"), model.aget_text_embedding("same")),
        *(model.aget_query_embedding("other"), model.aget_text_embedding("more")),
    )
    assert same[:2] == [vector(QUESTION, "same"), vector(TEXT, "same")]
    assert {frozenset(texts) for texts in functions.calls.lists} == {
        frozenset({"same", "other"}),
        frozenset({"same", "more"}),
    }


async def test_questions_go_before_documents():
    functions = Functions()
    model = CoalescingEmbedding(
        BatchModel(),
        embed_queries=functions.embed_queries,
        embed_texts=functions.embed_texts,
        max_batch=2,
    )
    with functions.calls.held():
        first = asyncio.create_task(model.aget_text_embedding("first"))
        await functions.calls.until_entered()
        texts = asyncio.create_task(model.aget_text_embedding_batch(list("abcd")))
        await turns()
        questions = [asyncio.create_task(model.aget_query_embedding(q)) for q in "123"]
        await turns()
    await gathered(first, texts, *questions)
    assert functions.calls.lists == [["first"], ["1", "2"], ["3"], ["a", "b"], ["c", "d"]]


async def test_equal_texts_that_wait_together_are_embedded_once():
    model = BatchModel()
    wrapped = CoalescingEmbedding(model)
    embeddings = await wrapped.aget_text_embedding_batch(["same"] * 300 + ["other"])
    assert embeddings == [vector(TEXT, "same")] * 300 + [vector(TEXT, "other")]
    assert model._calls.lists == [["same", "other"]]
    counts = wrapped.stats()["text"]
    assert (counts.calls, counts.items) == (301, 2)
    # Each caller may change its own list.
    embeddings[0].append(0.0)
    assert embeddings[1] == vector(TEXT, "same")


async def test_a_text_that_is_asked_for_while_it_is_embedded_is_not_embedded_again():
    functions = Functions()
    model = CoalescingEmbedding(BatchModel(), embed_queries=functions.embed_queries)
    with functions.calls.held():
        first = asyncio.create_task(model.aget_query_embedding("same"))
        await functions.calls.until_entered()
        second = asyncio.create_task(model.aget_query_embedding("same"))
        await turns()
    assert await gathered(first, second) == [vector(QUESTION, "same")] * 2
    await model.aget_query_embedding("same")  # nothing is kept
    assert functions.calls.lists == [["same"], ["same"]]


async def test_a_model_that_takes_questions_one_by_one_is_given_them_so():
    model = LocalModel()
    wrapped = CoalescingEmbedding(model)
    questions = [f"question {n}" for n in range(5)]
    embeddings = await gathered(*map(wrapped.aget_query_embedding, questions))
    assert embeddings == [vector(QUESTION, question) for question in questions]
    assert model._calls.lists == [[question] for question in questions]
    # They still come back together, so that what callers do next can be shared.
    assert wrapped.stats()["query"].rpcs == 1


async def test_max_batch_bounds_both_sorts():
    functions = Functions()
    model = CoalescingEmbedding(
        BatchModel(),
        embed_queries=functions.embed_queries,
        embed_texts=functions.embed_texts,
        max_batch=3,
    )
    await gathered(
        *map(model.aget_query_embedding, "abcd"), model.aget_text_embedding_batch(list("efgh"))
    )
    assert functions.calls.lists == [["a", "b", "c"], ["d"], ["e", "f", "g"], ["h"]]


async def test_nothing_is_embedded_without_texts():
    model = BatchModel()
    assert await CoalescingEmbedding(model).aget_text_embedding_batch([]) == []
    assert model._calls.lists == []


# Where and how many at once


@pytest.mark.parametrize("cls", [LocalModel, BatchModel, ServiceModel])
async def test_a_model_is_never_called_on_the_loop(cls):
    model = cls()
    wrapped = CoalescingEmbedding(model, max_batch=1)
    await gathered(
        *map(wrapped.aget_query_embedding, "abcd"), *map(wrapped.aget_text_embedding, "abcd")
    )
    assert model._calls.on_loop == 0
    assert len(model._calls.lists) == 8


def test_one_local_call_at_a_time_from_all_loops_threads_and_wrappers():
    model = BatchModel()
    wrappers = [CoalescingEmbedding(model, max_batch=1) for _ in range(2)]

    async def ask(wrapped):
        await gathered(
            *map(wrapped.aget_query_embedding, "abcd"), wrapped.aget_text_embedding_batch(["e"])
        )

    def block(wrapped):
        for text in "abcd":
            wrapped.get_query_embedding(text)
            wrapped.get_text_embedding_batch([text])

    threads = [
        *(threading.Thread(target=asyncio.run, args=(ask(each),)) for each in wrappers * 2),
        *(threading.Thread(target=block, args=(each,)) for each in wrappers),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model._calls.most_at_once == 1
    assert wrappers[0].stats()["query"].calls == 8  # over two loops that are gone


async def test_a_service_has_several_requests_under_way():
    model = ServiceModel()
    wrapped = CoalescingEmbedding(model)
    with model._calls.held():
        tasks = [asyncio.create_task(wrapped.aget_query_embedding(f"{n}")) for n in range(20)]
        for _ in range(7):
            await model._calls.until_entered()
    await gathered(*tasks)
    # One of eight is kept for texts.
    assert model._calls.most_at_once == 7


async def test_async_functions_have_several_calls_under_way():
    functions = Functions()
    functions.opened = asyncio.Event()
    model = CoalescingEmbedding(
        BatchModel(), embed_queries=functions.aembed_queries, max_batch=1, max_in_flight=4
    )
    tasks = [asyncio.create_task(model.aget_query_embedding(f"{n}")) for n in range(9)]
    await turns()
    assert functions.at_once == 3
    functions.opened.set()
    assert await gathered(*tasks) == [vector(QUESTION, f"{n}") for n in range(9)]
    assert functions.most_at_once == 3


async def test_a_function_that_returns_an_awaitable_is_awaited():
    functions = Functions()
    model = CoalescingEmbedding(
        BatchModel(), embed_queries=lambda texts: functions.aembed_queries(texts)
    )
    assert await model.aget_query_embedding("a") == vector(QUESTION, "a")


async def test_arrays_become_lists():
    np = pytest.importorskip("numpy")
    model = CoalescingEmbedding(
        BatchModel(),
        embed_queries=lambda texts: np.ones((len(texts), 2)),
        embed_texts=lambda texts: [np.zeros(2) for _ in texts],
    )
    assert await model.aget_query_embedding("a") == [1.0, 1.0]
    assert await model.aget_text_embedding("a") == [0.0, 0.0]


# Failures


@pytest.mark.parametrize("cls", [LocalModel, BatchModel])
async def test_a_bad_text_fails_alone(cls):
    model = CoalescingEmbedding(cls())
    texts = [f"text {n}" for n in range(9)]
    *good, bad, batch = await gathered(
        *map(model.aget_text_embedding, texts),
        model.aget_text_embedding("bad"),
        model.aget_text_embedding_batch(["fine", "bad too"]),
    )
    assert good == [vector(TEXT, text) for text in texts]
    assert str(bad) == "cannot embed ['bad']"
    assert str(batch) == "cannot embed ['bad too']"


async def test_each_caller_of_a_bad_text_gets_an_exception_of_its_own():
    model = CoalescingEmbedding(BatchModel())
    first, second = await gathered(*(model.aget_query_embedding("bad") for _ in range(2)))
    assert str(first) == str(second)
    assert first is not second


@pytest.mark.parametrize("error", [ConnectionError("gone"), TimeoutError("late")])
async def test_what_does_not_concern_texts_is_told_to_all_and_not_tried_again(error):
    calls = []

    def fail(texts):
        calls.append(texts)
        raise error

    model = CoalescingEmbedding(BatchModel(), embed_queries=fail)
    failures = await gathered(*map(model.aget_query_embedding, "abcd"))
    assert [str(each) for each in failures] == [str(error)] * 4
    assert len(calls) == 1


class HTTPError(Exception):
    """As clients of services raise them."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status_code = status


@pytest.mark.parametrize(("status", "calls"), [(400, 7), (500, 7), (401, 1), (429, 1), (503, 1)])
async def test_a_status_tells_whether_it_concerns_a_text(status, calls):
    seen = []

    def fail(texts):
        seen.append(texts)
        raise HTTPError(status)

    model = CoalescingEmbedding(BatchModel(), embed_queries=fail)
    failures = await gathered(*map(model.aget_query_embedding, "abcd"))
    assert {str(each) for each in failures} == {f"status {status}"}
    assert len(seen) == calls


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ([[1.0]] * 3, "The embedding model returned 3 embeddings for 1 texts"),
        (None, "The embedding model returned NoneType; a list with an embedding"),
        ([1.0], "The embedding model returned float as the embedding of a text"),
    ],
)
async def test_what_is_no_list_of_embeddings_is_refused(returned, problem):
    model = CoalescingEmbedding(BatchModel(), embed_texts=lambda texts: returned)
    with pytest.raises(EncoderError, match=problem):
        await model.aget_text_embedding_batch(["a", "b"])


async def test_stop_iteration_of_a_model_does_not_hang():
    def stop(texts):
        raise StopIteration

    model = CoalescingEmbedding(BatchModel(), embed_queries=stop)
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await model.aget_query_embedding("a")


async def test_what_is_no_text_is_refused_before_the_model_is_called():
    model = BatchModel()
    with pytest.raises(ConfigurationError, match="of type NoneType; it must be a string"):
        await CoalescingEmbedding(model).aget_query_embedding(None)
    assert model._calls.lists == []


# Leaving


async def test_a_cancelled_caller_leaves_the_others():
    functions = Functions()
    model = CoalescingEmbedding(BatchModel(), embed_queries=functions.embed_queries)
    with functions.calls.held():
        first = asyncio.create_task(model.aget_query_embedding("first"))
        await functions.calls.until_entered()
        leaving, staying, other = (
            asyncio.create_task(model.aget_query_embedding(text)) for text in ("same", "same", "b")
        )
        alone = asyncio.create_task(model.aget_query_embedding("alone"))
        await turns()
        leaving.cancel()
        alone.cancel()
        await turns()
    assert await gathered(first, staying, other) == [
        vector(QUESTION, text) for text in ("first", "same", "b")
    ]
    assert functions.calls.lists == [["first"], ["same", "b"]]
    assert leaving.cancelled()
    assert alone.cancelled()


async def test_a_call_that_nobody_waits_for_still_keeps_others_from_the_model():
    functions = Functions()
    model = CoalescingEmbedding(BatchModel(), embed_queries=functions.embed_queries)
    with functions.calls.held():
        leaving = asyncio.create_task(model.aget_query_embedding("leaving"))
        await functions.calls.until_entered()
        leaving.cancel()
        await turns()
        tasks = [asyncio.create_task(model.aget_query_embedding(text)) for text in "ab"]
        await turns()
    await gathered(leaving, *tasks)
    assert functions.calls.lists == [["leaving"], ["a", "b"]]
    assert functions.calls.most_at_once == 1


async def test_a_list_that_is_cancelled_takes_all_its_texts_out():
    functions = Functions()
    model = CoalescingEmbedding(BatchModel(), embed_texts=functions.embed_texts)
    with functions.calls.held():
        first = asyncio.create_task(model.aget_text_embedding("first"))
        await functions.calls.until_entered()
        batch = asyncio.create_task(model.aget_text_embedding_batch(list("abc")))
        await turns()
        batch.cancel()
        await turns()
    await gathered(first, batch)
    await model.aget_text_embedding("last")
    assert functions.calls.lists == [["first"], ["last"]]


def test_a_loop_may_end_while_the_model_works():
    model = BatchModel()
    wrapped = CoalescingEmbedding(model)

    async def leave():
        task = asyncio.create_task(wrapped.aget_text_embedding("a"))
        await model._calls.until_entered()
        asyncio.get_running_loop().call_later(0.01, model._calls.gate.set)
        task.cancel()

    with model._calls.held():
        asyncio.run(leave())
    assert asyncio.run(wrapped.aget_text_embedding("b")) == vector(TEXT, "b")
