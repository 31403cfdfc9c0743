"""Training: from a base, a task and a configuration to an adapter."""
