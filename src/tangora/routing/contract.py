"""The contract of a router. No torch.

A router makes a routed adapter of experts. To register one in this process::

    class Nearest:
        name, settings, needs = "nearest", NearestSettings, "nothing"    # see `RouteSettings`
        reference = "a paper, or none"

        def __call__(self, experts, settings, bench=None):
            sites = expert_sites(experts)
            gates = {site: ... for site in sites}                        # `tangora.modular.gates`
            return routed_adapter(experts, settings, {site: Routed(u, site) for site, u in sites.items()}, gates)

    tangora.support.seams.ROUTERS.register("nearest", Nearest())

Another package registers its own by an entry point, and a recipe or the command line uses it by its name::

    [project.entry-points."tangora.routers"]
    nearest = "my_package.nearest:ROUTER"

    fusion: {methods: [{method: nearest, route: {top_k: 2}}]}
    tangora fuse adapters/a adapters/b --method nearest --set top_k=2 --out routed
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from tangora.config.routing import RouteSettings

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, Task

__all__ = ["OnStep", "RouteSettings", "Router", "RoutingBench", "choose_of", "summary_of"]

OnStep: TypeAlias = Callable[[int, int, float], None]
"""Called after each step with (step, total steps, loss)."""


@dataclass(frozen=True)
class RoutingBench:
    """The model and rows that a router learns from, and where it keeps what must survive a kill.

    Attributes:
        base: as before afterwards.
        tasks: those of the experts, in their order; a router that ignores labels does so itself.
        seed: of everything random.
        scratch: folder for checkpoints to resume from; None for none.
        cache: folder for results that other trainings can use too, such as experts' answers; None for none.
        on_step: called after each step.
    """

    base: Base
    tasks: Sequence[Task] = ()
    seed: int = 0
    scratch: Path | None = None
    cache: Path | None = None
    on_step: OnStep | None = None


@runtime_checkable
class Router(Protocol):
    """A function from experts and settings to a routed adapter, and a declaration of its needs.

    Its docstring is shown by ``tangora methods``: the first line, and the sentence that begins with "Choose it".

    Attributes:
        name: the registered name, used in recipes and on the command line; no fusion method has it.
        settings: the class of its settings, a subclass of `RouteSettings` with a literal ``name`` and that default.
            With `RouteSettings.passes`, a run can estimate its time.
        needs: ``nothing`` but the experts, or ``rows`` of the tasks, and so a bench.
        reference: the router's source, ``arXiv:NNNN.NNNNN`` for a paper.

    A router may also have ``kinds``, if it takes experts of other kinds than ``lora``, and ``linearized = True``, if
    they must be L-LoRA experts. One that compares input directions of the experts has ``directions``: settings -> how
    many of each; a recipe whose experts share that many rows of A, so that it could not tell them apart, is refused.

    A router promises:

    - The same experts, settings, seed and rows give the same adapter.
    - Its decisions are for a token or a sample, and never depend on the rest of a batch.
    - The experts are unchanged, and so is the base.
    - It raises `FusionError` for experts that it cannot route.

    `tangora.testing.check_router` checks them on a tiny model.
    """

    name: str
    settings: type[RouteSettings]
    needs: Literal["nothing", "rows"]
    reference: str

    def __call__(self, experts: Mapping[str, Adapter], settings: Any, bench: RoutingBench | None = None) -> Adapter:
        """Return the routed adapter.

        Args:
            experts: name -> low-rank adapter of one base, in the order in which the router numbers them; their kinds
                and bases are checked, and a site has one name in all of them.
            settings: an instance of ``self.settings``.
            bench: base and rows, if the router needs any.

        Raises:
            FusionError: the experts cannot be routed in this way.
        """
        ...


def summary_of(router: Router) -> str:
    """Return the first line of a router's docstring."""
    return (inspect.getdoc(router) or "").split("\n", 1)[0]


def choose_of(router: Router) -> str:
    """Return the docstring's sentence on when to choose a router, without "Choose it "."""
    paragraphs = (inspect.getdoc(router) or "").split("\n\n")
    advice = next((p for p in paragraphs if p.startswith("Choose it ")), "")
    return " ".join(advice.split()).removeprefix("Choose it ").removesuffix(".")
