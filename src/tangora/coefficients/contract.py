"""The contract of a search for fusion coefficients. No torch.

A search chooses the factor of each task vector when adapters are fused. To register one in this process::

    class Coordinates:
        name, settings = "coordinates", CoordinateSettings    # see `SearchSettings`
        needs, labelled, classes = "loss", True, False

        def __call__(self, problem, settings):
            ...
            return Found(...)

    tangora.support.seams.SEARCHES.register("coordinates", Coordinates())

Another package registers its own by an entry point, and a recipe uses it by its name::

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
"""The view of a `Problem` that a search needs, and the requirements that follow from it:

| needs | uses | method and space | mode |
| --- | --- | --- | --- |
| ``loss`` | `Problem.loss`: complete fused models are scored | any | any |
| ``logits`` | `Problem.logits`, or `Problem.columns` if there are any | additive, in ``delta`` | any |
| ``columns`` | `Problem.columns` | additive, in ``delta`` | linear in the coefficients |
"""


@runtime_checkable
class Search(Protocol):
    """A way to choose coefficients: a function of a problem and settings, and a declaration of its needs.

    Attributes:
        name: the registered name, used in recipes.
        settings: the class of its settings, a subclass of `SearchSettings` with a literal ``name`` and that default.
            With a ``row_limit``, the problem has at most that many rows of each task. With ``per_site``, it has a
            coefficient for each task and site. With `SearchSettings.passes`, a run can estimate its time.
        needs: the view of the problem that it uses: see `Needs`.
        labelled: whether it uses labels. If not, other labels do not change its result.
        classes: whether every task must be a choice among classes.

    A run checks these declarations before it trains anything. `tangora.testing.check_search` checks further promises:

    - The same problem and settings give the same result. Randomness comes from the search's own generator, seeded by
      ``problem.seed``; global random states stay as they are.
    - It uses no view of the problem that it does not declare.
    - The weights are finite: one for each of ``problem.tasks``, or one for each at every one of ``problem.sites``.
    - The stated loss is the loss of these weights on ``problem.rows``, in nats.
    - `Found.settings` contains everything that determined the result, as JSON values.

    A run caches the result under a digest of the problem, the settings and the source of the search, so that a changed
    search runs again.
    """

    name: str
    settings: type[SearchSettings]
    needs: Needs
    labelled: bool
    classes: bool

    def __call__(self, problem: Problem, settings: Any) -> Found:
        """Return coefficients for the problem.

        Args:
            problem: the tasks, and the answers of fused models on their rows.
            settings: an instance of ``self.settings``.

        Raises:
            FusionError: no coefficients can be found, for instance because no loss is finite.
        """
        ...
