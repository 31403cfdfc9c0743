"""Settings of a training whose adapters are to be fused: sharpness-aware steps, orthogonality, layers that take part.

Data flow: `tangora.modes.trainer.QuietTrainer` asks an `Ingredients` three times in every step. Which layers take part
is decided first, then where the gradients are taken, and the penalty is added to every loss. All three are keys of
``training``, cost nothing at their defaults, and leave nothing behind: adapters are saved as without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from tangora.adapters.initial import seed_of
from tangora.tangent.linearization import product

if TYPE_CHECKING:
    from tangora.adapters.peft_layers import Layer
    from tangora.config.settings import TrainingSettings

__all__ = ["Ingredients", "distance_from_orthogonal", "ingredients_of", "sharpest", "taking_part"]

ADAPTER = "default"  # the name under which a training adds its LoRA layers


@dataclass(frozen=True)
class Ingredients:
    """What `TrainingSettings` says of sharpness, orthogonality and layers, for one model.

    Attributes:
        settings: of the training.
        layers: the LoRA layers of the model, in its order.
        seed: of which layers take part.
    """

    settings: TrainingSettings
    layers: tuple[Layer, ...] = ()
    seed: int = 0

    @contextmanager
    def step(self, step: int, parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor]) -> Iterator[None]:
        """Prepare the model for the gradients of a step within this block.

        Args:
            step: counted from 0.
            parameters: all that are trained.
            loss: of the rows of the step, for sharpness-aware steps.
        """
        with self._off(step), sharpest(parameters, loss, self.settings.sharpness):
            yield

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss: 0 without ``orthogonality``."""
        if not self.settings.orthogonality:
            return 0.0
        distances = [distance_from_orthogonal(*product(one, ADAPTER), one.scaling[ADAPTER]) for one in self.layers]
        return self.settings.orthogonality * sum((one.to(distances[0].device) for one in distances[1:]), distances[0])

    @contextmanager
    def _off(self, step: int) -> Iterator[None]:
        """Switch off the layers that take no part in a step. With a scaling of 0 they still have gradients: zeros."""
        chance = taking_part(step, self.settings.steps, self.settings.progressive)
        before = [one.scaling[ADAPTER] for one in self.layers] if chance < 1 else []
        if before:
            generator = torch.Generator().manual_seed(seed_of("progressive", self.seed, str(step)) % 2**63)
            drawn = torch.rand(len(before), generator=generator)
            on = drawn <= max(chance, float(drawn.min()))  # at least one layer learns in every step
            for one, scaling, is_on in zip(self.layers, before, on.tolist(), strict=True):
                one.scaling[ADAPTER] = scaling if is_on else 0.0
        try:
            yield
        finally:
            for one, scaling in zip(self.layers, before, strict=False):
                one.scaling[ADAPTER] = scaling


def ingredients_of(model: nn.Module, settings: TrainingSettings, seed: int) -> Ingredients:
    """Return the ingredients of a training of ``model``, with the LoRA layers that they are about."""
    about_layers = settings.orthogonality or settings.progressive
    found = (one for one in model.modules() if isinstance(one, LoraLayer) and ADAPTER in one.r) if about_layers else ()
    return Ingredients(settings, tuple(found), seed)


def taking_part(step: int, steps: int, share: float) -> float:
    """Return the chance of a layer to take part in a step (CoTo, arXiv:2506.05713).

    It rises from 0 to 1 over the first ``share`` of the steps (0.75 in the paper).

    >>> [taking_part(step, 100, 0.5) for step in (0, 25, 50, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(1.0, step / (share * steps)) if share else 1.0


def distance_from_orthogonal(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    r"""Return :math:`\sum_i (\sigma_i^2 - 1)^2` over the r singular values of ``scaling * b @ a``.

    This is OrthoReg's :math:`\lVert \Delta W^\top \Delta W - I \rVert_F^2` (arXiv:2604.17078) without what no update of
    rank r can change: one for each of the other directions. It costs two products of r × r matrices.

    Args:
        a: ``[r, in]``.
        b: ``[out, r]``.
        scaling: of the product.

    >>> float(distance_from_orthogonal(torch.eye(2, 3), torch.eye(4, 2), 1.0))
    0.0
    """
    gram = scaling**2 * (b.T @ b) @ (a @ a.T)  # its trace, and that of its square, are those of ΔWᵀΔW
    return (gram * gram.T).sum() - 2 * gram.trace() + len(gram)


@contextmanager
def sharpest(parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], radius: float) -> Iterator[None]:
    """Move parameters to where the loss is largest at this distance, to first order, for the block.

    Gradients of the block are then those of a sharpness-aware step (SAM, arXiv:2010.01412). Each forward pass has a
    point of its own if several make one step, as those of several processes have.

    Args:
        parameters: are put back bit for bit.
        loss: computes the loss at the present point, with its graph.
        radius: Euclidean norm of the move over all parameters; 0 for none, and ``loss`` is not computed.
    """
    if not radius:
        yield
        return
    gradients = torch.autograd.grad(loss(), list(parameters), allow_unused=True)
    square = sum((float(g.detach().float().square().sum()) for g in gradients if g is not None), 0.0)
    before = [p.detach().clone() for p in parameters]
    if 0 < square < float("inf"):  # a loss that is not finite is refused by the step itself
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.add_(gradient.to(parameter.dtype), alpha=radius / square**0.5)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
