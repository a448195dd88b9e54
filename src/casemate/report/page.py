"""What the pages of all reports share: how templates are filled, and figures put into the file itself."""

import base64

import jinja2

from casemate.norms import format_eps


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def template_environment(package: str = "casemate.report") -> jinja2.Environment:
    """Templates of `package`, which may extend those here, with autoescape; an unknown variable is an error."""
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "casemate.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["svg_uri"] = lambda figure: _data_uri("image/svg+xml", figure.svg)
    made.filters["csv_uri"] = lambda figure: _data_uri("text/csv", figure.csv.encode())
    made.filters["eps"] = format_eps
    made.filters["cell"] = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    return made
