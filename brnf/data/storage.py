"""Files on a local disk or behind a URI (`s3://`, `gs://`), through pyarrow's file systems.

Only operations that object stores have too: read, list, delete, and put a whole file atomically. No stage
renames a directory or relies on a disk shared by all nodes.
"""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from typing import Any

from pyarrow import fs

PATIENCE_S, FIRST_PAUSE_S = 60.0, 0.5
"""For how long a write that fails is tried again, and after how long first; each pause is twice the one before."""
LASTING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip
"""Errors that do not pass by themselves."""
INSIDE_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable for what `ray job submit` runs."""


def join(base: str, *names: str) -> str:
    """Join path segments to a path or URI."""
    return "/".join([base.rstrip("/"), *names])


def absolute(path: str) -> str:
    """Make a local path absolute, so that workers with another working directory find it; URIs stay.

    Raises:
        ValueError: If it is relative inside a Ray job, whose working directory is a copy that nobody finds again.
    """
    if "://" in path:
        return path
    expanded = os.path.expanduser(path)
    if INSIDE_JOB in os.environ and not os.path.isabs(expanded):
        raise ValueError(
            f"{path!r} is a relative path, and a job runs in a temporary copy of the working directory on one node; "
            "give an absolute path on a disk that all nodes share, or a URI (s3://..., gs://...)"
        )
    return os.path.abspath(expanded)


def open_location(path: str) -> tuple[fs.FileSystem, str]:
    """Split a path or URI into a pyarrow file system and the path inside it."""
    return fs.FileSystem.from_uri(absolute(path))


def exists(path: str) -> bool:
    """Whether a file or directory is there."""
    filesystem, inner = open_location(path)
    return filesystem.get_file_info(inner).type != fs.FileType.NotFound


def read_bytes(path: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: If there is none.
    """
    filesystem, inner = open_location(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()


def write_bytes(path: str, content: bytes) -> None:
    """Put a whole file atomically: readers see the old file, or the new one, never a part of it.

    A storage that is briefly away is waited for.

    Raises:
        OSError: If the file cannot be written, now or after PATIENCE_S seconds; names the file and the cause.
    """
    deadline, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
    while True:
        try:
            return _put(path, content)
        except OSError as error:
            if error.errno in LASTING or time.monotonic() + pause > deadline:
                raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
        time.sleep(pause)
        pause *= 2


def _put(path: str, content: bytes) -> None:
    filesystem, inner = open_location(path)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(inner) as stream:  # an object store commits on close
            stream.write(content)
        return
    os.makedirs(os.path.dirname(inner), exist_ok=True)
    temporary = f"{inner}.{uuid.uuid4().hex}.partial"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, inner)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def read_json(path: str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run the stage again") from error


def write_json(path: str, value: Any) -> None:
    """Put a JSON file atomically, keys in the order given."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def list_names(directory: str) -> list[str]:
    """Sorted names of the files in a directory; empty if it does not exist. Partial files are not listed."""
    filesystem, inner = open_location(directory)
    selector = fs.FileSelector(inner, allow_not_found=True)
    infos = filesystem.get_file_info(selector)
    return sorted(i.base_name for i in infos if i.type == fs.FileType.File and not i.base_name.endswith(".partial"))


def delete(path: str) -> None:
    """Delete a file or a directory with all it holds; nothing happens if there is none."""
    filesystem, inner = open_location(path)
    kind = filesystem.get_file_info(inner).type
    if kind == fs.FileType.Directory:
        filesystem.delete_dir(inner)
    elif kind != fs.FileType.NotFound:
        filesystem.delete_file(inner)
