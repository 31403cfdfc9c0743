"""Checks of what a fusion method declares; if possible in both directions: true promises hold, false ones do not."""

from __future__ import annotations

from dataclasses import replace

import torch

from tangora.methods import Method
from tangora.methods._sparsity import rescaled_samples, trim
from tangora.methods._sums import elected_mean, elected_sum, weighted_sum
from tangora.testing._method_inputs import (
    SHAPE,
    TASKS,
    WEIGHTS,
    call,
    chunks,
    draws,
    dtype_of,
    is_equal,
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
    "check_additivity",
    "check_cutoffs",
    "check_granularity",
    "check_homogeneity",
    "check_identity",
    "check_linearity",
    "check_matrices",
    "check_mixing",
    "check_rotations",
    "check_rows",
    "check_statistics",
    "check_symmetry",
    "check_thinning",
]

AFTER_THINNING = {"sum": weighted_sum, "elected_sum": elected_sum, "elected_mean": elected_mean}


def check_granularity(method: Method) -> None:
    """Check that chunks give the same bits if, and only if, the granularity is ``element``.

    Declaring a coarser one than necessary costs memory.
    """
    deltas, uniforms = stack(), torch.full((TASKS, *SHAPE), 0.45)
    deltas[:, :, SHAPE[1] // 2 :] *= 100
    weights, statistics = weights_of(deltas), statistics_of(method, deltas) if method.statistics == "fisher" else None
    unchunked = call(method, deltas, weights, uniforms, statistics)
    same = True
    for dim, length in ((1, SHAPE[0]), (2, SHAPE[1])):
        pieces = chunks([length // 2, 1, length - length // 2 - 1], dim, deltas, uniforms, statistics)
        fused = [call(method, d, weights, u, k) for d, u, k in pieces if d is not None]
        same = same and torch.equal(torch.cat(fused, dim - 1), unchunked)
    if method.granularity == "element":
        assert same, "granularity='element', but chunks differ from the unchunked result"
    else:
        assert not same, f"granularity={method.granularity!r}, but chunks equal the unchunked result: declare 'element'"


def check_symmetry(method: Method) -> None:
    """Check that a ``symmetric`` method commutes with transposition."""
    if method.symmetric:
        deltas, uniforms = stack(dtype=dtype_of(method)), draws()
        turned = call(method, deltas.mT, weights_of(deltas), uniforms=uniforms.mT)
        what = "symmetric=True, but the transposed updates"
        require_equal(method, turned.mT, call(method, deltas, weights_of(deltas), uniforms=uniforms), what)


def check_identity(method: Method) -> None:
    """Check that an ``identity`` method returns the only task of weight 1 unchanged if nothing is dropped."""
    if method.identity:
        deltas, weights = one_update(method)
        fused = call(method, deltas, weights, None, None, **method.neutral)
        require_equal(method, fused, deltas[0], "identity=True, but one update")


def check_homogeneity(method: Method) -> None:
    """Check that ``f(c·weights) = c·f(weights)`` if, and only if, the method is ``homogeneous``."""
    deltas = stack(dtype=dtype_of(method))
    weights = weights_of(deltas)
    plain = call(method, deltas, weights)
    for factor in (2.0, 0.5, -4.0):
        same = is_equal(method, call(method, deltas, weights * factor), factor * plain)
        assert same == method.homogeneous, f"homogeneous={method.homogeneous}, but weights times {factor} contradict it"
    if method.homogeneous:
        assert not bool(call(method, deltas, weights * 0).any()), "homogeneous=True, but weights of 0 leave something"


def check_linearity(method: Method) -> None:
    """Check that the result of a ``linear`` method is ``Σ cₜ νₜ``, with c from the identity; its rule must agree."""
    count = method.tasks or TASKS
    deltas, weights = stack()[:count], torch.tensor(WEIGHTS[:count])
    mixed = call(method, torch.eye(count), weights[:, None])
    mixture = torch.einsum("t,t...->...", mixed, deltas)
    away = float((mixture - call(method, deltas, weights_of(deltas))).abs().max())
    what = f"linear={method.linear}, but with the coefficients of the identity the result is {away:.1e} away"
    assert (away < 1e-5) == method.linear, what
    assert method.linear or method.rule is None, "a rule is for a linear method"
    if method.linear:
        by_rule = method.coefficients(list(WEIGHTS[:count]), {})
        by_identity = replace(method, rule=None).coefficients(list(WEIGHTS[:count]), {})
        right = all(abs(a - b) <= 1e-12 * max(1.0, abs(b)) for a, b in zip(by_rule, by_identity, strict=True))
        assert right, f"the rule gives {by_rule}, the identity {by_identity}"


def check_mixing(method: Method) -> None:
    """Check that the result is the sum with the coefficients of ``mixing``, given the updates' inner products."""
    if method.mixing is None:
        return
    count = method.tasks or TASKS
    deltas = stack(dtype=torch.float64)[:count] * per_task(1.0, 7.0, 0.1).double()[:count]
    for numbers in (WEIGHTS, (1.0, 1.0, 1.0)):
        weights = per_task(*numbers).double()[:count]
        flat = deltas.flatten(1)
        mixed = method.mixing((flat @ flat.T).tolist(), list(numbers[:count]))
        expected = torch.einsum("t,t...->...", torch.tensor(mixed, dtype=torch.float64), deltas)
        require_close(call(method, deltas, weights), expected, "the coefficients of mixing give another result")


def check_additivity(method: Method) -> None:
    """Check that ``f(v + w) = f(v) + f(w)`` in the weights if, and only if, the method is ``additive``."""
    deltas = stack(dtype=torch.float64)
    one, other = weights_of(deltas), per_task(0.25, -0.5, 1.5).double()
    apart = call(method, deltas, one) + call(method, deltas, other)
    away = float((apart - call(method, deltas, one + other)).abs().max())
    assert (away < 1e-6) == method.additive, f"additive={method.additive}, but two calls and one differ by {away:.1e}"


def check_matrices(method: Method) -> None:
    """Check methods that decompose matrices: a kernel is a matrix with a row per output, and noise does not grow."""
    if method.exact or method.statistics:
        return
    count = method.tasks or TASKS
    kernels = stack(shape=(6, 2, 1, 3))[:count]
    weights = per_task(*WEIGHTS[:count])
    flat = call(method, kernels.reshape(count, 6, 6), weights)
    fused = call(method, kernels, weights[..., None, None]).reshape(6, 6)
    assert torch.equal(fused, flat), "a kernel is not treated as a matrix with one row per output"
    generator = torch.Generator().manual_seed(3)
    b, a = (torch.randn(count, *s, generator=generator, dtype=torch.float64) for s in ((20, 2), (2, 16)))
    exact = call(method, b @ a, weights.double())
    away = (call(method, b.float() @ a.float(), weights).double() - exact).abs().max()
    assert bool(away <= 1e-3 * exact.abs().max()), "low-rank updates in float32 and float64 differ: noise was amplified"
    for repeat in (1, 2, 6) if method.tasks is None else (1,):
        equal = stack(shape=(4, 3), dtype=torch.float64)[:count].repeat(repeat, 1, 1)
        ones = torch.ones(len(equal), 1, 1, dtype=torch.float64)
        fused = call(method, equal, ones)
        assert bool(fused.isfinite().all()), f"{len(equal)} updates, some of them equal, are not finite"
        require_close(call(method, equal.flip(0), ones), fused, f"{len(equal)} updates in reverse", 1e-6)


def check_cutoffs(method: Method) -> None:
    """Check that a method given its cutoffs works entry by entry: fusing blocks gives the same bits as fusing all."""
    if method.cutoff is None:
        return
    for dtype in (torch.float32, torch.bfloat16):
        deltas = stack(dtype=dtype)
        weights, entries = weights_of(deltas), SHAPE[0] * SHAPE[1]
        unchunked = call(method, deltas, weights, None, None, **{method.cutoff: 0.3})
        sizes = deltas.float().abs().reshape(len(deltas), -1).sort(descending=True).values
        cutoffs = sizes[:, entries * 3 // 10 - 1].tolist()
        blocks = [
            call(method, d, weights, None, None, cutoffs=cutoffs, **{method.cutoff: 0.3})
            for d in deltas.split(7, dim=1)
        ]
        assert torch.equal(torch.cat(blocks), unchunked), (
            f"with cutoffs, blocks of {dtype} differ from the unchunked result"
        )
        assert bool((unchunked == 0).any()), f"{method.cutoff}=0.3 drops nothing"
        refused = refusal(lambda: call(method, deltas, weights, cutoffs=cutoffs[:-1]))  # noqa: B023
        assert refused, "fewer cutoffs than tasks are not refused"


def check_thinning(method: Method) -> None:
    """Check that the result is what ``after_thinning`` makes of the thinned updates."""
    if method.after_thinning is None:
        return
    for dtype in (torch.float32, torch.bfloat16):
        deltas, density = stack(dtype=dtype), 0.3
        weights, uniforms = weights_of(deltas), draws()
        if method.random:
            thinned = rescaled_samples(deltas, uniforms, density)
            fused = call(method, deltas, weights, uniforms, density=density)
        else:
            cutoffs = [0.5, 1.0, 0.0, *[0.2] * len(deltas)][: len(deltas)]
            thinned = [trim(delta, cutoff) for delta, cutoff in zip(deltas, cutoffs, strict=True)]
            fused = call(method, deltas, weights, None, None, cutoffs=cutoffs)
        expected = AFTER_THINNING[method.after_thinning](thinned, weights).to(dtype)
        assert torch.equal(fused, expected), f"after_thinning={method.after_thinning!r}, but it gives something else"


def check_statistics(method: Method) -> None:
    """Check that statistics are used, and that None is accepted for a tensor without them."""
    if method.statistics is None:
        return
    deltas = stack()
    weights, statistics = weights_of(deltas), statistics_of(method, deltas)
    assert statistics is not None
    fused = call(method, deltas, weights, statistics=statistics)
    flipped = call(method, deltas, weights, statistics=statistics.flip(0))
    assert not torch.allclose(fused, flipped, rtol=1e-2), "the statistics change nothing"
    without = method.function(deltas, weights=weights, statistics=None)
    assert bool(without.isfinite().all()), "a tensor without statistics is not finite"


def check_rotations(method: Method) -> None:
    """Check that updates in another orthonormal basis of outputs give the result there if it ``rotates_outputs``."""
    if not method.rotates_outputs:
        return
    full = stack(dtype=torch.float64)
    deltas = full[:, :, :1] @ full[:, :1]  # of rank 1
    drawn = torch.randn(2 * SHAPE[0], SHAPE[0], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    basis = torch.linalg.qr(drawn)[0]
    turned = call(method, basis @ deltas, weights_of(deltas))
    require_close(turned, basis @ call(method, deltas, weights_of(deltas)), "rotates_outputs=True, but it does not")


def check_rows(method: Method) -> None:
    """Check that every row is the same linear function of that row of the updates if the method is ``by_rows``."""
    if not method.by_rows:
        return
    deltas = stack(dtype=torch.float64)
    statistics = statistics_of(method, deltas)
    mix = torch.randn(9, SHAPE[0], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rows = call(method, deltas, weights_of(deltas), statistics=statistics)
    mixed = call(method, mix @ deltas, weights_of(deltas), statistics=statistics)
    away = (mixed - mix @ rows).abs().max()
    assert bool(away <= 1e-6 * mixed.abs().max()), "by_rows=True, but mixed rows are not mixtures of the rows"
