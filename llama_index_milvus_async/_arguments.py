"""What a store is asked for: its arguments, and what copies of a store keep of them.

The type of a field says what is allowed. `Fixed` are those that a store is built by; the others are
read by each operation, and may be changed between two.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, TypeVar

from llama_index.core.bridge.pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from pymilvus import DataType, Function, FunctionType

from ._checks import (
    check_client_options,
    check_consistency_level,
    check_dense_fields,
    check_description,
    check_dim,
    check_distinct,
    check_metric,
    check_scalar_types,
    check_timeout,
    check_uri,
    number_of,
    one_of,
    split_credentials,
    unknown_arguments,
)
from ._names import did_you_mean
from ._operations.sparse_encoders import SparseEncoder
from ._retrieval.options import (
    DeleteOptions,
    GetOptions,
    ReadOptions,
    SearchOptions,
    StoreOptions,
    UpdateOptions,
    WriteOptions,
    read_options,
)
from ._retrieval.ranking import Weighted, check_query_ranker, ranker_of
from ._translation.index_types import check_index_config
from ._translation.metadata_indexes import (
    cast_type,
    check_metadata_indexes,
    check_no_columns,
)
from ._translation.scalar_fields import (
    check_partition_key,
    check_scalar_fields,
    scalar_field,
)
from ._translation.settings import CollectionSettings, ScalarField, VectorField
from ._wire.address import CLIENT_OPTIONS
from .errors import ConfigurationError
from .indexes import IndexManagement
from .sparse import BM25BuiltInFunction

T = TypeVar("T")
Self = TypeVar("Self", bound="StoreArguments")

# Fields of the base classes, which `to_dict` writes and which are not arguments.
_INHERITED = frozenset({*BasePydanticVectorStore.model_fields, "stores_node", "class_name"})
# Never shown, not even where they are refused.
_SECRETS = frozenset({"token", "password", "client_options"})


@dataclass(frozen=True)
class Rule:
    """What a field must be, as messages say it."""

    text: str


#: A field that a store is built by: a later change would act in part, or not at all.
Fixed = Annotated[T, Field(frozen=True)]

Flag = Annotated[bool, Rule("True or False")]
Name = Annotated[str, Field(strict=True, min_length=1), Rule("a name")]
Count = Annotated[
    int, BeforeValidator(number_of), Field(strict=True, ge=1), Rule("an integer of at least 1")
]
Settings = Annotated[
    dict[str, Any],
    BeforeValidator(lambda value: {} if value is None else value),
    Rule("a dictionary"),
]
Secret = Annotated[
    str,
    BeforeValidator(lambda value: "" if value is None else value),
    Field(exclude=True, repr=False),
    Rule("a string"),
]


class StoreArguments(BasePydanticVectorStore):
    """The arguments of a store, checked when it is built and whenever one is assigned.

    Args:
        **arguments: One for each field. Those of pymilvus' clients become `client_options`.

    Raises:
        ConfigurationError: An argument is not allowed, or cannot be changed.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, validate_assignment=True)

    stores_text: bool = True
    stores_node: bool = True

    uri: Fixed[Annotated[str, BeforeValidator(check_uri)]]
    token: Fixed[Secret]
    password: Fixed[Secret]
    collection_name: Fixed[Name]
    # A destructive flag is not for copies: neither dumps nor pickles have it.
    overwrite: Fixed[Flag] = Field(exclude=True)
    upsert_mode: Flag
    collection_properties: Fixed[Annotated[dict[str, Any] | None, Rule("a dictionary")]]
    doc_id_field: Fixed[Name]
    text_key: Fixed[Name]
    scalar_field_names: Fixed[Annotated[list[Name] | None, Rule("a list of names")]]
    scalar_field_types: Fixed[list[DataType] | None]
    enable_dense: Fixed[Flag]
    dim: Fixed[Annotated[int | None, BeforeValidator(check_dim)]]
    embedding_field: Fixed[Name]
    enable_sparse: Fixed[Flag]
    sparse_embedding_field: Fixed[Name]
    sparse_embedding_function: Fixed[Any] = Field(repr=False)
    index_management: Fixed[IndexManagement]
    batch_size: Fixed[Count]
    index_config: Fixed[Settings]
    sparse_index_config: Fixed[Settings]
    search_config: Settings
    # `None` is kept, also in copies: an existing index then decides.
    similarity_metric: Fixed[Annotated[str | None, BeforeValidator(check_metric)]]
    consistency_level: Annotated[str, BeforeValidator(check_consistency_level)]
    output_fields: Annotated[
        list[str],
        BeforeValidator(lambda value: [] if value is None else value),
        Rule("a list of names"),
    ]
    hybrid_ranker: Any
    hybrid_ranker_params: Settings
    use_async_client: Flag
    id_field: Fixed[Name]
    timeout: Fixed[
        Annotated[float | None, BeforeValidator(lambda value: check_timeout(number_of(value)))]
    ]
    max_in_flight: Fixed[Count]
    coalesce: Fixed[Flag]
    dense_fields: Fixed[Annotated[dict[str, dict[str, Any]], BeforeValidator(check_dense_fields)]]
    client_options: Fixed[Settings]
    scalar_fields: Fixed[Annotated[dict[str, dict[str, Any]], BeforeValidator(check_scalar_fields)]]
    metadata_indexes: Fixed[
        Annotated[dict[str, dict[str, Any]], BeforeValidator(check_metadata_indexes)]
    ]
    index_doc_id: Fixed[Annotated[bool | None, Rule("True, False or None")]]
    num_shards: Fixed[Annotated[Count | None, Rule("an integer of at least 1, or None")]]
    replica_number: Fixed[Annotated[Count | None, Rule("an integer of at least 1, or None")]]
    partition_key_field: Fixed[Annotated[Name | None, Rule("a name")]]
    num_partitions: Fixed[Annotated[Count | None, Rule("an integer of at least 1, or None")]]
    partition_key_isolation: Fixed[Flag]
    description: Fixed[
        Annotated[
            str | None, Field(strict=True), BeforeValidator(check_description), Rule("a string")
        ]
    ]
    query_ranker: Any

    def __init__(self, **arguments: Any) -> None:
        options = arguments.pop("client_options", None) or {}
        if not isinstance(options, Mapping):
            raise ConfigurationError(
                f"client_options is a value of type {type(options).__name__}; it must be a "
                "dictionary"
            )
        names = type(self).model_fields.keys() - _INHERITED
        fields = {name: arguments.pop(name) for name in names & arguments.keys()}
        options = {k: v for k, v in {**options, **arguments}.items() if k not in _INHERITED}
        if unknown := options.keys() - CLIENT_OPTIONS:
            raise ConfigurationError(unknown_arguments(type(self).__name__, unknown, names))
        fields["password"] = options.pop("password", None) or fields.get("password")
        fields["uri"], token = split_credentials(check_uri(fields["uri"]))
        fields["token"] = fields["token"] or token
        fields["client_options"] = check_client_options(options)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            # Not chained: pydantic's text shows the values, and one may be a password.
            raise ConfigurationError(self._message(error)) from None
        self._sparse_sources  # noqa: B018 (refuses what cannot compute sparse embeddings)

    def __setattr__(self, name: str, value: Any) -> None:
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            # Pydantic has set it already where it does not fit another field.
            self.__dict__.update(before)
            raise ConfigurationError(self._message(error)) from None
        self.__dict__.pop("_defaults", None)

    @classmethod
    def _message(cls, error: ValidationError) -> str:
        """What is wrong, without secrets: of each argument what was found, and what to do."""
        return "; ".join(map(cls._describe_problem, error.errors()))

    @classmethod
    def _describe_problem(cls, problem: Mapping[str, Any]) -> str:
        raised = problem.get("ctx", {}).get("error")
        if isinstance(raised, ConfigurationError):
            return str(raised)
        name, *inside = problem["loc"]
        if problem["type"] == "frozen_field":
            return (
                f"{name} cannot be changed in a store that is built: build another one, "
                f"store.model_copy(update={{{name!r}: ...}})"
            )
        if problem["type"] == "no_such_attribute":
            return f"a store has no argument {name!r}{did_you_mean(name, cls.model_fields)}"
        found = repr(problem["input"])
        if name in _SECRETS:
            found = f"a value of type {type(problem['input']).__name__}"
        rules = [rule.text for rule in cls.model_fields[name].metadata if isinstance(rule, Rule)]
        wanted = f"it must be {rules[0]}" if rules else problem["msg"]
        return f"{name} {'has' if inside else 'is'} {found}; {wanted}"

    @field_validator("index_management", mode="before")
    @classmethod
    def _check_index_management(cls, value: Any) -> Any:
        return one_of("index_management", value, IndexManagement)

    @field_validator("index_config", "sparse_index_config", mode="before")
    @classmethod
    def _check_index_config(cls, value: Any, info: ValidationInfo) -> Any:
        sparse = info.field_name == "sparse_index_config"
        kind = DataType.SPARSE_FLOAT_VECTOR if sparse else DataType.FLOAT_VECTOR
        return check_index_config(str(info.field_name), {} if value is None else value, kind)

    @field_validator("scalar_field_types", mode="before")
    @classmethod
    def _check_scalar_types(cls, types: Any, info: ValidationInfo) -> Any:
        if "scalar_field_names" not in info.data:  # it was refused itself
            return types
        return check_scalar_types(info.data["scalar_field_names"], types)

    @model_validator(mode="after")
    def _check_together(self: Self) -> Self:
        if not self.enable_dense and not self.enable_sparse and not self.dense_fields:
            raise ConfigurationError(
                "enable_dense=False and enable_sparse=False leave nothing to search; one must be "
                "True"
            )
        if self.sparse_embedding_function is not None and not self.enable_sparse:
            raise ConfigurationError(
                "sparse_embedding_function has no effect without enable_sparse=True; pass both"
            )
        check_distinct(self._field_names())
        check_no_columns(self.metadata_indexes, {name: role for role, name in self._field_names()})
        check_partition_key(
            self.partition_key_field,
            self._scalar_columns(),
            self.num_partitions,
            isolation=self.partition_key_isolation,
        )
        ranker = ranker_of(self.hybrid_ranker, self.hybrid_ranker_params, "hybrid_ranker")
        if isinstance(ranker, Weighted) and len(ranker.weights) != 2 and not self.dense_fields:
            raise ConfigurationError(
                f"hybrid_ranker_params has weights={list(ranker.weights)}; pass two weights, for "
                "the dense and for the sparse search"
            )
        check_query_ranker(self.query_ranker)
        return self

    def _field_names(self) -> Iterator[tuple[str, str]]:
        roles = ["id_field", "doc_id_field", "text_key"]
        roles += ["embedding_field"] if self.enable_dense else []
        roles += ["sparse_embedding_field"] if self.enable_sparse else []
        for role in roles:
            yield role, getattr(self, role)
        for name in self.dense_fields:
            yield "dense_fields", name
        for name in self.scalar_field_names or ():
            yield "scalar_field_names", name
        for name in self.scalar_fields:
            yield "scalar_fields", name
        key = self.partition_key_field
        if key and key not in (*(self.scalar_field_names or ()), *self.scalar_fields):
            yield "partition_key_field", key

    # -- what the packages below are told ------------------------------------------------------

    # Cached properties: pydantic takes a microsecond to find a private attribute.

    @cached_property
    def _defaults(self) -> StoreOptions:
        """What reads ask for where they name nothing."""
        return StoreOptions(
            self.consistency_level,
            self.output_fields,
            self.search_config,
            self.hybrid_ranker,
            self.hybrid_ranker_params,
            self.query_ranker,
        )

    @cached_property
    def _sparse_sources(self) -> tuple[Function | None, SparseEncoder | None]:
        """Who computes the sparse embeddings: a function of Milvus, or an encoder here."""
        if not self.enable_sparse:
            return None, None
        given = self.sparse_embedding_function
        if given is None:
            given = BM25BuiltInFunction(self.text_key, self.sparse_embedding_field)
        if not isinstance(given, Function):
            return None, SparseEncoder.of(given)
        if given.type != FunctionType.BM25:
            raise ConfigurationError(
                f"sparse_embedding_function is a function of type {given.type.name}; it must be of "
                "type BM25"
            )
        if given.output_field_names != [self.sparse_embedding_field]:
            raise ConfigurationError(
                f"sparse_embedding_function writes {given.output_field_names}, and "
                f"sparse_embedding_field is {self.sparse_embedding_field!r}; name the same field "
                "in both"
            )
        return given, None

    @cached_property
    def _encoder(self) -> SparseEncoder | None:
        return self._sparse_sources[1]

    def _settings(self) -> CollectionSettings:
        """What the collection has to be."""
        dense, sparse = [], None
        if self.enable_dense:
            kind, metric, config = DataType.FLOAT_VECTOR, self.similarity_metric, self.index_config
            dense.append(VectorField(self.embedding_field, kind, self.dim, metric, config))
        for name, settings in self.dense_fields.items():
            config = {k: v for k, v in settings.items() if k not in ("dim", "type")}
            kind, metric = settings["type"], settings.get("metric_type")
            dim = settings["dim"]
            dense.append(VectorField(name, kind, dim, metric, config, in_dense_fields=True))
        if self.enable_sparse:
            kind, config = DataType.SPARSE_FLOAT_VECTOR, self.sparse_index_config
            name, function = self.sparse_embedding_field, self._sparse_sources[0]
            reads = None
            if function is not None and self.sparse_embedding_function is not None:
                reads = function.input_field_names
            sparse = VectorField(name, kind, None, None, config, function, reads)
        return CollectionSettings(
            collection_name=self.collection_name,
            id_field=self.id_field,
            doc_id_field=self.doc_id_field,
            text_key=self.text_key,
            dense=dense,
            sparse=sparse,
            scalar_fields=self._scalar_columns(),
            create_index=self.index_management is IndexManagement.CREATE_IF_NOT_EXISTS,
            properties=self.collection_properties or {},
            consistency_level=self.consistency_level,
            metadata_indexes={
                key: cast_type(settings) for key, settings in self.metadata_indexes.items()
            },
            index_doc_id=self.index_doc_id,
            num_shards=self.num_shards,
            replica_number=self.replica_number,
            description=self.description,
            partition_key_field=self.partition_key_field,
            num_partitions=self.num_partitions,
            partition_key_isolation=self.partition_key_isolation,
        )

    def _scalar_columns(self) -> dict[str, ScalarField]:
        pairs = zip(self.scalar_field_names or (), self.scalar_field_types or (), strict=True)
        columns = {name: ScalarField(name, data_type) for name, data_type in pairs}
        given = self.scalar_fields.items()
        columns |= {name: scalar_field(name, settings) for name, settings in given}
        if (key := self.partition_key_field) is not None:
            columns.setdefault(key, ScalarField(key, DataType.VARCHAR, "partition_key_field"))
        return columns

    @field_serializer("hybrid_ranker", "query_ranker", "sparse_embedding_function")
    def _serialize_object(self, value: Any) -> str | None:
        # An object cannot be written as JSON. Its name is refused where a store is rebuilt of it,
        # so that another ranker or encoder does not take its place unnoticed.
        return value if isinstance(value, (str, type(None))) else f"<{type(value).__name__}>"

    # -- copies ------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls: type[Self], data: dict[str, Any], **kwargs: Any) -> Self:
        """Rebuild a store from `to_dict`; its token and password have to be given again.

        Args:
            data: What `to_dict` returned.
            **kwargs: Arguments in addition or in place of it, such as `token`.
        """
        arguments = {k: v for k, v in {**data, **kwargs}.items() if k not in _INHERITED}
        return cls(**{**arguments, "overwrite": False})

    def _arguments(self) -> dict[str, Any]:
        """The arguments of a copy, secrets included and `overwrite` not."""
        names = type(self).model_fields.keys() - _INHERITED - {"overwrite", "password"}
        arguments = {name: getattr(self, name) for name in names}
        return {**arguments, "password": self.password}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._arguments()), ()

    def __copy__(self: Self) -> Self:
        return type(self)(**self._arguments())

    def __deepcopy__(self: Self, memo: dict[int, Any] | None = None) -> Self:
        return type(self)(**copy.deepcopy(self._arguments(), memo))

    def model_copy(
        self: Self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self:
        """Build a store of the same arguments, with connections of its own."""
        return type(self)(**{**self._arguments(), **(update or {})})


#: The arguments of a store, of which callers pass some to operations.
CONSTRUCTOR = StoreArguments.model_fields.keys() | CLIENT_OPTIONS

# Computed once: most calls have none.
_NO_OPTIONS: dict[type[Any], Any] = {
    cls: cls()
    for cls in (
        WriteOptions,
        DeleteOptions,
        ReadOptions,
        UpdateOptions,
        GetOptions,
        SearchOptions,
    )
}


def read_call_options(cls: type[Any], operation: str, arguments: dict[str, Any]) -> Any:
    """Build the options of a call from its keyword arguments.

    Raises:
        ConfigurationError: An argument is unknown or not allowed.
        QueryError: Partitions are not named by texts.
    """
    if not arguments:
        return _NO_OPTIONS[cls]
    level = arguments.get("consistency_level")
    if level is not None:
        arguments = {**arguments, "consistency_level": check_consistency_level(level)}
    check_timeout(arguments.get("timeout"))
    return read_options(cls, operation, arguments, CONSTRUCTOR)
