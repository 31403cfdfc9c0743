"""The change of a weight, low-rank or dense, and its algebra over all sites."""
