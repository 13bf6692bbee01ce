"""What the site adds to docs/: the README as its home, and every file elsewhere in the repository that a page links to.

So the pages link as plain Markdown in the repository does, and the site needs nothing but itself.
"""

import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
ELSEWHERE = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>|https://unpkg[^\"']*"
)
log = logging.getLogger("mkdocs.hooks.overopt")


def place_on_site(source: str) -> str:
    """Where a file of the repository is on the site: what lies in docs/ at its root, all else as in the repository."""
    return "index.md" if source == "README.md" else source.removeprefix("docs/")


def targets_of(source: str, text: str) -> list[str]:
    """The files of the repository that a page links to."""
    found = [os.path.normpath(PurePosixPath(source).parent / link[2]) for link in LINK.finditer(without_code(text))]
    return [target for target in found if (ROOT / target).is_file()]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    todo = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    for source in todo:  # which grows
        where = place_on_site(source)
        if files.get_file_from_path(where) is None:
            level = InclusionLevel.INCLUDED if source == "README.md" else InclusionLevel.NOT_IN_NAV
            added = File.generated(config, where, abs_src_path=str(ROOT / source), inclusion=level)
            files.append(added)
        if source.endswith(".md"):
            new = targets_of(source, (ROOT / source).read_text(encoding="utf-8"))
            todo += [target for target in dict.fromkeys(new) if target not in todo]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/, and those of pages that are not of it, as the site has them."""
    here = page.file.src_uri
    source = "README.md" if here == "index.md" else f"docs/{here}" if (ROOT / "docs" / here).is_file() else here

    def moved(link: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(source).parent / link[2])
        if not (ROOT / target).is_file():
            return link[0]
        path = os.path.relpath(place_on_site(target), PurePosixPath(here).parent)
        return f"{link[1]}{path}{link[3] or ''}{link[4]}"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def on_post_page(output: str, **_: Any) -> str:
    """Nothing is fetched from elsewhere."""
    for fetched in ELSEWHERE.findall(output):
        log.warning("fetched from elsewhere: %s", fetched)
    return output
