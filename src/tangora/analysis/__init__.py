"""What task vectors say before anything is fused, and what a model says in the plane of two of them."""

from __future__ import annotations

from tangora.analysis.angles import principal_angles, subspace_overlap
from tangora.analysis.cosine import cosine_matrix
from tangora.analysis.signs import sign_conflict

__all__ = ["cosine_matrix", "principal_angles", "sign_conflict", "subspace_overlap"]
