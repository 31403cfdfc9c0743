"""Helpers that every package uses: files, validation, threads, versions. Nothing about adapters or models."""
