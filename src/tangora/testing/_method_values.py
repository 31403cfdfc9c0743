"""Checks that hold for every fusion method, whatever it declares: shapes, dtypes, order, memory, weights."""

from __future__ import annotations

import itertools
import math

import torch

from tangora.methods import Method
from tangora.testing._method_inputs import (
    SHAPE,
    TASKS,
    call,
    draws,
    dtype_of,
    one_update,
    per_task,
    refusal,
    require_close,
    require_equal,
    stack,
    statistics_of,
    weights_of,
)

__all__ = [
    "check_broadcasting",
    "check_description",
    "check_determinism",
    "check_dtype_of_weights",
    "check_gradients",
    "check_layout",
    "check_limits",
    "check_no_mutation",
    "check_order_of_tasks",
    "check_shapes_and_dtypes",
    "check_sums_of_half_precision",
    "check_weights_of_entries",
    "check_zeros",
]


def check_shapes_and_dtypes(method: Method) -> None:
    """Check that the result has the shape and floating dtype of the updates, and is finite."""
    for shape in ((), (1,), (7,), SHAPE, (2, 3, 4)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            result = call(method, stack(shape=shape, dtype=dtype), per_task(0.5, 1.0, 0.25, ndim=len(shape)))
            what = f"of updates of shape {shape} and {dtype}"
            assert result.shape == shape, f"the result {what} is of shape {tuple(result.shape)}"
            assert result.dtype == dtype, f"the result {what} is {result.dtype}"
            assert bool(result.isfinite().all()), f"the result {what} is not finite"


def check_sums_of_half_precision(method: Method) -> None:
    """Check that half precision is summed in float32 and rounded once."""
    deltas = stack(dtype=torch.bfloat16)
    wide = call(method, deltas.float(), weights_of(deltas.float()))
    actual = call(method, deltas, weights_of(deltas.float()))
    assert torch.equal(actual, wide.bfloat16()), "bfloat16 is not added up in float32"


def check_dtype_of_weights(method: Method) -> None:
    """Check that weights of another dtype do not change the result or its dtype."""
    deltas = stack()
    actual = call(method, deltas, weights_of(deltas).double())
    assert actual.dtype == torch.float32, f"weights in float64 make the result {actual.dtype}"
    assert torch.equal(actual, call(method, deltas, weights_of(deltas))), "weights in float64 change the result"


def check_no_mutation(method: Method) -> None:
    """Check that inputs are not changed and that the result does not share their memory."""
    deltas, uniforms = stack(), draws()
    statistics = statistics_of(method, deltas)
    inputs = {"deltas": deltas, "weights": weights_of(deltas), "uniforms": uniforms}
    inputs |= {} if statistics is None else {"statistics": statistics}
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    result = call(method, **inputs)
    result += 1
    for name, old in before.items():
        assert torch.equal(old, inputs[name]), f"{name} were changed, or share the result's memory"
    single, ones = one_update(method)
    alone = call(method, single, ones, **method.neutral)
    shared = alone.untyped_storage().data_ptr() == single.untyped_storage().data_ptr()
    assert not shared, "the result for one task shares its memory"


def check_order_of_tasks(method: Method) -> None:
    """Check that the order of the tasks does not matter."""
    deltas, uniforms = stack(dtype=torch.float64), draws()
    weights = weights_of(deltas)
    expected = call(method, deltas, weights, uniforms=uniforms)
    for order in itertools.permutations(range(method.tasks or TASKS)):
        p = list(order)
        actual = call(method, deltas[p], weights[p], uniforms=uniforms[p])
        require_close(actual, expected, f"the tasks in the order {p}")


def check_layout(method: Method) -> None:
    """Check that the layout in memory does not matter: bit for bit if ``exact``."""
    deltas, uniforms = stack(dtype=dtype_of(method)), draws()
    strided = deltas.transpose(1, 2).contiguous().transpose(1, 2)
    actual = call(method, strided, weights_of(deltas), uniforms=uniforms.transpose(1, 2).contiguous().transpose(1, 2))
    require_equal(
        method, actual, call(method, deltas, weights_of(deltas), uniforms=uniforms), "another layout in memory"
    )


def check_determinism(method: Method) -> None:
    """Check that the same call gives the same bits, and neither uses nor changes the global random state."""
    deltas = stack()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = call(method, deltas, weights_of(deltas))
        assert torch.equal(before, torch.get_rng_state()), "it draws from the global generator: take uniforms"
        torch.manual_seed(1)
        assert torch.equal(first, call(method, deltas, weights_of(deltas))), "the same call gives another result"
    if method.random:
        other = call(method, deltas, weights_of(deltas), uniforms=1 - draws())
        assert not torch.equal(first, other), "random=True, but the uniforms change nothing"


def check_broadcasting(method: Method) -> None:
    """Check that weights per task, row or entry give the same result if they broadcast to the same values."""
    deltas = stack()
    weights = weights_of(deltas)
    expected = call(method, deltas, weights.expand(len(weights), *SHAPE).contiguous())
    for shape in ((1, 1), SHAPE, (1, SHAPE[1])):
        actual = call(method, deltas, weights.expand(len(weights), *shape))
        assert torch.equal(actual, expected), f"weights of shape {(len(weights), *shape)} give another result"


def check_weights_of_entries(method: Method) -> None:
    """Check weights that vary by row: applied in each row, or multiplied in first if the method is not additive."""
    deltas = stack(dtype=torch.float64)
    weights, scales = weights_of(deltas), torch.linspace(1.0, 2.0, SHAPE[0], dtype=torch.float64).reshape(1, -1, 1)
    actual = call(method, deltas, weights * scales)
    if method.additive or not method.homogeneous:
        rows = [call(method, deltas, weights * scales[:, i : i + 1])[i] for i in range(SHAPE[0])]
        require_close(actual, torch.stack(rows), "weights that vary by row")
    else:
        weighted = call(method, deltas * (weights * scales), torch.ones_like(weights))
        require_close(actual, weighted, "weights that vary by row, and updates that were multiplied by them")


def check_zeros(method: Method) -> None:
    """Check that updates of zero stay zero."""
    zeros = torch.zeros(TASKS, *SHAPE)
    actual = call(method, zeros, weights_of(zeros))
    assert torch.equal(actual, torch.zeros(SHAPE)), "updates of zero do not stay zero"


def check_gradients(method: Method) -> None:
    """Check that gradients reach the weights, so that a search can differentiate through a fusion."""
    deltas = stack()
    weights = weights_of(deltas).clone().requires_grad_()
    call(method, deltas, weights).square().sum().backward()
    assert weights.grad is not None, "no gradient reaches the weights"
    assert bool((weights.grad != 0).any()), "the gradient of the weights is zero"


def check_limits(method: Method) -> None:
    """Check that defaults are within their limits, and that values outside are refused with the parameter's name."""
    method.check(method.parameters)
    method.check(method.neutral)
    for name, limit in method.limits.items():
        outside = [value for value in (limit.low - 1, limit.high + 1) if math.isfinite(value)]
        for value in map(type(method.parameters[name]), outside):
            message = refusal(lambda: method.check({name: value}))  # noqa: B023
            assert name in message, f"{name}={value} is out of range, and check() does not say so"


def check_description(method: Method) -> None:
    """Check that the record is complete: a docstring, a reference, a finite default weight."""
    assert method.summary, "the function has no docstring; its first line is the method's summary"
    assert method.reference, "no reference: name the paper, or say none"
    assert math.isfinite(method.default_weight), f"the default weight is {method.default_weight}"
    assert "\n" not in repr(method), "the record's repr must be one line"
