"""`cuvee lora`: the commands about adapters."""

from __future__ import annotations

import click

from cuvee.cli.lora_info import info


@click.group()
def lora() -> None:
    """Extract, merge and look into LoRA adapters."""


lora.add_command(info)
