"""Cases whose stores reach the engine through a proxy."""

import pytest

from llama_index_milvus_async import MilvusVectorStore
from tests.faults.cases import LONG, SPARSE, Case
from tests.fixtures.stores import collection_name


@pytest.fixture(scope="module")
def collection(engine, make_shared_store):
    """A collection that all cases of an engine share: on standalone it takes 3 s to make."""
    store = make_shared_store(**(SPARSE if engine.is_lite else {}))
    store.connect()
    return store.collection_name


@pytest.fixture
def make_case(faulty, collection, coloured, request):
    """Makes a case whose store reaches the engine through the proxy."""
    proxy, engine = faulty
    cases = []

    def make(operation, **kwargs):
        prefix = f"{collection_name('case')}"
        options = {"uri": proxy.uri, "token": engine.token, "collection_name": collection, "dim": 8}
        options |= {"consistency_level": "Strong", "timeout": LONG}
        options |= SPARSE if engine.is_lite else {}
        # The default is an upsert.
        options |= {"upsert_mode": False} if operation == "add" else {}
        case = Case(
            operation, coloured(MilvusVectorStore(**{**options, **kwargs})), prefix, engine.is_lite
        )
        cases.append(case)
        return case

    yield make
    for case in cases:
        case.store.store.close()
