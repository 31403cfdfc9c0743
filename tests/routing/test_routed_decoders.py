"""Gates in decoders: for a token, so that nothing reads the future; in encoders beside them for a sample."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import tiny
from tangora.adapters.adapter import Adapter, BaseInfo, Metadata
from tangora.errors import ModelError
from tangora.modular.network import attached
from tangora.routing.block_gates import gates_of
from tangora.routing.mlp_experts import block_network, parts_of
from tangora.routing.routers.e_wemoe import EWemoeSettings
from tangora.routing.routers.wemoe import WemoeSettings
from tangora.updates.task_vector import LowRank

CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # float32 through four layers, with gates of size 10 and logits of size 30


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(tiny.llama(tmp_path_factory.mktemp("llama"))).eval()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return AutoModelForSeq2SeqLM.from_pretrained(tiny.t5(tmp_path_factory.mktemp("t5"))).eval()


def experts(model, names):
    made = {}
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        updates = {}
        for name, layer in model.named_modules():
            if name.rpartition(".")[2] in names:
                out, inside = layer.weight.shape
                factors = torch.randn(out, 2, generator=draw), torch.randn(2, inside, generator=draw)
                updates[name] = LowRank(*factors, 0.1)
        made[f"task{seed}"] = Adapter(updates, Metadata(task=f"task{seed}", base=BaseInfo(model="tiny")))
    return made


def network(model, names, settings, **gates):
    found = experts(model, names)
    parts = parts_of(found, model, settings.blocks, settings.elsewhere)
    made, gate_at = gates_of(parts.blocks, 2, settings, 0, **gates)
    with torch.no_grad():
        for gate in made.values():
            for parameter in gate.parameters():
                parameter.mul_(60 if parameter.ndim == 2 else 1)
    return block_network(list(found), parts, made, gate_at)


def test_later_tokens_change_no_earlier_logits(llama):
    one = torch.tensor([[3, 9, 14, 8, 21]])
    other = torch.tensor([[3, 9, 14, 30, 2]])
    with attached(llama, network(llama, ["up_proj", "down_proj", "q_proj"], WemoeSettings())), torch.no_grad():
        a, b = (llama(input_ids=ids).logits for ids in (one, other))
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3:], b[:, 3:], atol=1e-3)


def test_a_generation_with_a_cache_says_what_single_passes_say(llama):
    ids = torch.tensor([[3, 9, 14]])
    with attached(llama, network(llama, ["gate_proj", "down_proj"], WemoeSettings())), torch.no_grad():
        generated = llama.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        for position in range(3, generated.shape[1]):
            logits = llama(input_ids=generated[:, :position]).logits[0, -1]
            assert int(logits.argmax()) == int(generated[0, position])


def test_padding_on_the_left_changes_nothing(llama):
    with attached(llama, network(llama, ["up_proj"], WemoeSettings())), torch.no_grad():
        bare = llama(input_ids=torch.tensor([[3, 9, 14]])).logits
        mask = torch.tensor([[0, 0, 1, 1, 1]])
        padded = llama(input_ids=torch.tensor([[0, 0, 3, 9, 14]]), attention_mask=mask).logits
    torch.testing.assert_close(padded[:, 2:], bare, **CLOSE)


def test_the_mean_over_a_batch_is_refused(llama):
    with pytest.raises(ModelError, match="reads the future"):
        network(llama, ["up_proj"], WemoeSettings(decide="batch_mean"))


def test_an_encoder_decides_for_a_sample_and_its_decoder_for_a_token(t5):
    made = network(t5, ["wi_0", "wo"], WemoeSettings())
    kinds = {name: (gate["decide"], gate["causal"]) for name, gate in made.settings.gates.items()}
    assert all(causal == ([name] if name.startswith("decoder") else []) for name, (_, causal) in kinds.items())
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with attached(t5, made), torch.no_grad():
        a, b = (t5(**inputs, decoder_input_ids=torch.tensor([[0, 8, last]])).logits for last in (9, 11))
        shapes = {at: weights.shape for (_, at), weights in made._decided.items()}
    assert torch.equal(a[:, :2], b[:, :2])
    assert all(shape == ((1, 3, 2) if at.startswith("decoder") else (1, 2)) for at, shape in shapes.items())


@pytest.mark.parametrize("shared", [False, True])
def test_a_generation_leaves_padding_out_as_a_pass_does(t5, shared):
    settings = EWemoeSettings(shared=shared) if shared else WemoeSettings()
    alone = {"input_ids": torch.tensor([[5, 6, 1]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = {"input_ids": torch.tensor([[5, 6, 1, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    with attached(t5, network(t5, ["wi_0", "wi_1", "wo"], settings, shared=shared)), torch.no_grad():
        t5(input_ids=torch.ones(1, 5, dtype=torch.long), attention_mask=torch.ones(1, 5, dtype=torch.long),
           decoder_input_ids=torch.tensor([[0]]))  # the mask of another batch  # fmt: skip
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        options |= {"output_logits": True, "return_dict_in_generate": True}
        one, other = (t5.generate(**inputs, **options) for inputs in (alone, padded))
        passed = t5(**padded, decoder_input_ids=one.sequences[:, :-1]).logits
    torch.testing.assert_close(torch.stack(other.logits, 1), torch.stack(one.logits, 1), **CLOSE)
    torch.testing.assert_close(passed, torch.stack(one.logits, 1), **CLOSE)


def test_names_of_the_model_with_a_head_are_those_of_its_backbone(llama):
    bare = llama.model
    found = experts(llama, ["up_proj"])
    parts = parts_of(found, bare, None, 0.3)
    assert sorted(parts.sites) == sorted(next(iter(found.values())).updates)
    made, gate_at = gates_of(parts.blocks, 2, WemoeSettings(), 0)
    with attached(bare, block_network(list(found), parts, made, gate_at)), torch.no_grad():
        inside = bare(input_ids=torch.tensor([[3, 4]])).last_hidden_state
    with attached(llama, network_like(llama, found, made)), torch.no_grad():
        around = llama.model(input_ids=torch.tensor([[3, 4]])).last_hidden_state
    torch.testing.assert_close(inside, around, **CLOSE)


def network_like(model, found, gates):
    """The network of a model around a backbone, with the gates of the backbone's network."""
    parts = parts_of(found, model, None, 0.3)
    made, gate_at = gates_of(parts.blocks, 2, WemoeSettings(), 0)
    for name, gate in made.items():
        gate.load_state_dict(gates[name.removeprefix("model.")].state_dict())
    return block_network(list(found), parts, made, gate_at)
