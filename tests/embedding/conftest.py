"""What the tests of shared embedding calls have in common."""

from functools import partial

import pytest

from llama_index_milvus_async._concurrency import single_flight
from llama_index_milvus_async._concurrency.slices import Slices


@pytest.fixture(autouse=True)
def slices_that_never_end(monkeypatch):
    """Callers of one turn of the loop share a call, however busy the machine is.

    Otherwise a process that has to wait for a processor has used up its slice of the loop, and the
    callers after that come in the next turn, with a call of their own.
    """
    monkeypatch.setattr(single_flight, "Slices", partial(Slices, seconds=600.0))
