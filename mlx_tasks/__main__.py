"""`python -m mlx_tasks` is `mlx-tasks`."""

import sys

from mlx_tasks.cli import main

sys.exit(main())
