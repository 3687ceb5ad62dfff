"""All that computes: data, diffusion, models, samplers, training, distillation, search, schedules, metrics, registry.

An installed package that imports no Airflow. Importing it loads nothing heavy; each stage imports what it needs.
"""

__version__ = "0.1.0"
