"""`climafuse doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import typer

from climafuse.cli.handler import JsonOption, print_json, print_table


def doctor(as_json: JsonOption = False) -> None:
    """Check packages, devices, samples and the default backbone."""
    from climafuse.doctor import collect

    checks = collect()
    if as_json:
        print_json(checks)
    else:
        print_table(
            [("ok" if check.ok else "MISSING", check.name, check.detail) for check in checks],
            header=("", "what", "found"),
        )
        for check in checks:
            if not check.ok:
                typer.echo(f"{check.name}: {check.remedy}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
