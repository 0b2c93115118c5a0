"""When a collection of Milvus Lite is flushed in the background."""

import threading
import time

from llama_index_milvus_async._transport.flushing import (
    MAX_UNFLUSHED_ROWS,
    QUIET_SECONDS,
    UNFLUSHED_ROWS,
    UnflushedRows,
)


def waiting(unflushed):
    """A thread that waits until a flush is due."""
    thread = threading.Thread(target=unflushed.wait_until_due, daemon=True)
    thread.start()
    return thread


def test_a_flush_is_needed_from_a_thousand_rows_on():
    unflushed = UnflushedRows()
    assert not unflushed.wrote(UNFLUSHED_ROWS - 1)
    assert not unflushed.searched()
    assert unflushed.wrote(1)


def test_one_flush_is_waited_for_at_a_time():
    unflushed = UnflushedRows()
    assert unflushed.wrote(UNFLUSHED_ROWS)
    assert not unflushed.wrote(UNFLUSHED_ROWS)
    assert not unflushed.searched()
    unflushed.wait_until_due()
    unflushed.begin_flush()
    unflushed.wrote(UNFLUSHED_ROWS)
    unflushed.ended()
    assert unflushed.searched()


def test_a_flush_that_could_not_be_made_is_needed_again_once_somebody_searches():
    unflushed = UnflushedRows()
    assert unflushed.wrote(UNFLUSHED_ROWS)
    unflushed.ended()
    assert unflushed.searched()


def test_a_flush_is_due_once_nobody_writes():
    unflushed = UnflushedRows()
    unflushed.wrote(UNFLUSHED_ROWS)
    began = time.monotonic()
    unflushed.wait_until_due()
    assert time.monotonic() - began > QUIET_SECONDS / 2


def test_what_is_flushed_counts_no_longer():
    unflushed = UnflushedRows()
    unflushed.wrote(UNFLUSHED_ROWS)
    unflushed.ended()
    unflushed.begin_flush()
    assert not unflushed.searched()
    assert not unflushed.wrote(UNFLUSHED_ROWS - 1)


def test_a_flush_waits_while_somebody_writes():
    unflushed = UnflushedRows()
    unflushed.wrote(UNFLUSHED_ROWS)
    thread = waiting(unflushed)
    until = time.monotonic() + 3 * QUIET_SECONDS
    while time.monotonic() < until:
        before = time.monotonic()
        time.sleep(0.01)
        unflushed.wrote(0)
        # A machine that stands still for so long writes nothing either.
        assert thread.is_alive() or time.monotonic() - before >= QUIET_SECONDS
    thread.join()


def test_a_search_ends_the_wait():
    unflushed = UnflushedRows()
    unflushed.wrote(UNFLUSHED_ROWS)
    unflushed._wrote_at = time.monotonic() + 3_600  # somebody writes all the time
    thread = waiting(unflushed)
    unflushed.searched()
    thread.join()


def test_very_many_rows_end_the_wait():
    unflushed = UnflushedRows()
    unflushed.wrote(UNFLUSHED_ROWS)
    thread = waiting(unflushed)
    while thread.is_alive():
        unflushed.wrote(MAX_UNFLUSHED_ROWS // 10)
    assert unflushed.wrote(0) is False


def test_closing_ends_the_wait():
    unflushed = UnflushedRows()
    unflushed.wrote(UNFLUSHED_ROWS)
    unflushed._wrote_at = time.monotonic() + 3_600
    thread = waiting(unflushed)
    unflushed.hasten()
    thread.join()
