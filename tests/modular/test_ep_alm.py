"""eP-ALM: visual tokens in the layers of a frozen decoder, against the equations and the checks of the paper."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTModel,
)

from tangora.config.ep_alm import EpAlmSettings
from tangora.config.settings import FinetuneConfig
from tangora.config.vision_language import VisionLanguageModel, VisionLanguageTask
from tangora.errors import AdapterError, FusionError, ModelError, RecipeError
from tangora.fusion.fusion import fuse
from tangora.modes.contract import Bench, mode_of
from tangora.modular.ep_alm.masks import layer_masks
from tangora.modular.ep_alm.network import EpAlm, Layout
from tangora.modular.ep_alm.plan import planned
from tangora.modular.network import attached
from tangora.support.seams import MODES
from tangora.tasks.language.greedy import Generation
from tangora.tasks.load import load_base, load_task
from tangora.tasks.model import predict
from tangora.tasks.values import Split
from tangora.tasks.vision_language.backbone import TwoTowers
from tangora.testing._tiny_towers import tiny_questions, tiny_towers

WORDS, WIDTH, DEPTH = 30, 16, 6
_LLAMA = {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": DEPTH}
_LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
_GPT2 = {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 64}
_OPT = {"vocab_size": WORDS, "hidden_size": WIDTH, "ffn_dim": 20, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
_OPT |= {"max_position_embeddings": 64, "word_embed_proj_dim": WIDTH}
DECODERS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, _GPT2),
    "llama": (LlamaForCausalLM, LlamaConfig, _LLAMA),
    "opt": (OPTForCausalLM, OPTConfig, _OPT),
    "opt-projected": (OPTForCausalLM, OPTConfig, {**_OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, _LLAMA),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**_LLAMA, "head_dim": 4}),
}
TOWERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "vit": (ViTModel, ViTConfig),
}
_SEEN = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 2}


def towers(decoder="llama", tower="clip", way="sdpa"):
    """Two towers in float64, the same every time."""
    kind, config, named = DECODERS[decoder]
    seeing, configured = TOWERS[tower]
    more = {"add_pooling_layer": False} if tower == "vit" else {}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": way}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = TwoTowers(
            kind(config(**named, **special)), seeing(configured(image_size=8, patch_size=4, **_SEEN), **more)
        )
        for parameter in made.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)  # biases and norms too
    return made.double().eval().requires_grad_(False)


LAYOUT = Layout(2, 2, 6, False, 3, "causal", 8, WIDTH)
EMPTY = replace(LAYOUT, start=3, end=3, prompt=0)


def network(layout=LAYOUT, *, mlp=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return EpAlm(layout, mlp=mlp).double()


def batch(columns=6):
    """Two rows, the first padded on the left."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(3, WORDS, (2, columns), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    pixels = torch.randn(2, 3, 8, 8, generator=draw).double()
    return {"input_ids": ids * mask, "attention_mask": mask, "pixel_values": pixels}


def logits(backbone, inputs):
    with torch.no_grad():
        return backbone(**inputs).logits


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_without_range_and_prompt_it_is_the_decoder_bit_for_bit(kind):
    backbone, inputs = towers(kind), batch()
    before = logits(backbone, inputs)
    with attached(backbone, network(EMPTY)):
        assert torch.equal(logits(backbone, inputs), before)
    with attached(backbone, network()):
        assert not torch.allclose(logits(backbone, inputs), before)
    assert torch.equal(logits(backbone, inputs), before)


@pytest.mark.parametrize("way", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_a_column_that_nothing_sees_changes_nothing(kind, way):
    """Before its first layer the visual token is not there: the layers of the question see what they saw."""
    backbone, inputs, seen = towers(kind, way=way), batch(), []
    blocks = list(backbone.decoder.get_submodule(path_of(kind)).children())
    handle = blocks[LAYOUT.start].register_forward_pre_hook(
        lambda block, inputs, named: seen.append(inputs[0] if inputs else named["hidden_states"]), with_kwargs=True
    )
    logits(backbone, inputs)
    # the first row without its padding, from which some implementations of attention make NaN, others positions
    logits(backbone, {"pixel_values": inputs["pixel_values"][:1], **{n: inputs[n][:1, 2:] for n in list(inputs)[:2]}})
    handle.remove()
    with attached(backbone, network(replace(LAYOUT, prompt=0))):
        handle = blocks[LAYOUT.start].register_forward_pre_hook(
            lambda block, inputs, named: seen.append(named["hidden_states"]), with_kwargs=True
        )
        logits(backbone, inputs)
        handle.remove()
    plain, alone, moved = seen
    assert moved.shape[1] == plain.shape[1] + 1
    # a softmax over one column more, with weight 0, and rotations by other angles of equal differences: rounding. The
    # rotations are in float32, whatever the weights are
    close = {"rtol": 1e-4, "atol": 1e-5} if kind in ("llama", "qwen2", "qwen3") else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(moved[1, 1:], plain[1], **close)
    torch.testing.assert_close(moved[0, 3:], alone[0], **close)  # the first two columns are padding


def path_of(kind):
    from tangora.modular.ep_alm.decoders import KINDS

    return KINDS[kind.split("-")[0]].blocks


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_the_length_is_constant_and_every_layer_of_the_range_reads_its_level(kind):
    backbone, inputs, made, seen = towers(kind), batch(), network(), []
    blocks = backbone.decoder.get_submodule(path_of(kind)).children()
    with attached(backbone, made):
        for block in blocks:
            block.register_forward_pre_hook(
                lambda block, inputs, named: seen.append(named["hidden_states"]), with_kwargs=True
            )
        found = logits(backbone, inputs)
        levels = made._levels.of(inputs["pixel_values"])
    assert found.shape[1] == inputs["input_ids"].shape[1]
    assert {state.shape[1] for state in seen} == {inputs["input_ids"].shape[1] + 1 + LAYOUT.prompt}
    for layer, level in {2: 0, 3: 0, 4: 1, 5: 1}.items():
        connector = made.connectors[level]
        expected = levels[level].double() @ connector.weight.T + connector.bias
        torch.testing.assert_close(seen[layer][:, 0], expected)
    torch.testing.assert_close(seen[0][:, 1:4], made.prompt.vectors.expand(2, -1, -1))


@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_levels_are_cls_tokens_behind_the_last_norm(tower):
    backbone, inputs, made = towers(tower=tower), batch(), network()
    vision = backbone.vision
    norm = vision.post_layernorm if tower == "clip" else vision.layernorm
    blocks = list((vision.encoder if tower == "clip" else vision).layers)
    states = []
    handles = [b.register_forward_hook(lambda b, i, o: states.append(o)) for b in blocks]
    vision(pixel_values=inputs["pixel_values"])
    for handle in handles:
        handle.remove()
    with attached(backbone, made):
        found = made._levels.of(inputs["pixel_values"])
    for level, state in zip(found, states[-2:], strict=True):
        expected = layer_norm(state[:, 0], (8,), norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(level.double(), expected, rtol=1e-5, atol=1e-6)  # levels are in float32
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("level", [0, 1])
def test_a_level_changes_nothing_before_its_first_layer(level):
    backbone, inputs, made = towers(), batch(), network()
    blocks = list(backbone.decoder.model.layers)

    def states():
        seen = []
        hooks = [
            b.register_forward_pre_hook(lambda b, i, named: seen.append(named["hidden_states"]), with_kwargs=True)
            for b in blocks
        ]
        logits(backbone, inputs)
        for hook in hooks:
            hook.remove()
        return seen

    with attached(backbone, made):
        before = states()
        with torch.no_grad():
            made.connectors[level].bias.add_(1.0)
        after = states()
    first = LAYOUT.start + 2 * level
    for layer in range(DEPTH):
        changed = not torch.equal(before[layer], after[layer])
        assert changed == (layer >= first), layer


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("mask", ["causal", "released"])
def test_later_tokens_do_not_reach_earlier_logits_unless_the_released_mask_leaks(kind, mask):
    backbone, inputs = towers(kind), batch()
    other = copy.deepcopy(inputs)
    other["input_ids"][:, 4] = (other["input_ids"][:, 4] + 1) % WORDS
    with attached(backbone, network(replace(LAYOUT, mask=mask, start=2, end=4))):
        one, two = logits(backbone, inputs), logits(backbone, other)
    moved = (one[:, :4] - two[:, :4]).abs().max()
    assert not torch.equal(one[:, 4:], two[:, 4:])
    # Columns of the same numbers by the same products: bit for bit. A leak is in the first digits.
    assert (moved > 1e-6) if mask == "released" else (moved == 0)


@pytest.mark.parametrize("mask", ["causal", "released"])
def test_other_rows_and_padding_change_nothing(mask):
    backbone, inputs = towers(), batch()
    with attached(backbone, network(replace(LAYOUT, mask=mask))):
        together = logits(backbone, inputs)[:1, 2:]
        alone = {name: value[:1] for name, value in inputs.items()}
        alone |= {"input_ids": alone["input_ids"][:, 2:], "attention_mask": alone["attention_mask"][:, 2:]}
        torch.testing.assert_close(logits(backbone, alone), together, rtol=1e-4, atol=1e-5)  # float32 rotations


@pytest.mark.parametrize("layout", [LAYOUT, replace(LAYOUT, shared=True, prompt=0), replace(LAYOUT, mask="released")])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_answers_with_a_cache_are_those_without(kind, layout):
    """Step by step, with the whole text read again; and the cache holds the columns in front."""
    backbone, inputs = towers(kind), batch()
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], {"pixel_values": inputs["pixel_values"]}
    with attached(backbone, network(layout)):
        answers = Generation(backbone, 5, [2], lambda ids: False, None, pixels).answers(ids, mask)
        expected: list[list[int]] = []
        for row in range(2):
            seen, found = ids[row : row + 1][:, mask[row] == 1], []
            image = {"pixel_values": pixels["pixel_values"][row : row + 1]}
            for _ in range(5):
                whole = {"input_ids": seen, "attention_mask": torch.ones_like(seen), "use_cache": False, **image}
                token = int(logits(backbone, whole)[0, -1].argmax())
                if token == 2:
                    break
                found.append(token)
                seen = torch.cat([seen, torch.tensor([[token]])], 1)
            expected.append(found)
        with torch.no_grad():
            cache = backbone(**inputs, use_cache=True).past_key_values
    assert answers == expected
    if layout.mask == "released":
        assert cache is None
    else:
        assert cache.get_seq_length() == 6 + layout.columns


def test_images_are_read_once_for_an_answer():
    backbone, inputs, made = towers(), batch(), network()
    with attached(backbone, made):
        calls = []
        handle = backbone.vision.register_forward_hook(lambda *_: calls.append(1))
        pixels = {"pixel_values": inputs["pixel_values"]}
        never = Generation(backbone, 4, [], lambda ids: False, None, pixels)
        never.answers(inputs["input_ids"], inputs["attention_mask"])
        handle.remove()
    assert calls == [1]


@pytest.mark.parametrize("layout", [LAYOUT, replace(LAYOUT, end=4), replace(LAYOUT, shared=True)])
def test_gradients_reach_connectors_in_range_and_no_frozen_part(layout):
    backbone, inputs, made = towers(), batch(), network(layout, mlp=True)
    with attached(backbone, made):
        backbone(**inputs).logits.logsumexp(-1).sum().backward()
        for name, parameter in backbone.named_parameters():
            trained = name.startswith("added_modules.")
            assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name
    with attached(backbone, made):
        made.zero_grad()
        made.layout = replace(layout, levels=2, start=2, end=3) if not layout.shared else layout
        backbone(**inputs).logits.sum().backward()
        if not layout.shared:  # no layer of a range of one reads the second level
            assert made.connectors[1].weight.grad is None or not made.connectors[1].weight.grad.any()


@pytest.mark.parametrize(("count", "k", "start", "end"), [(32, 6, 19, 31), (12, 4, 7, 11), (6, 2, 3, 5), (2, 1, 1, 2)])
def test_the_default_range_is_the_papers_share_of_the_layers(count, k, start, end):
    backbone = SimpleNamespace(decoder=towers().decoder, vision=towers().vision)
    backbone.decoder.model.layers = nn.ModuleList(nn.Identity() for _ in range(count))
    backbone.vision.encoder.layers = nn.ModuleList(nn.Identity() for _ in range(12))
    layout = planned(backbone, EpAlmSettings())
    assert (layout.levels, layout.start, layout.end) == (k, start, end)
    assert layout.prompt == 10
    numbers = [layout.level_of(layer) for layer in range(start, end)]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(k))


def test_the_layers_of_the_paper_read_each_level_twice():
    layout = Layout(6, 19, 31, False, 10, "causal", 1024, 2560)
    assert [layout.level_of(layer) for layer in range(19, 31)] == [(layer - 19) // 2 for layer in range(19, 31)]


def config(**named):
    return FinetuneConfig(
        mode="m", train="ep-alm", training={"steps": 3, "batch_size": 4, "checkpoint_every": None}, **named
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mlp", [False, True])
def test_the_number_of_parameters_is_that_of_the_formula(shared, mlp):
    base = tiny_towers()
    made = config(connector="shared" if shared else "level", prompt=10, prompt_mlp=mlp, start=0, end=2, levels=2)
    size = MODES.get("ep-alm").footprint(base, made)
    seen = read = 16
    kept = (1 if shared else 2) * (seen * read + read) + 10 * read
    assert size.trainable == kept + (2 * (read * read + read) if mlp else 0)
    assert size.size == 4 * kept
    assert size.sites == 2


def test_the_share_of_the_paper():
    """pt-L: OPT-6.7B and ViT-L, a shared connector, 10 vectors without an MLP: 4 M, .06 %."""
    with torch.device("meta"):
        decoder = OPTForCausalLM(
            OPTConfig(hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32)
        )
        vision = ViTModel(
            ViTConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        )
    base = SimpleNamespace(backbone=TwoTowers(decoder, vision))
    size = MODES.get("ep-alm").footprint(base, config(connector="shared", prompt_mlp=False))
    assert size.trainable == 1024 * 4096 + 4096 + 10 * 4096
    assert round(size.trainable / 1e6) == 4
    whole = sum(p.numel() for p in decoder.parameters())
    assert round(100 * size.trainable / whole, 2) == 0.06


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"start": 2}, "range of layers is not in the decoder, got '2 to 3'"),
        ({"levels": 2}, "at most 1 levels, got 2"),
        ({"start": 0, "end": 3}, "range of layers is not in the decoder"),
        ({"training": {"gradient_checkpointing": True}}, "not there when a layer is computed again"),
    ],
)
def test_settings_that_do_not_fit_are_refused(named, message):
    made = config(**{key: value for key, value in named.items() if key != "training"})
    if "training" in named:
        made = made.model_copy(update={"training": made.training.model_copy(update=named["training"])})
    with pytest.raises(ModelError, match=message):
        MODES.get("ep-alm").check(tiny_towers(), made)


def test_other_models_and_empty_ranges_are_refused():
    base, backbone = tiny_towers(), towers()
    window = MistralConfig(**_LLAMA, sliding_window=4)
    for decoder, message in (
        (MistralForCausalLM(window), "masks its layers is not known, got 'mistral'"),
        (Qwen2ForCausalLM(Qwen2Config(**_LLAMA, layer_types=["sliding_attention"] * DEPTH)), "a window of the last"),
        (LlamaForCausalLM(LlamaConfig(**_LLAMA, attn_implementation="flex_attention")), "no mask of their own"),
    ):
        base.backbone = TwoTowers(decoder, backbone.vision)
        with pytest.raises(ModelError, match=message):
            MODES.get("ep-alm").check(base, config())
    base.backbone = backbone.decoder
    with pytest.raises(ModelError, match="the base has no vision tower"):
        MODES.get("ep-alm").check(base, config())
    with pytest.raises(ModelError, match="the backbone has no vision tower"), attached(backbone.decoder, network()):
        pass
    backbone.vision.config.model_type = "siglip_vision_model"
    with pytest.raises(ModelError, match=r"no \[CLS\] token is known"):
        planned(backbone, EpAlmSettings())
    with pytest.raises(RecipeError, match="the range of layers is empty"):
        config(start=2, end=2)


def test_rows_without_images_are_refused():
    backbone, inputs = towers(), batch()
    del inputs["pixel_values"]
    with attached(backbone, network()), pytest.raises(ModelError, match="the rows have no images"):
        logits(backbone, inputs)


def test_masks_by_hand():
    seen = torch.tensor([[1, 1, 0, 1, 1]])
    before, inside = layer_masks(seen, 5, "causal")
    assert before[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],  # padding sees itself, too
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 1],
    ]
    assert inside[0, 0, :, 0].all()
    assert torch.equal(inside[..., 1:], before[..., 1:])
    leaking = layer_masks(seen, 5, "released")[1]
    assert leaking[0, 0, 0].int().tolist() == [1, 1, 0, 1, 1]
    last = layer_masks(seen, 1, "causal")
    assert torch.equal(last[0], before[:, :, -1:])
    assert torch.equal(last[1], inside[:, :, -1:])


@pytest.fixture(scope="module")
def trained():
    """Two adapters of two tasks, without and with an MLP of the prompt."""
    mode = MODES.get("ep-alm")
    base, tasks = tiny_towers(), tiny_questions(2)
    made = [
        mode.train(Bench(base), [task], config(prompt=2, prompt_mlp=mlp))[task.name]
        for task, mlp in zip(tasks, (False, True), strict=True)
    ]
    return base, tasks, made


def test_an_adapter_has_connectors_and_a_prompt(trained):
    base, _, adapters = trained
    for adapter in adapters:
        shapes = {name: tuple(update.shape) for name, update in adapter.updates.items()}
        assert shapes == {
            "connectors.0.weight": (16, 16),
            "connectors.0.bias": (16,),
            "prompt.vectors": (2, 16),
        }
        expected = planned(base.backbone, config(prompt=2).settings).settings()
        assert adapter.metadata.modules == expected


def test_the_sum_of_adapters_is_the_sum_of_visual_tokens_and_prompts(trained):
    base, tasks, adapters = trained
    fused = fuse(adapters, method="task_arithmetic", weights=0.7)
    assert fused.metadata.modules == adapters[0].metadata.modules
    levels = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))

    def of(adapter):
        made = EpAlm(Layout(**adapter.metadata.modules))
        made.load_state_dict({name: update.dense() for name, update in adapter.updates.items()})
        return made.tokens(levels), made.prompt()

    for part, one, two in zip(of(fused), of(adapters[0]), of(adapters[1]), strict=True):
        torch.testing.assert_close(part, 0.7 * (one + two), rtol=1e-5, atol=1e-5)
    with mode_of(fused).answering(base, fused, {}) as model_of:
        predictions = predict(model_of(tasks[0]), tasks[0].splits["test"], 4)
    assert len(predictions.values) == 9


def test_adapters_of_other_layers_are_not_fused(trained):
    base, tasks, adapters = trained
    other = MODES.get("ep-alm").train(Bench(base), [tasks[1]], config(prompt=2, start=0, end=1))[tasks[1].name]
    with pytest.raises(FusionError, match="built in another way"):
        fuse([adapters[0], other], method="average")


def test_a_damaged_description_is_refused(trained):
    base, _, (adapter, _) = trained
    metadata = adapter.metadata.model_copy(update={"modules": {"levels": 2}})
    answering = MODES.get("ep-alm").answering(base, replace(adapter, metadata=metadata), {})
    with pytest.raises(AdapterError, match="does not say what the modules of ep-alm are made of"), answering:
        pass


def test_a_training_that_resumes_gives_the_same_adapter(tmp_path):
    base, (task,) = tiny_towers(), tiny_questions(1)
    mode, made = MODES.get("ep-alm"), config(prompt=2)
    made = made.model_copy(update={"training": made.training.model_copy(update={"steps": 4, "checkpoint_every": 1})})
    whole = mode.train(Bench(base), [task], made)[task.name]

    class Killed(Exception):
        pass

    def stop(step, *_):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        mode.train(Bench(base, scratch=tmp_path, on_step=stop), [task], made)
    assert list(tmp_path.rglob("trained.safetensors"))
    steps = []
    bench = Bench(base, scratch=tmp_path, on_step=lambda step, *_: steps.append(step))
    again = mode.train(bench, [task], made)[task.name]
    assert steps[0] > 1
    assert again.fingerprint == whole.fingerprint


def test_it_learns_to_read_images():
    """Trained on right images, answers are likelier than with those of other rows."""
    base, (task,) = tiny_towers(), tiny_questions(1)
    with torch.no_grad():
        for weight in base.backbone.decoder.parameters():
            weight.mul_(10 if weight.ndim > 1 else 1)  # small random layers would pass nothing on
    training = {"steps": 60, "batch_size": 6, "learning_rate": 2e-2, "checkpoint_every": None}
    made = FinetuneConfig(train="ep-alm", prompt=2, start=0, end=2, levels=2, training=training)
    adapter = MODES.get("ep-alm").train(Bench(base), [task], made)[task.name]
    split = task.splits["train"]
    turned = Split({**split.inputs, "pixel_values": split.inputs["pixel_values"].roll(1, 0)}, split.targets)
    with MODES.get("ep-alm").answering(base, adapter, {}) as model_of:
        right, wrong = (float(predict(model_of(task), part, 12).losses.mean()) for part in (split, turned))
    assert right < 0.8 * wrong


@pytest.mark.parametrize("held", ["bfloat16", "float32"])
def test_half_precision(held, tiny_llama, tiny_clip, image_data):
    """Weights that are held in it, and forward passes in it: adapters stay in float32."""
    named = {"model": str(tiny_llama), "vision": str(tiny_clip), "max_length": 64, "max_new_tokens": 8}
    base = load_base(VisionLanguageModel(family="vision-language", weights_dtype=held, **named))
    files = {"npz": {split: str(image_data / f"{split}.npz") for split in ("train", "test")}}
    columns = {"image": "images", "label": "labels", "labels": ["red", "green", "blue"], "target": "{label}"}
    limit = {"train": 8, "validation": 4, "test": 4}
    asked = VisionLanguageTask(name="t", source=files, prompt="which color?", limit=limit, **columns)
    task = load_task(asked, base, 0)
    made = config(prompt=2)
    made = made.model_copy(update={"training": made.training.model_copy(update={"bf16": held == "float32"})})
    adapter = MODES.get("ep-alm").train(Bench(base), [task], made)[task.name]
    assert {update.dense().dtype for update in adapter.updates.values()} == {torch.float32}
    with MODES.get("ep-alm").answering(base, adapter, {}) as model_of:
        assert np.isfinite(predict(model_of(task), task.splits["test"], 4).losses).all()


def test_every_pair_of_levels_and_layers_is_even():
    for k, layers in itertools.product((1, 2, 3), (3, 4, 6)):
        counts = [Layout(k, 1, 1 + layers, False, 0, "causal", 2, 2).level_of(layer) for layer in range(1, 1 + layers)]
        sizes = [counts.count(level) for level in range(k)]
        assert max(sizes) - min(sizes) <= 1
