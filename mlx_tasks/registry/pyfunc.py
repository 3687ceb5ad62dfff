"""The bundle as an MLflow model: `mlflow.pyfunc.load_model(...)`, a frame of classes and seeds in, PNG bytes out.

MLflow calls `_load_pyfunc` with the bundle's folder (its `loader_module` flavour), so nothing here is a pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from mlx_tasks.models.bundle import Bundle


class BundleModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One PNG a row.

        Args:
            model_input: columns class_label (index of a class; -1 for any) and seed (0 to 2**32 - 1).

        Returns: a frame with one column, `png` (bytes), and the input's index.
        Raises: DataError for a label or a seed out of range.
        """
        import pandas as pd

        from mlx_tasks.registry.draw import draw
        from mlx_tasks.registry.png import encode_png

        labels = [int(value) for value in model_input["class_label"]]
        seeds = [int(value) for value in model_input["seed"]]
        images = draw(self.bundle, labels, seeds)
        names = self.bundle.sampler.class_names
        rows = [
            encode_png(image, {"seed": str(seed), "class": names[label] if names and label >= 0 else ""})
            for image, seed, label in zip(images, seeds, labels, strict=True)
        ]
        return pd.DataFrame({"png": pd.Series(rows, dtype=object, index=model_input.index)})


def _load_pyfunc(path: str) -> BundleModel:
    """MLflow's entry point.  path: the bundle's folder."""
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.models.bundle import read_bundle

    return BundleModel(read_bundle(Path(path)))
