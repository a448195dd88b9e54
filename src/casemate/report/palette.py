"""The colours of all figures and pages, by name, in daylight and in the dark, and figures that follow the page.

A page states each colour once, as a CSS variable with a value for each of the two. Matplotlib writes the light value
into its SVG, where `themed` replaces it by the variable. Colours of series are Okabe and Ito's, which readers with any
colour vision tell apart; in grey they differ in lightness, and no figure tells series apart by colour alone.
"""

import re
from collections.abc import Mapping

PAPER, INK, SOFT, LINE, FILL = "#ffffff", "#1c2126", "#566069", "#d9dee3", "#f3f5f7"
BLUE, ORANGE, VERMILLION, GREEN = "#0072b2", "#e69f00", "#d55e00", "#009e73"
SKY, PURPLE, YELLOW, GREY, FAINT = "#56b4e9", "#cc79a7", "#f0e442", "#8a8a8a", "#c3ccd4"
GOOD, BAD = "#1b7a45", "#b42318"
WHITE, BLACK = "#fefefe", "#010101"
"""For text on a map of colours, which is the same in the dark."""
SERIES = (ORANGE, SKY, GREEN, PURPLE, VERMILLION, YELLOW, BLUE, GREY)

LIGHT: Mapping[str, str] = {
    "paper": PAPER,
    "ink": INK,
    "soft": SOFT,
    "line": LINE,
    "fill": FILL,
    "blue": BLUE,
    "orange": ORANGE,
    "vermillion": VERMILLION,
    "green": GREEN,
    "sky": SKY,
    "purple": PURPLE,
    "yellow": YELLOW,
    "grey": GREY,
    "faint": FAINT,
    "good": GOOD,
    "bad": BAD,
    "accent": "#0b5394",
    "good-fill": "#edf7f1",
    "doubt": "#8a4b00",
    "doubt-fill": "#fdf4e3",
    "bad-fill": "#fdf0ee",
    "note-fill": "#e6f0fa",
}
"""Every colour by the name of its CSS variable."""
DARK: Mapping[str, str] = {
    "paper": "#14181c",
    "ink": "#e6eaed",
    "soft": "#a5b0b9",
    "line": "#38424b",
    "fill": "#1d2329",
    "blue": "#4aa8e0",
    "orange": "#f0b429",
    "vermillion": "#f08a4b",
    "green": "#2cc295",
    "sky": "#8ccdf5",
    "purple": "#e0a0c4",
    "yellow": "#f5ec7a",
    "grey": "#9aa3ab",
    "faint": "#4b5761",
    "good": "#5fce92",
    "bad": "#ff8f82",
    "accent": "#85bdf0",
    "good-fill": "#15291f",
    "doubt": "#f3b760",
    "doubt-fill": "#2e2413",
    "bad-fill": "#331a17",
    "note-fill": "#182a3c",
}
"""The same on a dark page."""

_VARIABLES = {value: f"var(--{name})" for name, value in reversed(LIGHT.items())}
_COLOUR = re.compile("|".join(_VARIABLES))


def themed(svg: str, name: str, alt: str) -> str:
    """A figure of matplotlib as an element of a page, in the page's colours; a screen reader reads `alt`.

    `name` makes the identifiers within it unique on the page.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)  # matplotlib's holds for the whole page
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = _COLOUR.sub(lambda found: _VARIABLES[found.group()], body)
    words = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'style="stroke-linejoin: round; stroke-linecap: butt" role="img" aria-label="{words}">'
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda found: f"<svg {found.group(1)} {head}", body, count=1)
