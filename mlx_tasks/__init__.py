"""All that computes: data, diffusion, models, samplers, training, distillation, search, schedules, metrics, registry.

An installed package that imports no Airflow. Importing it loads nothing heavy; each stage imports what it needs.
"""

__version__ = "0.1.0"

_LAZY = {
    "AdaptiveScheduler": "mlx_tasks.optimizing.adaptive",
    "Guidance": "mlx_tasks.diffusion.guidance",
    "DiffusionPipeline": "mlx_tasks.pipeline",
    "PipelineOutput": "mlx_tasks.pipeline",
    "QualityGuidedSampler": "mlx_tasks.learned_steps.quality_guided",
}


def __getattr__(name: str) -> object:
    """What people import from the package's top, imported only then, and after a real BLAS where MLX would lack one."""
    if name in _LAZY:
        import importlib

        from mlx_tasks import hardware

        hardware.prepare()
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
