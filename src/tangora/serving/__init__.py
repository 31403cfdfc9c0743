"""Adapters in the form that a server reads: `tangora.export`, one file in `targets` for each server."""
