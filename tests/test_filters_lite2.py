"""On Milvus Lite 2 a filter means what it means elsewhere, or is refused.

The rows, and the reference, are those of `test_filters_engines`. What this engine has no words for
raises `FilterError`; nothing else may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index_milvus_async._translation.filters import (
    build_expression,
    doc_ids_expression,
    documents_expression,
    ids_expression,
)
from llama_index_milvus_async.errors import FilterError
from llama_index_milvus_async.filters import FilterOperatorFunction, ScalarMetadataFilter
from tests.expressions_page import page
from tests.test_filters_engines import (
    BY_OPERATOR,
    NASTY,
    Not,
    Op,
    Or,
    Table,
    dynamic,
    one,
    typed,
)

__all__ = ["dynamic", "typed"]  # fixtures

pytestmark = pytest.mark.engines("lite2")

#: What is refused with "not" around it: there is no opposite of these tests of values in JSON.
POSITIVE_ONLY = (Op.GT, Op.GTE, Op.LT, Op.LTE, Op.CONTAINS, Op.ANY, Op.ALL)
TEXT = (Op.TEXT_MATCH, Op.TEXT_MATCH_INSENSITIVE)


def has_newline(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, str) and ("\n" in each or "\r" in each) for each in values)


def check(where: Table, filters: MetadataFilters) -> bool:
    """Compare the rows with the reference's; returns `False` where the filter is refused."""
    try:
        where.check(filters)
    except FilterError:
        return False
    return True


def negated(filters: MetadataFilters | MetadataFilter) -> MetadataFilters:
    return MetadataFilters(filters=[filters], condition=Not)


@pytest.mark.parametrize("operator", BY_OPERATOR, ids=lambda op: op.name)
def test_values_in_json(dynamic: Table, operator: Op) -> None:
    for value in BY_OPERATOR[operator][::2]:
        said = check(dynamic, one("mixed", operator, value))
        assert said == (operator != Op.IS_EMPTY and value != [] and not has_newline(value)) or (
            value == [] and operator != Op.ALL
        ), value
        opposite = check(dynamic, negated(one("mixed", operator, value)))
        if operator in (Op.EQ, Op.NE, Op.IN, Op.NIN):
            assert opposite == said
        elif operator == Op.IS_EMPTY:
            assert opposite
        elif operator in (*POSITIVE_ONLY, *TEXT) and value != []:
            assert not opposite, value


@pytest.mark.parametrize("operator", BY_OPERATOR, ids=lambda op: op.name)
@pytest.mark.parametrize("key", ["word", "small", "count", "ratio", "flag", "tags", "numbers"])
def test_typed_columns(typed: Table, key: str, operator: Op) -> None:
    array = key in ("tags", "numbers")
    in_parts = operator in (Op.CONTAINS, Op.ANY, Op.ALL)
    for value in BY_OPERATOR[operator][::3]:
        values = value if isinstance(value, list) else [value]
        texts = [each for each in values if isinstance(each, str)]
        if array and in_parts:
            whole = all(isinstance(each, str) or float(each).is_integer() for each in values)
            if bool(texts) != (key == "tags") or not whole:
                continue  # Milvus refuses elements of another type than the column's
        assert check(typed, one(key, operator, value)) or has_newline(value), value
        opposite = check(typed, negated(one(key, operator, value)))
        looks_inside = in_parts if array else key == "word" and (in_parts or operator in TEXT)
        if not looks_inside:
            assert opposite or has_newline(value), value


def test_keys_that_are_also_columns(dynamic: Table) -> None:
    layout = dynamic.layout
    for key, real in [("text", "text"), ("doc_id", "doc_id"), ("ref_doc_id", "doc_id")]:
        rows = {row_id: {**row, key: row[real]} for row_id, row in dynamic.rows.items()}
        known = Table(dynamic.client, dynamic.name, layout, rows)
        for operator, value in [(Op.EQ, "doc 3"), (Op.NE, "doc 3"), (Op.IN, ["abc", "doc 1"])]:
            known.check(one(key, operator, value))
            known.check(negated(one(key, operator, value)))


def test_keys_with_dots_are_written_in_brackets(dynamic: Table) -> None:
    """Which of the two a row has cannot be asked."""
    with pytest.raises(FilterError, match="for the mapping, or") as error:
        build_expression(dynamic.layout, filters=one("nest.city", Op.EQ, "Oslo"))
    literal, path = '$meta["nest.city"]', '$meta["nest"]["city"]'
    assert repr(literal) in str(error.value)
    assert repr(path) in str(error.value)

    def has(path: str) -> set[str]:
        return dynamic.find(build_expression(dynamic.layout, filters=one(path, Op.EQ, "Oslo")))

    rows = dynamic.rows
    nested = {i for i, row in rows.items() if row.get("nest", {}).get("city") == "Oslo"}
    assert has('nest["city"]') == has(path) == nested
    assert has(literal) == {i for i, row in rows.items() if row.get("nest.city") == "Oslo"}


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("ARRAY_CONTAINS", "a", lambda tags: "a" in tags),
        ("ARRAY_CONTAINS_ANY", ["a", "abc"], lambda tags: "a" in tags or "abc" in tags),
        ("ARRAY_CONTAINS_ALL", ["a", "b"], lambda tags: "a" in tags and "b" in tags),
        ("ARRAY_LENGTH", 2, lambda tags: len(tags) == 2),
        ("NARRAY_LENGTH", 2, lambda tags: len(tags) != 2),
    ],
)
def test_lists(typed: Table, dynamic: Table, operator: str, value: Any, expected: Any) -> None:
    each = ScalarMetadataFilter(key="tags", value=value, operator=FilterOperatorFunction[operator])
    for where in (typed, dynamic):
        found = where.find(build_expression(where.layout, scalar_filters=each))
        tags = {i: row.get("tags", ()) for i, row in where.rows.items()}
        assert found == {i for i, tags in tags.items() if expected(tags)}


def test_ids_that_it_cannot_look_up_are_refused_and_others_found(dynamic: Table) -> None:
    layout = dynamic.layout
    unsafe = [each for each in NASTY if "'" in each or "\0" in each]
    plain = [each for each in NASTY if not has_newline(each) and each not in unsafe]
    assert dynamic.find(ids_expression(layout, plain)) == set(plain)
    for each in filter(has_newline, NASTY):
        for build in (ids_expression, doc_ids_expression, documents_expression):
            with pytest.raises(FilterError, match="newline"):
                build(layout, [each])
    assert len(unsafe) == 2
    for each in unsafe:  # they would become a part of SQL
        with pytest.raises(FilterError, match="takes no id with an apostrophe or NUL"):
            ids_expression(layout, [each])
        assert dynamic.find(documents_expression(layout, [each])) == set()
    first = {i for i, row in dynamic.rows.items() if row["doc_id"] == "doc 1"}
    assert dynamic.find(documents_expression(layout, ["doc 1", "row 3"])) == first
    assert dynamic.find(ids_expression(layout, [])) == set()
    assert dynamic.find(build_expression(layout, filters=one("mixed", Op.IN, []))) == set()


def test_the_page_of_expressions_is_what_the_code_says(engine: Any) -> None:
    """Write it by `python -m tests.expressions_page > docs/reference/expressions.md`."""
    path = Path(__file__).parents[1] / "docs" / "reference" / "expressions.md"
    assert path.read_text() == page()


def test_combinations(dynamic: Table) -> None:
    some = MetadataFilters(
        filters=[one("number", Op.LT, 9), negated(one("word", Op.EQ, "abc"))], condition=Or
    )
    dynamic.check(some)
    dynamic.check(MetadataFilters(filters=[some, one("count", Op.NIN, [1, 5])]))
    with pytest.raises(FilterError, match="'number' with the operator LT: Milvus Lite 2 cannot"):
        build_expression(dynamic.layout, filters=negated(some))
