"""What `tangora inspect` says of adapters and checkpoints, and of sets of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import folders
import toys
import zoo
from tangora import methods
from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.initial import draw_factors, fingerprint
from tangora.adapters.metadata import BaseInfo, InitialInfo, Metadata
from tangora.checkpoints import fuse_checkpoints
from tangora.cli.inspect import InspectOptions
from tangora.cli.inspect import inspect as command
from tangora.cli.output import Output
from tangora.errors import FusionError
from tangora.fusion.fusion import fuse
from tangora.inspection.folders import inspect
from tangora.inspection.fusable import fusable
from tangora.updates.task_vector import Dense

KINDS = {
    "linear": {"target_modules": ["up"], "use_rslora": True},
    "embedding": {"target_modules": ["embed"]},
    "convolution": {"target_modules": ["plane"]},
    "bias": {"target_modules": ["up"], "lora_bias": True},
    "expert": {"target_modules": [], "target_parameters": ["experts.down"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sites_are_those_that_are_fused(tmp_path, kind):
    folder = zoo.write(tmp_path / "a", **KINDS[kind])
    found, adapter = inspect(folder), load(folder)
    assert kind in {site.kind for site in found.sites}
    assert {site.name for site in found.sites} == adapter.updates.keys()
    for site in found.sites:
        update = adapter.updates[site.name]
        assert site.norm == pytest.approx(update.norm())
        if site.kind != "bias":
            assert (site.rank, site.scaling) == (update.rank, update.scaling)
    assert found.parameters == sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())


def test_what_depends_on_the_base_has_no_norm(tmp_path):
    found = inspect(zoo.write(tmp_path / "a", target_modules=["up"], use_dora=True, modules_to_save=["head"]))
    assert found.sites[0].norm is None
    assert "DoRA" in found.needs_base
    assert found.heads == ["head.bias", "head.weight"]
    assert "needs --base" in " ".join(fusable([found]).notes)


def drawn(folder: Path, seed: int, phi: int = 3, rank: int = 2) -> Path:
    """An adapter that records its φ₀."""
    adapter = toys.lora(seed, rank, initial=False)
    initial = {s: draw_factors(phi, s, rank, u.shape, scaling=2.0) for s, u in adapter.updates.items()}
    phi_info = InitialInfo(seed=phi, fingerprint=fingerprint(initial))
    about = adapter.metadata.model_copy(update={"initial": phi_info})
    Adapter(adapter.updates, about, LoraDetails(initial=initial)).save(folder)
    return folder


def test_a_set_in_every_space(tmp_path):
    pair = [drawn(tmp_path / "a", 1), drawn(tmp_path / "b", 2)]
    answer = fusable([inspect(folder) for folder in pair])
    assert answer.spaces.keys() == {"delta", "core", "factors"}
    assert answer.reasons == {}
    assert "slerp" in answer.spaces["delta"]
    for space, names in answer.spaces.items():
        for name in names:
            if not methods.get(name).statistics:
                fuse(pair, name, space=space)


def test_what_is_said_of_factors_is_what_fusing_says(tmp_path):
    first = drawn(tmp_path / "a", 1)
    others = {"φ₀ differs": drawn(tmp_path / "b", 2, phi=4), "ranks or scalings": drawn(tmp_path / "c", 2, rank=3)}
    toys.lora(3, initial=False).save(tmp_path / "d")
    others["is not known"] = tmp_path / "d"
    for words, other in others.items():
        answer = fusable([inspect(first), inspect(other)])
        assert words in answer.reasons["factors"] or words == "ranks or scalings"
        assert "factors" not in answer.spaces
        with pytest.raises(FusionError):
            fuse([first, other], space="factors")


def test_a_set_that_cannot_be_fused(tmp_path):
    toys.lora(1).save(tmp_path / "a")
    toys.lora(2, base=BaseInfo(model="other", fingerprint="f" * 64)).save(tmp_path / "b")
    toys.lora(3, shapes={"up": (10, 7)}).save(tmp_path / "c")
    for other, words in (
        ("b", "different bases: a has toy, b has other, weights ffffffffffff"),
        ("c", "widths differ"),
    ):
        answer = fusable([inspect(tmp_path / "a"), inspect(tmp_path / other)])
        assert words in answer.reasons["all"]
        assert not answer.spaces
        with pytest.raises(FusionError, match=words[:16]):
            fuse([tmp_path / "a", tmp_path / other])


def test_checkpoints(tmp_path):
    base, models, weights, _ = folders.family(tmp_path, 2)
    found = [inspect(folder) for folder in (base, *models)]
    assert found[0].tensors == len(weights)
    assert found[0].parameters == sum(t.numel() for t in weights.values())
    assert found[2].shards == 2
    assert found[0].dtypes == {"BF16": len(weights)}
    answer = fusable(found)
    assert "ties" in answer.spaces["full"]
    for name in answer.spaces["full"]:
        fuse_checkpoints(base, models, tmp_path / "out", name, overwrite=True)
    other = folders.save(tmp_path / "other", {"x": torch.ones(2)})
    assert "has a tensor that the base does not have" in fusable([found[0], inspect(other)]).reasons["full"]
    tied = folders.save(tmp_path / "tied", {"model.embed_tokens.weight": torch.ones(3, 2)},
                        config={"tie_word_embeddings": True})  # fmt: skip
    assert inspect(tied).tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_adapters_and_their_base(tmp_path):
    base = zoo.save_base(tmp_path / "base")
    adapter = zoo.write(tmp_path / "a", target_modules=["up", "plane"])
    answer = fusable([inspect(base), inspect(adapter)])
    assert {"delta", "core", "full"} <= answer.spaces.keys()
    other = zoo.write(tmp_path / "b", target_modules=["up"])
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({k.replace(".up.", ".down."): v for k, v in tensors.items()}, other / "adapter_model.safetensors")
    assert "no weight for a site" in fusable([inspect(base), inspect(other)]).reasons["full"]


def test_differences_of_all_weights(tmp_path):
    Adapter({"w": Dense(torch.ones(2, 2)), "b": Dense(torch.ones(3))}, Metadata(kind="full")).save(tmp_path / "d")
    found = inspect(tmp_path / "d")
    assert [(s.name, s.norm) for s in found.sites] == [("b", pytest.approx(3**0.5)), ("w", 2.0)]
    assert found.kind == "full"
    assert "core" in fusable([found]).reasons


def test_what_is_printed(tmp_path, capsys):
    folder = zoo.write(tmp_path / "[red]a", target_modules=["up"], modules_to_save=["head"])
    assert command(InspectOptions(folders=[folder]), Output()) == 0
    out = capsys.readouterr().out
    assert "[red]a" in out
    assert "10×6" in out
    assert "saved whole: head.bias, head.weight" in out
    assert "can be fused with --space delta" in out
    assert command(InspectOptions(folders=[folder, tmp_path / "nowhere"]), Output(json=True)) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["folders"][0]["sites"][0]["rank"] == 3
    assert "no such folder" in document["folders"][1]["problem"]
    assert "no such folder" in document["fusable"]["reasons"]["all"]


def test_one_layer_is_in_memory_at_a_time(tmp_path, monkeypatch):
    shapes = {f"layers.{i}": (300, 200) for i in range(12)}
    toys.lora(1, 8, shapes=shapes, initial=False).save(tmp_path / "a")
    alive: list[int] = []
    from tangora.adapters.formats.lora import survey

    original = survey.updates_of

    def watched(*arguments):
        found = original(*arguments)
        import gc

        alive.append(sum(t.numel() for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.device.type == "cpu"
                         and t.shape in ((8, 200), (300, 8))))  # fmt: skip
        return found

    monkeypatch.setattr(survey, "updates_of", watched)
    assert len(inspect(tmp_path / "a").sites) == 12
    assert max(alive[1:]) <= 3 * alive[0]
