"""The tutorials: notebooks are those of their sources, ran to the end, and say nothing of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
BUILD = FOLDER.parent / "_code"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
MACHINE = re.compile(r"/tmp/|/root/|/work/|/home/(?!me\b)|site-packages|/private/|[A-Z]:\\\\")


@pytest.fixture
def tutorials(monkeypatch):
    """The script that executes them."""
    monkeypatch.syspath_prepend(BUILD)
    import tutorials

    return tutorials


def notebook(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def text(value):
    return value if isinstance(value, str) else "".join(value)


def outputs(name):
    """What every output says, by kind."""
    for cell in notebook(name)["cells"]:
        for output in cell.get("outputs", ()):
            yield "text/plain", text(output.get("text", ""))
            for kind, value in output.get("data", {}).items():
                yield kind, text(value)


def test_every_source_has_a_notebook_and_a_page(generated):
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    for name in NAMES:
        seconds = notebook(name)["metadata"]["tangora"]["processor_seconds"]
        assert f"]({name}.md) |" in generated["tutorials/index.md"]
        assert f"| {seconds:.0f} |" in generated["tutorials/index.md"]
        assert f"]({name}.ipynb)" in generated[f"tutorials/{name}.md"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_source_and_ran_in_order(name, tutorials):
    cells = notebook(name)["cells"]
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert [(cell["cell_type"], text(cell["source"])) for cell in cells] == list(tutorials.cells(source))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_says_nothing_of_a_machine(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000
    for kind, said in outputs(name):
        assert kind in ("text/plain", "text/html", "image/png")
        if kind != "image/png":
            assert not MACHINE.search(said), said
            assert not re.search(r"━|\x1b|\r|Warning:|Traceback|^error: ", said, re.MULTILINE), said


def test_a_page_has_all_that_a_notebook_has(tutorials, generated, monkeypatch):
    from pages.tutorials import page

    source = "# %% [markdown]\n# # One\n#\n# Line.\n\n# %%\n1 + 1\n\n# %%\n# !tangora methods\n"
    made = tutorials.notebook(source)
    made["metadata"]["tangora"] = {"seconds": 3.2, "processor_seconds": 2.2, "cores": 2, "threads": 1}
    made["cells"][1]["outputs"] = [
        {"output_type": "execute_result", "data": {"text/plain": "2"}},
        {"output_type": "display_data", "data": {"image/png": "QUJD", "text/plain": "<Figure>"}},
        {"output_type": "display_data", "data": {"text/html": "<table>\n\n</table>", "text/plain": "t"}},
    ]
    made["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["average\n", "ties\n"]}]
    shown = page("one", made)
    for part in ("# One\n", "Line.", "1 + 1", "\n2\n", "](one-1.png)", "<table>\n</table>", "average\nties"):
        assert part in shown
    assert "```console\n$ tangora methods\n```" in shown


def test_outputs_are_cleaned(tutorials, tmp_path):
    made = tutorials.notebook("# %%\n1\n")
    made["cells"][0]["outputs"] = [
        {"output_type": "stream", "name": "stderr", "text": "Warning: old"},
        {"output_type": "stream", "name": "stdout", "text": f"10%\r100%\r\n\x1b[1m{tmp_path}/fused\x1b[0m\n"},
        {"output_type": "display_data", "data": {"text/html": "</pre>\n", "text/plain": ""}, "metadata": {}},
        {"output_type": "stream", "name": "stdout", "text": "score: done in 1.2 s\nend\n"},
    ]
    (output,) = tutorials.cleaned(made, tmp_path)["cells"][0]["outputs"]
    assert output["text"] == "100%\n/home/me/fused\nend\n"


def test_the_name_of_the_machine_is_replaced_and_columns_stay(tutorials, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-07.lab")
    made = tutorials.notebook("# %%\n1\n")
    printed = "driver: gpu-07.lab, process 3\ndigits  gpu-07.lab  31\non gpu-07.lab.\nmy-gpu-07.lab, gpu-07.labs\n"
    made["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": printed}]
    (output,) = tutorials.cleaned(made, tmp_path)["cells"][0]["outputs"]
    assert output["text"].splitlines() == [
        "driver: host, process 3",
        "digits  host        31",
        "on host.",
        "my-gpu-07.lab, gpu-07.labs",
    ]


def test_a_tutorial_runs_and_prints_what_it_printed(tutorials):
    pytest.importorskip("nbclient")
    assert "write-a-method" in NAMES
    done, before = tutorials.execute("write-a-method"), notebook("write-a-method")
    assert len(done["cells"]) == len(before["cells"])
    for cell, as_shown in zip(done["cells"], before["cells"], strict=True):
        words, numbers = printed(cell)
        shown_words, shown_numbers = printed(as_shown)
        assert words == shown_words
        assert numbers == pytest.approx(shown_numbers, rel=0.02, abs=0.02)


def printed(cell):
    """Return what a cell printed, without numbers, and these: their last digits differ between processors."""
    said = json.dumps([[output.get("text"), output.get("data")] for output in cell.get("outputs", ())])
    said = re.sub(r"\b[0-9a-f]{16}\b", "FINGERPRINT", said)
    number = r"\d+\.\d+"
    return re.sub(number, "NUMBER", said), [float(found) for found in re.findall(number, said)]
