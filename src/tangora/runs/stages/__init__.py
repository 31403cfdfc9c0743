"""The stages of a run: fine-tuning the experts, then fusing and scoring. Each is cached by a hash of its inputs."""
