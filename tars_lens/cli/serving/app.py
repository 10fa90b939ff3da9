"""The routes of the local page. Every request says which neurons are off, so tabs don't disturb."""

import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tars_lens.attribution.workbench import Workbench
from tars_lens.common.errors import TarsError

HOSTS = ["127.0.0.1", "localhost"]
"""Names that the page may be called by: a page of the net that resolves to here is refused."""

_MOST = 20_000
_KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def application(bench: Workbench) -> Starlette:
    """The page over a workbench; one question at a time is put to the model."""
    lock = threading.Lock()

    def asked(question: Callable[[dict[str, Any]], Any]) -> Any:
        async def endpoint(request: Request) -> JSONResponse:
            try:
                given = await _given(request)
                return JSONResponse(await run_in_threadpool(_locked, lock, question, given))
            except TarsError as error:
                return JSONResponse({"error": str(error)}, status_code=400)

        return endpoint

    def answer(given: dict[str, Any]) -> Any:
        return bench.answer(_text(given, "prompt"), _off(given))

    def flow(given: dict[str, Any]) -> Any:
        return bench.flow(_text(given, "prompt"), _text(given, "concept"), _off(given))

    def neuron(given: dict[str, Any]) -> Any:
        return _plain(bench.card(_text(given, "neuron")))

    async def state(_: Request) -> JSONResponse:
        return JSONResponse(
            {
                "model": bench.lens.name,
                "concepts": [card.name for card in bench.concepts],
                "neurons": bench.neurons.to_dict("records"),
                "prompts": bench.prompts(),
            }
        )

    routes = [
        Route("/", lambda _: _asset("page.html")),
        *(Route(f"/{name}", _served(name)) for name in ("page.css", "page.js")),
        Route("/api/state", state),
        Route("/api/answer", asked(answer), methods=["POST"]),
        Route("/api/flow", asked(flow), methods=["POST"]),
        Route("/api/neuron", asked(neuron), methods=["POST"]),
    ]
    return Starlette(
        routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)]
    )


def _locked(lock: threading.Lock, question: Callable[[dict[str, Any]], Any], given: Any) -> Any:
    with lock:
        return question(given)


async def _given(request: Request) -> dict[str, Any]:
    """The question's JSON; a form of another site can't send this type unasked."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise TarsError("a question is sent as application/json.")
    if len(body := await request.body()) > _MOST:
        raise TarsError(f"a question has at most {_MOST:,} bytes, got {len(body):,}.")
    try:
        found = await request.json()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise TarsError("a question is a JSON object.")
    return found


def _text(given: dict[str, Any], key: str) -> str:
    found = given.get(key)
    if not isinstance(found, str) or not found.strip():
        raise TarsError(f"{key} is empty: write some text.")
    return found


def _off(given: dict[str, Any]) -> list[str]:
    found = given.get("off", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise TarsError("off is a list of neurons.")
    return found


def _plain(value: Any) -> Any:
    """Numbers that are none become nothing, which JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def _served(name: str) -> Callable[[Request], Response]:
    return lambda _: _asset(name)


def _asset(name: str) -> Response:
    text = files("tars_lens.cli.serving").joinpath(name).read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Response(text, media_type=_KINDS[name], headers=headers)
