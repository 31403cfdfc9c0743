"""[CLS] tokens of the last levels of a vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.errors import ModelError
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch.utils.hooks import RemovableHandle

__all__ = ["Levels", "depth_of"]

# model_type -> paths of its blocks and of its last layer norm, by the version of transformers
_TOWERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "clip_vision_model": (
        ("encoder.layers", "vision_model.encoder.layers"),
        ("post_layernorm", "vision_model.post_layernorm"),
    ),
    "vit": (("layers", "encoder.layer"), ("layernorm",)),
}


def depth_of(tower: nn.Module) -> int:
    """Return the number of a tower's blocks.

    Raises:
        ModelError: it has no [CLS] token, or its class is unknown.
    """
    return len(_parts(tower)[0])


def _parts(tower: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """Return blocks and last layer norm."""
    config: Any = tower.config
    kind = str(config.model_type)
    if kind not in _TOWERS:
        fix = "use a vision tower of CLIP or ViT"
        raise ModelError("no [CLS] token is known of this vision tower", got=kind, where="base.vision", fix=fix)
    blocks, norm = (_found(tower, paths) for paths in _TOWERS[kind])
    return list(blocks.children()), norm


def _found(tower: nn.Module, paths: tuple[str, ...]) -> nn.Module:
    for path in paths:
        try:
            return tower.get_submodule(path)
        except AttributeError:
            continue
    fix = "use the version of transformers that constraints.txt names"
    raise ModelError("a vision tower lacks a part", got=paths[0], where=type(tower).__name__, fix=fix)


@dataclass
class Levels:
    """Reads ``v_i = LN(x_i)[CLS]`` of the last levels, ``x_i`` the output of a block, ``LN`` the tower's last norm.

    Args:
        tower: frozen; its forward pass keeps no gradients.
        count: number of levels.
    """

    tower: nn.Module
    count: int
    _seen: list[Tensor] = field(default_factory=list)

    def connect(self) -> Iterator[RemovableHandle]:
        """Register the hooks that keep the outputs of the last blocks."""
        for block in _parts(self.tower)[0][-self.count :]:
            yield block.register_forward_hook(self._keep)

    @torch.no_grad()
    def of(self, pixels: Float[Tensor, "rows 3 height width"]) -> Float[Tensor, "levels rows d_v"]:
        """Return the [CLS] tokens of images, from the earliest of the levels to the last, in float32 at least."""
        self._seen.clear()
        with evaluating(self.tower):
            self.tower(pixel_values=pixels)
        norm = _parts(self.tower)[1]
        found = torch.stack([norm(state) for state in self._seen])
        self._seen.clear()
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def _keep(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self._seen.append(states[:, 0])
