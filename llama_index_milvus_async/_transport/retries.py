"""Attempts until one succeeds, one fails for good, or the time is over."""

from __future__ import annotations

import copy
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .._concurrency.backoff import MAX_RESENDS, pause_after
from .._wire.status import is_being_created, is_overload
from ..errors import (
    CertificateError,
    LiteFileError,
    RequestTimeoutError,
    ServerError,
    StoreClosedError,
    UnreachableError,
)

T = TypeVar("T")

#: Seconds of the last attempt, where a pause has used up all others.
_LEAST_TIME = 0.001


def time_left(timeout: float | None) -> Callable[[], float | None]:
    """A function that says how many seconds of a timeout are left: some always are."""
    if timeout is None:
        return lambda: None
    ends = time.monotonic() + timeout
    return lambda: max(_LEAST_TIME, ends - time.monotonic())


def is_retryable(error: Exception, repeatable: bool) -> bool:
    """Whether another attempt may be made after an error.

    Args:
        error: What the last attempt raised.
        repeatable: Whether it does no harm to do twice what the attempt was to do.
    """
    if is_overload(error) or is_being_created(error):
        return True
    if not isinstance(error, UnreachableError):
        return False
    if isinstance(error, (CertificateError, LiteFileError)):  # no matter of time
        return False
    return repeatable or error.nothing_done


def combined_error(earlier: Exception | None, last: Exception) -> Exception:
    """What to tell of several attempts: nothing was done if none of them has done anything."""
    if isinstance(earlier, ServerError) and isinstance(last, StoreClosedError):
        return last if earlier.nothing_done else earlier
    if not isinstance(earlier, ServerError) or not isinstance(last, ServerError):
        return last
    told = last
    if isinstance(last, RequestTimeoutError) and isinstance(earlier, UnreachableError):
        # The rest of the time was too short for another attempt; why, only the earlier one knows.
        told = copy.copy(earlier)
        told.__cause__ = earlier.__cause__
    told.is_answer = last.is_answer and (earlier.is_answer or earlier.nothing_done)
    told.nothing_done = last.nothing_done and earlier.nothing_done
    return told


async def retry_until_deadline(
    attempt: Callable[[float | None], Awaitable[T]],
    *,
    timeout: float | None,
    repeatable: bool = True,
    sleep: Callable[[float], Awaitable[object]],
) -> T:
    """Make attempts, with growing pauses.

    Args:
        attempt: Makes one, in the seconds that are left.
        timeout: Seconds for all of them; without it their number is bounded.
        repeatable: Whether it does no harm to do it twice.
        sleep: Waits for some seconds.

    Raises:
        ServerError: That of the last attempt, or of an earlier one that says more.
    """
    left, failures = time_left(timeout), 0
    told: Exception | None = None
    while True:
        try:
            return await attempt(left())
        except (ServerError, StoreClosedError) as error:
            failures += 1
            told = combined_error(told, error)
            pause = pause_after(failures)
            seconds = left()
            last = failures > MAX_RESENDS if seconds is None else pause >= seconds
            if last or not is_retryable(error, repeatable):
                if told is error:
                    raise
                raise told from told.__cause__
        await sleep(pause)
