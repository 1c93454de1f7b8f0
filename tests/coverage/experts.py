"""Which architectures can lose whole experts: found by removing some of a tiny model's.

    python -m tests.coverage.experts [--only NAME ...]

Writes `experts.json`, which the product reads, and the table in docs/experts.md, and writes
docs/architectures.md anew. Tensors that
belong to experts are found by making the model twice, with different numbers of experts: what
differs is theirs. Every entry was tried: the model without some experts is loaded by transformers'
own class, and computes what the dense model computes when its router avoids them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from strucprune_core.evaluation.experts_check import TOLERANCE, masked_output
from strucprune_core.evaluation.generic_check import check_parameters
from strucprune_core.export.layouts import expert_side_files
from strucprune_core.export.loading import load_pretrained
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.expert_source import ExpertSource
from strucprune_core.models.experts import Kept, least_kept, routing_of, without_experts
from strucprune_core.models.generic import architectures, expert_table
from strucprune_core.models.generic.describe import describe
from strucprune_core.models.generic.expert_table import (
    CHOSEN_GROUP_KEYS,
    GROUP_KEYS,
    ExpertArchitecture,
    ExpertPattern,
)
from strucprune_core.models.generic.modules import decoder_layers, model_of
from strucprune_core.models.generic.routed import ExpertSums, NoRecord, can_record, recording
from strucprune_core.models.generic.unseen import towers_may_lack
from strucprune_core.models.streaming import ModelStream, open_stream
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import Head, embed
from tests.coverage import table
from tests.coverage.detect import NotPrunable, layer_calls
from tests.coverage.examine import Tensors
from tests.coverage.patterns import (
    TinyCheckpoint,
    as_entry,
    as_stored,
    find_outline,
)
from tests.coverage.table import language_models, seeing_models
from tests.coverage.tiny import VARIANTS, tiny_config, tiny_model

_EXPERTS, _MORE = 8, 10  # Of a layer: of the model that is tried, and of the one compared with it.
_GROUPS, _CHOSEN_GROUPS = 2, 1
_COUNT_KEY = re.compile(r"^(moe_)?(num|n)_(local_|routed_)?experts$")
_CHOSEN_KEY = re.compile(r"tok|top_?k|moe_k")
_TOKENS = (2, 48)
_EFFECT = 1e-3  # On logits, of avoiding experts.
_MORE_THAN_HIDDEN = "its layers hand on more than hidden states, such as what routers computed"
_UNKNOWN = "experts of its tiny model cannot be removed; the reason has not been found yet"


PAGE = Path(__file__).parents[2] / "docs" / "experts.md"

_MARK = "<!-- What follows is made by `make coverage`. -->\n"
_HEAD = """
Of the {all} model types of transformers {version} that count experts, {accepted} can lose some.

| model type | | why not |
|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class ExaminedExperts:
    """What became of an architecture's experts.

    Attributes:
        found: Its entry in the table.
        masked_difference: Largest difference of logits, without experts and with a router that
            avoids them, relative.
        reload_difference: The same, streamed and loaded by transformers' own class.
        grouped: Whether the same was tried with groups of experts.
    """

    found: ExpertArchitecture
    masked_difference: float
    reload_difference: float
    grouped: bool


def has_experts(model_type: str) -> bool:
    """Whether a config class counts experts."""
    try:
        return bool(_count_candidates(tiny_config(model_type)))
    except Exception:  # Whatever the class makes of tiny sizes.
        return False


@torch.inference_mode()
def examine_experts(model_type: str) -> ExaminedExperts:
    """Find what belongs to experts, remove some of a tiny model's, and load the result.

    Raises:
        NotPrunable: they cannot be removed; the message is the reason, for users.
    """
    problem: Exception | None = None
    for changes in VARIANTS:
        try:
            plain = tiny_config(model_type, **changes)
            keys = _count_keys(plain)
            config = with_changes(plain, dict.fromkeys(keys, _EXPERTS))
            checkpoint = _checkpoint(config)
        except NotPrunable:
            raise
        except Exception as error:  # Whatever the class makes of sizes that do not fit together.
            problem = error
            continue
        return _examined(checkpoint, keys)
    raise NotPrunable(f"its default configuration could not be made tiny ({problem})")


def as_experts_entry(found: ExpertArchitecture) -> dict[str, Any]:
    """An entry as the table stores it."""
    pattern = found.pattern
    return {
        "architecture": as_entry(found.architecture),
        "experts": {
            "count_keys": list(pattern.count_keys),
            "chosen_keys": list(pattern.chosen_keys),
            "chosen": pattern.chosen,
            "hidden_key": pattern.hidden_key,
            "defaults": dict(pattern.defaults),
            "own": list(pattern.own),
            "sliced": [list(each) for each in pattern.sliced],
        },
    }


def _examined(checkpoint: TinyCheckpoint, keys: tuple[str, ...]) -> ExaminedExperts:
    config = checkpoint.model.config
    decoder = config.get_text_config()
    more = _checkpoint(with_changes(config, dict.fromkeys(keys, _MORE)))
    outline = find_outline(checkpoint, _ids((1, 16)))
    own, sliced = _differing(checkpoint, more, outline.layer)
    _refuse_tables(checkpoint, outline.layer)
    _try_recording(checkpoint)
    pattern = ExpertPattern(
        count_keys=keys,
        chosen_keys=_chosen_keys(config),
        chosen=_chosen(config),
        hidden_key=decoder.attribute_map.get("hidden_size", "hidden_size"),
        defaults=(),
        own=own,
        sliced=sliced,
    )
    pattern = replace(pattern, defaults=_defaults(config, pattern))
    found = ExpertArchitecture(outline, pattern)
    differences = _removed(checkpoint, found)
    saved = decoder.to_dict()
    key = next((key for key in GROUP_KEYS if key in saved), None)
    if key is not None:
        groups = {key: _GROUPS, CHOSEN_GROUP_KEYS[0]: _CHOSEN_GROUPS}
        in_groups = _removed(_checkpoint(with_changes(config, groups)), found)
        differences = (max(differences[0], in_groups[0]), max(differences[1], in_groups[1]))
    return ExaminedExperts(found, *differences, key is not None)


def _removed(checkpoint: TinyCheckpoint, found: ExpertArchitecture) -> tuple[float, float]:
    """Remove experts: differences to the masked model, and to what transformers loads."""
    raw = json.loads(json.dumps(checkpoint.model.config.to_dict()))  # As a file has it.
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    source = Tensors(checkpoint.tensors)
    config = describe(raw, shapes, found.architecture, found.pattern)
    dense = open_stream(config, source, torch.device("cpu"))
    assert dense.modules is not None
    check_parameters(dense.modules, dense, "transformers")
    kept = _kept(config)
    cut = ExpertSource(source, config, kept)
    pruned = open_stream(without_experts(config, kept), cut, torch.device("cpu"))
    assert pruned.modules is not None
    check_parameters(pruned.modules, pruned, "transformers")
    ids = _ids(_TOKENS)
    wanted, plain = _logits(dense, ids, kept), _logits(dense, ids)
    whole = checkpoint.model(input_ids=ids, use_cache=False).logits
    if not _relative(plain, whole) <= TOLERANCE:
        raise NotPrunable(_MORE_THAN_HIDDEN)
    one = replace(dense, tiles=Tiles(expert_by_expert=True))
    apart = max(_relative(_logits(one, ids), plain), _relative(_logits(one, ids, kept), wanted))
    if not apart <= TOLERANCE:
        raise NotPrunable(
            f"its experts compute something else one by one (logits differ by {apart:.2g})"
        )
    if _relative(plain, wanted) < _EFFECT:
        raise NotPrunable("what experts compute has no effect on its tiny model")
    computed = _logits(pruned, ids)
    masked = _relative(computed, wanted)
    if not masked <= TOLERANCE:
        raise NotPrunable(
            "a model without some experts computes something else than one whose router avoids "
            f"them (logits differ by {masked:.2g})"
        )
    reloaded = _relative(_reloaded(raw, pruned.config, cut, ids), computed)
    if not reloaded <= TOLERANCE:
        raise NotPrunable(f"without some experts, logits differ once loaded by {reloaded:.2g}")
    by_layer = _removed_by_layer(raw, dense, kept, ids)
    if not by_layer <= TOLERANCE:
        raise NotPrunable(
            "with different numbers of experts in layers, it computes something else than where "
            f"routers avoid them (logits differ by {by_layer:.2g})"
        )
    return masked, reloaded


def _removed_by_layer(raw: dict[str, Any], dense: ModelStream, kept: Kept, ids: Tensor) -> float:
    """The same where every second layer with experts keeps all: the larger difference."""
    config = dense.config
    routed = [layer for layer, each in enumerate(kept) if each]
    uneven = [range(_EXPERTS) if layer in routed[1::2] else each for layer, each in enumerate(kept)]
    cut = ExpertSource(dense.source, config, uneven)
    shape = without_experts(config, uneven, equally=False)
    pruned = open_stream(shape, cut, dense.device, like=dense)
    computed = _logits(pruned, ids)
    masked = _relative(computed, _logits(dense, ids, uneven))
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        _write(directory, "per_layer", raw, shape, cut)
        with torch.inference_mode(mode=False), torch.no_grad():
            model = load_pretrained(place, dtype=torch.float32).eval()
            loaded = model(input_ids=ids, use_cache=False).logits
    return max(masked, _relative(loaded, computed))


def _write(
    directory: Path, layout: str, raw: dict[str, Any], config: ModelConfig, source: ExpertSource
) -> None:
    """A checkpoint without some experts."""
    for name, data in expert_side_files(layout, json.loads(json.dumps(raw)), config).items():
        (directory / name).write_bytes(data)
    tensors = {name: source.tensor(name).contiguous() for name in expected_tensors(config)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _kept(config: ModelConfig) -> Kept:
    """Others in each layer, equally many of each group."""
    routing = routing_of(config)
    size = routing.experts // routing.groups
    stay = max(least_kept(routing) // routing.groups, size * 5 // 8)
    generator = np.random.Generator(np.random.PCG64(0))
    return [
        [
            group * size + int(number)
            for group in range(routing.groups)
            for number in sorted(generator.permutation(size)[:stay])
        ]
        if block.generic is not None and block.generic.experts is not None
        else []
        for block in config.blocks
    ]


def _logits(stream: ModelStream, ids: Tensor, kept: Kept | None = None) -> Tensor:
    """All logits, (b, n, V), a layer at a time; with `kept` routers choose among these alone."""
    hidden = np.empty((*ids.shape, stream.config.hidden_size), dtype=np.float32)
    embed(stream, ids.numpy().astype(np.int32), hidden)
    for layer in range(stream.config.layers):
        if kept is not None and kept[layer]:
            assert stream.modules is not None
            hidden = masked_output(
                stream, stream.modules, layer, stream.layer(layer), kept[layer], hidden
            )
        else:
            hidden = stream.run_layer(layer, stream.layer(layer), hidden).hidden.numpy()
    head = Head(stream)
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = torch.cat([head.logits(flat, rows) for _, rows in head.tiles()], dim=-1)
    return logits.view(*ids.shape, -1)


def _reloaded(
    raw: dict[str, Any], config: ModelConfig, source: ExpertSource, ids: Tensor
) -> Tensor:
    """Logits of the checkpoint without experts, loaded by transformers' own class."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        _write(directory, "uniform", raw, config, source)
        with torch.inference_mode(mode=False), towers_may_lack():
            text = raw["model_type"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            sees = not text or "text_config" in raw
            auto: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            model, info = auto.from_pretrained(
                directory, dtype=torch.float32, output_loading_info=True
            )
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise NotPrunable("without some experts, its class finds other tensors than it expects")
    found: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found


def _count_candidates(config: Any) -> tuple[str, ...]:
    """Keys that may count experts, those that are saved first."""
    config = config.get_text_config()
    saved = config.to_dict()
    keys = [*saved, *(key for key in config.attribute_map if key not in saved)]
    return tuple(
        key for key in keys if _COUNT_KEY.match(key) and type(getattr(config, key, None)) is int
    )


def _count_keys(config: Any) -> tuple[str, ...]:
    """Keys whose number is that of a layer's experts: a change of one changes shapes alike."""
    plain, found, changed = _shapes(config), [], None
    for key in _count_candidates(config):
        number = getattr(config.get_text_config(), key)
        now = _shapes(with_changes(config, {key: number + 1}))
        if now != plain and (changed is None or now == changed):
            found.append(key)
            changed = now
    if not found:
        raise NotPrunable("no key of config.json alone says how many experts a layer has")
    return tuple(found)


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = model_of(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def with_changes(config: Any, changes: dict[str, Any]) -> Any:
    """A config with other values; a key replaces those that the class takes for the same."""
    decoder = config.get_text_config()
    if decoder is not config:  # Of a model that sees images as well.
        changed_part = with_changes(decoder, changes).to_dict()
        return type(config).from_dict({**config.to_dict(), "text_config": changed_part})

    def attribute(key: str) -> str:
        return str(config.attribute_map.get(key, key))

    changed = {attribute(key) for key in changes}
    rest = {key: value for key, value in config.to_dict().items() if attribute(key) not in changed}
    return type(config).from_dict({**rest, **changes})


def _checkpoint(config: Any) -> TinyCheckpoint:
    with torch.inference_mode(mode=False), torch.no_grad():
        model = tiny_model(config)
        model(input_ids=_ids((1, 8)), use_cache=False)
        return as_stored(model)


def _ids(shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 100, shape, generator=generator)


def _differing(
    checkpoint: TinyCheckpoint, more: TinyCheckpoint, prefix: str
) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Tensors of each expert, and tensors with a slice of each: names within a layer."""
    layer = re.compile(re.escape(prefix).replace(r"\{\}", r"\d+") + "(.+)")
    own: dict[str, None] = {}
    sliced: dict[tuple[str, int], None] = {}
    for name, tensor in more.tensors.items():
        found, old = layer.fullmatch(name), checkpoint.tensors.get(name)
        if old is not None and old.shape == tensor.shape:
            continue
        if found is None:
            raise NotPrunable("tensors outside of its layers depend on the number of experts")
        if old is None:
            pattern, changed = re.subn(rf"\.({_EXPERTS}|{_MORE - 1})\.", ".{}.", found[1])
            if changed != 1:
                raise NotPrunable("its files name the tensors of experts in an unknown way")
            own[pattern] = None
            continue
        axes = [axis for axis, size in enumerate(tensor.shape) if size != old.shape[axis]]
        if len(axes) != 1 or tensor.shape[axes[0]] - old.shape[axes[0]] != _MORE - _EXPERTS:
            raise NotPrunable("a tensor of its layers holds more than a slice of each expert")
        sliced[found[1], axes[0]] = None
    return tuple(own), tuple(sliced)


def _refuse_tables(checkpoint: TinyCheckpoint, prefix: str) -> None:
    """Refuse layers that look up a token's experts by its id."""
    layer = re.compile(re.escape(prefix).replace(r"\{\}", r"\d+") + "(.+)")
    vocabulary = checkpoint.model.config.get_text_config().vocab_size
    for name, tensor in checkpoint.tensors.items():
        is_table = not tensor.is_floating_point() and tensor.shape[:1] == (vocabulary,)
        if is_table and (found := layer.fullmatch(name)) is not None:
            raise NotPrunable(
                f"some of its layers look up the experts of a token in a table by its id "
                f"('{found[1]}'), which names experts that would go"
            )


def _try_recording(checkpoint: TinyCheckpoint) -> None:
    """Check that experts, recorded, compute what they compute."""
    _, layers = decoder_layers(checkpoint.model)
    calls = layer_calls(checkpoint.model, layers, _ids((1, 16)))
    seen = False
    for number, call in calls.items():
        layer, sums = layers[number], ExpertSums(_EXPERTS)
        try:
            with recording(layer, sums):
                recorded = layer(*call.given, **call.options)
        except NoRecord as reason:
            if _has_experts(layer):
                raise NotPrunable(str(reason)) from None
            continue
        seen = True
        plain = layer(*call.given, **call.options)
        if isinstance(plain, tuple):
            plain, recorded = plain[0], recorded[0]
        if not _relative(recorded, plain) <= TOLERANCE:
            raise NotPrunable("experts computed one by one differ from what its class computes")
    if not seen:
        raise NotPrunable("no layer of it has experts")


def _has_experts(layer: Any) -> bool:
    return any(
        parameter.dim() == 3 and parameter.shape[0] == _EXPERTS for parameter in layer.parameters()
    )


def _chosen_keys(config: Any) -> tuple[str, ...]:
    """Keys whose number is that of a token's experts: found by changing it."""
    decoder, plain = config.get_text_config(), _chosen(config)
    saved, found = decoder.to_dict(), []
    for key in [*saved, *(key for key in decoder.attribute_map if key not in saved)]:
        if not _CHOSEN_KEY.search(key):
            continue
        value = getattr(decoder, key, None)
        if type(value) is not int or value != plain:
            continue
        try:
            if _chosen(with_changes(config, {key: value + 1})) == plain + 1:
                found.append(key)
        except Exception:  # A number that the class refuses is another one.
            continue
    return tuple(found)


def _chosen(config: Any) -> int:
    """Experts that a token reaches, recorded."""
    ids = _ids((1, 8))
    with torch.inference_mode(mode=False), torch.no_grad():
        model = tiny_model(config)
        _, layers = decoder_layers(model)
        sums = [ExpertSums(_EXPERTS) for layer in layers]
        with ExitStack() as recorded:
            for layer, each in zip(layers, sums, strict=True):
                if can_record(layer):
                    recorded.enter_context(recording(layer, each))
            model(input_ids=ids, use_cache=False)
    reached = {int(each.tokens.sum()) for each in sums} - {0}
    (tokens,) = reached
    return tokens // ids.numel()


def _defaults(config: Any, pattern: ExpertPattern) -> tuple[tuple[str, int], ...]:
    """What the class takes where config.json lacks a key."""
    plain = type(config)().get_text_config()
    keys = (*pattern.count_keys, *pattern.chosen_keys, pattern.hidden_key)
    values = {key: getattr(plain, key, None) for key in (*keys, *GROUP_KEYS, *CHOSEN_GROUP_KEYS)}
    return tuple(sorted((key, value) for key, value in values.items() if type(value) is int))


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


def names_of_experts() -> list[str]:
    """Every model type with experts among those of the table of architectures, sorted."""
    return [name for name in sorted(language_models() + seeing_models()) if has_experts(name)]


def main(arguments: Sequence[str]) -> int:
    """Examine architectures, and write what was found; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage.experts", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, and keep the others")
    only = parser.parse_args(arguments).only
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    entries = {} if only is None else dict(expert_table.expert_table()["model_types"])
    for name in only or names_of_experts():
        entries[name], note = _entry(name)
        print(f"{name:24} {note}", flush=True)
    write_table(entries)
    PAGE.write_text(page(entries), encoding="utf-8")
    expert_table.expert_table.cache_clear()  # The page of architectures says who loses experts.
    found = architectures.table()["model_types"]
    table.PAGE.write_text(table.page(found), encoding="utf-8")
    print(f"{sum('architecture' in entry for entry in entries.values())} of {len(entries)}")
    return int(any(entry.get("refused") == _UNKNOWN for entry in entries.values()))


def write_table(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the table that the product reads: a model type per line."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}"
        for name in sorted(entries)
    ]
    version, body = json.dumps(transformers.__version__), ",\n".join(lines)
    path = Path(str(expert_table.__file__)).with_name(expert_table.TABLE)
    text = f'{{\n "model_types": {{\n{body}\n }},\n "transformers": {version}\n}}\n'
    path.write_text(text, encoding="utf-8")


def page(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, with the table at its end."""
    rows = []
    for name in sorted(entries):
        entry = entries[name]
        numbers = "yes" if "architecture" in entry else "no"
        rows.append(f"| {name} | {numbers} | {entry.get('refused', '')} |\n")
    accepted = sum("architecture" in entry for entry in entries.values())
    version = transformers.__version__
    head = _HEAD.format(accepted=accepted, all=len(entries), version=version)
    before = PAGE.read_text(encoding="utf-8").partition(_MARK)[0]
    return before + _MARK + head + "".join(rows)


def _entry(name: str) -> tuple[dict[str, Any], str]:
    """The entry of a model type, and a line about it."""
    start = time.perf_counter()
    try:
        examined = examine_experts(name)
    except NotPrunable as reason:
        return {"refused": str(reason)}, f"refused: {reason}"
    except Exception as error:  # Whatever the class of an architecture raises.
        text = " ".join(str(error).split())
        return {"refused": _UNKNOWN}, f"failed: {type(error).__name__}: {text}"
    note = (
        f"{time.perf_counter() - start:5.1f} s, {examined.masked_difference:.0e} masked, "
        f"{examined.reload_difference:.0e} reloaded{', groups too' if examined.grouped else ''}"
    )
    return as_experts_entry(examined.found), note


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="strucprune-") as modules:
        os.environ["HF_MODULES_CACHE"] = modules
        sys.exit(main(sys.argv[1:]))
