"""A page's tables and words, as a reader sees them."""

from __future__ import annotations

from html.parser import HTMLParser

Table = list[list[str]]


class PageReader(HTMLParser):
    """Collects the text, every table's rows of cells, and every address a browser would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._inside: list[str] = []
        self._words: list[str] = []
        self.feed(page)

    @property
    def text(self) -> str:
        """All visible words with single spaces."""
        return " ".join(" ".join(self._words).split())

    def table(self, corner: str, column: str) -> dict[str, list[str]]:
        """Row name → cells of the first table that has this corner and this column head."""
        for table in self.tables:
            heads = [cell for row in table for cell in row[:1]]
            columns = [cell for row in table for cell in row]
            if corner in heads and column in columns:
                return {row[0].split("\n")[0]: row[1:] for row in table}
        raise AssertionError(f"the page has no table with corner {corner!r} and column {column!r}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "small" and "table" in self._inside:
            self.tables[-1][-1][-1] += "\n"
        if tag not in ("meta", "img"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self._words.append(data)
        if "td" in self._inside or "th" in self._inside:
            self.tables[-1][-1][-1] += data
