"""Decoders whose layers have different widths. Written by StrucPrune, Apache-2.0.

Everything but the widths is transformers' own. Of the families below, `config.strucprune["layers"]`
holds the shape of each layer, {"ffn": [channels, ...], "query_heads": n, "kv_heads": n}, with no
channels or heads where a layer has no FFN or no attention; of any other,
`config.strucprune["tensors"]` holds the shape of each narrower tensor, or
`config.strucprune["experts"]` the axis and size of each tensor that lost experts. Before the model
gets its weights, its matrices are made as narrow as that.

Travels with every `per_layer` checkpoint.
"""

import copy
import sys

import torch
import transformers as hf
from torch import nn
from transformers.pytorch_utils import Conv1D

RELEASE = tuple(int(part) for part in hf.__version__.split(".")[:2])
if RELEASE >= (5, 0):  # Since then, modules have other names than tensors in files.
    from transformers.conversion_mapping import (
        WeightRenaming,
        register_checkpoint_conversion_mapping,
    )

QUERIES = ("q_proj",)
KEYS_AND_VALUES = ("k_proj", "v_proj")
FUSED_HEADS = ("qkv_proj", "c_attn", "query_key_value")
ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense")
FFN_INPUTS = ("gate_proj", "up_proj", "fc1", "c_fc", "dense_h_to_4h")
FUSED_FFN_INPUTS = ("gate_up_proj",)
ATTENTIONS = ("self_attn", "attn", "attention")
FEED_FORWARDS = ("mlp", "block_sparse_moe")
FFN_OUTPUTS = ("down_proj", "fc2", "dense_4h_to_h")


def narrow(model):
    """Give each decoder layer the shape that the config lists."""
    layers, shapes = decoder_layers(model), model.config.strucprune["layers"]
    if len(layers) != len(shapes):
        raise ValueError(
            f"config.strucprune lists {len(shapes)} layers; the model has {len(layers)}"
        )
    for layer, shape in zip(layers, shapes, strict=True):
        narrow_layer(layer, shape, head_dim(model.config))
        remove_blocks(layer, shape)


def decoder_layers(model):
    """The list of decoder layers, wherever the family keeps it."""
    base = model.base_model
    base = base.model if base is model else base  # Gemma 3 before transformers 5
    base = getattr(base, "decoder", base)
    return base.h if hasattr(base, "h") else base.layers


def head_dim(config):
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def narrow_layer(layer, shape, head):
    """Replace the linear modules of a layer by narrower ones, and tell attention how many heads."""
    narrow_attention(layer, shape, head)
    ffn = feed_forward_of(layer)
    if len(shape["ffn"]) == 1:
        (width,) = shape["ffn"]
        widths = dict.fromkeys(FFN_INPUTS, (None, width))
        widths |= dict.fromkeys(FUSED_FFN_INPUTS, (None, 2 * width))
        widths |= dict.fromkeys((*FFN_OUTPUTS, "c_proj"), (width, None))
        resize_children(ffn, widths)
    elif shape["ffn"]:
        mixtral = type(ffn).__name__.startswith("Mixtral")
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        if isinstance(ffn.experts, nn.ModuleList):  # before transformers 5
            narrow_experts(ffn.experts, shape["ffn"], names)
        else:
            ffn.experts = Experts(ffn.experts, shape["ffn"], names)


def narrow_experts(experts, widths, names):
    """The same of experts that are modules of their own."""
    gate, up, down = names
    for expert, width in zip(experts, widths, strict=True):
        resize_children(expert, {gate: (None, width), up: (None, width), down: (width, None)})


def narrow_attention(layer, shape, head):
    """The same of attention, if the layer keeps it."""
    if not shape["query_heads"]:
        return
    queries, keys = shape["query_heads"] * head, shape["kv_heads"] * head
    attention = attention_of(layer)
    widths = dict.fromkeys(QUERIES, (None, queries))
    widths |= dict.fromkeys(KEYS_AND_VALUES, (None, keys))
    widths |= dict.fromkeys(FUSED_HEADS, (None, queries + 2 * keys))
    widths |= dict.fromkeys(ATTENTION_OUTPUTS, (queries, None))
    if attention is getattr(layer, "attn", None):
        widths["c_proj"] = (queries, None)
    resize_children(attention, widths)
    attention.num_key_value_groups = shape["query_heads"] // shape["kv_heads"]
    attention.num_heads = shape["query_heads"]
    attention.num_key_value_heads = shape["kv_heads"]
    if hasattr(attention, "split_size"):  # gpt2 splits its fused matrix by this,
        attention.split_size = queries
    if hasattr(attention, "embed_dim"):  # opt, before transformers 4.57, joins its heads to this,
        attention.embed_dim = queries
    if hasattr(attention, "qkv_proj"):  # and phi3 splits by its config.
        attention.config = copy.copy(attention.config)
        attention.config.num_attention_heads = shape["query_heads"]


def remove_blocks(layer, shape):
    """Put modules without weights in the place of blocks that a layer does not have."""
    norms = []
    if not shape["query_heads"]:
        name = next(name for name in ATTENTIONS if hasattr(layer, name))
        setattr(layer, name, NoAttention(getattr(layer, name).layer_idx))
        norms += ["input_layernorm", "ln_1", "self_attn_layer_norm"]
    if not shape["ffn"]:
        name = next((name for name in FEED_FORWARDS if hasattr(layer, name)), None)
        if name is None:
            layer.fc1, layer.fc2 = nn.Identity(), NoFeedForward()
        else:
            setattr(layer, name, NoExperts() if name == "block_sparse_moe" else NoFeedForward())
        norms += ["ln_2", "final_layer_norm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    # gemma has a norm of this name behind attention, others before the FFN.
    belongs_to = "query_heads" if hasattr(layer, "pre_feedforward_layernorm") else "ffn"
    if not shape[belongs_to]:
        norms.append("post_attention_layernorm")
    for name in norms:
        if hasattr(layer, name):
            setattr(layer, name, nn.Identity())


class NoAttention(nn.Module):
    """In the place of attention that was removed: adds nothing."""

    is_sliding = False  # Gemma 3 of transformers 4.57 asks this to choose rotary positions.

    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states, past_key_values=None, layer_past=None, **kwargs):
        """Zeros, and no attention weights."""
        cache = layer_past if past_key_values is None else past_key_values
        if cache is not None:  # Models ask the first layer's cache how many tokens there are.
            empty = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(empty, empty, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoFeedForward(nn.Module):
    """In the place of an FFN that was removed: adds nothing."""

    def forward(self, hidden_states):
        """Zeros."""
        return torch.zeros_like(hidden_states)


class NoExperts(NoFeedForward):
    """The same where a layer also asks what the router said."""

    def forward(self, hidden_states):
        """Zeros, and nothing of a router."""
        return super().forward(hidden_states), None


def attention_of(layer):
    """The attention module of a layer."""
    for name in ATTENTIONS:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise ValueError(f"{type(layer).__name__} has no attention that strucprune knows")


def feed_forward_of(layer):
    """The module of a layer's FFN; the layer itself if that has its matrices."""
    for name in FEED_FORWARDS:
        if hasattr(layer, name):
            return getattr(layer, name)
    return layer


def resize_children(module, widths):
    """Replace linear children by ones with the given (inputs, outputs); None keeps the number."""
    for name, (inputs, outputs) in widths.items():
        old = getattr(module, name, None)
        if isinstance(old, nn.Linear):
            new = nn.Linear(
                inputs or old.in_features, outputs or old.out_features, old.bias is not None
            )
        elif isinstance(old, Conv1D):
            new = Conv1D(outputs or old.nf, inputs or old.weight.shape[0])
        else:
            continue
        setattr(module, name, new)


class Expert(nn.Module):
    """One gated FFN."""

    def __init__(self, hidden_size, width, names, act_fn):
        super().__init__()
        gate, up, down = names
        self.names = names
        self.act_fn = act_fn
        setattr(self, gate, nn.Linear(hidden_size, width, bias=False))
        setattr(self, up, nn.Linear(hidden_size, width, bias=False))
        setattr(self, down, nn.Linear(width, hidden_size, bias=False))

    def forward(self, x):
        """The FFN's output for tokens (n x d)."""
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(self.act_fn(gate(x)) * up(x))


class Experts(nn.ModuleList):
    """Experts of different widths, one module each."""

    def __init__(self, dense, widths, names):
        super().__init__(Expert(dense.hidden_dim, width, names, dense.act_fn) for width in widths)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        """The weighted sum of each token's experts."""
        output = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            tokens, place = (top_k_index == number).nonzero(as_tuple=True)
            added = expert(hidden_states[tokens])
            output.index_add_(0, tokens, added * top_k_weights[tokens, place, None].to(added.dtype))
        return output


def least_release(config):
    """The first release of transformers, (major, minor), in which this model was tried."""
    kinds = getattr(config, "layer_types", None) or []
    slides = "sliding_attention" in kinds or "gemma" in config.model_type
    whole = all(shape["ffn"] and shape["query_heads"] for shape in config.strucprune["layers"])
    return (4, 57) if slides or not whole else (4, 51)


def earlier_keys(config):
    """A config.json as releases before transformers 5 name its keys."""
    config = dict(config)
    for new, old in (("dtype", "torch_dtype"), ("num_local_experts", "num_experts")):
        if new in config and not (new == "num_local_experts" and "mixtral" in config["model_type"]):
            config[old] = config.pop(new)
    rope = config.pop("rope_parameters", None)
    if rope is not None and "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    return config if rope is None else config | earlier_rope(config, dict(rope))


def earlier_rope(config, rope):
    """The same of one set of rotary positions."""
    theta, share = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    if "neox" in config["model_type"]:
        return {"rotary_emb_base": theta, "rotary_pct": share}
    keys = {"rope_theta": theta, "rope_scaling": None}
    if share is not None:
        keys["partial_rotary_factor"] = share
    if "phi3" in config["model_type"]:
        trained = rope.pop("original_max_position_embeddings", None)
        if trained is not None:
            keys["original_max_position_embeddings"] = trained
        rope["type"] = rope.pop("rope_type")
    if "default" not in rope.values():
        keys["rope_scaling"] = rope
    return keys


class Described:
    """Mixed into transformers' configs: also read by releases before the one that wrote them."""

    @classmethod
    def from_dict(cls, config_dict, **options):
        """The config of a config.json."""
        if RELEASE < (5, 0):
            config_dict = earlier_keys(config_dict)
        return super().from_dict(config_dict, **options)


def teach_peft(model_type):
    """Let peft, once it is imported, find the modules of a pruned model as of the dense one."""
    tables = vars(sys.modules.get("peft.utils.constants", sys)).items()
    for name, table in list(tables):
        if name.startswith("TRANSFORMERS_MODELS_TO_"):
            dense = model_type.removeprefix("strucprune_").removeprefix("experts_")
            if dense in table:
                table[model_type] = table[dense]


class Narrowed:
    """Mixed into transformers' classes: the same model, with layers as narrow as listed."""

    def __init__(self, config):
        least = least_release(config)
        if least > RELEASE:
            raise ImportError(
                f"this pruned model needs transformers {least[0]}.{least[1]} or later; "
                f"{hf.__version__} is installed"
            )
        if "gemma2" in config.model_type and config._attn_implementation in (None, "sdpa"):
            config._attn_implementation = "eager"  # The other leaves out the cap of scores.
        super().__init__(config)
        narrow(self)
        self.post_init()
        teach_peft(config.model_type)


class StrucPruneLlamaConfig(Described, hf.LlamaConfig):
    model_type = "strucprune_llama"
    strucprune: dict | None = None


class StrucPruneLlamaForCausalLM(Narrowed, hf.LlamaForCausalLM):
    config_class = StrucPruneLlamaConfig


class StrucPruneMistralConfig(Described, hf.MistralConfig):
    model_type = "strucprune_mistral"
    strucprune: dict | None = None


class StrucPruneMistralForCausalLM(Narrowed, hf.MistralForCausalLM):
    config_class = StrucPruneMistralConfig


class StrucPruneQwen2Config(Described, hf.Qwen2Config):
    model_type = "strucprune_qwen2"
    strucprune: dict | None = None


class StrucPruneQwen2ForCausalLM(Narrowed, hf.Qwen2ForCausalLM):
    config_class = StrucPruneQwen2Config


class StrucPruneQwen3Config(Described, hf.Qwen3Config):
    model_type = "strucprune_qwen3"
    strucprune: dict | None = None


class StrucPruneQwen3ForCausalLM(Narrowed, hf.Qwen3ForCausalLM):
    config_class = StrucPruneQwen3Config


class StrucPruneGemma2Config(Described, hf.Gemma2Config):
    model_type = "strucprune_gemma2"
    strucprune: dict | None = None


class StrucPruneGemma2ForCausalLM(Narrowed, hf.Gemma2ForCausalLM):
    config_class = StrucPruneGemma2Config


class StrucPruneGemma3Config(Described, hf.Gemma3TextConfig):
    model_type = "strucprune_gemma3_text"
    strucprune: dict | None = None


class StrucPruneGemma3ForCausalLM(Narrowed, hf.Gemma3ForCausalLM):
    config_class = StrucPruneGemma3Config


class StrucPrunePhi3Config(Described, hf.Phi3Config):
    model_type = "strucprune_phi3"
    strucprune: dict | None = None


class StrucPrunePhi3ForCausalLM(Narrowed, hf.Phi3ForCausalLM):
    config_class = StrucPrunePhi3Config


class StrucPruneOPTConfig(Described, hf.OPTConfig):
    model_type = "strucprune_opt"
    strucprune: dict | None = None


class StrucPruneOPTForCausalLM(Narrowed, hf.OPTForCausalLM):
    config_class = StrucPruneOPTConfig


class StrucPruneGPT2Config(Described, hf.GPT2Config):
    model_type = "strucprune_gpt2"
    strucprune: dict | None = None


class StrucPruneGPT2ForCausalLM(Narrowed, hf.GPT2LMHeadModel):
    config_class = StrucPruneGPT2Config


class StrucPruneGPTNeoXConfig(Described, hf.GPTNeoXConfig):
    model_type = "strucprune_gpt_neox"
    strucprune: dict | None = None


class StrucPruneGPTNeoXForCausalLM(Narrowed, hf.GPTNeoXForCausalLM):
    config_class = StrucPruneGPTNeoXConfig


class StrucPruneMixtralConfig(Described, hf.MixtralConfig):
    model_type = "strucprune_mixtral"
    strucprune: dict | None = None


class StrucPruneMixtralForCausalLM(Narrowed, hf.MixtralForCausalLM):
    config_class = StrucPruneMixtralConfig


class StrucPruneQwen3MoeConfig(Described, hf.Qwen3MoeConfig):
    model_type = "strucprune_qwen3_moe"
    strucprune: dict | None = None


class StrucPruneQwen3MoeForCausalLM(Narrowed, hf.Qwen3MoeForCausalLM):
    config_class = StrucPruneQwen3MoeConfig


# Names that differ between a checkpoint and the modules in memory.
if RELEASE >= (5, 0):
    renamings = {StrucPruneMixtralConfig.model_type: (r"\.block_sparse_moe\.", ".mlp.")}
    if "lm_head.weight" in hf.GPTNeoXForCausalLM._tied_weights_keys:
        renamings[StrucPruneGPTNeoXConfig.model_type] = (r"^embed_out\.", "lm_head.")
    for model_type, (pattern, name) in renamings.items():
        register_checkpoint_conversion_mapping(
            model_type, [WeightRenaming(pattern, name)], overwrite=True
        )

CONFIGS = {
    value.model_type: value
    for value in list(globals().values())
    if isinstance(value, type) and getattr(value, "model_type", "").startswith("strucprune_")
}
MODELS = {
    value.config_class.model_type: value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Narrowed) and value is not Narrowed
}

ANY = "StrucPruneAny_"
_ANY_CLASSES = {}


def resize(model):
    """Give the parameters that the config lists their shapes, and tell the modules around them."""
    known = dict(model.named_parameters())
    for name, shape in resized(model, known).items():
        for module, key, size in reshaped(model, name, known[name], shape):
            if "hidden_size" not in key and not key.endswith("experts"):
                setattr(module, key, size)
    known |= dict(model.named_buffers())
    for name, shape in without_experts(model, known).items():
        for module, key, count in reshaped(model, name, known[name], shape):
            if key.endswith("experts"):
                setattr(module, key, count)


def reshaped(model, name, old, shape):
    """Give a parameter or buffer another shape; (module, attribute, new size) that may say it."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    new = torch.empty(shape, dtype=old.dtype, device=old.device)
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(new)
    else:
        module._buffers[attribute] = new
    sizes = {was: now for was, now in zip(old.shape, shape, strict=True) if was != now}
    around = [model.get_submodule(each) for each in (path, path.rpartition(".")[0])]
    return [
        (each, key, sizes[value])
        for each in around
        for key, value in list(vars(each).items())
        if type(value) is int and value in sizes
    ]


def without_experts(model, known):
    """Shapes of parameters and buffers by name that lost experts."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    shapes = {}
    for name, (axis, size) in model.config.strucprune.get("experts", {}).items():
        if name not in known:
            name, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        shape = list(known[name].shape)
        shape[axis] = size
        shapes[name] = shape
    return shapes


def resized(model, known):
    """Shapes of parameters by name, from those of tensors: transformers may join or split these."""
    # Only here: the families above also load in releases of transformers 5 that lack these.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    shapes, joined = {}, {}
    for name, shape in model.config.strucprune.get("tensors", {}).items():
        if name in known:
            shapes[name] = shape
            continue
        parameter, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, known
        )
        if pattern is None:
            shapes[parameter] = shape
            continue
        rule = joined.setdefault(parameter, copy.deepcopy(by_pattern[pattern]))
        rule.add_tensor(parameter, name, pattern, torch.empty(shape, device="meta"))
    for parameter, rule in joined.items():
        made = rule.convert(parameter, model=model, config=model.config)
        for name, value in made.items():
            shapes[name] = tuple((value[0] if isinstance(value, list) else value).shape)
    return shapes


class Resized:
    """Mixed into transformers' classes: the same model, with tensors as narrow as listed."""

    def __init__(self, config):
        super().__init__(config)
        resize(self)
        self.post_init()
        teach_peft(config.model_type)

    @classmethod
    def is_custom_code(cls):
        """Whether weights might be set up anew that are loaded: all modules are transformers'."""
        return False


def classes_of(family):
    """(config class, model class) of a pruned model of any architecture, by its model type.

    "experts_" before that is of models whose layers have different numbers of experts.
    """
    if RELEASE < (5, 0):
        raise ImportError(
            f"a pruned {family} needs transformers 5 or later; {hf.__version__} is installed"
        )
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if family not in _ANY_CLASSES:
        dense_type = family.removeprefix("experts_")
        base = hf.CONFIG_MAPPING[dense_type]
        stem = ANY + family.replace("-", "__") + "_"

        class Config(base):
            model_type = f"strucprune_{family}"
            strucprune: dict | None = None

        Config.__name__ = Config.__qualname__ = f"{stem}Config"

        whole = "text_config" in base.sub_configs or base not in hf.MODEL_FOR_CAUSAL_LM_MAPPING
        sees = whole and base in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        mapping = "IMAGE_TEXT_TO_TEXT" if sees else "CAUSAL_LM"

        dense = getattr(hf, f"MODEL_FOR_{mapping}_MAPPING")[base]

        class Model(Resized, dense):
            config_class = Config

        Model.__name__ = Model.__qualname__ = f"{stem}ForCausalLM"
        rules = get_checkpoint_conversion_mapping(dense_type) or []
        register_checkpoint_conversion_mapping(Config.model_type, rules, overwrite=True)
        rules = get_checkpoint_conversion_mapping(dense.__name__)
        if rules is not None:
            register_checkpoint_conversion_mapping(Model.__name__, rules, overwrite=True)
        Config.register_for_auto_class("AutoConfig")
        Model.register_for_auto_class(
            "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
        )
        _ANY_CLASSES[family] = (Config, Model)
    return _ANY_CLASSES[family]


def __getattr__(name):
    """The classes that config.json of a pruned model of any other architecture names."""
    if name.startswith(ANY):
        family, _, kind = name.removeprefix(ANY).rpartition("_")
        if kind in ("Config", "ForCausalLM"):
            config, model = classes_of(family.replace("__", "-"))
            return config if kind == "Config" else model
    raise AttributeError(name)


# `save_pretrained` writes this file beside the weights, and names its classes in config.json.
for model_type, config_class in CONFIGS.items():
    config_class.register_for_auto_class("AutoConfig")
    MODELS[model_type].register_for_auto_class("AutoModelForCausalLM")
