"""An entry of ``fusion.methods``: the method, the space, and the source of the coefficients; or a router. No torch.

A search is named by a recipe, found in the registry of searches, and validated by its own settings::

    {method: task_arithmetic, search: {name: convex, labels: 32}}
    {method: task_arithmetic, search: convex, labels: 32}           # short form

So is a router, which `method` names::

    {method: arrow, route: {top_k: 2}}
    {method: arrow, top_k: 2}                                       # short form
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from tangora.config.polish import PolishSettings
from tangora.config.routing import RouteSettings
from tangora.config.settings import NAME, REFERENCES, Frozen, SpaceName
from tangora.support.seams import ROUTERS, SEARCHES
from tangora.support.validation import Fault, did_you_mean, refuse

__all__ = ["FusionEntry", "SearchSettings", "check_search"]

_OLD_DEFAULTS: Mapping[str, Any] = {
    "per": "task",
    "labels": None,
    "l2": None,
    "l1": 0.0,
    "nonnegative": None,
    "bound": None,
    "steps": None,
    "learning_rate": None,
    "rows_per_step": 16,
    "budget": 40,
    "penalty": 0.05,
}
"""Values that older versions wrote into every entry of ``recipe.yaml``, whatever its search; ignored when read."""


class SearchSettings(Frozen):
    """The settings of a search. Each search derives its own class from this one.

    A subclass gives ``name`` one value, which is also its default::

        class RandomSettings(SearchSettings):
            name: Literal["random"] = "random"
            trials: int = Field(default=20, ge=1)
    """

    name: str = Field(pattern=NAME, description="of the search")

    @property
    def label(self) -> str:
        """The name in ``scores.csv`` of an entry with these settings, unless the entry has a name of its own."""
        return self.name

    @property
    def row_limit(self) -> int | None:
        """How many rows of each task the search may look at; None for all of them."""
        return None

    @property
    def per_site(self) -> bool:
        """Whether there is a coefficient for each task and site, rather than for each task."""
        return False

    def passes(self, rows: Sequence[int]) -> float | None:
        """Return about how many rows pass forward through the model in a search; a backward pass counts as two.

        A run estimates its time by it. None: unknown, and then the run says so.

        Args:
            rows: how many rows each task has that the search may look at.
        """
        return None


class FusionEntry(Frozen):
    """One row of the comparison: a method, its space, and the source of its coefficients.

    ``weights`` and ``parameters`` may be lists. Then every combination is a candidate, and one is selected on
    validation. A ``search`` finds the weights in another way, for one setting of the parameters. Give its settings as
    a mapping, or give its name here and its other keys beside it.

    If ``method`` is a router, the experts are not fused: they stay apart, and the router chooses among them for every
    input. ``route`` has its settings, by default those of the router.
    """

    method: str = Field(description="a fusion method, or a router")
    name: str | None = Field(
        default=None, pattern=NAME, description="how scores.csv calls it; default: the search, or the method"
    )
    spaces: list[SpaceName] = Field(
        default=["delta"], min_length=1, description="coordinates in which task vectors are fused"
    )
    modes: list[str] | None = Field(default=None, description="only for these modes; default: every mode")
    weights: float | list[float] | None = Field(default=None, description="one lambda for all tasks; a list is a grid")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the method's; a list is a grid")
    rank: int | None = Field(
        default=None, ge=1, description="cut every site of a fusion to this rank before it is scored; default: no cut"
    )
    polish: PolishSettings | None = Field(
        default=None, description="train the chosen fusion towards the experts, on rows without labels"
    )
    sizes: list[int] | None = Field(default=None, description="only for subsets of these sizes; default: every size")
    search: SerializeAsAny[SearchSettings] | None = Field(
        default=None, description="where coefficients come from, if not from a grid: its name, or its settings"
    )
    route: SerializeAsAny[RouteSettings] | None = Field(
        default=None, description="the settings of a router, if method names one"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _settings_in_one_place(cls, raw: Any, handler: ModelWrapValidatorHandler[FusionEntry]) -> FusionEntry:
        """Move the keys of a search or a router below it; find the faults of that and of the rest."""
        if not isinstance(raw, Mapping):
            return handler(raw)
        routed = raw.get("method") in ROUTERS or raw.get("route") is not None
        entry, faults = _routed(raw) if routed else _gathered(raw)
        try:
            made = handler(entry)
        except ValidationError as cause:
            refuse(faults, cause)
            raise
        refuse(faults)
        return made

    @field_validator("search", mode="before")
    @classmethod
    def _settings_of_the_search(cls, raw: Any) -> Any:
        return SEARCHES.get(raw["name"]).settings.model_validate(raw) if isinstance(raw, Mapping) else raw

    @field_validator("route", mode="before")
    @classmethod
    def _settings_of_the_router(cls, raw: Any) -> Any:
        return ROUTERS.get(raw["name"]).settings.model_validate(raw) if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _experts_stay_apart(self) -> FusionEntry:
        given = {"weights": self.weights, "parameters": self.parameters, "rank": self.rank, "polish": self.polish}
        if self.route is not None and (odd := [name for name, value in given.items() if value]):
            raise ValueError(f"{self.method} is a router, and nothing is fused: leave out {odd[0]}")
        if self.route is not None and self.spaces != ["delta"]:
            raise ValueError(f"{self.method} is a router, and experts stay as they are: leave out spaces")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> FusionEntry:
        if self.name in REFERENCES:
            raise ValueError(f"name: {self.name} is what scores.csv calls a row to compare with: choose another")
        if self.weights == [] or [] in self.parameters.values():
            raise ValueError("a grid of weights or parameters needs at least one value")
        if self.rank is not None and self.polish is not None:
            raise ValueError("a polish has a rank of its own: give polish.rank, and leave out rank")
        if self.search is None:
            return self
        if self.weights is not None:
            raise ValueError("a search finds the weights: leave out weights, or search")
        if any(isinstance(value, list) for value in self.parameters.values()):
            raise ValueError("a search takes one value a parameter: give an entry, with a name, for each")
        if SEARCHES.get(self.search.name).needs != "loss" and self.spaces != ["delta"]:
            raise ValueError(f"search {self.search.name} needs spaces: [delta], in which fused weights are linear")
        return self

    @property
    def label(self) -> str:
        """The name in ``scores.csv``."""
        if self.name is not None:
            return self.name
        if self.route is not None:
            return self.route.label
        chosen = self.search.label if self.search else self.method
        if self.rank is not None:
            return f"{chosen}-rank{self.rank}"
        return f"{chosen}-polished" if self.polish is not None else chosen


_Gathered = tuple[dict[str, Any], list[Fault]]


def _gathered(raw: Mapping[str, Any]) -> _Gathered:
    """Return the entry with every key of its search moved under ``search``; and keys that belong to neither, as faults.

    Raises:
        ValueError: there is no such search.
    """
    entry = {key: value for key, value in raw.items() if key in FusionEntry.model_fields}
    beside = {key: value for key, value in raw.items() if key not in entry}
    search = entry.get("search")
    if isinstance(search, str):
        search = {"name": search}
    if not isinstance(search, Mapping):  # a grid, or settings that were validated before
        name = f"search {search.name}" if isinstance(search, SearchSettings) else "a grid"
        foreign = _chosen(beside)
        old = {key: value for key, value in foreign.items() if key in _OLD_DEFAULTS}
        return {**entry, **{key: foreign[key] for key in foreign if key not in old}}, _odd(old, name)
    fields = _fields(search.get("name"))
    moved = {key: beside.pop(key) for key in list(beside) if key in fields}
    # An older version wrote null for a default that differs between searches.
    moved = {key: value for key, value in moved.items() if value is not None or key not in _OLD_DEFAULTS}
    name, own = f"search {search['name']}", {key: search[key] for key in search if key in ("name", *fields)}
    faults = _odd(_chosen(beside), name, [*FusionEntry.model_fields, *fields])
    faults += _odd([key for key in search if key not in own], name, fields, ("search",))
    return {**entry, "search": {**own, **moved}}, faults


def _routed(raw: Mapping[str, Any]) -> _Gathered:
    """Return the entry with every key of its router moved under ``route``, which gets its name; and faults of keys.

    Raises:
        ValueError: the method is no router, or ``route`` is of another.
    """
    method, route = raw.get("method"), raw.get("route")
    if method not in ROUTERS:
        raise ValueError(f"route has the settings of a router, and {method!r} is none. Routers: {', '.join(ROUTERS)}")
    if route is not None and not isinstance(route, Mapping):
        if not isinstance(route, RouteSettings):
            raise ValueError("route is a table of settings, such as {top_k: 2}")
        route = route.model_dump()
    if raw.get("search") is not None:
        raise ValueError(f"{method} is a router, and nothing is fused: leave out search")
    settings = dict(route or {})
    if settings.setdefault("name", method) != method:
        raise ValueError(f"the method is {method}, and route is of {settings['name']}")
    fields = [key for key in ROUTERS.get(str(method)).settings.model_fields if key != "name"]
    moved = {key: value for key, value in raw.items() if key in fields and key not in FusionEntry.model_fields}
    beside = {key: value for key, value in raw.items() if key not in FusionEntry.model_fields and key not in moved}
    own = {key: settings[key] for key in settings if key in ("name", *fields)}
    faults = _odd(beside, f"router {method}", [*FusionEntry.model_fields, *fields])
    faults += _odd([key for key in settings if key not in own], f"router {method}", fields, ("route",))
    entry = {key: value for key, value in raw.items() if key in FusionEntry.model_fields}
    return {**entry, "route": {**own, **moved}}, faults


def _fields(name: Any) -> list[str]:
    """Return the keys of a search's settings."""
    if not isinstance(name, str):
        raise ValueError("a search needs its name, such as {name: convex}")
    if name not in SEARCHES:
        raise ValueError(f"no such search, got {name!r}: {did_you_mean(name, list(SEARCHES))}")
    return [key for key in SEARCHES.get(name).settings.model_fields if key != "name"]


def _chosen(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that a user set: those that differ from what an older version wrote into every entry."""
    absent = object()
    return {key: value for key, value in beside.items() if value != _OLD_DEFAULTS.get(key, absent)}


def _odd(keys: Iterable[str], what: str, valid: Sequence[str] = (), below: tuple[str, ...] = ()) -> list[Fault]:
    """Return a fault for each of the keys, which are not of ``what``."""
    return [Fault(_why(str(key), what, valid), below) for key in keys]


def _why(key: str, what: str, valid: Sequence[str]) -> str:
    if key in _OLD_DEFAULTS:
        return f"{key} is not a setting of {what}: leave it out"
    hint = did_you_mean(key, valid)
    return f"unknown key {key!r}. {hint[0].upper()}{hint[1:]}"


def check_search(entry: FusionEntry, modes: Mapping[str, bool], *, classes: bool) -> None:
    """Refuse a search that does not fit the modes or the tasks.

    Args:
        entry: of a recipe.
        modes: every mode of the recipe -> whether its logits are linear in the coefficients.
        classes: whether the logits of every task are over classes.

    Raises:
        ValueError: says what to do.
    """
    if entry.search is None:
        return
    search, where = SEARCHES.get(entry.search.name), f"fusion.methods: {entry.label}"
    nonlinear = [mode for mode in entry.modes or modes if not modes[mode]]
    if search.needs == "columns" and nonlinear:
        what = f"{where} needs logits that are linear in the coefficients, unlike those of {', '.join(nonlinear)}"
        alike = [name for name in SEARCHES.own if SEARCHES.get(name).needs == "logits"]
        others = [name for name in alike if SEARCHES.get(name).labelled == search.labelled]
        raise ValueError(f"{what}: use modes with train: tangent, or another search, such as {', '.join(others)}")
    if search.classes and not classes:
        raise ValueError(f"{where} needs classes, and a task of the recipe has none: choose another search")
