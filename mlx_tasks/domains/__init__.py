"""What kind of images a dataset holds, and the sampler settings that suit it."""

from mlx_tasks.domains.detector import UNKNOWN, Detector, DomainGuess, detect_domain, fit_detector, load_detector
from mlx_tasks.domains.settings import SamplerSettings, settings_for

__all__ = [
    "UNKNOWN",
    "Detector",
    "DomainGuess",
    "SamplerSettings",
    "detect_domain",
    "fit_detector",
    "load_detector",
    "settings_for",
]
