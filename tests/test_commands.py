"""The commands of the README and of the pages: each runs, or is checked as the sweep that it begins."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ELSEWHERE = ("your-own.md", "compare.md")  # tests/runner/test_own.py, tests/report/test_comparison.py
PAGES = [path for path in (ROOT / "docs").glob("*.md") if path.name not in ELSEWHERE]


def commands(text):
    """The words of each dbnrun command that stands in a block of code."""
    joined = re.sub(r" \\\n\s*", " ", text)
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (dbnrun .*)$", joined, flags=re.M)]


README_COMMANDS = commands(README)
PAGE_COMMANDS = {" ".join(words): words for path in PAGES for words in commands(path.read_text())}
SHORT = ["train.epochs=1", "train.limit_batches=2", "threads=1", "progress=false"]


def trains(words):
    return words[0].startswith("-") or "=" in words[0]


def test_the_readme_can_be_followed_from_top_to_bottom(command, tmp_path):
    source = re.search(r"Save this as `(\w+\.py)`:\n\n```python\n(.*?)```", README, flags=re.S)
    assert source and len(README_COMMANDS) >= 7
    (tmp_path / source[1]).write_text(source[2])
    for words in README_COMMANDS:
        code, said = command(*words, *(SHORT if trains(words) else []))
        assert code == 0, said
    assert re.search(r"MeanOnly.* 6 .*\[.*\] +0\.\d+", said), said
    assert (tmp_path / "results" / "report" / "report.html").exists()


@pytest.mark.parametrize("words", PAGE_COMMANDS.values(), ids=PAGE_COMMANDS)
def test_a_command_of_a_page_is_accepted(command, tmp_path, monkeypatch, words):
    monkeypatch.setenv("DBNRUN_DATA", "none")
    (tmp_path / "x.csv").write_text("a,class\n" + "".join(f"{place % 7},{'uv'[place % 2]}\n" for place in range(300)))
    for place in range(300):
        path = tmp_path / "DIR" / "uv"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (place % 256, 0, 0)).save(path)
    if (launcher := re.search(r"hydra/launcher=(\w+)", " ".join(words))) and launcher[1] == "ray":
        pytest.importorskip("ray")
    if words[:2] in (["theory", "run"], ["theory", "figures"]):
        pytest.skip("takes minutes, or writes the committed figures; tests/theory/test_verb.py runs it small")
    if words[0] in ("status", "runs"):
        assert command(*SHORT)[0] == 0
    if trains(words):
        words = ["plan", *words]
    elif words[0] in ("report", "data"):
        pytest.skip("reads all records, or downloads; the README's walk and tests/data/test_download.py run it")
    code, said = command(*(word for word in words if word != "--watch"))
    assert code == 0, said
