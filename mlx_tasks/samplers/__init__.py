"""Step grids, solvers, and one driver that counts network evaluations."""

from mlx_tasks.samplers.bundle_sampler import (
    Strip,
    bundle_noise,
    denoising_strip,
    keyed_noise,
    own_steps,
    sample_bundle,
)
from mlx_tasks.samplers.denoiser import Denoise, network_denoiser
from mlx_tasks.samplers.driver import SamplerDivergedError, Samples, sample
from mlx_tasks.samplers.grids import (
    GRID_ALIASES,
    GRIDS,
    Grid,
    grid_from_timesteps,
    karras_grid,
    log_snr_grid,
    make_grid,
    uniform_grid,
)
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.solvers import SOLVERS, Solver, find_solver

__all__ = [
    "GRIDS",
    "GRID_ALIASES",
    "SOLVERS",
    "Denoise",
    "Grid",
    "LearnedSteps",
    "SamplerDivergedError",
    "Samples",
    "Solver",
    "Strip",
    "bundle_noise",
    "denoising_strip",
    "find_solver",
    "grid_from_timesteps",
    "karras_grid",
    "keyed_noise",
    "log_snr_grid",
    "make_grid",
    "network_denoiser",
    "own_steps",
    "sample",
    "sample_bundle",
    "uniform_grid",
]
