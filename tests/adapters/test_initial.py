import math

import peft
import pytest
import torch
from torch import nn

from tangora.adapters import initial
from tangora.errors import ModelError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 4)

    def forward(self, ids):
        return self.second(torch.relu(self.first(self.words(ids))))


def adapted(init=True, targets=("words", "first", "second"), **settings):
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=list(targets), init_lora_weights=init, **settings)
    return peft.get_peft_model(Net(), config)


def test_draw_depends_on_seed_site_task_and_nothing_else():
    one = initial.draw(3, "a.query", 4, 16)
    torch.manual_seed(1)
    torch.rand(7)
    assert torch.equal(one, initial.draw(3, "a.query", 4, 16))
    others = [
        initial.draw(4, "a.query", 4, 16),
        initial.draw(3, "a.value", 4, 16),
        initial.draw(3, "a.query", 4, 16, task="sst2"),
        initial.draw(3, "a.query", 4, 16, task="trec6"),
    ]
    for i, other in enumerate(others):
        assert not torch.equal(one, other)
        assert all(not torch.equal(other, later) for later in others[i + 1 :])


def test_draw_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    initial.draw(0, "x", 2, 2)
    assert torch.equal(torch.rand(3), expected)


def test_draw_has_the_distribution_of_peft():
    a = initial.draw(0, "x", 64, 400)
    layer = nn.Linear(400, 64, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    assert a.abs().max() <= 1 / math.sqrt(400)
    assert a.std() == pytest.approx(layer.weight.std().item(), rel=0.03)
    assert initial.draw(0, "x", 64, 400, kind="gaussian").std() == pytest.approx(1 / 64, rel=0.03)


def test_draw_has_not_changed():
    """Adapters store the seed in place of φ₀: these numbers may never change."""
    first = initial.draw(0, "encoder.query", 2, 3)
    expected = torch.tensor([[-0.55475312, 0.10811277, 0.42295474], [-0.47749552, 0.31744763, -0.12705065]])
    assert torch.allclose(first, expected, atol=1e-7, rtol=0)
    other = initial.draw_factors(0, "words", 1, (2, 3), embedding=True).b.flatten()
    assert torch.allclose(other, torch.tensor([-0.29742602, 0.56163192]), atol=1e-7, rtol=0)


def test_draw_refuses_an_unknown_kind():
    with pytest.raises(ModelError, match=r"no such initial value, got 'pissa'"):
        initial.draw(0, "x", 2, 2, kind="pissa")


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_set_initial_overwrites_what_peft_drew(init):
    torch.manual_seed(5)
    one = adapted(init)
    torch.manual_seed(6)
    other = adapted(init)
    start = initial.set_initial_(one, 0)
    again = initial.set_initial_(other, 0)
    assert list(start) == ["words", "first", "second"]
    assert initial.fingerprint(start) == initial.fingerprint(again)
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items() if "lora" in name)
    layer = one.base_model.model.first
    assert torch.equal(layer.lora_A["default"].weight, initial.draw(0, "first", 2, 6, kind=initial.DRAWN[init]))
    assert not layer.lora_B["default"].weight.any()
    assert start["first"].scaling == 3.0


def test_an_embedding_starts_with_a_zero_a_and_a_random_b():
    model = adapted()
    start = initial.set_initial_(model, 0)["words"]
    words = model.base_model.model.words
    assert not words.lora_embedding_A["default"].any()
    assert torch.equal(words.lora_embedding_B["default"], start.b)
    assert start.shape == (6, 11)
    assert start.b.std() > 0.3


@pytest.mark.parametrize("init", [False, "orthogonal"])
def test_pefts_own_values_are_kept_and_read(init):
    model = adapted(init, targets=("first", "second"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = initial.set_initial_(model, 0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(start["first"].b, model.base_model.model.first.lora_B["default"].weight)
    assert start["first"].b.any()


def test_per_task_values_differ():
    shared, one, two = (initial.set_initial_(adapted(), 0, task=task) for task in (None, "sst2", "trec6"))
    assert len({initial.fingerprint(start) for start in (shared, one, two)}) == 3


def test_the_fingerprint_sees_every_entry_and_name():
    start = initial.set_initial_(adapted(), 0)
    print_ = initial.fingerprint(start)
    assert print_ == initial.fingerprint(dict(reversed(list(start.items()))))
    renamed = {("third" if site == "second" else site): update for site, update in start.items()}
    assert initial.fingerprint(renamed) != print_
    start["second"].b[0, 0] = 1.0
    assert initial.fingerprint(start) != print_


@pytest.mark.parametrize(("init", "reason"), [("eva", "needs training data"), ("pissa", "changes the base weights")])
def test_values_that_no_seed_gives_are_refused(init, reason):
    with pytest.raises(ModelError, match=reason):
        initial.kind_of(init)


def test_an_unknown_adapter_and_another_peft_method_are_refused():
    with pytest.raises(ModelError, match=r"no such adapter in the model, got 'mine'.*The model has: default"):
        initial.set_initial_(adapted(), 0, "mine")
    other = peft.get_peft_model(Net(), peft.LoHaConfig(target_modules=["first"]))
    with pytest.raises(ModelError, match="only LoRA adapters are supported, got 'LOHA'"):
        initial.set_initial_(other, 0)
    with pytest.raises(ModelError, match=r"wrap the model|Wrap the model"):
        initial.set_initial_(Net(), 0)
