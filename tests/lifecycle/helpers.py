"""What the tests of a store's life look at, and faults that a recorder plays."""

import asyncio
import threading

from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery

from tests.fixtures.stores import DIM

#: A thread of a test that does not end by itself is a failure, not a hang.
SECONDS_TO_WAIT = 60


def query(**kwargs):
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=10, **kwargs)


def ids_in(store):
    return sorted(node.node_id for node in store.get_nodes(filters=MetadataFilters(filters=[])))


class Gate:
    """Holds requests of one method until it is opened; for `Recorder.intercept`."""

    def __init__(self, method):
        self.method = method
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, call):
        if call.method == self.method:
            self.reached.set()
            assert self.open.wait(SECONDS_TO_WAIT)

    async def was_reached(self):
        assert await asyncio.to_thread(self.reached.wait, SECONDS_TO_WAIT)
