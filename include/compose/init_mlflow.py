"""Bring MLflow's tables up to date. An empty database is left to the server, which makes them at its first start."""

import os

from mlflow.db import commands
from sqlalchemy import create_engine, inspect

uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
if inspect(create_engine(uri)).has_table("alembic_version"):
    commands(["upgrade", uri], standalone_mode=False)  # in this process: a command line shows the password to all
else:
    print("no tables yet: the server makes them")
