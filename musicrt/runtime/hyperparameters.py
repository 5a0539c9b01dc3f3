"""Official hyper-parameters that are nested: groups that know their names, and what they leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from musicrt.runtime.errors import ConfigError

# Bounded because a manifest may come from anywhere, and tensors are listed for every layer.
Depth = Annotated[int, Field(strict=True, ge=1, le=64)]
Width = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
Count = Annotated[int, Field(strict=True, ge=1, lt=1 << 24)]
Positive = Annotated[float, Field(gt=0, lt=1 << 24)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Group(BaseModel):
    """Names outside `unused` must be known. `unused`: what matters for training only, or for parts that are not run here."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unused: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        unknown = [name for name in values if name not in cls.model_fields and name not in cls.unused]
        if unknown:
            raise ValueError(f"there is no hyper-parameter {unknown[0]!r}; known: {', '.join(sorted(cls.model_fields))}")
        return {name: value for name, value in values.items() if name not in cls.unused}

    @classmethod
    def read(cls, system: str, values: Mapping[str, Any]) -> Self:
        """The hyper-parameters of a system. Raises ConfigError, of one line that names the first that is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in [".".join(str(part) for part in first["loc"])] if part)
            got = "" if first["type"] == "value_error" else f", got {repr(first['input'])[:80]}"
            what = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{system}: {where}{what}{got}; take the values of the checkpoint or of a variant") from None
