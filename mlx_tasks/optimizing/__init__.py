"""The best sampler of a bundle for a budget, a latency or a quality: `mlx-tasks optimize`."""
