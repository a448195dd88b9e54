"""Results as small HTML tables, which notebooks show in place of the text of an object; without scripts and styles."""

from collections.abc import Sequence
from html import escape


def html_table(title: str, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table of texts as HTML, with a title, and a heading for each column if `head` is given; all is escaped."""
    lines = ["<table>", f"<caption>{escape(title)}</caption>"]
    if head:
        lines.append(f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>")
    lines.append("<tbody>")
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return "\n".join([*lines, "</tbody>", "</table>"])
