"""A search service: FastAPI in front of one store that all requests share.

    uvicorn examples.fastapi_service:app
    MILVUS_URI=http://localhost:19530 uvicorn examples.fastapi_service:app

    curl localhost:8000/documents --json '{"id": "tea", "text": "The Hatter pours tea."}'
    curl 'localhost:8000/search?q=Who+pours+tea&top_k=3&mode=hybrid'
    curl localhost:8000/stats

Requests that wait at the same time share the runs of the embedding model (`CoalescingEmbedding`)
and then, by the store's own doing, RPCs: `/stats` shows how many. The service starts without Milvus
as well, says 503 until it is there, and needs no restart then.

Settings are environment variables: MILVUS_URI (a file of Milvus Lite by default, which one process
at a time can open: no `--workers`), MILVUS_TOKEN, MILVUS_COLLECTION, MILVUS_TIMEOUT in seconds for
each request of ours, and MILVUS_SPARSE=0 for a server before Milvus 2.5 or a collection without
full text, where `mode` is "default" or "mmr".
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from examples.shared import INSTALL, DemoError, load_embed_model, what_it_needs

with what_it_needs("fastapi_service.py"):
    from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from examples.library import Document, DocumentId, Found, Library, Mode, Stored, Text
    from llama_index_milvus_async import CoalescingEmbedding, MilvusVectorStore
    from llama_index_milvus_async.errors import (
        FilterError,
        MilvusVectorStoreError,
        NodeError,
        QueryError,
        RequestTimeoutError,
        UnreachableError,
    )

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

logger = logging.getLogger("uvicorn.error")  # uvicorn's log of everything but requests

#: Seconds that Milvus has to answer /health.
HEALTH_TIMEOUT = 3.0


def create_app(embed_model: BaseEmbedding | None = None) -> Service:
    """Build the service.

    Args:
        embed_model: By default that of `async_rag.py`, loaded when the service starts.

    Raises:
        ValueError: One of the settings is not allowed.
    """
    configured = MilvusVectorStore(
        uri=os.environ.get("MILVUS_URI") or "./fastapi_service.db",
        token=os.environ.get("MILVUS_TOKEN", ""),
        collection_name=os.environ.get("MILVUS_COLLECTION", "fastapi_service"),
        enable_sparse=os.environ.get("MILVUS_SPARSE", "1") != "0",
        upsert_mode=True,
        # A server that was lost is looked for this long, and then a request fails.
        timeout=float(os.environ.get("MILVUS_TIMEOUT", "10")),
    )

    @asynccontextmanager
    async def lifespan(app: Service) -> AsyncIterator[dict[str, Any]]:
        try:
            model = embed_model or await asyncio.to_thread(load_embed_model, None)
        except DemoError as error:
            app.problem = str(error)
            raise
        except ImportError as error:
            app.problem = f"{error}. Install what the embedding model needs: {INSTALL}"
            raise

        coalescing = CoalescingEmbedding(model)
        sample = await coalescing.aget_query_embedding("How many dimensions?")
        async with aclosing(configured.model_copy(update={"dim": len(sample)})) as store:
            try:
                await store.aconnect()
            except MilvusVectorStoreError as error:
                logger.error("%s. The service starts, and tries again at each request.", error)
            yield {"library": Library(store, coalescing)}

    app = Service(title="Search on Milvus", lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(MilvusVectorStoreError, answer_store_error)
    app.add_exception_handler(RequestValidationError, answer_bad_request)
    return app


def library_of(request: Request) -> Library:
    """The library that the lifespan has opened."""
    library: Library = request.state.library
    return library


TheLibrary = Annotated[Library, Depends(library_of)]
router = APIRouter()


@router.post("/documents", status_code=201)
async def store_document(document: Document, library: TheLibrary) -> Stored:
    """Store a document, or replace it."""
    return Stored(id=document.id, passages=await library.put(document))


@router.delete("/documents/{document_id:path}", status_code=204)
async def delete_document(document_id: Annotated[DocumentId, Path()], library: TheLibrary) -> None:
    """Delete a document; 204 also where there is none."""
    await library.delete(document_id)


@router.get("/search")
async def search(
    library: TheLibrary,
    q: Annotated[Text, Query(max_length=10_000)],
    top_k: Annotated[int, Query(ge=1, le=100)] = 5,
    mode: Mode = "default",
) -> list[Found]:
    """Find passages: by meaning, by words (`text_search`), or by both (`hybrid`)."""
    return await library.search(q, top_k, mode)


@router.get("/health")
async def health(library: TheLibrary) -> dict[str, str]:
    """200 where Milvus answers a read, 503 where it does not."""
    read = library.store.aget_nodes(["health"], timeout=HEALTH_TIMEOUT)
    try:
        await asyncio.wait_for(read, HEALTH_TIMEOUT)
    except asyncio.TimeoutError as error:
        raise UnreachableError("health", f"no answer in {HEALTH_TIMEOUT} s") from error
    return {"status": "ok"}


@router.get("/stats")
async def stats(library: TheLibrary) -> dict[str, dict[str, int | float]]:
    """Calls, and runs of the model or RPCs, of each kind since the start."""
    kinds = {**library.embed_model.stats(), **library.store.stats()}
    return {
        kind: {**asdict(counts), "items_per_rpc": counts.items_per_rpc}
        for kind, counts in kinds.items()
    }


async def answer_store_error(request: Request, error: Exception) -> JSONResponse:
    """What the client can mend is told; what concerns the server is in its log only."""
    if isinstance(error, (NodeError, FilterError, QueryError)):
        return JSONResponse({"detail": str(error)}, 422)
    logger.error("%s %s: %s", request.method, request.url.path, error)
    if isinstance(error, UnreachableError):
        detail = "The database cannot be reached; try again later."
        return JSONResponse({"detail": detail}, 503, {"Retry-After": "5"})
    if isinstance(error, RequestTimeoutError):
        return JSONResponse({"detail": "The database did not answer in time."}, 504)
    return JSONResponse({"detail": "The database refused; the service's log says why."}, 500)


async def answer_bad_request(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own answer repeats the input, which may be long, and no JSON (NaN, half emoji)."""
    assert isinstance(error, RequestValidationError)
    problems = [{key: one[key] for key in ("loc", "msg", "type")} for one in error.errors()]
    return JSONResponse({"detail": problems}, 422)


class Service(FastAPI):
    """FastAPI that can tell in a sentence why it does not start, in place of a traceback."""

    problem = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self.problem:
                message = {**message, "message": self.problem}
            await send(message)

        await super().__call__(scope, receive, tell if scope["type"] == "lifespan" else send)


try:
    app = create_app()
except ValueError as error:
    print(f"fastapi_service.py: in the settings MILVUS_...: {error}", file=sys.stderr)
    sys.exit(2)
