"""`cuvee lora`: the commands about adapters."""

from __future__ import annotations

import click

from cuvee.cli.lora_info import info
from cuvee.cli.lora_out import extract, merge


@click.group()
def lora() -> None:
    """Extract, merge and look into LoRA adapters."""


lora.add_command(extract)
lora.add_command(merge)
lora.add_command(info)
