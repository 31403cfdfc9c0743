"""Every rule against torch's own derivative; what autograd keeps of it; attention in blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

from graphs import kept_tangents
from tangora.tangent import _attention
from tangora.tangent._dual import dual, dual_numbers, expand, parts
from tangora.tangent._rules import RULES


def grouped(x: Tensor, y: Tensor) -> Tensor:
    """Rows 0 and 1 with a first matrix, row 2 with a second one, which is the first transposed."""
    import transformers.integrations.moe  # noqa: F401  registers the operator

    matrices = torch.stack([y.T @ y, y.T @ (y * y)])
    return torch.ops.transformers.grouped_mm_fallback(x, matrices, offs=torch.tensor([2, 3]))


# of x and y, both [3, 4] and positive
CASES = {
    "both": lambda x, y: x * y,
    "a column": lambda x, y: x * y[:, :1],
    "a number": lambda x, y: 1.702 * x + y * 2,
    "quick gelu": lambda x, y: y + x * torch.sigmoid(1.702 * x),
    "named": lambda x, y: torch.mul(x, other=y),
    "matmul": lambda x, y: x @ y.T,
    "bmm": lambda x, y: torch.bmm(x[None], y.T[None]),
    "addmm": lambda x, y: torch.addmm(y[:, 0], x, y.T, beta=0.7, alpha=1.3),
    "addmm, named": lambda x, y: torch.addmm(y[:, 0], mat2=y.T, mat1=x),
    "baddbmm": lambda x, y: torch.baddbmm(y[None, :, :3], x[None], y.T[None], beta=0.7),
    "grouped": grouped,
    "linear": lambda x, y: F.linear(x, y, y[:, 0]),
    "quotient": lambda x, y: x / y,
    "quotient, floor": lambda x, y: torch.div(x, 0.3, rounding_mode="floor") + y,
    "by a number": lambda x, y: x / 2 + y,
    "square": lambda x, y: x.pow(2) + y**2 + torch.square(x),
    "powers": lambda x, y: torch.pow(x, 3.0) + y**0.5 + x**-1 + y**0,
    "exponent": lambda x, y: x**y,
    "rsqrt": lambda x, y: torch.rsqrt(x) + y.rsqrt(),
    "sqrt": lambda x, y: x.sqrt() + torch.sqrt(y),
    "exp": lambda x, y: x.exp() + torch.exp(y),
    "relu": lambda x, y: F.relu(x - 1) + torch.relu(y - 1),
    "silu": lambda x, y: F.silu(x - 1) + F.silu(y - 1, inplace=True),
    "tanh": lambda x, y: torch.tanh(x) + y.tanh(),
    "gelu": lambda x, y: F.gelu(x - 1) + F.gelu(y - 1, approximate="tanh"),
    "softmax": lambda x, y: x.softmax(-1) + torch.softmax(y, 0) + F.softmax(x, -1, dtype=torch.float64),
    "layer norm": lambda x, y: F.layer_norm(x, (4,), y[0], y[1]),
    "rms norm": lambda x, y: F.rms_norm(x, (4,), y[0], 1e-3) + F.rms_norm(y, (3, 4)),
    "out": lambda x, y: torch.mul(x.detach(), 2, out=torch.empty(3, 4, dtype=x.dtype)) + y,
}


def operands() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.5 + torch.rand(3, 4, dtype=torch.float64, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("name", CASES)
def test_a_rule_equals_the_derivative_of_torch(name: str) -> None:
    x, y, dx, dy = operands()
    function = CASES[name]
    if name == "grouped":
        value, moved = jvp(lambda x, y: torch.cat([x[:2] @ y.T @ y, x[2:] @ y.T @ (y * y)]), (x, y), (dx, dy))
    else:
        value, moved = jvp(function, (x, y), (dx, dy))
    primal, tangent = expand(lambda: function(dual(x, dx), dual(y, dy)))
    torch.testing.assert_close((primal, tangent), (value, moved), rtol=1e-12, atol=1e-12)


# of the others, one falls back on torch, and the result of the other is of no parameter
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"addmm, named", "exponent", "silu", "out"}))
def test_a_rule_keeps_no_tangent_and_records_no_graph_of_it(name: str) -> None:
    """Left to autograd, what it saves would keep the tangents, and how they came about."""
    x, y, dx, dy = operands()
    function = CASES[name]
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    with dual_numbers():
        found = function(*(dual(leaf * 1, tangent) + 0 for leaf, tangent in zip(leaves, (dx, dy), strict=True)))
        primal, tangent = torch.autograd.forward_ad.unpack_dual(found)
        assert primal.requires_grad
        assert not tangent.requires_grad
        assert not kept_tangents(found)
    primal.square().sum().backward()
    again = x.clone().requires_grad_(), y.clone().requires_grad_()
    function(*again).square().sum().backward()
    for mine, theirs in zip(leaves, again, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_every_rule_has_a_case() -> None:
    called = set()

    class Recorded(dict):
        def get(self, key, default=None):
            called.add(key)
            return super().get(key, default)

    patch = pytest.MonkeyPatch()
    patch.setattr("tangora.tangent._rules.RULES", Recorded(RULES))
    x, y, dx, dy = operands()
    for function in CASES.values():
        expand(lambda function=function: function(dual(x, dx), dual(y, dy)))
    patch.undo()
    names = {getattr(f, "__name__", f).lstrip("_") for f in RULES}
    synonyms = {"multiply", "mm", "divide", "true_divide", "grouped_mm"}  # the last is tested by mixtures of experts
    assert names - synonyms - {getattr(f, "__name__", f).lstrip("_") for f in called} == {
        "scaled_dot_product_attention"
    }


OPTIONS = [{}, {"is_causal": True}, {"dropout_p": 0.4}, {"scale": 0.7}, {"enable_gqa": True}, {"learned": True}]


@pytest.mark.parametrize("block", [2**24, 100, 1], ids=["whole", "blocks", "rows"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "mask"))
def test_the_rule_of_attention_equals_its_parts(options: dict, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_attention, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    heads = 2 if options.get("enable_gqa") else 4
    shapes = [(2, 4, 5, 3), (2, heads, 6, 3), (2, heads, 6, 3)]
    mask, options = None, dict(options)
    if not options:
        mask = torch.rand(2, 1, 5, 6, generator=generator) > 0.3
        mask[..., 0] = True
    if options.pop("learned", False):
        shapes.append((4, 5, 6))
    values, moves = ([torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(2))

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = mask) -> Tensor:
        torch.manual_seed(7)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, **options)

    primal, tangent = expand(lambda: attend(*map(dual, values, moves)))
    if "dropout_p" in options:  # the mask is drawn otherwise: compare with differences of the rule itself
        ahead, back = (
            expand(lambda h=h: attend(*(dual(v + h * m, m) for v, m in zip(values, moves, strict=True))))[0]
            for h in (1e-5, -1e-5)
        )
        torch.testing.assert_close(tangent, (ahead - back) / 2e-5, rtol=1e-6, atol=1e-8)
        return
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = jvp(attend, tuple(values), tuple(moves))
    torch.testing.assert_close((primal, tangent), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("moving", range(3), ids=["query", "key", "value"])
def test_attention_with_one_tangent(moving: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64) for _ in range(4)]

    def attend(one: Tensor) -> Tensor:
        chosen = [one if i == moving else tensors[i] for i in range(3)]
        return F.scaled_dot_product_attention(*chosen, is_causal=True)

    found = expand(lambda: attend(dual(tensors[moving], tensors[3])))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = jvp(attend, (tensors[moving],), (tensors[3],))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_part_of_a_dual_number_does_not_keep_its_tangent() -> None:
    """A sum is made by torch: its primal alone would be a view of it."""
    x = torch.ones(3, requires_grad=True)
    with dual_numbers():
        total = dual(x * 1, torch.ones(3)) + 1
        primal, tangent = parts(total)
        held = torch._C._storage_Use_Count(tangent.untyped_storage()._cdata)
        product = primal * primal
        del total
        assert torch._C._storage_Use_Count(tangent.untyped_storage()._cdata) == held - 1
    product.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 4.0))
