"""WEMoE and E-WEMoE on a T5 and a ViT, and beside weights in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch

from modular.test_routed import answers, close, model_of
from routing.experts import expert
from tangora.modular.network import attached
from tangora.routing.block_gates import gates_of
from tangora.routing.mlp_experts import block_network, parts_of, sparse
from tangora.routing.routers.e_wemoe import EWemoeSettings
from tangora.routing.routers.wemoe import WemoeSettings
from tangora.storage.held import hold_

TARGETS = {"encoder": ("query", "dense"), "encoder-decoder": ("q", "wi", "wo"), "vision": ("q_proj", "fc1", "fc2")}


@pytest.fixture(scope="module", params=sorted(TARGETS))
def case(request):
    model, targets = model_of(request.param)
    targets = (*targets, *TARGETS[request.param])
    model = model.eval().requires_grad_(False)
    return request.param, model, [expert(model, seed, rank, targets) for seed, rank in ((1, 2), (2, 3))]


def network(case, method):
    """Gates whose weights differ by the input: those of a fresh gate are almost equal."""
    _, model, experts = case
    shared = method == "e-wemoe"
    settings = EWemoeSettings() if shared else WemoeSettings()
    named = {one.metadata.task: one for one in experts}
    parts = parts_of(named, model, None, settings.elsewhere)
    gates, gate_at = gates_of(parts.blocks, 2, settings, 0, shared=shared)
    with torch.no_grad():
        for gate in gates.values():
            for parameter in gate.parameters():
                parameter.mul_(30 if parameter.ndim == 2 else 1)
    return block_network(list(named), sparse(parts, 0.2) if shared else parts, gates, gate_at)


@pytest.mark.parametrize("method", ["e-wemoe", "wemoe"])
def test_rows_answer_alone_as_together(case, method):
    name, model, _ = case
    plain = answers(model, name)
    with attached(model, network(case, method)):
        together, turned = answers(model, name), answers(model, name, [1, 0])
        alone = torch.cat([answers(model, name, [row]) for row in (0, 1)])
    assert not torch.allclose(together, plain, atol=1e-3)
    close(turned, together.flip(0))
    close(alone, together)


@pytest.mark.parametrize("method", ["e-wemoe", "wemoe"])
def test_weights_in_bfloat16_answer_as_the_rounded_ones(case, method):
    name, model, experts = case
    held, rounded = (copy.deepcopy(model) for _ in range(2))
    hold_(held, torch.bfloat16)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16().float()
    found = []
    for base in (held, rounded):
        with attached(base, network((name, base, experts), method)):
            found.append(answers(base, name))
    close(*found)
