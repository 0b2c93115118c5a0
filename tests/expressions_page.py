"""Writes `docs/reference/expressions.md`: what each operator becomes on each engine.

    python -m tests.expressions_page > docs/reference/expressions.md

`test_filters_lite2.py` compares the page with what this would write.
"""

from __future__ import annotations

from collections.abc import Iterator

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.filters import build_expression
from llama_index_milvus_async.errors import FilterError
from tests.fixtures.layouts import layout_of

ENGINES = {
    "2.3": Engine("Milvus", (2, 3, 5)),
    "2.4": Engine("Milvus", (2, 4)),
    "2.5": Engine("Milvus", (2, 5)),
    "2.6": Engine("Milvus", (2, 6)),
    "3.0": Engine("Milvus", (3, 0)),
    "Lite 3": Engine("Milvus Lite", (3, 2, 2)),
    "Lite 2": Engine("Milvus Lite", (2, 5, 1)),
}
VALUES = {
    FilterOperator.IN: ["a", "b"],
    FilterOperator.NIN: ["a", "b"],
    FilterOperator.ANY: ["a", "b"],
    FilterOperator.ALL: ["a", "b"],
    FilterOperator.GT: 5,
    FilterOperator.GTE: 5,
    FilterOperator.LT: 5,
    FilterOperator.LTE: 5,
    FilterOperator.TEXT_MATCH_INSENSITIVE: "a",
    FilterOperator.IS_EMPTY: None,
}
HEAD = """\
# What a filter becomes

The expression that each operator becomes, for a key `k` in the metadata, and its negation, in a
group with the condition `NOT`. The code that translates filters has written this page. "Refused"
is a [`FilterError`][llama_index_milvus_async.errors.FilterError].

The engines do not agree on values of another type, and on missing ones, hence the long ones:
Milvus before 2.6 and Milvus Lite 2 take a comparison with them for false, Milvus 2.6 and Milvus
Lite 3 for neither true nor false.
"""


def expression(engine: Engine, operator: FilterOperator, *, negate: bool) -> str:
    leaf = MetadataFilter(key="k", operator=operator, value=VALUES.get(operator, "a"))
    condition = FilterCondition.NOT if negate else FilterCondition.AND
    try:
        text = build_expression(
            layout_of({}, engine), filters=MetadataFilters(filters=[leaf], condition=condition)
        )
    except FilterError:
        return "refused"
    return f"`{text}`"


def page() -> str:
    return "\n".join([HEAD, *lines()]) + "\n"


def lines() -> Iterator[str]:
    for operator in FilterOperator:
        value = VALUES.get(operator, "a")
        yield f"## {operator.name}{'' if value is None else f' {value!r}'}"
        for negate in (False, True):
            yield ""
            yield f"| engine | {'negated' if negate else 'expression'} |"
            yield "|---|---|"
            engines: dict[str, list[str]] = {}
            for name, engine in ENGINES.items():
                engines.setdefault(expression(engine, operator, negate=negate), []).append(name)
            for text, names in engines.items():
                yield f"| {', '.join(names)} | {text} |"
        yield ""


if __name__ == "__main__":
    print(page(), end="")
