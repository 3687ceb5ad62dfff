"""The store between machines, where artifacts travel by hash: how DVC is told of it, and whether it can be used."""

from __future__ import annotations

import uuid
from typing import Any

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.workspace.paths import ENDPOINT_VARIABLE, Places

SCHEMES = ("s3",)
"""What the lock installs support for; a folder needs none."""


def remote_lines(places: Places) -> list[str]:
    """The remote's section of a workspace's .dvc/config.local. Credentials stay in the environment (AWS_...).

    What comes from it is read once and must have the hash that it is kept under.
    """
    endpoint = [f"    endpointurl = {places.dvc_endpoint}"] if places.dvc_endpoint else []
    return ["['remote \"ado\"']", f"    url = {places.dvc_remote}", "    verify = true", *endpoint]


def open_store(places: Places) -> tuple[Any, str]:
    """(the remote's fsspec filesystem, the folder in it).  Raises: DataError for a scheme without support."""
    if "://" not in places.dvc_remote:
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(auto_mkdir=True), places.dvc_remote
    scheme, _, rest = places.dvc_remote.partition("://")
    if scheme not in SCHEMES:
        raise DataError(f"ADO_DVC_REMOTE must be a folder or begin with s3://, got {places.dvc_remote!r}")
    import s3fs

    client: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}
    store = s3fs.S3FileSystem(
        endpoint_url=places.dvc_endpoint, config_kwargs=client, skip_instance_cache=True, use_listings_cache=False
    )
    return store, rest.rstrip("/")


def probe(places: Places) -> None:
    """Write, read and remove a few bytes.  Raises: DataError for a scheme without support, UnavailableError."""
    store, folder = open_store(places)
    from botocore.exceptions import BotoCoreError, ClientError

    path, content = f"{folder}/.probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        store.pipe_file(path, content)
        same = store.cat_file(path) == content
        store.rm_file(path)
    except (OSError, BotoCoreError, ClientError) as error:
        where = places.dvc_endpoint or f"{ENDPOINT_VARIABLE} is not set: Amazon's"
        raise UnavailableError(f"{places.dvc_remote} ({where}): {error}") from None
    if not same:
        raise UnavailableError(f"{places.dvc_remote} gives other bytes than it got")
