"""Arguments and options that several commands take. No torch."""

from __future__ import annotations

from typing import Annotated

import typer

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Directory, s3://bucket/prefix or hf://org/name[@revision] with config.json, "
        "tokenizer.json and safetensors.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
