"""A run's own workspace: one git worktree per DAG run at a fixed commit, with a DVC cache shared on the machine."""
