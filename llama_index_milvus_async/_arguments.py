"""Checks of the constructor's arguments; each error says what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from llama_index.core.bridge.pydantic import ValidationError
from pymilvus import DataType

from ._schema import MAX_DIMENSION, NODE_CONTENT_FIELD, NODE_TYPE_FIELD, SCALAR_TYPES
from .errors import ConfigurationError

CONSISTENCY_LEVELS = ("Strong", "Session", "Bounded", "Eventually")
METRICS = {"ip": "IP", "l2": "L2", "euclidean": "L2", "cosine": "COSINE"}
RANKERS = ("RRFRanker", "WeightedRanker")


def check_uri(uri: Any) -> str:
    # pymilvus refuses pathlib.Path with a message about something else.
    text = str(uri)
    if not text:
        raise ConfigurationError(
            'uri is empty; pass a server\'s address such as "http://localhost:19530", or a path '
            'that ends in ".db"'
        )
    is_file = text.endswith(".db")
    # pymilvus would take "http://host/x.db" for a file.
    if is_file if "://" in text else not is_file and not text.startswith("unix:"):
        raise ConfigurationError(
            f"uri is {without_credentials(text)!r}; it must be a server's address such as "
            '"http://localhost:19530", or a path that ends in ".db" for Milvus Lite'
        )
    return text


def without_credentials(text: str) -> str:
    """Cut out of a malformed URI what may be a user and a password."""
    return re.sub(r"^(\w+://)?.*@", r"\1***@", text, flags=re.DOTALL)


def split_credentials(uri: str) -> tuple[str, str]:
    """Take `user:password` out of a URI, so that the URI can be shown."""
    if "://" not in uri:
        return uri, ""
    try:
        parts = urlsplit(uri)
        malformed = "@" in f"{parts.path}{parts.query}{parts.fragment}"
        malformed |= not (parts.hostname or parts.scheme == "unix") or parts.port == 0
    except ValueError:
        malformed = True
    if malformed and "@" not in uri:
        raise ConfigurationError(
            f"uri is {uri!r}; it must be a server's address such as "
            '"http://localhost:19530", with a host and a port in 1..65535'
        )
    if malformed:
        # A "/", "?" or "#" ends the part before the host: the password would stay in the URI.
        raise ConfigurationError(
            f"uri is {without_credentials(uri)!r}; characters such as / ? # [ ] in the user or "
            "password have to be percent-encoded, or pass them as token"
        )
    if "@" not in parts.netloc:
        return uri, ""
    credentials, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)), unquote(credentials)


def check_name(argument: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{argument} is {value!r}; it must be a name")
    return value


def check_distinct(arguments: Mapping[str, Any]) -> None:
    roles = ("id_field", "doc_id_field", "text_key", "embedding_field")
    taken = {
        NODE_CONTENT_FIELD: "the serialized node",
        NODE_TYPE_FIELD: "the node's class",
    }
    names = [(role, arguments[role]) for role in roles]
    names += [("scalar_field_names", name) for name in arguments["scalar_field_names"] or ()]
    for role, name in names:
        if name in taken:
            raise ConfigurationError(
                f"{role} is {name!r}, the name of {taken[name]} already; fields need distinct names"
            )
        taken[name] = role


def check_scalar_fields(names: Any, types: Any) -> list[DataType] | None:
    if len(names or ()) != len(types or ()):
        raise ConfigurationError(
            f"scalar_field_names has {len(names or ())} names and scalar_field_types "
            f"{len(types or ())} types; each name needs one type"
        )
    allowed = [data_type.name for data_type in SCALAR_TYPES]
    for name, data_type in zip(names or (), types or (), strict=True):
        check_name("scalar_field_names", name)
        if data_type not in SCALAR_TYPES:
            raise ConfigurationError(
                f"scalar_field_types has {data_type!r} for {name!r}; allowed are DataType.{allowed}"
            )
    return None if types is None else [DataType(data_type) for data_type in types]


def check_dense(enable_dense: bool, enable_sparse: bool) -> bool:
    if enable_sparse:
        raise ConfigurationError(
            "enable_sparse=True: sparse and hybrid retrieval are not supported by this version; "
            "leave it out for dense retrieval"
        )
    if not enable_dense:
        raise ConfigurationError("enable_dense=False leaves nothing to search; it must be True")
    return enable_dense


def check_dim(dim: Any, overwrite: bool) -> int | None:
    if dim is None:
        if overwrite:
            raise ConfigurationError(
                "dim is missing: overwrite=True creates a new collection, which needs the "
                "dimension of the embeddings, for example dim=384"
            )
        return None
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= MAX_DIMENSION:
        raise ConfigurationError(f"dim is {dim!r}; it must be an integer in 1..{MAX_DIMENSION}")
    return dim


def check_output_fields(fields: Any) -> list[str]:
    if isinstance(fields, str):
        raise ConfigurationError(f"output_fields is {fields!r}; it must be a list of names")
    return list(fields or [])


def validation_message(error: ValidationError) -> str:
    problems = [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
    ]
    return "; ".join(problems)


def check_positive(argument: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{argument} is {value!r}; it must be an integer of at least 1")
    return value


def check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < math.inf:
        raise ConfigurationError(
            f"timeout is {timeout!r}; it must be a number of seconds above 0, or None"
        )
    return float(timeout)


def check_metric(metric: Any) -> str:
    canonical = METRICS.get(str(metric).lower())
    if canonical is None:
        raise ConfigurationError(
            f"similarity_metric is {metric!r}; it must be one of {sorted(METRICS)}"
        )
    return canonical


def check_consistency_level(level: Any) -> str:
    """Return the level as Milvus spells it.

    Raises:
        ConfigurationError: There is no such level.
    """
    return str(one_of("consistency_level", level, CONSISTENCY_LEVELS))


def one_of(argument: str, value: Any, allowed: Any) -> Any:
    """Look a value up among enumeration members or names, names in any case."""
    choices = list(allowed)
    for choice in choices:
        if value == choice or str(value).lower() == str(getattr(choice, "value", choice)).lower():
            return choice
    shown = [getattr(choice, "value", choice) for choice in choices]
    raise ConfigurationError(f"{argument} is {value!r}; it must be one of {shown}")


def check_ranker(ranker: Any, params: Any) -> dict[str, Any]:
    if ranker not in RANKERS:
        raise ConfigurationError(f"hybrid_ranker is {ranker!r}; it must be one of {list(RANKERS)}")
    if not isinstance(params, (Mapping, type(None))):
        raise ConfigurationError(
            f'hybrid_ranker_params is {params!r}; it must be a dictionary, such as {{"k": 60}}'
        )
    checked: dict[str, Any] = dict(params or {})
    key = {"RRFRanker": "k", "WeightedRanker": "weights"}[ranker]
    unknown = sorted(set(checked) - {key})
    if unknown:
        raise ConfigurationError(f"hybrid_ranker_params has {unknown}; {ranker} takes only {key!r}")
    if key == "k" and key in checked:
        k = checked[key]
        if not isinstance(k, (int, float)) or isinstance(k, bool) or not 0 < k < 16_384:
            raise ConfigurationError(
                f"hybrid_ranker_params has k={k!r}; it must be a number in (0, 16384)"
            )
    if key == "weights" and key in checked:
        weights = checked[key]
        if (
            not isinstance(weights, (list, tuple))
            or len(weights) != 2
            or not all(isinstance(w, (int, float)) and 0 <= w <= 1 for w in weights)
        ):
            raise ConfigurationError(
                f"hybrid_ranker_params has weights={weights!r}; they must be two numbers in 0..1, "
                "dense and sparse"
            )
    return checked
