"""The installer: what the lock says, whole, and nothing taken for granted of an environment without a stamp."""

import json
import re
import subprocess
import sys
from itertools import chain

import pytest
from packaging.requirements import Requirement

from mlx_tasks.stack import install


@pytest.fixture(scope="module")
def blocks(repository):
    return list(install._blocks((repository / "requirements.lock").read_text()))


def requirement(block):
    return Requirement(install._pin(block).strip())


def test_every_package_of_the_lock_is_pinned_with_hashes_and_names_no_address(repository, blocks):
    lock = (repository / "requirements.lock").read_text()
    assert len(blocks) == len(re.findall(r"(?m)^[a-z0-9]\S*==", lock)) > 200
    for name, text in blocks:
        pinned = requirement(text)
        assert pinned.name.lower() == name
        assert len(pinned.specifier) == 1 and next(iter(pinned.specifier)).operator == "=="
        assert "--hash=sha256:" in text, name
    assert "://" not in lock and "index-url" not in lock


def test_the_lock_holds_what_the_project_asks_for(repository, blocks):
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pinned = {name: [requirement(t) for n, t in blocks if n == name] for name, _ in blocks}
    for text in [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]:
        asked = Requirement(text)
        found = pinned[asked.name.lower()]
        version = next(iter(found[0].specifier)).version
        assert asked.specifier.contains(version), f"{asked} against {version}"


def test_metal_on_macos_and_the_cpu_build_on_linux(blocks):
    pins = {name: requirement(text) for name, text in blocks}
    mac = {"sys_platform": "darwin", "platform_machine": "arm64"}
    linux = {"sys_platform": "linux", "platform_machine": "x86_64"}
    assert pins["mlx-metal"].marker.evaluate(mac) and not pins["mlx-metal"].marker.evaluate(linux)
    assert pins["mlx-cpu"].marker.evaluate(linux) and not pins["mlx-cpu"].marker.evaluate(mac)
    assert pins["mkl"].marker.evaluate(linux) and not pins["mkl"].marker.evaluate(mac)
    assert not pins["triton"].marker.evaluate(linux)


def test_a_finished_environment_is_left_alone_and_a_changed_lock_is_seen(tmp_path, monkeypatch):
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("six==1.17.0 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "STAMP", tmp_path / ".venv" / "installed.json")
    made = []
    monkeypatch.setattr(install, "_install", lambda: (made.append(1), (tmp_path / ".venv").mkdir(exist_ok=True)))
    assert install.main() == 0 and install.main() == 0
    assert len(made) == 1
    (tmp_path / "requirements.lock").write_text("six==1.16.0 \\\n    --hash=sha256:00\n")
    assert install.main() == 0 and len(made) == 2
    (tmp_path / ".venv" / "installed.json").write_text("{ half")
    assert install.main() == 0 and len(made) == 3
    assert json.loads((tmp_path / ".venv" / "installed.json").read_text())["root"] == str(tmp_path)


def test_a_failed_step_leaves_no_stamp_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "STAMP", tmp_path / ".venv" / "installed.json")
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("x")

    def fail():
        raise subprocess.CalledProcessError(2, ["uv", "pip", "install"])

    monkeypatch.setattr(install, "_install", fail)
    assert install.main() == 1
    assert not install.STAMP.exists()
    assert "make setup" in capsys.readouterr().err


def test_the_installer_needs_nothing_that_it_has_yet_to_install(repository):
    script = str(repository / "mlx_tasks/stack/install.py")
    program = f"import runpy; runpy.run_path({script!r}, run_name='probe')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
