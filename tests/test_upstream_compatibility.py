"""One collection, two stores: llama-index-vector-stores-milvus 1.2.0 and this one.

Either makes the collection, either writes, and either reads what the other wrote.
"""

from __future__ import annotations

import pytest
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.stores import DIM, collection_name, make_nodes

# Making the environment of upstream, once, takes longer than a test may.
pytestmark = pytest.mark.timeout(900)

SCALARS = {"year": DataType.INT64, "author": DataType.VARCHAR}


def make_kinds(prefix):
    """Nodes of every class and shape of metadata that upstream can store."""
    plain = make_nodes(10, prefix=prefix, seed=7)
    document = f"{prefix} document"
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document, hash="abc")}
    given = {"relationships": source}
    scalars = {"author": "Ada", "year": 1843}
    nodes = [
        TextNode(id_=f"{prefix}-plain", text="plain text", metadata=scalars, **given),
        TextNode(
            id_=f"{prefix} with spaces, ünï 中文",
            text="text with 'quotes', \"more\" and \\ in it\n🎉",
            metadata={**scalars, "sp ace": "x", "emoji": "🎉"},
            **given,
        ),
        TextNode(
            id_=f"{prefix}-nested",
            text="nested metadata",
            metadata={**scalars, "nested": {"a": [1, {"b": None}], "c": 0.5}, "list": [1, 2]},
            **given,
        ),
        TextNode(
            id_=f"{prefix}-full",
            text="every field",
            metadata=scalars,
            relationships={
                **source,
                NodeRelationship.NEXT: RelatedNodeInfo(node_id="next", metadata={"k": 1}),
                NodeRelationship.CHILD: [RelatedNodeInfo(node_id="child")],
            },
            excluded_embed_metadata_keys=["author"],
            excluded_llm_metadata_keys=["year"],
            start_char_idx=3,
            end_char_idx=14,
            metadata_template="{key}={value}",
            metadata_separator=" | ",
            text_template="{content} ({metadata_str})",
        ),
        IndexNode(
            id_=f"{prefix}-index", text="index node", index_id="other", metadata=scalars, **given
        ),
        ImageNode(
            id_=f"{prefix}-image",
            text="image node",
            image_url="http://example.org/i.png",
            metadata=scalars,
            **given,
        ),
        Document(id_=f"{prefix}-document", text="a document", metadata=scalars),
    ]
    for node, other in zip(nodes, plain, strict=False):
        node.embedding = other.embedding
    return nodes


def bare(nodes):
    """The nodes without what a query does not return."""
    return [node.model_copy(update={"embedding": None}) for node in nodes]


def by_id(nodes):
    return {node.node_id: node for node in nodes}


class Pair:
    """Both stores on one collection."""

    def __init__(self, maker, name, theirs, ours, scalars):
        self.maker = maker
        self.name = name
        self.theirs = theirs
        self.ours = ours
        self.scalars = scalars


@pytest.fixture(
    scope="module",
    params=["theirs", "theirs-scalars", "ours", "ours-scalars"],
)
def pair(request, engine, upstream, make_shared_store):
    """A collection that the one or the other made, with or without columns for metadata."""
    maker, _, scalars = request.param.partition("-")
    names = list(SCALARS) if scalars else []
    name = collection_name(request.param)
    common = {"uri": engine.uri, "token": engine.token, "collection_name": name, "dim": DIM}
    common["consistency_level"] = "Strong"
    if scalars:
        common["scalar_field_names"] = names
    ours = make_shared_store(**common, scalar_field_types=[*SCALARS.values()] if scalars else None)
    types = {"scalar_field_types": [each.name for each in SCALARS.values()]} if scalars else {}
    theirs = upstream.open(**common, **types)
    if maker == "ours":
        ours.connect()
    # Upstream makes a collection that is not there.
    theirs.add(make_kinds("their"))
    ours.add(make_kinds("our"))
    return Pair(maker, name, theirs, ours, names)


ALL = make_kinds("their") + make_kinds("our")
IDS = [node.node_id for node in ALL]


def query_for(node=ALL[0], **kwargs):
    return VectorStoreQuery(
        **{"query_embedding": node.embedding, "similarity_top_k": len(ALL), **kwargs}
    )


def equals(key, value):
    return MetadataFilters(
        filters=[MetadataFilter(key=key, operator=FilterOperator.EQ, value=value)]
    )


# This store reads


async def test_this_store_finds_what_both_wrote(pair, coloured):
    result = await coloured(pair.ours).query(query_for())
    assert by_id(result.nodes) == by_id(bare(ALL))
    assert result.ids == [node.node_id for node in result.nodes]
    assert [type(by_id(result.nodes)[i]) for i in IDS] == [type(node) for node in ALL]


async def test_this_store_reads_what_both_wrote_by_id(pair, coloured):
    assert await coloured(pair.ours).get_nodes(IDS) == ALL
    assert await coloured(pair.ours).get_nodes(IDS, include_embeddings=False) == bare(ALL)


async def test_embeddings_come_on_request_exactly_as_either_wrote_them(pair, coloured):
    result = await coloured(pair.ours).query(query_for(output_fields=["embedding"]))
    assert by_id(result.nodes) == by_id(ALL)


async def test_named_fields_leave_the_nodes_whole(pair, coloured):
    assert await coloured(pair.ours).get_nodes(IDS, output_fields=["author"]) == ALL
    result = await coloured(pair.ours).query(query_for(output_fields=["author"]))
    assert by_id(result.nodes) == by_id(bare(ALL))


async def test_mmr_works_on_what_both_wrote(pair, coloured):
    query = query_for(similarity_top_k=5, mode=VectorStoreQueryMode.MMR)
    result = await coloured(pair.ours).query(query, mmr_prefetch_k=len(ALL))
    assert len(result.nodes) == 5
    assert [by_id(bare(ALL))[i] for i in result.ids] == result.nodes


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("year", 1843, len(ALL)),
        ("year", 1844, 0),
        ("author", "Ada", len(ALL)),
        ("sp ace", "x", 2),
        ("ref_doc_id", "our document", 6),
        ("document_id", "their document", 6),
    ],
)
async def test_filters_apply_to_what_both_wrote(pair, coloured, key, value, expected):
    filters = equals(key, value)
    assert len((await coloured(pair.ours).query(query_for(filters=filters))).ids) == expected
    assert len(await coloured(pair.ours).get_nodes(filters=filters)) == expected


async def test_documents_and_ids_restrict_what_both_wrote(pair, coloured):
    result = await coloured(pair.ours).query(query_for(doc_ids=["their document"]))
    assert sorted(result.ids) == sorted(n.node_id for n in ALL if n.ref_doc_id == "their document")
    result = await coloured(pair.ours).query(query_for(node_ids=IDS[5:9]))
    assert sorted(result.ids) == sorted(IDS[5:9])


# Upstream reads


def as_upstream_reads(nodes):
    """Upstream reads every `Document` as a `TextNode`, whoever wrote it."""
    return [
        TextNode(id_=node.node_id, text=node.text, metadata=node.metadata, embedding=node.embedding)
        if isinstance(node, Document)
        else node
        for node in nodes
    ]


async def test_upstream_finds_what_both_wrote_with_the_same_similarities(pair, coloured):
    nodes, similarities, ids = pair.theirs.query(
        query_embedding=ALL[0].embedding, similarity_top_k=len(ALL)
    )
    ours = await coloured(pair.ours).query(query_for())
    assert dict(zip(ids, similarities, strict=True)) == pytest.approx(
        dict(zip(ours.ids, ours.similarities, strict=True)), abs=1e-5
    )
    assert by_id(nodes) == by_id(as_upstream_reads(bare(ALL)))


def test_upstream_reads_what_both_wrote_by_id(pair):
    assert by_id(pair.theirs.get_nodes(node_ids=IDS)) == by_id(as_upstream_reads(ALL))


def test_upstream_filters_what_both_wrote(pair):
    filters = {"filters": [{"key": "emoji", "operator": "==", "value": "🎉"}]}
    nodes, _, _ = pair.theirs.query(
        query_embedding=ALL[0].embedding, similarity_top_k=len(ALL), filters=filters
    )
    assert sorted(node.node_id for node in nodes) == [
        "our with spaces, ünï 中文",
        "their with spaces, ünï 中文",
    ]


CLASHING = {
    "id": "own id",
    "text": "own text",
    "embedding": [1, 2],
    "doc_id": "own doc",
    "document_id": "keep",
    "_node_type": "own type",
}


async def test_both_keep_metadata_with_the_names_of_columns(pair, coloured):
    store = coloured(pair.ours)
    scalars = {"author": "Bob", "year": 1900}
    own, theirs = (
        make_nodes(1, prefix=who, **CLASHING, **scalars)[0] for who in ("own-clash", "their-clash")
    )
    await store.add([own])
    pair.theirs.add([theirs])
    ids = [own.node_id, theirs.node_id]
    assert by_id(pair.theirs.get_nodes(node_ids=ids)) == by_id([own, theirs])
    assert bare(await store.get_nodes(ids)) == bare([own, theirs])
    for key, value in CLASHING.items():
        if isinstance(value, str):
            found = await store.get_nodes(filters=equals(key, value))
            assert [node.node_id for node in found] == [own.node_id]
    # Upstream keeps them in the serialized node only.
    found = await store.get_nodes(filters=equals("id", theirs.node_id))
    assert [node.node_id for node in found] == [theirs.node_id]
    await store.delete_nodes(ids)


async def test_a_node_too_large_for_its_place_is_read_here(pair, coloured):
    """Upstream cannot read it, nor write one such to a server."""
    store = coloured(pair.ours)
    [large] = make_nodes(1, prefix="large", author="Bob", year=1900, long="words " * 12_000)
    await store.add([large])
    assert bare(await store.get_nodes(["large-0"])) == bare([large])
    await store.delete_nodes(["large-0"])


# The rows


def test_both_write_the_same_fields_and_values(pair, raw):
    fields = {}
    for who in ("their", "our"):
        (row,) = raw.query(pair.name, filter=f'id == "{who}-full"', output_fields=["*"])
        fields[who] = dict(row)
    theirs, ours = fields["their"], fields["our"]
    assert theirs.keys() == ours.keys()
    told_apart = {"id", "doc_id", "document_id", "ref_doc_id", "_node_content"}
    assert {k: v for k, v in theirs.items() if k not in told_apart} == {
        k: v for k, v in ours.items() if k not in told_apart
    }


def test_a_collection_keeps_the_columns_that_its_maker_gave_it(pair, raw):
    columns = {each["name"] for each in raw.describe_collection(pair.name)["fields"]}
    own = {"_node_content", "_node_type"} if pair.maker == "ours" else set()
    assert columns == {"id", "doc_id", "text", "embedding", *pair.scalars, *own}


# Both delete


async def test_this_store_deletes_what_upstream_wrote(pair, coloured):
    store = coloured(pair.ours)
    extra = make_nodes(8, prefix="extra", year=1900, author="Bob")
    pair.theirs.add(extra)
    await store.delete("doc-0")
    await store.delete_nodes(["extra-4", "extra-5"])
    await store.delete_nodes(filters=equals("author", "Bob"), node_ids=["extra-6", IDS[0]])
    left = pair.theirs.get_nodes(node_ids=[*(node.node_id for node in extra), *IDS])
    assert sorted(node.node_id for node in left) == sorted(["extra-7", *IDS])
    await store.delete_nodes(["extra-7"])


async def test_upstream_deletes_what_this_store_wrote(pair, coloured):
    store = coloured(pair.ours)
    extra = make_nodes(8, prefix="extra", year=1900, author="Bob")
    await store.add(extra)
    pair.theirs.delete("doc-0")
    pair.theirs.delete_nodes(node_ids=["extra-4", "extra-5"])
    pair.theirs.delete_nodes(
        filters={"filters": [{"key": "author", "operator": "==", "value": "Bob"}]},
        node_ids=["extra-6", IDS[0]],
    )
    left = await store.get_nodes([node.node_id for node in extra] + IDS)
    assert [node.node_id for node in left] == ["extra-7", *IDS]
    await store.delete_nodes(["extra-7"])


# The class itself


def test_the_store_says_the_class_name_that_upstream_says():
    assert MilvusVectorStore.class_name() == "MilvusVectorStore"
