"""Tables of a page: plain ones, and ones that the page's script sorts and filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detkit.evaluation.report.html import Markup, element, join, shorten

Cell = str | int | float | None  # a float shows three digits; None and NaN a dash


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: its title.
        cells: a cell for each row.
        about: what the numbers are, as a tooltip.
        signed: numbers show a plus.
        bold: `[n]` cells that stand out; none if empty.
        minor: there is no need for it where room is scarce.
    """

    head: str
    cells: Sequence[Cell]
    about: str | None = None
    signed: bool = False
    bold: Sequence[bool] = ()
    minor: bool = False

    @property
    def textual(self) -> bool:
        """Whether it holds text, which sorts by letters and stands to the left."""
        return any(isinstance(cell, str) for cell in self.cells)

    @property
    def style(self) -> str | None:
        """Classes of the head, and of cells of text."""
        return " ".join(["text"] * self.textual + ["minor"] * self.minor) or None

    def show(self, row: int) -> Markup:
        """One of its cells; the script sorts by the unrounded number."""
        cell, class_ = self.cells[row], "bold" if any(self.bold[row : row + 1]) else None
        if isinstance(cell, str):
            return element("td", element("bdi", shorten(cell)), class_=self.style)
        if cell is None or math.isnan(cell):
            return element("td", "-")
        text = f"{cell:,d}" if isinstance(cell, int) else f"{cell:.3f}".replace("-0.000", "0.000")
        plus = "+" if self.signed and cell > 0 else ""
        return element("td", f"{plus}{text}", data_value=repr(cell), class_=class_)


def plain_table(columns: Sequence[Column]) -> Markup:
    """A table as it is."""
    heads = [
        element("th", element("bdi", shorten(each.head, 60)), title=each.about,
                class_=each.style, scope="col")
        for each in columns
    ]  # fmt: skip
    table = element("table", element("thead", element("tr", *heads)), _body(columns))
    return element("div", table, class_="scroll")


def sortable_table(key: str, columns: Sequence[Column], *, what: str) -> Markup:
    """A table that a click on a head sorts, with a field that filters by the first column.

    Args:
        key: the table's identifier in the page.
        columns: the first one holds names.
        what: the rows are, in the plural.
    """
    heads = [
        element("th", element("button", element("bdi", shorten(each.head, 60)), type="button"),
                title=each.about, class_=each.style, scope="col")
        for each in columns
    ]  # fmt: skip
    field = element(
        "input", type="search", placeholder=f"filter {what}", aria_label=f"filter {what}",
        data_filters=key,
    )  # fmt: skip
    count = element("span", id=f"{key}-count", class_="faint", role="status")
    head = element("thead", element("tr", *heads))
    table = element("table", head, _body(columns), id=key, class_="sortable")
    return join(
        element("div", field, count, class_="tools"),
        element("div", table, class_="scroll tall"),
    )


def _body(columns: Sequence[Column]) -> Markup:
    rows = range(len(columns[0].cells))
    return element("tbody", *(element("tr", *(each.show(row) for each in columns)) for row in rows))
