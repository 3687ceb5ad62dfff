"""One module per stage of dvc.yaml, each with `run(context, **arguments)`: the only place where the parts meet.

A stage reads files that the stages before it wrote under `work/`, writes its own, and nothing else.
"""
