"""What the key of a filter means in a collection.

A key whose name the row uses for something else (`id`, `text`, `doc_id`, see `metadata_keys`) is
the metadata of the rows that have such a key, and the column of all others. A key with dots, or in
Milvus' syntax (`m["x"]`), is the literal key where the row has it, else a path into nested
metadata. A server cannot address a literal key with `][`, so that `m["y"]["z"]` is only a path.

Not told apart, for want of words in the engines' languages: before Milvus 2.6 a mapping from null
(`IS_EMPTY` matches both); from 2.6 on an empty list from null. A value that is itself a mapping
matches neither a comparison of size nor its negation on Milvus Lite, and from Milvus 2.6 on no
negation at all. `CONTAINS`, `ANY` and `ALL` do not look at the keys of a mapping; where `like`
cannot find a text inside another (`can_find`), rows with text under the key match neither them
nor their negation; nor do, on Milvus Lite, rows with a list under a literal key with dots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pymilvus import DataType

from ..errors import FilterError
from .column_targets import (
    COLUMN_TARGETS,
    ColumnTarget,
    IntegerKeyColumn,
    TextColumn,
    element_target,
)
from .expressions import column_name, is_plain, listed, literal
from .json_targets import (
    FirstOf,
    Json,
    JsonInLite,
    JsonInLite2,
    JsonOfThreeValues,
    is_path,
)
from .key_syntax import Step, subscripted
from .layout import DOC_ID_KEYS, DYNAMIC_FIELD, Layout
from .targets import Target

#: Keys that the server loses its way with, even in quotes. It splits a path at `][`, and 2.3.5 dies
#: of what remains; it compares a key with the text of the row's JSON, where control characters
#: other than newline, CR and tab are spelled `\u0001`; and from 2.4 on it decodes a `\u0041` that
#: was meant as it stands (parser_visitor.go, getColumnInfoFromJSONIdentifier).
_UNADDRESSABLE = re.compile(r"\]\[|[\x00-\x08\x0b\x0c\x0e-\x1f]|\\u[0-9A-Fa-f]{4}")


def target_of(layout: Layout, key: str) -> Target:
    """Find what a key means.

    In this order: a metadata key that has the name of a column; a real column; LlamaIndex's names
    for the id of the document; a path in a JSON column; a metadata key in the dynamic field.
    """
    if (steps := subscripted(key)) is None:
        return _named_target(layout, key)
    path = _path_target(layout, steps)
    if not layout.engine.has_negation:  # which could tell the rows that have the literal key
        return path
    if not layout.dynamic or not _is_addressable(layout, [key]):
        return path
    return _first_of(_metadata(layout, [key], has_another_reading=True), path)


def json_paths(layout: Layout, key: str) -> list[tuple[str, str]]:
    """What the filters of a key read: the columns, and the paths in them.

    A key with dots is two paths; see above.

    Raises:
        FilterError: The key is, or may be, a column, or Milvus cannot address it.
    """
    targets, found = [target_of(layout, key)], []
    for target in targets:
        if isinstance(target, FirstOf):
            targets += [target.first, target.second]
        elif isinstance(target, Json):
            found.append((target.column, target.text))
        else:
            raise FilterError("rows have a column of that name")
    return found


def source_target(layout: Layout) -> Target:
    """The id of the document that a node comes from, whatever its metadata says."""
    assert layout.doc_id_field is not None
    return _own_target(layout, layout.doc_id_field)


def _named_target(layout: Layout, key: str) -> Target:
    if layout.dynamic and layout.metadata_keys.is_taken(key):
        value = _metadata(layout, [key])
        if not _can_be_filtered(layout, key):
            return value
        mark = _address(layout, [layout.metadata_keys.mark(key)])
        own = _own_target(layout, key)
        if isinstance(own, ColumnTarget):
            own.refuses_lists = False
        if not layout.engine.has_negation:
            return FirstOf(f"({mark} == true)", value, own, lacks_first=f"{mark} != true")
        return FirstOf(f"(exists {mark})", value, own)
    if key in layout.columns:
        return _column_target(layout, key)
    column, _, inner = key.partition(".")
    if inner and _is_json(layout, column):
        _check_dots(layout, key, inner, column)
        return _dotted(inner, lambda path, **how: _json(layout, path, column, **how))
    _check_dynamic(layout)
    _check_dots(layout, key, key)
    return _dotted(key, lambda path, **how: _metadata(layout, path, **how))


def _can_be_filtered(layout: Layout, name: str) -> bool:
    """Whether a name that is not metadata has something that a filter can mean."""
    column = layout.columns.get(name)
    return name != DYNAMIC_FIELD if column is None else column.type in COLUMN_TARGETS


def _own_target(layout: Layout, name: str) -> Target:
    """What a row uses a name for, beside metadata."""
    if name in DOC_ID_KEYS and name not in layout.columns and layout.doc_id_field is not None:
        name = layout.doc_id_field
    if name in layout.columns:
        return _column_target(layout, name)
    return _json(layout, [name], None)


def _path_target(layout: Layout, steps: Sequence[Step]) -> Target:
    """What a path of steps means."""
    name = str(steps[0])
    if len(steps) == 1:
        is_column = name in layout.columns or layout.metadata_keys.is_taken(name)
        return _named_target(layout, name) if is_column else _metadata(layout, [name])
    if _is_json(layout, name):
        return _json(layout, steps[1:], name)
    column = layout.columns.get(name)
    if column is not None and column.type is DataType.ARRAY and isinstance(steps[1], int):
        if len(steps) > 2:
            raise FilterError(
                f"the ARRAY column {name!r} has simple elements; a key cannot lead into them"
            )
        return element_target(column, steps[1], layout.engine)
    return _metadata(layout, steps)


def _first_of(literally: Json, path: Target) -> Target:
    return FirstOf(literally.exists, literally, path)


def _dotted(key: str, target: Callable[..., Json]) -> Target:
    """What a key means that has dots, or has not."""
    if not is_path(key):
        return target([key])
    return _first_of(target([key], has_another_reading=True), target(key.split(".")))


def _check_dots(layout: Layout, key: str, inner: str, column: str = DYNAMIC_FIELD) -> None:
    """Refuse a key with two meanings where the engine cannot tell which one a row has."""
    if is_path(inner) and not layout.engine.has_negation:
        path = _subscripts(column, inner.split("."))
        raise FilterError(
            f"{layout.engine} has no 'exists', so that it cannot tell whether a row has the key "
            f"{inner!r} or a mapping under {inner.split('.')[0]!r}; write {path!r} for the "
            f"mapping, or {_subscripts(column, [inner])!r} for the key with dots"
        )


def _check_dynamic(layout: Layout) -> None:
    if not layout.dynamic:
        raise FilterError(
            "there is no such column, and the collection has no dynamic field; its columns are "
            f"{listed(layout.columns)}"
        )


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


def _metadata(layout: Layout, path: Sequence[Step], **how: bool) -> Json:
    """A path in metadata, by the name of its first key in the dynamic field."""
    _check_dynamic(layout)
    return _json(layout, [layout.metadata_keys.name(str(path[0])), *path[1:]], None, **how)


def _json(
    layout: Layout,
    path: Sequence[Step],
    column: str | None,
    *,
    has_another_reading: bool = False,
) -> Json:
    """Encode a path in a JSON column or, with `None`, in the dynamic field."""
    if path[0] == "":
        raise FilterError("the key is empty; Milvus cannot address it")
    if not _is_addressable(layout, path):
        raise FilterError(
            "Milvus cannot address a key with '][', with a control character, or with a backslash, "
            "'u' and four hexadecimal digits; store the value under another key"
        )
    text = _address(layout, path) if column is None else _subscripts(column_name(column), path)
    kind: type[Json] = JsonOfThreeValues if layout.engine.has_unknown else Json
    if layout.engine.compares_json_as_python:
        kind = JsonInLite
    elif not layout.engine.has_negation:
        kind = JsonInLite2
    return kind(
        text,
        layout.engine,
        column=column or DYNAMIC_FIELD,
        has_another_reading=has_another_reading,
    )


def _address(layout: Layout, path: Sequence[Step]) -> str:
    """Write a path in the dynamic field."""
    first = str(path[0])
    if is_plain(first) and first not in layout.columns:
        return _subscripts(first, path[1:])
    return _subscripts(DYNAMIC_FIELD, path)


def _subscripts(name: str, path: Sequence[Step]) -> str:
    return name + "".join(f"[{literal(step)}]" for step in path)


def _is_addressable(layout: Layout, path: Sequence[Step]) -> bool:
    keys = [step for step in path if isinstance(step, str)]
    return layout.engine.has_any_key or not any(map(_UNADDRESSABLE.search, keys))


def _is_json(layout: Layout, name: str) -> bool:
    return name in layout.columns and layout.columns[name].type is DataType.JSON
