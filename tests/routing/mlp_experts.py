"""Experts of a tiny BERT, made on the spot, for tests of routers that weigh MLPs."""

from __future__ import annotations

import torch
from torch import nn

from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
from tangora.updates.task_vector import Dense, LowRank

MLPS = [f"encoder.layer.{i}.{part}.dense" for i in range(2) for part in ("intermediate", "output")]
QUERIES = [f"encoder.layer.{i}.attention.self.query" for i in range(2)]


def expert(base, name, seed, sites=(*MLPS, *QUERIES), rank=2, size=0.5):
    """A LoRA expert of random factors; A is the same for every seed."""
    a_of, b_of = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    updates = {}
    for site in sites:
        out, inside = base.backbone.get_submodule(site).weight.shape
        a = torch.randn(rank, inside, generator=a_of)
        updates[site] = LowRank(size * torch.randn(out, rank, generator=b_of), a, 0.5)
    return Adapter(updates, about(base, name, "lora", "l-lora"))


def whole(base, name, seed, size=0.1):
    """A change of every parameter."""
    drawn = torch.Generator().manual_seed(seed)
    parameters = base.backbone.named_parameters()
    updates = {n: Dense(size * torch.randn(p.shape, generator=drawn)) for n, p in parameters}
    return Adapter(updates, about(base, name, "full", "full"))


def about(base, name, kind, train):
    where = BaseInfo(model=base.config.model, fingerprint=base.fingerprint, family=base.config.family)
    linearize = "module" if train == "l-lora" else "none"
    return Metadata(kind=kind, train=train, mode=train, task=name, base=where, linearize=linearize)


def batch(rows=4, length=6, seed=0):
    """Ids and a mask: rows of different lengths, padded on the right."""
    ids = torch.randint(1, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    lengths = torch.arange(rows) % 3 + length - 2
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def hidden(backbone: nn.Module, inputs):
    return backbone(**inputs).last_hidden_state
