"""The compiled kernels beside NumPy's and torch's passes, on entries chosen to be hard: the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangora.checkpoints import kernels
from tangora.checkpoints.align import Target
from tangora.checkpoints.fast import FastLane, Kernels
from tangora.checkpoints.fuser import Fuser
from tangora.checkpoints.lane import Lane
from tangora.checkpoints.plan import Placement
from tangora.checkpoints.select import Selection
from tangora.errors import TangoraError
from tangora.fusion.computation import Computation
from tangora.methods import get
from tangora.storage.floats import LARGEST, narrowed
from tangora.storage.header import FLOATS, ITEMSIZE, Stored

KINDS = ("BF16", "F16", "F32")


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_is_widened_as_torch_does(dtype):
    raw = np.arange(2**16).astype(np.uint16)
    into = np.empty(2**16, np.float32)
    kernels.widen(raw.view(np.uint8), kernels.KINDS[dtype], into)
    expected = torch.from_numpy(raw.view(np.int16)).view(getattr(torch, FLOATS[dtype])).float().numpy()
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(into), nan)
    assert np.array_equal(into.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_its_neighbours_and_midpoints_are_rounded_as_torch_does(dtype):
    halves = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(getattr(torch, FLOATS[dtype])).double()
    halves = halves[halves.isfinite()]
    points = torch.cat([halves, (halves[1:] + halves[:-1]) / 2]).float().numpy()
    close = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, -np.float32(1))])
    close = close[np.abs(close) <= LARGEST[dtype]]
    numbers = np.concatenate([close, -close, np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32).view("f4")])
    numbers = numbers[np.abs(numbers) <= LARGEST[dtype]].astype(np.float32)
    out, expected = np.empty(2 * len(numbers), np.uint8), np.empty(2 * len(numbers), np.uint8)
    narrowed(numbers, dtype, expected)
    kernels.narrow(numbers, kernels.KINDS[dtype], out)  # overwrites them
    assert np.array_equal(out.view(np.uint16), expected.view(np.uint16))


# --- merges of a block


class Memory:
    """Stands for `InputFiles`: tensors by name."""

    def __init__(self, raw):
        self.raw = raw

    def read(self, stored, start, into):
        into[:] = self.raw[stored.name][start : start + len(into)].tobytes()

    def expect(self, stored, start, size):
        pass


class Collected:
    def __init__(self):
        self.data, self.digests = {}, []

    def write(self, placement, start, data):
        self.data[start] = bytes(data)

    def done(self, placement, start, stop, digest):
        self.digests.append(digest)


def raw_of(values, dtype):
    numbers = np.asarray(values, np.float64)
    if dtype == "BF16":
        return torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint8)
    with np.errstate(over="ignore"):
        return numbers.astype({"F16": np.float16, "F32": np.float32}[dtype]).view(np.uint8)


FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.0, -2.0, 3.0, 1e-40, -1e-40, 6e-8, 1e-12])
HARD = st.sampled_from([float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 65504.0, -65504.0, 70000.0])
ANY = st.floats(-1e4, 1e4, width=32)
WEIGHT = st.sampled_from([0.0, 1.0, -1.0, 0.3, 0.1, 1e30, -2.5])


@st.composite
def blocks(draw, hard=False):
    """A target of a few entries, the bytes of its base and models (one may lack it), and what is to be made of it."""
    tasks, entries = draw(st.integers(1, 5)), draw(st.integers(1, 24))
    values = st.one_of(FEW, ANY, HARD) if hard else draw(st.sampled_from([FEW, st.one_of(FEW, ANY), st.just(0.0)]))
    names = ["base", *map(str, range(tasks))]
    dtypes = [draw(st.sampled_from(KINDS)) for _ in names]
    raw = {
        n: raw_of(draw(st.lists(values, min_size=entries, max_size=entries)), d)
        for n, d in zip(names, dtypes, strict=True)
    }
    stored = [Stored(n, d, (entries,), Path(n), 0, entries * ITEMSIZE[d]) for n, d in zip(names, dtypes, strict=True)]
    left = draw(st.integers(-3, tasks - 1)) if tasks > 1 else -1
    parts = tuple(None if i == left else part for i, part in enumerate(stored[1:]))
    weights = draw(st.lists(WEIGHT, min_size=tasks, max_size=tasks))
    cutoffs = draw(st.lists(st.sampled_from([0.0, 1e-40, 0.5, 1.0, 2.0]), min_size=tasks, max_size=tasks))
    return Target("w", stored[0], parts), raw, weights, cutoffs, draw(st.sampled_from(KINDS))


def made(method, block, lane, size):
    """The bytes that a lane writes, with their digest, or its error."""
    target, raw, weights, cutoffs, dtype = block
    record, sink = get(method), Collected()
    parameters = {"density": 0.3} if record.after_thinning else {}
    computation = Computation(record, weights, parameters, fingerprints=[str(i) for i in range(len(weights))])
    fuser = Fuser(computation, sink, size)
    placement = Placement(target, 0, 0, dtype)
    try:
        fuser.run(placement, 0, target.entries, cutoffs if record.cutoff else None, lane(Memory(raw), target, size))
    except TangoraError as error:
        return f"{type(error).__name__}: {error}"
    return b"".join(data for _, data in sorted(sink.data.items())), sink.digests


def plain(files, target, size):
    return Lane(files, len(target.parts), size, 4, False)


def compiled(method):
    record = get(method)
    found = Kernels(kernels, "sum" if record.linear else record.after_thinning)
    return lambda files, target, size: FastLane(files, len(target.parts), size, 4, found)


METHODS = ["task_arithmetic", "magnitude_prune", "ties_per_tensor", "ties_sum", "dare", "dare_ties"]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_block_has_the_same_bytes_or_the_same_error(method, hard):
    @settings(max_examples=150, deadline=None)
    @given(blocks(hard), st.sampled_from([1, 7, 24]))
    def check(block, size):
        if hard:
            block = (*block[:4], "F32")
        assert made(method, block, compiled(method), size) == made(method, block, plain, size)

    check()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("entries", [kernels.SPAN - 1, kernels.SPAN, 3 * kernels.SPAN + 5])
def test_spans_change_nothing(method, entries):
    random = np.random.default_rng(entries)
    names = ["base", "0", "1", "2"]
    raw = {name: raw_of(random.standard_normal(entries).round(1), "BF16") for name in names}
    stored = [Stored(name, "BF16", (entries,), Path(name), 0, 2 * entries) for name in names]
    block = (Target("w", stored[0], tuple(stored[1:])), raw, [1.0, 0.7, -2.0], [0.3, 0.8, 1.1], "BF16")
    assert made(method, block, compiled(method), entries) == made(method, block, plain, entries)


def merged(method, values, **thinning):
    """The float32 numbers that a kernel makes of tasks' changes from a base of zeros, by weights of 1."""
    count = len(values[0])
    raw = {"base": raw_of([0.0] * count, "F32"), **{str(i): raw_of(row, "F32") for i, row in enumerate(values)}}
    base, *parts = (Stored(name, "F32", (count,), Path(name), 0, 4 * count) for name in raw)
    target = Target("w", base, tuple(parts))
    data = compiled(method)(Memory(raw), target, count).merged(target, 0, count, "F32", [1.0] * len(values), **thinning)
    return np.frombuffer(data, np.float32).tolist()


def test_an_election_is_by_sums_in_float64():
    assert merged("ties", [[1.0], [1e-12], [-1.0]], cutoffs=[0.0] * 3) == [0.5]  # in float32 the sum would be zero
    assert merged("ties", [[1.0], [0.0], [-1.0]], cutoffs=[0.0] * 3) == [0.0]


def test_an_entry_stays_if_its_number_is_under_the_density():
    draws = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.0, 0.9]], np.float32)
    assert merged("dare", [[1.0, 1.0, -3.0, 1.0]], draws=draws, density=0.5) == [0.0, 2.0, -6.0, 0.0]


def test_an_entry_stays_if_it_is_not_under_the_cutoff():
    under = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert merged("magnitude_prune", [[0.5, under, -0.5, -under]], cutoffs=[0.5]) == [0.5, 0.0, -0.5, 0.0]


@settings(max_examples=100, deadline=None)
@given(blocks(), st.sampled_from([1, 7, 24]), st.integers(1, 30), st.integers(0, 3))
def test_the_same_entries_are_counted(block, size, keep, skipped):
    target, raw, *_ = block
    found = []
    for lane in (plain(Memory(raw), target, size), compiled("ties")(Memory(raw), target, size)):
        selections = [Selection(min(keep, target.entries), target.entries) for _ in target.parts]
        for selection in selections[:skipped]:
            selection.cutoff = 1.0
        for _ in range(3):
            for start in range(0, target.entries, size):
                lane.count(target, start, min(start + size, target.entries), selections)
            counted = [(s._above, s._held, [w.tolist() for w in s._waiting]) for s in selections]
            found.append(counted)
            for selection in selections:
                selection.narrow()
        found.append([s.cutoff for s in selections])
    assert found[: len(found) // 2] == found[len(found) // 2 :]
