"""What the pages name exists: commands, options, make's targets, files, links, variables, keys of params.yaml."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_tasks import cli
from mlx_tasks.config import Config

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
CODE = "mlx_tasks dags plugins include docker-compose.yaml Makefile".split()
SETTING = re.compile(r"\b(?:ADO|MLX_TASKS)_[A-Z_]*[A-Z]\b")
INTERNAL = {"MLX_TASKS_EVENTS", "MLX_TASKS_MLFLOW_PARENT", "MLX_TASKS_NODE", "MLX_TASKS_RUN_ID"}
"""Variables that one process sets for another and nobody else."""
GONE = {"ADO_JWT_SECRET", "--pointer", "--keep", "gate.not_worse_than_champion"}
"""What the changelog says is no longer taken."""
ELSEWHERE = frozenset(
    "--web.config.file evaluate.features evaluate.gather evaluate.image_text evaluate.score evaluate.scores"
    " search.select gate.split train.images train.labels".split()
)
"""Other programs' options; tasks, columns and variables that look like keys of params.yaml."""
ENDS = {"csv", "html", "json", "jsonl", "md", "py", "yaml"}
"""Of files: `evaluate.csv` is no key."""
per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_of(page: Path) -> Iterator[str]:
    """Code in a page: the lines of its blocks without comments, and its spans."""
    in_block = False
    prose: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            in_block = not in_block
        elif in_block:
            yield re.sub(r"\s#.*", "", line).strip()
        else:
            prose.append(line)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", "\n".join(prose)))


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A parser's commands by name; none for a leaf."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def every_option(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of all commands under it."""
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(every_option(command) for command in subcommands(parser).values()))


def wrong_in(command: str) -> str:
    """What of `mlx-tasks ...` does not exist; empty where all of it does."""
    words = command.split()[1:]
    parser = cli._parser()
    while words and subcommands(parser) and not words[0].startswith("-"):
        name = words.pop(0).rstrip(".,;")
        if name in ("STAGE", "..."):
            return ""
        if name not in subcommands(parser):
            return f"no command {name}: {command}"
        parser = subcommands(parser)[name]
    known = every_option(parser)
    options = [re.split(r"[=\]]", word.lstrip("["))[0] for word in words if re.match(r"\[?--[a-z]", word)]
    return "; ".join(f"no option {option}: {command}" for option in options if option not in known)


@per_page
def test_a_command_on_a_page_exists_with_its_options(page):
    found = [match.group(1) for text in code_of(page) for match in re.finditer(r"(mlx-tasks [a-z][^;&|\"]*)", text)]
    found = [command for command in found if re.match(r"mlx-tasks [a-z_-]+\b(?!:)", command)]
    assert [wrong for command in found if (wrong := wrong_in(command))] == []


def test_an_option_that_does_not_exist_is_seen():
    assert wrong_in("mlx-tasks serve --key FILE") and wrong_in("mlx-tasks deploy undo") and wrong_in("mlx-tasks trian")
    assert not wrong_in("mlx-tasks regress [NAME@champion] [--bundle FOLDER]")


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands that run something."""
    below = subcommands(parser).values()
    yield from (leaf for command in below for leaf in leaves(command)) if below else [parser]


@pytest.mark.parametrize("command", list(leaves(cli._parser())), ids=lambda command: command.prog)
def test_a_command_s_help_says_what_it_does_what_each_option_is_and_its_default(command):
    assert command.description
    told = " ".join(command.format_help().split())
    for action in command._actions:
        assert action.help, action.dest
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            assert f"(default: {action.default})" in told, action.dest


@per_page
def test_an_option_named_alone_is_one_of_some_program_here(page):
    known = every_option(cli._parser())
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    text += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "include" / "compose").glob("*.*"))
    named = [re.split(r"[ =]", span)[0] for span in code_of(page) if span.startswith("--")]
    assert [name for name in named if name not in known | GONE | ELSEWHERE and name not in text] == []


@per_page
def test_a_target_of_make_exists_and_takes_what_is_given(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for text in code_of(page):
        for target, given in re.findall(r"\bmake ([a-z-]+)((?: [A-Z_]+=\S*)*)", text):
            assert target in targets, text
            for name in re.findall(r" ([A-Z_]+)=", given):
                assert f"$({name})" in makefile or f"$(or $({name})" in makefile, text


@per_page
def test_a_file_on_a_page_is_there(page):
    for text in code_of(page):
        for name in re.findall(
            r"(?<![\w/.-])((?:mlx_tasks|tests|benchmarks|include|docs|dags|plugins)/[\w./-]*\w)", text
        ):
            module = ROOT / (name.replace(".", "/") + ".py")
            assert (ROOT / name).exists() or module.exists() or name.endswith("-v0"), f"{name} in {text}"


@per_page
def test_a_file_of_code_named_shortly_is_somewhere(page):
    folders = ("benchmarks", "dags", "include", "mlx_tasks", "plugins", "tests")
    files = [f"/{path.relative_to(ROOT)}" for name in folders for path in (ROOT / name).rglob("*.*")]
    for text in code_of(page):
        for name in re.findall(r"(?<![\w./-])([\w/]+\.(?:css|js|py|sh))\b", text):
            assert any(path.endswith(f"/{name}") for path in files), text


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@per_page
def test_a_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in slugs(target), link


def test_every_page_stands_in_the_list_of_pages():
    listed = re.findall(r"\]\(([\w/]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} == set(listed) - {"methods/README.md"}


def test_variables_on_pages_and_in_the_code_are_the_same():
    sources = [path for name in CODE for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_file()]
    sources = [path for path in sources if "__pycache__" not in path.parts and path.suffix not in (".png", ".parquet")]
    in_code = {name for path in sources for name in SETTING.findall(path.read_text(encoding="utf-8", errors="replace"))}
    on_pages = {name for page in PAGES for name in SETTING.findall(page.read_text(encoding="utf-8"))}
    assert on_pages - in_code - GONE == set(), "no code knows these"
    assert in_code - on_pages - INTERNAL == set(), "no page names these"


@per_page
def test_a_key_of_the_params_exists(page):
    params = Config().model_dump()
    for text in code_of(page):
        for branch, key in re.findall(r"(?<![\w./@-])([a-z]+)\.([a-z_]+)(?![\w.(/-])", text):
            if isinstance(params.get(branch), dict) and key not in ENDS:
                assert key in params[branch] or f"{branch}.{key}" in GONE | ELSEWHERE, text


def test_a_command_in_a_folder_without_params_says_where_to_run_it(tmp_path, capsys):
    assert cli.main(["resolve", "--root", str(tmp_path)]) == 10
    assert "has no params.yaml: run this in the checkout" in capsys.readouterr().err
