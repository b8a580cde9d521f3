"""Pages that are generated are up to date, links lead somewhere, and code on pages runs."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_backends_page_is_what_the_ops_say():
    spec = importlib.util.spec_from_file_location("make_backends", ROOT / "docs" / "make_backends.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "backends.md").read_text() == module.page(), "run python docs/make_backends.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("heading", ["An op", "The encoder"])
def test_code_of_the_readme_runs(heading):
    text = (ROOT / "README.md").read_text()
    section = text[text.index(f"## {heading}\n") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    # The shapes are what is shown, not the size of the model: a tiny one says the same in less time.
    exec(code.replace("ViViTConfig.base(", "ViViTConfig.tiny(depth=1, "), {})
