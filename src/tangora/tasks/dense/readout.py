"""The readout of dense tasks: a light decoder on the stages of a backbone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.nn.utils import skip_init

from tangora.adapters.initial import seed_of
from tangora.tasks.dense.base import stages_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.tasks.dense.problems import Problem
    from tangora.tasks.values import Batch

__all__ = ["DenseReadout", "interpolation"]


class DenseReadout(nn.Module):
    """Logits of every pixel, from the sum of projected stages.

    With the stages ``f_1 .. f_n``, ``h = Σ up(P_i norm_i(f_i))`` at the resolution of the finest one, and the logits
    are ``up(W gelu(h) + b)`` at that of the input. ``up`` is bilinear, between the centres of pixels. This is the
    decoder of SegFormer (arXiv:2105.15203, eq. 4) with a sum in place of a layer on concatenated stages.

    Args:
        problem: what logits mean.
        stages: channels, height and width of each, the finest first.
        pixels: height and width of the logits.
        width: of the projections.
        levels: as of `stages_of`.
        key: of the base; readouts of one base share features.
    """

    def __init__(
        self,
        problem: Problem,
        stages: Sequence[tuple[int, int, int]],
        pixels: tuple[int, int],
        width: int,
        levels: int,
        key: str,
    ) -> None:
        super().__init__()
        self._problem, self._stages, self._levels = problem, tuple(stages), levels
        self.width = problem.outputs
        self.features_key: Hashable = (key, levels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels, _, _ in stages)
        self.projections = nn.ModuleList(skip_init(nn.Linear, channels, width) for channels, _, _ in stages)
        self.classifier = skip_init(nn.Linear, width, problem.outputs)
        _, *finest = stages[0]
        for axis in (0, 1):
            for number, stage in enumerate(stages):
                table = interpolation(stage[1 + axis], finest[axis])
                self.register_buffer(f"_up{number}_{axis}", table, persistent=False)
            self.register_buffer(f"_out_{axis}", interpolation(finest[axis], pixels[axis]), persistent=False)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Set first values: drawn projections, the same for every task, and zeros in the last layer."""
        for name, parameter in self.named_parameters():
            if name.startswith("classifier") or name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("projections"):
                draw = torch.Generator().manual_seed(seed_of("decoder", name, tuple(parameter.shape)))
                spread = parameter.shape[1] ** -0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=draw))

    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Float[Tensor, "batch numbers"]:
        """Return all stages of each row as one vector."""
        stages = stages_of(backbone, inputs["pixel_values"], self._levels)
        return torch.cat([stage.flatten(1) for stage in stages], 1)

    def logits(self, features: Tensor, /) -> Float[Tensor, "batch height width outputs"]:
        """Return float32 logits of every pixel."""
        x = features.float()
        with torch.autocast(x.device.type, enabled=False):
            parts = x.split([channels * height * width for channels, height, width in self._stages], 1)
            total = self._projected(0, parts[0])
            for number, part in enumerate(parts[1:], start=1):
                total = total + self._projected(number, part)
            return self._resized(self.classifier(gelu(total)), "_out")

    def _projected(self, number: int, part: Tensor) -> Tensor:
        placed = part.unflatten(1, self._stages[number]).permute(0, 2, 3, 1)
        return self._resized(self.projections[number](self.norms[number](placed)), f"_up{number}")

    def _resized(self, x: Float[Tensor, "batch height width some"], name: str) -> Tensor:
        rows, columns = self.get_buffer(f"{name}_0"), self.get_buffer(f"{name}_1")
        return torch.einsum("Wx,bHxk->bHWk", columns, torch.einsum("Hy,byxk->bHxk", rows, x))

    def losses(self, logits: Tensor, labels: Tensor, /) -> Float[Tensor, " batch"]:
        """Return the mean loss over the pixels of each row that count; 0 if none does."""
        return self._problem.losses(logits, labels)

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return the map and the loss of each row."""
        logits = self.logits(self.features(backbone, inputs, labels))
        logits = logits if settle is None else settle(logits)
        return list(self._problem.answers(logits).cpu().numpy()), self.losses(logits, labels)


def interpolation(size: int, wanted: int) -> Float[Tensor, "wanted size"]:
    """Return the matrix of bilinear interpolation along one axis, between centres, constant beyond the outer ones.

    A matrix, because every mode of differentiation knows products.

    >>> interpolation(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    place = ((torch.arange(wanted) + 0.5) * size / wanted - 0.5).clamp(0, size - 1)
    return (1 - (place[:, None] - torch.arange(size)).abs()).clamp(min=0)
