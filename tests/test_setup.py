"""`make setup` on machines that lack this or that: a PATH of a folder that holds only what the machine has."""

import os
import shutil
import subprocess
import sys

import pytest

ALWAYS = ("sh", "dirname")


@pytest.fixture
def machine(tmp_path, repository):
    """A checkout with an installer that only says who runs it, and a folder for the machine's programs."""
    root, programs = tmp_path / "a checkout", tmp_path / "bin"
    (root / "mlx_tasks" / "stack").mkdir(parents=True)
    programs.mkdir()
    for name in ("Makefile", "mlx_tasks/stack/setup.sh"):
        shutil.copy(repository / name, root / name)
    (root / "mlx_tasks/stack/install.py").write_text("import sys; print('installed by', sys.version_info[:2])")
    for name in ALWAYS:
        program((root, programs), name, f'exec "{shutil.which(name)}" "$@"')
    return root, programs


def program(machine, name, text):
    path = machine[1] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python(machine, name):
    """A real 3.11 under a name."""
    return program(machine, name, f'exec "{sys.executable}" "$@"')


def tools(machine, *names):
    for name in names:
        program(machine, name, "exit 0")


def setup(machine, system="Linux", **variables):
    root, programs = machine
    program(machine, "uname", f"echo {system}")
    environment = {"PATH": str(programs), "HOME": str(root.parent / "home"), **variables}
    return subprocess.run(
        ["/bin/sh", str(root / "mlx_tasks/stack/setup.sh")], env=environment, capture_output=True, text=True, timeout=60
    )


needs_no_python = pytest.mark.skipif(
    any(os.path.exists(f"{place}/bin/python3.11") for place in ("/usr/local", "/opt/homebrew")),
    reason="this machine has a Python 3.11 where setup looks for one beside PATH",
)


@pytest.mark.parametrize("name", ["python3.11", "python3", "python"])
def test_a_python_3_11_under_any_name_installs(machine, name):
    python(machine, name)
    tools(machine, "git", "g++")
    done = setup(machine)
    assert (done.returncode, done.stdout) == (0, "installed by (3, 11)\n"), done.stderr


def test_another_python3_is_passed_over_for_one_of_pyenvs(machine):
    program(machine, "python3", "exit 0")  # says nothing of 3.11
    tools(machine, "git", "clang++")
    home = machine[0].parent / "home"
    python(machine, str(home / ".pyenv" / "versions" / "3.11.9" / "bin" / "python3.11"))
    assert setup(machine).stdout == "installed by (3, 11)\n"
    moved = machine[0].parent / "elsewhere"
    shutil.move(home / ".pyenv", moved)
    assert setup(machine, PYENV_ROOT=str(moved)).stdout == "installed by (3, 11)\n"


def test_an_interpreter_that_was_asked_for_is_taken_or_refused_by_name(machine):
    tools(machine, "git", "g++")
    wrong = program(machine, "python3.10", "exit 0")
    done = setup(machine, PYTHON=str(wrong))
    assert done.returncode == 1 and f"PYTHON={wrong} is no Python 3.11" in done.stderr
    assert setup(machine, PYTHON=str(python(machine, "mine"))).stdout == "installed by (3, 11)\n"


@needs_no_python
def test_uv_brings_a_python_where_there_is_none(machine):
    tools(machine, "git", "g++")
    brought = machine[0].parent / "brought"
    program(
        machine, "uv",
        f'if [ "$2" = install ]; then : > "{brought}"; else [ -e "{brought}" ] && echo "{sys.executable}"; fi',
    )  # fmt: skip
    done = setup(machine)
    assert done.returncode == 0 and "uv brings one" in done.stdout and "installed by (3, 11)" in done.stdout
    assert "brings" not in setup(machine).stdout, "the second time it is there"


@needs_no_python
@pytest.mark.parametrize(("system", "word"), [("Linux", "apt-get install python3.11"), ("Darwin", "brew install")])
def test_a_machine_with_nothing_is_told_in_one_line_what_to_type(machine, system, word):
    if system == "Darwin":
        program(machine, "xcode-select", "exit 1")
    done = setup(machine, system)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    for part in ("Python 3.11, git", word, "uv", "make setup"):
        assert part in done.stderr
    assert ("C++" in done.stderr) == (system == "Linux")


def test_what_else_is_missing_is_named_and_nothing_that_is_there(machine):
    python(machine, "python3.11")
    tools(machine, "git")
    done = setup(machine)
    assert done.stderr == (
        "setup: missing: a C++ compiler; type (Debian 12): sudo apt-get install g++; then again: make setup\n"
    )


def test_apples_placeholders_are_not_run_and_do_not_count(machine):
    """On a Mac without Apple's tools /usr/bin/git only opens a dialog."""
    program(machine, "xcode-select", "exit 1")
    python(machine, "python3.11")
    if not os.path.exists("/usr/bin/git"):
        pytest.skip("no /usr/bin/git here")
    done = setup(machine, "Darwin", PATH=f"{machine[1]}:/usr/bin")
    assert "missing: git; type: brew install git" in done.stderr


def test_make_says_it_too(machine):
    if shutil.which("make") is None:
        pytest.skip("no make here")
    python(machine, "python3.11")
    tools(machine, "git", "g++")
    environment = {"PATH": str(machine[1]), "HOME": "/nonexistent"}
    done = subprocess.run(
        [shutil.which("make"), "setup"], cwd=machine[0], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "installed by (3, 11)\n", done.stderr
