"""Prints a page with the messages of the package: `make messages`.

Each is provoked by the call above it, so that both can be judged together: does the message say
what was found, and what to do? At the end come the messages that no call here provokes, as they
stand in the source; `…` stands for what varies.

`test_messages.py` runs the calls as well.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core import MockEmbedding
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from pymilvus import DataType, Function, FunctionScore, FunctionType, WeightedRanker

import llama_index_milvus_async
from llama_index_milvus_async import (
    BM25BuiltInFunction,
    CoalescingEmbedding,
    FilterOperatorFunction,
    MilvusVectorStore,
    NewestFirst,
    ScalarMetadataFilter,
    ScalarMetadataFilters,
    ingest,
)
from llama_index_milvus_async._translation.filters import build_expression
from tests.expressions_page import ENGINES
from tests.fixtures.layouts import layout_of

SOURCE = Path(llama_index_milvus_async.__file__).parent


def built(**arguments: Any) -> MilvusVectorStore:
    """A store of a server; building one sends nothing."""
    return MilvusVectorStore(**{"uri": "http://localhost:19530", "dim": 2, **arguments})


def opened(**arguments: Any) -> None:
    """Open a collection of Milvus Lite; "dense" exists."""
    store = MilvusVectorStore(**{"uri": "./messages.db", **arguments})
    try:
        store.connect()
    finally:
        store.close()


def node(embedding: Any = (1.0, 0.0), /, **fields: Any) -> TextNode:
    """A node of the stores' dimension."""
    return TextNode(embedding=embedding and [*embedding], **{"text": "Tea at six.", **fields})


def where(key: str, value: Any, operator: str = "EQ") -> MetadataFilters:
    """A filter with one condition."""
    one = MetadataFilter(key=key, value=value, operator=FilterOperator[operator])
    return MetadataFilters(filters=[one])


def lists(key: str, value: Any, operator: str) -> ScalarMetadataFilters:
    """A filter on lists with one condition."""
    function = FilterOperatorFunction[operator]
    one = ScalarMetadataFilter(key=key, value=value, operator=function)
    return ScalarMetadataFilters(filters=[one])


def ask(**fields: Any) -> VectorStoreQuery:
    """A query that works, but for the fields that are given."""
    return VectorStoreQuery(**{"query_embedding": [1.0, 0.0], "similarity_top_k": 1, **fields})


def translated(engine: str, filters: MetadataFilters, **columns: Any) -> str:
    """What filters become on another engine, in a collection with these columns."""
    dynamic = columns.pop("dynamic", True)
    return build_expression(layout_of(columns, ENGINES[engine], dynamic=dynamic), filters=filters)


def rerank(*columns: str, **params: Any) -> Function:
    """A function of Milvus that ranks."""
    return Function("ranker", FunctionType.RERANK, list(columns), params=params)


DECAY = {"reranker": "decay", "function": "exp", "origin": 0, "scale": 1}

CALLS = {
    "The constructor": """
built(uri="localhost:19530")
built(uri="./notes.sqlite")
built(uri=None)
built(uri="")
built(uri="http://localhost:99999")
built(uri="http://user:pass/word@localhost:19530")
built(overwite=True)
built(host="localhost", port=19530)
built(api_key="secret")
built(dim=0)
built(timeout=0)
built(similarity_metric="cosin")
built(consistency_level="strict")
built(collection_name=7)
built(batch_size=0)
built(max_in_flight="many")
built(index_config="HNSW")
built(index_config={"index_type": "HNWS"})
built(enable_dense=False)
built(sparse_embedding_function=BM25BuiltInFunction())
built(enable_sparse=True, sparse_embedding_function="bm25")
built(enable_sparse=True, hybrid_ranker="RRF")
built(enable_sparse=True, hybrid_ranker=WeightedRanker)
built(enable_sparse=True, hybrid_ranker="WeightedRanker", hybrid_ranker_params={"weights": [1]})
built(enable_sparse=True, hybrid_ranker_params=60)
built(scalar_field_names=["year"])
built(scalar_field_names=["year"], scalar_field_types=["int"])
built(scalar_fields={"year": "int"})
built(scalar_fields={"tag": {"type": VARCHAR, "length": 9}})
built(scalar_fields={"tag": {"type": VARCHAR, "max_length": 0}})
built(scalar_fields={"year": {"type": INT64, "default": "old"}})
built(scalar_fields={"year": {"type": INT64, "max_length": 9}})
built(num_partitions=16)
built(partition_key_field="tenant", scalar_fields={"tenant": BOOL})
built(partition_key_field="tenant", scalar_fields={"tenant": {"type": VARCHAR, "nullable": True}})
built(dense_fields=["image"])
built(dense_fields={"image": 512})
built(dense_fields={"image": {"dim": 9, "type": BINARY_VECTOR}})
built(text_key="id", doc_id_field="id", embedding_field="id")
built(scalar_field_types=7, scalar_field_names=["year"])
built(scalar_fields={"year": {"type": INT64, "index": 7}})
built(scalar_fields={"year": {"type": INT64, "nullable": "no"}})
built(scalar_fields={"year": {"type": INT64, "element_type": INT64}})
built(scalar_fields={"any": {"type": JSON, "default": "x"}})
built(enable_sparse=True, hybrid_ranker_params={"k": 0})
built(enable_sparse=True, hybrid_ranker="WeightedRanker", hybrid_ranker_params={"weights": [2, 2]})
built(enable_sparse=True, hybrid_ranker=WeightedRanker(1, 1), hybrid_ranker_params={"k": 60})
built(search_config="ef=64")
built(output_fields="text")
built(client_options="secure")
built(use_async_client=False).aclient
built().aclient
BM25BuiltInFunction(output_field_names="text")
BM25BuiltInFunction(analyzer_params={}, multi_analyzer_params={})
CoalescingEmbedding("a model")
CoalescingEmbedding(CoalescingEmbedding(MockEmbedding(embed_dim=2)))
CoalescingEmbedding(MockEmbedding(embed_dim=2), max_batch=0)
CoalescingEmbedding(MockEmbedding(embed_dim=2), max_batches=9)
""",
    "Opening a collection": """
opened(uri="./nowhere/notes.db", dim=2)
built(uri="./messages.db", dim=None, collection_name="new").schema()
opened(collection_name="my notes", dim=2)
opened(collection_name="dense", dim=3)
opened(collection_name="dense", similarity_metric="L2")
opened(collection_name="dense", enable_sparse=True)
opened(collection_name="dense", embedding_field="vector")
opened(collection_name="dense", scalar_fields={"year": INT64})
opened(collection_name="dense", token="root:Milvus")
opened(collection_name="int8", dim=2, dense_fields={"small": {"dim": 2, "type": INT8_VECTOR}})
""",
    "Writing": """
store.add(None)
store.add("Tea at six.")
store.add(["Tea at six."])
store.add([node(None)])
store.add([node([1.0, 0.0, 0.0])])
store.add([node([1.0, float("nan")])])
store.add([node(text="x" * 70_000)])
store.add([node(id_="x" * 70_000)])
store.add([node(metadata={"list": list(range(20_000))})])
store.add([node(metadata={"when": object()})])
store.add([node(metadata={"number": 2**70})])
store.add([node()], milvus_partition_name="nowhere")
store.add([node()], milvus_partition_name=7)
store.add([node()], milvus_partition="a")
store.add([node()], verbose=True)
store.add([node(id_="a"), node(id_="a")])
store.delete(None)
store.delete_nodes()
store.delete_nodes("a")
store.delete_nodes([7])
store.delete_nodes(filters=MetadataFilters(filters=[]))
store.update_metadata(where("year", 1865))
store.update_metadata(set={"year": 1865})
store.update_metadata(where("year", 1865), set={"year": 1}, unset=["year"])
store.update_metadata(where("year", 1865), set="year")
store.update_metadata(where("year", 1865), unset="year")
store.update_metadata(where("year", 1865), set={7: 1})
store.update_metadata(where("year", 1865), set={"when": object()})
store.add([node(metadata={"text": chr(0xD800)})])
""",
    "Ingesting": """
ingest("notes", [], [])
ingest(store, "notes", [])
ingest(store, ["Tea at six."], [])
ingest(store, [node([1.0, 0.0]), node(None)], [])
ingest(store, [], MockEmbedding(embed_dim=2))
ingest(store, [], [len])
ingest(store, [], [], batch_size=0)
ingest(store, [], [], docstore={})
ingest(store, [], [], docstore_strategy="upsert")
ingest(closed, [], [])
""",
    "Reading and querying": """
store.get_nodes()
store.get_nodes("a")
store.get_nodes(["a"], limit=0)
store.query("Who stole the tarts?")
store.query(ask(query_embedding=[1.0, 0.0, 0.0]))
store.query(ask(query_embedding=None, query_str=""))
store.query(ask(query_embedding=None, query_str="tarts"))
store.query(ask(similarity_top_k=0))
store.query(ask(similarity_top_k=100_000))
store.query(ask(mode=SEMANTIC_HYBRID))
store.query(ask(mode=HYBRID, query_str="tarts"))
store.query(ask(), filter=where("year", 1865))
store.query(ask(), output_fields=["text"])
store.query(ask(), offset=-1)
store.query(ask(), group_size=2)
store.query(ask(), score_threshold="high")
store.query(ask(), consistency_level="strict")
store.query(ask(), milvus_partition_names=[])
store.query(ask(), milvus_partition_names=["nowhere"])
store.query(ask(), milvus_search_config={"ef": "x"})
store.query(ask(), timeout=-1)
store.query(ask(mode=MMR), mmr_threshold=2)
store.query(ask(mode=MMR), mmr_prefetch_k=5, mmr_prefetch_factor=2)
store.query(ask(embedding_field="picture"))
store.query_many(ask())
words.query(ask(mode=HYBRID))
words.query(ask(mode=HYBRID, query_str="tarts", alpha=2))
words.query(ask(mode=HYBRID, query_str="tarts", alpha=0.5), milvus_ranker=WeightedRanker(1, 1))
words.query(ask(mode=HYBRID, query_str="tarts"), offset=5)
words.query(ask(mode=HYBRID, query_str="tarts"), mmr_over="all")
words.query(ask(mode=HYBRID, query_str="tarts"), hybrid_fields="embedding")
words.query(ask(mode=HYBRID, query_str="tarts"), hybrid_fields=["embedding", "embedding"])
words.query(ask(mode=HYBRID, query_str="tarts"), milvus_ranker=WeightedRanker(1, 1, 1))
words.query(ask(mode=HYBRID, query_str="tarts"), milvus_ranker=lambda query, legs: "best")
store.query(ask(query_embedding="tarts"))
store.query(ask(output_fields="text"))
store.query(ask(mode=MMR), mmr_prefetch_factor=0)
store.query(ask(mode=MMR), offset=500)
store.query(ask(), group_by_field=7)
store.query(ask(), group_by_field="year", group_size=0)
store.query(ask(), milvus_search_config="ef=64")
store.query(ask(), milvus_search_config={"offset": 5})
store.query(ask(query_embedding=None, filters=where("year", 1865)), score_threshold=0.5)
""",
    "Rankers": """
NewestFirst("")
NewestFirst("published", half_life=30)
built(query_ranker="RRFRanker")
built(query_ranker=WeightedRanker(1, 1))
store.query(ask(), milvus_ranker=WeightedRanker(1, 1))
store.query(ask(), milvus_ranker=rerank("published"))
store.query(ask(), milvus_ranker=rerank("published", reranker="decay", function="exp"))
store.query(ask(), milvus_ranker=rerank(**DECAY))
store.query(ask(), milvus_ranker=rerank("published", **DECAY))
store.query(ask(), milvus_ranker=rerank("text", **DECAY))
store.query(ask(), milvus_ranker=rerank(reranker="boost", weight=2, filter="published > 2020"))
store.query(ask(), milvus_ranker=FunctionScore([]))
store.query(ask(), milvus_ranker=NewestFirst("published"), offset=100)
store.query(ask(), milvus_ranker=NewestFirst("published"), group_by_field="doc_id")
store.query(ask(), milvus_ranker=lambda query, legs: "tarts")
store.query(ask(mode=MMR), milvus_ranker=lambda query, legs: [NodeWithScore(node=node())])
store.query(ask(), ranker_prefetch_k=20)
words.query(ask(mode=HYBRID, query_str="tarts"), ranker_prefetch_k=20)
""",
    "Filters": """
store.query(ask(filters={"year": 1865}))
store.count(where("year", None))
store.count(where("year", 1865, "IN"))
store.count(where("year", [1865], "GT"))
store.count(where("", 1))
store.count(where("year", 2**63))
store.count(where("text", "50%", "TEXT_MATCH"))
store.count(where("text", "twelve chars", "TEXT_MATCH_INSENSITIVE"))
store.get_nodes(filters=where("yaer", 1865))
store.query(ask(), string_expr="year = 1865")
store.query(ask(), string_expr="(year == 1865")
store.query(ask(), string_expr="year == 1865)")
store.query(ask(), string_expr=1865)
store.count(where("text", 7, "TEXT_MATCH"))
store.count(where("a b", "x", "CONTAINS"))
translated("2.3", where("text", "tarts", "TEXT_MATCH"))
translated("2.3", where("][", 1))
translated("2.6", where("any", 1), any=JSON)
translated("2.6", where("year", 1865), dynamic=False)
translated("Lite 2", where("title", "two" + chr(10) + "lines"))
translated("Lite 2", where("year", None, "IS_EMPTY"))
store.query(ask(), milvus_scalar_filters=where("tags", "a"))
store.query(ask(), milvus_scalar_filters=lists("tags", [], "ARRAY_CONTAINS_ANY"))
store.query(ask(), milvus_scalar_filters=lists("tags", -1, "ARRAY_LENGTH"))
""",
    "A closed store, and one whose collection is gone": """
closed.get_nodes(["a"])
gone.get_nodes(["a"])
""",
}


#: What the calls use, beside the stores `store` and `words` (dense; dense and sparse).
NAMES: dict[str, Any] = {
    **DataType.__members__,
    **VectorStoreQueryMode.__members__,
    "DECAY": DECAY,
    **{
        each.__name__: each
        for each in (
            BM25BuiltInFunction,
            CoalescingEmbedding,
            MetadataFilters,
            FunctionScore,
            MockEmbedding,
            NewestFirst,
            NodeWithScore,
            WeightedRanker,
            ask,
            built,
            ingest,
            lists,
            node,
            opened,
            rerank,
            translated,
            where,
        )
    },
}


@dataclass(frozen=True)
class Message:
    """What a call had to say."""

    call: str
    kind: str
    text: str


class _Records(logging.Handler):
    """Keeps what the package logs at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)


@contextlib.contextmanager
def _stores() -> Iterator[dict[str, Any]]:
    """The stores of the calls, on Milvus Lite in the working directory."""
    made = {
        name: MilvusVectorStore(uri="./messages.db", collection_name=collection, dim=2, **more)
        for name, collection, more in [
            ("store", "dense", {}),
            ("words", "words", {"enable_sparse": True}),
            ("closed", "dense", {}),
            ("gone", "gone", {}),
        ]
    }
    made["store"].add([node(id_="tea", metadata={"year": 1865})])
    made["words"].connect()
    made["gone"].connect()
    made["gone"].client.drop_collection("gone")
    made["closed"].close()
    try:
        yield made
    finally:
        for each in made.values():
            each.close()


def provoke() -> dict[str, list[Message]]:
    """The messages of all calls, in a folder of its own; a call without one has an empty text."""
    records = _Records()
    logger = logging.getLogger("llama_index_milvus_async")
    logger.addHandler(records)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with _stores() as stores:
                names = {**NAMES, **stores}
                return {
                    title: [_message(call, names, records) for call in calls.split("\n") if call]
                    for title, calls in CALLS.items()
                }
        finally:
            os.chdir(before)
            logger.removeHandler(records)


def _message(call: str, names: dict[str, Any], records: _Records) -> Message:
    records.found.clear()
    try:
        eval(call, names)
    except Exception as error:
        return Message(call, type(error).__name__, str(error))
    texts = [record.getMessage() for record in records.found]
    return Message(call, "WARNING" if texts else "", "\n".join(texts))


def templates() -> dict[str, list[str]]:
    """The texts of what the package raises and logs, by the file that they stand in."""
    found: dict[str, list[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = statement.exc if isinstance(statement, ast.Raise) else statement
            if not isinstance(call, ast.Call):
                continue
            logs = isinstance(call.func, ast.Attribute) and call.func.attr == "warning"
            if call is statement and not logs:
                continue
            texts = [text for argument in call.args if " " in (text := _text(argument))]
            if texts:
                name = file.relative_to(SOURCE).as_posix()
                found.setdefault(name, []).append(" ".join(texts))
    return found


def _text(expression: ast.expr) -> str:
    """The text of a literal; `…` stands for what varies."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return re.sub(r"%[srd.0-9f]+", "…", expression.value)
    if isinstance(expression, ast.JoinedStr):
        return "".join(map(_text, expression.values))
    if isinstance(expression, ast.BinOp):
        return _text(expression.left) + _text(expression.right)
    return "…"


def _is_provoked(template: str, messages: str) -> bool:
    parts = [part.strip() for part in template.split("…") if len(part.strip()) > 3]
    return bool(parts) and all(part in messages for part in parts)


def page() -> Iterator[str]:
    """The lines of the page."""
    yield "# All messages\n"
    yield "The calls use:\n"
    for helper in (built, opened, node, where, lists, ask, translated, rerank):
        yield "\n".join(f"    {line}" for line in inspect.getsource(helper).split("\n"))
    sections = provoke()
    for title, messages in sections.items():
        yield f"## {title}\n"
        for message in messages:
            text = re.sub(r"/tmp/\w+", "/folder", message.text) or "(no error)"
            yield f"`{message.call}`\n\n> {message.kind} {text}\n"
    heard = "\n".join(message.text for each in sections.values() for message in each)
    yield "## Not provoked here\n"
    for name, texts in templates().items():
        left = [text for text in texts if not _is_provoked(text, heard)]
        if left:
            yield f"`{name}`\n"
            yield "".join(f"- {text}\n" for text in left)


if __name__ == "__main__":
    print("\n".join(page()))
