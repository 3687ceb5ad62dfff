"""Step grids, solvers, and one driver that counts network evaluations."""
