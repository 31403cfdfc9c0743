"""The student: LoRA layers in the base, with the factors of the adapter that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.adapters.peft_layers import factors, lora_layers
from tangora.errors import ModelError
from tangora.modes.preparation import adapt
from tangora.tangent import TangentTaskModel, expand_lora
from tangora.tangent.linearization import linearize
from tangora.tasks.model import TaskModel
from tangora.updates.task_vector import LowRank, TaskVector

if TYPE_CHECKING:
    from jaxtyping import Float
    from peft import PeftModel

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.tasks import Base
    from tangora.updates.task_vector import Update

__all__ = ["Start", "balanced", "embedded", "is_layer", "layer_updates", "put_in", "start_of"]


@dataclass(frozen=True)
class Start:
    """Factors to start from.

    Attributes:
        factors: site -> balanced factors: ``AAᵀ = BᵀB``, so that one learning rate suits both.
        error: relative error of the truncation to the rank, over all sites; 0 if nothing was truncated.
        left_out: parameters of the start that no LoRA layer can hold: biases and norms of full adapters.
    """

    factors: Mapping[str, LowRank]
    error: float
    left_out: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of a site, at least 1."""
        return max(1, *(update.rank for update in self.factors.values()))


def start_of(adapter: Adapter, backbone: nn.Module, rank: int | None) -> Start:
    """Return the balanced factors of an adapter, truncated to a rank.

    Args:
        adapter: of any kind.
        backbone: decides which parameters of a full adapter are matrices of layers that LoRA can adapt.
        rank: the largest of a site; None for that of the adapter.

    Raises:
        ModelError: no site can be adapted by LoRA; or an adapter of whole matrices, without a rank.
    """
    updates, left_out = layer_updates(adapter, backbone)
    if not updates:
        fix = "give adapters of linear layers"
        raise ModelError("no site of the start can be adapted by LoRA", got=next(iter(adapter.updates), None), fix=fix)
    if rank is None and (dense := [site for site, update in updates.items() if update.factors() is None]):
        raise ModelError("the start has no rank", got=dense[0], where="polish.rank", fix="set a rank, such as 16")
    vector = TaskVector(updates)
    smaller, error = (vector, 0.0) if rank is None else vector.compress(rank)
    return Start({site: balanced(site, update) for site, update in smaller.items()}, error, left_out)


def layer_updates(adapter: Adapter, backbone: nn.Module) -> tuple[dict[str, Update], tuple[str, ...]]:
    """Return site -> update of a layer, and the parameters that are none."""
    modules = dict(backbone.named_modules())
    if adapter.metadata.of_kind.adds_modules:
        fix = "start from a fusion of low-rank adapters"
        raise ModelError("a polish cannot start from added modules", got=adapter.metadata.kind, where="start", fix=fix)
    if adapter.metadata.of_kind.by_parameter:
        layers = {f"{name}.weight": name for name, module in modules.items() if isinstance(module, nn.Linear)}
    else:
        layers = {name: name for name, module in modules.items() if is_layer(module)}
    chosen = {layers[name]: update for name, update in adapter.updates.items() if name in layers}
    return chosen, tuple(name for name in adapter.updates if name not in layers)


def is_layer(module: nn.Module) -> bool:
    """Return whether LoRA can adapt a module."""
    return isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"


def balanced(site: str, update: Update) -> LowRank:
    """Return the factors ``U√S`` and ``√S Vᵀ`` of an update with the singular values S, without those that are zero.

    Where both factors are zero, neither has a gradient: such a direction would never be trained.
    """
    given = update.factors()
    if given is None:
        raise ModelError("the update of this site has no factors", where=site, fix="set polish.rank")
    left, inner_left = torch.linalg.qr(given.b.double() * given.scaling)
    right, inner_right = torch.linalg.qr(given.a.double().T)
    u, s, v = torch.linalg.svd(inner_left @ inner_right.T, full_matrices=False)
    largest = float(s[0]) if s.numel() else 0.0
    least = torch.finfo(torch.float32).eps * max(update.shape) * largest
    kept = int((s > least).sum())
    root = s[:kept].sqrt()
    return LowRank((left @ u[:, :kept] * root).float(), (root[:, None] * (v[:kept] @ right.T)).float(), 1.0)


def put_in(
    base: Base, start: Start, config: FinetuneConfig, *, student: str, random: bool
) -> tuple[PeftModel, type[TaskModel]]:
    """Put LoRA layers with the factors of the start into the backbone; return the model, and the class to train.

    Sites of a smaller rank than the configuration's are filled up with random rows of A and zeros in B, which leave the
    function as it is.

    Args:
        base: its backbone is changed in place; see `tangora.modes.preparation.as_before`.
        start: the factors.
        config: rank and target modules.
        student: see `tangora.config.polish.PolishSettings`.
        random: ignore the start's factors: A is drawn, and B is zero.
    """
    model = adapt(base.backbone, None, config).model
    layers = lora_layers(model)
    if odd := sorted(layers.keys() ^ start.factors.keys()):
        fix = "rename one of the layers: peft adapts every layer whose name ends like that of a site"
        raise ModelError("the student has other sites than the start", got=odd[0], where="polish", fix=fix)
    if not random:
        for site, layer in layers.items():
            _set(layer, start.factors[site])
    if student == "lora":
        return model, TaskModel
    points = {site: _at_zero(*factors(layer, "default")) for site, layer in layers.items()}
    if student == "l-lora":
        linearize(model, initial=points)
        return model, TaskModel
    expand_lora(model, initial=points)
    return model, TangentTaskModel


def embedded(model: PeftModel) -> frozenset[str]:
    """Return the sites that are embeddings."""
    return frozenset(site for site, layer in lora_layers(model).items() if "default" in layer.lora_embedding_A)


@torch.no_grad()
def _set(layer: Any, update: LowRank) -> None:
    a, b = factors(layer, "default")
    kept = min(update.rank, a.shape[0])
    a[:kept] = update.a[:kept].to(a)
    b.zero_()
    b[:, :kept] = update.b[:, :kept].to(b)


def _at_zero(a: Float[Tensor, "r in"], b: Float[Tensor, "out r"]) -> tuple[Tensor, Tensor]:
    """Return φ₀ of a student that trains only B: its own A, and B₀ = 0."""
    return a.detach().clone(), torch.zeros_like(b)
