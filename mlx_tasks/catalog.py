"""The chain's stages by name: what runs each, and whether it needs the accelerator to itself.

dvc.yaml, the DAG and the CLI all name these; a test holds the three together.
"""

from __future__ import annotations

from dataclasses import dataclass

SEARCH_GENERATIONS = 2
"""Generations of the architecture search: each is asked for, mapped over tasks, and told back."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: its name in dvc.yaml and on the command line.
        module: where its `run(context, **arguments)` lives.
        arguments: integer options of its command, in the order in which dvc.yaml's matrix names them.
        accelerator: whether it computes with MLX and so takes the accelerator's lock.
        slots: for a stage with a slot, the dotted key of params.yaml that lists them all.
        summary: what it makes, for help texts.
    """

    name: str
    module: str
    summary: str
    arguments: tuple[str, ...] = ()
    accelerator: bool = True
    slots: str = ""


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("validate", "mlx_tasks.stages.validate", "manifest, splits, quarantine, Data Docs", accelerator=False),
        Stage("train", "mlx_tasks.stages.train", "class-conditional teacher over a ladder of resolutions"),
        Stage("distill", "mlx_tasks.stages.distill", "students of half the steps each, until the gate refuses"),
        Stage(
            "search_plan",
            "mlx_tasks.stages.search_plan",
            "ask the study for a generation of trials",
            ("generation",),
            accelerator=False,
        ),
        Stage(
            "search_trial",
            "mlx_tasks.stages.search_trial",
            "train and measure one architecture",
            ("generation", "slot"),
            slots="search.slots",
        ),
        Stage("search_select", "mlx_tasks.stages.search_select", "Pareto front; train the chosen student on"),
        Stage("tune", "mlx_tasks.stages.tune", "step grids by PPO and by plain search"),
        Stage("features", "mlx_tasks.stages.features", "feature network of the training images, behind the scores"),
        Stage("image_text", "mlx_tasks.stages.image_text", "image-text model behind the image-text score"),
        Stage(
            "score_share",
            "mlx_tasks.stages.score_share",
            "draw and score a share of the candidates",
            ("slot",),
            slots="evaluate.slots",
        ),
        Stage("evaluate", "mlx_tasks.stages.evaluate", "all scores together, latencies, and the winner"),
        Stage("register", "mlx_tasks.stages.register", "bundle, model card, verdict; MLflow registration"),
        Stage("report", "mlx_tasks.stages.report", "HTML report and the same numbers as JSON", accelerator=False),
    )
}


def dvc_target(name: str, **arguments: int) -> str:
    """The name dvc.yaml gives a stage: `train`, `search_plan_1`, `search_trial@0-2`.  Raises: KeyError, ValueError.

    Only stages with a slot are a DVC matrix, whose names hold an `@`; the two plans differ in what they read.
    """
    stage = STAGES[name]
    if set(arguments) != set(stage.arguments):
        raise ValueError(f"stage {name} takes {stage.arguments or 'no arguments'}, got {sorted(arguments)}")
    values = "-".join(str(arguments[key]) for key in stage.arguments)
    joint = "@" if "slot" in arguments else "_"
    return f"{name}{joint}{values}" if values else name
