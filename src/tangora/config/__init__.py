"""The recipe of a run and its pydantic models. Nothing here imports torch."""
