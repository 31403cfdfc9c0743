"""HyperFormer (arXiv:2106.04489): a hypernetwork that writes the bottleneck adapters of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tangora.config.bottleneck import HyperformerSettings
from tangora.modes.kinds.bottleneck import Bottleneck

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task

__all__ = ["MODE", "Hyperformer"]


class Hyperformer(Bottleneck):
    """One hypernetwork for all tasks: ``W = reshape(H u + c)``, with the code u of task, layer and position.

    ``u = LN(W₂ ReLU(W₁ [task; layer; position]))`` (arXiv:2106.04489, eq. 4 and 5). ``share: stage`` is HyperFormer++
    for networks with stages: layers of one width share their heads, and have embeddings; with ``block`` every layer has
    heads of its own. Choose it for few tasks and narrow networks: its heads have ``(projected + 1) d²/ρ`` numbers for
    each matrix, which is many times the adapters themselves; else choose `polyhistor`.

    What is returned for each task are plain bottleneck adapters, as `bottleneck` trains them: the hypernetwork is not
    needed any more. Of the paper it differs in that layer norms of the network stay frozen.
    """

    name = "hyperformer"
    settings = HyperformerSettings  # type: ignore[assignment]
    joint = True

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse places that the base lacks, widths that do not fit, and gradient checkpointing."""
        from tangora.modes.bottleneck import check_hypernetwork  # deferred: torch

        check_hypernetwork(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the hypernetwork of one task, and the numbers of its adapters."""
        from tangora.modes.bottleneck import hyper_footprint  # deferred: torch

        return hyper_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the hypernetwork, and return the adapters that it writes; see `Mode.train`."""
        from tangora.modes.bottleneck import train_hypernetwork  # deferred: torch

        return train_hypernetwork(bench, tasks, config)


MODE = Hyperformer()
