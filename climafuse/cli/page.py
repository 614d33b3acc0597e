"""`climafuse demo`: ask a trained model in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from climafuse.cli.handler import CheckpointArgument


def demo(
    checkpoint: CheckpointArgument,
    climate: Annotated[
        str | None,
        typer.Option(
            "--climate",
            help="Ask about these fields: a sample, store or files; default: the test times of the run.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any free one.")] = 7860,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Choose a time and a place on a map, ask, and see the answer checked against the fields.

    A page for this machine only: it is bound to 127.0.0.1 and asks nothing of any other. Needs the extra
    climafuse[demo]. Ctrl-C ends it.
    """
    import contextlib
    import webbrowser

    from climafuse.report.inquiry import Inquiry
    from climafuse.report.page import build_page, load_gradio
    from climafuse.report.serving import bind, serve

    load_gradio()  # before a model is loaded for nothing
    listening = bind(port)

    def started(address: str) -> None:
        typer.echo(address)
        if browser:
            webbrowser.open(address)

    with contextlib.closing(listening):
        inquiry = Inquiry.open(checkpoint, climate=climate)
        with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
            serve(build_page(inquiry), listening, started=started)
