"""What comes out of `fuse_checkpoints`: the right numbers, the same bits however they were made, or an error."""

from __future__ import annotations

import json

import pytest
import torch

from folders import CONFIG, SHAPES, family, read, save, tensors, tuned
from tangora.checkpoints import fuse_checkpoints
from tangora.errors import ArgumentError, FileError, FusionError, OutputError, PluginError
from tangora.methods import fusion_method, get, methods


def naive(method, base, models, weight, **parameters):
    """The method on whole tensors, in memory; of granularity model on one vector."""
    record = get(method)
    names = list(base)
    deltas = {n: torch.stack([m[n].float() - b.float() for m in models]) for n, b in base.items()}

    def call(stack):
        weights = torch.full((len(models), *[1] * (stack.ndim - 1)), weight)
        return record.function(stack, weights=weights, **parameters)

    if record.granularity == "model":
        flat = call(torch.cat([deltas[n].reshape(len(models), -1) for n in names], 1))
        pieces = flat.split([base[n].numel() for n in names])
        updates = {n: piece.reshape(base[n].shape) for n, piece in zip(names, pieces, strict=True)}
    else:
        updates = {n: call(deltas[n]) for n in names}
    return {n: (base[n].float() + updates[n]).to(base[n].dtype) for n in names}


def equal(x, y):
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) and x[n].dtype == y[n].dtype for n in x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {}),
        ("ties", {}),
        ("ties", {"density": 1.0}),
        ("ties_per_tensor", {"density": 0.37}),
        ("magnitude_prune", {}),
    ],
)
def test_it_is_the_method_on_whole_tensors(tmp_path, method, parameters, dtype):
    base, folders, weights, models = family(tmp_path, dtype=dtype)
    merged = fuse_checkpoints(base, folders, tmp_path / "out", method, 0.5, **parameters)
    assert equal(read(tmp_path / "out"), naive(method, weights, models, 0.5, **parameters))
    assert (merged.tensors, merged.shards, merged.parents) == (len(SHAPES), 1, ["m0", "m1", "m2"])


WHOLE = [m.name for m in methods().values() if m.granularity != "model" and not m.random and not m.statistics]


@pytest.mark.parametrize("method", WHOLE)
def test_every_method_that_sees_a_tensor_at_a_time(tmp_path, method):
    count = get(method).tasks or 3
    base, folders, weights, models = family(tmp_path, count, dtype=torch.float32)
    fuse_checkpoints(base, folders, tmp_path / "out", method, 0.5, block=64, threads=2)
    found, expected = read(tmp_path / "out"), naive(method, weights, models, 0.5)
    for name in SHAPES:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_average_and_weights_per_model(tmp_path):
    base, folders, weights, models = family(tmp_path, dtype=torch.float32)
    fuse_checkpoints(base, folders, tmp_path / "a", "average")
    fuse_checkpoints(base, folders, tmp_path / "w", weights=[1.0, -0.5, 0.0])
    mean, mixed = read(tmp_path / "a"), read(tmp_path / "w")
    for (
        n,
        b,
    ) in weights.items():  # three numbers under 4, in any order: a few roundings by 6e-8 of 12, and a third of it
        torch.testing.assert_close(mean[n], sum(m[n] for m in models) / 3, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mixed[n], b + (models[0][n] - b) - 0.5 * (models[1][n] - b), atol=1e-6, rtol=1e-6)


def test_one_model_with_weight_one_is_itself(tmp_path):
    base, folders, _, models = family(tmp_path, 1)
    fuse_checkpoints(base, folders, tmp_path / "out", weights=1.0)
    assert equal(read(tmp_path / "out"), models[0])


BITS = ["task_arithmetic", "ties", "ties_per_tensor", "dare", "dare_ties"]


@pytest.mark.parametrize("method", BITS)
def test_neither_threads_nor_blocks_nor_shards_change_a_bit(tmp_path, monkeypatch, method):
    for module in ("tangora.fusion.uniforms", "tangora.checkpoints.fuser", "tangora.checkpoints.plan"):
        monkeypatch.setattr(f"{module}.CHUNK", 100)
    monkeypatch.setattr("tangora.checkpoints.steps._SAMPLES", {"tensor": 64, "model": 64})
    monkeypatch.setattr("tangora.checkpoints.steps._RUN", 4)
    base, folders, _, _ = family(tmp_path)
    fuse_checkpoints(base, folders, tmp_path / "one", method, threads=1)
    expected = read(tmp_path / "one")
    for i, options in enumerate([{"threads": 3, "block": 7}, {"threads": 2, "shard_size": 300}, {"block": 64}]):
        fuse_checkpoints(base, folders, tmp_path / f"{i}", method, **options)
        assert equal(read(tmp_path / f"{i}"), expected), options
    assert len(list((tmp_path / "1").glob("*.safetensors"))) > 3


def test_a_random_method_draws_by_seed_and_model(tmp_path):
    base, folders, _, _ = family(tmp_path)

    def run(name, models, **options):
        fuse_checkpoints(base, models, tmp_path / name, "dare", **options)
        return read(tmp_path / name)

    first = run("a", folders, weights=[1.0, 0.0, 0.0])
    assert not equal(first, run("b", folders, weights=[1.0, 0.0, 0.0], seed=1))
    assert equal(first, run("c", folders[::-1], weights=[0.0, 0.0, 1.0]))
    assert equal(first, run("d", folders[:1], weights=[1.0]))


def test_dtype_and_shards_and_what_lies_beside(tmp_path):
    base, folders, weights, models = family(tmp_path)
    (base / "tokenizer.json").write_text("{}")
    (base / "generation_config.json").write_text('{"x": 1}')
    (base / "secret.txt").write_text("not copied")
    merged = fuse_checkpoints(base, folders, tmp_path / "out", weights=0.1, dtype="float32", shard_size=2500)
    out = tmp_path / "out"
    wide = {
        n: (b.float() + (naive("task_arithmetic", {n: b.float()}, [{n: m[n].float()} for m in models], 0.1)[n] - b))
        for n, b in weights.items()
    }
    found = read(out)
    for n, expected in wide.items():
        assert found[n].dtype == torch.float32
        torch.testing.assert_close(found[n], expected, atol=1e-6, rtol=1e-6)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(SHAPES)
    assert set(index["weight_map"].values()) == {p.name for p in out.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in found.values()) == merged.size
    assert json.loads((out / "config.json").read_text()) == {**CONFIG, "torch_dtype": "float32"}
    names = {p.name for p in out.iterdir() if p.suffix != ".safetensors"}
    expected = {"config.json", "generation_config.json", "tokenizer.json", "README.md", "tangora_fusion.json"}
    assert names == expected | {"model.safetensors.index.json"}
    lineage = json.loads((out / "tangora_fusion.json").read_text())
    assert (lineage["method"], lineage["weights"], [p["name"] for p in lineage["parents"]]) == (
        "task_arithmetic",
        [0.1] * 3,
        ["m0", "m1", "m2"],
    )
    card = (out / "README.md").read_text()
    assert all(f"| m{i} | 0.1 |" in card for i in range(3))
    assert lineage["parents"][0]["fingerprint"][:16] in card


def test_transformers_loads_the_result(tmp_path, tiny_bert):
    from transformers import AutoModel

    weights = read(tiny_bert)
    config = json.loads((tiny_bert / "config.json").read_text())
    models = [save(tmp_path / f"m{i}", tuned(weights, i), config=config) for i in (1, 2)]
    fuse_checkpoints(tiny_bert, models, tmp_path / "out", weights=0.5, shard_size="50KB")
    loaded = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    written = read(tmp_path / "out")
    shared = loaded.keys() & written.keys()
    assert len(shared) > 20
    assert all(torch.equal(loaded[n], written[n]) for n in shared)


def test_a_dry_run_writes_nothing(tmp_path):
    base, folders, _, _ = family(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    merged = fuse_checkpoints(base, folders, tmp_path / "out", "ties", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert merged.memory.total == sum(v for v in vars(merged.memory).values())
    assert merged.memory.cutoffs > 0 == merged.memory.whole


def refuse(tmp_path, error, words, *arguments, **options):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=words):
        fuse_checkpoints(*arguments, tmp_path / "out", **options)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left"


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
@pytest.mark.parametrize("which", ["base", "m1"])
def test_not_finite(tmp_path, method, value, word, which):
    base, folders, weights, models = family(tmp_path)
    broken = dict(weights if which == "base" else models[1])
    broken["lm_head.weight"] = broken["lm_head.weight"].clone()
    broken["lm_head.weight"][3, 3] = value
    save(tmp_path / which, broken, 1 if which == "base" else 2)
    refuse(tmp_path, FileError, f"a weight is {word} at lm_head.weight in .*{which}", base, folders, method=method)


def test_a_result_too_large_for_its_dtype(tmp_path):
    base, folders, _, _ = family(tmp_path, dtype=torch.float16)
    refuse(tmp_path, ArgumentError, "too large for its dtype", base, folders, weights=1e7)


def test_integers_are_copied_or_refused(tmp_path):
    base, folders, weights, models = family(tmp_path, 2)
    extra = {"position_ids": torch.arange(5), "mask": torch.tensor([True, False])}
    for folder, tensors_, shards in zip([base, *folders], [weights, *models], (1, 1, 2), strict=True):
        save(folder, {**tensors_, **extra}, shards)
    fuse_checkpoints(base, folders, tmp_path / "fine", "ties", dtype="float32")
    found = read(tmp_path / "fine")
    assert torch.equal(found["position_ids"], extra["position_ids"])
    assert torch.equal(found["mask"], extra["mask"])
    save(folders[1], {**models[1], **extra, "position_ids": torch.arange(5) + 1}, 2)
    refuse(tmp_path, FusionError, "integers differ", base, folders)
    save(folders[1], {**models[1], **extra, "position_ids": torch.arange(5).float()}, 2)
    refuse(tmp_path, FusionError, "dtypes that cannot be fused", base, folders)


def test_other_shapes_names_and_architectures(tmp_path):
    base, folders, _, models = family(tmp_path, 1)
    save(folders[0], {**models[0], "model.scale": torch.zeros(2)})
    refuse(tmp_path, FusionError, "shapes differ", base, folders)
    save(folders[0], {k: v for k, v in models[0].items() if k != "model.scale"})
    refuse(tmp_path, FusionError, "lacks a tensor of the base, got 'model.scale'", base, folders)
    save(folders[0], {**models[0], "extra.w": torch.zeros(2)})
    refuse(tmp_path, FusionError, "the base does not have, got 'extra.w'", base, folders)
    save(folders[0], models[0], config={**CONFIG, "num_attention_heads": 4})
    refuse(tmp_path, FusionError, "another architecture: num_attention_heads is 4", base, folders)


def test_missing_tensors_that_are_allowed(tmp_path):
    base, folders, weights, models = family(tmp_path, 2)
    del models[0]["model.scale"]
    save(folders[0], {**models[0], "extra.w": torch.zeros(2)})
    allow = ["model.sc*", "extra.w"]
    merged = fuse_checkpoints(base, folders, tmp_path / "out", weights=1.0, allow_missing=allow)
    found = read(tmp_path / "out")
    assert found.keys() == weights.keys()
    assert torch.equal(found["model.scale"], models[1]["model.scale"])
    assert len(merged.notes) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "counts as unchanged" in card
    refuse(
        tmp_path / "m0", ArgumentError, "matches no tensor, got 'nope'", base, folders, allow_missing=["nope", *allow]
    )


def test_a_tied_model_and_an_untied_base(tmp_path):
    base, folders, weights, models = family(tmp_path, 2)
    del models[0]["lm_head.weight"]
    save(folders[0], models[0], config={**CONFIG, "tie_word_embeddings": True})
    fuse_checkpoints(base, folders, tmp_path / "fused", weights=0.5)
    models[0]["lm_head.weight"] = models[0]["model.embed_tokens.weight"]
    assert equal(read(tmp_path / "fused"), naive("task_arithmetic", weights, models, 0.5))
    del weights["lm_head.weight"]
    save(base, weights, config={**CONFIG, "tie_word_embeddings": True})
    refuse(tmp_path, FusionError, "a separate output head", base, folders)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "tise"}, "Did you mean 'ties'"),
        ({"method": "ties", "density": 20}, "density must be in"),
        ({"weights": [1.0]}, "need 3 weights"),
        ({"dtype": "float8"}, "no such dtype"),
        ({"shard_size": "5 apples"}, "not a size"),
        ({"shard_size": 0}, "shard_size must be"),
        ({"threads": 0}, "threads must be"),
        ({"block": True}, "block must be"),
        ({"device": "tpu"}, "no such device"),
        ({"device": "meta"}, "no such device"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, words):
    base, folders, _, _ = family(tmp_path)
    error = PluginError if "tise" in options.values() else ArgumentError
    refuse(tmp_path, error, words, base, folders, **options)


def test_models_that_cannot_be(tmp_path):
    base, folders, _, _ = family(tmp_path, 1)
    refuse(tmp_path, FusionError, "slerp fuses exactly 2, got 1", base, folders, method="slerp")
    refuse(tmp_path, ArgumentError, "nothing to fuse", base, [])
    refuse(tmp_path, FileError, "no such folder", base, [tmp_path / "x"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    refuse(tmp_path, FusionError, "adapters and checkpoints in one", base, [adapter, *folders])
    refuse(tmp_path, ArgumentError, "allow_missing is for checkpoints", base, [adapter], allow_missing=["x"])
    refuse(tmp_path, ArgumentError, "an adapter where a full checkpoint", adapter, folders)


def test_an_output_that_exists(tmp_path):
    base, folders, _, _ = family(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    refuse(tmp_path, OutputError, "exists", base, folders)
    with pytest.raises(OutputError, match=r"did not write.*mine"):
        fuse_checkpoints(base, folders, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "mine").unlink()
    fuse_checkpoints(base, folders, tmp_path / "out")
    fuse_checkpoints(base, folders, tmp_path / "out", weights=0.5, overwrite=True)
    assert json.loads((tmp_path / "out" / "tangora_fusion.json").read_text())["weights"] == [0.5] * len(folders)
    assert not list(tmp_path.glob(".out*"))


def test_methods_of_other_granularity(tmp_path, monkeypatch):
    from tangora.methods import _registry

    monkeypatch.setattr(_registry, "_METHODS", dict(_registry.methods()))

    @fusion_method("rowmax", granularity="tensor", reference="none", default_weight=1.0)
    def rowmax(deltas, *, weights):
        """Needs the tensor in its shape."""
        # one by one, because the order of `Tensor.sum` is its own
        total = sum(w * d for w, d in zip(weights, deltas, strict=True))
        return total * (deltas.shape[1] if deltas.ndim > 1 else 1)

    @fusion_method("all", granularity="model", reference="none", default_weight=1.0)
    def everything(deltas, *, weights):
        """Needs the model."""
        return deltas.sum(0)

    base, folders, weights, models = family(tmp_path, dtype=torch.float32)
    fuse_checkpoints(base, folders, tmp_path / "t", "rowmax", block=50, threads=2)
    assert equal(read(tmp_path / "t"), naive("rowmax", weights, models, 1.0))
    refuse(tmp_path, FusionError, "all needs all tensors at once", base, folders, method="all")


def test_float64_is_computed_in_float64(tmp_path):
    weights = {"w": torch.randn(30, 3, dtype=torch.float64)}
    other = {"w": weights["w"] + 1e-12}
    base, model = save(tmp_path / "base", weights), save(tmp_path / "m", other)
    fuse_checkpoints(base, [model], tmp_path / "out", "ties", 1.0, density=1.0)
    torch.testing.assert_close(read(tmp_path / "out")["w"], other["w"], rtol=0, atol=1e-15)
    fuse_checkpoints(base, [model], tmp_path / "third", "ties", 1.0, density=0.3)
    assert int((read(tmp_path / "third")["w"] != weights["w"]).sum()) >= 27


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ties_per_tensor", "dare", "iso_c"])
def test_the_lane_of_a_gpu_gives_the_same_bits(tmp_path, monkeypatch, method, dtype):
    """On the processor, as a device like any other: everything but pinning and the stream."""
    monkeypatch.setattr("tangora.checkpoints.gpu.check_device", lambda name: None)
    monkeypatch.setattr("tangora.checkpoints.steps._SAMPLES", {"tensor": 64, "model": 64})
    base, folders, _, _ = family(tmp_path, dtype=dtype)
    fuse_checkpoints(base, folders, tmp_path / "cpu", method)
    fuse_checkpoints(base, folders, tmp_path / "there", method, device="cpu:0", block=64)
    assert equal(read(tmp_path / "there"), read(tmp_path / "cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ties_per_tensor", "dare"])
def test_on_a_gpu(tmp_path, method):
    base, folders, _, _ = family(tmp_path, dtype=torch.float32)
    fuse_checkpoints(base, folders, tmp_path / "cpu", method)
    fuse_checkpoints(base, folders, tmp_path / "gpu", method, device="cuda", block=64)
    ours, theirs = read(tmp_path / "cpu"), read(tmp_path / "gpu")
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in SHAPES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu_here(tmp_path):
    base, folders, _, _ = family(tmp_path)
    refuse(tmp_path, ArgumentError, "no CUDA device here", base, folders, device="cuda")


def test_an_empty_tensor(tmp_path):
    weights = tensors(shapes={"w": (3, 2), "none": (0, 4)})
    base, model = save(tmp_path / "base", weights), save(tmp_path / "m", tuned(weights, 1))
    for method in ("task_arithmetic", "ties", "ties_per_tensor"):
        fuse_checkpoints(base, [model], tmp_path / method, method, shard_size=1)
        assert read(tmp_path / method)["none"].shape == (0, 4)
