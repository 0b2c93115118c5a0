"""Expressions of Milvus: what the engines understand, and the text that says it.

Together with `_filters`, which says what LlamaIndex' filters mean, this is the only place in
which a value becomes text of an expression: every value passes `literal`, every key `target_of`.
What cannot be expressed raises `FilterError`.

The engines' logic differs:

- Milvus before 2.6 knows true and false: what does not compare is false, and its negation true.
- Milvus Lite and Milvus from 2.6 on also know *unknown* (milvus#46820, milvus#50699): a missing
  key or a value of another type makes a comparison unknown, `not` leaves it unknown, and the row
  is lost.

So a negation is never put before a finished expression. It is carried down to the comparisons
(the parameter `positive`), and each kind of target knows how to say both "matches" and "does not
match" so that they are *true* on the right rows in the logic of its engine.

A key with dots is the literal key where the row has it, else a path into nested metadata. Not
told apart, for want of words in the engines' languages: before Milvus 2.6 a mapping from null
(`IS_EMPTY` matches both); from 2.6 on an empty list from null. A value that is itself a mapping
matches neither a comparison of size nor its negation on Milvus Lite, and from Milvus 2.6 on no
negation at all. `CONTAINS`, `ANY` and `ALL` do not look at the keys of a mapping; where `like`
cannot find a text inside another (`_can_find`), rows with text under the key match neither them
nor their negation; nor do, on Milvus Lite, rows with a list under a literal key with dots.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pymilvus import DataType

from ..errors import FilterError
from .engine import Engine

#: An expression; `True` and `False` stand for "every row" and "no row" until the end.
Expr: TypeAlias = str | bool
Scalar: TypeAlias = str | int | float

#: What an expression can hold of a 64-bit integer: the sign is an operator of its own, so that
#: -2**63 would be read as -(2**63).
_MAX_INTEGER = 2**63 - 1
#: Below it every integer is a double of its own.
_MAX_EXACT_DOUBLE = 2**53
#: Every number of a row is at least this.
_LEAST_DOUBLE = "-1.7976931348623157e+308"
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

#: Keys that the server loses its way with, even in quotes. It splits a path at `][`, and 2.3.5 dies
#: of what remains; it compares a key with the text of the row's JSON, where control characters
#: other than newline, CR and tab are spelled `\u0001`; and from 2.4 on it decodes a `\u0041` that
#: was meant as it stands (parser_visitor.go, getColumnInfoFromJSONIdentifier).
_UNADDRESSABLE = re.compile(r"\]\[|[\x00-\x08\x0b\x0c\x0e-\x1f]|\\u[0-9A-Fa-f]{4}")

#: LlamaIndex stores the id of a node's document in its metadata under all of these
#: (`llama_index.core.vector_stores.utils.node_to_metadata_dict`).
_DOC_ID_KEYS = frozenset({"doc_id", "document_id", "ref_doc_id"})


@dataclass(frozen=True, slots=True)
class Columns:
    """What an expression has to know of a collection.

    Attributes:
        primary_key: Name of the primary key's column.
        primary_key_is_integer: Whether it is INT64; VARCHAR otherwise.
        doc_id: Column, or key of the dynamic field, that holds the id of a node's document;
            `None` when the collection has none.
        types: The type of every real column, the primary key included.
        dynamic: Whether the dynamic field is enabled.
        engine: What the engine can do.
    """

    primary_key: str
    primary_key_is_integer: bool
    doc_id: str | None
    types: Mapping[str, DataType]
    dynamic: bool
    engine: Engine


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
        if abs(value) > _MAX_INTEGER:
            raise FilterError(
                f"{value} is too large; integers in a Milvus expression lie between "
                f"-(2**63 - 1) and 2**63 - 1"
            )
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    raise FilterError(f"found {value!r}; a value is text or a finite number")


_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def _unicode(text: str) -> str:
    """Return text that can be encoded in UTF-8, which a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FilterError(f"found {text!r}, which is not valid Unicode") from None
    return str(text)


def _list_literal(values: Iterable[Scalar]) -> str:
    return f"[{', '.join(map(literal, values))}]"


def _is_plain(name: str) -> bool:
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
            "Milvus or no plain name"
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


def no_row(columns: Columns) -> str:
    """Match nothing; there are no constants: Milvus refuses `false` alone."""
    return f"{column_name(columns.primary_key)} in []"


def rendered(columns: Columns, part: Expr) -> str:
    """Turn an expression into text; "every row" has none and cannot occur here."""
    return part if isinstance(part, str) else no_row(columns)


# Text inside text


def _substring(engine: Engine, target: str, needle: str) -> Expr:
    """Test whether a text contains `needle`, the wildcards of `like` taken literally."""
    engine.require(Engine.has_infix_like, "text inside text", FilterError)
    if not _can_find(engine, needle):
        engine.require(Engine.has_escapes_in_like, f"found {needle!r}", FilterError)
    if not needle:
        return f'{target} like "%"'
    pattern = re.sub(r"([\\%_])", r"\\\1", needle) if engine.has_escapes_in_like else needle
    return f"{target} like {literal(f'%{pattern}%')}"


def _can_find(engine: Engine, needle: str) -> bool:
    """Whether `like` can look for a text, whatever the rows hold.

    Lite evaluates an expression in Arrow or, when it has functions or meets values of several
    types under one key, in Python. Python's side knows no escapes. Both read a backslash as
    itself in a pattern `%text%` whose text has no wildcard and does not end in a backslash.
    """
    if engine.has_escapes_in_like:
        return True
    plain = "%" not in needle and "_" not in needle and not needle.endswith("\\")
    return engine.has_infix_like and plain


def _substring_insensitive(engine: Engine, target: str, needle: str) -> Expr:
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
            f"found a text with {cased} letters; {engine} has no comparison without case, so "
            "that every spelling becomes a pattern of its own, and for more than "
            f"{_MAX_CASED_LETTERS} letters these are too many. Use a shorter text, or "
            "TEXT_MATCH, or Milvus 3.0, which has regular expressions"
        )
    words = map("".join, itertools.product(*spellings))
    return any_of(_substring(engine, target, word) for word in words)


def _cases(letter: str) -> str:
    upper = letter.upper()
    return letter + upper if upper != letter and upper.lower() == letter else letter


# Targets: what a filter is about. Each method returns the expression that is true for the rows
# that match (`positive`), or for the rows that do not.


class Target(ABC):
    """A column or a value in JSON."""

    @abstractmethod
    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        """The value equals one of `values`."""

    @abstractmethod
    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        """The value is less or greater; text compares with text, numbers with numbers."""

    @abstractmethod
    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        """The value is a list with, or a text that contains, any or every one of `values`."""

    @abstractmethod
    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        """The value is a text that contains `needle`."""

    @abstractmethod
    def empty(self, positive: bool) -> Expr:
        """There is no value, or null, an empty text or an empty list."""

    @abstractmethod
    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        """The value is a list with any or every one of `values`."""

    @abstractmethod
    def has_length(self, length: int, positive: bool) -> Expr:
        """The value is a list of `length` elements."""


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def _texts(values: Iterable[Scalar]) -> list[str]:
    return [each for each in values if isinstance(each, str)]


def _numbers(values: Iterable[Scalar]) -> list[int | float]:
    """Return the numbers, whole ones as integers: the server compares those exactly."""
    return [_whole(each) for each in values if not isinstance(each, str)]


def _is_large(number: int | float) -> bool:
    """Whether a double might stand for this integer and another one."""
    return isinstance(number, int) and abs(number) >= _MAX_EXACT_DOUBLE


def _whole(value: int | float) -> int | float:
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_INTEGER
    return int(value) if whole or isinstance(value, bool) else value


def _call(function: str, target: str, values: Sequence[Scalar], every: bool) -> Expr:
    """Call `json_contains` or `array_contains`, or their variants for several values."""
    if not values:
        return every
    if len(values) == 1 and not literal(values[0]).startswith("-"):  # Lite takes it in lists only
        return f"{function}({target}, {literal(values[0])})"
    return f"{function}_{'all' if every else 'any'}({target}, {_list_literal(values)})"


class _Json(Target):
    """A value in the dynamic field or a JSON column, in the two-valued logic before Milvus 2.6.

    Python says that `True == 1`, Milvus does not: a number that equals a boolean, or is less
    than one, brings the boolean along.
    """

    def __init__(self, text: str, engine: Engine, key: str) -> None:
        """Remember the target.

        Args:
            text: The value, as it is written in an expression.
            engine: What the engine can do.
            key: The last key that leads to it.
        """
        self.text = text
        self.engine = engine
        self.bare = not text.startswith("$meta")
        self.nested = text.endswith("]")
        self.dotted = _is_path(key)

    # True for values of one kind, not true for all others. `number` needs only one comparison,
    # since JSON has no infinities. A list is compared by `!=` with lists only.

    @property
    def exists(self) -> str:
        return f"(exists {self.text})"

    @property
    def kinds(self) -> dict[str, Expr]:
        return {
            "number": f"{self.text} >= {_LEAST_DOUBLE}",
            "boolean": f"({self.text} == true or {self.text} == false)",
            "text": f'{self.text} like "%"',
            "list": f"array_length({self.text}) != 0",
        }

    @property
    def filled(self) -> Expr:
        return any_of(
            [f'{self.text} > ""', *(self.kinds[k] for k in ("number", "boolean", "list"))]
        )

    def present(self, positive: bool) -> Expr:
        # `exists` is true for null before 2.6; no comparison is.
        present = any_of([*self.kinds.values(), f"{self.text} != [0]"])
        return present if positive else negated(present)

    def decide(self, cases: Mapping[str, Expr], positive: bool) -> Expr:
        """Match the rows for which one of the cases is true.

        Args:
            cases: For each kind of value that can match, what is true for those that do.
            positive: `False` for the rows that do not match.
        """
        match = any_of(cases.values())
        return match if positive else negated(match)

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        texts, numbers = _texts(values), _numbers(values)
        cases = {
            "text": self._equal(texts),
            "number": self._equal_numbers(numbers),
            "boolean": self._booleans(lambda each: each in numbers),
        }
        return self.decide(cases, positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        if isinstance(value, str):
            return self.decide({"text": f"{self.text} {symbol} {literal(value)}"}, positive)
        cases = {
            "number": f"{self.text} {symbol} {literal(_whole(value))}",
            "boolean": self._booleans(lambda each: _COMPARE[symbol](each, value)),
        }
        return self.decide(cases, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        if not values:
            return self.present(positive) if every else not positive
        texts = _texts(values)
        join = all_of if every else any_of
        if every and len(texts) < len(values):
            in_text: Expr = False
        elif not all(_can_find(self.engine, each) for each in texts):
            # Undecidable, so that rows with text match neither this nor its negation. Lists, for
            # which the operator is meant, are not affected.
            in_text = False if positive else self.kinds["text"]
        else:
            in_text = join(_substring(self.engine, self.text, each) for each in texts)
        return self.decide(
            {"list": self._elements(values, every, positive), "text": in_text}, positive
        )

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        test = _substring_insensitive if insensitive else _substring
        return self.decide({"text": test(self.engine, self.text, needle)}, positive)

    def empty(self, positive: bool) -> Expr:
        return negated(self.filled) if positive else self.filled

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.decide({"list": self._elements(values, every, positive)}, positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        return self.decide({"list": self._length(length)}, positive)

    def _equal(self, values: Sequence[Scalar]) -> Expr:
        if len(values) > 1:
            return f"{self.text} in {_list_literal(values)}"
        return f"{self.text} == {literal(values[0])}" if values else False

    def _equal_numbers(self, numbers: Sequence[int | float]) -> Expr:
        whole = [each for each in numbers if isinstance(each, int)]
        broken = [each for each in numbers if not isinstance(each, int)]
        return any_of([self._equal(whole), self._equal(broken)])

    def _booleans(self, accepts: Callable[[bool], bool]) -> Expr:
        return any_of(f"{self.text} == {literal(each)}" for each in (True, False) if accepts(each))

    def _elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        """Test a list for elements.

        The types go apart: lists of several types are an error. `json_contains(k, 1)` does not
        find 1.0, `json_contains(k, 1.0)` finds both.
        """
        numbers = dict.fromkeys(_numbers(values))
        doubles = [float(n) for n in numbers if n not in (0, 1) and not _is_large(n)]
        large = [n for n in numbers if _is_large(n)]
        groups: list[Sequence[Scalar]] = [_texts(values), doubles, large]
        tests = [_call("json_contains", self.text, group, every) for group in groups if group]
        for number in numbers:
            if number in (0, 1):
                spellings = (float(number), bool(number))
                tests.append(
                    any_of(f"json_contains({self.text}, {literal(each)})" for each in spellings)
                )
        return (all_of if every else any_of)(tests)

    def _length(self, length: int) -> Expr:
        test = f"array_length({self.text}) == {literal(length)}"
        # 0 is also the "length" of what is no list.
        return test if length else all_of([f"{self.text} != [0]", test])


class _JsonOfThreeValues(_Json):
    """A value in JSON where comparisons with values of another kind can be unknown: Milvus 2.6.

    Right in the two-valued logic as well, which 2.6 had at first: what does not match is spelled
    out for each kind of value, from expressions that are true for nothing else.
    """

    def present(self, positive: bool) -> Expr:
        return self.exists if positive else negated(self.exists)

    def decide(self, cases: Mapping[str, Expr], positive: bool) -> Expr:
        if positive:
            return any_of(cases.values())
        rest = [
            all_of([test, negated(cases.get(kind, False))]) for kind, test in self.kinds.items()
        ]
        return any_of([self.present(False), *rest])

    def empty(self, positive: bool) -> Expr:
        return any_of([self.present(False), f'{self.text} == ""']) if positive else self.filled

    def has_length(self, length: int, positive: bool) -> Expr:
        if length == 0 and not positive:
            raise FilterError(
                f"{self.engine} does not tell an empty list from a missing key, so that a "
                "length other than 0 cannot be asked for; ask for what the list contains"
            )
        return super().has_length(length, positive)


class _JsonInLite(_Json):
    """A value in JSON in Milvus Lite.

    Lite compares as Python does: booleans are numbers, `==` decides between all values that are
    not null, and what Python refuses to compare is unknown. `in` is not used: it needs a bare
    name, and a list or mapping in any row under that key makes the whole query fail ("unhashable
    type: 'list'"). `json_contains` needs a bare name too, `array_length` one without a path.
    """

    @property
    def kinds(self) -> dict[str, Expr]:
        # As in Python, `"x" * 0` is "" and `[1] * 0` is [], which equal no number.
        number = f"{self.text} * 0 == 0"
        text = f'{self.text} like "%"'
        return {"number": number, "text": text, "list": all_of([negated(number), negated(text)])}

    def present(self, positive: bool) -> Expr:
        return self.exists if positive else negated(self.exists)

    def decide(self, cases: Mapping[str, Expr], positive: bool) -> Expr:
        match = any_of(cases.values())
        return match if positive else any_of([self.present(False), negated(match)])

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        test = super().ordered(symbol, value, positive)
        if positive:
            return test
        comparable = self.kinds["text" if isinstance(value, str) else "number"]
        return any_of([test, negated(comparable)])

    def empty(self, positive: bool) -> Expr:
        zero = f"{self.text} * 0"
        if positive:
            nothing = all_of([f"{zero} == {self.text}", f"{self.text} != 0"])
            return any_of([self.present(False), nothing])
        return any_of([f"{zero} != {self.text}", f"{self.text} == 0"])

    def _equal(self, values: Sequence[Scalar]) -> Expr:
        return any_of(f"{self.text} == {literal(each)}" for each in values)

    def _booleans(self, accepts: Callable[[bool], bool]) -> Expr:
        return False

    def _elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        if not self.bare and self.dotted:
            # Undecidable; but it is the path that is meant by a key with dots and lists.
            return False if positive else self.kinds["list"]
        if not self.bare:
            raise FilterError(
                f"{self.engine} looks into lists only under keys that are plain names (letters, "
                "digits and underscores, no keyword); rename the key, or use Milvus"
            )
        groups: list[Sequence[Scalar]] = [_texts(values), _numbers(values)]
        calls = [_call("json_contains", self.text, group, every) for group in groups if group]
        return self._no_text((all_of if every else any_of)(calls))

    def _length(self, length: int) -> Expr:
        if length == 0:
            # An empty list is what times 0 stays itself, and is neither 0 nor "".
            zero = [f"{self.text} * 0 == {self.text}", f"{self.text} != 0", f'{self.text} != ""']
            return all_of(zero)
        if not self.bare or self.nested:
            raise FilterError(
                f"{self.engine} counts elements only of lists at the top of the metadata, under "
                "keys that are plain names; Milvus can"
            )
        return self._no_text(f"array_length({self.text}) == {literal(length)}")

    def _no_text(self, test: Expr) -> Expr:
        """Keep to lists: Lite takes the text '["a"]' for one."""
        return all_of([test, negated(self.kinds["text"])])


class _Column(Target):
    """A real column. Its values have one type, so that most operators match none of them."""

    def __init__(self, name: str, engine: Engine, *, nullable: bool) -> None:
        self.name = column_name(name)
        self.engine = engine
        self.null: Expr = f"{self.name} is null" if nullable and engine.has_null else False

    def decide(self, match: Expr, positive: bool) -> Expr:
        """Match the rows for which a test is true; on null it may be unknown."""
        if not positive:
            return any_of([self.null, negated(match)])
        return negated(self.null) if match is True else match

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self.decide(self._in(values), positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        return self.decide(False, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.decide(every and not values, positive)

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        return self.decide(False, positive)

    def empty(self, positive: bool) -> Expr:
        return self.null if positive else negated(self.null)

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        raise self._no_list()

    def has_length(self, length: int, positive: bool) -> Expr:
        raise self._no_list()

    def _no_list(self) -> FilterError:
        return FilterError(
            f"the column {self.name!r} holds no lists; operators on lists are for ARRAY columns, "
            "JSON columns and metadata"
        )

    def _in(self, values: Sequence[Scalar]) -> Expr:
        return f"{self.name} in {_list_literal(values)}" if values else False


class _TextColumn(_Column):
    """A VARCHAR column."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return super().one_of(_texts(values), positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        test = isinstance(value, str) and f"{self.name} {symbol} {literal(value)}"
        return self.decide(test, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        texts = _texts(values)
        if every and len(texts) < len(values):
            return self.decide(False, positive)
        tests = [_substring(self.engine, self.name, each) for each in texts]
        return self.decide((all_of if every else any_of)(tests), positive)

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        test = _substring_insensitive if insensitive else _substring
        return self.decide(test(self.engine, self.name, needle), positive)

    def empty(self, positive: bool) -> Expr:
        test = any_of([self.null, f'{self.name} == ""'])
        return test if positive else negated(test)


class _IntegerColumn(_Column):
    """An INT column; the server refuses to compare it with 2.5, or even with 2.0."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        whole = [each for each in _numbers(values) if isinstance(each, int)]
        return super().one_of(whole, positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        if isinstance(value, str):
            return self.decide(False, positive)
        if isinstance(value, float) and abs(value) > _MAX_INTEGER:
            return self.decide(_COMPARE[symbol](0, value), positive)
        bound = math.floor(value) if symbol in (">", "<=") else math.ceil(value)
        return self.decide(f"{self.name} {symbol} {literal(bound)}", positive)


class _IntegerKeyColumn(_IntegerColumn):
    """An INT64 primary key. The id of a node is text in LlamaIndex, so text means its number."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return super().one_of([self._number(each) for each in values], positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        return super().ordered(symbol, self._number(value), positive)

    @staticmethod
    def _number(value: Scalar) -> Scalar:
        return int(value) if isinstance(value, str) and INTEGER.fullmatch(value) else value


class _FloatColumn(_Column):
    """A FLOAT or DOUBLE column; Lite converts it to integers to compare it with integers."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        numbers = _numbers(values)
        return super().one_of([float(each) for each in numbers if float(each) == each], positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        if isinstance(value, str):
            return self.decide(False, positive)
        bound = float(value)
        if bound != value:  # A large integer, and no double lies between the two.
            symbol = symbol[0] + ("=" if (bound > value) == (symbol[0] == ">") else "")
        return self.decide(f"{self.name} {symbol} {literal(bound)}", positive)


class _BooleanColumn(_Column):
    """A BOOL column; `True` is 1 and `False` 0, as in Python."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self._where(lambda each: each in values, positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        compares = not isinstance(value, str)
        return self._where(lambda each: compares and _COMPARE[symbol](each, value), positive)

    def _where(self, accepts: Callable[[bool], bool], positive: bool) -> Expr:
        accepted = [each for each in (True, False) if accepts(each)]
        if len(accepted) == 2:
            return self.decide(True, positive)
        return self.decide(bool(accepted) and f"{self.name} == {literal(accepted[0])}", positive)


class _ArrayColumn(_Column):
    """An ARRAY column. Milvus itself refuses elements of another type than the column's."""

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self.decide(False, positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        numbers = _numbers(values)
        if any(isinstance(each, float) for each in numbers):  # in one list all of one type
            numbers = [float(each) for each in numbers]
        groups: list[Sequence[Scalar]] = [_texts(values), numbers]
        tests = [_call("array_contains", self.name, group, every) for group in groups if group]
        return self.decide((all_of if every else any_of)(tests), positive)

    def empty(self, positive: bool) -> Expr:
        test = any_of([self.null, f"array_length({self.name}) == 0"])
        return test if positive else negated(test)

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self.contains(values, every, positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        return self.decide(f"array_length({self.name}) == {literal(length)}", positive)


_COLUMN_TYPES: dict[DataType, type[_Column]] = {
    DataType.VARCHAR: _TextColumn,
    DataType.BOOL: _BooleanColumn,
    DataType.INT8: _IntegerColumn,
    DataType.INT16: _IntegerColumn,
    DataType.INT32: _IntegerColumn,
    DataType.INT64: _IntegerColumn,
    DataType.FLOAT: _FloatColumn,
    DataType.DOUBLE: _FloatColumn,
    DataType.ARRAY: _ArrayColumn,
}


class _DottedKey(Target):
    """A key with dots: the literal key in rows that have it, else a path into nested metadata."""

    def __init__(self, literal_key: _Json, path: _Json) -> None:
        self.literal_key = literal_key
        self.path = path

    def one_of(self, values: Sequence[Scalar], positive: bool) -> Expr:
        return self._choose(lambda each: each.one_of(values, positive), absent=not positive)

    def ordered(self, symbol: str, value: Scalar, positive: bool) -> Expr:
        return self._choose(lambda each: each.ordered(symbol, value, positive), absent=not positive)

    def contains(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self._choose(lambda each: each.contains(values, every, positive), not positive)

    def has_text(self, needle: str, insensitive: bool, positive: bool) -> Expr:
        return self._choose(lambda each: each.has_text(needle, insensitive, positive), not positive)

    def empty(self, positive: bool) -> Expr:
        return self._choose(lambda each: each.empty(positive), absent=positive)

    def has_elements(self, values: Sequence[Scalar], every: bool, positive: bool) -> Expr:
        return self._choose(lambda each: each.has_elements(values, every, positive), not positive)

    def has_length(self, length: int, positive: bool) -> Expr:
        return self._choose(lambda each: each.has_length(length, positive), not positive)

    def _choose(self, test: Callable[[_Json], Expr], absent: bool) -> Expr:
        """Test one of the two.

        Args:
            test: Builds the test.
            absent: Whether the test is true where there is no value.
        """
        has_key = self.literal_key.exists
        literally = test(self.literal_key)
        if absent:
            literally = all_of([has_key, literally])
        return any_of([literally, all_of([negated(has_key), test(self.path)])])


def target_of(columns: Columns, key: str) -> Target:
    """Find what a key means.

    In this order: a real column; LlamaIndex' names for the id of the document; a path in a JSON
    column; a metadata key in the dynamic field.
    """
    if key in _DOC_ID_KEYS and key not in columns.types and columns.doc_id is not None:
        key = columns.doc_id
    if key in columns.types:
        return _column_target(columns, key)
    column, _, inner = key.partition(".")
    if inner and columns.types.get(column) == DataType.JSON:
        return _json_target(columns, inner, column)
    if not columns.dynamic:
        raise FilterError(
            "there is no such column, and the collection has no dynamic field; its columns are "
            f"{listed(columns.types)}"
        )
    return _json_target(columns, key)


def _column_target(columns: Columns, name: str) -> _Column:
    if name == columns.primary_key:
        kind = _IntegerKeyColumn if columns.primary_key_is_integer else _TextColumn
        return kind(name, columns.engine, nullable=False)
    data_type = columns.types[name]
    if data_type == DataType.JSON:
        raise FilterError(f"the column is JSON; name a key inside it, as in '{name}.key'")
    if data_type not in _COLUMN_TYPES:
        raise FilterError(
            f"the column is of type {DataType(data_type).name}, which cannot be filtered; columns "
            f"of these types and JSON can: {listed(each.name for each in _COLUMN_TYPES)}"
        )
    return _COLUMN_TYPES[data_type](name, columns.engine, nullable=True)


def _json_target(columns: Columns, key: str, column: str | None = None) -> Target:
    whole = _json(columns, [key], column)
    return _DottedKey(whole, _json(columns, key.split("."), column)) if _is_path(key) else whole


def _is_path(key: str) -> bool:
    """Whether a key can be read as steps into nested metadata; the engines refuse empty steps."""
    return "." in key and all(key.split("."))


def _json(columns: Columns, path: Sequence[str], column: str | None) -> _Json:
    """Encode a path in a JSON column or, with `None`, in the dynamic field."""
    first = path[0]
    if not first:
        raise FilterError("the key is empty; Milvus cannot address it")
    if not columns.engine.has_any_key and any(map(_UNADDRESSABLE.search, path)):
        raise FilterError(
            "Milvus cannot address a key with '][', with a control character, or with a backslash, "
            "'u' and four hexadecimal digits; store the value under another key"
        )
    if column is not None:
        head, steps = column_name(column), path
    elif _is_plain(first) and first not in columns.types:
        head, steps = first, path[1:]
    else:
        head, steps = "$meta", path
    text = head + "".join(f"[{literal(step)}]" for step in steps)
    kind: type[_Json] = _JsonOfThreeValues if columns.engine.has_unknown else _Json
    if columns.engine.compares_json_as_python:
        kind = _JsonInLite
    return kind(text, columns.engine, path[-1])
