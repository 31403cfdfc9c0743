"""Stacks of updates in reused memory, and methods that would keep a part of it."""

import pytest
import torch

import toys
from tangora.fusion import stacks
from tangora.fusion.fusion import fuse
from tangora.fusion.stacks import Memory, stacked
from tangora.methods import fusion_method
from tangora.updates.task_vector import Dense, LowRank


def low_rank(seed: int, out: int = 5, inside: int = 4, scaling: float = 1.0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    b, a = (torch.randn(*shape, generator=generator) for shape in ((out, 8), (8, inside)))
    return LowRank(b.to(dtype), a.to(dtype), scaling)


def test_a_stack_is_that_of_the_dense_updates_bit_for_bit():
    memory = Memory()
    for shape in ((8, 8), (3, 7), (32, 16), (17, 5)):  # a smaller and a larger one after the first, and odd sizes
        updates = [low_rank(1, *shape, scaling=0.3), None, low_rank(2, *shape)]
        found = stacked(updates, memory)
        assert torch.equal(found, torch.stack([updates[0].dense(), torch.zeros(shape), updates[2].dense()]))
        assert torch.equal(found, stacked(updates))


def test_a_stack_has_the_widest_dtype():
    updates = [low_rank(1), low_rank(2, dtype=torch.float64), low_rank(3, dtype=torch.bfloat16)]
    for found in (stacked(updates, Memory()), stacked([updates[0], Dense(updates[1].dense()), updates[2]], Memory())):
        assert found.dtype == torch.float64
        assert torch.equal(found, torch.stack([update.dense().double() for update in updates]))


@pytest.mark.parametrize("shape", [(107, 9), (129, 9), (3, 118), (17, 5)])
def test_opposite_updates_cancel_at_every_shape(shape):
    """A product may be rounded otherwise at another alignment: then entries of TIES would be elected by a last bit."""
    update = low_rank(3, *shape)
    first, second, third = stacked([update, LowRank(-update.b, update.a), update], Memory())
    assert not (first + second).any()
    assert torch.equal(first, third)


def test_updates_of_other_widths_are_no_stack():
    with pytest.raises(RuntimeError, match="size"):
        stacked([low_rank(1, 8, 8), low_rank(2, 16, 8)], Memory())


def test_large_stacks_are_not_kept(monkeypatch):
    monkeypatch.setattr(stacks, "_KEPT", 2 * 8 * 8)
    memory = Memory()
    small = stacked([low_rank(1, 8, 8), low_rank(2, 8, 8)], memory)
    large = stacked([low_rank(1, 16, 8), low_rank(2, 16, 8)], memory)
    assert large.data_ptr() != small.data_ptr()
    assert stacked([low_rank(3, 8, 8), None], memory).data_ptr() == small.data_ptr()


def test_the_memory_of_a_stack_is_used_again_and_that_without_factors_is_new():
    memory, updates = Memory(), [low_rank(1), low_rank(2)]
    first = stacked(updates, memory)
    assert stacked(updates[::-1], memory).data_ptr() == first.data_ptr()
    dense = [Dense(update.dense()) for update in updates]
    assert stacked(dense, memory).data_ptr() != first.data_ptr()
    assert torch.equal(stacked(dense), stacked(updates))


def test_gradients_pass_through_a_stack():
    update = low_rank(1)
    update.a.requires_grad_()
    stacked([update, low_rank(2)], Memory()).sum().backward()
    torch.testing.assert_close(update.a.grad, update.b.sum(0)[:, None].expand(8, 4))


VIEWS = {
    "torch": lambda deltas: deltas[1],
    "numpy": lambda deltas: torch.from_numpy(deltas.numpy()[1]),
    "dlpack": lambda deltas: torch.from_dlpack(deltas[1].numpy()),
    "transposed": lambda deltas: deltas[1].T.contiguous().T,
}


@pytest.fixture(params=VIEWS)
def kept(request, monkeypatch):
    """Name a method that returns a view of its input."""
    from tangora.methods import _registry

    monkeypatch.setattr(_registry, "_METHODS", dict(_registry.methods()))

    @fusion_method("kept", granularity="tensor", reference="none", default_weight=1.0)
    def first(deltas, *, weights):
        """The second."""
        return VIEWS[request.param](deltas)

    return "kept"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_method_may_return_a_part_of_its_stack(kept, threads):
    shapes = {f"layer{i}": (8, 8) for i in range(4)}
    pair, before = [toys.lora(seed, shapes=shapes) for seed in (1, 2)], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fused = fuse(pair, kept)
    finally:
        torch.set_num_threads(before)
    for site, update in pair[1].updates.items():
        assert torch.equal(fused.updates[site].dense(), update.dense())
