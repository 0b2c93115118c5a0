"""Requests of pymilvus without its retrying.

pymilvus repeats an insert whose connection was lost although the rows may have been written, waits
inside its own call where others could be served, and on Python below 3.12 makes a task for each
call with a time-out. Calls that ask for it make one attempt here; whether to make another one is
decided where it is known whether that does harm. All other calls, such as the user's own through
`client` and `aclient`, are made as ever.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

import grpc
from pymilvus.exceptions import MilvusException

logger = logging.getLogger(__name__)

#: Keyword argument of a request that says: one attempt.
SINGLE_ATTEMPT = "single_attempt"

_METHODS = ("search", "hybrid_search", "query", "insert_rows", "upsert_rows")
_EXPECTED = (MilvusException, grpc.RpcError, asyncio.TimeoutError)


def install(handler: Any) -> None:
    """Have a handler of pymilvus, of either colour, know `SINGLE_ATTEMPT`.

    A method that is not decorated as expected goes on retrying.
    """
    for name in _METHODS:
        retrying = getattr(handler, name, None)
        if retrying is None:
            continue
        attempt = getattr(getattr(type(handler), name, None), "__wrapped__", None)
        if attempt is None:
            logger.debug("%s is retried by pymilvus: it is not decorated as expected", name)
            request = _without_argument(retrying)
        elif inspect.iscoroutinefunction(attempt):
            request = _asynchronous(handler, retrying, attempt)
        else:
            request = _blocking(handler, retrying, attempt)
        setattr(handler, name, request)


def _asynchronous(
    handler: Any, retrying: Callable[..., Any], attempt: Callable[..., Any]
) -> Callable[..., Any]:
    async def request(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.pop(SINGLE_ATTEMPT, False):
            return await retrying(*args, **kwargs)
        try:
            return await attempt(handler, *args, **kwargs)
        except _EXPECTED:
            raise
        except Exception as error:
            raise _unexpected(error) from error

    return request


def _blocking(
    handler: Any, retrying: Callable[..., Any], attempt: Callable[..., Any]
) -> Callable[..., Any]:
    def request(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.pop(SINGLE_ATTEMPT, False):
            return retrying(*args, **kwargs)
        try:
            return attempt(handler, *args, **kwargs)
        except _EXPECTED:
            raise
        except Exception as error:
            raise _unexpected(error) from error

    return request


def _without_argument(retrying: Callable[..., Any]) -> Callable[..., Any]:
    def request(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(SINGLE_ATTEMPT, None)
        return retrying(*args, **kwargs)

    return request


def _unexpected(error: Exception) -> MilvusException:
    # As pymilvus' own decorator words it.
    return MilvusException(message=f"Unexpected error, message=<{error}>")
