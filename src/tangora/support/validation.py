"""Turn pydantic's validation errors into errors of one line that name the nearest valid key."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

from tangora.errors import RecipeError, TangoraError

__all__ = ["UnknownNameError", "did_you_mean", "validate"]

if TYPE_CHECKING:
    from pydantic import BaseModel

_M = TypeVar("_M", bound="BaseModel")


class UnknownNameError(ValueError):
    """An unknown name. Raise it in a validator, and `validate` suggests the closest known name."""

    def __init__(self, kind: str, got: str, known: Sequence[str]) -> None:
        super().__init__(f"no such {kind}")
        self.got, self.fix = got, did_you_mean(got, known)


def validate(model: type[_M], raw: Mapping[str, Any], where: str, error: type[TangoraError] = RecipeError) -> _M:
    """Validate ``raw`` as a model; raise an ``error`` that names the first fault and the closest key."""
    from pydantic import ValidationError  # deferred: it takes a tenth of a second, and `did_you_mean` does without

    try:
        return model.model_validate(raw)
    except ValidationError as cause:
        first = cause.errors()[0]
        path = ".".join(str(p) for p in first["loc"] if not _is_union_tag(p))
        key_path = f"{path} ({where})" if path else where
        if first["type"] == "extra_forbidden":
            bad = str(first["loc"][-1])
            keys = _keys_at(model, first["loc"][:-1], raw)
            raise error(f"unknown key {bad!r}", where=key_path, fix=did_you_mean(bad, keys)) from None
        if isinstance(unknown := first.get("ctx", {}).get("error"), UnknownNameError):
            raise error(str(unknown), got=unknown.got, where=key_path, fix=unknown.fix) from None
        if first["type"] == "value_error":
            raise error(str(first["msg"]).removeprefix("Value error, "), where=key_path) from None
        message = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "missing":
            raise error("a key is missing", where=key_path, fix="add it") from None
        raise error(message, got=first["input"], where=key_path, fix="correct the value") from None


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and bool(re.search(r"[\[\(]", part) or part in {"str", "int", "float", "bool"})


def _keys_at(model: type[BaseModel], location: Sequence[int | str], raw: Mapping[str, Any]) -> list[str]:
    """Return the valid keys of the mapping at ``location``, following fields, lists, dicts and optionals.

    If other keys of a model decide which class a location has, the model has a class method
    ``settings_at(raw, location)``. It returns this class (or None), and how many parts of the location lead to it.
    """
    chooses = getattr(model, "settings_at", None)
    chosen, depth = chooses(raw, tuple(location)) if chooses is not None else (None, 0)
    current: Any = chosen or model
    for part in location[depth:]:
        if get_origin(current) in (list, dict):
            current = get_args(current)[-1]
        elif _is_model(current):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        if get_origin(current) in (Union, types.UnionType):
            current = next((a for a in get_args(current) if get_origin(a) in (list, dict) or _is_model(a)), None)
    return list(current.model_fields) if _is_model(current) else []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "model_fields")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint: the closest known word, or the list of all known words."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listing = ", ".join(known)
    return f"did you mean {near[0]!r}? Valid: {listing}" if near else f"valid: {listing}"
