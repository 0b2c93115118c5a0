"""Exceptions that several callers wait for."""

from __future__ import annotations

import copy


def own_copy(error: BaseException) -> BaseException:
    """An exception for one caller: raising it adds to its traceback and sets its context."""
    for make in (copy.copy, _without_constructor):
        try:
            twin = make(error)
            if str(twin) != str(error):  # its constructor makes another text of its own text
                continue
        except Exception:  # its constructor takes other arguments than it keeps
            continue
        twin.__cause__, twin.__context__ = error.__cause__, error.__context__
        twin.__suppress_context__ = error.__suppress_context__
        return twin.with_traceback(error.__traceback__)
    return error


def _without_constructor(error: BaseException) -> BaseException:
    twin = type(error).__new__(type(error))
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin
