"""Bring MLflow's tables up to date. An empty database is left to the server, which makes them at its first start."""

import os
import subprocess

from sqlalchemy import create_engine, inspect

uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
if inspect(create_engine(uri)).has_table("alembic_version"):
    subprocess.run(["mlflow", "db", "upgrade", uri], check=True)
else:
    print("no tables yet: the server makes them")
