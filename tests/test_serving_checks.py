"""Facts about the check before serving: rounding passes, another model does not."""

import re
import shutil

import mlx.core as mx
import pytest
from registry_workspace import write_small_bundle
from serving_world import bundle_with_reference

from mlx_tasks.errors import DataError
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.models.digests import write_digests_beside
from mlx_tasks.registry.reference import FOLDER
from mlx_tasks.serving.checks import FAR, check_before_serving


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("registered") / "digits")


def test_the_registered_bundle_passes_and_so_does_what_rounds_otherwise(registered):
    bundle = read_bundle(registered)
    check_before_serving(registered, bundle)
    weight = bundle.model.conv_out.weight
    bundle.model.conv_out.weight = weight * (1 + 1e-5 * mx.random.normal(weight.shape, key=mx.random.key(0)))
    check_before_serving(registered, bundle)


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_another_model_is_far_from_the_registered_images(registered, tmp_path, seed):
    write_small_bundle(tmp_path / "other", seed)
    shutil.copytree(registered / FOLDER, tmp_path / "other" / FOLDER)
    write_digests_beside(tmp_path / "other")
    with pytest.raises(DataError, match="does not draw the images it was registered with") as refused:
        check_before_serving(tmp_path / "other", read_bundle(tmp_path / "other"))
    away = float(re.search(r"are ([\d.e+-]+) of", str(refused.value)).group(1))
    assert away >= 0.3 > FAR
