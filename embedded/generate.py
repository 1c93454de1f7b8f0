"""Load a checkpoint as its users will, in a fresh process, and let it write.

python -m embedded.generate DIRECTORY PROMPT
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

_NEW_TOKENS = 32


def generate(directory: Path, prompt: str) -> str:
    """The prompt and its most likely continuation."""
    # Pruned checkpoints of layout "per_layer" bring a few lines of modelling code of their own, and
    # the tokenizer is looked up by way of the model's configuration: unasked, it would ask.
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    tokens = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**tokens, max_new_tokens=_NEW_TOKENS, do_sample=False)
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


def main() -> None:
    """Print the continuation of a prompt."""
    parser = argparse.ArgumentParser(prog="python -m embedded.generate", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("prompt")
    arguments = parser.parse_args()
    print(generate(arguments.directory, arguments.prompt))


if __name__ == "__main__":
    main()
