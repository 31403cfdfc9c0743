"""Several adapters of one base model into one, with the evidence that the result is right."""
