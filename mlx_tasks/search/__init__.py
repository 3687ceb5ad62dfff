"""Architecture search: space, study, objectives, Pareto front."""
