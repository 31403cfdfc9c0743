"""`check_format`: the promises of `tangora.adapters.contract.Format`, on adapters that it makes itself."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from tangora.adapters.adapter import Adapter
from tangora.adapters.contract import FileFormat, Format
from tangora.adapters.kinds import KINDS
from tangora.adapters.metadata import Metadata
from tangora.errors import TangoraError
from tangora.support.seams import FORMATS
from tangora.updates.task_vector import Dense, LowRank, Update

__all__ = ["check_format"]

_SHAPES = {"encoder.first": (6, 4), "encoder.second": (3, 5)}


def check_format(format_: Format) -> None:
    """Check the promises of a format: it recognizes and reads back what it writes, and refuses damaged files.

    Raises:
        AssertionError: says which promise is broken.

    >>> from tangora.support.seams import FORMATS
    >>> check_format(FORMATS.get("lora"))
    """
    assert isinstance(format_, Format), f"{format_!r} lacks a name of tangora.adapters.contract.Format"
    assert format_.kind in KINDS, f"{format_.name}: kind must be one of {', '.join(KINDS)}, got {format_.kind!r}"
    if getattr(format_, "read_only", False):
        _check_read_only(format_)
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        adapter = Adapter(_updates(format_), Metadata(kind=format_.kind))
        folder = home / "adapter"
        folder.mkdir()
        before = adapter.fingerprint
        format_.write(adapter, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert files, f"{format_.name}: write leaves no file in the folder"
        assert adapter.fingerprint == before, f"{format_.name}: write changes the adapter"
        _check_recognition(format_, folder, home)
        _check_reading(format_, folder, adapter)
        _check_survey(format_, folder, adapter)
        for file in files:
            _check_damage(format_, folder, file)
        if isinstance(format_, FileFormat):
            _check_file(format_, adapter, home / "one.safetensors")


def _check_read_only(format_: Format) -> None:
    """Check that a format which only reads writes nothing, and recognizes no other format's files."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        folder = home / "refused"
        folder.mkdir()
        try:
            format_.write(Adapter(_updates(format_), Metadata(kind=format_.kind)), folder)
        except TangoraError:
            pass
        else:
            raise AssertionError(f"{format_.name}: is read-only, and writes an adapter")
        assert not list(folder.iterdir()), f"{format_.name}: is read-only, and leaves a file"
        _check_recognition(format_, None, home)


def _updates(format_: Format) -> Mapping[str, Update]:
    if (sample := getattr(format_, "sample", None)) is not None:
        drawn_by_format: Mapping[str, Update] = sample()
        return drawn_by_format
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Update] = {}
    for i, (site, (rows, columns)) in enumerate(_SHAPES.items()):
        if KINDS[format_.kind].has_factors:
            b, a = torch.randn(rows, i + 1, generator=generator), torch.randn(i + 1, columns, generator=generator)
            drawn[site] = LowRank(b, a, 0.5 + i)
        else:
            drawn[f"{site}.weight"] = Dense(torch.randn(rows, columns, generator=generator))
    return drawn


def _check_recognition(format_: Format, folder: Path | None, home: Path) -> None:
    others = {name: other for name, other in FORMATS.all().items() if name != format_.name}
    if folder is not None:
        assert format_.recognizes(folder), f"{format_.name}: does not recognize what it has written"
        odd = [name for name, other in others.items() if other.recognizes(folder)]
        assert not odd, f"{format_.name}: format {', '.join(odd)} recognizes its files too"
    empty, garbage = home / "empty", home / "garbage.safetensors"
    empty.mkdir()
    garbage.write_bytes(b"no header")
    for path in (empty, garbage, home / "missing"):
        try:
            recognized = format_.recognizes(path)
        except Exception as error:  # no exception of any kind is allowed
            raise AssertionError(f"{format_.name}: recognizes raises {error!r} for {path.name}") from error
        assert not recognized, f"{format_.name}: recognizes {path.name}, which is no adapter"
    for other in (other for other in others.values() if not getattr(other, "read_only", False)):
        _check_foreign(format_, other, home / f"of-{other.name}")


def _check_foreign(format_: Format, other: Format, folder: Path) -> None:
    folder.mkdir()
    other.write(Adapter(_updates(other), Metadata(kind=other.kind)), folder)
    assert not format_.recognizes(folder), f"{format_.name}: recognizes the files of format {other.name}"


def _check_reading(format_: Format, folder: Path, written: Adapter) -> None:
    metadata = Metadata(kind=format_.kind, task="a")
    for lazily in (False, True):
        how = f"{format_.name}, lazily={lazily}"
        read = format_.read(folder, metadata, lazily=lazily)
        assert read.metadata == metadata, f"{how}: read loses the metadata that it is given"
        assert sorted(read.updates) == sorted(written.updates), f"{how}: read finds other sites"
        assert read.fingerprint == written.fingerprint, f"{how}: read gives other numbers than were written"
        for site, update in read.updates.items():
            assert update.dense().dtype == torch.float32, f"{how}: {site} is not float32"
    bare = format_.read(folder, None)
    assert bare.metadata.kind == format_.kind, f"{format_.name}: read without metadata gives kind {bare.metadata.kind}"


def _check_survey(format_: Format, folder: Path, written: Adapter) -> None:
    survey = format_.survey(folder, None)
    shapes = {site.name: tuple(site.shape) for site in survey.sites}
    wanted = {name: tuple(update.shape) for name, update in written.updates.items()}
    assert shapes == wanted, f"{format_.name}: survey describes {shapes}, and {wanted} was written"
    assert survey.tensors, f"{format_.name}: survey lists no tensors"
    for site in survey.sites:
        norm = written.updates[site.name].norm()
        close = site.norm is None or abs(site.norm - norm) <= 1e-5 * norm
        assert close, f"{format_.name}: survey gives {site.name} the norm {site.norm}, it is {norm}"


def _check_file(format_: FileFormat, written: Adapter, path: Path) -> None:
    format_.write_file(written, path)
    assert format_.recognizes(path), f"{format_.name}: does not recognize the file that it has written"
    read = format_.read(path, None)
    assert read.fingerprint == written.fingerprint, f"{format_.name}: read gives other numbers than the file has"
    again = format_.prepare(format_.prepare(written))
    assert again.fingerprint == written.fingerprint, f"{format_.name}: prepare changes what it has returned"


def _check_damage(format_: Format, folder: Path, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    try:
        with contextlib.suppress(TangoraError):  # refused, as promised
            if format_.recognizes(folder):
                format_.read(folder, None)
                raise AssertionError(f"{format_.name}: reads {file.name} although half of it is missing")
    finally:
        file.write_bytes(content)
