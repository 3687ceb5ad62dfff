"""Sampling steps learned from the many-step result: gradients through the solver, dynamic programming, evolution."""
