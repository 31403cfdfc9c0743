from __future__ import annotations

import threading

import pytest
import torch

from tangora.adapters.adapter import Adapter
from tangora.support.threads import alone, in_threads
from tangora.updates.task_vector import Dense, LowRank, TaskVector


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_order_and_number_of_threads(threads):
    together = threading.Barrier(threads, timeout=60)

    def work(item):
        together.wait()
        return item, torch.get_num_threads()

    assert in_threads(work, range(6)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == threads


def test_an_error_comes_through_and_the_threads_come_back(threads):
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0])
    assert torch.get_num_threads() == threads


def test_the_bits_do_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    vector = TaskVector(
        {
            str(i): LowRank(torch.randn(300, 40, generator=generator), torch.randn(40, 200, generator=generator))
            for i in range(4)
        }
    )
    before, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(vector.compress(5)[0])
    torch.set_num_threads(before)
    assert all(torch.equal(found[0][s].b, found[1][s].b) and torch.equal(found[0][s].a, found[1][s].a) for s in vector)


def test_the_bytes_of_a_saved_adapter_do_not_depend_on_the_number_of_threads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    updates = {str(i): Dense(torch.randn(192, 256, generator=generator)) for i in range(3)}
    before, files = torch.get_num_threads(), []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        Adapter(updates).save(tmp_path / str(count))
        files.append((tmp_path / str(count) / "adapter_model.safetensors").read_bytes())
    torch.set_num_threads(before)
    assert files[0] == files[1] == files[2]


def test_scipy_that_is_loaded_inside_threads_works_in_one_thread():
    from threadpoolctl import threadpool_info

    def loaded(item):
        import scipy.linalg  # noqa: F401

        with alone():
            return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    for counts in in_threads(loaded, range(4)):
        assert counts
        assert set(counts) == {1}
