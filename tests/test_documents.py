"""What users read: its links lead somewhere, its words are explained, and every page is in the index."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", flags=re.M | re.S)
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
# The glossary's last table: each word that readers should not meet elsewhere, and what to write instead.
PRIVATE = dict(re.findall(r"^\| ([a-z ]+) \| ([a-z ,]+) \|$", GLOSSARY.partition("## Words to avoid")[2], flags=re.M))
PRIVATE.pop("avoid")
HISTORY = ("glossary.md", "log.md", "CHANGELOG.md")  # the first explains them; the others keep what was written then
WORDED = [path for path in PAGES if path.name not in HISTORY] + sorted((ROOT / "conf").rglob("*.yaml"))


def name(path):
    return str(path.relative_to(ROOT))


def private(text):
    """The private words of a text, and what to write instead."""
    return {word: said for word, said in PRIVATE.items() if re.search(rf"\b{word}s?\b", text, flags=re.I)}


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_within_the_repository_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        where, _, anchor = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        assert target.exists(), f"{name(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_document_that_a_page_names_exists(page):
    if page.name in ("CHANGELOG.md", "log.md"):
        return  # history, where some have gone since
    for named in re.findall(r"`(docs/[\w-]+\.md|scripts/\w+\.\w+|conf/[\w/]+\.yaml)`", page.read_text()):
        assert (ROOT / named).exists(), named


def test_a_test_that_a_page_names_exists():
    for page in PAGES:
        if page.name in HISTORY:
            continue
        for path, test in re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)(?:::(test_\w+))?", page.read_text()):
            assert f"def {test}" in (ROOT / "tests" / path).read_text(), f"{name(page)}: {path}::{test}"


def test_the_index_names_every_page():
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


@pytest.mark.parametrize("page", WORDED, ids=name)
def test_private_words_stay_in_the_glossary(page):
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text()))  # names in code are what they are
    if page.suffix == ".yaml":
        text = "\n".join(re.findall(r"#(.*)", text))
    assert not private(text)


def test_the_help_has_no_private_words():
    from dbnrun.cli import _help

    assert not private(_help().replace("layer, cell, grid", ""))  # what `dbnrun bench` calls its subjects


def test_the_readme_is_short_and_its_figure_small():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    (figure,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert (ROOT / figure).stat().st_size < 150_000
    assert figure in (ROOT / "Makefile").read_text(), "make figures draws it"


def test_every_make_target_that_a_page_names_exists():
    heads = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    targets = {target for head in heads for target in head.split()}
    for page in PAGES:
        for target in re.findall(r"(?:^    |`)make (\w[\w-]*)", page.read_text(), flags=re.M):
            assert target in targets, f"{name(page)}: make {target}"
