"""Tangora's own executors, one file each."""
