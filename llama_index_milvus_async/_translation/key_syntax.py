"""Keys of filters in Milvus' own syntax: `m["x"]`, `m["y"]["z"]`, `$meta["a b"]`, `l[0]`."""

from __future__ import annotations

import re

#: A step into a mapping, by its key, or into a list, by its position.
Step = str | int

_TEXT = r"""\"(?:[^"\\]|\\["'\\nrt])*\"|'(?:[^'\\]|\\["'\\nrt])*'"""
_SUBSCRIPT = re.compile(rf"\[\s*(?:({_TEXT})|(0|[1-9][0-9]{{0,8}}))\s*\]")
_SUBSCRIPTED = re.compile(rf"(\$meta|[A-Za-z_][A-Za-z0-9_]*)((?:{_SUBSCRIPT.pattern})+)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def subscripted(key: str) -> list[Step] | None:
    """The steps that a key in Milvus' syntax means, the name before the brackets first.

    Returns:
        The steps; `None` where the key is only a name. The first one is always text: `$meta`, the
        dynamic field, which holds all other names, is left out.
    """
    if not key.endswith("]") or (match := _SUBSCRIPTED.fullmatch(key)) is None:
        return None
    steps = [
        int(number) if number else _unquoted(text) for text, number in _SUBSCRIPT.findall(match[2])
    ]
    if match[1] != "$meta":
        return [match[1], *steps]
    return steps if isinstance(steps[0], str) else None


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda escape: _ESCAPED.get(escape[1], escape[1]), text[1:-1])
