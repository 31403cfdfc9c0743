"""What a search for fusion coefficients is. No torch.

A search chooses what each task vector is multiplied with when adapters are fused. One that is here in this process::

    class Coordinates:
        name, settings = "coordinates", CoordinateSettings    # see `SearchSettings`
        needs, labelled, classes = "loss", True, False

        def __call__(self, problem, settings):
            ...
            return Found(...)

    tangora.support.seams.SEARCHES.register("coordinates", Coordinates())

Another package announces its own by an entry point, and a recipe uses it by its name::

    [project.entry-points."tangora.searches"]
    coordinates = "my_package.coordinates:SEARCH"

    fusion: {methods: [{method: task_arithmetic, search: {name: coordinates, rounds: 3}}]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from tangora.config.fusion import SearchSettings

if TYPE_CHECKING:
    from tangora.coefficients.found import Found
    from tangora.coefficients.problem import Problem

__all__ = ["Needs", "Search", "SearchSettings"]

Needs = Literal["loss", "logits", "columns"]
"""The view of a `Problem` that a search cannot do without, with what that asks of the rest of the run:

| needs | uses | method and space | mode |
| --- | --- | --- | --- |
| ``loss`` | `Problem.loss`: whole fused models are scored | any | any |
| ``logits`` | `Problem.logits`, or `Problem.columns` if there are any | additive, in ``delta`` | any |
| ``columns`` | `Problem.columns` | additive, in ``delta`` | linear in the coefficients |
"""


@runtime_checkable
class Search(Protocol):
    """A way to choose coefficients: a function of a problem and of settings, with what it needs.

    Attributes:
        name: what recipes call it; the name in the registry.
        settings: its own settings, a subclass of `SearchSettings` whose ``name`` is a literal with that default.
            Of settings with a ``row_limit`` the problem has so many rows of each task, and of settings that are
            ``per_site`` it has a coefficient for each task and site.
        needs: which view of the problem it uses: see `Needs`.
        labelled: whether it looks at labels. If not, other labels do not change what it finds.
        classes: whether every task must be a choice among classes.

    A run checks what is declared before it trains anything. A search promises more, which
    `tangora.testing.check_search` checks:

    - The same problem and settings give the same result. Randomness comes from a generator of its own, seeded by
      ``problem.seed``; global random states stay as they are.
    - It uses no view of the problem that it does not declare.
    - The weights are finite: one for each of ``problem.tasks``, or one for each at every one of ``problem.sites``.
    - The loss that is stated is the loss of these weights on ``problem.rows``, in nats.
    - `Found.settings` holds whatever decided the result, as JSON can write it.

    A run keeps what was found under a digest of the problem, the settings, and the source of the search, so that a
    changed search searches again.
    """

    name: str
    settings: type[SearchSettings]
    needs: Needs
    labelled: bool
    classes: bool

    def __call__(self, problem: Problem, settings: Any) -> Found:
        """Return coefficients for the problem.

        Args:
            problem: the tasks, and what a fused model answers on their rows.
            settings: an instance of ``self.settings``.

        Raises:
            FusionError: no coefficients can be found, for instance because no loss is finite.
        """
        ...
