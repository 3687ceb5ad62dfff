"""The model card: a Markdown page with Hugging Face front matter, made of scores, lineage and the gate's verdict."""

from __future__ import annotations

from typing import Any

import yaml

from mlx_tasks.registry.gate import Score
from mlx_tasks.registry.winner import Winner

LICENCES = {
    "MIT": "mit",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC0 1.0": "cc0-1.0",
    "Apache 2.0": "apache-2.0",
}
"""Licence names as dataset cards write them -> Hugging Face's identifiers; any other is `other`."""

MEANING = {
    "frechet_distance": "distance of the Gaussians fitted to features of drawn and held-out images; lower is better",
    "kernel_distance": "kernel distance of the same features, unbiased; around zero is best",
    "precision": "share of drawn images that lie among held-out ones",
    "recall": "share of held-out images that lie among drawn ones; low where classes or styles are missing",
    "c2st_accuracy": "how often a classifier tells drawn from held-out images; 0.5 is best",
    "c2st_p_value": "chance of an accuracy as high if there were no difference",
    "image_text_score": "agreement of image and caption in a small image-text model",
    "latency_ms": "milliseconds for one batch on the device below",
}


def model_card(
    name: str,
    winner: Winner,
    sampler: dict[str, Any],
    lineage: dict[str, Any],
    verdict: dict[str, Any],
    dataset_card: dict[str, Any],
    references: dict[str, dict[str, Any]] | None = None,
) -> str:
    """The card's text.

    Args:
        name: of the registered model.
        winner: the candidate and its scores.
        sampler: sampler.json.
        lineage: lineage.json.
        verdict: the gate's verdict.
        dataset_card: title, source, licence of the data; empty for a folder of the user's own.
        references: name -> metrics of sets of known worth (held-out images, noise), shown beside the scores.
    """
    data = lineage["dataset"]
    title = dataset_card.get("title") or lineage["params"]["data"]["path"]
    licence = dataset_card.get("licence")
    parts = [
        _front_matter(name, winner, title, licence),
        f"# {name}\n\n{_what(sampler, title)}",
        f"## Scores\n\n{_scores(winner, references or {}, lineage)}",
        f"## Gate\n\n{_gate(verdict)}",
        f"## How to use\n\n{_usage(name, sampler)}",
        f"## How it was made\n\n{_making(winner, lineage)}",
        f"## Data\n\n{_data(title, licence, dataset_card, data)}",
        f"## Limits\n\n{_limits(sampler)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, winner: Winner, title: str, licence: str | None) -> str:
    results = [
        {
            "task": {"type": "unconditional-image-generation"},
            "dataset": {"name": title, "type": "image"},
            "metrics": [
                {"type": metric, "value": round(score.value, 6)}
                for metric, score in winner.scores.items()
                if score.value is not None
            ],
        }
    ]
    front = {
        "license": LICENCES.get(licence or "", "other"),
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "mlx", "distillation", "class-conditional"],
        "model-index": [{"name": name, "results": results}],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _what(sampler: dict[str, Any], title: str) -> str:
    classes = sampler["class_names"]
    kind = f"one of {len(classes)} classes ({_listed(classes)})" if classes else "no class"
    side = sampler["resolution"]
    colour = "grey" if sampler["channels"] == 1 else "colour"
    return (
        f"A diffusion sampler that draws {side} x {side} {colour} images of {kind}, trained on {title}. It takes "
        f"{sampler['nfe']} network evaluations an image ({len(sampler['timesteps'])} steps of {sampler['solver']}). "
        "The folder is what Hugging Face diffusers reads; `sampler.json` holds the step grid it was scored with."
    )


def _scores(winner: Winner, references: dict[str, dict[str, Any]], lineage: dict[str, Any]) -> str:
    names = list(references)
    head = ["Metric", winner.name, *names, "What it is"]
    rows = [
        [
            metric,
            _interval(score),
            *(_interval(Score.of(references[name].get(metric))) for name in names),
            MEANING.get(metric, ""),
        ]
        for metric, score in winner.scores.items()
    ]
    level = f"{lineage['params']['evaluate']['confidence']:.0%}"
    count = lineage["params"]["evaluate"]["samples"]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
    return (
        f"Estimate with its {level} interval, at most {count} drawn images against as many held-out ones; Frechet "
        "distance and kernel distance live in a space of untrained convolutions and compare only with each other.\n\n"
        + table
    )


def _gate(verdict: dict[str, Any]) -> str:
    lines = [
        f"- {rule['metric']} {'<=' if rule['direction'] == 'below' else '>='} {_limit(rule)}: "
        f"{'holds' if rule['passed'] else 'does not hold'}"
        for rule in verdict["rules"]
    ]
    for one in verdict["champion"]:
        holds = "holds" if one["passed"] else "does not hold"
        lines.append(f"- {one['metric']} not worse than champion version {one['version']}: {holds}")
    reasons = "".join(f"\n- {reason}" for reason in verdict["reasons"])
    answer = "Passed." if verdict["passed"] else f"Refused:{reasons}"
    return "\n".join(lines) + f"\n\n{answer}"


def _limit(rule: dict[str, Any]) -> str:
    number = "no limit" if rule["limit"] is None else f"{rule['limit']:.4g}"
    return number if not rule["of"] else f"{number} ({rule['times']:g} times the set {rule['of']})"


def _usage(name: str, sampler: dict[str, Any]) -> str:
    label = ", class_labels=torch.tensor([0])" if sampler["class_names"] else ""
    shape = (1, sampler["channels"], sampler["resolution"], sampler["resolution"])
    return (
        "From MLflow, one PNG a row (class index and seed):\n\n"
        "```python\nimport mlflow, pandas as pd\n\n"
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
        'png = model.predict(pd.DataFrame({"class_label": [0, 1], "seed": [7, 8]}))["png"]\n```\n\n'
        "As a server with OpenAI's image route: "
        f"`mlx-tasks serve --model {name}@champion`, or `--bundle FOLDER`.\n\n"
        "The parts in diffusers (the network and its noise schedule):\n\n"
        "```python\nimport torch\nfrom diffusers import UNet2DModel\n\n"
        'unet = UNet2DModel.from_pretrained("FOLDER", subfolder="unet")\n'
        f"v = unet(torch.randn{shape}, {sampler['timesteps'][0]}{label}).sample  # v-prediction\n```\n\n"
        f"Solver `{sampler['solver']}` at timesteps `{sampler['timesteps']}`, guidance scale "
        f"{sampler['guidance_scale']:g}; {_in_diffusers(sampler)}."
    )


def _in_diffusers(sampler: dict[str, Any]) -> str:
    if sampler["learned"] is None:
        return "`scheduler/scheduler_config.json` is the diffusers scheduler that takes them"
    return (
        "its levels and weights were learned (`sampler.json`) and diffusers has no such solver: "
        "`scheduler/scheduler_config.json` is DPM-Solver++(2M) on the nearest whole timesteps, whose images differ and "
        "are not the scored ones"
    )


def _making(winner: Winner, lineage: dict[str, Any]) -> str:
    params, device, code = lineage["params"], lineage["device"], lineage["code"]
    train = params["train"]
    rungs = ", ".join(str(side) for side in train["resolutions"])
    commit = code["commit"] or "unknown"
    edited = " with uncommitted edits" if code["dirty"] else ""
    versions = ", ".join(f"{library} {number}" for library, number in lineage["versions"].items())
    return (
        f"A teacher was trained for {train['steps']} steps over {rungs} pixels (v-prediction, cosine schedule, weight "
        f"average), then students, searched architectures and step grids were made from it; **{winner.name}** scored "
        "best.\n\n"
        f"- Commit: `{commit}`{edited}\n"
        f"- Params: digest `{lineage['params_digest']}`, seed {params['seed']}, in full in `lineage.json`\n"
        f"- Device: {device['chip']} ({device['kind']}, {device['system']})\n"
        f"- Libraries: {versions}\n"
        f"- Artifacts: DVC hashes of {len(lineage['dvc'])} outs in `lineage.json`"
    )


def _data(title: str, licence: str | None, card: dict[str, Any], summary: dict[str, Any]) -> str:
    lines = [f"- {title}"]
    if card.get("source"):
        lines.append(f"- Source: {card['source']}")
    lines.append(f"- Licence: {licence or 'not stated; ask whoever gave the images before you share the model'}")
    if summary.get("fingerprint"):
        lines.append(f"- Fingerprint: `{summary['fingerprint']}`")
    counts = summary.get("splits")
    if isinstance(counts, dict):
        lines.append("- Images: " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    return "\n".join(lines)


def _limits(sampler: dict[str, Any]) -> str:
    side = sampler["resolution"]
    return (
        f"- It draws {side} x {side} pixels and nothing outside its training data's classes.\n"
        "- Distances depend on the count of images and on the feature space: compare them within one table only.\n"
        "- Latency and memory were measured on the device above and say nothing of another.\n"
        "- It repeats what its data holds, biases included; it was not checked for copies of training images."
    )


def _interval(score: Score) -> str:
    if score.value is None:
        return "-"
    if score.low is None or score.high is None:
        return f"{score.value:.4g}"
    return f"{score.value:.4g} ({score.low:.4g} to {score.high:.4g})"


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
