"""Adapters: the value, its files, and its application to a model."""
