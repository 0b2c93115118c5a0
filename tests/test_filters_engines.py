"""Filters mean the same as in LlamaIndex's reference, on every engine.

Each expression is run on rows of very different metadata, and the rows that come back are
compared with those that `build_metadata_filter_fn`, the function behind `SimpleVectorStore`,
chooses from the same metadata.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from pymilvus import DataType, MilvusClient

from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.filters import (
    build_expression,
    doc_ids_expression,
    everything_expression,
    ids_expression,
    next_page_expression,
)
from llama_index_milvus_async._translation.layout import Layout
from llama_index_milvus_async.errors import FilterError
from llama_index_milvus_async.filters import FilterOperatorFunction, ScalarMetadataFilter
from tests.fixtures.layouts import layout_of

Op = FilterOperator
And, Or, Not = FilterCondition.AND, FilterCondition.OR, FilterCondition.NOT

NASTY = [
    'quo"te',
    "apo'strophe",
    "back\\slash",
    "ends in \\",
    "two\nlines",
    "tab\tand\rreturn",
    "100%",
    "snake_case",
    "snakeXcase",
    "ünï 中文 🎉",
    '") or (id != "',
    "nul\x00byte",
    "\\n",
    '["a"]',
]
ODD_KEYS = [
    "k-v",
    "sp ace",
    "in",
    "True",
    'quo"te',
    "back\\slash",
    "ünï",
    "two\nlines",
    "a/b~c",
    "[x]",
    "a[0]",
    "7",
]

#: Values of one key, as different as they can be. A mapping is not among them: see the module's
#: docstring for what the engines cannot tell of one.
MIXED = [
    None, "", "5", "abc", "ABC", "xabcx", "abcd", "b", True, False, 0, 1, 2, 5, -3, 1.0, 5.5, -0.5,
    1e-07, 1e30, 2**53, 2**53 + 1, 2**62, [], [1, 2], [1.0], [0], [True], [5.5, 2], ["abc"],
    ["a", "b"], [""], ["snake_case"], [None], *NASTY,
]  # fmt: skip
WORDS = ["abc", "", "ABC", "xabcx", "b", "Straße", *NASTY]
TAGS = [["abc"], [], ["a", "b"], ["snake_case", "100%"], ["B"], NASTY]
NUMBERS = [[1, 2], [1.0], [], [0, 5], [5.5, 2], [True], [False, 3], [2**53 + 1]]
NESTS = [
    {"city": "Oslo", "deep": {"n": 1, "k-v": "x"}},
    {"city": "Bergen", "deep": {"n": 2.5}},
    {"city": None, "deep": {"n": "text"}},
    {"deep": {"n": [1, 2]}},
    {"city": ""},
    {"city": ["Oslo"]},
    {"city": True},
]


def metadata() -> list[dict[str, Any]]:
    """Metadata of the rows: every value of `MIXED`, and the other keys here and there."""
    rows: list[dict[str, Any]] = []
    for number in range(64):
        row: dict[str, Any] = {"number": number}
        if number < len(MIXED):
            row["mixed"] = MIXED[number]
        if number % 8:
            row["word"] = WORDS[number % len(WORDS)]
            row["count"] = [0, 1, 2, 5, -3, 2**53, 2**53 + 1, 2**62][number % 8]
        if number % 5:
            row["ratio"] = [0.5, 1.0, -2.5, 1e-07, 1e30, 0.0][number % 6]
            row["flag"] = number % 3 == 0
        if number % 3:
            row["tags"] = TAGS[number % len(TAGS)]
            row["numbers"] = NUMBERS[number % len(NUMBERS)]
        if number % 2:
            row["nest"] = NESTS[number % len(NESTS)]
        if number % 7 == 0:
            row["nest.city"] = ["Oslo", "", 5][number % 3]
        if number % 4 == 0:
            row[ODD_KEYS[number // 4 % len(ODD_KEYS)]] = [1, "abc", 2.5][number // 4 % 3]
        rows.append(row)
    return rows


@dataclass
class Table:
    """A collection, and what the reference has to know of its rows."""

    client: MilvusClient
    name: str
    layout: Layout
    rows: dict[str, dict[str, Any]]

    def find(self, expression: str, consistency: str = "Eventually") -> set[str]:
        """Return the ids of the rows that an expression matches.

        A strong read waits for the next time tick, 0.2 s. One of them, after the insert, has
        seen all rows; those after it need not wait again.
        """
        found = self.client.query(
            self.name,
            filter=expression,
            output_fields=[self.layout.primary_key],
            limit=len(self.rows) + 1,
            consistency_level=consistency,
        )
        return {str(row[self.layout.primary_key]) for row in found}

    def check(self, filters: MetadataFilters) -> None:
        """Compare the engine's choice with the reference's."""
        expression = build_expression(self.layout, filters=filters)
        expected = {
            row_id for row_id, row in self.rows.items() if matches(row, filters, self.layout.engine)
        }
        found = self.find(expression)
        wrong = {row_id: self.rows[row_id] for row_id in found ^ expected}
        assert not wrong, f"{expression}: {len(found)} found, {len(expected)} expected"


# The reference


def matches(row: Mapping[str, Any], filters: MetadataFilters, dialect: Engine) -> bool | None:
    """Apply nested filters as `SimpleVectorStore` would; `None` where the engine cannot tell."""
    if not filters.filters:
        return True
    verdicts = [
        matches(row, each, dialect)
        if isinstance(each, MetadataFilters)
        else leaf_matches(row, each, dialect)
        for each in filters.filters
    ]
    if filters.condition == Or:
        return either(verdicts)
    if filters.condition == Not:
        return negated(either(verdicts))
    return negated(either([negated(each) for each in verdicts]))


def either(verdicts: list[bool | None]) -> bool | None:
    return True if True in verdicts else None if None in verdicts else False


def negated(verdict: bool | None) -> bool | None:
    return None if verdict is None else not verdict


def leaf_matches(row: Mapping[str, Any], leaf: MetadataFilter, dialect: Engine) -> bool | None:
    found = look_up(row, leaf.key)
    if isinstance(found, str) and not can_look_into_text(leaf, dialect):
        return None
    test = build_metadata_filter_fn(lambda _: {leaf.key: found}, MetadataFilters(filters=[leaf]))
    try:
        return test("")
    except TypeError:  # values that do not compare
        return False


def can_look_into_text(leaf: MetadataFilter, dialect: Engine) -> bool:
    if leaf.operator not in (Op.CONTAINS, Op.ANY, Op.ALL):
        return True
    values = leaf.value if isinstance(leaf.value, list) else [leaf.value]
    texts = [each for each in values if isinstance(each, str)]
    if dialect.name == "Milvus Lite" and not dialect.is_lite_2:
        return not any("%" in t or "_" in t or t.endswith("\\") for t in texts)
    return dialect.has_infix_like or not texts


def look_up(row: Mapping[str, Any], key: str) -> Any:
    if key in row:
        return row[key]
    value: Any = row
    for step in key.split("."):
        if not isinstance(value, dict) or step not in value:
            return None
        value = value[step]
    return value


# The collections


@contextlib.contextmanager
def table(
    engine: Any, name: str, schema: Any, rows: dict[str, dict[str, Any]], **parts: Any
) -> Iterator[Table]:
    """Create a collection, insert the rows, drop it at the end."""
    client = MilvusClient(engine.uri, token=engine.token or "")
    client.drop_collection(name)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
    try:
        primary = next(field.name for field in schema.fields if field.is_primary)
        integer = any(field.is_primary and field.dtype == DataType.INT64 for field in schema.fields)
        inserted = [
            {**row, primary: int(row_id) if integer else row_id, "vector": [0.0, 1.0]}
            for row_id, row in rows.items()
        ]
        client.insert(name, inserted)
        client.load_collection(name)
        types = {field.name: field.dtype for field in schema.fields}
        dynamic = schema.enable_dynamic_field
        connected = Engine.parse(engine.version)
        description = layout_of(types, connected, primary_key=primary, dynamic=dynamic, **parts)
        made = Table(client, name, description, rows)
        assert made.find(everything_expression(description), "Strong") == set(rows)
        yield made
    finally:
        client.drop_collection(name)
        client.close()


@pytest.fixture(scope="module")
def dynamic(engine: Any) -> Iterator[Table]:
    """Metadata in the dynamic field, ids and doc ids in columns."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=256)
    schema.add_field("doc_id", DataType.VARCHAR, max_length=256)
    schema.add_field("text", DataType.VARCHAR, max_length=256)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    ids = [*NASTY, *(f"row {number}" for number in range(64 - len(NASTY)))]
    rows = {
        ids[number]: {**row, "doc_id": f"doc {number % 7}", "text": WORDS[number % len(WORDS)]}
        for number, row in enumerate(metadata())
    }
    with table(engine, "flt_dynamic", schema, rows) as made:
        yield made


@pytest.fixture(scope="module")
def typed(engine: Any) -> Iterator[Table]:
    """Metadata in columns of their own types, an integer primary key, no dynamic field."""
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    schema.add_field("word", DataType.VARCHAR, max_length=256)
    schema.add_field("small", DataType.INT8)
    schema.add_field("count", DataType.INT64)
    schema.add_field("ratio", DataType.DOUBLE)
    schema.add_field("flag", DataType.BOOL)
    schema.add_field("info", DataType.JSON)
    schema.add_field(
        "tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=20, max_length=256
    )
    schema.add_field("numbers", DataType.ARRAY, element_type=DataType.INT64, max_capacity=20)
    rows = {
        str(number): {
            "word": WORDS[number % len(WORDS)],
            "small": number - 20,
            "count": [0, 1, 2, 5, -3, 2**53, 2**53 + 1, 2**62][number % 8],
            "ratio": [0.5, 1.0, -2.5, 1e-07, 1e30, 0.0][number % 6],
            "flag": number % 3 == 0,
            "tags": TAGS[number % len(TAGS)],
            "numbers": [[1, 2], [], [5], [0, 1, 2]][number % 4],
            "info": {
                **NESTS[number % len(NESTS)],
                **({"mixed": MIXED[number]} if number < len(MIXED) else {}),
                **({"tags": TAGS[number % len(TAGS)]} if number % 2 else {}),
            },
        }
        for number in range(60)
    }
    with table(engine, "flt_typed", schema, rows, doc_id_field=None) as made:
        yield made


def one(key: str, operator: FilterOperator, value: Any = None) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


def refused_text(operator: FilterOperator, value: Any, dialect: Engine) -> bool:
    """Whether the engine has no words for the filter, whatever the key."""
    if operator not in (Op.TEXT_MATCH, Op.TEXT_MATCH_INSENSITIVE):
        return False
    if dialect.name != "Milvus Lite" or dialect.is_lite_2:
        return not dialect.has_infix_like
    return "%" in value or "_" in value or value.endswith("\\")


# Single filters

SCALARS: list[Any] = [
    "", "5", "abc", "ABC", "b", "B", 0, 1, 2, 5, -3, 0.0, 1.0, 5.5, 2.5, 1e-07, 1e30, -1e300,
    2**53, 2**53 + 1, float(2**53), 2**62, 2**63 - 1, *NASTY,
]  # fmt: skip
LISTS: list[Any] = [
    [], [""], ["abc"], ["abc", "5"], ["a", "b"], [0], [1], [1, 2], [0, 1], [2**53 + 1], [1.0, 5.5],
    [5, 7, 9], NASTY, ["snake_case", "100%"], ["not there"],
]  # fmt: skip
TEXTS = ["", "abc", "b", "aBC", "tra", "ß", "ünï", "中", "XCase", *NASTY]
BY_OPERATOR: dict[FilterOperator, list[Any]] = {
    **{op: SCALARS for op in (Op.EQ, Op.NE, Op.GT, Op.GTE, Op.LT, Op.LTE, Op.CONTAINS)},
    **{op: LISTS for op in (Op.IN, Op.NIN, Op.ANY, Op.ALL)},
    Op.TEXT_MATCH: TEXTS,
    Op.TEXT_MATCH_INSENSITIVE: [each for each in TEXTS if len(each) < 9],
    Op.IS_EMPTY: [None],
}
KEYS = ["mixed", "word", "count", "ratio", "flag", "tags", "numbers", "nest.city", "nest.deep.n"]


@pytest.mark.parametrize("operator", BY_OPERATOR, ids=lambda op: op.name)
@pytest.mark.parametrize("negate", [False, True], ids=["", "negated"])
def test_every_operator_with_every_value(
    dynamic: Table, operator: FilterOperator, negate: bool
) -> None:
    for value in BY_OPERATOR[operator]:
        for key in ("mixed", "nest.city"):
            filters = one(key, operator, value)
            if refused_text(operator, value, dynamic.layout.engine):
                with pytest.raises(FilterError):
                    build_expression(dynamic.layout, filters=filters)
                continue
            if negate:
                filters = MetadataFilters(filters=[filters], condition=Not)
            dynamic.check(filters)


@pytest.mark.parametrize("operator", BY_OPERATOR, ids=lambda op: op.name)
def test_keys_with_values_of_one_type(dynamic: Table, operator: FilterOperator) -> None:
    # Milvus Lite evaluates these in Arrow, and others in Python.
    values = BY_OPERATOR[operator][::3]
    for key in KEYS[1:7]:
        for value in values:
            if not refused_text(operator, value, dynamic.layout.engine):
                filters = one(key, operator, value)
                dynamic.check(filters)
                dynamic.check(MetadataFilters(filters=[filters], condition=Not))


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys(dynamic: Table, key: str) -> None:
    for operator, value in [
        (Op.EQ, 1), (Op.NE, "abc"), (Op.GT, 1), (Op.IN, [1, 2]), (Op.NIN, ["abc", "x"]),
        (Op.IS_EMPTY, None),
    ]:  # fmt: skip
        dynamic.check(one(key, operator, value))
        dynamic.check(MetadataFilters(filters=[one(key, operator, value)], condition=Not))


@pytest.mark.parametrize("key", ["nest.city", "nest.deep.n", "nest.deep.k-v", "nest.none", "no.ne"])
@pytest.mark.parametrize("operator", [Op.EQ, Op.NE, Op.IS_EMPTY, Op.CONTAINS, Op.GT, Op.NIN])
def test_nested_metadata(dynamic: Table, key: str, operator: FilterOperator) -> None:
    for value in ["Oslo", "x", 1, 2.5] if operator != Op.NIN else [["Oslo", "x"], [1, 2]]:
        dynamic.check(one(key, operator, value))
        dynamic.check(MetadataFilters(filters=[one(key, operator, value)], condition=Not))


@pytest.mark.parametrize("key", ["text", "doc_id", "document_id", "ref_doc_id", "id"])
def test_own_columns(dynamic: Table, key: str) -> None:
    real = "doc_id" if key.endswith("doc_id") or key == "document_id" else key
    layout = dynamic.layout
    for operator, value in [
        (Op.EQ, "abc"), (Op.EQ, "doc 3"), (Op.EQ, 3), (Op.NE, 3), (Op.NE, "doc 3"), (Op.GT, "b"),
        (Op.LTE, "doc 4"), (Op.GT, 5), (Op.IN, ["doc 1", "abc", *NASTY]), (Op.IN, []),
        (Op.NIN, ["doc 1"]), (Op.NIN, []), (Op.IS_EMPTY, None),
    ]:  # fmt: skip
        # The ids of the rows are known to the reference as metadata.
        rows = {row_id: {**row, "id": row_id, key: {**row, "id": row_id}[real]}
                for row_id, row in dynamic.rows.items()}  # fmt: skip
        known = Table(dynamic.client, dynamic.name, layout, rows)
        known.check(one(key, operator, value))
        known.check(MetadataFilters(filters=[one(key, operator, value)], condition=Not))


# Typed columns


@pytest.mark.parametrize("operator", BY_OPERATOR, ids=lambda op: op.name)
@pytest.mark.parametrize("key", ["word", "small", "count", "ratio", "flag", "tags", "numbers"])
def test_typed_columns(typed: Table, key: str, operator: FilterOperator) -> None:
    dialect = typed.layout.engine
    array = key in ("tags", "numbers")
    for number, value in enumerate(BY_OPERATOR[operator]):
        values = value if isinstance(value, list) else [value]
        texts = [each for each in values if isinstance(each, str)]
        if array and operator in (Op.CONTAINS, Op.ANY, Op.ALL):
            if bool(texts) != (key == "tags") or any(
                isinstance(each, float) and not each.is_integer() for each in values
            ):
                continue  # Milvus refuses elements of another type than the column's
        elif key == "word" and (
            any(refused_text(Op.TEXT_MATCH, each, dialect) for each in texts)
            and operator in (Op.CONTAINS, Op.ANY, Op.ALL, Op.TEXT_MATCH, Op.TEXT_MATCH_INSENSITIVE)
        ):
            with contextlib.suppress(FilterError):
                typed.check(one(key, operator, value))
            continue
        filters = one(key, operator, value)
        typed.check(filters)
        if number % 2 == 0:
            typed.check(MetadataFilters(filters=[filters], condition=Not))


@pytest.mark.parametrize("operator", BY_OPERATOR, ids=lambda op: op.name)
def test_json_columns(typed: Table, operator: FilterOperator) -> None:
    for value in BY_OPERATOR[operator][::2]:
        for key in ("info.mixed", "info.deep.n", "info.tags"):
            if not refused_text(operator, value, typed.layout.engine):
                typed.check(one(key, operator, value))
                typed.check(MetadataFilters(filters=[one(key, operator, value)], condition=Not))


def test_integer_primary_key(typed: Table) -> None:
    assert typed.find(ids_expression(typed.layout, ["3", "59", "3", "60"])) == {"3", "59"}
    assert typed.find(ids_expression(typed.layout, [])) == set()
    assert typed.find(build_expression(typed.layout, filters=one("key", Op.EQ, "7"))) == {"7"}
    assert typed.find(build_expression(typed.layout, filters=one("key", Op.LT, 2))) == {"0", "1"}
    assert typed.find(next_page_expression(typed.layout, "small < 38", "55")) == {"56", "57"}


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("ARRAY_CONTAINS", "a", lambda tags: "a" in tags),
        ("ARRAY_CONTAINS_ANY", ["a", "abc"], lambda tags: "a" in tags or "abc" in tags),
        ("ARRAY_CONTAINS_ALL", ["a", "b"], lambda tags: "a" in tags and "b" in tags),
        ("ARRAY_LENGTH", 2, lambda tags: len(tags) == 2),
        ("ARRAY_LENGTH", 0, lambda tags: len(tags) == 0),
        ("ARRAY_CONTAINS", NASTY[0], lambda tags: NASTY[0] in tags),
    ],
)
@pytest.mark.parametrize("key", ["tags", "info.tags"])
def test_scalar_filters(
    typed: Table, dynamic: Table, key: str, operator: str, value: Any, expected: Any
) -> None:
    on = [(typed, key, "tags" if key == "tags" else "info"), (dynamic, "tags", "tags")]
    for where, name, column in on:
        if (
            operator == "ARRAY_LENGTH"
            and value
            and "." in name
            and where.layout.engine.name == "Milvus Lite"
        ):
            with pytest.raises(FilterError, match="top of the metadata"):
                scalar(where, name, operator, value)
            continue
        for negated_, prefix in ((False, ""), (True, "N")):
            found = where.find(scalar(where, name, prefix + operator, value))
            lists = {i: row.get(column) for i, row in where.rows.items()}
            if column == "info":
                lists = {i: info.get("tags") for i, info in lists.items()}
            assert found == {
                i for i, tags in lists.items()
                if (tags is not None and expected(tags)) != negated_
            }  # fmt: skip


def scalar(where: Table, key: str, operator: str, value: Any) -> str:
    each = ScalarMetadataFilter(key=key, value=value, operator=FilterOperatorFunction[operator])
    return build_expression(where.layout, scalar_filters=each)


def test_null_columns(engine: Any) -> None:
    dialect = Engine.parse(engine.version)
    if not dialect.has_null:
        pytest.skip(f"{dialect} has no nullable columns")
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=256)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    schema.add_field("word", DataType.VARCHAR, max_length=256, nullable=True)
    schema.add_field("count", DataType.INT64, nullable=True)
    schema.add_field("flag", DataType.BOOL, nullable=True)
    rows: dict[str, dict[str, Any]] = {
        "a": {"word": None, "count": None, "flag": None},
        "b": {"word": "", "count": 0, "flag": False},
        "c": {"word": "abc", "count": 5, "flag": True},
    }
    with table(engine, "flt_null", schema, rows, doc_id_field=None) as made:
        for operator, values in BY_OPERATOR.items():
            for value in values[:8]:
                for key in ("word", "count", "flag"):
                    filters = one(key, operator, value)
                    made.check(filters)
                    made.check(MetadataFilters(filters=[filters], condition=Not))


# Combinations


def filter_trees(dialect: Engine, keys: list[str]) -> st.SearchStrategy[MetadataFilters]:
    def leaves(key: str) -> st.SearchStrategy[MetadataFilter]:
        pairs = [
            (operator, value)
            for operator, values in BY_OPERATOR.items()
            for value in values
            if not refused_text(operator, value, dialect)
            and (
                key not in ODD_KEYS
                or dialect.name != "Milvus Lite"
                or operator not in (Op.CONTAINS, Op.ANY, Op.ALL)
            )
        ]
        return st.sampled_from(pairs).map(
            lambda pair: MetadataFilter(key=key, operator=pair[0], value=pair[1])
        )

    leaf = st.sampled_from(keys).flatmap(leaves)
    conditions = st.sampled_from([And, Or, Not, None])

    def group(children: st.SearchStrategy[Any]) -> st.SearchStrategy[MetadataFilters]:
        return st.builds(
            MetadataFilters,
            filters=st.lists(children, min_size=0, max_size=3),
            condition=conditions,
        )

    return group(st.recursive(leaf, group, max_leaves=6))


def test_random_combinations(dynamic: Table) -> None:
    trees = filter_trees(dynamic.layout.engine, [*KEYS, *ODD_KEYS])

    @settings(max_examples=120, suppress_health_check=list(HealthCheck))
    @given(trees)
    def run(filters: MetadataFilters) -> None:
        dynamic.check(filters)

    run()


def test_parts_are_combined_by_and(dynamic: Table) -> None:
    expression = build_expression(
        dynamic.layout,
        filters=MetadataFilters(
            filters=[one("number", Op.LT, 20), one("number", Op.GT, 50)], condition=Or
        ),
        node_ids=["row 0", "row 1", "row 40", "row 49", "100%"],
        doc_ids=["doc 0", "doc 1", "doc 6"],
        scalar_filters=[
            {"key": "tags", "value": "abc", "operator": "not ARRAY_CONTAINS({key}, {value})"}
        ],
        string_expr="number == 14 or number == 63 or number == 6 or number == 15",
    )
    rows = dynamic.rows
    chosen = {
        i for i in ("row 0", "row 1", "row 40", "row 49", "100%")
        if rows[i]["number"] in (14, 63, 6, 15) and "abc" not in rows[i].get("tags", [])
        and rows[i]["doc_id"] in ("doc 0", "doc 1", "doc 6")
    }  # fmt: skip
    assert chosen
    assert dynamic.find(expression) == chosen


@pytest.mark.parametrize("part", ["node_ids", "doc_ids"])
def test_no_ids_match_nothing(dynamic: Table, part: str) -> None:
    assert dynamic.find(build_expression(dynamic.layout, **{part: []})) == set()
    nothing = one("mixed", Op.IN, [])
    assert dynamic.find(build_expression(dynamic.layout, filters=nothing)) == set()


def test_paging_reaches_every_row_once(dynamic: Table) -> None:
    filters = one("number", Op.LT, 50)
    expression = build_expression(dynamic.layout, filters=filters)
    expected = sorted(i for i, row in dynamic.rows.items() if row["number"] < 50)
    seen: list[str] = []
    last = ""
    while page := sorted(dynamic.find(next_page_expression(dynamic.layout, expression, last)))[:9]:
        seen += page
        last = page[-1]
    assert seen == expected


# Data is never code

ATTACKS = st.lists(
    st.sampled_from([*"\"'\\()[]{}$!=<>&|,. \n\r\t%_;#-*0", "or", "and", "not", "id", "in", "true",
                     "like", "exists ", "$meta", '"]', '" or ', '\\"']),
    max_size=12,
).map("".join)  # fmt: skip
attacking = settings(max_examples=40, suppress_health_check=list(HealthCheck))


@attacking
@given(attack=ATTACKS)
def test_ids_are_never_code(dynamic: Table, attack: str) -> None:
    expected = {attack} & set(dynamic.rows)
    assert dynamic.find(ids_expression(dynamic.layout, [attack])) == expected
    assert dynamic.find(doc_ids_expression(dynamic.layout, [attack])) == set()


@attacking
@given(attack=ATTACKS)
def test_values_are_never_code(dynamic: Table, attack: str) -> None:
    for key in ("word", "text", "k-v"):
        dynamic.check(one(key, Op.EQ, attack))
        dynamic.check(one(key, Op.NIN, [attack, "abc"]))
    dynamic.check(one("tags", Op.ANY, [attack, "a"]))


@attacking
@given(attack=ATTACKS.filter(lambda key: key not in ODD_KEYS))
def test_keys_are_never_code(dynamic: Table, attack: str) -> None:
    with contextlib.suppress(FilterError):  # the empty key, and names of columns
        expression = build_expression(dynamic.layout, filters=one(attack, Op.EQ, "no such value"))
        assert dynamic.find(expression) == set()
        expression = build_expression(dynamic.layout, filters=one(attack, Op.IN, [1, 2]))
        assert dynamic.find(expression) == set()


def test_the_rows_are_what_the_tests_need() -> None:
    rows = metadata()
    assert len(rows) > len(MIXED)
    assert {key for row in rows for key in row} >= {*ODD_KEYS, "nest", "nest.city", *KEYS[:7]}
    assert not any(isinstance(each, float) and math.isnan(each) for each in MIXED)
