"""The files that make a directory a model, by the names that transformers gives them."""

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
