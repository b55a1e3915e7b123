"""The view of a store in use as a page of this machine, which asks for news by itself."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from typing import Any, Final

from repaudit.errors import RepauditError
from repaudit.extras import require
from repaudit.live.watcher import Watcher

HOST: Final = "127.0.0.1"
"""Only this machine sees the page: it shows names and numbers of a store to whoever asks."""
_PAGE: Final = files("repaudit.live").joinpath("page.html")
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


class Board:
    """The last look at a store, renewed in a thread of its own."""

    def __init__(self, watcher: Watcher, every: float) -> None:
        self._watcher, self._every = watcher, every
        self._stop = threading.Event()
        self.state: dict[str, Any] = {"url": str(watcher.url), "models": [], "layers": [], "failed": []}
        self._thread = threading.Thread(target=self._renew, name="repaudit-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _renew(self) -> None:
        waiting = False
        while not self._stop.wait(0 if waiting else self._every if self.state["models"] else 0.1):
            try:
                look = self._watcher.look(self._every)
                self.state, waiting = look.plain(), look.waiting > 0
            except Exception as error:  # noqa: BLE001 - a look that fails, however, is told, and the next one may not
                told = str(error) if isinstance(error, RepauditError) else f"{type(error).__name__}: {error}"
                self.state, waiting = {**self.state, "error": told}, False
                self._stop.wait(self._every)


def application(board: Board) -> Any:
    """Return an ASGI application with the page and its state as JSON."""
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

    async def page(_request: Any) -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=headers)

    async def state(_request: Any) -> Response:
        return Response(json.dumps(board.state), media_type="application/json", headers=headers)

    return Starlette(routes=[Route("/", page), Route("/state.json", state)])


def of_this_machine(app: Any) -> Any:
    """Return an application that answers under this machine's own names only.

    Another name may be that of a stranger's page, which asks in the reader's browser.
    """
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return TrustedHostMiddleware(app, allowed_hosts=[HOST, "localhost"], www_redirect=False)


def serve(watcher: Watcher, every: float, port: int, started: Callable[[str], None]) -> None:
    """Serve the page until interrupted; `started` is called with its address.

    Raises
    ------
    RepauditError
        The port is taken.
    MissingPartError
        What serves the page is not installed.
    """
    require("a page", "uvicorn", "starlette")
    uvicorn: Any = import_module("uvicorn")
    board = Board(watcher, every)
    config = uvicorn.Config(
        of_this_machine(application(board)), host=HOST, port=port, log_level="warning", access_log=False
    )
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise RepauditError(f"port {port} of {HOST}: {error.strerror}; choose another with --port") from None
    board.start()
    started(f"http://{HOST}:{listening.getsockname()[1]}/")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        board.stop()
