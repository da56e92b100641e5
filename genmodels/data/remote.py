"""Object stores by fsspec: one connection a process, and patience with outages."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

URL = re.compile(r"[a-z][a-z0-9+.-]*://")
PATIENCE = 300.0  # seconds of outage that are waited for
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between tries; doubled after each
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # a store that answers
FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")  # botocore's, not imported here
NUM_REFUSALS = 3  # bad requests until one is believed
NEVER = threading.Event()


class Outage(OSError):
    """A store was out of reach for longer than is waited for; nothing is wrong with what it holds."""


_lock = threading.Lock()
_filesystems: dict[str, Any] = {}


def is_url(source: str) -> bool:
    """Whether `source` names a place that fsspec knows, not a path."""
    return bool(URL.match(source))


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the URL's path in it.

    Endpoint and credentials come from the environment, as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID for s3://, never
    from params.yaml. ValueError where no installed package knows the scheme, or the URL holds a password.
    """
    import fsspec

    scheme, _, rest = url.partition("://")
    if "@" in rest.split("/")[0]:
        raise ValueError(f"{scheme}://…@…: credentials belong into the environment, not into the URL")
    with _lock:
        if scheme not in _filesystems:
            try:
                # Without listings: another process may write what this one looks for.
                _filesystems[scheme] = fsspec.filesystem(scheme, **_options(scheme))
            except (ValueError, ImportError) as error:
                raise ValueError(f"{url}: {' '.join(str(error).split())}") from None
    fs = _filesystems[scheme]
    return fs, str(fs._strip_protocol(url)).rstrip("/")


def _options(scheme: str) -> dict[str, Any]:
    if scheme in ("file", "local"):
        return {"auto_mkdir": True}
    if scheme not in ("s3", "s3a"):
        return {"use_listings_cache": False}
    # Our own patience is longer and counts in time; botocore's would multiply it.
    limits = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}
    return {"use_listings_cache": False, "config_kwargs": limits}


def retried(action: Callable[[], T], what: str, stop: threading.Event = NEVER) -> T:
    """`action()`, tried again while the store is away, for PATIENCE seconds; then Outage names `what`.

    What the store itself answers (no such object, no permission, no valid name) is raised at once. `stop` ends the
    patience.
    """
    end, pause, refusals = time.monotonic() + PATIENCE, FIRST_PAUSE, 0
    while True:
        try:
            return action()
        except FINAL:
            raise
        except Exception as error:  # connection libraries raise kinds of their own
            refusals += getattr(error, "errno", None) == errno.EINVAL  # a bad request, or one that was cut short
            if type(error).__name__ in FINAL_NAMES or refusals == NUM_REFUSALS:
                raise PermissionError(str(error)) from None
            if time.monotonic() + pause > end:
                raise Outage(f"{what}: out of reach for {PATIENCE:.0f} s ({error})") from error
        if stop.wait(pause):
            raise Outage(f"{what}: given up")
        pause = min(2 * pause, LONGEST_PAUSE)
