"""The config of a llama whose layers have different FFN widths. Written by StrucPrune, Apache-2.0.

transformers knows no model type `nemotron-nas`; runtimes that do (vLLM) ask it for the config all
the same, and read `config.block_configs[layer].ffn.ffn_mult`. Travels with every export
`block_configs`.
"""

from types import SimpleNamespace

from transformers import LlamaConfig


class StrucPruneBlocksConfig(LlamaConfig):
    """A llama config with a block of settings for each layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **settings):
        super().__init__(**settings)
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**values) for part, values in block.items()})
            for block in block_configs or []
        ]

    def to_dict(self):
        """Plain data, as in config.json."""
        plain = super().to_dict()
        plain["block_configs"] = [
            {part: dict(vars(values)) for part, values in vars(block).items()}
            for block in self.block_configs
        ]
        return plain
