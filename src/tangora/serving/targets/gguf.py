"""llama.cpp: one GGUF file with the factors, under llama.cpp's names of the layers (`tangora.serving.gguf_names`).

llama.cpp adds ``alpha / r · B (A x)`` to the product of a weight and x. ``<tensor>.lora_a`` has the rows of A
``[r, in]``, ``<tensor>.lora_b`` those of B ``[out, r]``; the factors of an embedding are Aᵀ ``[vocabulary, r]`` and B.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.errors import AdapterError
from tangora.serving.contract import MERGE, Order, Target, Written
from tangora.serving.gguf_names import Layout, layout_of
from tangora.serving.plain import refuse_whole
from tangora.support.extras import require
from tangora.support.files import atomic_file
from tangora.updates.task_vector import Factors, LowRank

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.serving.base import ServedBase

__all__ = ["TARGET", "prepare", "read_updates", "write_file"]

_TOLERANCE = 1e-5  # of the comparison, beyond the stated rounding
_OUTPUT = ("lm_head", "embed_out")


def prepare(adapter: Adapter, base: ServedBase) -> tuple[Adapter, list[str]]:
    """Check an adapter by llama.cpp's rules; see `Target.prepare`."""
    require("gguf", purpose="a GGUF file")
    refuse_whole(adapter, "llama.cpp")
    layout = layout_of(base)
    seen: dict[str, str] = {}
    for site in adapter.updates:
        other = seen.setdefault(layout.tensor(site), site)
        if other != site:
            raise AdapterError("two sites are one tensor of llama.cpp", got=other, where=site, fix=MERGE)
        if (site in adapter.embeddings or site.rpartition(".")[2] in _OUTPUT) and base.ties:
            # the file has one tensor for both, and llama.cpp looks factors up by the tensor's name
            what = "the output layer is the input embedding, and llama.cpp would change both or fail"
            raise AdapterError(what, where=site, fix=MERGE)
    return adapter, []


def write_file(order: Order, path: Path) -> float:
    """Write the file, read it again, and return the largest relative difference over all sites.

    Raises:
        AdapterError: the file has other updates.
    """
    import gguf  # deferred: an extra
    from gguf import quants

    assert order.base is not None
    layout = layout_of(order.base)
    kinds = {None: ("F32", "ALL_F32"), torch.float16: ("F16", "MOSTLY_F16"), torch.bfloat16: ("BF16", "MOSTLY_BF16")}
    name, file_type = kinds[order.adapter.details.dtype]
    kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(order.name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(order.adapter))
    writer.add_file_type(gguf.LlamaFileType[file_type])
    for tensor, value in _tensors(order.adapter, layout):
        # copied: a permuted or transposed view has strides that the writer would not follow
        numbers = quants.quantize(value.detach().float().contiguous().numpy(), kind)
        writer.add_tensor(tensor, numbers, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _compared(order, path)


def _alpha(adapter: Adapter) -> float:
    factors = next(iter(adapter.updates.values())).factors()
    assert factors is not None
    return factors.scaling * factors.rank


def _tensors(adapter: Adapter, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    for site, update in adapter.updates.items():
        factors, tensor = update.factors(), layout.tensor(site)
        assert factors is not None
        rows = layout.rows(site, factors.b.shape[0])
        yield f"{tensor}.lora_a", factors.a.T if site in adapter.embeddings else factors.a
        yield f"{tensor}.lora_b", factors.b if rows is None else factors.b[rows]


def read_updates(path: Path, base: ServedBase, adapter: Adapter) -> dict[str, LowRank]:
    """Return site -> update as llama.cpp computes it from a file, in transformers' order of rows.

    Args:
        path: the file.
        base: the base model.
        adapter: names the sites and the embeddings.

    Raises:
        AdapterError: the file is of another architecture, or lacks a tensor or has one too many.
    """
    import gguf  # deferred: an extra
    from gguf import quants

    layout, reader = layout_of(base), gguf.GGUFReader(path)
    fields: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
    stated = (fields["general.type"], fields["adapter.type"], fields["general.architecture"])
    tensors = {
        one.name: torch.from_numpy(quants.dequantize(one.data, one.tensor_type).copy()) for one in reader.tensors
    }
    names = {site: layout.tensor(site) for site in adapter.updates}
    expected = {f"{name}.lora_{half}" for name in names.values() for half in "ab"}
    if stated != ("adapter", "lora", layout.architecture) or tensors.keys() != expected:
        raise AdapterError("the GGUF file has other content than was written", where=path, fix="report it")
    updates = {}
    for site, name in names.items():
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        rows = layout.rows(site, b.shape[0])
        if rows is not None:
            b = b[torch.argsort(rows)]
        alpha, rank = float(fields["adapter.lora.alpha"]), b.shape[1]
        scaling = alpha / rank if alpha else 1.0  # as llama.cpp has it
        updates[site] = LowRank(b, a.T.contiguous() if site in adapter.embeddings else a, scaling)
    return updates


def _compared(order: Order, path: Path) -> float:
    assert order.base is not None
    worst = 0.0
    for site, update in read_updates(path, order.base, order.adapter).items():
        exact = order.exact.updates[site].factors()
        assert exact is not None
        error = _difference(update, exact)
        if not error <= _TOLERANCE + 2 * order.rounding.get(site, 0.0):
            what = f"the GGUF file has another update, by {error:.1e} of its norm"
            raise AdapterError(what, where=site, fix="report it, with the adapter's configuration")
        worst = max(worst, error)
    return worst


def _difference(update: Factors, exact: Factors) -> float:
    """Return ``‖s·BA − s'·B'A'‖ / ‖s'·B'A'‖``, in float64."""
    b = torch.cat([update.b.double() * update.scaling, exact.b.double() * -exact.scaling], 1)
    a = torch.cat([update.a.double(), exact.a.double()])
    size, norm = LowRank(b, a).norm(), LowRank(exact.b.double() * exact.scaling, exact.a.double()).norm()
    return size / norm if norm > 0 else size


def _write(order: Order) -> Written:
    assert order.base is not None
    with atomic_file(order.out, overwrite=order.overwrite) as path:
        difference = write_file(order, path)
    start = []
    model = order.model
    if model is None:
        model = "base.gguf"
        start.append(shlex.join(["python", "convert_hf_to_gguf.py", str(order.base.folder), "--outfile", model]))
    start.append(shlex.join(["llama-server", "-m", model, "--lora", str(order.out.resolve())]))
    return Written(tuple(start), difference, "gguf's reader")


TARGET = Target("gguf", is_file=True, needs_base=True, prepare=prepare, write=_write)
