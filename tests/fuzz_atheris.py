"""Coverage-guided fuzzing of one reader: ``make fuzz-atheris READER=tokenizer.json SECONDS=600``; without a name, all.

Atheris (Apache-2.0) mutates the valid input of `readers.READERS` and keeps what reaches new lines of Tangora. Anything
else than an answer or a `TangoraError` stops it, and the input is written to ``crash-*`` in the current folder.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tangora"]):
    from readers import READERS
    from tangora.errors import TangoraError


def main(name: str, *options: str) -> None:
    """Fuzz one reader with libFuzzer's options, until it ends or finds something."""
    warnings.simplefilter("ignore")
    read, seed = READERS[name].read, READERS[name].seed()

    def one(data: bytes) -> None:
        with contextlib.suppress(TangoraError):
            read(data)

    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "seed").write_bytes(seed)
        atheris.Setup([sys.argv[0], f"-max_len={4 * len(seed) + 4096}", *options, corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    names = sys.argv[1:2] if sys.argv[1:] and not sys.argv[1].startswith("-") else []
    if names:
        main(*names, *sys.argv[2:])
    else:  # libFuzzer ends its process
        lines = ([sys.executable, __file__, name, *sys.argv[1:]] for name in READERS)
        sys.exit(max(abs(subprocess.run(line, check=False).returncode) for line in lines))
