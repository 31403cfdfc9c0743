"""Families of models: how a model answers. One file each."""
