"""The expansion against finite differences, torch.func.jvp and autograd through it, on CLIP, BERT and T5 shapes."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

import tiny
from tangora.adapters.adapter import Adapter
from tangora.adapters.metadata import Metadata
from tangora.errors import ModelError
from tangora.tangent import TangentModel, expand_lora
from tangora.tangent._dual import expand_last
from tangora.tangent.model import has_expansion
from tangora.updates.task_vector import Dense, LowRank

KINDS = {
    "clip": (["q_proj", "v_proj", "fc1"], lambda m, x: m(pixel_values=x).image_embeds),
    "bert": (["query", "key", "dense"], lambda m, x: m(input_ids=x, attention_mask=_mask(x)).last_hidden_state),
    "t5": (["q", "v", "wo"], lambda m, x: m(input_ids=x, attention_mask=_mask(x), decoder_input_ids=x[:, :3]).logits),
}


def _mask(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return mask


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("models")
    return {kind: getattr(tiny, kind)(root / kind) for kind in KINDS}


def load(kind: str, folders: dict, attention: str | None = None) -> tuple[nn.Module, torch.Tensor]:
    import transformers

    classes = {
        "clip": transformers.CLIPVisionModelWithProjection,
        "bert": transformers.BertModel,
        "t5": transformers.T5ForConditionalGeneration,
    }
    options = {} if attention is None else {"attn_implementation": attention}
    model = classes[kind].from_pretrained(folders[kind], **options).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    if kind == "clip":
        return model, torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    return model, torch.randint(4, 30, (2, 7), generator=generator)


def adapted(kind: str, folders: dict, *, both: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """A PeftModel expanded at φ₀ and moved away from it; ``both``: B₀ is not zero and A trains too."""
    model, x = load(kind, folders)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=KINDS[kind][0]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if both or "lora_A" in name else 0.0))
    wrapped = expand_lora(wrapped.double().eval())
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return wrapped, x


def plain_function(wrapped: nn.Module, kind: str, x: torch.Tensor, start: dict[str, torch.Tensor]):
    """f(φ) of stock peft, and φ − φ₀."""
    here = {n: p.detach().clone() for n, p in wrapped.named_parameters() if "lora_" in n}
    for module in wrapped.modules():
        if getattr(module, "lora_variant", None):
            module.lora_variant.clear()
    move = {n: here[n] - start[n] for n in here}
    return lambda phi: _call(wrapped, kind, x, phi), move


def _call(wrapped: nn.Module, kind: str, x: torch.Tensor, phi: dict[str, torch.Tensor]) -> torch.Tensor:
    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wrapped

        def forward(self) -> torch.Tensor:
            return KINDS[kind][1](self.inner, x)

    return functional_call(Bound(), {f"inner.{n}": p for n, p in phi.items()}, ())


def starts(wrapped: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, module in wrapped.named_modules():
        for adapter, variant in getattr(module, "lora_variant", {}).items():
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            if variant.frozen == "a":
                values = a, torch.zeros_like(b)
            else:
                values = (getattr(module, f"tangora_{f}0_{adapter}") for f in "ab")
            for letter, value in zip("AB", values, strict=True):
                found[f"{name}.lora_{letter}.{adapter}.weight"] = value.detach().clone()
    return found


@pytest.mark.parametrize("both", [False, True], ids=["b0-zero", "b0-not-zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_jvp_and_finite_differences(kind: str, both: bool, folders: dict) -> None:
    wrapped, x = adapted(kind, folders, both=both)
    start = starts(wrapped)
    expanded = KINDS[kind][1](TangentModel(wrapped), x).detach()
    function, move = plain_function(wrapped, kind, x, start)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, tangent = jvp(function, (start,), (move,))
        torch.testing.assert_close(expanded, value + tangent, rtol=1e-9, atol=1e-9)
        assert float(tangent.abs().max()) > 1e-3
        h = 1e-3 if kind == "t5" else 1e-5  # T5 computes its softmax and norms in float32, whatever the weights are
        ahead = function({n: start[n] + h * move[n] for n in start})
        back = function({n: start[n] - h * move[n] for n in start})
    slope = (ahead - back) / (2 * h)
    assert float((expanded - value - slope).norm() / slope.norm()) < (1e-2 if kind == "t5" else 1e-7)


@pytest.mark.parametrize("both", [False, True], ids=["b0-zero", "b0-not-zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_equals_autograd_through_the_jvp(kind: str, both: bool, folders: dict) -> None:
    wrapped, x = adapted(kind, folders, both=both)
    start = starts(wrapped)
    KINDS[kind][1](TangentModel(wrapped), x).square().mean().backward()
    mine = {n: p.grad for n, p in wrapped.named_parameters() if p.requires_grad and ".pooler." not in n}
    function, move = plain_function(wrapped, kind, x, start)
    leaves = {n: m.clone().requires_grad_() for n, m in move.items()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, tangent = jvp(function, (start,), (leaves,))
    (value + tangent).square().mean().backward()
    assert set(mine) <= set(leaves)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, leaves[name].grad, rtol=1e-8, atol=1e-10)
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_in_the_bare_model_is_the_trained_expansion(kind: str, folders: dict) -> None:
    wrapped, x = adapted(kind, folders)
    expected = KINDS[kind][1](TangentModel(wrapped), x).detach()
    from tangora.tangent.linearization import linear_factors

    adapter = Adapter(linear_factors(wrapped), Metadata(linearize="model"))
    bare, _ = load(kind, folders)
    with torch.no_grad():
        torch.testing.assert_close(KINDS[kind][1](TangentModel(bare, adapter), x), expected, rtol=1e-4, atol=1e-4)
        dense = Adapter({s: Dense(u.dense()) for s, u in adapter.updates.items()}, Metadata(linearize="model"))
        torch.testing.assert_close(KINDS[kind][1](TangentModel(bare, dense), x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_attention_that_is_fused_equals_eager(kind: str, folders: dict) -> None:
    results = []
    for attention in ("sdpa", "eager"):
        model, x = load(kind, folders, attention)
        site = next(n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(KINDS[kind][0][0]))
        shape = model.get_submodule(site).weight.shape
        generator = torch.Generator().manual_seed(1)
        update = LowRank(*(torch.randn(s, generator=generator) for s in ((shape[0], 2), (2, shape[1]))))
        with torch.no_grad():
            results.append(KINDS[kind][1](TangentModel(model, Adapter({site: update})), x))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)  # eager takes its softmax in float32


def test_half_precision_follows_single(folders: dict) -> None:
    model, x = load("bert", folders)
    update = Adapter({"encoder.layer.0.attention.self.query": LowRank(torch.ones(32, 1), torch.ones(1, 32) / 32)})
    with torch.no_grad():
        exact = KINDS["bert"][1](TangentModel(model.float(), update), x)
        half = KINDS["bert"][1](TangentModel(model.bfloat16(), update), x)
        assert half.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            mixed = KINDS["bert"][1](TangentModel(model.float(), update), x)
    for found in (half.float(), mixed.float()):
        assert float((found - exact).norm() / exact.norm()) < 0.05


class Spectral(nn.Module):
    """Has an operator without a forward derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return torch.nn.functional.ctc_loss(
            y[:, None].log_softmax(-1), torch.tensor([[1]]), torch.tensor([len(x)]), torch.tensor([1])
        )


def test_an_operator_without_forward_derivative_is_named() -> None:
    model = TangentModel(Spectral(), Adapter({"first": LowRank(torch.ones(4, 1), torch.ones(1, 4))}))
    with pytest.raises(ModelError, match=r"no forward derivative, got .*ctc_loss.*linearize: model"):
        model(torch.randn(3, 4))


@torch.library.custom_op("tangora_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """Has a gradient, and no forward derivative."""
    return 2 * x


twice.register_autograd(lambda _, gradient: 2 * gradient)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def applied_twice(x: torch.Tensor) -> torch.Tensor:
    return Twice.apply(x)


class Then(nn.Module):
    def __init__(self, last) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("recorded", [False, True], ids=["without gradient", "with gradient"])
@pytest.mark.parametrize(("last", "name"), [(twice, "tangora_tests::twice"), (applied_twice, "applied_twice")])
def test_operators_of_others_do_not_lose_the_tangent(last, name, recorded) -> None:
    """Where no gradient is recorded, torch evaluates a custom operator on the primal alone."""
    model = TangentModel(Then(last), Adapter({"first": LowRank(torch.ones(4, 1), torch.ones(1, 4))}))
    with torch.set_grad_enabled(recorded), pytest.raises(ModelError, match=rf"no forward derivative, got .{name}"):
        model(torch.randn(3, 4))


def test_compiled_code_is_called_as_it_was_written(monkeypatch) -> None:
    """A compiled graph has no tangents."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    update = Adapter({"first": LowRank(torch.ones(4, 1), torch.ones(1, 4))})
    module, x = Then(torch.compile(torch.sin, backend=lambda graph, _: lambda *inputs: refused())), torch.randn(3, 4)
    with torch.no_grad():
        with pytest.raises(AssertionError, match="compiled code was called"):
            module(x)
        found = TangentModel(module, update)(x)
        module.last = torch.sin
        torch.testing.assert_close(found, TangentModel(module, update)(x))


def refused():
    raise AssertionError("compiled code was called")


def test_an_expanded_peft_model_does_not_run_by_itself(folders: dict) -> None:
    wrapped, x = adapted("bert", folders)
    assert has_expansion(wrapped)
    with pytest.raises(ModelError, match="expanded as a whole"):
        KINDS["bert"][1](wrapped, x)


def test_nothing_to_expand_is_refused() -> None:
    with pytest.raises(ModelError, match="no adapter to expand in"):
        TangentModel(nn.Linear(2, 2))


def test_a_last_part_with_dropout_has_one_mask():
    x, dx = torch.ones(4, 50), torch.full((4, 50), 3.0)
    torch.manual_seed(0)
    primal, tangent = expand_last(torch.nn.Dropout(0.5).train(), x, dx)
    assert torch.equal(tangent, 3 * primal)
    assert 0 < (primal == 0).float().mean() < 1
    again = torch.nn.Dropout(0.5).train()(x)
    assert not torch.equal(again == 0, primal == 0), "random numbers go on afterwards"
