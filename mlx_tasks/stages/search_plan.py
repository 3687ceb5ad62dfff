"""Stage `search_plan`: tell the study the generation before, ask it for the next.

work/search/plan_{g}/study.log    the study, a copy of the one before that knows more
work/search/plan_{g}/trials.json  what to try: {generation, sampler, objectives, space, slots: [{slot, number,
                                  architecture}], refused: [{number, params, reason}]}
"""

from __future__ import annotations

from mlx_tasks.files import atomic_folder, write_json
from mlx_tasks.search import study as studies
from mlx_tasks.search.files import plan_folder, read_results
from mlx_tasks.search.space import Space
from mlx_tasks.stages.context import StageContext


def run(context: StageContext, generation: int) -> None:
    """Write the plan of a generation.  Raises: DataError where the generation before is not there or not finished."""
    search, space = context.config.search, Space.of(context.config)
    with atomic_folder(plan_folder(context.work, generation)) as fresh:
        log = fresh / "study.log"
        if generation:
            results = read_results(context.work, generation - 1)
            studies.copy_log(plan_folder(context.work, generation - 1) / "study.log", log)
        study = studies.open_study(log, space, context.config.seed, generation)
        told = studies.tell(study, space, results) if generation else []
        proposals = studies.ask(study, space, search.slots, context.config.seed, generation)
        write_json(
            fresh / "trials.json",
            {
                "generation": generation,
                "sampler": type(study.sampler).__name__,
                "objectives": list(studies.OBJECTIVES),
                "space": space.as_dict(),
                "slots": [proposal.as_dict() for proposal in proposals],
                "refused": studies.refusals(study),
            },
        )
    asked = [proposal for proposal in proposals if proposal.architecture is not None]
    context.progress.say(f"generation {generation}: told {len(told)} results, asked for {len(asked)} trials")
    context.tracker.metrics({"search/told": len(told), "search/asked": len(asked)}, generation)
