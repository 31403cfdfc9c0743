"""Folders that are given by a path, or by a name on the Hub: one function, which every entry point calls.

    "org/name/subfolder@revision" ── located ──> a folder in the Hub's cache, with the files that are needed

The cache, the token, the server and the offline mode are those of huggingface_hub (``HF_HOME``, ``HF_TOKEN``,
``HF_ENDPOINT``, ``HF_HUB_OFFLINE``). A folder of the cache has the repository's name and the commit in its path, which
`tangora.support.hub.source_of` reads: nothing else is passed on.

The files of one commit are listed in ``.tangora/<commit>.json`` beside the snapshots. Without the list, a snapshot that
another program has fetched in part, such as peft an adapter without ``tangora.json``, would be taken for all of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from tangora.errors import FileError
from tangora.progress import Progress
from tangora.storage.hub_errors import Unreachable, hub_errors, is_offline, offline
from tangora.storage.hub_files import Purpose, needed_content, small_files_of, weights_among
from tangora.support.files import reachable, read_json, write_json
from tangora.support.hub import HubReference, hub_reference
from tangora.support.names import snapshot_of
from tangora.support.sizes import size_text

__all__ = ["located"]

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 3  # a branch may move between two requests


def located(source: str | os.PathLike[str], purpose: Purpose = "any", progress: Progress | None = None) -> Path:
    """Return the path of a folder or file, fetched if it is named as on the Hub: ``org/name[/subfolder][@revision]``.

    A path that exists always wins, and what looks like a path is never looked up (`tangora.support.hub`). Only the
    files that are needed are fetched, and never a pickle.

    Args:
        source: a path, which need not exist, or a name on the Hub.
        purpose: what it is needed as; another content is refused before its weights are fetched.
        progress: of the weights' files; huggingface_hub draws its own bars unless it is kept from that.

    Raises:
        FileError: there is no such repository, revision or subfolder; it is private or gated; it has only pickles; the
            Hub cannot be reached and there is no copy in its cache; a path cannot be read.
        ArgumentError, AdapterError: it is of another kind than it is needed as.
    """
    reference = hub_reference(source)
    if reference is None:
        return reachable(source)
    if (reference.is_commit or is_offline()) and (kept := _kept(reference, purpose)) is not None:
        return kept
    if is_offline():
        raise offline(reference)
    try:
        with hub_errors(reference):
            return _fetched(reference, purpose, progress or Progress())
    except Unreachable as error:
        if (kept := _kept(reference, purpose)) is None:
            raise
        line = f"the Hub cannot be asked for {reference}: the copy in its cache is used, {_commit_of(kept)[:12]}"
        _LOG.info("%s (%s)", line, error)
        if progress is not None:
            progress.note(line)
        return kept


def _fetched(reference: HubReference, purpose: Purpose, progress: Progress) -> Path:
    """Fetch what is needed of a repository's folder: small files first, weights last."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download  # deferred: takes a moment, and is rare

    for _ in range(_ATTEMPTS):
        info = HfApi().model_info(reference.repository, revision=reference.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        names = _names_in(sizes, reference)
        content = needed_content(names, purpose, reference)
        within = f"{reference.subfolder}/" if reference.subfolder else ""
        small = [within + name for name in small_files_of(names, content)]
        patterns = [_escaped(name) for name in small]
        place = Path(snapshot_download(reference.repository, revision=reference.revision, allow_patterns=patterns))
        if place.name == info.sha and all((place / name).is_file() for name in small):
            break
    else:
        what = "the revision moves, or the Hub is lost, while its files are fetched"
        raise Unreachable(what, got=reference.revision, where=reference, fix="try again, or give a commit after the @")
    folder = place / reference.subfolder
    weights = weights_among(folder, names, content, reference)
    lacking = [name for name in weights if not (folder / name).is_file()]
    if lacking:
        size = size_text(sum(sizes[within + name] for name in lacking))
        progress.begin(f"fetch {reference} ({size})", len(lacking))
        for name in lacking:
            hf_hub_download(reference.repository, within + name, revision=place.name)
            progress.advance(detail=name)
        progress.end()
    with suppress(FileError, OSError):  # a cache that may only be read: it is asked for again
        write_json(_list_of(place), {"files": sorted(sizes)})
    return folder / weights[0] if content == "nothing" else folder


def _names_in(files: Collection[str], reference: HubReference) -> set[str]:
    """Return the paths of files in the reference's subfolder, relative to it."""
    within = f"{reference.subfolder}/" if reference.subfolder else ""
    names = {name.removeprefix(within) for name in files if name.startswith(within) and ".." not in name.split("/")}
    if within and not names:
        folders = sorted({name.rpartition("/")[0] for name in files if "/" in name})
        fix = f"give one of: {', '.join(folders[:8])}" if folders else "leave the subfolder out"
        raise FileError("the repository has no such folder", got=reference.subfolder, where=reference, fix=fix)
    return names


def _escaped(name: str) -> str:
    """Return a pattern that only this name matches."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def _kept(reference: HubReference, purpose: Purpose) -> Path | None:
    """Return the folder in the cache if everything that is needed is there; None if not.

    Raises:
        FileError, ArgumentError, AdapterError: as `needed_content`.
    """
    from huggingface_hub import constants  # deferred: as in `_fetched`

    home = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{reference.repository.replace('/', '--')}"
    commit = reference.revision or "main"
    if not (home / "snapshots" / commit).is_dir():
        try:
            commit = (home / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    place = home / "snapshots" / commit
    try:
        files = [str(name) for name in read_json(_list_of(place))["files"]]
    except (FileError, KeyError, TypeError):
        return None
    names, folder = _names_in(files, reference), place / reference.subfolder
    content = needed_content(names, purpose, reference)
    if not all((folder / name).is_file() for name in small_files_of(names, content)):
        return None
    weights = weights_among(folder, names, content, reference)
    if not all((folder / name).is_file() for name in weights):
        return None
    return folder / weights[0] if content == "nothing" else folder


def _list_of(snapshot: Path) -> Path:
    return snapshot.parent.parent / ".tangora" / f"{snapshot.name}.json"


def _commit_of(place: Path) -> str:
    snapshot = snapshot_of(place)
    return "" if snapshot is None else snapshot.name
