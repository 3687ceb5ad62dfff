"""What the project imports is what it declares, and what it declares is locked."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("tests", "benchmarks", "plugins", "include", "dags")
OWN = {name for one in FOLDERS for path in (ROOT / one).rglob("*.py") for name in (path.stem, path.parent.name)}
PROVIDED = {"mlx_tasks", "airflow"} | OWN
"""`airflow` comes with apache-airflow and its providers, which share the name."""


def spelt(name: str) -> str:
    """A distribution's name as the lock spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    """Distributions that requirements name."""
    return {spelt(re.split(r"[\[<>=!;~ ]", one)[0]) for one in requirements}


RUN = names(PROJECT["dependencies"])
DEVELOP = RUN | names([one for extra in PROJECT["optional-dependencies"].values() for one in extra])


def imported(folder: str) -> dict[str, str]:
    """Top-level packages that files of a folder import -> one of the files."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            found |= {module.split(".")[0]: str(path.relative_to(ROOT)) for module in modules}
    return found


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("mlx_tasks", RUN), ("plugins", RUN), ("dags", RUN), ("tests", DEVELOP), ("benchmarks", DEVELOP)],
)
def test_every_package_that_is_imported_is_declared(folder, declared):
    owners = packages_distributions()
    missing = {}
    for name, file in imported(folder).items():
        if name in PROVIDED or name in sys.stdlib_module_names:
            continue
        distributions = {spelt(one) for one in owners.get(name, [])}
        if not distributions & declared:
            missing[name] = file
    assert missing == {}


def test_everything_declared_is_locked():
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    assert DEVELOP - locked == set()
