"""The blocks of docs/first-adapter.md run, in order, in a folder like the reader's; each line in a process."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest

import tangora
import tangora.cli.evaluate
import tangora.cli.finetune
import tangora.cli.predict  # here, so that every forked process has them
from forks import in_fork, status_of
from tangora.errors import ModelError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported torch")

PAGE = (Path(__file__).parents[2] / "docs" / "first-adapter.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
TEXTS = {"delivery": ["where is my parcel", "the parcel is late"], "refund": ["the money came back twice", "my money"]}


def test_the_page_runs(tmp_path, monkeypatch, tiny_bert):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bert, "bert")
    Path("mail").mkdir()
    rows = [f'"{text}, {number}",{label}' for number in range(10) for label, texts in TEXTS.items() for text in texts]
    for split in ("train", "test"):
        Path(f"mail/{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
        rows = [row.replace(",", "; ", 1) for row in rows]
    Path("new.csv").write_text("id,text\n7,where is my parcel\n8,my money\n", encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    Path("mail.yaml").write_text(recipe, encoding="utf-8")
    assert len(LINES) == 6
    for line in LINES:
        assert line.startswith("$ tangora ")
        assert in_fork(lambda line=line: status_of(line)) == 0, line
    with open("answered.csv", encoding="utf-8") as file:
        answered = list(csv.DictReader(file))
    assert [row["id"] for row in answered] == ["7", "8"]
    shares = [float(answered[0][f"probability_{label}"]) for label in TEXTS]
    assert answered[0]["answer"] == list(TEXTS)[shares.index(max(shares))]
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert names["answers"][0] == answered[0]["answer"]
    assert names["answers"].probability[0] == pytest.approx(max(shares), abs=1e-5)
    monkeypatch.chdir("mail")  # the base, named `bert`, is above the adapter
    assert tangora.predictor("../adapters/mail")(["where is my parcel"]).answers == names["answers"].answers[:1]
    Path("../bert").rename("../moved")
    with pytest.raises(ModelError, match=r"there is no folder bert here.*--base"):
        tangora.predictor("../adapters/mail")
