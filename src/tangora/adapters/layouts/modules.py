"""The modules of diffusion models that adapters change: diffusers' path, the original implementation's, and shapes.

Written down from the public module trees: of diffusers' ``UNet2DConditionModel`` and ``FluxTransformer2DModel``, of
CLIP and T5 in transformers, and of the originals, ``sgm``'s ``UNetModel`` and Black Forest Labs' ``Flux``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Module", "Rows", "clip", "flux", "t5", "unet"]

Rows: TypeAlias = "tuple[tuple[int, int], ...]"


@dataclass(frozen=True)
class Module:
    """A module that has a weight.

    Attributes:
        path: in diffusers.
        original: in the original implementation.
        rows: slices ``(start, length)`` of the original's output rows, in multiples of its input width, whose
            concatenation is the module's weight; None if the two weights are the same.
        kernel: of a convolution.
    """

    path: str
    original: str
    rows: Rows | None = None
    kernel: tuple[int, ...] | None = None


_ATTENTION = tuple(f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0"))
_BLOCK = (*_ATTENTION, "ff.net.0.proj", "ff.net.2")
_RESNET = (
    ("conv1", "in_layers.2", (3, 3)),
    ("time_emb_proj", "emb_layers.1", None),
    ("conv2", "out_layers.3", (3, 3)),
    ("conv_shortcut", "skip_connection", (1, 1)),
)
_LAYERS = 2  # resnets of a block that goes down; one that goes up has one more


def unet(down: Sequence[int], up: Sequence[int], *, convolutions: bool, added: bool) -> tuple[Module, ...]:
    """Return the modules of a UNet of Stable Diffusion.

    Args:
        down: the number of transformer blocks in each attention of a block; 0 for a block without attention.
        up: the same, on the way up. The block in the middle has as many as the last on the way down that has any.
        convolutions: whether the projections around an attention are convolutions of size 1.
        added: whether size and crop are embedded too (SDXL).
    """
    modules = [Module("conv_in", "input_blocks.0.0", kernel=(3, 3)), Module("conv_out", "out.2", kernel=(3, 3))]
    modules += [Module(f"time_embedding.linear_{i}", f"time_embed.{2 * i - 2}") for i in (1, 2)]
    if added:
        modules += [Module(f"add_embedding.linear_{i}", f"label_emb.0.{2 * i - 2}") for i in (1, 2)]
    kernel = (1, 1) if convolutions else None
    for i, depth in enumerate(down):
        for j in range(_LAYERS):
            place = f"input_blocks.{1 + 3 * i + j}"
            modules += _layer(f"down_blocks.{i}", j, place, depth, kernel)
        if i + 1 < len(down):
            path = f"down_blocks.{i}.downsamplers.0.conv"
            modules.append(Module(path, f"input_blocks.{3 * (i + 1)}.0.op", kernel=(3, 3)))
    modules += _resnet("mid_block.resnets.0", "middle_block.0")
    modules += _transformer("mid_block.attentions.0", "middle_block.1", [d for d in down if d][-1], kernel)
    modules += _resnet("mid_block.resnets.1", "middle_block.2")
    for i, depth in enumerate(up):
        for j in range(_LAYERS + 1):
            modules += _layer(f"up_blocks.{i}", j, f"output_blocks.{3 * i + j}", depth, kernel)
        if i + 1 < len(up):
            place = f"output_blocks.{3 * i + _LAYERS}.{2 if depth else 1}.conv"
            modules.append(Module(f"up_blocks.{i}.upsamplers.0.conv", place, kernel=(3, 3)))
    return tuple(modules)


def _layer(block: str, j: int, place: str, depth: int, kernel: tuple[int, ...] | None) -> Iterator[Module]:
    yield from _resnet(f"{block}.resnets.{j}", f"{place}.0")
    if depth:
        yield from _transformer(f"{block}.attentions.{j}", f"{place}.1", depth, kernel)


def _resnet(path: str, original: str) -> Iterator[Module]:
    for name, other, kernel in _RESNET:
        yield Module(f"{path}.{name}", f"{original}.{other}", kernel=kernel)


def _transformer(path: str, original: str, depth: int, kernel: tuple[int, ...] | None) -> Iterator[Module]:
    for name in ("proj_in", "proj_out"):
        yield Module(f"{path}.{name}", f"{original}.{name}", kernel=kernel)
    for k in range(depth):
        for name in _BLOCK:
            yield Module(f"{path}.transformer_blocks.{k}.{name}", f"{original}.transformer_blocks.{k}.{name}")


def clip(layers: int) -> tuple[Module, ...]:
    """Return the modules of a CLIP text encoder."""
    names = (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
    return _same(f"text_model.encoder.layers.{i}.{name}" for i in range(layers) for name in names)


def t5(blocks: int) -> tuple[Module, ...]:
    """Return the modules of a T5 encoder (v1.1)."""
    names = (
        *(f"0.SelfAttention.{part}" for part in "qkvo"),
        *(f"1.DenseReluDense.{w}" for w in ("wi_0", "wi_1", "wo")),
    )
    return _same(f"encoder.block.{i}.layer.{name}" for i in range(blocks) for name in names)


def _same(paths: Iterator[str]) -> tuple[Module, ...]:
    return tuple(Module(path, path) for path in paths)


_STREAMS = (
    ("img", "ff", "norm1", ("to_q", "to_k", "to_v"), "to_out.0"),
    ("txt", "ff_context", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out"),
)
_EMBEDDERS = (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder"))
_THIRDS: tuple[Rows, ...] = (((0, 1),), ((1, 1),), ((2, 1),))


def flux(double: int, single: int) -> tuple[Module, ...]:
    """Return the modules of Flux.1's transformer, of ``double`` blocks with two streams and ``single`` with one."""
    modules = [Module("x_embedder", "img_in"), Module("context_embedder", "txt_in")]
    for original, path in _EMBEDDERS:
        for i, layer in ((1, "in_layer"), (2, "out_layer")):
            modules.append(Module(f"time_text_embed.{path}.linear_{i}", f"{original}.{layer}"))
    for i in range(double):
        modules += _double(f"transformer_blocks.{i}", f"double_blocks.{i}")
    for i in range(single):
        modules += _single(f"single_transformer_blocks.{i}", f"single_blocks.{i}")
    # The original's halves are shift and scale, diffusers' are scale and shift.
    modules.append(Module("norm_out.linear", "final_layer.adaLN_modulation.1", ((1, 1), (0, 1))))
    return (*modules, Module("proj_out", "final_layer.linear"))


def _double(path: str, original: str) -> Iterator[Module]:
    for stream, feed_forward, norm, parts, out in _STREAMS:
        yield Module(f"{path}.{norm}.linear", f"{original}.{stream}_mod.lin")
        for part, rows in zip(parts, _THIRDS, strict=True):
            yield Module(f"{path}.attn.{part}", f"{original}.{stream}_attn.qkv", rows)
        yield Module(f"{path}.attn.{out}", f"{original}.{stream}_attn.proj")
        yield Module(f"{path}.{feed_forward}.net.0.proj", f"{original}.{stream}_mlp.0")
        yield Module(f"{path}.{feed_forward}.net.2", f"{original}.{stream}_mlp.2")


def _single(path: str, original: str) -> Iterator[Module]:
    yield Module(f"{path}.norm.linear", f"{original}.modulation.lin")
    for part, rows in zip(("to_q", "to_k", "to_v"), _THIRDS, strict=True):
        yield Module(f"{path}.attn.{part}", f"{original}.linear1", rows)
    yield Module(f"{path}.proj_mlp", f"{original}.linear1", ((3, 4),))
    yield Module(f"{path}.proj_out", f"{original}.linear2")
