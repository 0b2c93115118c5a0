"""The index types of Milvus, and their parameters (https://milvus.io/docs/index-explained.md).

Milvus Lite takes any index type, and any parameter; the rules of the server hold on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymilvus import DataType

from .._names import did_you_mean
from ..errors import ConfigurationError
from .engine import Engine
from .vectors import DENSE_METRICS

_DENSE = (
    *("FLAT", "IVF_FLAT", "IVF_SQ8", "IVF_PQ", "IVF_RABITQ", "SCANN", "DISKANN", "AISAQ"),
    *("HNSW", "HNSW_SQ", "HNSW_PQ", "HNSW_PRQ", "AUTOINDEX"),
    *("GPU_CAGRA", "GPU_IVF_FLAT", "GPU_IVF_PQ", "GPU_BRUTE_FORCE"),
)
#: The index types of each type of vector, in any version from 2.3 to 3.0.
INDEX_TYPES: dict[DataType, tuple[str, ...]] = {
    **dict.fromkeys(DENSE_METRICS, _DENSE),
    DataType.BINARY_VECTOR: ("BIN_FLAT", "BIN_IVF_FLAT", "MINHASH_LSH", "AUTOINDEX"),
    DataType.SPARSE_FLOAT_VECTOR: ("SPARSE_INVERTED_INDEX", "SPARSE_WAND", "AUTOINDEX"),
}
_ALL = frozenset(name for names in INDEX_TYPES.values() for name in names)
#: What metrics may be called beside their names.
METRIC_SYNONYMS = {"EUCLIDEAN": "L2"}
_SPARSE_METRICS = ("IP", "BM25")

#: Parameters that servers before 2.5 have no default of, with the later versions' default.
_REQUIRED: dict[str, Mapping[str, int]] = {
    "HNSW": {"M": 30, "efConstruction": 360},
    "IVF_FLAT": {"nlist": 128},
    "IVF_SQ8": {"nlist": 128},
    "IVF_PQ": {"nlist": 128, "m": 8},
    "SCANN": {"nlist": 128},
    "BIN_IVF_FLAT": {"nlist": 128},
}
#: The index types that Milvus Lite 2 has.
_OF_LITE_2 = ("FLAT", "IVF_FLAT", "AUTOINDEX", "BIN_FLAT", "SPARSE_INVERTED_INDEX", "SPARSE_WAND")
#: Parameters of a search that only some index types read.
_OF_SEARCHES = {
    "ef": ("HNSW", "GPU_CAGRA", "AUTOINDEX"),
    "nprobe": ("IVF", "SCANN", "BIN_IVF", "GPU_IVF", "AUTOINDEX"),
    "reorder_k": ("SCANN",),
    "search_list": ("DISKANN", "AISAQ"),
    "drop_ratio_search": ("SPARSE", "AUTOINDEX"),
}


def check_index_config(argument: str, config: Any, kind: DataType) -> dict[str, Any]:
    """Check the configuration of an index.

    Returns:
        The configuration, with index type and metric as Milvus has them.

    Raises:
        ConfigurationError: No server has the index type or the metric for such vectors.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("params") or {}, Mapping):
        raise ConfigurationError(
            f"{argument} is {config!r}; it must be a dictionary such as "
            '{"index_type": "HNSW", "M": 16, "efConstruction": 200}'
        )
    checked = {key: value for key, value in config.items() if value is not None}
    metrics = DENSE_METRICS.get(kind, _SPARSE_METRICS)
    for key, allowed in (("index_type", INDEX_TYPES[kind]), ("metric_type", metrics)):
        if key not in checked:
            continue
        given = checked[key]
        name = given.upper() if isinstance(given, str) else given
        checked[key] = name = METRIC_SYNONYMS.get(name, name) if key == "metric_type" else name
        if name not in allowed:
            raise ConfigurationError(
                f"{argument} has {key}={given!r}; a {kind.name} has one of {list(allowed)}"
                f"{'' if name in _ALL else did_you_mean(str(given), allowed)}"
            )
    return checked


def check_index_type(name: str, index_type: str, kind: DataType, engine: Engine) -> None:
    """Check that the engine has an index type.

    Raises:
        ConfigurationError: It has not.
    """
    is_binary = kind is DataType.BINARY_VECTOR
    if index_type not in _OF_LITE_2 or is_binary != (index_type == "BIN_FLAT"):
        asked = f"the index of {name!r} is of type {index_type}"
        engine.require(Engine.has_all_index_types, asked, ConfigurationError)


def check_required_params(name: str, config: Mapping[str, Any], engine: Engine) -> None:
    """Check that the index of a field has the parameters that the engine has no defaults of.

    Raises:
        ConfigurationError: One is missing.
    """
    index_type = str(config.get("index_type"))
    given = {**(config.get("params") or {}), **config}
    missing = {
        key: value for key, value in _REQUIRED.get(index_type, {}).items() if key not in given
    }
    if missing and not engine.has_index_defaults:
        example = ", ".join(f"{key!r}: {value}" for key, value in missing.items())
        raise ConfigurationError(
            f"the index of {name!r} is of type {index_type} and lacks {' and '.join(missing)}, for "
            f"which {engine} {Engine.has_index_defaults.lack}; add to its configuration, for "
            f"example {example}"
        )


def ignored_params(index_type: str, params: Mapping[str, Any]) -> list[str]:
    """The parameters of a search that belong to index types of another kind."""
    if index_type not in _ALL:  # one of a newer Milvus, or none
        return []
    return [
        name
        for name in params
        if name in _OF_SEARCHES and not index_type.upper().startswith(_OF_SEARCHES[name])
    ]
