"""Hooks of mkdocs: pages that lie beside the code, such as the README, become pages of the site, and links follow."""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {  # file in the repository: page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "var/pretrained/var-mini/README.md": "models/var-mini.md",
    "var/pretrained/var-emoji/README.md": "models/var-emoji.md",
}
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^):#]+)(#[^)]*)?\)")  # to a file: no colon, so no address


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages; what has no page keeps its name alone."""
    path = page.file.src_uri
    source = {to: by for by, to in OUTSIDE.items()}.get(path, f"docs/{path}")

    def follow(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        place = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / target)).as_posix()
        found = OUTSIDE.get(place, place.removeprefix("docs/"))
        if place in OUTSIDE or place.startswith("docs/"):
            return f"{image}[{text}]({os.path.relpath(found, PurePosixPath(path).parent)}{anchor or ''})"
        return f"`{place}`" if (ROOT / place).exists() else link.group()

    return LINK.sub(follow, markdown)
