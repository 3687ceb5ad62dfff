"""What a run takes from its checkout to the git remote: code, and nothing that is private."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orchestration as o
import pytest
import yaml
from orchestration import open_run, workspace
from PIL import Image

from mlx_tasks.errors import DataError, ExitCode, UnavailableError
from mlx_tasks.workspace import git
from mlx_tasks.workspace.snapshot import take_snapshot

pytest_plugins = ["node_world"]

MARK = "PRIVATE-7d1f"
"""In every file that must not leave the machine."""
KEY = "-----BEGIN OPENSSH PRIVATE" + " KEY-----"
AMAZON = "AKIA" + "IOSFODNN7EXAMPL2"


@pytest.fixture
def here(env, checkout, tmp_path) -> dict[str, str]:
    """A clone of the checkout whose `origin` is a bare repository, and the environment of runs of it."""
    hub = tmp_path / "hub.git"
    o.run_git(tmp_path, "clone", "-q", "--bare", str(checkout), str(hub))
    o.run_git(tmp_path, "clone", "-q", str(hub), str(tmp_path / "clone"))
    for key, value in (("user.name", "A User"), ("user.email", "user@example.org")):
        o.run_git(tmp_path / "clone", "config", key, value)
    return {**env, "ADO_REPOSITORY": str(tmp_path / "clone"), "ADO_GIT_REMOTE": "origin"}


@pytest.fixture
def clone(here) -> Path:
    return Path(here["ADO_REPOSITORY"])


def write(path: Path, text: str | bytes = MARK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    with path.open("ab") as file:
        file.write(MARK.encode())
    return path


def reachable(hub: Path, branch: str) -> tuple[set[str], bytes]:
    """Names and bytes of every object that a branch reaches."""
    listed = o.run_git(hub, "-c", "core.quotePath=false", "rev-list", "--objects", branch).splitlines()
    names = {line.partition(" ")[2] for line in listed} - {""}
    ids = "\n".join(line.partition(" ")[0] for line in listed)
    done = subprocess.run(["git", "-C", str(hub), "cat-file", "--batch"], input=ids.encode(), capture_output=True)
    return names, done.stdout


def remote_names(tmp_path: Path, run: dict) -> set[str]:
    """Names on the remote's branch, none of whose objects holds a private byte."""
    names, content = reachable(tmp_path / "hub.git", run["branch"])
    assert MARK.encode() not in content
    assert AMAZON.encode() not in content and KEY.encode() not in content
    return names


def test_private_files_everywhere_in_a_checkout_are_not_on_the_remote(here, clone, tmp_path):
    for name in ("server.key", "worker-mac2.env", ".env.bak", ".env.new", "alert_token", "notes.txt", "id_rsa",
                 "kubeconfig", "tool.py", ".netrc", "docs/plan.md"):  # fmt: skip
        write(clone / name)
    for folder in ("", "dags/", "plugins/", "include/", "include/presets/", "mlx_tasks/data/"):
        picture(clone / f"{folder}family/photo.png")
        picture(clone / f"{folder}photo.jpg")
        write(clone / f"{folder}certificate.pem")
        write(clone / f"{folder}.env")
        write(clone / f"{folder}credentials.json")
        write(clone / f"{folder}secrets/prod.yaml")
        write(clone / f"{folder}.hidden/x.yaml")
        write(clone / f"{folder}captions.jsonl")
        write(clone / f"{folder}archive.zip")
        write(clone / f"{folder}deploy.py", f"# {MARK}\n{KEY}\n")
        write(clone / f"{folder}cloud.yaml", f"# {MARK}\nid: {AMAZON}\n")
        write(clone / f"{folder}alerts.py", f'# {MARK}\nALERT_TOKEN = "0123456789abcdef"\n')
        write(clone / f"{folder}large.json", json.dumps([MARK] * 100_000))
        write(clone / f"{folder}picture.json", b"\x89PNG\r\n\xff" + MARK.encode())
    outside = write(tmp_path / "outside" / "private.yaml")
    (clone / "include" / "linked.yaml").symlink_to(outside)
    (clone / "plugins" / "linked").symlink_to(outside.parent)
    o.run_git(clone, "init", "-q", "include/other")
    write(clone / "include" / "other" / "private.yaml")
    o.run_git(
        clone, "add", "-f", "server.key", "include/.env", "include/credentials.json", "photo.jpg", "dags/deploy.py"
    )
    write(clone / "include" / "presets" / "mine.yaml", "train:\n  steps: 41\n")
    write(clone / "include" / "datasets" / "mine.yaml", "name: mine\n")
    write(clone / "mlx_tasks" / "data" / "tokenizer.py", "TOKEN = 3\n")
    write(clone / "plugins" / "page.html.j2", "<p>")
    with (clone / "dags" / "optimize_diffusion.py").open("a") as file:
        file.write("# edited\n")
    (clone / "include" / "overrides.txt").unlink()
    before = o.run_git(clone, "status", "--porcelain")

    run = open_run(here, preset="mine")

    assert o.run_git(clone, "status", "--porcelain") == before
    names = remote_names(tmp_path, run)
    base = set(o.run_git(clone, "ls-tree", "-r", "--name-only", "HEAD").split())
    folders = {str(place) for name in names for place in Path(name).parents}
    assert names - base - folders == {
        "include/presets/mine.yaml", "include/datasets/mine.yaml",
        "mlx_tasks/data/tokenizer.py", "plugins/page.html.j2",
    }  # fmt: skip
    place = workspace(here, run)
    assert yaml.safe_load((place / "params.yaml").read_text())["train"]["steps"] == 41
    assert (place / "dags" / "optimize_diffusion.py").read_text().endswith("# edited\n")
    assert not (place / "include" / "overrides.txt").exists()
    taken, left = run["notes"]
    for words in ("dags/optimize_diffusion.py", "include/overrides.txt", "new 4 ", "plugins/page.html.j2"):
        assert words in taken
    assert left.startswith("not taken along: ") and "(looks like a secret)" in left and " more)" in left
    assert len(left) < 1000


@pytest.mark.parametrize(
    ("place", "spelled"),
    [
        ("photos", "absolute"),
        *(("include/photos", how) for how in ("absolute", "relative", "home", "dots", "link", "preset")),
    ],
)
def test_a_dataset_in_the_checkout_is_in_no_commit_however_it_is_named(here, clone, tmp_path, place, spelled):
    folder = clone / place
    for n in range(2):
        picture(folder / "cat" / f"{n}.png", n)
    for name in ("metadata.json", "cat/captions.yaml", "cat/labels.py"):
        write(folder / name)
    (tmp_path / "link").symlink_to(folder)
    names = {
        "absolute": str(folder),
        "relative": place,
        "home": f"~/{place}",
        "dots": f"include/../{place}",
        "link": str(tmp_path / "link"),
    }
    if spelled == "preset":
        write(clone / "include" / "presets" / "mine.yaml", f"data:\n  path: {folder}\n")
        form = {"preset": "mine"}
    else:
        form = {"dataset": names[spelled]}
    run = open_run({**here, "HOME": str(clone)}, **form)
    remote_names(tmp_path, run)
    found = Path(yaml.safe_load((workspace(here, run) / "params.yaml").read_text())["data"]["path"])
    assert found.is_absolute() and found.samefile(folder)


def test_a_dataset_that_git_tracks_stays_relative_until_it_is_edited(here, clone, tmp_path):
    for n in range(2):
        write(clone / "photos" / f"{n}.json", f"{n}")
    o.run_git(clone, "add", "photos")
    o.run_git(clone, "commit", "-qm", "photos")

    def path_of(name: str) -> str:
        run = open_run(here, name, dataset="photos")
        remote_names(tmp_path, run)
        return yaml.safe_load((workspace(here, run) / "params.yaml").read_text())["data"]["path"]

    assert path_of("clean") == "photos"
    write(clone / "photos" / "0.json", MARK[:1])  # as long as before
    assert path_of("edited") == str(clone / "photos")
    o.run_git(clone, "checkout", "-q", "photos")
    assert path_of("clean again") == "photos"
    picture(clone / "photos" / "new.png")
    assert path_of("more") == str(clone / "photos")
    (clone / "photos" / "new.png").unlink()
    (clone / "photos" / "1.json").unlink()
    assert path_of("less") == str(clone / "photos")


@pytest.mark.parametrize("name", [".", "include", "..", "mlx_tasks"])
def test_a_dataset_that_holds_the_code_is_refused(here, name):
    done = o.mlx_tasks(here, "open-run", "--spec", json.dumps({"run_id": "all", "form": {"dataset": name}}))
    assert done.returncode == ExitCode.BAD_INPUT and "must not hold the code of runs" in done.stdout


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "a\0b", "x" * 5000])
def test_a_name_that_is_no_path_is_refused(here, name):
    done = o.mlx_tasks(here, "open-run", "--spec", json.dumps({"run_id": "none", "form": {"dataset": name}}))
    assert done.returncode == ExitCode.BAD_INPUT and "is no path" in done.stdout and "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mlx_tasks/cli.py", f'\nALERT_TOKEN = "{MARK}"\n'),
        ("dvc.yaml", f"\n# {AMAZON} {MARK}\n"),
        ("include/domains.json", f"\n{KEY}\n{MARK}\n"),
    ],
)
def test_a_secret_in_an_edit_of_a_tracked_file_stops_the_run_until_its_owner_commits_it(here, clone, name, text):
    lines = len((clone / name).read_bytes().splitlines())
    with (clone / name).open("a") as file:
        file.write(text)
    spec = json.dumps({"run_id": "secret", "form": {}})
    done = o.mlx_tasks(here, "open-run", "--spec", spec)
    assert done.returncode == ExitCode.BAD_INPUT
    assert f"{name}:{lines + 2} (" in done.stdout or f"{name}:{lines + 1} (" in done.stdout
    assert "commit the edit yourself" in done.stdout and MARK not in done.stdout
    assert not (Path(here["ADO_STATE"]) / "workspaces").exists()
    assert o.run_git(clone, "ls-remote", "origin", "runs/*") == ""
    o.run_git(clone, "commit", "-qam", "no secret")
    assert o.mlx_tasks(here, "open-run", "--spec", spec).returncode == 0


def test_a_tracked_file_with_a_secrets_name_is_taken_as_it_was_committed_or_not_at_all(here, clone, tmp_path):
    write(clone / ".env", "FIRST=1\n")
    o.run_git(clone, "add", "-f", ".env")
    o.run_git(clone, "commit", "-qm", "env")
    assert not open_run(here, "as it is")["edited"]
    write(clone / ".env", MARK)
    done = o.mlx_tasks(here, "open-run", "--spec", json.dumps({"run_id": "edited", "form": {}}))
    assert done.returncode == ExitCode.BAD_INPUT and ".env (by its name)" in done.stdout


def test_a_tracked_file_that_became_a_link_out_of_the_checkout_stays_as_it_was(here, clone, tmp_path):
    outside = write(tmp_path / "outside.txt")
    (clone / "include" / "overrides.txt").unlink()
    (clone / "include" / "overrides.txt").symlink_to(outside)
    run = open_run(here)
    remote_names(tmp_path, run)
    assert not (workspace(here, run) / "include" / "overrides.txt").is_symlink()
    assert "include/overrides.txt (a link that leads out" in run["notes"][0]


@pytest.mark.parametrize("what", ["a circle", "an absolute link", "a pipe"])
def test_what_is_no_file_in_a_tracked_files_place_stays_behind(here, clone, what):
    place = clone / "include" / "overrides.txt"
    place.unlink()
    if what == "a pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("overrides.txt" if what == "a circle" else clone / "params.yaml")
    run = open_run(here)
    assert "include/overrides.txt (" in run["notes"][0] and not run["edited"]
    assert (workspace(here, run) / "include" / "overrides.txt").is_file()


def test_captions_beside_pictures_of_another_dataset_stay_behind(here, clone, tmp_path):
    for name in ("0.json", "1.yaml"):
        write(clone / "include" / "photos" / "cat" / name)
    write(clone / "include" / "photos" / "metadata.json")
    picture(clone / "include" / "photos" / "dog" / "0.PNG")
    o.run_git(clone, "config", "core.excludesFile", str(write(tmp_path / "ignored", "*.PNG\n")))
    write(clone / "include" / "presets" / "mine.yaml", "seed: 1\n")
    run = open_run(here)
    assert "include/presets/mine.yaml" in remote_names(tmp_path, run)
    assert "include/photos/metadata.json (beside pictures" in run["notes"][1]


def test_what_a_filter_makes_of_a_file_is_looked_at_for_secrets(here, clone):
    hidden = write(clone.parent / "hidden", f'ALERT_TOKEN = "{MARK}"\n')
    o.run_git(clone, "config", "filter.odd.clean", f"cat {hidden}")
    write(clone / ".git" / "info" / "attributes", "include/*.yaml filter=odd\n")
    write(clone / "include" / "mine.yaml", "x: 1\n")
    done = o.mlx_tasks(here, "open-run", "--spec", json.dumps({"run_id": "filter", "form": {}}))
    assert done.returncode == ExitCode.BAD_INPUT and "include/mine.yaml:1 (" in done.stdout
    o.run_git(clone, "config", "filter.odd.clean", "sed s/abcdef12/none/")  # the usual one: it takes a secret out
    write(clone / "include" / "mine.yaml", "y: 1\n")
    open_run(here)


def test_neither_the_checkouts_settings_nor_the_shell_add_to_what_is_pushed_or_run(here, clone, tmp_path):
    ran = tmp_path / "ran"
    program = write(tmp_path / "program", f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    o.run_git(clone, "tag", "-a", "private", "-m", MARK)
    for key, value in (
        ("core.fsmonitor", program), ("diff.external", program), ("core.hooksPath", program.parent),
        ("push.followTags", "true"), ("push.gpgSign", "true"), ("core.autocrlf", "true"), ("core.safecrlf", "true"),
    ):  # fmt: skip
        o.run_git(clone, "config", key, str(value))
    shell = {
        "GIT_LITERAL_PATHSPECS": "1", "GIT_NAMESPACE": "x", "GIT_PREFIX": "include/", "GIT_EXTERNAL_DIFF": str(program),
        "GIT_QUARANTINE_PATH": "/none", "GIT_OBJECT_DIRECTORY": "/none", "GIT_CONFIG_PARAMETERS": "'core.bare'='true'",
        "GIT_COMMITTER_DATE": "soon",
    }  # fmt: skip
    write(clone / "include" / "mine.yaml", "x: 1\r\n")
    write(clone / "include" / "overrides.txt", "edited\n")
    run = open_run({**here, **shell})
    assert {"include/mine.yaml", "include/overrides.txt"} <= remote_names(tmp_path, run)
    assert o.run_git(tmp_path / "hub.git", "tag") == "" and not ran.exists()


def test_params_that_hold_a_secret_are_refused(here):
    form = {"overrides": {"train.hosts": [f"{AMAZON}@mac", "mac2"]}}
    done = o.mlx_tasks(here, "open-run", "--spec", json.dumps({"run_id": "params", "form": form}))
    assert done.returncode == ExitCode.BAD_INPUT and "params must hold no secret" in done.stdout
    assert "train.hosts.0" in done.stdout and AMAZON not in done.stdout


def test_names_of_any_bytes_are_told_and_do_no_harm(here, clone, tmp_path):
    odd = [" first.yaml", "two\nlines.yaml", "é ünïcode.yaml", "-z.yaml", ":(top).yaml", 'quo"te.yaml']
    for name in odd:
        write(clone / "include" / name, "x: 1\n")
        write(clone / f"{name}.key")
    if sys.platform == "linux":  # a name that is no UTF-8
        write(Path(os.fsdecode(bytes(clone / "include") + b"/\xff.yaml")), "x: 1\n")
    run = open_run(here)
    remote_names(tmp_path, run)
    for name in odd:
        assert (workspace(here, run) / "include" / name).is_file()
    assert all(note.isprintable() for note in run["notes"])


def test_a_sparse_checkout_and_a_merge_that_stands_open_lose_nothing(here, clone):
    kept = clone / "docs" / "kept.md"
    write(kept, "kept")
    o.run_git(clone, "add", "docs")
    o.run_git(clone, "commit", "-qm", "docs")
    o.run_git(clone, "sparse-checkout", "set", "--no-cone", "/*", "!docs")
    assert not kept.exists()
    taken = take_snapshot(clone, "why")
    assert taken.commit == o.run_git(clone, "rev-parse", "HEAD").strip()


def test_a_remote_that_never_answers_is_given_up_with_what_it_started(checkout, tmp_path, monkeypatch):
    started = tmp_path / "started"
    monkeypatch.setenv("GIT_SSH_COMMAND", f"sh -c 'echo $$ > {started}; exec sleep 600' --")
    monkeypatch.setenv("ADO_GIT_TIMEOUT_S", "1.5")
    began = time.monotonic()
    with pytest.raises(
        UnavailableError, match=r"ADO_GIT_REMOTE ssh://\*\*\*@127.0.0.1/x: git push .* took more than 1.5 s"
    ) as error:
        git.push(checkout, "ssh://me:word@127.0.0.1/x", "main")
    assert "word" not in str(error.value)
    assert time.monotonic() - began < 60
    pid = int(started.read_text())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def test_a_remote_that_refuses_who_asks_is_not_asked_again(checkout, tmp_path, monkeypatch):
    refuses = write(tmp_path / "ssh", "#!/bin/sh\necho 'me@host: Permission denied (publickey).' >&2\nexit 255\n")
    refuses.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(refuses))
    with pytest.raises(DataError, match="nobody is there to type a password"):
        git.push(checkout, "ssh://127.0.0.1/x", "main")
    monkeypatch.setenv("ADO_GIT_TIMEOUT_S", "soon")
    with pytest.raises(DataError, match="ADO_GIT_TIMEOUT_S must be a number of seconds above 0, got 'soon'"):
        git.push(checkout, "ssh://127.0.0.1/x", "main")


def test_other_runs_open_while_one_pushes(here, clone, tmp_path):
    """The push waits for a hook of the remote, which is let go on only when another run has been opened."""
    hub = tmp_path / "hub.git"
    (waits, go) = (tmp_path / "waits", tmp_path / "go")
    hook = write(
        hub / "hooks" / "update",
        f"#!/bin/sh\ncase $1 in *slow*) touch {waits}; while [ ! -e {go} ]; do sleep 0.1; done;; esac\n",
    )
    hook.chmod(0o755)
    spec = json.dumps({"run_id": "slow", "form": {}})
    slow = subprocess.Popen(
        [sys.executable, "-m", "mlx_tasks", "open-run", "--spec", spec],
        env=here, cwd=here["ADO_STATE"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        while not waits.exists():
            assert slow.poll() is None, slow.communicate()[0]
            time.sleep(0.05)
        assert open_run(here, "quick")["branch"] in o.run_git(hub, "branch", "--list", "runs/*")
        assert slow.poll() is None
        go.touch()
        output, _ = slow.communicate(timeout=60)
        assert slow.returncode == 0, output
    finally:
        go.touch()
        if slow.poll() is None:
            slow.kill()
            slow.communicate()


def test_what_is_taken_and_left_is_in_the_log(clone, caplog):
    from mlx_tasks.workspace.opening import open_run as opened
    from mlx_tasks.workspace.paths import Places

    write(clone / "include" / "presets" / "mine.yaml", "seed: 1\n")
    write(clone / "server.key")
    with caplog.at_level(logging.INFO, "mlx_tasks.workspace"):
        opened(Places(clone, clone.parent / "state", str(clone.parent / "remote")), "logged", {})
    assert "edited=0 new=1 left=1" in caplog.text


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
