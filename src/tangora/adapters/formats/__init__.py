"""Formats of adapters' files."""
