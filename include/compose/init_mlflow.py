"""Bring MLflow's tables up to date, and its logins: the administrator's, and one for each worker of WORKER_LOGINS.

Workers read all, and write experiments and runs. Those who may write to the registry may change every registered model;
the others move no alias. A worker's login that is no longer told is removed.
"""

from __future__ import annotations

import base64
import json
import os

ROLES = {
    "computes": {"experiment": "EDIT"},
    "registers": {"experiment": "EDIT", "registered_model": "EDIT"},
}
WORKSPACE = "default"


def main() -> None:
    """Tables first: the logins are in the same database."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    update_tables(uri)
    update_logins(
        uri, os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"], json.loads(base64.b64decode(os.environ["WORKER_LOGINS"]))
    )


def update_tables(uri: str) -> None:
    """An empty database is left to the server, which makes its tables at its first start.

    In this process: as a command of its own it would show the address, with the password, in the list of processes.
    """
    from mlflow.db import commands
    from sqlalchemy import create_engine, inspect

    if inspect(create_engine(uri)).has_table("alembic_version"):
        commands.main(["upgrade", uri], standalone_mode=False)
    else:
        print("no tables yet: the server makes them")


def update_logins(uri: str, admin_password: str, logins: dict[str, dict]) -> None:
    """Everybody who is told under the password that is told; workers of before who are not told are gone."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(uri)

    def role(name: str) -> int:
        try:
            return store.get_role_by_name(WORKSPACE, name).id
        except MlflowException:
            made = store.create_role(name, WORKSPACE, "workers; made by init_mlflow.py").id
            for kind, permission in ROLES[name].items():
                store.add_role_permission(made, kind, "*", permission)
            return made

    def person(name: str, password: str, is_admin: bool = False) -> int:
        if store.has_user(name):
            return store.update_user(name, password=password, is_admin=is_admin).id
        return store.create_user(name, password, is_admin=is_admin).id

    roles = {name: role(name) for name in ROLES}
    wanted = {name: roles["computes" if login["computes_only"] else "registers"] for name, login in logins.items()}
    for user, has in store.list_users_with_roles():
        ours = {one.id for one in has} & set(roles.values())
        if ours and ours != {wanted.get(user.username)}:  # gone, or of another kind now: with all rights that it had
            store.delete_user(user.username)
    person("admin", admin_password, is_admin=True)
    for name, login in logins.items():
        known = store.has_user(name)
        number = person(name, login["password"])
        if not known:
            store.assign_role_to_user(number, wanted[name])
    print(f"logins: admin and {len(logins)} workers")


if __name__ == "__main__":
    main()
