"""The pages of docs/, and their examples run."""

import re
from pathlib import Path
from typing import Any


def text_of(page: str) -> str:
    return (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """Its blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def run(page: str) -> dict[str, Any]:
    """The names that its blocks leave behind, run one after the other."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        exec(block, names)
    return names
