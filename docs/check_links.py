"""Check the links of the built documentation: python docs/check_links.py build/docs

Every link to a page of ours must lead to a file, every fragment to an element with that id. Links
to other sites are listed with --external, and not fetched: the check works without a network.
"""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the ids of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what the element points to and what it is called."""
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in {"href", "src"} and value:
                self.links.append(value)


def broken_links(root: Path) -> tuple[list[str], list[str]]:
    """Return the broken links of all pages below a directory, and the links to other sites.

    Args:
        root: the directory that Sphinx wrote.
    """
    pages = {path.resolve(): Page(path) for path in sorted(root.rglob("*.html"))}
    broken: list[str] = []
    external: set[str] = set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                external.add(link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            where = path.relative_to(root.resolve())
            if not target.exists():
                broken.append(f"{where}: {link}: no such file")
            elif target in pages and unquote(parts.fragment) not in {"", *pages[target].ids}:
                broken.append(f"{where}: {link}: no element of that id")
    return broken, sorted(link for link in external if not link.startswith("data:"))


def main() -> int:
    """Print what is broken; exit code 1 when something is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="the directory that sphinx-build wrote")
    parser.add_argument("--external", action="store_true", help="list links to other sites")
    options = parser.parse_args()
    broken, external = broken_links(options.root)
    if not (options.root / "index.html").exists():
        parser.error(f"no {options.root}/index.html; build it first: make docs")
    for line in broken + (external if options.external else []):
        print(line)
    print(f"{len(broken)} broken links, {len(external)} links to other sites", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
