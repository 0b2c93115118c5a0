"""What a filter is about: the questions that a column, or a value in JSON, can be asked.

The engines' logic differs:

- Milvus before 2.6 knows true and false: what does not compare is false, and its negation true.
- Milvus Lite and Milvus from 2.6 on also know *unknown* (milvus#46820, milvus#50699): a missing
  key or a value of another type makes a comparison unknown, `not` leaves it unknown, and the row
  is lost.

So a negation is never put before a finished expression. It is carried down to the comparisons
(the parameter `positive`), and each kind of target knows how to say both "matches" and "does not
match" so that they are *true* on the right rows in the logic of its engine.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .expressions import MAX_INTEGER, Expr, Scalar, list_literal, literal

#: Below it every integer is a double of its own.
_MAX_EXACT_DOUBLE = 2**53


class Target(ABC):
    """A column or a value in JSON."""

    @property
    def exists(self) -> Expr | None:
        """What is true for the rows that have a value there; `None` for a column: all may."""
        return None

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


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


OPPOSITE = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}


def texts_among(values: Iterable[Scalar]) -> list[str]:
    """Return the texts."""
    return [each for each in values if isinstance(each, str)]


def numbers_among(values: Iterable[Scalar]) -> list[int | float]:
    """Return the numbers, whole ones as integers: the server compares those exactly."""
    return [whole(each) for each in values if not isinstance(each, str)]


def is_large(number: int | float) -> bool:
    """Whether a double might stand for this integer and another one."""
    return isinstance(number, int) and abs(number) >= _MAX_EXACT_DOUBLE


def whole(value: int | float) -> int | float:
    """Return a whole number as an integer, and `True` and `False` as 1 and 0."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= MAX_INTEGER
    return int(value) if is_whole or isinstance(value, bool) else value


def call_contains(function: str, target: str, values: Sequence[Scalar], every: bool) -> Expr:
    """Call `json_contains` or `array_contains`, or their variants for several values."""
    if not values:
        return every
    if len(values) == 1 and not literal(values[0]).startswith("-"):  # Lite takes it in lists only
        return f"{function}({target}, {literal(values[0])})"
    return f"{function}_{'all' if every else 'any'}({target}, {list_literal(values)})"
