"""Opens the place that a reference means: a directory, or a repository on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from cuvee.errors import SourceError
from cuvee.tensors.location import Directory, Location
from cuvee.tensors.reference import ModelRef, looks_like_hub_id

_LOCAL_START = ("./", "../", "/", "~", ".\\", "..\\")


def open_location(ref: ModelRef, cache_dir: Path | None = None) -> Location:
    """The place that a reference means: a directory if it is spelled as one or there is one, else a Hub repository.

    Args:
        ref: the reference; its adapters are not looked at.
        cache_dir: where to keep what is downloaded; huggingface_hub's own cache if None.

    Raises:
        SourceError: if it is neither, or cannot be reached.
    """
    local = os.path.expanduser(ref.path)  # noqa: PTH111 (Path raises for users and names that cannot be)
    if ref.revision and os.path.isdir(f"{local}@{ref.revision}"):  # noqa: PTH112
        return Directory(Path(f"{local}@{ref.revision}"))
    spelled_local = ref.path.startswith(_LOCAL_START) or ref.path in {".", ".."} or os.path.isabs(local)  # noqa: PTH117
    exists = os.path.exists(local)  # noqa: PTH110
    if spelled_local and exists and ref.revision:
        raise SourceError(
            f"{ref} asks for a revision of a directory",
            expected="a revision only after a Hub id",
            fix=f"write {ref.path}",
            checkpoint=str(ref),
        )
    # A revision speaks for the Hub, even where a directory happens to bear the same name.
    if spelled_local or (exists and not ref.revision):
        return Directory(Path(local))
    if looks_like_hub_id(ref.path):
        from cuvee.tensors.hub import Hub  # most merges are of directories

        try:
            return Hub(ref.path, ref.revision, cache_dir)
        except SourceError as error:
            error.found = "; ".join(filter(None, (error.found, f"no directory {os.path.abspath(local)} either")))  # noqa: PTH100
            raise
    raise SourceError(
        f"{ref.path!r} is neither a directory nor a Hub id",
        expected="an existing directory, or a Hub id such as organisation/name",
        fix="check the spelling; relative paths start at the current directory",
        checkpoint=str(ref),
    )
