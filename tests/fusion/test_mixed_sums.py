"""Fusions that are sums with coefficients from inner products: the same sum, wherever it is computed."""

import pytest
import torch

import toys
import zoo
from folders import read, save
from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.checkpoints import fuse_checkpoints
from tangora.fusion.computation import Computation
from tangora.fusion.fusion import Fusion, fuse
from tangora.fusion.mixing import as_sum, mixed
from tangora.methods import get, methods
from tangora.updates.task_vector import Dense, LowRank

MIXED = [name for name, method in methods().items() if method.mixing is not None]


def test_there_are_some():
    assert {"mean_norm", "equal_norms"} <= {*MIXED}


@pytest.mark.parametrize("name", MIXED)
def test_the_sum_is_what_the_method_makes_of_dense_tensors(name):
    adapters, method = [toys.lora(seed) for seed in (1, 2, 3)], get(name)
    vectors = [adapter.updates for adapter in adapters]
    summed = as_sum(Computation(method, [0.5, 1.0, 1.5], dict(method.parameters)), vectors, vectors[0])
    assert summed.method.name == name
    assert summed.method.linear
    for site in vectors[0]:
        deltas = torch.stack([vector[site].dense().double() for vector in vectors])
        wanted = method(deltas, weights=torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)[:, None, None])
        found = sum(c * delta for c, delta in zip(summed.coefficients(site), deltas, strict=True))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # factors in float32


def test_what_is_no_such_sum():
    pair = [toys.lora(1).updates, toys.lora(2).updates]
    assert as_sum(Computation(get("ties"), [1.0, 1.0], {}), pair, pair[0]) is None
    dense = [{site: Dense(update.dense()) for site, update in vector.items()} for vector in pair]
    assert as_sum(Computation(get("mean_norm"), [1.0, 1.0], {}), dense, pair[0]) is None
    alone = mixed(Computation(get("mean_norm"), [1.0, 1.0], {}), "up", [None, pair[1]["up"]])
    assert alone[1] == pytest.approx(1.0)  # as large as itself: the mean is over the adapters that have the tensor


@pytest.mark.parametrize("name", MIXED)
def test_a_merge_is_that_of_the_fused_adapter_in_the_memory_of_a_sum(tmp_path, name):
    base = zoo.save_base(tmp_path / "base")
    folders = [zoo.write(tmp_path / f"a{i}", i, target_modules=["up", "turned"]) for i in (1, 2)]
    weights = [0.4, 0.9]
    merged = fuse_checkpoints(base, folders, tmp_path / "merged", name, weights, dtype="float32")
    assert merged.method == name
    assert f"by {name}" in repr(merged)
    assert merged.verified.linear
    assert f"the base and {name} of the adapters" in merged.verified.summary()
    fuse(folders, name, weights).save(tmp_path / "fused")
    fuse_checkpoints(base, [tmp_path / "fused"], tmp_path / "same", weights=1.0, dtype="float32")
    mine, theirs = (read(tmp_path / folder) for folder in ("merged", "same"))
    assert mine.keys() == theirs.keys()
    for tensor in mine:
        torch.testing.assert_close(mine[tensor], theirs[tensor], rtol=1e-5, atol=1e-6)
    planned = fuse_checkpoints(base, folders, tmp_path / "x", name, dry_run=True, threads=1).memory.total
    summed = fuse_checkpoints(base, folders, tmp_path / "x", "task_arithmetic", dry_run=True, threads=1).memory.total
    assert planned == pytest.approx(summed, rel=0.05)


@pytest.mark.parametrize("name", MIXED)
def test_coefficients_are_of_what_a_training_changed(tmp_path, name):
    """Adapters of one start that is not zero: their merge is that of the fused adapter."""
    base = save(tmp_path / "base", toys.toy().state_dict(), config={})
    folders, start = [tmp_path / "a1", tmp_path / "a2"], toys.lora(7).updates
    for seed, folder in enumerate(folders, 1):
        moved = {site: LowRank(u.b + 0.1 * seed * torch.sign(u.b), u.a, u.scaling) for site, u in start.items()}
        Adapter(moved, Metadata(base=BaseInfo(model="toy")), LoraDetails(initial=start)).save(folder)
    assert Fusion(folders).adapters[0].start
    fuse_checkpoints(base, folders, tmp_path / "merged", name, 1.0, dtype="float32")
    fused, before, after = fuse(folders, name, 1.0), read(base), read(tmp_path / "merged")
    for site, update in fused.updates.items():
        changed = after[f"{site}.weight"].double() - before[f"{site}.weight"].double()
        torch.testing.assert_close(changed, update.dense().double(), rtol=1e-4, atol=1e-5)


def test_a_wrong_site_of_such_a_sum_is_found(tmp_path):
    """Every site is compared with the adapters' files, not a sample of them."""
    from tangora.errors import AdapterError
    from tangora.fusion.sources import SourceAdapter
    from tangora.fusion.verification import verify

    pair = [toys.lora(1), toys.lora(2)]
    for i, adapter in enumerate(pair):
        adapter.save(tmp_path / f"a{i}")
    fusion = Fusion([tmp_path / "a0", tmp_path / "a1"])
    fused = fusion.merge("mean_norm", 1.3)
    fused.save(tmp_path / "out")
    sources = [SourceAdapter(adapter, tmp_path / f"a{i}") for i, adapter in enumerate(fusion.adapters)]
    verified = verify(fused, tmp_path / "out", sources)
    assert (verified.reference, verified.again) == ("parents", len(fused.updates))
    for site in fused.updates:
        wrong = {**fused.updates, site: fused.updates[site] * 1.001}
        other = tmp_path / f"wrong-{site}"
        changed = fusion.merge("mean_norm", 1.3)
        changed.updates.clear()
        changed.updates.update(wrong)
        changed.save(other)
        with pytest.raises(AdapterError, match="another update"):
            verify(changed, other, sources)
