"""Step grids learned by reinforcement, and the plain searches they must beat."""
