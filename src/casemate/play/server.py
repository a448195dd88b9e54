"""The server of the playground: on this machine's loopback address, for pages of its own only."""

import os
from collections.abc import Awaitable, Callable

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from casemate.play.answers import Answers
from casemate.play.page import STYLE, build, theme
from casemate.play.pictures import MOST_BYTES

HOST = "127.0.0.1"
_MOST_CONNECTIONS = 100


def make_app(answers: Answers, port: int) -> FastAPI:
    """The application, which refuses requests that another site sent (DNS rebinding, cross-site requests)."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    own = {f"{host}:{port}" for host in (HOST, "localhost")}

    @app.middleware("http")
    async def own_pages_only(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers
        origin = given.get("origin", f"http://{given.get('host')}").removeprefix("http://")
        # a link on another site may lead here; its scripts, forms and frames may not
        foreign = given.get("sec-fetch-site") == "cross-site" and given.get("sec-fetch-dest") != "document"
        if given.get("host") not in own or origin not in own or foreign or request.method not in ("GET", "POST"):
            return PlainTextResponse("This page is for this machine only.", status_code=403)
        response = await answer(request)
        response.headers["content-security-policy"] = "frame-ancestors 'none'"
        return response

    return gr.mount_gradio_app(
        app,
        build(answers),
        "/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        show_error=True,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css_paths=STYLE,
    )


def serve(answers: Answers, port: int) -> None:
    """Answer until Ctrl-C."""
    settings = uvicorn.Config(
        make_app(answers, port), host=HOST, port=port, log_level="warning", limit_concurrency=_MOST_CONNECTIONS
    )
    uvicorn.Server(settings).run()
