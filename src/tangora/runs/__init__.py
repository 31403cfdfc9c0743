"""Runs: from a recipe to a report."""
