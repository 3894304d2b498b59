"""Connections to object stores through fsspec, with limits on how long a silent one is waited for.

Knows no blobs and no sources. Functions may be called from any thread.
"""

from collections.abc import Mapping
from copy import deepcopy

import fsspec
from fsspec import AbstractFileSystem

# Of one attempt; s3fs makes five. Botocore's own repetitions would multiply them.
_S3_PATIENCE: dict[str, object] = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 0}}


def connect(url: str, options: Mapping[str, object]) -> tuple[AbstractFileSystem, str]:
    """Return a connection of the caller's own, and where in it the URL points; the network is not asked yet.

    Args:
        url: A path, or a URL fsspec knows.
        options: What fsspec needs to get there; ``config_kwargs`` of S3 overrides our patience.

    Raises:
        ImportError: If the protocol's driver is not installed.
        TypeError: If the driver does not know an option.
        ValueError: If the protocol or the URL is not known.
    """
    given = dict(options)
    if url.startswith("s3://"):
        config = given.get("config_kwargs", {})
        if not isinstance(config, Mapping):
            raise ValueError("config_kwargs must be a mapping")
        given["config_kwargs"] = deepcopy({**_S3_PATIENCE, **config})  # the driver writes into it
    filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **given)
    return filesystem, str(path)
