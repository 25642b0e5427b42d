"""Adds to the site what lies outside the docs folder, and turns links between the two into links of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = {"README.md": "quickstart.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md",
           "benchmarks/RESULTS.md": "RESULTS.md",
           "examples/paper/README.md": "paper.md"}  # fmt: skip
"""File of the repository -> page of the site."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"(!\[[^\]]*\]\()docs/")
"""In a page from outside; inside the site the pictures lie beside it."""


def on_files(files: Any, config: Any) -> Any:
    """The pages from outside, and a list of the decisions."""
    for place, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [(path.name, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")) for path in pages]
    text = "# Why it is so and not otherwise\n\n" + "\n".join(
        f"- [{title}](decisions/{name})" for name, title in titles
    )
    files.append(File.generated(config, "decisions.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links between files of the repository become links between pages; what is no page keeps its words only."""
    source = next((place for place, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    here = (ROOT / source).parent

    def turned(match: re.Match[str]) -> str:
        target = (here / match[2]).resolve()
        if page.file.src_uri == "decisions.md" or not target.exists():
            return match[0]  # A broken link: the build stops at it.
        found = _page_of(target)
        up = "../" * page.file.src_uri.count("/")
        return f"[{match[1]}]({up}{found}{match[3] or ''})" if found else match[1]

    return LINK.sub(turned, PICTURE.sub(r"\1", markdown))


def _page_of(target: Path) -> str | None:
    """The page of a file; None for what is none, such as a program."""
    place = target.relative_to(ROOT).as_posix()
    if place == "docs/decisions":
        return "decisions.md"
    if place == "docs":
        return "README.md"
    return OUTSIDE.get(place) or (place.removeprefix("docs/") if target.suffix == ".md" and "docs/" in place else None)
