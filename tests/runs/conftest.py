"""A finished run of two tasks and one mode, made once for the tests of jobs and executors."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def short_recipe(tmp_path_factory):
    from tangora.testing._tiny_run import tiny_recipe

    return tiny_recipe(tmp_path_factory.mktemp("short"))


@pytest.fixture(scope="session")
def short_run(short_recipe, tmp_path_factory):
    """Leave it as it is; `short_copy` is for changes."""
    import tangora

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
        return tangora.run(short_recipe, tmp_path_factory.mktemp("runs") / "short", progress=None)


@pytest.fixture
def short_copy(short_run, tmp_path):
    return shutil.copytree(short_run, tmp_path / "copy")
