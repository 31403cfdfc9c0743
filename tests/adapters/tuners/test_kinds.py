"""Every kind of peft that changes weights, on models of fourteen classes: what stock peft answers, alone and in a sum.

Tangora's update is the difference of two float64 weights, rounded to float32: 6e-8 of an entry. Stock peft's layers are
built in float32 from the same numbers, and then computed in float64 too; three kinds force a part of that into float32
(C3A, DEFT, AdaMSS), which costs 1e-7 of a weight of size 1. The models have two layers of width 16 and weights of about
0.2, so that logits are sums of a few hundred terms of at most 1: 2e-5 of the logits' size is above that, and far below
what leaving out an update of a single layer makes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import kinds
import tangora
from tangora.adapters.adapter import load
from tangora.adapters.formats.tuners.known import KNOWN, REFUSED, tuner_of

TOKENS = "TRAINABLE_TOKENS"  # of BERT, whose tied head stock peft computes without its bias
CLASSES = [name for name in kinds.MODELS if name not in ("gpt2", "resnet")]
CASES = [
    *((kind, CLASSES[i % len(CLASSES)]) for i, kind in enumerate(sorted(KNOWN))),
    *((kind, "gpt2") for kind in ("ADALORA", "FROD", "IA3", "LN_TUNING", "VBLORA", "VERA")),
    *((kind, "resnet") for kind in ("HRA", "IA3", "LOHA", "LOKR")),
]


def settings_of(kind, model):
    if kind == TOKENS:
        return {"token_indices": [1, 3]}
    settings = kinds.settings_of(kind, model)
    if kind == "LN_TUNING":
        norms = [
            n for n, m in kinds.model_of(model).named_modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))
        ]
        settings["target_modules"] = norms[:2]
    return settings


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Model -> the folder of its checkpoint."""
    folders = {name: tmp_path_factory.mktemp(name) for name in kinds.MODELS}
    for name, folder in folders.items():
        kinds.model_of(name).save_pretrained(folder)
    return folders


def close(found, wanted):
    assert (found - wanted).abs().max() <= 2e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("kind", "model"), sorted(CASES))
def test_what_stock_peft_answers_alone_and_in_a_sum(bases, tmp_path, kind, model):
    one = kinds.write(tmp_path / "one", kind, kinds.model_of(model), **settings_of(kind, model))
    first = load(one, bases[model])
    assert first.details.tuner == KNOWN[kind].title
    dtype = torch.float32 if kind == "ADAMSS" else torch.float64  # its layers compute in no other
    wanted, plain = kinds.logits(kinds.through_peft(one, kinds.model_of(model)), model, dtype), kinds.model_of(model)
    assert (wanted - kinds.logits(kinds.model_of(model), model)).abs().max() > 1e-3  # the adapter does something
    first.apply_(plain)
    close(kinds.logits(plain, model), wanted)

    ends = kinds.MODELS[model][3]
    two = kinds.write(tmp_path / "two", "LORA", kinds.model_of(model), 2, target_modules=ends, r=2)
    fused = tangora.fuse([first, two], weights=[0.7, -0.3], base=bases[model])
    found, summed = kinds.model_of(model).double(), kinds.model_of(model).double()
    before = dict(kinds.model_of(model).double().named_parameters(remove_duplicate=False))
    parts = [kinds.merged(folder, kinds.model_of(model)) for folder in (one, two)]
    with torch.no_grad():
        for name, parameter in summed.named_parameters():
            changes = (c * (part[name] - before[name]) for c, part in zip((0.7, -0.3), parts, strict=True))
            parameter += sum(changes)
    fused.apply_(found)
    close(kinds.logits(found, model), kinds.logits(summed, model))


@pytest.mark.parametrize("kind", sorted(k for k, tuner in KNOWN.items() if not tuner.starts_from_base and k != TOKENS))
def test_a_kind_that_is_read_without_weights_ignores_them(bases, tmp_path, kind, monkeypatch):
    """Loaded into layers with the base's weights, it computes the same bits as in layers without."""
    model = "bert"
    folder = kinds.write(tmp_path / "a", kind, kinds.model_of(model), **settings_of(kind, model))
    without = load(folder, bases[model])
    known = KNOWN[kind]
    monkeypatch.setitem(KNOWN, kind, type(known)(known.title, known.stem, starts_from_base=True))
    assert load(folder, bases[model]).fingerprint == without.fingerprint


def test_every_kind_of_this_peft_is_known():
    names = {str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert names <= KNOWN.keys() | REFUSED.keys() | {"LORA"}
    assert not KNOWN.keys() & REFUSED.keys()
    assert tuner_of("SOMETHING_NEW").starts_from_base


def test_a_loha_in_numpy(bases, tmp_path):
    """ΔW = alpha / r · (w1_a w1_b) ∘ (w2_a w2_b), from the file alone."""
    from safetensors.numpy import load_file

    folder = kinds.write(tmp_path / "a", "LOHA", kinds.model_of("llama"), target_modules=["q_proj"], r=2, alpha=3)
    tensors = load_file(folder / "adapter_model.safetensors")
    for site, update in load(folder, bases["llama"]).updates.items():
        w = {
            k: tensors[f"base_model.model.{site}.hada_{k}"].astype(np.float64) for k in ("w1_a", "w1_b", "w2_a", "w2_b")
        }
        wanted = 1.5 * (w["w1_a"] @ w["w1_b"]) * (w["w2_a"] @ w["w2_b"])
        np.testing.assert_allclose(update.dense().double().numpy(), wanted, rtol=1e-6, atol=1e-7)
