"""The text of Milvus' boolean expressions: values, names, logic, and text inside text.

Every value passes `literal`, and every name or key `column_name` or `keys.target_of`, so that data
never becomes part of an expression's code. What cannot be expressed raises `FilterError`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from typing import TypeAlias

from ..errors import FilterError
from .engine import Engine

#: An expression; `True` and `False` stand for "every row" and "no row" until the end.
Expr: TypeAlias = str | bool
Scalar: TypeAlias = str | int | float

#: What an expression can hold of a 64-bit integer: the sign is an operator of its own, so that
#: -2**63 would be read as -(2**63).
MAX_INTEGER = 2**63 - 1
#: Letters in the value of TEXT_MATCH_INSENSITIVE where each spelling is a pattern: at most 256.
_MAX_CASED_LETTERS = 8

INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: Words that no version of Milvus (Plan.g4) reads as a name.
_OLD_KEYWORDS = (
    r"and|or|not|in|like|exists|true|false|(json|array)_contains(_all|_any)?|array_length"
)
#: The same, with the words that came later, up to Milvus 3.0, and those of Milvus Lite
#: (tokens.py, semantic.py).
_KEYWORDS = (
    rf"{_OLD_KEYWORDS}|is|null|iso|interval|threshold|minimum_should_match|element_filter"
    r"|random_sample|(text|phrase)_match|match_(all|any|exact|least|most)"
    r"|st_(contains|crosses|dwithin|equals|intersects|isvalid|overlaps|touches|within)"
    r"|_partition|_seq"
)


# Literals and names


def literal(value: Scalar) -> str:
    r"""Encode a value.

    Text goes between double quotes with five escapes, `\\`, `\"`, `\n`, `\r` and `\t`; all else
    is UTF-8 as it is. Milvus Lite refuses `\u` and `\x`.

    Raises:
        FilterError: The value is not text or a finite number, or the engines cannot read it.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{_unicode(value).translate(_ESCAPES)}"'
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise FilterError(
                f"{value} is too large; integers in a Milvus expression lie between "
                f"-(2**63 - 1) and 2**63 - 1"
            )
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    raise FilterError(f"found {value!r}; a value must be a string or a finite number")


_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def _unicode(text: str) -> str:
    """Return text that can be encoded in UTF-8, which a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FilterError(f"found {text!r}, which is not valid Unicode") from None
    return str(text)


def list_literal(values: Iterable[Scalar]) -> str:
    return f"[{', '.join(map(literal, values))}]"


def is_plain(name: str) -> bool:
    """Whether a key can stand in an expression as it is.

    `k-v == 1` would be a subtraction, which matches nothing without an error (pymilvus#3012).
    """
    return _NAME.fullmatch(name) is not None and not _is_keyword(name, _KEYWORDS)


def _is_keyword(name: str, words: str) -> bool:
    return re.fullmatch(words, name, re.IGNORECASE) is not None


def column_name(name: str) -> str:
    """Return the name of a real column.

    It has no quoted form, so that a name which is a keyword only to some engines is left as it is:
    there the engine refuses the expression.
    """
    if not _NAME.fullmatch(name) or _is_keyword(name, _OLD_KEYWORDS):
        raise FilterError(
            f"the column {name!r} cannot be named in an expression: its name is a keyword of "
            "Milvus, or is not a plain name"
        )
    return name


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"


# Logic. An expression that begins with a parenthesis is wholly inside it. `exists` gets
# parentheses of its own: it binds weaker than `and` in Milvus 2.3.


#: Milvus parses a chain of `and` or `or` as a tree as deep as the chain is long, and 2.3 refuses
#: deep ones ("unsupported expr proto node").
_LONGEST_CHAIN = 16


def any_of(parts: Iterable[Expr]) -> Expr:
    """At least one of the parts; no row where there are none."""
    return _joined(" or ", parts, neutral=False)


def all_of(parts: Iterable[Expr]) -> Expr:
    """All of the parts; every row where there are none."""
    return _joined(" and ", parts, neutral=True)


def _joined(word: str, parts: Iterable[Expr], *, neutral: bool) -> Expr:
    every = list(parts)  # before any is dropped, so that each one is checked
    if (not neutral) in every:
        return not neutral
    texts = [part for part in every if isinstance(part, str)]
    while len(texts) > _LONGEST_CHAIN:
        chains = (texts[i : i + _LONGEST_CHAIN] for i in range(0, len(texts), _LONGEST_CHAIN))
        texts = [f"({word.join(chain)})" for chain in chains]
    if len(texts) > 1:
        return f"({word.join(texts)})"
    return texts[0] if texts else neutral


def negated(part: Expr) -> Expr:
    if isinstance(part, bool):
        return not part
    return f"not {enclosed(part)}"


def enclosed(part: str) -> str:
    return part if part.startswith("(") else f"({part})"


def without_negation(engine: Engine, what: str) -> FilterError:
    """The error for what an engine without `not` and `exists` has no words for."""
    return FilterError(
        f"{engine} cannot tell the rows {what}: its expressions have no 'not', 'exists' or "
        "'is null'; ask the other way round, or use Milvus, or Milvus Lite 3"
    )


def spelled(engine: Engine, part: Expr) -> Expr:
    """Spell what `literal` has escaped as the engine reads it.

    Raises:
        FilterError: A text has a newline, which the engine does not read in any spelling.
    """
    if engine.has_escapes_in_texts or isinstance(part, bool):
        return part

    def spell(escape: re.Match[str]) -> str:
        if escape[1] in "nr":
            raise FilterError(
                f"{engine} does not read texts and keys with a newline or a carriage return in an "
                "expression; leave it out, or use Milvus, or Milvus Lite 3"
            )
        return "\t" if escape[1] == "t" else escape[0]

    return re.sub(r"\\(.)", spell, part)


# Text inside text


def is_text(engine: Engine, target: str) -> str:
    """Test whether a value in JSON, or a text, is a text, be it empty."""
    return f'{target} like "%"' if engine.likes_any_text else f'{target} >= ""'


def contains(engine: Engine, target: str, needle: str) -> Expr:
    """Test whether a text contains `needle`, the wildcards of `like` taken literally."""
    engine.require(Engine.has_infix_like, "text inside text", FilterError)
    if not can_find(engine, needle):
        remedy = f"leave '%', '_' and a backslash at the end out of {needle!r}"
        engine.require(Engine.has_escapes_in_like, remedy, FilterError)
    if not needle:
        return is_text(engine, target)
    pattern = re.sub(r"([\\%_])", r"\\\1", needle) if engine.has_escapes_in_like else needle
    return f"{target} like {literal(f'%{pattern}%')}"


def can_find(engine: Engine, needle: str) -> bool:
    """Whether `like` can look for a text, whatever the rows hold.

    Lite evaluates an expression in Arrow or, when it has functions or meets values of several
    types under one key, in Python. Python's side knows no escapes. Both read a backslash as
    itself in a pattern `%text%` whose text has no wildcard and does not end in a backslash.
    """
    if engine.has_escapes_in_like:
        return True
    plain = "%" not in needle and "_" not in needle and not needle.endswith("\\")
    return engine.has_infix_like and plain


def contains_insensitive(engine: Engine, target: str, needle: str) -> Expr:
    """Test whether a text contains `needle` in any mixture of upper and lower case.

    Letters are paired by simple case mapping, as `str.lower` and `str.upper` do for one letter.
    """
    if engine.has_regex:
        # RE2: a backslash makes punctuation literal. It refuses one before an underscore.
        escaped = re.sub(r"([!-/:-@\[-^`{-~])", r"\\\1", needle.lower())
        return f"{target} =~ {literal('(?i)' + escaped)}" if needle else f'{target} like "%"'
    spellings = [_cases(letter) for letter in needle.lower()]
    cased = sum(len(each) > 1 for each in spellings)
    if engine.has_infix_like and cased > _MAX_CASED_LETTERS:
        raise FilterError(
            f"use TEXT_MATCH, or a text of at most {_MAX_CASED_LETTERS} letters; or Milvus 3.0, "
            f"which has regular expressions. Found {cased} letters; {engine} has no comparison "
            "without case, so that every spelling becomes a pattern of its own: these are too many"
        )
    words = map("".join, itertools.product(*spellings))
    return any_of(contains(engine, target, word) for word in words)


def _cases(letter: str) -> str:
    upper = letter.upper()
    return letter + upper if upper != letter and upper.lower() == letter else letter
