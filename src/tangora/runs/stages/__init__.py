"""The stages of a run: fine-tuning the experts, then fusing and scoring; each is cached by what decides it."""
