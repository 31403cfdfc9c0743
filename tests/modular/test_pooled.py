"""The gate of WEMoE, and banks of whole and of sparse matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tangora.errors import AdapterError
from tangora.modular.banks import DenseBank, SparseBank, largest
from tangora.modular.gates import PooledGate, PooledSettings, gate_of, layer_code

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums of some tens of terms of size 1


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gate(depth=2, decide="sample", spread=1.0, **more):
    made = PooledGate(PooledSettings(width=6, experts=3, depth=depth, decide=decide, **more))
    made.start(0.3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(spread / 0.01)
    return made


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_fresh_gate_weighs_every_expert_alike(depth):
    made = gate(depth, spread=0.0)
    assert torch.equal(made(drawn(2, 4, 6)), torch.full((2, 3), 0.3))


def test_the_first_weights_are_those_of_the_paper():
    made = PooledGate(PooledSettings(width=64, experts=8)).start(0.3, torch.Generator().manual_seed(0))
    hidden, last = made.layers[0], made.layers[2]
    assert abs(float(hidden.weight.detach().std()) - 0.01) < 0.01 * 4 / (2 * 64**2) ** 0.5  # four standard errors
    assert not hidden.bias.any()
    assert torch.equal(last.bias, torch.full((8,), 0.3))


@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_the_mean_over_the_tokens_of_a_small_network(depth):
    made, x = gate(depth), drawn(2, 4, 6)
    layers = [module for module in made.layers if hasattr(module, "weight")]
    for sample in range(2):
        total = torch.zeros(3)
        for token in x[sample]:
            h = token
            if depth == 2:
                h = (layers[0].weight @ h + layers[0].bias).clamp_min(0)
            total += layers[-1].weight @ h + layers[-1].bias
        torch.testing.assert_close(made(x)[sample], total / 4, **CLOSE)


def test_padding_is_left_out_whatever_it_is():
    made, x = gate(), drawn(2, 5, 6)
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    x[0, 3:] = torch.inf
    torch.testing.assert_close(made(x, mask)[0], made(x[:1, :3])[0], **CLOSE)
    torch.testing.assert_close(made(x, mask)[1], made(x[1:])[0], **CLOSE)


def test_images_have_two_axes_of_tokens():
    made, x = gate(), drawn(2, 2, 3, 6)
    torch.testing.assert_close(made(x), made(x.flatten(1, 2)), **CLOSE)


def test_rows_decide_for_themselves_except_with_the_mean_over_the_batch():
    x, order = drawn(3, 4, 6), torch.tensor([2, 0, 1])
    torch.testing.assert_close(gate()(x)[order], gate()(x[order]), **CLOSE)
    torch.testing.assert_close(gate()(x[:1]), gate()(x)[:1], **CLOSE)
    batch = gate(decide="batch")
    torch.testing.assert_close(batch(x), gate()(x).mean(0).expand(3, -1), **CLOSE)
    assert not torch.allclose(batch(x[:1]), batch(x)[:1], atol=1e-2)


def test_a_token_decides_without_the_tokens_after_it():
    made, x = gate(decide="token"), drawn(2, 4, 6)
    assert made(x).shape == (2, 4, 3)
    later = x.clone()
    later[:, 2:] += 1
    assert torch.equal(made(later)[:, :2], made(x)[:, :2])


def test_a_shared_gate_knows_the_layer_by_its_code():
    made, x = gate(code=8, places=["one", "two"]), drawn(1, 4, 6)
    assert made.layers[0].in_features == 14
    at = {}
    for place in ("one", "two"):
        made.placed(place)
        at[place] = made(x)
    assert not torch.allclose(at["one"], at["two"], atol=1e-3)
    torch.testing.assert_close(layer_code(1, 2), torch.tensor([math.sin(1), math.cos(1)]))
    assert "codes" not in made.state_dict()


def test_it_is_made_again_of_its_settings():
    made = gate(code=4, places=["a", "b", "c"])
    again = gate_of(made.settings.model_dump(mode="json"))
    again.load_state_dict(made.state_dict())
    for one in (made, again):
        one.placed("c")
    assert torch.equal(made(drawn(1, 2, 6)), again(drawn(1, 2, 6)))
    with pytest.raises(AdapterError, match="invalid"):
        gate_of({**made.settings.model_dump(mode="json"), "depth": 3})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_whole_matrices_are_weighed_for_each_sample_without_a_matrix_for_it(bias, per_token):
    bank, x = DenseBank((5, 6), 3, bias), drawn(2, 4, 6)
    for parameter in bank.parameters():
        parameter.data = drawn(*parameter.shape, seed=2)
    weights = drawn(2, 4, 3, seed=3) if per_token else drawn(2, 3, seed=3)
    for sample in range(2):
        for token in range(4):
            g = weights[sample, token] if per_token else weights[sample]
            matrix, shift = torch.einsum("e,eoi->oi", g, bank.weight), g @ bank.bias if bias else 0
            torch.testing.assert_close(bank(x, weights)[sample, token], matrix @ x[sample, token] + shift, **CLOSE)


def test_sparse_matrices_answer_as_dense_ones_and_have_the_same_gradients():
    dense, sparse = DenseBank((5, 6), 3, True), SparseBank((5, 6), 3, 30, True)
    dense.weight.data, dense.bias.data = drawn(3, 5, 6, seed=2), drawn(3, 5, seed=4)
    sparse.bias.data = dense.bias.data.clone()
    for expert in range(3):
        sparse.fill(expert, dense.weight.data[expert])
    found = []
    for bank in (dense, sparse):
        x, weights = drawn(2, 4, 6).requires_grad_(), drawn(2, 3, seed=3).requires_grad_()
        out = bank(x, weights)
        out.square().sum().backward()
        found.append((out, x.grad, weights.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_largest_entries_are_kept_and_saved_as_float32():
    matrix = torch.tensor([[3.0, -1.0, 0.5], [0.0, 2.0, -4.0]])
    bank = SparseBank((2, 3), 1, 3, False)
    bank.fill(0, matrix)
    wanted = torch.tensor([[3.0, 0, 0], [0, 2.0, -4.0]])
    assert torch.equal(bank.matrices()[0].to_dense(), wanted)
    saved = {name: value.float() for name, value in bank.state_dict().items()}
    again = SparseBank((2, 3), 1, 3, False)
    again.load_state_dict(saved)
    assert torch.equal(again.matrices()[0].to_dense(), wanted)
    x = drawn(4, 3)
    torch.testing.assert_close(again(x, torch.ones(4, 1)), F.linear(x, wanted), **CLOSE)


def test_of_equal_entries_the_first_are_kept():
    assert largest(torch.ones(2, 3), 2).tolist() == [0, 1]
