"""What every package stands on: files, validation, threads, versions; nothing of adapters or models."""
