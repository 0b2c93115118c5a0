"""Requests of pymilvus without its retrying.

pymilvus repeats an insert whose connection was lost although the rows may have been written, ends
other requests at the first closed port instead, waits inside its own call where others could be
served, and on Python below 3.12 makes a task for each call with a time-out. Calls made within
`single_attempts` make one attempt; whether to make another one is decided where it is known
whether that does harm. All other calls, such as the user's own through `client` and `aclient`, are
made as ever.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from pymilvus.exceptions import MilvusException

logger = logging.getLogger(__name__)

_is_single: ContextVar[bool] = ContextVar("is_single", default=False)

#: Methods of a handler whose failure has certainly changed nothing.
READS = (
    "describe_collection",
    "describe_index",
    "get_flush_state",
    "get_load_state",
    "get_loading_progress",
    "get_server_version",
    "has_collection",
    "has_partition",
    "hybrid_search",
    "list_indexes",
    "query",
    "search",
    "wait_for_creating_index",
    "wait_for_loading_collection",
)
#: Methods of a handler that may have done their work although they failed.
WRITES = (
    "alter_collection_properties",
    "create_collection",
    "create_index",
    "delete",
    "drop_collection",
    "flush",
    "insert_rows",
    "load_collection",
    "release_collection",
    "upsert_rows",
)
_EXPECTED = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, asyncio.TimeoutError)


@contextmanager
def single_attempts() -> Iterator[None]:
    """Have requests made within, in this task or thread, make one attempt each."""
    token = _is_single.set(True)
    try:
        yield
    finally:
        _is_single.reset(token)


def changed_nothing(error: BaseException) -> bool:
    """Whether an error is that of a single attempt to read."""
    return getattr(error, "_changed_nothing", False)


def install(handler: Any) -> None:
    """Have a handler of pymilvus, of either colour, heed `single_attempts`.

    A method that is not decorated as expected goes on retrying.
    """
    for name in (*READS, *WRITES):
        retrying = getattr(handler, name, None)
        attempt = getattr(getattr(type(handler), name, None), "__wrapped__", None)
        if retrying is None or attempt is None:
            logger.debug("%s is retried by pymilvus or not at all", name)
            continue
        make = _asynchronous if inspect.iscoroutinefunction(attempt) else _blocking
        setattr(handler, name, make(handler, retrying, attempt, name in READS))


def _asynchronous(
    handler: Any, retrying: Callable[..., Any], attempt: Callable[..., Any], reads: bool
) -> Callable[..., Any]:
    async def request(*args: Any, **kwargs: Any) -> Any:
        if not _is_single.get():
            return await retrying(*args, **kwargs)
        try:
            return await attempt(handler, *args, **kwargs)
        except _EXPECTED as error:
            _note(error, reads)
            raise
        except Exception as error:
            raise _unexpected(error, reads) from error

    return request


def _blocking(
    handler: Any, retrying: Callable[..., Any], attempt: Callable[..., Any], reads: bool
) -> Callable[..., Any]:
    def request(*args: Any, **kwargs: Any) -> Any:
        if not _is_single.get():
            return retrying(*args, **kwargs)
        try:
            return attempt(handler, *args, **kwargs)
        except _EXPECTED as error:
            _note(error, reads)
            raise
        except Exception as error:
            raise _unexpected(error, reads) from error

    return request


def _unexpected(error: Exception, reads: bool) -> MilvusException:
    # As pymilvus' own decorator words it.
    unexpected = MilvusException(message=f"Unexpected error, message=<{error}>")
    _note(unexpected, reads)
    return unexpected


def _note(error: Any, reads: bool) -> None:
    error._changed_nothing = reads
