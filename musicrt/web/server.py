"""Serves the page to browsers, by default to those of this machine only."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any
from unittest import mock

from starlette.middleware import Middleware

from musicrt.runtime.errors import InputError
from musicrt.runtime.limits import limit_of
from musicrt.web.page import build_page
from musicrt.web.studio import Studio

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Browsers fetch nothing from elsewhere and send nothing there, whatever gradio's pages ask for."""


class StayHere:
    """Says `POLICY` with every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def say(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = (b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        await self.app(scope, receive, say if scope["type"] == "http" else send)


@contextlib.contextmanager
def serving(studios: Sequence[Studio], host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Serve the page while the context lasts; gives its address. Files of users go with it.

    Raises InputError where the address is not to be had.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own server whether it is there
    with tempfile.TemporaryDirectory(prefix="musicrt-web-") as folder, mock.patch.dict(os.environ, GRADIO_TEMP_DIR=folder):
        page = build_page(studios)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                max_file_size=limit_of("upload_bytes"),
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                app_kwargs={"middleware": [Middleware(StayHere)]},
            )
        except OSError as error:
            raise InputError(f"can't listen on {host}, port {port} ({error}); name another one with --port") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def wait_for_interrupt() -> None:
    """Sleep until Ctrl-C, or until the process is told to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
