"""The base class of all settings. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from tangora.support.shown import html_table, one_line

__all__ = ["Frozen"]

_YES_NO = {"yes": True, "on": True, "no": False, "off": False}
"""Booleans of YAML 1.1, used by older recipes. YAML 1.2 reads them as texts, and so does a field of bool and str."""


class Frozen(BaseModel):
    """An immutable model that refuses unknown keys, infinities, and ``true`` as a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def __repr__(self) -> str:
        """Show the values that differ from the defaults."""
        return one_line(type(self).__name__, *(f"{name}={value!r}" for name, value in self._changed().items()))

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the values that differ from the defaults."""
        rows = [[name, repr(value)] for name, value in self._changed().items()]
        return html_table(type(self).__name__, ["key", "value"], rows)

    def _changed(self) -> dict[str, Any]:
        """The values that differ from the defaults."""
        fields = type(self).model_fields
        defaults = {n: f.get_default(call_default_factory=True, validated_data={}) for n, f in fields.items()}
        values = {name: getattr(self, name) for name in fields}
        return {n: v for n, v in values.items() if fields[n].is_required() or v != defaults[n]}

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = list(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if bool not in kinds and (int in kinds or float in kinds) and any(isinstance(v, bool) for v in _values(value)):
            raise ValueError("a number, not true or false")
        return _YES_NO.get(value.lower(), value) if bool in kinds and isinstance(value, str) else value


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that a field's values may have, including those of items in lists and mappings."""
    parts = get_args(annotation)
    yield from itertools.chain.from_iterable(map(_kinds, parts)) if parts else [annotation]


def _values(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
