"""Embedding models that are named on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.embeddings.utils import resolve_embed_model

from .._retrieval.values import described, one_line
from ..errors import ConfigurationError
from ._places import read_option

_LOCAL = "local"


def embed_model_of(text: str, options: Sequence[str] = ()) -> BaseEmbedding:
    """The model of a name.

    Args:
        text: `MODULE:NAME`, a model or what makes one when it is called; or `local:NAME`, a model
            of Hugging Face.
        options: Arguments for what makes the model, as `NAME=VALUE`, whose value is JSON or a text.

    Raises:
        ConfigurationError: There is no such model, or a package is missing.
    """
    place, colon, name = text.partition(":")
    if not colon or not place or not name:
        raise ConfigurationError(
            f"embed-model is {text!r}; name a module and what makes the model, such as "
            "llama_index.embeddings.openai:OpenAIEmbedding, or local:BAAI/bge-small-en-v1.5"
        )
    arguments = dict(map(read_option, options))
    if place == _LOCAL:
        if arguments:
            raise ConfigurationError(
                "a model of local: takes no options; name "
                "llama_index.embeddings.huggingface:HuggingFaceEmbedding in its place"
            )
        try:
            return resolve_embed_model(text)
        except ImportError as error:
            raise ConfigurationError(
                f'embed-model {text!r} needs pip install "llama-index-milvus-async[huggingface]" '
                f"({error})"
            ) from error
        except Exception as error:
            raise _not_loaded(text, error) from error
    try:
        found = getattr(import_module(place), name)
    except ImportError as error:
        raise ConfigurationError(
            f"embed-model {text!r}: the module {place!r} cannot be imported ({error}); models of "
            f"LlamaIndex are packages of their own, such as {_package(place)}"
        ) from error
    except AttributeError:
        raise ConfigurationError(f"embed-model: the module {place!r} has no {name!r}") from None
    except Exception as error:
        raise _not_loaded(text, error) from error
    if arguments or not isinstance(found, BaseEmbedding):
        if not callable(found):
            raise ConfigurationError(f"embed-model: {text!r} is {described(found)}, not a model")
        try:
            found = found(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"embed-model: {text!r} cannot be called with the options {sorted(arguments)} "
                f"({_problem(error)}); pass others by --embed-option NAME=VALUE"
            ) from error
        except Exception as error:
            raise _not_loaded(text, error) from error
    if not isinstance(found, BaseEmbedding):
        raise ConfigurationError(
            f"embed-model: {text!r} makes {described(found)}; it must make an embedding model of "
            "LlamaIndex"
        )
    return found


def _not_loaded(text: str, error: Exception) -> ConfigurationError:
    """The error of a model that cannot be made: no key of a service, no weights, no memory."""
    return ConfigurationError(
        f"embed-model {text!r} cannot be loaded ({one_line(error)}); nothing was written"
    )


def _package(module: str) -> str:
    """The package that a module of LlamaIndex is in, as it is installed."""
    if not module.startswith("llama_index."):
        return "llama-index-embeddings-openai"
    return "-".join(module.split(".")[:3]).replace("_", "-")


def _problem(error: Exception) -> str:
    """What is wrong with options, without their values: one may be the key of a service."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
