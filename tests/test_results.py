"""Pages of results say what it takes to measure them again."""

import re
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TEMPLATE = RESULTS / "README.md"
PAGES = sorted(set(RESULTS.glob("*.md")) - {TEMPLATE})
HEADINGS = [
    *("Entity", "Hardware", "Config", "Command", "Versions", "Date", "Table", "Plot"),
]


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level, code blocks left whole."""
    blocks = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(blocks[::2], map(str.strip, blocks[1::2]), strict=True))


def faults(text: str, folder: Path) -> list[str]:
    """What a page lacks."""
    found = sections(text)
    known = [heading for heading in found if heading in HEADINGS]
    wrong = [f"no heading {h!r}" for h in HEADINGS if h not in found]
    if not wrong and known != HEADINGS:
        wrong.append(f"headings in another order: {known}")
    wrong += [f"nothing under {h!r}" for h in known if not found[h]]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", found.get("Date", "")):
        wrong.append("no date YYYY-MM-DD")
    versions = found.get("Versions", "")
    if not re.search(r"\b[Cc]ommit [0-9a-f]{7}", versions):
        wrong.append("no commit")
    if "NVIDIA" in found.get("Hardware", "") and "driver" not in versions:
        wrong.append("no driver")
    if "python -m scripts." not in found.get("Command", ""):
        wrong.append("no command")
    if not re.search(r"^\|.+\|$", found.get("Table", ""), re.MULTILINE):
        wrong.append("no table")
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", found.get("Plot", ""))
    wrong += [] if pictures else ["no plot"]
    wrong += [f"no file {p}" for p in pictures if not (folder / p).is_file()]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_says_how_it_was_measured(page):
    assert faults(page.read_text(), page.parent) == []


def test_the_template_has_the_headings():
    assert list(sections(TEMPLATE.read_text())) == HEADINGS


@pytest.fixture
def page(tmp_path):
    (tmp_path / "a.png").touch()
    bodies = dict.fromkeys(HEADINGS, "words")
    bodies |= {
        "Command": "    python -m scripts.sweep configs/tiny.py",
        "Date": "2026-11-26",
        "Hardware": "NVIDIA H200",
        "Versions": "Commit 0123abc, driver 1.2",
        "Table": "| a | b |\n|---|---|",
        "Plot": "![a](a.png)",
    }
    return "# Title\n" + "".join(f"## {h}\n{body}\n\n" for h, body in bodies.items())


def test_a_whole_page_has_no_fault(page, tmp_path):
    assert faults(page, tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("## Hardware\nNVIDIA H200\n", "", "no heading 'Hardware'"),
        ("## Hardware\nNVIDIA H200", "## Hardware\n", "nothing under 'Hardware'"),
        ("Commit 0123abc", "some commit", "no commit"),
        (", driver 1.2", "", "no driver"),
        ("2026-11-26", "yesterday", "no date YYYY-MM-DD"),
        ("python -m scripts.sweep", "run it", "no command"),
        ("| a | b |\n|---|---|", "see below", "no table"),
        ("![a](a.png)", "later", "no plot"),
        ("a.png", "b.png", "no file b.png"),
    ],
)
def test_what_a_page_lacks_is_named(page, tmp_path, old, new, fault):
    assert old in page
    assert faults(page.replace(old, new), tmp_path) == [fault]


def test_headings_in_another_order_are_named(page, tmp_path):
    moved = page.replace("## Config\nwords\n\n", "") + "## Config\nwords\n"
    assert faults(moved, tmp_path)[0].startswith("headings in another order")
