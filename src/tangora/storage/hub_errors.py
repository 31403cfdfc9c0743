"""Turn the exceptions of huggingface_hub into errors that say what is wrong with a name, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tangora.errors import FileError, OutputError, TangoraError

if TYPE_CHECKING:
    from tangora.support.hub import HubReference

__all__ = ["Unreachable", "endpoint", "hub_errors", "is_offline", "offline", "upload_errors"]

_LOG_IN = "log in with hf auth login, or set HF_TOKEN"
_TRANSPORTS = ("requests", "httpx", "httpx2", "httpcore", "urllib3")  # of the versions of huggingface_hub
_PATH = "check the path; if it names a repository of the Hub,"
_NEITHER = "no such folder here, and"


class Unreachable(FileError):
    """The Hub cannot be asked now; what is in its cache may still be used."""


def endpoint() -> str:
    """Return the address of the Hub, which ``HF_ENDPOINT`` may change."""
    from huggingface_hub import constants  # deferred: takes a moment to import, and most paths are local

    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` forbids requests."""
    from huggingface_hub import constants  # deferred: as in `endpoint`

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def hub_errors(reference: HubReference) -> Iterator[None]:
    """Raise `FileError` for what huggingface_hub raises while ``reference`` is looked up or fetched."""
    try:
        yield
    except TangoraError:
        raise
    except Exception as cause:
        described = _reading(cause, reference)
        if described is None:
            raise
        raise described from cause


@contextlib.contextmanager
def upload_errors(reference: HubReference) -> Iterator[None]:
    """Raise `OutputError` for what huggingface_hub raises while something is written to ``reference``."""
    try:
        yield
    except TangoraError:
        raise
    except Exception as cause:
        described = _writing(cause, reference)
        if described is None:
            raise
        raise described from cause


def _reading(cause: Exception, reference: HubReference) -> FileError | None:
    from huggingface_hub import errors  # deferred: as in `endpoint`

    if isinstance(cause, errors.OfflineModeIsEnabled) or is_offline():
        return offline(reference)
    if isinstance(cause, errors.GatedRepoError):
        what = "the repository is gated, and this account has no access to it"
        fix = f"ask for access at {endpoint()}/{reference.repository}, and {_LOG_IN}"
        return FileError(what, where=reference, fix=fix)
    if isinstance(cause, errors.RepositoryNotFoundError):
        what = f"{_NEITHER} no such repository on the Hub, or a private one"
        return FileError(what, where=reference, fix=f"check the name; if the repository is private, {_LOG_IN}")
    if isinstance(cause, errors.RevisionNotFoundError):
        fix = "give a branch, a tag or a whole commit after the @, which stands at the end: org/name/subfolder@revision"
        return FileError("the repository has no such revision", got=reference.revision, where=reference, fix=fix)
    if isinstance(cause, errors.HfHubHTTPError):
        return _answered(cause, reference)
    if isinstance(cause, (errors.LocalEntryNotFoundError, errors.FileMetadataError)) or _is_transport(cause):
        what = f"{_NEITHER} the Hub cannot be reached ({_line(cause)})"
        fix = f"{_PATH} check the network, a proxy, and HF_ENDPOINT if it is set"
        return Unreachable(what, where=f"{reference}, {endpoint()}", fix=fix)
    return _of_cache(cause, reference) if isinstance(cause, OSError) else None


def _writing(cause: Exception, reference: HubReference) -> OutputError | None:
    from huggingface_hub import errors  # deferred: as in `endpoint`

    where = f"{reference}, {endpoint()}"
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return OutputError("HF_HUB_OFFLINE forbids to ask the Hub", where=reference, fix="unset it to push")
    status = _status(cause)
    if status in (401, 403) or isinstance(cause, errors.RepositoryNotFoundError):
        what = "the Hub does not let this account, or this token, write there"
        return OutputError(what, got=status, where=where, fix=f"{_LOG_IN}, with a token that may write to this owner")
    if isinstance(cause, errors.HfHubHTTPError) or (isinstance(cause, ValueError) and "README.md" in str(cause)):
        got = {} if status is None else {"got": status}
        fix = "try again later" if status is None or status >= 500 or status == 429 else "correct what it names"
        return OutputError(f"the Hub refuses it ({_line(cause)})", where=where, fix=fix, **got)
    if _is_transport(cause) or _is_transport(cause.__cause__):
        fix = "check the network, a proxy, and HF_ENDPOINT if it is set; the same command goes on"
        return OutputError(f"the Hub cannot be reached ({_line(cause)})", where=where, fix=fix)
    return None


def _status(cause: Exception) -> int | None:
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _answered(cause: Exception, reference: HubReference) -> FileError:
    """Return the error for an answer of the Hub that is none of those for a missing thing."""
    status = _status(cause)
    if status == 401:
        return FileError("the Hub refuses the token", got=status, where=reference, fix=f"{_LOG_IN} with a valid one")
    if status == 403:
        fix = "choose a token with this right, or another repository"
        return FileError("this account, or its token, may not read this", got=status, where=reference, fix=fix)
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        what = f"the Hub refuses the request ({_line(cause)})"
        return FileError(what, got=status, where=reference, fix="check the name")
    fix = "try again later; HF_ENDPOINT decides which server is asked"
    return Unreachable("the Hub fails to answer", got=status, where=f"{reference}, {endpoint()}", fix=fix)


def _is_transport(cause: BaseException | None) -> bool:
    named = any(kind.__module__.partition(".")[0] in _TRANSPORTS for kind in type(cause).__mro__)
    return named or isinstance(cause, (ConnectionError, TimeoutError))


def offline(reference: HubReference) -> Unreachable:
    """Return the error for something that is not in the cache while requests are forbidden."""
    what = f"{_NEITHER} no complete copy in the Hub's cache, and HF_HUB_OFFLINE forbids to ask the Hub"
    fix = f"{_PATH} unset HF_HUB_OFFLINE; or run the same command once where there is a network, and keep its cache "
    fix += "(HF_HOME); or, if another program has filled the cache, give the path of the snapshot's folder"
    return Unreachable(what, where=reference, fix=fix)


def _of_cache(cause: OSError, reference: HubReference) -> FileError:
    from huggingface_hub import constants  # deferred: as in `endpoint`

    full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    what = f"the Hub's cache cannot be written ({cause.strerror or _line(cause)})"
    fix = f"{'free some space' if full else 'check its permissions'}, or set HF_HOME to another folder"
    return FileError(what, got=str(reference), where=constants.HF_HUB_CACHE, fix=fix)


def _line(cause: BaseException) -> str:
    return " ".join(str(cause).split())[:200] or type(cause).__name__
