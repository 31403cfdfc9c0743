"""Random experts of tiny models, for the tests of routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
from tangora.testing._tiny import tiny_base
from tangora.updates.task_vector import LowRank


def expert(
    backbone: nn.Module, seed: int, rank: int = 2, targets: Sequence[str] = ("query", "dense"), **about
) -> Adapter:
    """A LoRA adapter of every layer with such a name; ``dense`` are the feed-forward layers of BERT too."""
    draw = torch.Generator().manual_seed(seed)
    updates = {}
    for name, layer in backbone.named_modules():
        if name.rpartition(".")[2] in targets:
            out, inside = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
            b, a = (torch.randn(shape, generator=draw) for shape in ((out, rank), (rank, inside)))
            updates[name] = LowRank(b, a, 0.5)
    return Adapter(updates, Metadata(task=f"task{seed}", **about))


def of_tiny(*seeds: int, ranks: Sequence[int] = (), **options) -> list[Adapter]:
    """Experts of `tiny_base`, with its fingerprint."""
    base = tiny_base()
    about = BaseInfo(model="tiny", fingerprint=base.fingerprint, family="text-zero-shot")
    listed = [*ranks, *[2] * (len(seeds) - len(ranks))]
    return [expert(base.backbone, s, r, base=about, **options) for s, r in zip(seeds, listed, strict=True)]


def weights_of(made: Adapter, *values: float) -> Adapter:
    """The same routed adapter with a constant gate in place of every gate."""
    modules = dict(made.metadata.modules)
    modules["gates"] = {name: {"kind": "constant", "experts": len(values)} for name in modules["gates"]}
    updates = {n: u for n, u in made.updates.items() if not n.startswith("gates.")}
    from tangora.updates.task_vector import Dense

    updates |= {f"gates.{name}.weights": Dense(torch.tensor(values)) for name in modules["gates"]}
    return replace(made, updates=updates, metadata=made.metadata.model_copy(update={"modules": modules}))
