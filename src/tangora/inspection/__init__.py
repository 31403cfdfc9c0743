"""What folders hold, and whether it can be fused."""
