"""Recording what a stage did: parameters, metrics by step, images, artifacts."""
