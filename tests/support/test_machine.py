"""The machine: what settings mean here, and how many threads are chosen."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tangora.config.machine import MachineConfig
from tangora.errors import ArgumentError
from tangora.support import machine as module
from tangora.support.machine import Machine, fastest, measured_threads


@pytest.fixture(autouse=True)
def _fresh():
    threads = torch.get_num_threads()
    measured_threads.cache_clear()
    yield
    measured_threads.cache_clear()
    torch.set_num_threads(threads)


def test_auto_is_an_accelerator_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Machine.resolve("auto", threads=1).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module.torch, "zeros", lambda *_, **__: None)
    assert Machine.resolve("auto", threads=1).device == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ArgumentError, match=r"the device cannot be used \(.*\), got 'cuda:3' at machine.device"):
        Machine.resolve("cuda:3", threads=1)


@pytest.mark.parametrize("settings", [{"device": "gpu"}, {"dtype": "int8"}, {"threads": 0}, {"thread": 1}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValidationError):
        MachineConfig(**settings)


def test_operations_compute_in_the_dtype_and_weights_stay():
    layer = torch.nn.Linear(2, 2)
    with Machine(dtype="bfloat16").autocast():
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    with Machine().autocast():
        assert layer(torch.ones(1, 2)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_the_environment_decides_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert measured_threads() == 3


def timed(monkeypatch, seconds):
    """A step that takes so many seconds, by the number of threads, on a clock of its own."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def step():
        now[0] += seconds[torch.get_num_threads()]

    return step


def test_threads_that_wait_for_each_other_are_not_chosen(monkeypatch):
    assert fastest([1, 2], timed(monkeypatch, {1: 1.0, 2: 10.0})) == 1
    assert fastest([1, 2], timed(monkeypatch, {1: 1.0, 2: 0.95})) == 1


def test_threads_that_help_are_chosen_and_the_setting_is_put_back(monkeypatch):
    torch.set_num_threads(1)
    assert fastest([1, 2, 4], timed(monkeypatch, {1: 1.0, 2: 0.6, 4: 0.7})) == 2
    assert torch.get_num_threads() == 1
