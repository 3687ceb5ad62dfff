"""Facts about published extractors in the evaluation: which scores they add, by which weights, and what is missing."""

import hashlib
import shutil

import numpy as np
import pytest
from evaluate_world import NAMES, evaluate, make_workspace, row_of, run_stage

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.frechet import frechet_distance

SEED = 0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    make_workspace(root)
    for stage in ("features", "image_text"):
        run_stage(root, stage, feature_steps=5, image_text_steps=5)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the published shapes, where the params say that they lie."""
    import transformers
    from safetensors.torch import save_file
    from torch_references import InceptionV3ForFid, alexnet_features, randomise

    folder = tmp_path_factory.mktemp("weights")
    for name in ("inception_v3_fid", "lpips_alex", "dinov2_vits14"):
        (folder / name).mkdir()
    inception = randomise(InceptionV3ForFid(), 0)
    tensors = {k: v.contiguous() for k, v in inception.state_dict().items() if v.ndim}
    save_file(tensors, folder / "inception_v3_fid" / "inception_v3_fid.safetensors")
    stack = {f"features.{k}": v for k, v in randomise(alexnet_features(), 1).state_dict().items()}
    save_file(stack, folder / "lpips_alex" / "alexnet.safetensors")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder / "dinov2_vits14")
    return folder


def test_published_metrics_are_added_where_their_weights_are_given(weights):
    from mlx_tasks.metrics.published import in_their_span, open_published

    rng = np.random.default_rng(0)
    real, drawn = rng.integers(0, 256, (2, 10, 32, 32, 1)).astype(np.uint8)
    names = ("inception_v3_fid", "lpips_alex", "dinov2_vits14")
    opened = open_published(names, str(weights), real, None, np.repeat([0, 1], 5), 3, 0.95, 0)
    scores = {}
    for one in opened:
        scores |= one(drawn)
    assert set(scores) == {
        "fid",
        "kid",
        "lpips_diversity",
        "fd_dinov2",
    }  # ten images are too few for an Inception Score
    a, b = rng.normal(size=(9, 60)), rng.normal(size=(11, 60)) + 0.2
    small = in_their_span(a, b)
    assert small[0].shape == (9, 20)  # twenty rows of sixty features span twenty directions
    assert frechet_distance(*small) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    a, b = (opened[0].extractor(images).astype(np.float64) for images in (drawn, real))
    assert scores["fid"].value == pytest.approx(frechet_distance(*in_their_span(a, b)), rel=1e-6)


def _small_clip(folder):
    """A CLIP of two layers with random weights, and a tokenizer of the dataset's words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "<start>", "<end>", "a", "handwritten", "the", "digit", *NAMES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", 1), ("<end>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    layers = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    text = layers | {"vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    vision = layers | {"image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_stages_score_with_published_extractors_and_say_with_which_weights(workspace, weights, tmp_path):
    from mlx_tasks.data.loader import load_split
    from mlx_tasks.metrics.extractors.clip import Clip
    from mlx_tasks.metrics.references import held_out_rows, matching_real

    _small_clip(weights / "clip_vit_b32")
    shutil.copytree(workspace / "work", tmp_path / "work")
    asked = {"extractors": ["clip_vit_b32", "dinov2_vits14"], "weights": str(weights), "samples": 40, "nfe": [2]}
    told = evaluate(tmp_path, **asked)
    assert [one["weights"] for one in told["setup"]["published"]] == [
        hashlib.sha256((weights / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("clip_vit_b32", "dinov2_vits14")
    ]
    for row in told["rows"]:
        assert {"cmmd", "clip_score", "fd_dinov2"} <= set(row["metrics"])
    assert {"cmmd", "fd_dinov2"} <= set(told["sanity"])

    # the real images' rows once more, from the towers' outputs by hand
    test, train = (load_split(tmp_path / "work" / "dataset", 8, split) for split in ("test", "train"))
    rows = held_out_rows(len(test), 40, SEED)
    drawn = matching_real(train.images, train.labels, test.labels[rows], SEED)
    clip = Clip(weights / "clip_vit_b32")
    images, real = (np.float64(clip(np.asarray(chosen))) for chosen in (drawn, test.images[rows]))
    texts = np.float64(clip.embed_captions([test.captions[i] for i in rows]))
    a, b, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, real, texts))
    metrics = row_of(told, "reference-real")["metrics"]
    assert metrics["clip_score"]["value"] == pytest.approx(100 * np.maximum((a * c).sum(axis=1), 0).mean(), rel=1e-5)

    def kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(axis=-1) / (2 * 10.0**2)).mean()

    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert metrics["cmmd"]["value"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_published_weights_that_are_not_there_stop_a_slot_before_anything_is_scored(workspace):
    with pytest.raises(DataError, match="no weights of inception_v3_fid are on this machine"):
        run_stage(workspace, "score_share", 0, extractors=["inception_v3_fid"])
    assert not (workspace / "work" / "scores_parts").exists()
    assert not (workspace / ".checkpoints" / "score_share@0").exists()
