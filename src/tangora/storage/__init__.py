"""Safetensors files and checkpoints, read a tensor or a block of rows at a time."""
