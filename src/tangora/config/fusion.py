"""An entry of ``fusion.methods``: what is fused how, and where its coefficients come from. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tangora.config.settings import NAME, Frozen, SpaceName
from tangora.support.seams import FAMILIES

__all__ = ["FusionEntry", "SearchSettings", "check_search"]

SearchName = Literal["lorahub", "convex", "learned", "adamerging", "minimax"]
_LORAHUB = ("budget", "penalty")
_GRADIENT = ("per", "labels", "l2", "l1", "nonnegative", "steps", "learning_rate", "rows_per_step")
_DESCENT = ("steps", "learning_rate", "rows_per_step")


class SearchSettings(Frozen):
    """Where coefficients come from, if not from a grid.

    ``lorahub``: without gradients, by the loss of whole fused models. ``convex``: least cross-entropy of labelled
    rows, solved, for modes that are linearized as a whole. ``learned``: the same for any mode, solved where it is
    convex, else by Adam. ``minimax``: the worst task in place of the mean. ``adamerging``: least entropy of rows
    without labels.
    """

    search: SearchName | None = None
    per: Literal["task", "site"] = Field(default="task", description="search: a coefficient per task, or task and site")
    labels: int | None = Field(
        default=None,
        ge=1,
        description="search: rows a task, picked by class; default all; adamerging ignores their labels",
    )
    l2: float | Literal["auto"] | None = Field(
        default=None,
        description="search: pull of a task's coefficients towards their mean; default 0 per task, 0.01 per site; "
        "auto: by cross-validation on the same rows",
    )
    l1: float = Field(default=0.0, ge=0, description="search: times the sum of magnitudes, added to the loss")
    nonnegative: bool | None = Field(default=None, description="search: no coefficient below 0; default for adamerging")
    bound: float | None = Field(
        default=None, gt=0, description="search: largest magnitude; default lorahub 1.5, adamerging 1, others 3"
    )
    steps: int | None = Field(default=None, ge=1, description="search by Adam: steps; default adamerging 500, else 60")
    learning_rate: float | None = Field(
        default=None, gt=0, description="search by Adam: rate; default adamerging 0.001, else 0.05"
    )
    rows_per_step: int = Field(default=16, ge=1, description="search by Adam: rows of each task in a step")
    budget: int = Field(default=40, ge=1, description="lorahub: evaluations")
    penalty: float = Field(default=0.05, ge=0, description="lorahub: times the mean absolute weight, added to the loss")

    @model_validator(mode="after")
    def _keys_of_the_search(self) -> SearchSettings:
        foreign: tuple[str, ...] = _GRADIENT if self.search in (None, "lorahub") else _LORAHUB
        if self.search == "convex":
            foreign += _DESCENT
        fields = type(self).model_fields
        if odd := [key for key in foreign if getattr(self, key) != fields[key].default]:
            what = f"search {self.search}" if self.search else "a grid"
            raise ValueError(f"{odd[0]} is no setting of {what}: leave it out")
        if isinstance(self.l2, float) and self.l2 < 0:
            raise ValueError(f"l2 is not negative; got {self.l2}")
        if self.l2 == "auto" and self.search != "convex":
            raise ValueError("l2: auto is for search convex, which is fast enough; give a number")
        return self

    @property
    def pull(self) -> float | Literal["auto"]:
        """``l2``, with its default."""
        if self.l2 is not None:
            return self.l2
        return 0.01 if self.per == "site" else 0.0


class FusionEntry(SearchSettings):
    """One row of the comparison: a method, its space, and where its coefficients come from.

    ``weights`` and ``parameters`` may be lists: then every combination is a candidate and one is selected on
    validation. ``search`` finds them in other ways, for one setting of parameters: see `SearchSettings`.
    """

    method: str
    name: str | None = Field(
        default=None, pattern=NAME, description="how scores.csv calls it; default: the search, or the method"
    )
    spaces: list[SpaceName] = Field(default=["delta"], min_length=1)
    modes: list[str] | None = Field(default=None, description="only for these modes; default: every mode")
    weights: float | list[float] | None = Field(default=None, description="one lambda for all tasks; a list is a grid")
    parameters: dict[str, Any] = Field(default_factory=dict, description="the method's; a list is a grid")
    sizes: list[int] | None = Field(default=None, description="only for subsets of these sizes; default: every size")

    @model_validator(mode="after")
    def _consistent(self) -> FusionEntry:
        if self.weights == [] or [] in self.parameters.values():
            raise ValueError("a grid of weights or parameters needs at least one value")
        if self.search and self.weights is not None:
            raise ValueError("a search finds the weights: leave out weights, or search")
        if self.search and any(isinstance(value, list) for value in self.parameters.values()):
            raise ValueError("a search takes one value a parameter: give an entry, with a name, for each")
        if self.search not in (None, "lorahub") and self.spaces != ["delta"]:
            raise ValueError(f"search {self.search} is for spaces: [delta], in which fused weights are linear")
        return self

    @property
    def label(self) -> str:
        """The name in ``scores.csv``."""
        return self.name or (self.search + ("-site" if self.per == "site" else "") if self.search else self.method)


def check_search(entry: FusionEntry, modes: Mapping[str, bool], family: str) -> None:
    """Refuse a search in modes, or for a family of models, where it makes no sense.

    Args:
        entry: of a recipe.
        modes: every mode of the recipe -> whether its logits are linear in coefficients.
        family: of the base.

    Raises:
        ValueError: says what to do.
    """
    nonlinear = [mode for mode in entry.modes or modes if not modes[mode]]
    if entry.search == "convex" and nonlinear:
        what = f"fusion.methods: {entry.label} is not convex in {', '.join(nonlinear)}"
        raise ValueError(f"{what}: give modes with train: tangent, or search: learned")
    if entry.search == "adamerging" and FAMILIES.get(family).logits_over != "classes":
        raise ValueError("fusion.methods: adamerging needs classes; a generated text has no entropy of its own")
