"""Describe folders of adapters and checkpoints, and determine whether they can be fused."""
