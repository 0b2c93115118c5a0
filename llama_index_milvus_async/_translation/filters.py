"""Filters, ids and doc ids as one boolean expression of Milvus.

What cannot be expressed raises `FilterError`; nothing is dropped or approximated, since a lost
filter shows one tenant's rows to another. How a thing is said to each engine is in `targets`.

What an operator means is what `llama_index.core.vector_stores.utils.build_metadata_filter_fn`
says, the function behind `SimpleVectorStore`: a row without the key, or with null, matches `NE`,
`NIN` and `IS_EMPTY` only, and a comparison of values that do not compare matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from ..errors import FilterError
from ..filters import FilterOperatorFunction, ScalarMetadataFilter, ScalarMetadataFilters
from .engine import Engine
from .expressions import (
    INTEGER,
    MAX_INTEGER,
    Expr,
    Scalar,
    all_of,
    any_of,
    column_name,
    enclosed,
    listed,
    literal,
    spelled,
)
from .keys import source_target, target_of
from .layout import NO_DOC_ID, Layout
from .targets import Target

#: Characters of the longest text in a fingerprint, which is remembered.
MAX_FINGERPRINTED = 256
_PLAIN = frozenset({str, int, float, bool, type(None)})
_NO_FILTERS = MetadataFilters(filters=[])


def build_expression(
    layout: Layout,
    *,
    filters: MetadataFilters | None = None,
    node_ids: Sequence[str] | None = None,
    doc_ids: Sequence[str] | None = None,
    scalar_filters: (
        ScalarMetadataFilters
        | ScalarMetadataFilter
        | Mapping[str, Any]
        | Sequence[Mapping[str, Any] | ScalarMetadataFilter]
        | None
    ) = None,
    string_expr: str | None = None,
) -> str:
    """Combine all restrictions of a call by AND.

    Args:
        layout: The collection.
        filters: Metadata filters, nested to any depth.
        node_ids: Ids of nodes; an empty list matches no row.
        doc_ids: Ids of documents; an empty list matches no row.
        scalar_filters: Filters on lists, as objects or as what their `to_dict` returns.
        string_expr: An expression in Milvus' own language, written by the developer. It is used
            as it is: never put a value from outside into it.

    Returns:
        The expression, `""` when nothing restricts.

    Raises:
        FilterError: A part cannot be expressed.
    """
    try:
        return _restrictions(layout, filters, node_ids, doc_ids, scalar_filters, string_expr)
    except RecursionError:
        raise FilterError("filters are nested too deeply to be translated") from None


def _restrictions(
    layout: Layout,
    filters: MetadataFilters | None,
    node_ids: Sequence[str] | None,
    doc_ids: Sequence[str] | None,
    scalar_filters: Any,
    string_expr: str | None,
) -> str:
    parts: list[Expr] = []
    if node_ids is not None:
        parts.append(ids_expression(layout, node_ids))
    if doc_ids is not None:
        parts.append(doc_ids_expression(layout, doc_ids))
    if filters is not None:
        parts.append(_group(layout, metadata_filters(filters), True))
    if scalar_filters is not None:
        parts.append(_scalar_group(layout, list_filters(scalar_filters)))
    if string_expr is not None and string_expr.strip():
        parts.append(f"({_checked(string_expr)})")
    if False in parts:
        return _no_row(layout)
    return " and ".join(enclosed(part) for part in parts if isinstance(part, str))


def metadata_filters(given: Any) -> MetadataFilters:
    """Filters as callers pass them: `None` means every row, and a single filter is taken as well.

    Raises:
        FilterError: They are something else.
    """
    if isinstance(given, MetadataFilters):
        return given
    if given is None:
        return _NO_FILTERS
    if isinstance(given, MetadataFilter):
        return MetadataFilters(filters=[given])
    raise FilterError(
        f"filters must be MetadataFilters, found {type(given).__name__}; write "
        "MetadataFilters(filters=[MetadataFilter(key=..., value=...)])"
    )


def fingerprint(filters: Any) -> Hashable | None:
    """What filters of the same expression have in common; it costs a tenth of the expression.

    Returns:
        `None` for filters that are nested, or have lists or long texts.
    """
    group = metadata_filters(filters)
    parts = []
    for part in group.filters:
        if type(part) is not MetadataFilter:
            return None
        value = part.value
        if type(value) not in _PLAIN or (type(value) is str and len(value) > MAX_FINGERPRINTED):
            return None
        # 1, 1.0 and True are equal, and are not spelled alike.
        parts.append((part.key, part.operator, type(value), value))
    return group.condition, *parts


def _no_row(layout: Layout) -> str:
    """Match nothing; there are no constants: Milvus refuses `false` alone."""
    name = column_name(layout.primary_key)
    if layout.engine.has_negation:
        return f"{name} in []"
    least = "0" if layout.integer_ids else '""'
    return f"({name} < {least}) and ({name} > {least})"


def _rendered(layout: Layout, part: Expr) -> str:
    """Turn an expression into text; it cannot be "every row" here, which has no text."""
    return part if isinstance(part, str) else _no_row(layout)


def ids_expression(layout: Layout, ids: Sequence[str]) -> str:
    """Match the rows with these primary keys; an empty list matches no row.

    Raises:
        FilterError: The primary key is an integer and an id is not, or an id is not text.
    """
    name = column_name(layout.primary_key)
    values = [_id_literal(layout, each) for each in dict.fromkeys(_id_list("node ids", ids))]
    return f"{name} in [{', '.join(values)}]" if values else _no_row(layout)


def doc_ids_expression(layout: Layout, doc_ids: Sequence[str]) -> str:
    """Match the rows of these documents; an empty list matches no row.

    Raises:
        FilterError: The collection does not store ids of documents, or an id is not text.
    """
    values = list(dict.fromkeys(_id_list("doc ids", doc_ids)))
    if layout.doc_id_field is None:
        raise FilterError(
            "doc ids cannot be looked up: the collection has neither a column for them nor a "
            f"dynamic field (its columns: {listed(layout.columns)})"
        )
    if layout.doc_id_field == layout.primary_key:
        return ids_expression(layout, values)
    match = source_target(layout).one_of(values, True)
    return _rendered(layout, spelled(layout.engine, match))


def documents_expression(layout: Layout, doc_ids: Sequence[str]) -> str:
    """Match the nodes of these documents, and the documents that were added whole.

    The latter are nodes of these ids without a source document; a passage of that id is not.

    Raises:
        FilterError: The collection does not store ids of documents, or an id is not text.
    """
    # What rows without a source document have in the place of its id is no document.
    sources = [each for each in doc_ids if each != NO_DOC_ID]
    passages = doc_ids_expression(layout, sources)
    assert layout.doc_id_field is not None
    keys = [each for each in doc_ids if _can_be_key(layout, each)]
    if not keys:
        return passages
    source = source_target(layout)
    no_source = [source.one_of([NO_DOC_ID], True)]
    if layout.engine.has_negation or layout.doc_id_field in layout.columns:
        no_source.append(source.empty(True))  # in rows that were made by hand
    whole = all_of([ids_expression(layout, keys), any_of(no_source)])
    return _rendered(layout, any_of([passages, whole] if sources else [whole]))


def _can_be_key(layout: Layout, doc_id: str) -> bool:
    """Whether a node of this id may have been added."""
    if layout.auto_id:
        return False  # its keys are numbers of rows, which mean nothing beside ids of documents
    if not layout.integer_ids:
        return layout.engine.takes_id(doc_id)
    number = int(doc_id) if INTEGER.fullmatch(doc_id) else None
    return str(number) == doc_id and abs(number or 0) <= MAX_INTEGER


def everything_expression(layout: Layout) -> str:
    """Match every row, where Milvus does not take an empty expression."""
    name = column_name(layout.primary_key)
    if layout.integer_ids:
        # The least integer cannot be written: its sign is an operator of its own.
        return f"({name} >= 0) or ({name} < 0)"
    return f'{name} >= ""'


def existence_expression(layout: Layout, key: str) -> str | None:
    """Match the rows that have a value under a metadata key; `None` for the name of a column.

    Raises:
        FilterError: The key cannot be addressed.
    """
    exists = target_of(layout, key).exists
    return exists if isinstance(exists, str) else None


def keys_of(filters: Any, scalar_filters: Any = None) -> Iterator[str]:
    """The keys that filters compare, given as `build_expression` takes them."""
    if filters is not None:
        for part in metadata_filters(filters).filters:
            if isinstance(part, MetadataFilter):
                yield part.key
            else:
                yield from keys_of(part)
    if scalar_filters is not None:
        yield from (part.key for part in list_filters(scalar_filters).filters)


def next_page_expression(layout: Layout, expression: str, last_id: str | int) -> str:
    """Restrict an expression to the primary keys after `last_id`, the last one of a page."""
    after = f"{column_name(layout.primary_key)} > {_id_literal(layout, last_id)}"
    return f"({expression}) and {after}" if expression else after


def _id_list(what: str, ids: Sequence[str]) -> Sequence[str]:
    if isinstance(ids, (str, bytes)):
        raise FilterError(f"{what} must be a list, found the single value {ids!r}")
    for each in ids:
        if not isinstance(each, (str, int)) or isinstance(each, bool):
            raise FilterError(f"{what} must be a string, found {each!r}")
    return ids


def _id_literal(layout: Layout, node_id: str | int) -> str:
    """Encode a primary key; LlamaIndex's ids are text also where the column is INT64."""
    text = str(node_id)
    if not layout.integer_ids:
        if not layout.engine.takes_id(text):
            raise FilterError(f"the id {text!r}: {layout.engine} {Engine.has_any_id.lack}")
        return str(spelled(layout.engine, literal(text)))
    if not INTEGER.fullmatch(text):
        raise FilterError(
            f"the primary key {layout.primary_key!r} is INT64, but the node id {text!r} is not an "
            "integer"
        )
    return literal(int(text))


# Operators


def _scalar(value: Any) -> Scalar:
    if isinstance(value, (list, tuple, set)):
        raise FilterError(
            f"found the list {value!r}; this operator takes one value. Lists go with IN, NIN, ANY "
            "and ALL"
        )
    if value is None:
        raise FilterError("found no value; only IS_EMPTY takes none")
    if not isinstance(value, (str, int, float)):
        raise FilterError(f"found {value!r}; a value must be a string or a finite number")
    literal(value)  # Refused here, a value cannot be left out as not comparable later.
    return value


def _values(value: Any) -> list[Scalar]:
    if not isinstance(value, (list, tuple)):
        raise FilterError(f"found {value!r}; this operator takes a list of values")
    return list(dict.fromkeys(map(_scalar, value)))


def _needle(value: Any) -> str:
    if not isinstance(_scalar(value), str):
        raise FilterError(f"found {value!r}; this operator takes a string")
    return str(value)


def _length(value: Any) -> int:
    if not isinstance(_scalar(value), int) or value < 0:
        raise FilterError(f"found {value!r}; this operator takes a number of elements, 0 or more")
    return int(value)


def _elements(value: Any) -> list[Scalar]:
    if not (values := _values(value)):
        raise FilterError("found an empty list; name at least one element")
    return values


_Builder: TypeAlias = Callable[[Target, Any, bool], Expr]

_OPERATORS: dict[FilterOperator, _Builder] = {
    FilterOperator.EQ: lambda on, value, yes: on.one_of([_scalar(value)], yes),
    FilterOperator.NE: lambda on, value, yes: on.one_of([_scalar(value)], not yes),
    FilterOperator.IN: lambda on, value, yes: on.one_of(_values(value), yes),
    FilterOperator.NIN: lambda on, value, yes: on.one_of(_values(value), not yes),
    FilterOperator.GT: lambda on, value, yes: on.ordered(">", _scalar(value), yes),
    FilterOperator.GTE: lambda on, value, yes: on.ordered(">=", _scalar(value), yes),
    FilterOperator.LT: lambda on, value, yes: on.ordered("<", _scalar(value), yes),
    FilterOperator.LTE: lambda on, value, yes: on.ordered("<=", _scalar(value), yes),
    FilterOperator.CONTAINS: lambda on, value, yes: on.contains([_scalar(value)], False, yes),
    FilterOperator.ANY: lambda on, value, yes: on.contains(_values(value), False, yes),
    FilterOperator.ALL: lambda on, value, yes: on.contains(_values(value), True, yes),
    FilterOperator.TEXT_MATCH: lambda on, value, yes: on.has_text(_needle(value), False, yes),
    FilterOperator.TEXT_MATCH_INSENSITIVE: (
        lambda on, value, yes: on.has_text(_needle(value), True, yes)
    ),
    FilterOperator.IS_EMPTY: lambda on, value, yes: on.empty(yes),
}

_SCALAR_OPERATORS: dict[FilterOperatorFunction, _Builder] = {
    FilterOperatorFunction.ARRAY_CONTAINS: (
        lambda on, value, yes: on.has_elements([_scalar(value)], False, yes)
    ),
    FilterOperatorFunction.NARRAY_CONTAINS: (
        lambda on, value, yes: on.has_elements([_scalar(value)], False, not yes)
    ),
    FilterOperatorFunction.ARRAY_CONTAINS_ANY: (
        lambda on, value, yes: on.has_elements(_elements(value), False, yes)
    ),
    FilterOperatorFunction.NARRAY_CONTAINS_ANY: (
        lambda on, value, yes: on.has_elements(_elements(value), False, not yes)
    ),
    FilterOperatorFunction.ARRAY_CONTAINS_ALL: (
        lambda on, value, yes: on.has_elements(_elements(value), True, yes)
    ),
    FilterOperatorFunction.NARRAY_CONTAINS_ALL: (
        lambda on, value, yes: on.has_elements(_elements(value), True, not yes)
    ),
    FilterOperatorFunction.ARRAY_LENGTH: (
        lambda on, value, yes: on.has_length(_length(value), yes)
    ),
    FilterOperatorFunction.NARRAY_LENGTH: (
        lambda on, value, yes: on.has_length(_length(value), not yes)
    ),
}


def _group(layout: Layout, group: MetadataFilters, positive: bool) -> Expr:
    """Translate filters with their condition, or the negation of that."""
    if not group.filters:
        return positive  # restricts nothing, whatever the condition

    def each(positive: bool) -> Iterable[Expr]:
        for part in group.filters:
            if isinstance(part, MetadataFilter):
                yield _leaf(layout, _OPERATORS, part.key, part.operator, part.value, positive)
            else:
                yield _group(layout, metadata_filters(part), positive)

    return _combined(group.condition, each, positive)


def _scalar_group(layout: Layout, group: ScalarMetadataFilters) -> Expr:
    if not group.filters:
        return True

    def each(positive: bool) -> Iterable[Expr]:
        for part in group.filters:
            yield _leaf(layout, _SCALAR_OPERATORS, part.key, part.operator, part.value, positive)

    return _combined(group.condition, each, True)


def _combined(
    condition: FilterCondition | None, each: Callable[[bool], Iterable[Expr]], positive: bool
) -> Expr:
    """Combine parts, each made for the rows that match it or for those that do not."""
    if condition is None or condition == FilterCondition.AND:
        return all_of(each(True)) if positive else any_of(each(False))
    if condition == FilterCondition.OR:
        return any_of(each(True)) if positive else all_of(each(False))
    if condition == FilterCondition.NOT:  # none of them matches
        return all_of(each(False)) if positive else any_of(each(True))
    raise FilterError(
        f"unknown condition {condition!r}; supported are {listed(c.name for c in FilterCondition)}"
    )


def _leaf(
    layout: Layout,
    operators: Mapping[Any, _Builder],
    key: str,
    symbol: Any,
    value: Any,
    yes: bool,
) -> Expr:
    """Translate one filter; its errors name the key and the operator."""
    name = getattr(symbol, "name", str(symbol))
    try:
        if symbol not in operators:
            raise FilterError(
                f"unknown operator; supported are {listed(each.name for each in operators)}"
            )
        return spelled(layout.engine, operators[symbol](target_of(layout, key), value, yes))
    except FilterError as error:
        raise FilterError(f"filter on {key!r} with the operator {name}: {error}") from None


def list_filters(given: Any) -> ScalarMetadataFilters:
    """Filters on lists as callers pass them: as objects, or as what their `to_dict` returns.

    The classes of the upstream plugin have the names and attributes of those here.

    Raises:
        FilterError: They are something else.
    """
    kind = type(given).__name__
    if isinstance(given, Mapping) and "filters" in given:
        given = dict(given)
    elif isinstance(given, Mapping) or kind == ScalarMetadataFilter.__name__:
        given = {"filters": [given]}
    elif isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        given = {"filters": list(given)}
    elif kind != ScalarMetadataFilters.__name__:
        raise FilterError(
            "milvus_scalar_filters must be ScalarMetadataFilters, or a dictionary or a list of "
            f"dictionaries with key, value and operator; found {kind}"
        )
    try:
        return ScalarMetadataFilters.model_validate(given, from_attributes=True)
    except ValidationError as error:
        raise FilterError(f"milvus_scalar_filters: {error}") from error


#: What the text of a subscript follows; that of a list follows a bracket after a space.
_BEFORE_SUBSCRIPT = re.compile(r"[\w\]]\[$")


def _checked(expression: str) -> str:
    """Refuse an expression that could end the parentheses around it, as `x) or (true` would.

    And one with `][` in the text of a subscript: Milvus 2.3 splits it there, and dies.
    """
    closing = {"(": ")", "[": "]", "{": "}"}
    opened: list[str] = []
    quote, text_at = "", 0
    characters = iter(enumerate(expression))
    for position, character in characters:
        if quote:
            if character == "\\":
                next(characters, None)
            elif character == quote:
                quote = ""
                path, text = expression[:text_at].rstrip(), expression[text_at:position]
                if "][" in text and _BEFORE_SUBSCRIPT.search(path):
                    raise FilterError(
                        f"string_expr has the key {text[1:]!r}, which kills Milvus 2.3"
                    )
        elif character in "\"'":
            quote, text_at = character, position
        elif character in closing:
            opened.append(closing[character])
        elif character in closing.values() and (not opened or opened.pop() != character):
            raise FilterError(f"string_expr has an unmatched {character!r}: {expression!r}")
    if quote or opened:
        missing = quote or opened[-1]
        raise FilterError(f"string_expr lacks a closing {missing!r}: {expression!r}")
    return expression
