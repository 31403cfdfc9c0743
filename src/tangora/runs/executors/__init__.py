"""Our own executors, one file each."""
