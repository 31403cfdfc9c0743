"""Write a base that bitsandbytes quantized as a full checkpoint: the weights that its layers compute with.

    4 bits   w = code[q] · absmax of its block; absmax itself may be quantized: code₂[a] · absmax₂ of its block + offset
    8 bits   w = q · max|row| / 127

as transformers saves them (arXiv:2305.14314, arXiv:2208.07339). What quantization lost cannot be had back, and is not
known without the original. It is estimated from the steps of the codes: if the lost digits are uniform in the interval
that was rounded to a code, its mean square is ``((h − w)³ + (w − l)³) / 3(h − l)``.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.checkpoints.carried import small_files
from tangora.errors import FileError
from tangora.storage.checkpoint import CONFIG, INDEX, Checkpoint, open_checkpoint
from tangora.storage.files import InputFiles
from tangora.storage.header import FLOATS, Stored
from tangora.support.files import write_json, write_safetensors
from tangora.support.json_text import parse_json

__all__ = ["Loss", "dequantize"]

_SHARD = 2 * 10**9  # bytes of a file, which is held in memory while it is made
_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_TYPES = {"U8": torch.uint8, "I8": torch.int8, "I64": torch.int64, **{k: getattr(torch, v) for k, v in FLOATS.items()}}
_FIX = "give the same model in full precision; or dequantize it by the tool that quantized it"


@dataclass(frozen=True)
class Loss:
    """How far dequantized weights are from others, relative to their norm.

    Attributes:
        layers: the number of weights that were dequantized.
        rounding: by rounding them to the dtype of the checkpoint, measured.
        quantization: by quantization itself, estimated from the steps of its codes.
        dtype: to which they were rounded.
    """

    layers: int
    rounding: float
    quantization: float
    dtype: str

    def note(self, name: str) -> str:
        """Return one line for a person."""
        lost = f"quantization itself lost about {self.quantization:.2g} of their norm (estimated from its steps)"
        rounded = f"rounding them to {self.dtype} changes {self.rounding:.2g} of it"
        return f"{name} was dequantized: {self.layers} weights; {lost}; {rounded}"


def dequantize(base: Path, out: Path) -> Loss:
    """Write a quantized checkpoint in full precision.

    Args:
        base: its folder.
        out: a folder to fill, which exists and is empty.

    Raises:
        FileError: it is not quantized, or not by bitsandbytes as transformers saves it; or a file is damaged.
    """
    checkpoint = open_checkpoint(base)
    how, weights = checkpoint.quantized, _weights(checkpoint)
    if how is None:
        raise FileError("the base is not quantized", where=base, fix="leave --dequantize out")
    if not weights or "bitsandbytes" not in how:
        what = "only the 4 and 8 bits of bitsandbytes, as transformers saves them, are dequantized"
        raise FileError(what, got=how, where=base, fix=_FIX)
    known = {name for weight in weights.values() for name in weight}
    if odd := next((s for n, s in checkpoint.tensors.items() if n not in known and s.dtype not in FLOATS), None):
        what = "a tensor that is not of floating point, and belongs to no quantized weight"
        raise FileError(what, got=odd.dtype, where=odd.name, fix=_FIX)
    dtype = _dtype(checkpoint)
    sums = [0.0, 0.0, 0.0]
    _write(checkpoint, _values(checkpoint, weights, known, dtype, sums), out)
    square = max(sums[0], 1e-300)
    name = str(dtype).removeprefix("torch.")
    return Loss(len(weights), math.sqrt(sums[1] / square), math.sqrt(sums[2] / square), name)


def _weights(checkpoint: Checkpoint) -> dict[str, dict[str, Stored]]:
    """Return the name of each quantized weight -> its tensors, by their names."""
    found: dict[str, dict[str, Stored]] = {}
    tensors = checkpoint.tensors
    for name in tensors:
        if name.endswith(".SCB"):
            layer = name.removesuffix(".SCB")
            names = [f"{layer}.weight", name, f"{layer}.weight_format"]
            found[f"{layer}.weight"] = {one: tensors[one] for one in names if one in tensors}
        elif _STATE in name:
            weight = name.partition(_STATE)[0]
            names = [weight, name, *(weight + part for part in _PARTS)]
            found[weight] = {one: tensors[one] for one in names if one in tensors}
    if lost := sorted(name for name, parts in found.items() if name not in parts):
        raise FileError("a quantized weight is missing", where=f"{lost[0]} in {checkpoint.folder}", fix="copy it again")
    return found


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    stated = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
    return getattr(torch, str(stated)) if stated in FLOATS.values() else torch.float16


def _values(
    checkpoint: Checkpoint,
    weights: Mapping[str, Mapping[str, Stored]],
    known: set[str],
    dtype: torch.dtype,
    sums: list[float],
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the full checkpoint; add up the squares of weights, of their rounding, of their steps."""
    for name, stored in checkpoint.tensors.items():
        if name in weights:
            value, step = _dequantized(name, weights[name])
            short = value.to(dtype)
            if not bool(torch.isfinite(short).all()):
                raise FileError("a dequantized weight is not finite", where=name, fix="copy the checkpoint again")
            sums[0] += float(value.double().square().sum())
            sums[1] += float((value.double() - short.double()).square().sum())
            sums[2] += step
            yield name, short
        elif name not in known:
            yield name, _read(stored)


def _dequantized(name: str, parts: Mapping[str, Stored]) -> tuple[Float[Tensor, "out in"], float]:
    """Return a weight in float32, and the expected square of what quantization lost."""
    state = next((part for part in parts if _STATE in part), None)
    if state is not None:
        return _four_bits(name, parts, _settings(parts[state]))
    scales = _read(parts[name.removesuffix("weight") + "SCB"]).float()
    layout = parts.get(f"{name}_format")
    codes = _read(parts[name])
    if codes.dtype != torch.int8 or len(codes) != len(scales) or (layout and int(_read(layout)) != 0):
        raise FileError("a weight in 8 bits that is not stored by rows", where=name, fix=_FIX)
    steps = scales / 127
    return codes.float() * steps[:, None], float(steps.double().square().sum()) * codes.shape[1] / 12


def _four_bits(name: str, parts: Mapping[str, Stored], settings: Mapping[str, Any]) -> tuple[Tensor, float]:
    code, absmax = _read(parts[f"{name}.quant_map"]).float(), _read(parts[f"{name}.absmax"])
    if f"{name}.nested_absmax" in parts:
        table, outer = (_read(parts[f"{name}.nested_{part}"]).float() for part in ("quant_map", "absmax"))
        wide = outer.repeat_interleave(int(settings["nested_blocksize"]))[: len(absmax)]
        absmax = table[absmax.long()] * wide + float(settings["nested_offset"])
    packed = _read(parts[name]).reshape(-1).view(torch.uint8)  # the storage may be of another dtype
    shape, block = tuple(settings["shape"]), int(settings["blocksize"])
    entries = math.prod(shape)
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)[:entries].long()
    blocks = absmax.float().repeat_interleave(block)[:entries]
    if len(code) != 16 or len(codes) != entries or len(blocks) != entries:
        raise FileError("a weight in 4 bits of another size than it states", where=name, fix="copy it again")
    lost = (_losses(code)[codes] * blocks.double().square()).sum()
    return (code[codes] * blocks).reshape(shape), float(lost)


def _losses(code: Float[Tensor, "16"]) -> Float[Tensor, "16"]:
    """Return the mean square of what was rounded to each code, if it is uniform; beyond the last codes is nothing."""
    values, order = code.double().sort()
    middles = (values[1:] + values[:-1]) / 2
    low, high = torch.cat([values[:1], middles]), torch.cat([middles, values[-1:]])
    means = ((high - values) ** 3 + (values - low) ** 3) / (3 * (high - low)).clamp(min=1e-300)
    return torch.zeros_like(means).index_copy(0, order, means)


def _settings(stored: Stored) -> Mapping[str, Any]:
    try:
        settings = parse_json(bytes(_read(stored).tolist()).decode("utf-8"))
        complete = {"shape", "blocksize"} <= settings.keys()
    except (ValueError, AttributeError) as cause:
        raise FileError(
            "the state of a quantized weight is not JSON", where=stored.name, fix="copy it again"
        ) from cause
    if not complete:
        raise FileError("the state of a quantized weight has no shape", where=stored.name, fix="copy it again")
    return settings  # type: ignore[no-any-return]  # json's


def _read(stored: Stored) -> Tensor:
    if stored.dtype not in _TYPES:
        raise FileError("a dtype that cannot be dequantized", got=stored.dtype, where=stored.name, fix=_FIX)
    raw, files = torch.empty(stored.size, dtype=torch.uint8), InputFiles()
    view: Any = raw.numpy()
    try:
        files.read(stored, 0, memoryview(view))
    finally:
        files.close()
    return raw.view(_TYPES[stored.dtype]).reshape(stored.shape)


def _write(checkpoint: Checkpoint, values: Iterator[tuple[str, Tensor]], out: Path) -> None:
    table: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        if shard:
            name = f"model-{len(set(table.values())) + 1:05}.safetensors"
            write_safetensors(out / name, shard, {"format": "pt"})
            table.update(dict.fromkeys(shard, name))
            shard.clear()

    for name, value in values:
        if sum(t.numel() * t.element_size() for t in shard.values()) + value.numel() * value.element_size() > _SHARD:
            flush()
        shard[name] = value
    flush()
    write_json(out / INDEX, {"metadata": {}, "weight_map": table})
    for name, path in small_files(checkpoint.folder).items():
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, out / name)
    dropped = ("quantization_config", "transformers_weights")
    write_json(out / CONFIG, {key: value for key, value in checkpoint.config.items() if key not in dropped})
