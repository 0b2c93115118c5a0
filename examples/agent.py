"""An agent that looks things up: a LlamaIndex `FunctionAgent` with the store as its tool.

    python examples/ingest_folder.py examples/data
    python examples/agent.py
    OPENAI_API_KEY=... python examples/agent.py --question "What did Newton say about rainbows?"

The language model decides what to search for, reads the passages, searches again if it wants to,
and answers. OPENAI_API_BASE, or --api-base, names any other endpoint that speaks OpenAI's protocol,
with a model that can call functions. Without a key the same workflow runs with a mock: two rules in
the place of a language model, which search for the question and quote the best passage.

All questions are asked at the same time; the searches never hold the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import (
    QUESTIONS,
    DemoError,
    add_question_arguments,
    add_store_arguments,
    count,
    indented,
    load_embed_model,
    load_llm,
    no_answer,
    run_program,
    what_it_needs,
)

with what_it_needs("agent.py"):
    from llama_index.core.agent.workflow import AgentOutput, FunctionAgent, ToolCallResult
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.llms.types import ToolCallBlock
    from llama_index.core.llms import LLM, ChatMessage, MessageRole
    from llama_index.core.llms.mock import MockFunctionCallingLLM
    from llama_index.core.tools import FunctionTool
    from llama_index.core.vector_stores.types import VectorStoreQuery
    from llama_index.core.workflow import WorkflowRuntimeError, WorkflowTimeoutError
    from openai import OpenAIError

    from llama_index_milvus_async import MilvusVectorStore
    from llama_index_milvus_async.errors import MilvusVectorStoreError

SYSTEM_PROMPT = (
    "You answer questions from a collection of documents. Search it before you answer, in other "
    "words if the first search does not help. Answer in at most three sentences, from the passages "
    "only, and name the file they come from; if they do not have the answer, say so."
)
#: Seconds for a question, all calls of the language model included.
TIMEOUT = 120.0


def search_tool(store: MilvusVectorStore, embed_model: BaseEmbedding, top_k: int) -> FunctionTool:
    """The store as a tool; its name, docstring and annotations are what the model is told."""
    one_at_a_time = asyncio.Lock()  # tokenizers are not made for two threads at once

    async def search_documents(query: str) -> str:
        """Find the passages of the documents that are nearest in meaning to a question."""
        async with one_at_a_time:
            embedding = await embed_model.aget_query_embedding(query)
        result = await store.aquery(
            VectorStoreQuery(query_embedding=embedding, similarity_top_k=top_k)
        )
        if not result.nodes:
            raise DemoError(
                f"The collection {store.collection_name!r} at {store.uri} is empty; fill it with "
                "ingest_folder.py FOLDER."
            )
        return "\n\n".join(
            f"[{node.metadata.get('file', node.ref_doc_id)}] {' '.join(node.get_content().split())}"
            for node in result.nodes
        )

    return FunctionTool.from_defaults(async_fn=search_documents)


async def ask_all(
    store: MilvusVectorStore, embed_model: BaseEmbedding, llm: LLM, args: argparse.Namespace
) -> list[tuple[AgentOutput, list[ToolCallResult]]]:
    """Ask all questions at the same time, then close the store."""
    async with store:
        agent = FunctionAgent(
            tools=[search_tool(store, embed_model, args.top_k)],
            llm=llm,
            system_prompt=SYSTEM_PROMPT,
            streaming=False,
            timeout=TIMEOUT,
        )
        asked = [ask(agent, question) for question in args.question]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


async def ask(agent: FunctionAgent, question: str) -> tuple[AgentOutput, list[ToolCallResult]]:
    """Run the workflow for a question; returns the answer and the searches that led to it."""
    handler = agent.run(question)
    calls = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    try:
        answer = await handler
    except OpenAIError as error:
        raise no_answer(agent.llm, error) from error
    except (WorkflowRuntimeError, WorkflowTimeoutError) as error:
        raise DemoError(f"{question!r} was not answered: {error}") from error
    for call in calls:
        # The agent tells the language model only, which can do nothing about an unreachable store.
        if isinstance(call.tool_output.exception, (DemoError, MilvusVectorStoreError)):
            raise call.tool_output.exception
    return answer, calls


def main() -> None:
    """Build the agent, ask the questions, print what it did."""
    args = parse_arguments()
    llm = load_llm(args.llm_model, args.api_base)
    if llm is None:
        print("Without OPENAI_API_KEY a mock takes the place of the language model.")
    if args.uri.endswith(".db") and not Path(args.uri).exists():
        raise DemoError(f"There is no {args.uri}; make it with ingest_folder.py FOLDER.")
    embed_model = load_embed_model(args.embed_model)
    store = MilvusVectorStore(
        uri=args.uri,
        token=args.token,
        collection_name=args.collection,
        dim=len(embed_model.get_query_embedding("How many dimensions?")),
    )
    outputs = asyncio.run(ask_all(store, embed_model, llm or mock_llm(), args))
    for number, (question, (answer, calls)) in enumerate(
        zip(args.question, outputs, strict=True), start=1
    ):
        print(f"\n{number}. {question}")
        for call in calls:
            print(f"   {call.tool_name}({', '.join(map(repr, call.tool_kwargs.values()))})")
        print(indented(str(answer)))
    searches = sum(len(calls) for _, calls in outputs)
    print(f"\n{count(args.question, 'question')}, {searches} searches.")


def parse_arguments() -> argparse.Namespace:
    """The command line; a mistake in it ends the program with status 2."""
    parser = argparse.ArgumentParser(
        description="Ask an agent that looks things up in a collection of ingest_folder.py."
    )
    add_question_arguments(parser)
    add_store_arguments(parser, "./examples.db", "documents")
    args = parser.parse_args()
    args.question = args.question or QUESTIONS
    return args


def mock_llm() -> LLM:
    """A language model of two rules."""

    def respond(messages: Sequence[ChatMessage], **kwargs: Any) -> ChatMessage:
        last = messages[-1]
        if last.role == MessageRole.TOOL:
            best = (last.content or "").split("\n\n")[0]
            return ChatMessage(role=MessageRole.ASSISTANT, content=f"The best passage is: {best}")
        search = ToolCallBlock(
            tool_call_id="search", tool_name="search_documents", tool_kwargs={"query": last.content}
        )
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[search])

    return MockFunctionCallingLLM(response_generator=respond, is_chat_model=True)


def run() -> int:
    """Run the program; returns its exit status."""
    return run_program("agent.py", main)


if __name__ == "__main__":
    sys.exit(run())
