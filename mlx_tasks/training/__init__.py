"""Training step, loop, averaged weights, checkpoints."""
