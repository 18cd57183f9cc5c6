"""``vtrain doctor``: what this machine is, and whether its arithmetic keeps the contract."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from vtrain import children
from vtrain.console import machine_options, print_json
from vtrain.errors import BackendError
from vtrain.profiles import PROFILES

if TYPE_CHECKING:
    import torch

_PROBE = "import torch; print(torch.backends.cpu.get_cpu_capability())"


def imitable() -> dict[str, str]:
    """Instruction set that torch uses under each profile on this machine, by profile."""
    found = {}
    for name in PROFILES:
        done = children.run("-c", _PROBE, profile=name, capture_output=True)
        found[name] = done.stdout.strip() or "fails"
    return found


def integer_products() -> dict[str, str]:
    """What multiplies under ``matmul="integer"``, by device, or why nothing does."""
    import torch

    from vtrain.engine.carriers import note
    from vtrain.kernels import device

    return _noted(note, (torch.device("cpu"), *device.present()))


def matrix_units() -> dict[str, str]:
    """What the matrix units of each device are, and how near a search comes to their bound, or that they break it."""
    from vtrain.engine.matrix_units import note
    from vtrain.kernels import device

    return _noted(note, device.present())


def _noted(note: Callable[[torch.device], str], places: Iterable[torch.device]) -> dict[str, str]:
    found = {}
    for place in places:
        try:
            found[str(place)] = note(place)
        except BackendError as error:
            found[str(place)] = str(error)
    return found


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@machine_options
def doctor(as_json: bool) -> None:
    """Say what this machine is, whether its arithmetic keeps the contract, and which profiles it can imitate.

    Exits with 4 where the contract is not kept.

    \b
    Examples:
      vtrain doctor
      vtrain doctor --profile baseline
    """
    from vtrain.engine.backend import arithmetic_report, device_reports, environment

    here, kept, profiles, integers = environment(), arithmetic_report(), imitable(), integer_products()
    units = matrix_units()
    for where, report in device_reports().items():
        kept |= {f"{where}: {name}": ok for name, ok in report.items()}
    if as_json:
        found = {"environment": here, "arithmetic": kept, "profiles": profiles}
        print_json({**found, "integerProducts": integers, "matrixUnits": units})
    else:
        for key, value in here.items():
            click.echo(f"{key:16} {value if value != [] else 'none'}")
        click.echo("profiles         " + ", ".join(f"{name} ({isa})" for name, isa in profiles.items()))
        for device, text in integers.items():
            click.echo(f"integer products {device}: {text}")
        for device, text in units.items():
            click.echo(f"matrix units     {device}: {text}")
        for name, ok in kept.items():
            click.echo(f"{'ok    ' if ok else 'BROKEN'}  {name}")
    sys.exit(0 if all(kept.values()) else 4)
