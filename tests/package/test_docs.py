"""Every Python block of the documentation runs."""

import re

import pytest
from support.paths import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCKS = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.S) for page in PAGES}


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_python_blocks_run(page):
    exec("\n".join(BLOCKS[page]), {})
