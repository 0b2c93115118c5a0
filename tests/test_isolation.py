"""One tenant never reaches the rows of another.

An application restricts what its users ask for: by a filter or an expression of its own beside
theirs, by a partition, by documents or by ids. Here users are attackers, who write whatever may get
them out of that.
"""

# ruff: noqa: RUF001 (look-alikes of quotes and brackets are among the attacks)

import asyncio
import random
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType

from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.filters import (
    build_expression,
)
from llama_index_milvus_async.errors import (
    ConfigurationError,
    FilterError,
    MilvusVectorStoreError,
    QueryError,
    RequestTimeoutError,
    ServerError,
    UnreachableError,
)
from llama_index_milvus_async.filters import FilterOperatorFunction, ScalarMetadataFilter
from tests.fixtures.labels import label
from tests.fixtures.layouts import layout_of
from tests.fixtures.stores import DIM, make_nodes

pytestmark = pytest.mark.starts

ROWS = 6
#: The attacker's tenant, and the victim's, whose ids and values attackers guess.
OWN, OTHER = "acme", "globex"
#: A tenant whose rows come and go: who deletes attacks from there.
VANDAL = "initech"
#: Keyword arguments of a read that need not wait for a tick, because nothing was written.
NOW = {"consistency_level": "Eventually"}

# What attackers write

#: Characters with a meaning, words of Milvus' language, and what looks like either.
ATOMS = [
    *"\"'\\()[]{}$!=<>&|,.;:+-*/%^~`#@? \n\r\t",
    *("\x00", "\x01", "\x0b", "\x0c", "\x1a", "\x7f", "\x85", "\xa0", "\u2028", "\u2029", "\ufeff"),
    *("“", "”", "’", "＂", "＇", "（", "）", "［", "＝", "ａｎｄ", "оr", "\u202e", "\u200b", "🎉"),
    *("and", "or", "not", "in", "like", "exists", "true", "false", "is null", "AND", "OR", "NOT"),
    *("&&", "||", "==", "!=", "<=", ">=", "**", "//", "/*", "*/", "--", "<>", "=~", "[]", "()"),
    *("id", "tenant", "number", "$meta", '$meta["tenant"]', "doc_id", "text", "_node_content"),
    *("json_contains(", "array_length(", "text_match(", "random_sample(", "element_filter("),
    *('"acme"', '"globex"', "globex", "globex-0", "1", "-1", "0x1f", "1e5", "NaN", "{tenant}"),
    *('\\"', "\\\\", "\\'", '\\\n"', "\\q", "\\x22", "\\u0022", "\\042", 'r"', 'L"', 'u8"', '"""'),
    *('")', '"]', "')", '") or (', "') or (", ") or (", ")) or ((", '"] or id in ["', '" or "'),
    *('id != ""', 'tenant == "globex"', "1 == 1", "not (", ") #", ") --", ") /*", "%", "_", "%%"),
]
#: Whole attacks, that have worked somewhere.
CLASSICS = [
    'x") or (tenant != "',
    'x) or (id != ""',
    'id != "") or (id != ""',
    'tenant == "acme") or (tenant == "globex"',
    '"\n) or (tenant != "',
    '"\\\n") or (id != ""',
    "'\"') or (id != '\"'",
    'id == r"\\") or (id != "") or id == "',
    'not (tenant == "acme") or id != ""',
    'id != "" or id != "" and id != ""',
    'id != "" /* ) */ or (id != "")',
    'id != "" # )',
    'id in [") or (", "]"] or id != ""',
    '"] or id in ["globex-0',
    'globex-0", "globex-1',
    "globex%",
    '$meta["tenant"] == "globex" or exists tenant',
    'exists tenant and tenant == "globex" or id != ""',
    "not not id != ''",
    '((((((((id != ""))))))))',
    "１ == １",
    "“) or (id != ”",
    "x\x00) or (id != y",
]
#: A text that a server repeats, and that this package takes for its own: see below.
SHAM = "Retry timeout"
ATTACKS = st.one_of(
    st.lists(st.sampled_from(ATOMS), max_size=12).map("".join),
    st.lists(st.sampled_from(ATOMS), max_size=12).map(" ".join),
    st.sampled_from(CLASSICS),
    st.text(max_size=20),
    st.tuples(st.sampled_from(ATOMS), st.integers(100, 3000)).map(lambda pair: pair[0] * pair[1]),
).filter(lambda text: SHAM not in text)


def spliced(draw_from):
    """Texts in which some characters are replaced by pieces of attacks."""

    def splice(parts):
        text, cuts = parts
        for at, length, atom in cuts:
            at %= len(text) + 1
            text = text[:at] + atom + text[at + length :]
        return text

    cut = st.tuples(st.integers(0, 200), st.integers(0, 2), st.sampled_from(ATOMS))
    return st.tuples(draw_from, st.lists(cut, max_size=3)).map(splice)


LEAVES = st.sampled_from(
    [
        *('id != ""', 'tenant == "globex"', "number >= 0", "exists tenant", 'id like "globex%"'),
        *('id in ["globex-0"]', 'not (tenant == "acme")', "json_contains(tags, 'a')"),
        *('text != "x"', '$meta["k-v"] != 9', '$meta["nest"] ["a"] >= 0', "number in [0, 1, 2]"),
    ]
)
# Milvus 2.3.5 dies of a path that it splits at `][`, and of some equalities whose left side is a
# constant, such as `(id == "a") and (1 == "a")`.
KILLS = re.compile(r"""\]\[|(?:["'\])]|(?<![\w$])(?:\d[\w.]*|true|false))\s*[=!]=""", re.IGNORECASE)

#: Expressions, most of them whole; without those that kill the server.
EXPRESSIONS = st.one_of(
    ATTACKS,
    spliced(
        st.recursive(
            LEAVES,
            lambda inner: st.one_of(
                st.tuples(inner, st.sampled_from([" or ", " and ", " || "]), inner).map("".join),
                inner.map(lambda text: f"({text})"),
                inner.map(lambda text: f"not ({text})"),
            ),
            max_leaves=4,
        )
    ),
).filter(lambda text: not KILLS.search(text))

VALUES = st.one_of(
    ATTACKS,
    st.integers(-(2**64), 2**64),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.lists(ATTACKS, max_size=4),
    st.lists(st.integers(-(2**53), 2**53), max_size=4),
    st.none(),
)
KEYS = st.one_of(
    st.sampled_from(["tenant", "word", "number", "tags", "k-v", "id", "text", "doc_id", "nest.a"]),
    ATTACKS,
)
CONDITIONS = st.sampled_from([*FilterCondition, None])


def leaf(key, operator, value):
    # Unvalidated, as a filter that a program assembles may be.
    return MetadataFilter.model_construct(key=key, operator=operator, value=value)


def group(filters, condition=FilterCondition.AND):
    return MetadataFilters.model_construct(filters=filters, condition=condition)


def scalar(key, value, operator):
    return ScalarMetadataFilter.model_construct(key=key, value=value, operator=operator)


#: What a user may hand to an application that takes LlamaIndex's filters. Some match everybody.
FILTERS = st.recursive(
    st.one_of(
        st.builds(leaf, KEYS, st.sampled_from(FilterOperator), VALUES),
        st.builds(
            leaf,
            st.sampled_from(["number", "k-v", "nest.a"]),
            st.just(FilterOperator.LT),
            st.just(ROWS),
        ),
        st.builds(leaf, st.just("tenant"), st.just(FilterOperator.NE), st.just(OWN)),
    ),
    lambda inner: st.builds(group, st.lists(inner, max_size=3), CONDITIONS),
    max_leaves=4,
).map(lambda made: made if isinstance(made, MetadataFilters) else group([made]))
SCALAR_FILTERS = st.builds(scalar, KEYS, VALUES, st.sampled_from(FilterOperatorFunction))
IDS = st.lists(ATTACKS | st.sampled_from(["acme-0", "globex-0", "globex-1"]), max_size=4)
DOCUMENTS = st.lists(ATTACKS | st.sampled_from(["acme-doc", "globex-doc", "None"]), max_size=3)


@dataclass
class Wish:
    """All that a user may ask for, beside a vector."""

    filters: MetadataFilters | None = None
    expression: str | None = None
    ids: list[str] | None = None
    documents: list[str] | None = None
    scalar_filters: Any = None

    def query(self, **restriction):
        """The query; a restriction takes the place of what is wished."""
        wished = {"filters": self.filters, "node_ids": self.ids, "doc_ids": self.documents}
        return asked(**{**wished, **restriction})


def seldom(strategy):
    """Each further part of a wish narrows it, so that few wishes have them all."""
    return st.one_of(st.none(), st.none(), strategy)


WISHES = st.builds(
    Wish, st.none() | FILTERS, seldom(EXPRESSIONS), seldom(IDS), seldom(DOCUMENTS),
    seldom(SCALAR_FILTERS),
)  # fmt: skip

#: Errors by which an attack may end: refused here or by the engine, which goes on to work.
REFUSED = (ConfigurationError, FilterError, QueryError, ServerError)
BROKEN = (UnreachableError, RequestTimeoutError)


def attacking(examples):
    return settings(
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        database=None,
        # Of a server that has died every further call would wait for a minute.
        phases=[Phase.explicit, Phase.generate],
    )


def attempt(operation):
    """Runs an attack; returns its result, or `None` where it was refused."""
    try:
        return operation()
    except BROKEN:
        raise
    except REFUSED:
        return None


# The tenants


def rows_of(tenant):
    nodes = make_nodes(ROWS, prefix=tenant, seed=len(tenant), tenant=tenant, number=lambda i: i)
    for i, node in enumerate(nodes):
        node.metadata |= {"word": "abc", "tags": ["a", "b"], "k-v": i, "nest": {"a": i}}
        source = RelatedNodeInfo(node_id=f"{tenant}-doc")
        node.relationships = {NodeRelationship.SOURCE: source}
    return nodes


def ids_of(tenant):
    return {f"{tenant}-{i}" for i in range(ROWS)}


ALL_OWN, ALL_OTHER = ids_of(OWN), ids_of(OTHER)
VICTIMS = ALL_OWN | ALL_OTHER


@pytest.fixture(scope="module")
def store(make_shared_store, engine):
    """A store with the rows of three tenants, each in a partition of its own as well."""
    store = make_shared_store(enable_sparse=engine.is_lite)
    for tenant in (OWN, OTHER, VANDAL):
        store.client.create_partition(store.collection_name, tenant)
        store.add(rows_of(tenant), milvus_partition_name=tenant)
    assert rows_left(store) >= VICTIMS
    return store


def rows_left(store):
    return {node.node_id for node in store.get_nodes(filters=group([]))}


def of_tenant(tenant):
    return MetadataFilter(key="tenant", value=tenant)


def beside(tenant, filters):
    """What an application makes of its user's filters."""
    return group([of_tenant(tenant), *([] if filters is None else [filters])])


def asked(filters=None, **kwargs):
    return VectorStoreQuery(
        query_embedding=[1.0] * DIM, similarity_top_k=4 * ROWS, filters=filters, **kwargs
    )


# Reading

#: How an application keeps a user's wish to the tenant: the query and the keyword arguments.
RESTRICTIONS = {
    "filter": lambda wish: (
        wish.query(filters=beside(OWN, wish.filters)),
        {"string_expr": wish.expression},
    ),
    "expression": lambda wish: (wish.query(), {"string_expr": f'tenant == "{OWN}"'}),
    "partition": lambda wish: (
        wish.query(),
        {"string_expr": wish.expression, "milvus_partition_names": [OWN]},
    ),
    "documents": lambda wish: (
        wish.query(doc_ids=[f"{OWN}-doc"]),
        {"string_expr": wish.expression},
    ),
    "ids": lambda wish: (
        wish.query(node_ids=sorted(ALL_OWN)),
        {"string_expr": wish.expression},
    ),
    None: lambda wish: (wish.query(), {"string_expr": wish.expression}),
}
EVERY_RESTRICTION = [name for name in RESTRICTIONS if name]


def found_by(store, wish, restriction):
    query, kwargs = RESTRICTIONS[restriction](wish)
    kwargs["milvus_scalar_filters"] = wish.scalar_filters
    found = attempt(lambda: store.query(query, **kwargs, **NOW))
    return set() if found is None else set(found.ids)


@pytest.mark.parametrize("restriction", EVERY_RESTRICTION)
def test_no_wish_leaves_the_tenant(store, restriction):
    reaching = 0

    @attacking(60)
    @given(WISHES)
    def run(wish):
        nonlocal reaching
        assert found_by(store, wish, restriction) <= ALL_OWN
        reaching += not ALL_OTHER.isdisjoint(found_by(store, wish, None))

    run()
    # The wishes are worth something: without a restriction some ten of them would have left it.
    assert reaching


@pytest.mark.parametrize("restriction", EVERY_RESTRICTION)
def test_no_classic_leaves_the_tenant(store, restriction):
    for classic in CLASSICS:
        assert found_by(store, Wish(expression=classic), restriction) <= ALL_OWN
        filters = group([leaf("word", FilterOperator.NE, classic)])
        assert found_by(store, Wish(filters=filters), restriction) == ALL_OWN
        assert found_by(store, Wish(ids=[classic]), restriction) <= ALL_OWN
    assert found_by(store, Wish(), restriction) == ALL_OWN
    assert found_by(store, Wish(expression='id != ""'), restriction) == ALL_OWN
    assert found_by(store, Wish(expression='id != ""'), None) >= VICTIMS


#: Expressions that would leave the conjunction if they were put into it as they are.
ESCAPES = [
    "number == 1) or (number >= 0",
    'number == 1) or ((id != "")',
    'word == ")") or (id != ""',
    'word == "\\")") or (id != ""',
    'word == \'"\') or (id != ""',
    'word == "\\\\") or (id != ""',
]


@pytest.mark.parametrize("escape", ESCAPES, ids=label)
def test_an_expression_does_not_close_the_parentheses_around_it(store, raw, escape):
    with pytest.raises(FilterError, match="string_expr"):
        store.query(asked(group([of_tenant(OWN)])), string_expr=escape)
    naive = f'(tenant == "{OWN}") and ({escape})'
    rows = raw.query(store.collection_name, filter=naive, output_fields=["id"], **NOW)
    assert not ALL_OTHER.isdisjoint(row["id"] for row in rows)


def test_a_get_by_ids_and_filters_does_not_leave_the_tenant(store):
    @attacking(80)
    @given(FILTERS, st.none() | IDS)
    def run(filters, ids):
        for given_filters, kwargs in (
            (beside(OWN, filters), {}),
            (filters, {"milvus_partition_names": OWN}),
        ):
            nodes = attempt(lambda f=given_filters, k=kwargs: store.get_nodes(ids, f, **k, **NOW))
            assert {node.node_id for node in nodes or ()} <= ALL_OWN

    run()


def test_an_id_is_only_itself(store):
    @attacking(80)
    @given(IDS)
    def run(ids):
        nodes = attempt(lambda: store.get_nodes(ids, **NOW))
        assert {node.node_id for node in nodes or ()} <= set(ids)
        # To LlamaIndex, a query's empty list of node ids means every node.
        for name in ("node_ids", "doc_ids") if ids else ("doc_ids",):
            hits = attempt(lambda name=name: store.query(asked(**{name: ids}), **NOW))
            assert hits is None or set(hits.ids) <= set(ids)

    run()


#: Names that are more than a name to a regular expression (Milvus' `partitionNameRegexp`), to those
#: who fold case or trim, or who split lists.
PARTITIONS = [
    *(".*", "acme|globex", "(acme|globex)", "globe.", "globe[x]", "globex$", "^globex", "g\\w+"),
    *("*", "glob*", "%", "GLOBEX", "(?i)GLOBEX", " globex", "globex ", "globex\n", "globex\x00"),
    *("", "_default", "acme,globex", '["globex"]', "acme/../globex"),
]


def test_a_partition_is_only_itself(store):
    def run(name):
        for names in (name, [name], [name, OWN]):
            allowed = ALL_OWN if names == [name, OWN] else set()
            kwargs = {"milvus_partition_names": names, **NOW} if names else {}
            hits = attempt(lambda k=kwargs: store.query(asked(), **k))
            assert hits is None or set(hits.ids) <= allowed
            nodes = attempt(lambda k=kwargs: store.get_nodes(sorted(VICTIMS), **k))
            assert {node.node_id for node in nodes or ()} <= allowed

    for name in filter(None, PARTITIONS):
        run(name)
    attacking(40)(given(ATTACKS.filter(lambda name: name not in ("", OWN, OTHER)))(run))()


@pytest.mark.engines("standalone")
async def test_a_refusal_is_not_what_its_words_say(store, coloured):
    with pytest.raises(ServerError, match=SHAM) as caught:
        await coloured(store).query(asked(), milvus_partition_names=SHAM)
    assert not isinstance(caught.value, BROKEN)


@pytest.mark.parametrize("names", [[], ()], ids=["list", "tuple"])
async def test_no_partitions_are_no_rows(store, coloured, names):
    """As no documents are: an application may compute what a user may read."""
    store = coloured(store)
    assert (await store.query(asked(doc_ids=[]))).ids == []
    for read in (
        lambda: store.query(asked(), milvus_partition_names=names),
        lambda: store.get_nodes(sorted(ALL_OTHER), milvus_partition_names=names),
    ):
        try:
            found = await read()
        except MilvusVectorStoreError:
            continue  # to refuse it would be as good
        assert not (found if isinstance(found, list) else found.ids)


async def test_a_partition_without_a_name_is_refused_for_writing(store, coloured):
    with pytest.raises(MilvusVectorStoreError):
        await coloured(store).add(make_nodes(1, prefix="stray"), milvus_partition_name="")


#: Every way to ask, as arguments of the query and keyword arguments.
WAYS = {
    "default": ({}, {}),
    "offset": ({}, {"offset": 2}),
    "threshold": ({}, {"score_threshold": -100.0}),
    "mmr": ({"mode": VectorStoreQueryMode.MMR}, {"mmr_prefetch_k": 4 * ROWS}),
    "sparse": ({"mode": VectorStoreQueryMode.SPARSE}, {}),
    "text": ({"mode": VectorStoreQueryMode.TEXT_SEARCH}, {}),
    "hybrid": ({"mode": VectorStoreQueryMode.HYBRID}, {}),
    "weighted": ({"mode": VectorStoreQueryMode.HYBRID, "alpha": 0.5}, {}),
    "mmr-hybrid": ({"mode": VectorStoreQueryMode.MMR}, {"mmr_over": "hybrid"}),
}
SPARSE_WAYS = ("sparse", "text", "hybrid", "weighted", "mmr-hybrid")


def ways_of(engine):
    return [WAYS[name] for name in WAYS if engine.is_lite or name not in SPARSE_WAYS]


async def test_every_way_to_ask_keeps_to_the_tenant(store, engine, coloured):
    store = coloured(store)
    for arguments, kwargs in ways_of(engine):
        for name in EVERY_RESTRICTION:
            query, restriction = RESTRICTIONS[name](Wish(expression='id != ""'))
            query = query.__class__(**{**vars(query), "query_str": "text", **arguments})
            found = [await store.query(query, **restriction, **kwargs, **NOW)]
            found += await store.query_many([query, query], **restriction, **kwargs, **NOW)
            for one in found:
                assert set(one.ids) <= ALL_OWN and len(one.ids) == ROWS - kwargs.get("offset", 0)


async def test_tenants_that_ask_at_the_same_time_get_their_own(store, engine):
    """Requests share RPCs only where everything but the vector is the same."""
    rng = random.Random(7)
    asking = []
    for number in range(240):
        tenant = (OWN, OTHER)[number % 2]
        own = group([of_tenant(tenant)])
        arguments, kwargs = rng.choice(ways_of(engine))
        arguments = {"query_str": "text", **arguments}
        options = {"string_expr": rng.choice([None, *CLASSICS, 'id != ""']), **kwargs, **NOW}
        inside = {"milvus_partition_names": tenant}
        asking += [
            (tenant, store.aquery(asked(own, **arguments), **options)),
            (tenant, store.aquery(asked(**arguments), **inside, **kwargs, **NOW)),
            (tenant, store.aget_nodes(sorted(VICTIMS), own, **NOW)),
            (tenant, store.aget_nodes(sorted(VICTIMS), **inside, **NOW)),
        ]
    answers = await asyncio.gather(*(one for _, one in asking), return_exceptions=True)
    answered = 0
    for (tenant, _), answer in zip(asking, answers, strict=True):
        if isinstance(answer, Exception):
            assert isinstance(answer, REFUSED) and not isinstance(answer, BROKEN)
            continue
        nodes = answer if isinstance(answer, list) else answer.nodes
        assert {node.metadata["tenant"] for node in nodes} <= {tenant}
        answered += len(nodes) >= ROWS - 2
    assert answered >= len(asking) / 2
    assert store.stats()["search"].items_per_rpc > 1.5


# Deleting


def test_a_delete_by_filter_does_not_leave_the_tenant(store):
    @attacking(40)
    @given(FILTERS, IDS)
    def run(filters, ids):
        attempt(lambda: store.delete_nodes(filters=beside(VANDAL, filters)))
        attempt(lambda: store.delete_nodes(ids, beside(VANDAL, filters)))

    run()
    assert rows_left(store) >= VICTIMS


def test_a_delete_by_ids_deletes_those_alone(store):
    def run(ids):
        attempt(lambda: store.delete_nodes(ids))
        attempt(lambda: store.delete(ids))

    run(CLASSICS)
    attacks = st.lists(ATTACKS, min_size=1, max_size=4).filter(VICTIMS.isdisjoint)
    attacking(40)(given(attacks)(run))()
    assert rows_left(store) >= VICTIMS


def test_a_delete_in_a_partition_stays_there(store):
    def run(name):
        attempt(lambda: store.delete_nodes(sorted(VICTIMS), milvus_partition_name=name))
        attempt(lambda: store.delete(f"{OTHER}-doc", milvus_partition_name=name))

    for name in (VANDAL, *PARTITIONS):
        run(name)
    attacking(40)(given(ATTACKS.filter(lambda name: name not in (OWN, OTHER)))(run))()
    assert rows_left(store) >= VICTIMS


async def test_attacks_that_delete_at_the_same_time(store):
    """Coalesced deletes of documents go as one expression."""
    await asyncio.gather(
        *(store.adelete(attack) for attack in CLASSICS),
        *(store.adelete([attack, f"{VANDAL}-doc"]) for attack in CLASSICS),
        *(store.adelete_nodes([attack]) for attack in CLASSICS),
        return_exceptions=True,
    )
    assert rows_left(store) >= VICTIMS
    assert not rows_left(store) & ids_of(VANDAL)


# The encoder against the engine's parser


def test_every_expression_is_understood_or_refused_before_it_is_sent(store):
    """A `ServerError` would be an expression that the engine's parser does not take."""
    understood = 0

    def refused_here(operation):
        nonlocal understood
        try:
            operation()
        except (FilterError, QueryError):
            return
        understood += 1

    @attacking(200)
    @given(FILTERS, SCALAR_FILTERS)
    def run(filters, scalar_filters):
        refused_here(lambda: store.get_nodes(filters=filters, **NOW))
        refused_here(lambda: store.query(asked(), milvus_scalar_filters=scalar_filters, **NOW))

    run()
    assert understood >= 40


@pytest.fixture(scope="module")
def texts():
    """Texts of an attacker's alphabet, always the same, all different."""
    rng = random.Random(3)
    made = [*ATOMS, *CLASSICS, "a" * 5_000, '"' * 5_000, "\\" * 5_001, "中" * 3_000]
    made += ["".join(rng.choices(ATOMS, k=rng.randint(2, 10))) for _ in range(100)]
    return [text for text in dict.fromkeys(made) if text]


def written_by(prefix, texts):
    """A node for each text, which has it in its id and its document's, as a value and as a key."""
    return [
        TextNode(
            id_=prefix + text,
            text=text,
            embedding=[1.0] * DIM,
            metadata={"value": text, "number": i, **({"in " + text: i} if is_key(text) else {})},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"{prefix}of {text}")},
        )
        for i, text in enumerate(texts)
    ]


def is_key(text):
    return len(text) < 1_000


@pytest.fixture(scope="module")
def library(make_shared_store, texts):
    store = make_shared_store()
    store.add(written_by("", texts))
    assert len(store.get_nodes(texts)) == len(texts)
    return store


async def test_values_come_back_exactly_and_match_themselves_alone(library, texts):
    async def find(operator, value):
        filters = group([MetadataFilter(key="value", value=value, operator=operator)])
        return {node.node_id for node in await library.aget_nodes(filters=filters, **NOW)}

    found = await asyncio.gather(*(find(FilterOperator.EQ, text) for text in texts))
    assert found == [{text} for text in texts]
    some = [texts[start : start + 40] for start in range(0, len(texts), 40)]
    found = await asyncio.gather(*(find(FilterOperator.IN, each) for each in some))
    assert found == [set(each) for each in some]
    for node in await library.aget_nodes(texts, **NOW):
        assert node.metadata["value"] == node.text == node.node_id == texts[node.metadata["number"]]


async def test_keys_are_found_or_refused(library, texts):
    async def find(number, text):
        filters = group([MetadataFilter(key="in " + text, value=number)])
        try:
            nodes = await library.aget_nodes(filters=filters, **NOW)
        except FilterError:
            return False
        assert [node.node_id for node in nodes] == ([text] if is_key(text) else []), text
        return True

    found = await asyncio.gather(*(find(i, text) for i, text in enumerate(texts)))
    assert sum(found) > 0.8 * len(texts)


async def test_documents_and_ids_are_found_and_deleted_each_alone(library, texts, coloured, colour):
    store = coloured(library)
    nodes = written_by(f"{colour} ", texts)
    ids = [node.node_id for node in nodes]
    await store.add(nodes)
    try:
        found = [node.ref_doc_id for node in await store.get_nodes(ids)]
        assert found == [node.ref_doc_id for node in nodes]
        await store.delete([node.ref_doc_id for node in nodes[::3]])
        await store.delete_nodes(ids[1::3])
        assert [node.node_id for node in await store.get_nodes(ids)] == ids[2::3]
        assert len(await store.get_nodes(texts)) == len(texts)
    finally:
        # The other tests of the library look for what these nodes have, too.
        await store.delete_nodes(ids)


# What kills a server


@pytest.mark.engines("standalone")
@pytest.mark.parametrize("key", ["a][b", "][", "x.a][b", '"]["', "]["], ids=label)
async def test_a_key_that_kills_the_server_is_refused_before_it_is_sent(store, coloured, key):
    """Milvus 2.3.5 splits a path at `][`, and dies of what remains."""
    store = coloured(store)
    for value in ("x", 1, ["x"]):
        operator = FilterOperator.IN if isinstance(value, list) else FilterOperator.EQ
        filters = beside(OWN, group([leaf(key, operator, value)]))
        for operation in (
            lambda f=filters: store.query(asked(f)),
            lambda f=filters: store.get_nodes(filters=f),
            lambda f=filters: store.delete_nodes(filters=f),
        ):
            with pytest.raises(FilterError, match="cannot address a key"):
                await operation()
    assert (await store.query(asked(), **NOW)).ids


@pytest.mark.parametrize("path", ['$meta["][x"]', '$meta["x]["]', "$meta['][']", 'tags["]["]'])
def test_an_expression_that_kills_the_server_is_refused(path):
    """Not tried: it would be dead. As a value, such a text does no harm."""
    assert build_expression(collection(), string_expr='word == "]["')
    with pytest.raises(FilterError):
        build_expression(collection(), string_expr=f"{path} == 1")


# What is too much


def deep(levels, condition=FilterCondition.NOT):
    filters = group([of_tenant(OTHER)])
    for _ in range(levels):
        filters = group([filters], condition)
    return filters


def test_nested_filters_mean_what_they_say(store):
    for levels in (0, 1, 2, 51, 100):
        found = set(store.query(asked(deep(levels)), **NOW).ids)
        assert found & VICTIMS == (ALL_OWN if levels % 2 else ALL_OTHER)


@pytest.mark.engines("lite")
@pytest.mark.parametrize("levels", [300, 10_000])
async def test_filters_nested_beyond_reason_are_refused(store, coloured, levels):
    store = coloured(store)
    for condition in (FilterCondition.NOT, FilterCondition.OR):
        try:
            found = await store.query(asked(deep(levels, condition)), **NOW)
        except MilvusVectorStoreError:
            continue
        except RecursionError as error:
            pytest.fail(repr(error), pytrace=False)  # a thousand frames are no help
        assert set(found.ids) == ALL_OTHER


@pytest.mark.parametrize("depth", [50, 500])
async def test_an_expression_nested_beyond_reason(store, coloured, depth):
    store = coloured(store)
    own = group([of_tenant(OWN)])
    for expression in (
        "(" * depth + 'id != ""' + ")" * depth,
        "not " * depth + '(id != "")',
        "[" * depth + "]" * depth,
        "(" * depth,
    ):
        try:
            found = await store.query(asked(own), string_expr=expression, **NOW)
        except REFUSED as error:
            assert not isinstance(error, BROKEN)
        else:
            assert set(found.ids) <= ALL_OWN
    assert set((await store.query(asked(own), **NOW)).ids) == ALL_OWN


# What the guard of `string_expr` makes of a text


def collection():
    return layout_of({"id": DataType.VARCHAR}, Engine("Milvus", (2, 3, 5)))


def code_of(expression):
    """The characters of an expression that are in no text, by another reader than the guard's."""
    position, code = 0, []
    while position < len(expression):
        character = expression[position]
        if character in "\"'":
            position += 1
            while expression[position] != character:
                position += 2 if expression[position] == "\\" else 1
        else:
            code.append(character)
        position += 1
    return code


@settings(max_examples=300)
@given(ATTACKS | EXPRESSIONS)
def test_what_passes_the_guard_is_balanced_outside_of_texts(attack):
    try:
        expression = build_expression(collection(), string_expr=attack)
    except FilterError:
        return
    assert expression == (f"({attack})" if attack.strip() else "")
    depths, depth = [], 0
    for character in code_of(expression):
        depth += (character == "(") - (character == ")")
        depths.append(depth)
    # What the first parenthesis opens, the last one closes.
    assert not expression or (min(depths[:-1]) >= 1 and depths[-1] == 0)
