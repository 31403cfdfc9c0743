"""The settings of a router, which decides for every token or sample how much of each expert answers. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from tangora.config.settings import NAME, Frozen

__all__ = ["RouteSettings", "TopSettings"]


class RouteSettings(Frozen):
    """The settings of a router. Each router derives its own class from this one.

    A subclass gives ``name`` one value, which is also its default::

        class NearestSettings(RouteSettings):
            name: Literal["nearest"] = "nearest"
            top_k: int = Field(default=1, ge=1)
    """

    name: str = Field(pattern=NAME, description="of the router")

    @property
    def label(self) -> str:
        """The name in ``scores.csv`` of an entry with these settings, unless the entry has a name of its own."""
        return self.name

    @property
    def rows_of(self) -> str:
        """The split that rows are drawn from, if the router needs any."""
        return "train"

    def passes(self, rows: Sequence[int], *, classes: bool = True) -> float:
        """Return about how many rows pass forward through the model; a backward pass counts as two.

        A run estimates its time by it.

        Args:
            rows: how many rows each task has.
            classes: whether answers are classes.
        """
        return 0.0


class TopSettings(RouteSettings):
    """Settings of a router that keeps the experts with the largest weights."""

    top_k: int = Field(default=1, ge=1, description="experts that answer for a token; all of them if there are fewer")
