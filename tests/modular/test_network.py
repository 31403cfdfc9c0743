"""Networks that are put into a backbone, and taken out again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tangora.adapters.adapter import Adapter, Metadata, load
from tangora.errors import AdapterError, FusionError, ModelError
from tangora.fusion.fusion import Fusion
from tangora.modes.modular import network_of, with_tensors
from tangora.modular.network import NAME, Network, attach, attached
from tangora.testing._tiny import tiny_base
from tangora.updates.task_vector import Dense


class Shift(Network):
    """Adds a vector to the output of the first layer, at tokens only."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.ones(width))

    def connect(self, backbone):
        yield from super().connect(backbone)
        yield backbone.encoder.layer[0].output.dense.register_forward_hook(self._add)

    def _add(self, module, inputs, output):
        mask = self.mask_of(output)
        return output + self.vector * (1.0 if mask is None else mask.unsqueeze(-1))


class Failing(Network):
    def connect(self, backbone):
        yield from super().connect(backbone)
        raise ModelError("nothing to connect to")


def answers(model):
    ids = torch.arange(6).reshape(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def test_a_network_answers_while_it_is_attached_and_leaves_nothing():
    backbone = tiny_base().backbone
    before, names = answers(backbone), [name for name, _ in backbone.named_parameters()]
    with attached(backbone, Shift()):
        assert not torch.equal(answers(backbone), before)
        assert f"{NAME}.vector" in dict(backbone.named_parameters())
    assert torch.equal(answers(backbone), before)
    assert [name for name, _ in backbone.named_parameters()] == names
    assert not backbone._forward_pre_hooks
    assert not backbone.encoder.layer[0].output.dense._forward_hooks


def test_a_network_that_cannot_be_connected_leaves_nothing():
    backbone = tiny_base().backbone
    with pytest.raises(ModelError, match="nothing to connect to"), attached(backbone, Failing()):
        pass
    assert not hasattr(backbone, NAME)
    assert not backbone._forward_pre_hooks


def test_a_second_network_is_refused():
    backbone = tiny_base().backbone
    with attached(backbone, Shift()), pytest.raises(ModelError, match="added modules already"):
        attach(backbone, Shift())


def test_padding_is_known_by_the_mask():
    backbone = tiny_base().backbone
    seen = {}

    class Watching(Shift):
        def _add(self, module, inputs, output):
            seen["mask"] = self.mask_of(output)
            return output

    with attached(backbone, Watching()):
        answers(backbone)
        assert torch.equal(seen["mask"], torch.tensor([[1.0, 1, 1], [1, 1, 0]]))
        backbone(input_ids=torch.ones(1, 2, dtype=torch.long))
        assert seen["mask"] is None


def test_tensors_that_do_not_fit_are_refused():
    adapter = Adapter({"vector": Dense(torch.zeros(3))}, Metadata(kind="modules", train="lora"))
    with pytest.raises(AdapterError, match=r"vector of shape \(3,\), expected \(16,\)"):
        with_tensors(Shift(), adapter)


@pytest.mark.parametrize("kind", ["modules", "routed"])
def test_what_is_no_change_of_weights_is_neither_fused_nor_applied(kind, tmp_path):
    adapter = Adapter({"encoder.layer.0.output.dense.weight": Dense(torch.ones(16, 32))}, Metadata(kind=kind))
    adapter.save(tmp_path / "one")
    read = load(tmp_path / "one")
    assert read.fingerprint == adapter.fingerprint
    assert (tmp_path / "one" / f"{kind}.safetensors").is_file()
    with pytest.raises(FusionError, match="adds modules to the network"):
        Fusion([read, read])
    with pytest.raises(ModelError, match="no change of the base's weights"):
        read.apply_(tiny_base().backbone)


def sized(settings, made):
    """Makes a network of the size in an adapter's settings, and notes on which device."""

    def make(backbone, adapter):
        network = Shift()
        network.vector = nn.Parameter(torch.zeros(adapter.metadata.modules["width"]))
        made.append(network.vector.device.type)
        return network

    adapter = Adapter({"vector": Dense(torch.ones(16))}, Metadata(kind="modules", train="lora", modules=settings))
    return network_of(make, tiny_base().backbone, adapter)


def test_a_network_is_made_again_of_its_settings():
    made = []
    network = sized({"width": 16}, made)
    assert torch.equal(network.vector, torch.ones(16))
    assert not network.vector.requires_grad
    assert made == ["meta", "cpu"]


@pytest.mark.parametrize("settings", [None, {}, {"width": -1}, {"width": "x"}], ids=["none", "absent", "sign", "word"])
def test_settings_that_no_network_can_be_made_of_are_refused(settings):
    with pytest.raises(AdapterError, match=r"what the modules of lora are made of .* at modules"):
        sized(settings, [])


def test_sizes_that_the_file_does_not_have_cost_no_memory():
    made = []
    with pytest.raises(AdapterError, match=r"of shape \(16,\), expected \(1000000000000000,\)"):
        sized({"width": 10**15}, made)
    assert made == ["meta"]
