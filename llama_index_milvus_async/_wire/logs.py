"""What pymilvus and Milvus Lite log of failures that the store tells or handles itself.

Both log a failed call as an error, with a traceback, before they tell whoever called. What the
store calls ends in its own exception, in another attempt, or was expected: two processes create one
collection at the same time, and one of them finds it made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The loggers that tell a failure in the thread, or the task, that has called.
_LOGGERS = ("pymilvus.decorators", "milvus_lite.server_manager")

# A context variable is the caller's own in both colours, and `asyncio.to_thread` hands it on.
_expected: ContextVar[list[logging.LogRecord] | None] = ContextVar("expected", default=None)


@contextmanager
def expected_failures() -> Iterator[list[logging.LogRecord]]:
    """Keep what is logged of failures inside the block out of the log.

    Calls of other threads and tasks, such as those of `store.client`, are logged as ever.

    Yields:
        The records that were kept out, so far.
    """
    outer, records = _expected.get(), list[logging.LogRecord]()
    _expected.set(records)
    try:
        yield records
    finally:
        # No `reset`: a coroutine that is garbage-collected ends in another context than its own.
        _expected.set(outer)


def _keep_out(record: logging.LogRecord) -> bool:
    records = _expected.get()
    if records is None or record.levelno < logging.WARNING:
        return True
    records.append(record)
    return False


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_keep_out)
