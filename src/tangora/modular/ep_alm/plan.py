"""The levels, layers and widths of an eP-ALM for two towers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tangora.errors import ModelError
from tangora.modular.ep_alm.decoders import kind_of
from tangora.modular.ep_alm.network import Layout
from tangora.modular.ep_alm.towers import depth_of

if TYPE_CHECKING:
    from tangora.config.ep_alm import EpAlmSettings

__all__ = ["planned"]

_LEVELS, _OF = 6, 32
_FIRST = 19  # of 32 layers, in OPT-2.7B and OPT-6.7B; the last layer of the range is the last but one


def planned(backbone: nn.Module, settings: EpAlmSettings) -> Layout:
    """Return the layout for a backbone.

    By default it is the paper's for a decoder of 32 layers: six levels, and the layers 19 to 30, counted from 0; in
    other decoders the same share of the layers.

    Raises:
        ModelError: the backbone has not two towers of known kinds, the range is not in the decoder, or a level reaches
            no layer.
    """
    decoder, tower = (getattr(backbone, name, None) for name in ("decoder", "vision"))
    if not isinstance(decoder, nn.Module) or not isinstance(tower, nn.Module):
        fix = "use a base of family vision-language"
        raise ModelError("the base has no vision tower", got=type(backbone).__name__, where="base.family", fix=fix)
    layers = len(list(decoder.get_submodule(kind_of(decoder).blocks).children()))
    depth, read, seen = depth_of(tower), _width(decoder), _width(tower)
    start = layers * _FIRST // _OF if settings.start is None else settings.start
    end = max(start + 1, layers - 1) if settings.end is None else settings.end
    if not start < end <= layers:
        fix = f"choose start and end from 0 to {layers}"
        raise ModelError("the range of layers is not in the decoder", got=f"{start} to {end}", where="start", fix=fix)
    most = min(depth, end - start)
    levels = min(_LEVELS, most) if settings.levels is None else settings.levels
    if levels > most:
        what = f"a tower of {depth} blocks and a range of {end - start} layers have at most {most} levels"
        raise ModelError(what, got=levels, where="levels", fix=f"set levels: {most}, or widen the range")
    shared = settings.connector == "shared"
    return Layout(levels, start, end, shared, settings.prompt, settings.mask, seen, read)


def _width(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.get_text_config().hidden_size)
