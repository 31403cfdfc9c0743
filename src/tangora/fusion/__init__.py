"""Fuse several adapters of one base model into one, and verify the result."""
