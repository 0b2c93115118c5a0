"""What the key of a filter means in a collection.

A key with dots is the literal key where the row has it, else a path into nested metadata. Not
told apart, for want of words in the engines' languages: before Milvus 2.6 a mapping from null
(`IS_EMPTY` matches both); from 2.6 on an empty list from null. A value that is itself a mapping
matches neither a comparison of size nor its negation on Milvus Lite, and from Milvus 2.6 on no
negation at all. `CONTAINS`, `ANY` and `ALL` do not look at the keys of a mapping; where `like`
cannot find a text inside another (`can_find`), rows with text under the key match neither them
nor their negation; nor do, on Milvus Lite, rows with a list under a literal key with dots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pymilvus import DataType

from ..errors import FilterError
from .column_targets import COLUMN_TARGETS, ColumnTarget, IntegerKeyColumn, TextColumn
from .expressions import column_name, is_plain, listed, literal
from .json_targets import DottedKey, Json, JsonInLite, JsonOfThreeValues, is_path
from .layout import DOC_ID_KEYS, DYNAMIC_FIELD, Layout
from .targets import Target

#: Keys that the server loses its way with, even in quotes. It splits a path at `][`, and 2.3.5 dies
#: of what remains; it compares a key with the text of the row's JSON, where control characters
#: other than newline, CR and tab are spelled `\u0001`; and from 2.4 on it decodes a `\u0041` that
#: was meant as it stands (parser_visitor.go, getColumnInfoFromJSONIdentifier).
_UNADDRESSABLE = re.compile(r"\]\[|[\x00-\x08\x0b\x0c\x0e-\x1f]|\\u[0-9A-Fa-f]{4}")


def target_of(layout: Layout, key: str) -> Target:
    """Find what a key means.

    In this order: a real column; LlamaIndex's names for the id of the document; a path in a JSON
    column; a metadata key in the dynamic field.
    """
    if key in DOC_ID_KEYS and key not in layout.columns and layout.doc_id_field is not None:
        key = layout.doc_id_field
    if key in layout.columns:
        return _column_target(layout, key)
    column, _, inner = key.partition(".")
    if inner and _is_json(layout, column):
        return _json_target(layout, inner, column)
    if not layout.dynamic:
        raise FilterError(
            "there is no such column, and the collection has no dynamic field; its columns are "
            f"{listed(layout.columns)}"
        )
    return _json_target(layout, key)


def _column_target(layout: Layout, name: str) -> ColumnTarget:
    if name == layout.primary_key:
        kind = IntegerKeyColumn if layout.integer_ids else TextColumn
        return kind(name, layout.engine, nullable=False)
    data_type = layout.columns[name].type
    if data_type == DataType.JSON:
        raise FilterError(f"the column is JSON; name a key inside it, as in '{name}.key'")
    if data_type not in COLUMN_TARGETS:
        raise FilterError(
            f"the column is of type {DataType(data_type).name}, which cannot be filtered; columns "
            f"of these types and JSON can: {listed(each.name for each in COLUMN_TARGETS)}"
        )
    return COLUMN_TARGETS[data_type](name, layout.engine, nullable=True)


def _json_target(layout: Layout, key: str, column: str | None = None) -> Target:
    whole = _json(layout, [key], column)
    return DottedKey(whole, _json(layout, key.split("."), column)) if is_path(key) else whole


def _json(layout: Layout, path: Sequence[str], column: str | None) -> Json:
    """Encode a path in a JSON column or, with `None`, in the dynamic field."""
    first = path[0]
    if not first:
        raise FilterError("the key is empty; Milvus cannot address it")
    if not layout.engine.has_any_key and any(map(_UNADDRESSABLE.search, path)):
        raise FilterError(
            "Milvus cannot address a key with '][', with a control character, or with a backslash, "
            "'u' and four hexadecimal digits; store the value under another key"
        )
    if column is not None:
        head, steps = column_name(column), path
    elif is_plain(first) and first not in layout.columns:
        head, steps = first, path[1:]
    else:
        head, steps = DYNAMIC_FIELD, path
    text = head + "".join(f"[{literal(step)}]" for step in steps)
    kind: type[Json] = JsonOfThreeValues if layout.engine.has_unknown else Json
    if layout.engine.compares_json_as_python:
        kind = JsonInLite
    return kind(text, layout.engine, path[-1])


def _is_json(layout: Layout, name: str) -> bool:
    return name in layout.columns and layout.columns[name].type is DataType.JSON
