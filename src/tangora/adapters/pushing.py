"""`push`: a folder's files become one commit of a repository on the Hub; nothing there is ever deleted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.adapters.publishable import Publishable, publishable
from tangora.errors import ArgumentError, OutputError
from tangora.progress import Progress
from tangora.storage.hub_errors import endpoint, upload_errors
from tangora.storage.recognition import contents_among, contents_of
from tangora.support.hub import HubReference, hub_name_of
from tangora.support.shown import one_line
from tangora.support.sizes import size_text
from tangora.support.version import package_version

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Pushed", "push"]


@dataclass(frozen=True)
class Pushed:
    """What was published.

    Attributes:
        url: of the repository, at its branch if one was given.
        source: ``org/name@commit``, by which Tangora finds it anywhere.
        files: the paths of its files.
        left_out: files of the folder that were not uploaded.
        also_there: files that the repository had before, and keeps.
    """

    url: str
    source: str
    files: list[str]
    left_out: list[str]
    also_there: list[str]

    def __repr__(self) -> str:
        return one_line("Pushed", repr(self.url), f"{len(self.files)} files")


def push(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    base: str | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Publish an adapter or a checkpoint on the Hub, with its card, in one commit.

    The folder is checked first: it is whole and readable, and neither its card nor its records name paths of this
    machine. The repository is made if it does not exist; files that it has and the folder has not stay there. Choose it
    to give an adapter to others: ``tangora.load("org/name")``, and peft, read it from there.

    Args:
        folder: of an adapter or a checkpoint.
        repository: ``org/name``.
        private: make a private repository. One that exists and is public is refused.
        revision: a branch, which is made from the default one if it does not exist; the default branch if None.
        message: of the commit.
        base: the base's name on the Hub, in place of the one in the card and the records, such as a local folder.
        progress: of the upload.

    Raises:
        ArgumentError: the repository's name, or the branch's, is none.
        FileError, AdapterError: the folder cannot be published; see `tangora.adapters.publishable`.
        OutputError: the Hub refuses it or cannot be reached, or the repository holds something else.

    >>> import tangora
    >>> try:
    ...     tangora.push("adapters/one", "me/one")
    ... except tangora.TangoraError as error:  # it was trained from a folder: base="org/encoder" names it
    ...     print(error.what, error.got)
    a path of this machine would be published encoder
    """
    reference = _named(repository, revision)
    if base is not None and hub_name_of(base) is None:
        raise ArgumentError("no name on the Hub", got=base, where="push.base", fix="give it as org/name")
    chosen = publishable(folder, repository, base)
    from huggingface_hub import HfApi  # deferred: takes a moment to import

    api, listener = HfApi(), progress or Progress()
    size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in chosen.files.values())
    with upload_errors(reference):
        _check_visibility(api, reference, private)
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        before = _names_in(api.model_info(repository, revision=revision))
        also_there = _kept_there(before, chosen, reference)
        listener.begin(f"push {len(chosen.files)} files ({size_text(size)})", 1)
        commit = _committed(api, chosen, reference, message)
        _check_arrived(api.model_info(repository, revision=commit, files_metadata=True), chosen, reference)
        listener.end()
    url = f"{endpoint()}/{repository}" + (f"/tree/{revision}" if revision is not None else "")
    return Pushed(url, f"{repository}@{commit}", list(chosen.files), chosen.left_out, also_there)


def _named(repository: str, revision: str | None) -> HubReference:
    parsed = hub_name_of(f"{repository}@{revision}" if revision is not None else repository)
    if parsed is None or parsed.subfolder or "@" in repository:
        fix = "give org/name, and a branch as --revision"
        got = repository if revision is None else f"{repository}, revision {revision}"
        raise ArgumentError("no name of a repository on the Hub", got=got, where="push", fix=fix)
    return parsed


def _check_visibility(api: HfApi, reference: HubReference, private: bool) -> None:
    """Refuse to publish something in a public repository that is meant to be private."""
    from huggingface_hub.errors import RepositoryNotFoundError  # deferred: as in `push`

    try:
        found = api.model_info(reference.repository)
    except RepositoryNotFoundError:
        return  # it is made
    if private and found.private is not True:
        fix = "make it private in its settings on the Hub, or choose another name"
        raise OutputError("the repository exists and is public", got="--private", where=reference, fix=fix)


def _names_in(info: ModelInfo) -> set[str]:
    return {file.rfilename for file in info.siblings or ()}


def _kept_there(before: set[str], chosen: Publishable, reference: HubReference) -> list[str]:
    """Return the repository's other files; refuse them if they make something else of what is pushed."""
    top = {name for name in {*before, *chosen.files} if "/" not in name}
    own = contents_of(chosen.folder)
    heads = sorted(name for name in before if name.startswith("heads/") and name not in chosen.files)
    if own != "nothing" and contents_among(top) != own:
        what = "the repository holds another kind of model, and both in one folder could not be read"
        fix = "choose another repository or branch, or remove its files there yourself: push deletes nothing"
        raise OutputError(what, got=contents_among(before), where=reference, fix=fix)
    if heads:
        what = "the repository has heads of tasks that the folder does not have, and would keep them"
        fix = "choose another repository or branch, or remove them there yourself: push deletes nothing"
        raise OutputError(what, got=heads[0], where=reference, fix=fix)
    return sorted(name for name in before if name not in chosen.files and not name.startswith("."))


def _committed(api: HfApi, chosen: Publishable, reference: HubReference, message: str | None) -> str:
    from huggingface_hub import CommitOperationAdd  # deferred: as in `push`

    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in chosen.files.items()
    ]
    text = message or f"Push {chosen.folder.resolve().name} with Tangora {package_version()}"
    made = api.create_commit(
        reference.repository, operations=operations, commit_message=text, revision=reference.revision
    )
    return str(made.oid)


def _check_arrived(info: ModelInfo, chosen: Publishable, reference: HubReference) -> None:
    """Compare the commit with the folder: a .gitignore there may leave files out without an error."""
    there = {file.rfilename: file.size for file in info.siblings or ()}
    sizes: Mapping[str, int] = {name: _size(content) for name, content in chosen.files.items()}
    for name, size in sizes.items():
        if name not in there or there[name] not in (None, size):
            what = "a file did not arrive in the repository"
            fix = "look at the repository's .gitignore, and push again"
            raise OutputError(what, got=name, where=reference, fix=fix)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
