"""`climafuse plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from climafuse.cli.handler import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from climafuse.planning.planner import Plan
    from climafuse.planning.workload import Spread
    from climafuse.training.launch import Launch


def plan(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.yaml", help="Configuration of a run, as of `train`.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.key=value", help="Override one setting; may be repeated."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", help="Backbone, or an architecture such as llama-3-8b.", show_default=False
        ),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="int8 or int4.", show_default=False)
    ] = None,
    fusion: Annotated[str | None, typer.Option("--fusion", help="Fusion.", show_default=False)] = None,
    sites: Annotated[
        str | None, typer.Option("--sites", help="Where it sits, in YAML.", show_default=False)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            help="Windows in a microbatch, in place of those of the configuration; without one, each has one text.",
            show_default=False,
            min=1,
            max=2**20,
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", help="Tokens of a text.", show_default=False, min=2, max=2**20)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="A GPU: A100-40, A100-80, H100, …; a wrong one lists them.", show_default=False
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Memory to plan for, such as 36GB.", show_default=False)
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            help="Processes that train together, on one machine without GPUs or one on each GPU.",
            show_default=False,
            min=1,
        ),
    ] = None,
    spread: Annotated[
        str | None,
        typer.Option(
            "--spread",
            help="What each of them has a part of: moments (ZeRO-1), gradients (ZeRO-2) or weights (FSDP); all of it "
            "otherwise (DDP).",
            show_default=False,
        ),
    ] = None,
    time: Annotated[
        bool, typer.Option("--time/--no-time", help="Measure parts of a step here for some seconds.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Tell what a run will cost in memory and time, before anything is loaded.

    With a configuration, its data are opened: how long texts are is theirs to tell. Without one, or with --length,
    nothing is, and what is assumed instead is said. Exit code 1 where the run does not fit.
    """
    from climafuse.training.config import load_config

    settings = list(overrides or [])
    for key, value in (("backbone.name", backbone), ("fusion.name", fusion)):
        if value is not None:
            settings.append(f"{key}={json.dumps(value)}")
    for key, text in (("backbone.quantization", quantization), ("fusion.sites", sites)):
        if text is not None:
            settings.append(f"{key}={text}")
    if batch is not None:
        windows = batch * (processes or 1)
        settings += [f"training.windows_per_step={windows}", "training.accumulation=1"]
    configuration = load_config(config, settings)  # before the imports that take seconds

    from climafuse.planning.devices import device as named_device
    from climafuse.planning.devices import memory_of
    from climafuse.training.fitting import plan_of

    launch = _launch(processes, spread)
    where = None if device is None else named_device(device)
    if memory is not None:
        where = memory_of(memory, where)
    shape = None
    if config is None or length is not None:
        shape = (length, 1 if config is None and batch is not None else None)
    found = plan_of(configuration, device=where, shape=shape, launch=launch, time=time)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
        if shape is not None:
            typer.echo(
                f"No data were opened: texts of {found.length} tokens, each another one, and windows of 16 × 16 cells "
                "are assumed."
            )
    if not found.fits:
        raise typer.Exit(1)


def _launch(processes: int | None, spread: str | None) -> Launch | None:
    from typing import get_args

    from climafuse.errors import ConfigurationError
    from climafuse.planning.workload import Spread
    from climafuse.training.launch import Launch

    kinds = get_args(Spread)
    if spread is not None and spread not in kinds:
        raise ConfigurationError(
            "spread", expected=" or ".join(kinds), received=repr(spread), remedy="Name one of these."
        )
    if spread is not None and (processes or 1) == 1:
        raise ConfigurationError(
            "spread",
            expected="several processes",
            received=f"--spread {spread} in one",
            remedy="Say in how many: --processes 8.",
        )
    if processes is None:
        return None
    return Launch(processes, processes, cast("Spread | None", spread))


def _print(plan: Plan) -> None:
    from climafuse.planning.planner import MOST_WINDOWS

    f, share, giga = plan.footprint, plan.share, 1e9
    several = plan.processes > 1
    each = f"{plan.processes} processes, each of " if several else ""
    optimization = share.gradients + share.gradients_always + share.moments
    in_each = [
        ("weights in each process", f"{share.weights / giga:.3f}"),
        ("gradients, optimizer and buckets in each", f"{optimization / giga:.3f}"),
    ]
    if plan.random_weights:
        typer.echo(f"{plan.backbone}: random weights, for capacity only: it knows nothing.\n")
    print_table(
        [
            ("frozen parameters", f"{f.frozen:,}"),
            ("trainable parameters", f"{f.trainable:,}"),
            ("fusion at", ", ".join(f.sites)),
            (
                "blocks run in a step",
                f"{f.blocks_run} of {f.num_blocks}, {f.blocks_below} below the first site",
            ),
            (
                "a step",
                f"{each}{plan.accumulation} × {plan.microbatch} windows, texts of {plan.length} tokens",
            ),
        ],
        header=("", plan.backbone),
    )
    typer.echo()
    print_table(
        [
            ("process and libraries", f"{plan.base / giga:.3f}"),
            ("frozen weights", f"{f.frozen_bytes / giga:.3f}"),
            ("of these never read (embeddings)", f"{f.untouched_bytes / giga:.3f}"),
            ("trainable weights", f"{f.trainable_bytes / giga:.3f}"),
            ("gradients", f"{f.gradient_bytes / giga:.3f}"),
            ("optimizer", f"{f.optimizer_bytes / giga:.3f}"),
            *(in_each if several else []),
            ("stored states of texts", f"{f.store_bytes / giga:.3f}"),
            ("activations kept for the backward pass", f"{f.activation_bytes / giga:.3f}"),
            (
                "most that a microbatch takes, gradients too",
                f"{(f.step_bytes + f.gradient_bytes) / giga:.3f}",
            ),
            ("buffers of weights in the type of products", f"{f.buffer_bytes / giga:.3f}"),
            *((f"peak in {phase}", f"{num / giga:.3f}") for phase, num in plan.phases.items()),
            (f"free on {plan.device.name}", f"{plan.device.memory / giga:.3f}"),
        ],
        header=("memory", "GB"),
    )
    typer.echo()
    rows = [(kind.replace("_", " "), f"{num / giga:.3f}") for kind, num in f.flops.items()]
    print_table(
        [*rows, ("reused, not computed", f"{f.reused_flops / giga:.3f}")], header=("work of a step", "GFLOP")
    )
    typer.echo()
    if plan.pace is not None:
        kind = "estimated from its data sheet" if plan.pace.estimated else "from parts measured here"
        kind += ", without what the processes send each other" if several else ""
        typer.echo(f"a step takes {plan.pace.seconds:.3g} s ({kind})")
    if plan.largest_microbatch is not None:
        more = " or more" if plan.largest_microbatch >= MOST_WINDOWS else ""
        typer.echo(
            f"what fits: {plan.largest_microbatch:,} windows{more} in a microbatch at this length; texts of "
            f"{plan.largest_length:,} tokens at this microbatch"
        )
    if plan.fits:
        typer.echo(f"it fits: {plan.peak / giga:.2f} of {plan.device.memory / giga:.2f} GB")
        return
    typer.echo(
        f"it does not fit: {plan.peak / giga:.2f} GB of {plan.device.memory / giga:.2f} GB. {plan.advice}:"
    )
    for number, change in enumerate(plan.changes, start=1):
        enough = ", enough by itself" if change.fits else ""
        options = " ".join(f"--set {setting}" for setting in change.settings)
        typer.echo(f"{number}. {change.what}: {change.saving / giga:.2f} GB less{enough} ({options})")
