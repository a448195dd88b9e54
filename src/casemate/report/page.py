"""What the pages of all reports share: how templates are filled, and how figures are embedded in the file."""

import base64
import re
from datetime import UTC, datetime
from typing import NoReturn

import jinja2
from markupsafe import Markup, escape

from casemate._version import __version__
from casemate.errors import StoreError
from casemate.evaluation.intervals import percent
from casemate.report import palette

_CODE = re.compile(r"`([^`]+)`")


def template_environment(package: str = "casemate.report") -> jinja2.Environment:
    """The Jinja environment with the HTML templates of `package` and of `casemate.report`, which escapes values.

    A template of `package` may extend one of `casemate.report`. It adds filters for figures, shares, text and
    table cells, and the colours of the page, the version and the time. An unknown variable is an error; a
    template that is not installed raises `StoreError`.
    """

    def not_installed(name: str) -> NoReturn:  # jinja2's own error is an OSError, which would be taken for a full disk
        raise StoreError(f"the template {name} of {package} is missing: casemate is damaged, install it again")

    loaders = [*map(jinja2.PackageLoader, (package, "casemate.report")), jinja2.FunctionLoader(not_installed)]
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["inline"] = lambda figure: Markup(palette.themed(figure.svg.decode(), figure.name, figure.alt))
    made.filters["csv_uri"] = lambda figure: data_uri("text/csv", figure.csv.encode())
    made.filters["percent"] = percent
    made.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    made.filters["code"] = lambda text: Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))
    made.globals |= {
        "palette": palette,
        "version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    made.filters["cell"] = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    return made


def data_uri(kind: str, content: bytes) -> str:
    """The bytes of a file of a MIME type as a URI that a page can embed."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
