"""Turn pydantic's validation errors into errors that list every fault, with its place and the nearest valid key."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union, get_args, get_origin

from tangora.errors import RecipeError, TangoraError

__all__ = ["Fault", "SkippedError", "UnknownNameError", "did_you_mean", "faults_of", "nearest", "refuse", "validate"]

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import InitErrorDetails

_M = TypeVar("_M", bound="BaseModel")

_TAG = re.compile(r"[\[(]|^constrained-|^(str|int|float|bool)$")
"""Parts of an error's location that name one of several allowed types, and no key."""


class UnknownNameError(ValueError):
    """An unknown name. Raise it in a validator, and `validate` suggests the closest known name."""

    def __init__(self, kind: str, got: str, known: Sequence[str]) -> None:
        super().__init__(f"no such {kind}")
        self.got, self.fix = got, did_you_mean(got, known)


class SkippedError(ValueError):
    """A validator raises it for values that it cannot check because of a fault elsewhere; `validate` leaves it out."""


class Fault(NamedTuple):
    """One of several faults that a validator finds: a message, or an error, and where below the model it is."""

    what: str | Exception
    where: tuple[int | str, ...] = ()


def refuse(faults: Iterable[Fault | str | Exception], also: ValidationError | None = None) -> None:
    """Raise all faults that a validator of pydantic finds, in one error; return if there are none.

    Args:
        faults: messages, or faults below the validated model.
        also: an error of pydantic, whose faults are raised with the others.
    """
    listed = [fault if isinstance(fault, Fault) else Fault(fault) for fault in faults]
    if not listed and also is None:
        return
    from pydantic import ValidationError as Several  # deferred: see `validate`

    details: list[InitErrorDetails] = []
    for what, where in listed:
        error = what if isinstance(what, Exception) else ValueError(what)
        details.append({"type": "value_error", "loc": where, "input": None, "ctx": {"error": error}})
    raise Several.from_exception_data("settings", [*details, *(_again(one) for one in (also.errors() if also else ()))])


def _again(error: Any) -> InitErrorDetails:
    """Return an error of pydantic in the form in which it can be raised again."""
    again: InitErrorDetails = {"type": error["type"], "loc": error["loc"], "input": error["input"]}
    return {**again, "ctx": error["ctx"]} if "ctx" in error else again


def faults_of(model: type[BaseModel], raw: Mapping[str, Any], *, partial: bool = False) -> ValidationError | None:
    """Return the faults of single keys in ``raw``, without those that only several keys have together.

    Args:
        model: that has the keys.
        raw: some of its keys.
        partial: whether the other keys are given elsewhere, so that none is missing.
    """
    from pydantic import ValidationError as Several  # deferred: see `validate`

    try:
        model.model_validate(raw)
    except Several as cause:
        kept = [one for one in cause.errors() if one["loc"] and not (partial and _is_missing(one))]
        if kept:
            return Several.from_exception_data(cause.title, [_again(one) for one in kept])
    return None


def _is_missing(error: Any) -> bool:
    return error["type"] == "missing" and len(error["loc"]) == 1


def validate(model: type[_M], raw: Mapping[str, Any], where: str, error: type[TangoraError] = RecipeError) -> _M:
    """Validate ``raw`` as a model; raise an ``error`` with every fault that is found, each with its place.

    Settings that depend on each other are compared once each is valid by itself.

    Args:
        model: the class.
        raw: keys and values.
        where: the name of the whole in messages, such as that of a file.
        error: the class to raise. Several faults are in its ``faults``.
    """
    from pydantic import ValidationError as Several  # deferred: it takes a tenth of a second; `did_you_mean` needs none

    try:
        return model.model_validate(raw, context={"raw": raw})
    except Several as cause:
        found = _distinct(cause.errors())
        alone = len(found) == 1
        listed = [_as_error(model, raw, one, where if alone else None, error) for one in found]
    raise error.together(listed, where) from None


def _distinct(errors: Sequence[Any]) -> list[Any]:
    """Return one error for each fault.

    A value of several allowed types has an error for each type; the one that is most specific is kept. A key that is
    missing since it is misspelled is one fault, not two.
    """
    chosen: dict[Any, Any] = {}
    for number, one in enumerate(errors):
        if isinstance(one.get("ctx", {}).get("error"), SkippedError):
            continue
        loc = one["loc"]
        tag = next((i for i, part in enumerate(loc) if _is_union_tag(part)), None)
        key = (loc, number) if tag is None else loc[:tag]
        if key not in chosen or len(loc) > len(chosen[key]["loc"]):
            chosen[key] = one
    found = list(chosen.values())
    unknown = [one["loc"] for one in found if one["type"] == "extra_forbidden"]
    return [one for one in found if one["type"] != "missing" or not _is_misspelled(one["loc"], unknown)]


def _is_misspelled(missing: Sequence[Any], unknown: Sequence[Sequence[Any]]) -> bool:
    beside = [str(loc[-1]) for loc in unknown if loc[:-1] == missing[:-1]]
    return nearest(str(missing[-1]), beside) is not None


def _as_error(
    model: type[BaseModel], raw: Mapping[str, Any], one: Any, where: str | None, error: type[TangoraError]
) -> TangoraError:
    """Return one error of pydantic as ours; ``where`` is the name of the whole, if the message has to name it."""
    path = ".".join(str(part) for part in one["loc"] if not _is_union_tag(part))
    key_path = f"{path} ({where})" if path and where else path or where
    cause = one.get("ctx", {}).get("error")
    if one["type"] == "extra_forbidden":
        bad = str(one["loc"][-1])
        keys = _keys_at(model, one["loc"][:-1], raw)
        return error(f"unknown key {bad!r}", where=key_path, fix=did_you_mean(bad, keys, brief=where is None))
    if isinstance(cause, UnknownNameError):
        return error(str(cause), got=cause.got, where=key_path, fix=cause.fix)
    if isinstance(cause, TangoraError):
        return cause
    if one["type"] == "value_error":
        return error(str(one["msg"]).removeprefix("Value error, "), where=key_path)
    if one["type"] == "missing":
        return error("a key is missing", where=key_path, fix="add it")
    return error(one["msg"][0].lower() + one["msg"][1:], got=one["input"], where=key_path, fix="correct the value")


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and bool(_TAG.search(part))


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


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the closest known word, or None if none is close.

    >>> nearest("metod", ["method", "name"])
    'method'
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def did_you_mean(word: str, known: Sequence[str], *, brief: bool = False) -> str:
    """Return a hint: the closest known word, and the list of all known words unless ``brief``."""
    near, listing = nearest(word, known), ", ".join(known)
    if near is not None:
        return f"did you mean {near!r}?" if brief else f"did you mean {near!r}? Valid: {listing}"
    return f"valid: {listing}"
