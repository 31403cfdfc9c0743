"""What task vectors say before anything is fused: how alike they are, how often their signs disagree."""

from __future__ import annotations

from tangora.analysis.cosine import cosine_matrix, sign_conflict

__all__ = ["cosine_matrix", "sign_conflict"]
