"""Measures of task vectors before anything is fused, and of a model in the plane of two of them.

>>> import tangora
>>> vectors = [tangora.load(folder).task_vector for folder in ("adapters/one", "adapters/two")]
>>> tangora.analysis.cosine_matrix(vectors).shape
torch.Size([2, 2])
"""

from __future__ import annotations

from tangora.analysis.angles import principal_angles, subspace_overlap
from tangora.analysis.cosine import cosine_matrix
from tangora.analysis.disentanglement import disentanglement_error
from tangora.analysis.landscape import joint_loss
from tangora.analysis.linearity import linearity_gap
from tangora.analysis.plane import grid, over_unit_square, survey
from tangora.analysis.signs import sign_conflict

__all__ = [
    "cosine_matrix",
    "disentanglement_error",
    "grid",
    "joint_loss",
    "linearity_gap",
    "over_unit_square",
    "principal_angles",
    "sign_conflict",
    "subspace_overlap",
    "survey",
]
