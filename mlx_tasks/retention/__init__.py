"""What runs leave behind, and taking away what nobody needs any more: `mlx-tasks clean` (docs/orchestration.md)."""
