"""Hooks of MkDocs: the site's front page, links out of docs/, and GitHub's anchors.

The front page is README.md. A link to a file outside docs/ leads to that file at `repo_url`, or without one
to a page with its contents. A link to a file that does not exist ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FRONT = "README.md"
"""The file that is the site's index.md; its links start from the repository's root."""

COPIES = "files"
"""Folder of the site with the pages of files outside docs/."""

LINK = re.compile(r"(\]\()([^()\s#]+)(#[^()\s]*)?(\))")
LANGUAGES = {".py": "python", ".sh": "bash", ".md": "markdown", ".toml": "toml", ".csv": "text"}


def github_anchor(heading: str, separator: str = "-") -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let headings have GitHub's anchors, so that one link works in both places."""
    config.mdx_configs["toc"]["slugify"] = github_anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, and without `repo_url` a page for each file outside docs/ with a link to it."""
    files.append(File.generated(config, "index.md", content=(ROOT / FRONT).read_text()))
    sources = {page: ROOT / "docs" / page for page in files.src_uris if page.endswith(".md")}
    texts = {page: path.read_text() for page, path in sources.items() if path.exists()}
    texts["index.md"] = (ROOT / FRONT).read_text()
    outside = {target for page, text in texts.items() for target in linked_files(page, text)}
    if not config.repo_url:
        for target in sorted(outside):
            copy = File.generated(config, copy_of(target), content=page_of(target))
            copy.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that start from README.md's place, and links out of docs/."""
    if page.file.src_uri.startswith(f"{COPIES}/"):
        return markdown

    def rewritten(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups(default="")
        path = repository_path(page.file.src_uri, target)
        if path is None:
            return match.group()
        if path == FRONT:
            return f"{before}index.md{anchor}{after}"
        if path.startswith("docs/"):
            return f"{before}{path.removeprefix('docs/')}{anchor}{after}"
        if config.repo_url:
            return f"{before}{config.repo_url.rstrip('/')}/blob/main/{path}{anchor}{after}"
        return f"{before}{copy_of(path)}{after}"

    return LINK.sub(rewritten, markdown)


def repository_path(page: str, target: str) -> str | None:
    """Return the path of a link's target from the repository's root; None for a link to elsewhere.

    Args:
        page: the page that has the link, from docs/; index.md is README.md.  target: without its anchor.

    Raises:
        PluginError: the file does not exist.
    """
    if re.match(r"[a-z]+:", target):
        return None
    folder = "" if page == "index.md" else posixpath.join("docs", posixpath.dirname(page))
    path = posixpath.normpath(posixpath.join(folder, target))
    if not (ROOT / path).exists():
        raise PluginError(f"{page}: a link must name a file of the repository, got {target}")
    return path


def linked_files(page: str, text: str) -> set[str]:
    """Return the files outside docs/ to which a page has links, from the repository's root."""
    paths = {repository_path(page, match[2]) for match in LINK.finditer(text)}
    return {path for path in paths if path and path != FRONT and not path.startswith("docs/")}


def copy_of(path: str) -> str:
    """Return the page of the site that shows a file."""
    return f"{COPIES}/{path}.md"


def page_of(path: str) -> str:
    """Return the Markdown of a page that shows a file, or the files of a folder."""
    source = ROOT / path
    if source.is_dir():
        return f"# {path}\n\n" + "\n".join(f"- `{file.name}`" for file in sorted(source.iterdir())) + "\n"
    text = source.read_text()
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 3)
    return f"# {path}\n\n{fence}{LANGUAGES.get(source.suffix, 'text')}\n{text}\n{fence}\n"
