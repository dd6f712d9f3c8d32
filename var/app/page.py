"""The page: its tabs together, served on this machine."""

import ipaddress
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from var.app import edit, features, generate, inside, train
from var.app.state import AppState
from var.app.uploads import KEPT_SECONDS, MAX_BYTES

TABS: dict[str, Callable[[AppState], None]] = {
    "Generate": generate.build,
    "Edit": edit.build,
    "Look inside": inside.build,
    "Features": features.build,
}
WAITING = 64  # events at most; further ones are refused
SESSIONS = 64  # visitors whose state is held in memory, the latest
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
TITLE = "VAR: image generation by next-scale prediction"


def build(state: AppState) -> gr.Blocks:
    """Return the page with all its tabs."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS // 6, KEPT_SECONDS)) as page:
        gr.Markdown(f"## VAR · {state.model}")
        others = []
        for name, build_tab in TABS.items():
            with gr.Tab(name) as tab:
                build_tab(state)
            others.append(tab)
        with gr.Tab("Train") as training:
            timer = train.build(state)
        for tab in others:  # nobody sees what the timer would read
            tab.select(lambda: gr.Timer(active=False), None, timer, queue=False, api_visibility="private")
        training.select(lambda: gr.Timer(active=True), None, timer, queue=False, api_visibility="private")
    page.queue(max_size=WAITING, api_open=False)
    return page


def _where_known(function: Callable[..., object], **options: Any) -> dict[str, Any]:
    """Return those options that a function has in this version; older ones do not do what they switch off."""
    return {name: value for name, value in options.items() if name in signature(function).parameters}


@contextmanager
def serving(state: AppState, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serve the page in the background; its address.

    Args:
        port: None: a free one.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # of gradio's look at its own server
    page = build(state)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_BYTES,
            allowed_paths=[],
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            **_where_known(page.launch, run_history=False),
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host))]},
            state_session_capacity=SESSIONS,
            _frontend=False,  # no test whether the page can be reached, which fails on a busy machine
            theme=theme(),
        )
        yield address
    finally:
        page.close(verbose=False)


def allowed_hosts(host: str) -> list[str]:
    """Return the names by which the page may be asked for, `*` for any, when it is served at this address.

    Of a page for this machine alone they are its own names: a website's name that leads here (DNS rebinding) is none.
    """
    return [*LOCAL_NAMES, host] if is_local(host) else ["*"]


def is_local(host: str) -> bool:
    """Return whether only this machine reaches an address or a name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def theme() -> gr.themes.Base:
    """Return a theme with the fonts of the system, for which nothing is fetched."""
    sans, mono = ("ui-sans-serif", "system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.themes.Default(font=sans, font_mono=mono)


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make the folder that holds all uploads and downloads of the page, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="var_app_") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before
