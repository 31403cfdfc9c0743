"""Sums of sparse experts for a sample, a few rows at a time, against products with the experts one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tangora.modular import mixing
from tangora.modular.banks import SparseBank, over_tokens, whole

EXPERTS, OUT, IN = 3, 10, 6
CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # float64 sums of at most EXPERTS * OUT * IN = 180 terms of size 1


def bank_of(keep=0.3, bias=False, out=OUT, inside=IN, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    bank = SparseBank((out, inside), EXPERTS, max(1, round(keep * out * inside)), bias).requires_grad_(False)
    for expert in range(EXPERTS):
        bank.fill(expert, torch.randn(out, inside, generator=draw))
    if bias:
        bank.bias.copy_(torch.randn(EXPERTS, out, generator=draw))
    return bank.to(dtype)


def one_by_one(bank, x, weights):
    """What the sparse matrices add, each by itself."""
    weights, total = over_tokens(weights, x.ndim), 0.0
    for i, matrix in enumerate(bank.matrices()):
        out = x @ matrix.to_dense().T + (0.0 if bank.bias is None else bank.bias[i])
        total = total + weights[..., i : i + 1] * out
    return total


def given(*tokens, batch=4, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    shapes = (batch, *tokens, IN), (batch, EXPERTS)
    return [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.fixture(params=[1, 3, OUT], ids=lambda rows: f"{rows} rows at a time")
def rows(request, monkeypatch):
    """10 rows in pieces of 1, 3 (the last of 1) and 10."""
    monkeypatch.setattr(mixing, "rows_of_a_piece", lambda x, weights: request.param)
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keep", [1e-9, 0.3, 1.0])
@pytest.mark.parametrize("tokens", [(5,), (2, 3)], ids=str)
def test_values_and_gradients_are_those_of_the_experts_one_by_one(rows, tokens, keep, bias):
    bank, (x, weights) = bank_of(keep, bias), given(*tokens)
    found, wanted = bank(x, weights), one_by_one(bank, x, weights)
    torch.testing.assert_close(found, wanted, **CLOSE)
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, (x, weights), grad), torch.autograd.grad(wanted, (x, weights), grad), strict=True
    ):
        torch.testing.assert_close(one, other, **CLOSE)


def test_the_gradients_are_the_slopes(rows):
    bank, inputs = bank_of(bias=True), given(3, batch=2)
    assert torch.autograd.gradcheck(bank, inputs)


@pytest.mark.parametrize("needed", [0, 1])
def test_only_the_gradient_that_is_needed_is_computed(needed):
    bank, inputs = bank_of(), given(3)
    inputs[1 - needed].requires_grad_(False)
    bank(*inputs).sum().backward()
    wanted = given(3)
    one_by_one(bank, *wanted).sum().backward()
    torch.testing.assert_close(inputs[needed].grad, wanted[needed].grad, **CLOSE)
    assert inputs[1 - needed].grad is None


def test_one_expert_at_full_weight_is_that_expert(rows):
    bank, (x, _) = bank_of(bias=True), given(5)
    for expert in range(EXPERTS):
        hot = torch.zeros(len(x), EXPERTS, dtype=x.dtype)
        hot[:, expert] = 1.0
        wanted = x @ bank.matrices()[expert].to_dense().T + bank.bias[expert]
        torch.testing.assert_close(bank(x, hot), wanted, **CLOSE)


def test_a_sample_answers_as_alone():
    bank, (x, weights) = bank_of(), given(5)
    order = torch.tensor([2, 0, 3, 1])
    together = bank(x, weights)
    torch.testing.assert_close(bank(x[order], weights[order]), together[order], **CLOSE)
    for row in range(len(x)):
        torch.testing.assert_close(bank(x[row : row + 1], weights[row : row + 1])[0], together[row], **CLOSE)


def test_a_decision_for_a_token_or_the_mean_of_a_batch_is_the_same_sum():
    bank, (x, weights) = bank_of(), given(5)
    each = weights.unsqueeze(1).expand(-1, 5, -1)
    torch.testing.assert_close(bank(x, each), bank(x, weights), **CLOSE)
    mean = weights.mean(0, keepdim=True).expand_as(weights)
    torch.testing.assert_close(bank(x, mean), one_by_one(bank, x, mean), **CLOSE)
    torch.testing.assert_close(bank(x[:, 0], weights), bank(x[:, :1], weights)[:, 0], **CLOSE)


def test_inputs_in_bfloat16_are_computed_in_float32():
    bank, (x, weights) = bank_of(dtype=torch.float32), given(5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bank(x, weights.float())
        found.sum().backward()
    assert (found.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
    # float32 sums of 18 products; rounding of inputs to bfloat16 anywhere inside would show at 4e-3
    torch.testing.assert_close(found, one_by_one(bank, x.float(), weights.float()), rtol=1e-5, atol=1e-5)


def test_matrices_that_are_kept_give_the_same_bits(rows):
    bank, (x, weights) = bank_of(), given(5)
    plain = bank(x, weights)
    with whole(nn.ModuleList([bank])):
        for _ in range(2):
            assert torch.equal(bank(x, weights), plain)
        assert bank._whole[1].shape == (EXPERTS, OUT * IN)
        bank.values.mul_(2.0)  # what is kept follows the values
        torch.testing.assert_close(bank(x, weights), 2 * plain, **CLOSE)
    assert bank._whole is None
    assert not bank.keep_whole


def test_only_matrices_within_the_limit_are_kept():
    size = EXPERTS * OUT * IN * 8
    banks = nn.ModuleList([bank_of(), bank_of(out=2 * OUT), bank_of()])
    with pytest.raises(KeyError), whole(banks, limit=2 * size):
        assert [bank.keep_whole for bank in banks] == [True, False, True]
        raise KeyError
    assert [bank.keep_whole for bank in banks] == [False] * 3


def test_memory_of_a_piece_is_bounded():
    x, weights = torch.zeros(8, 32, 384), torch.zeros(8, 7)
    rows = mixing.rows_of_a_piece(x, weights)
    assert rows > 1
    assert rows * 384 * 4 * (8 + 7) <= mixing._BYTES["cpu"]
    assert mixing.rows_of_a_piece(torch.zeros(64, 1, 2**20), weights) == 1


def test_entries_named_twice_add_up_as_in_sparse_products():
    bank, (x, weights) = bank_of(), given(5)
    row = int((bank.counts[0] >= 2).nonzero()[0])
    first = int(bank.counts[0, :row].sum())
    bank.columns[0, first + 1] = bank.columns[0, first]
    torch.testing.assert_close(bank(x, weights), one_by_one(bank, x, weights), **CLOSE)
