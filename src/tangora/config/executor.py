"""Where the jobs of a run are done: the recipe's ``executor`` key. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tangora.support.seams import EXECUTORS
from tangora.support.validation import did_you_mean, refuse

__all__ = ["ExecutorConfig"]


class ExecutorConfig(BaseModel):
    """An executor and its settings. The name alone is a short form.

    The settings are those of the executor's own class, which validates them and fills in defaults.

    >>> ExecutorConfig.model_validate("serial")
    ExecutorConfig(name='serial')
    >>> ExecutorConfig(name="processes", workers=4).settings.workers
    4
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(default="serial", description="serial, processes, ray, or one that another package brings")

    @model_validator(mode="before")
    @classmethod
    def _validated(cls, raw: Any) -> Any:
        given = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(given, Mapping):
            return given
        name = given.get("name", "serial")
        if name not in EXECUTORS:
            raise ValueError(f"no such executor, got {name!r}: {did_you_mean(str(name), list(EXECUTORS))}")
        return {"name": name, **_settings(name, given).model_dump(mode="json")}

    @property
    def settings(self) -> BaseModel:
        """The settings, as the executor's own class."""
        return _settings(self.name, self.model_dump())


def _settings(name: str, given: Mapping[str, Any]) -> BaseModel:
    kind: type[BaseModel] = EXECUTORS.get(name).settings
    own = {key: value for key, value in given.items() if key != "name"}
    try:
        return kind.model_validate(own)
    except ValidationError as cause:
        refuse([_fault(name, kind, one) for one in cause.errors()])
        raise


def _fault(name: str, kind: type[BaseModel], one: Any) -> str:
    key = ".".join(str(part) for part in one["loc"])
    if one["type"] == "extra_forbidden":
        valid = list(kind.model_fields)
        fix = did_you_mean(key, valid) if valid else "it has none"
        return f"executor {name}: unknown setting {key!r}: {fix}"
    message = one["msg"][0].lower() + one["msg"][1:]
    return f"executor {name}: {key}: {message.removeprefix('value error, ')}; got {one['input']!r}"
