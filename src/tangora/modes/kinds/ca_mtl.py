"""CA-MTL (arXiv:2009.09139): a BERT-like encoder whose parts depend on the task, trained on all tasks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tangora.config.ca_mtl import CaMtlSettings
from tangora.modes.kinds._modules import AddedModules

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.ca_mtl.baked import Baked
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _CaMtl(AddedModules):
    """One hypernetwork for all tasks; every task gets its own adapter, without it.

    With z a linear function of the task's embedding, and ``FiLM_z(x) = (1 + γ(z)) x + β(z)``:

    - *alignment*: FiLM of the embeddings.
    - *attention*: ``softmax(QKᵀ/√d_h + BlockDiag(FiLM_z(M)))`` in every layer, the same for all heads; M begins at 0.
    - *norms*: the weight of a layer norm is ``FiLM_z(weight)``, in layers from n/2 on.
    - *bottleneck*: ``up(down(FiLM_z(h)))``, after the top layer, or (``variant: large``) beside every layer.

    (arXiv:2009.09139.) Choose it for tasks of text with labelled rows at hand, which help each other. Of the
    paper it differs in that the encoder is frozen unless ``unfreeze_from`` and ``top: new`` say otherwise; the bias is
    cut to the length of a batch, so that nothing is padded to L.

    For a fixed task everything that depends on z is a plain vector or matrix. These are the adapter. Without the
    bottleneck they are sums: the mean of two tasks' adapters is the network with the means of their FiLM vectors.
    The bottleneck multiplies two matrices, so with it adapters are not fused.
    """

    name: Final = "ca-mtl"
    settings: Final = CaMtlSettings
    default_rate: Final = 5e-4
    passes: Final = 3
    joint: Final = True
    kind: Final = "modules"
    answers: Final = "modules"

    def fusable(self, keys: Mapping[str, Any]) -> bool:
        """Return whether adapters that were trained with these keys add up: those without a bottleneck."""
        return not keys.get("bottleneck", True)

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse a base without the layers of BERT, and settings that do not fit it."""
        from tangora.modes.ca_mtl import check  # deferred: torch

        check(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the hypernetwork of one task, and the numbers of an adapter."""
        from tangora.modes.ca_mtl import footprint  # deferred: torch

        return footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the hypernetwork, and return an adapter for each task; see `Mode.train`."""
        from tangora.modes.ca_mtl import train  # deferred: torch

        return train(bench, tasks, config)

    def network(self, backbone: nn.Module, adapter: Adapter) -> Baked:
        """Return the parts of a task's network; see `AddedModules.network`."""
        from tangora.modes.ca_mtl import baked_network  # deferred: torch

        return baked_network(backbone, adapter)


MODE = _CaMtl()
