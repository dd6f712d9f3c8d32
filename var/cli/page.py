"""The command that serves the page: `var app`."""

import errno
import signal
import socket
import threading
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from tokenizer.errors import InputError, check_whole_number, one_line
from var.cli.options import ModelOptions

ENDING = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # Windows has no SIGHUP

Host = Annotated[str, Option(help="Address that is listened at; 0.0.0.0 lets other machines use the page.")]
Port = Annotated[
    int,
    Option(
        callback=lambda value: check_whole_number("port", value, 0, 65535), help="Port; 0: a free one from 7860 on."
    ),
]
RunsFolder = Annotated[Path, Option(help="Folder of the runs whose training is shown.")]
ImagesFolder = Annotated[
    Path | None,
    Option(help="Folder with images, or folders of them, whose features can be looked at.", metavar="FOLDER"),
]
FeaturesModel = Annotated[
    str | None,
    Option(help="Model of the features, as `var features extract` takes it. Default: the one that draws."),
]


def app(
    host: Host = "127.0.0.1",
    port: Port = 7860,
    runs: RunsFolder = Path("runs"),
    images: ImagesFolder = None,
    features: FeaturesModel = None,
    *,
    model: ModelOptions,
) -> None:
    """Serve a page on which images are generated, edited and looked into, in a browser on this machine.

    Examples:
      var app
      var app --model var-emoji --port 8000 --images photos
    """
    for name, given in (("images", images), ("runs", runs)):
        if given is not None and given.exists() and not given.is_dir():
            raise InputError(f"--{name} {given} is a file: give a folder")
    if images is not None and not images.exists():
        raise InputError(f"--images {images} does not exist: give a folder with images")
    check_address(host, port)
    from var.utils.optional_packages import optional_packages

    with optional_packages("app"):
        from var.app.page import is_local, own_folder, serving
    typer.echo(f"loading {model.model} and the page ...", err=True)
    from var.app.state import AppState
    from var.pipeline import VARPipeline

    pipe = VARPipeline.from_pretrained(model.model, device=model.device, dtype=model.dtype).pack()
    with own_folder() as folder:
        state = AppState(pipe, model.model, folder, runs, images, features)
        with serving(state, host, port or None) as address:
            typer.echo(f"the page is at {address}; Ctrl-C ends it")
            if not is_local(host):
                typer.echo("everyone who reaches this machine can use it", err=True)
            wait()


def check_address(host: str, port: int) -> None:
    """Raise InputError if nothing can listen there, such as at a port that another program has."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} is in use, perhaps by another `var app`: give another --port, or 0 for a free one"
            ) from error
        raise InputError(f"cannot listen at {host}, port {port} ({one_line(error)}): give another") from error


def wait() -> None:
    """Wait for Ctrl-C, or for a signal that ends the page: then its folder is removed."""
    ended = threading.Event()
    for number in ENDING:
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
