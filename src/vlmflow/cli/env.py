"""``vlmflow env``: what a report of a problem has to say about the machine, and nothing else."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from vlmflow import __version__
from vlmflow.cli.app import app
from vlmflow.cli.terminal import columns, errors_in_one_line, printable, quiet_libraries

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pillow"),
    *("accelerate", "av", "datasets", "ray", "torchvision"),
)
"""Packages whose versions change what is measured, and those that extras bring."""


@app.command()
def env(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Print versions, platform and devices, to go with a report of a problem.

    Neither paths nor names of users or machines are among them.
    """
    with errors_in_one_line():
        facts = environment()
        if as_json:
            typer.echo(json.dumps(facts))
        else:
            typer.echo(
                "\n".join(columns([(name, printable(fact)) for name, fact in facts.items()]))
            )


def environment() -> dict[str, str]:
    """Return what is installed and what it runs on, by name."""
    quiet_libraries()
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "vlmflow": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": f"{platform.system()} {platform.machine()}",
        **{name: installed_version(name) for name in PACKAGES},
        "cuda of torch": torch.version.cuda or "none",
        "devices": ", ".join(devices),
        "threads": str(torch.get_num_threads()),
    }


def installed_version(package: str) -> str:
    """Return a package's version, or that it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
