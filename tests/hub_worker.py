"""A process that asks a server of `hub_server`, as a user's would: huggingface_hub reads the environment on import.

One process does many calls: they come as lines of JSON, and so do their results.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


class Worker:
    """Runs Python and commands in a process of its own.

    Args:
        address: of the server.
        home: ``HF_HOME``, of the cache and the token.
        environment: further variables.
    """

    def __init__(self, address: str, home: Path, **environment: str) -> None:
        self.place = home.parent
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, str(_HERE / "hub_worker.py")],
            env={**kept, **own, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **call: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def __call__(self, code: str, cwd: Path | None = None, **values: str) -> Any:
        """Run code with values, and return its ``result``, or the text of the exception, after its class."""
        answer = self._ask(code=code, values=values, cwd=str(cwd or self.place))
        return answer["result"]

    def command(self, *arguments: object, cwd: Path | None = None) -> tuple[int, str, str]:
        """Run a command of tangora, and return its exit code, stdout and stderr."""
        answer = self._ask(command=[str(one) for one in arguments], cwd=str(cwd or self.place))
        return answer["code"], answer["out"], answer["err"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def _run_code(call: dict[str, Any]) -> dict[str, Any]:
    names = dict(call["values"])
    try:
        exec(call["code"], names)
        return {"result": names.get("result")}
    except Exception as error:
        return {"result": f"{type(error).__name__}: {error}"}


def _run_command(call: dict[str, Any]) -> dict[str, Any]:
    from tangora.cli.commands import main

    sys.argv = ["tangora", *call["command"]]
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def _serve() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        call = json.loads(line)
        os.chdir(call["cwd"])
        answer = _run_command(call) if "command" in call else _run_code(call)
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
    os._exit(0)  # without the libraries' threads and caches, which take seconds to take leave
