"""The documentation: every Python block runs, and code fits the page."""

import re

import pytest
from support.paths import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
TEXT = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
PYTHON = {page: re.findall(r"```python\n(.*?)```", text, re.S) for page, text in TEXT.items()}
COLUMNS = 80
# On torch 2.6 the layer compiles in several graphs, and torch.export does not take it.
MARKS = dict.fromkeys(["docs/exporting.md", "docs/torch.md"], pytest.mark.needs_newer_torch)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=MARKS.get(page, ())) for page, blocks in PYTHON.items() if blocks],
)
def test_python_blocks_run(page):
    exec("\n".join(PYTHON[page]), {})


@pytest.mark.parametrize("page", [page for page, blocks in PYTHON.items() if blocks])
def test_python_blocks_fit_the_page(page):
    lines = "".join(PYTHON[page]).splitlines()
    assert [line for line in lines if len(line) > COLUMNS] == []
