"""Training, testing, checkpoints."""
