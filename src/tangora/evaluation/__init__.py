"""Evaluation: from adapters in a base model to answers, scores and tidy rows."""
