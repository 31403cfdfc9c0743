"""RegMean: the weights with outputs nearest to those of all experts, on the experts' own inputs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._spectral import mean_of
from tangora.methods._sums import widened

__all__ = ["regmean"]

OFF_DIAGONAL = Limit(low=0, high=1, fix="1 is the exact regression, 0.9 what the paper uses, 0 the diagonal alone")
RIDGE = Limit(low=0, fix="1e-6 is about the rounding of the statistics")


@fusion_method(
    "regmean",
    granularity="tensor",
    exact=False,
    symmetric=False,  # statistics are of inputs
    reference="arXiv:2212.09849",
    default_weight=1.0,
    limits={"off_diagonal": OFF_DIAGONAL, "ridge": RIDGE},
    statistics="gram",
    by_rows=True,
)
def regmean(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    statistics: Float[Tensor, "tasks in in"] | None,
    off_diagonal: float = 0.9,
    ridge: float = 1e-6,
) -> Float[Tensor, "*param"]:
    """The update with which a linear layer's outputs are nearest to the expert's on every task's inputs.

    ``ν = (Σₜ λₜ νₜ G̃ₜ) (Σₜ G̃ₜ)⁻¹`` with ``Gₜ = E[x xᵀ]`` of the layer's inputs and ``G̃ = αG + (1−α) diag(G)``
    (arXiv:2212.09849, section 3, there for the transposed weights): with λ = 1 and α = 1 it minimizes
    ``Σₜ E‖νx − νₜx‖²``. On updates it equals the merge of whole weights:
    ``(Σ (W₀ + νₜ) Gₜ)(Σ Gₜ)⁻¹ = W₀ + (Σ νₜ Gₜ)(Σ Gₜ)⁻¹``.

    Choose it when some inputs of every task can be had (a few hundred rows, no labels): nothing else has to be tuned.
    Needs ``tangora statistics`` of every adapter.

    A ridge, the same multiple of the identity, is added to every Gₜ: in directions that no task has inputs in, where
    ``Σ Gₜ`` is singular, the result is the mean of the updates; the paper does not define it there. The ridge is
    ``ridge`` times the mean of the diagonals. The Gₜ are means over the inputs, so that a task's influence does not
    depend on its number of rows. Without Gₜ (biases, norms, embeddings, convolutions) the updates are averaged, as in
    the paper. The weights, which multiply the updates, are an addition to the paper.

    Args:
        deltas: the updates νₜ ``[out, in]``, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        statistics: the Gₜ, stacked; None if the tensor is not a linear layer's weight.
        off_diagonal: α, the factor of the entries of Gₜ off its diagonal, in [0, 1].
        ridge: the addition to the diagonal of every Gₜ, as a fraction of its mean; 0 for none.

    Raises:
        ArgumentError: α or the ridge is out of range, or the ridge is 0 and ``Σ Gₜ`` is singular.

    >>> deltas = torch.tensor([[[4.0, 4.0]], [[0.0, 0.0]]])
    >>> grams = torch.stack([torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2)])
    >>> regmean(deltas, weights=torch.ones(2, 1, 1), statistics=grams, ridge=0.0)
    tensor([[3., 2.]])
    """
    check_value("regmean", "off_diagonal", off_diagonal, 0.9, OFF_DIAGONAL)
    check_value("regmean", "ridge", ridge, 1e-6, RIDGE)
    if statistics is None or deltas.ndim != 3 or not bool(statistics.any()):
        return mean_of(deltas, weights).to(deltas.dtype)
    diagonals = statistics.diagonal(dim1=1, dim2=2).double()
    lift = (1 - off_diagonal) * diagonals + ridge * diagonals.mean()
    total: Tensor | None = None
    products: Tensor | None = None
    for delta, weight, gram, added in zip(deltas, weights, statistics, lift, strict=True):
        scaled = off_diagonal * gram.double() + torch.diag(added)
        product = (delta * weight.to(widened(delta).dtype)).double() @ scaled
        total = scaled if total is None else total + scaled
        products = product if products is None else products + product
    assert total is not None
    assert products is not None
    factor, failed = torch.linalg.cholesky_ex(total)
    if int(failed):
        what = "regmean: the sum of the inputs' second moments is singular"
        raise ArgumentError(what, got=ridge, where="fuse.ridge", fix="give a ridge, such as 1e-6, or more rows")
    return torch.cholesky_solve(products.T, factor).T.to(widened(deltas[:0]).dtype).to(deltas.dtype)
