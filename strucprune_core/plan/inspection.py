"""Checks a job before any heavy work. No torch.

Reads config.json, safetensors headers, sizes, and the beginning of the texts; never a weight. A
chat template must exist, but is not run: it is a program. The CLI and the worker stop at the first
issue (`inspect_job`), the API shows all (`examine_job`).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from strucprune_core.calibration.jsonl import jsonl_records
from strucprune_core.calibration.other_formats import HEAD_BYTES, check_head
from strucprune_core.calibration.parquet import check_parquet
from strucprune_core.calibration.records import check_kind
from strucprune_core.calibration.text import Text
from strucprune_core.calibration.tokenizer_config import (
    check_chat_template,
    read_tokenizer_config,
    tokenizer_source,
)
from strucprune_core.checkpoint.adapter import Adapter, merged, open_adapter
from strucprune_core.checkpoint.header import DTYPE_BYTES
from strucprune_core.checkpoint.index import CheckpointIndex, open_checkpoint, read_in
from strucprune_core.errors import (
    InvalidCheckpoint,
    InvalidSpec,
    InvalidText,
    Mend,
    ObjectNotFound,
    OutputNotEmpty,
    StrucPruneError,
    naming_field,
)
from strucprune_core.export.checks import check_export
from strucprune_core.method.allocation.budget import (
    WidthRule,
    out_of_reach,
    reachable_budget,
    reachable_sparsity,
    rounded_up,
    too_small,
)
from strucprune_core.method.allocation.uniform import allocate_uniformly
from strucprune_core.models.config import LayerConfig, ModelConfig
from strucprune_core.models.generic.size_keys import widths_by_key
from strucprune_core.models.pruned_shapes import EXPERTS_PREFIX
from strucprune_core.models.read_config import header_allowance, read_config
from strucprune_core.models.structures import sites
from strucprune_core.models.tensors import check_tensors, tensor_name
from strucprune_core.plan.blocks import check_blocks
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.precision import with_planned_precision
from strucprune_core.plan.removable_layers import check_layers_removable
from strucprune_core.plan.shared_budget import check_shared_budget
from strucprune_core.plan.sites import (
    kept_experts,
    plan_experts,
    plan_sites,
)
from strucprune_core.plan.targets import resolved
from strucprune_core.plan.tasks import check_tasks, task_file_versions
from strucprune_core.plan.uniform_heads import check_heads_load
from strucprune_core.run.publish import unfinished
from strucprune_core.spec import (
    CalibrationSpec,
    Dtype,
    EvaluationSpec,
    JobSpec,
    ModelSpec,
    OutputSpec,
    PruningSpec,
)
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.open import split_object
from strucprune_core.storage.store import InspectableStore, ReadableStore
from strucprune_core.storage.uri import contains, may_be_hub_id
from strucprune_core.storage.versions import version_of

OpenStore = Callable[[str], InspectableStore]
"""Opens the store at a URI, or refuses it."""

MAX_TEXT_BYTES = 2**30
# So much of a text is decoded here; the rest is when it is tokenised, as strictly.
TEXT_PROBE_BYTES = 2**20
# Special tokens and a leading space can make a text a little longer in tokens than in bytes.
_EXTRA_TOKENS = 16


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A job that passed inspection.

    Attributes:
        spec: The job, with the sparsity that its target comes to, and its precision if that
            follows from the device that it names.
        model: The model.
        calibration_bytes: Size of the calibration file, None if the model writes its own text.
        evaluation_bytes: Size of the evaluation text, None if there is none.
    """

    spec: JobSpec
    model: ModelFacts
    calibration_bytes: int | None
    evaluation_bytes: int | None


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of checking a job.

    Attributes:
        issues: Everything that is wrong with it, without issues that follow from another one.
        spec: The job, with the sparsity that its target comes to.
        model: The model, None if something is wrong with it.
    """

    issues: list[StrucPruneError]
    spec: JobSpec
    model: ModelFacts | None = None


def inspect_model(
    store: ReadableStore, *, experts: bool = False, dtype: Dtype | None = None
) -> ModelFacts:
    """Read a model's layout and check it against its configuration.

    Args:
        store: Its files.
        experts: Whether it is read to remove experts: see `models.read_config`.
        dtype: What its weights are converted to as they are read; None: as `checkpoint.index`.

    Raises:
        InvalidSpec: its experts are to be removed, and cannot be.
        ObjectNotFound: nothing is stored there.
        InvalidCheckpoint: the files are incomplete, unsafe or contradict each other.
        UnsupportedArchitecture: this build cannot prune such a model.
        StorageError: the store refused or failed.
    """
    opened = read_in(open_checkpoint(store, header_allowance), dtype)
    config, index = read_config(opened, experts=experts)
    check_tensors(config, index)
    if tokenizer_source(index.other_files) is None:
        raise InvalidCheckpoint(
            "there is neither a tokenizer.json nor what one can be made of (tokenizer.model, or "
            "vocab.json and merges.txt)",
            remedy="Save the model's fast tokenizer next to it "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...)).",
        )
    return ModelFacts(index, config)


def read_job_model(spec: JobSpec, open_store: OpenStore) -> ModelFacts:
    """`read_adapted_model` of a job."""
    experts, dtype = spec.pruning.removes_experts, spec.output.dtype
    return read_adapted_model(spec.model, open_store, experts=experts, dtype=dtype)


def read_adapted_model(
    named: ModelSpec, open_store: OpenStore, *, experts: bool, dtype: Dtype | None
) -> ModelFacts:
    """`read_model`, with the adapter that is named with it merged into it."""
    model = read_model(named.uri, open_store, experts=experts, dtype=dtype)
    if named.adapter_uri is None:
        return model
    with naming_field("model.adapter_uri"):
        adapter = open_adapter(open_store(named.adapter_uri))
        return ModelFacts(_with_adapter(model, adapter), model.config)


def _with_adapter(model: ModelFacts, adapter: Adapter) -> CheckpointIndex:
    config = model.config
    tied = (config.names.embedding, config.names.head) if config.tie_word_embeddings else ()
    return merged(model.index, adapter, tied=tied, transposed=config.transposed)


def read_model(
    uri: str, open_store: OpenStore, *, experts: bool = False, dtype: Dtype | None = None
) -> ModelFacts:
    """`inspect_model` of the model at a URI. Errors name the field `model.uri`.

    Raises:
        StrucPruneError: as `inspect_model`; `org/name` that is no directory is offered as `hf://`.
    """
    with naming_field("model.uri"):
        try:
            return inspect_model(open_store(uri), experts=experts, dtype=dtype)
        except ObjectNotFound as error:
            if not may_be_hub_id(uri):
                raise
            raise ObjectNotFound(
                error.message,
                remedy=f"For the model of the Hugging Face hub, use hf://{uri}.",
                mends=[Mend("model.uri", f"hf://{uri}")],
            ) from error


def check_output_usable(
    store: InspectableStore, fingerprint: str | None = None, *, of_any_job: bool = False
) -> None:
    """Check that the output prefix is empty (nothing is ever overwritten) and can be written to.

    Args:
        store: The output.
        fingerprint: The job's (`job_fingerprint`). If it is given, the prefix may hold what a run
            of this job left that broke off while it published.
        of_any_job: Allow what a run of any job left so, as long as it is not known which job it is.

    Raises:
        OutputNotEmpty: it holds something else.
        StorageError: the store refused or failed, or would refuse a write.
    """
    first = next(iter(store.list()), None)
    may_be_ours = fingerprint is not None or of_any_job
    if first is not None and not (may_be_ours and unfinished(store, fingerprint) is not None):
        raise OutputNotEmpty(
            f"{store.uri} already holds '{first.key}'", remedy="Choose a new output prefix."
        )
    store.check_writable()


def check_apart(
    model: str, output: str, workspace: str | None = None, adapter: str | None = None
) -> None:
    """Check that no place of a job lies in another, where its files would be mistaken for others.

    Args:
        model: URI of the model's store.
        output: URI of the output's store.
        workspace: URI of the workspace's store, if it is the user's choice.
        adapter: URI of the adapter's store, if there is one. It may lie in the model's.

    Raises:
        InvalidSpec: two are the same, or one lies below the other.
    """
    pairs = [("output.uri_prefix", "the output", output, "the model's", model)]
    if workspace is not None:
        pairs += [
            ("workspace", "the workspace", workspace, "the model's", model),
            ("workspace", "the workspace", workspace, "the output's", output),
        ]
    if adapter is not None:
        pairs.append(("output.uri_prefix", "the output", output, "the adapter's", adapter))
        if workspace is not None:
            pairs.append(("workspace", "the workspace", workspace, "the adapter's", adapter))
    for field, what, place, other, root in pairs:
        if contains(root, place):
            where = f"{what} {place} lies in {other} place {root}"
        elif contains(place, root):
            where = f"{other} place {root} lies in {what} {place}"
        else:
            continue
        raise InvalidSpec(where, field=field, remedy="Choose a place of its own, apart from it.")


def check_text(store: ReadableStore, key: str, *, sequences: int, sequence_length: int) -> int:
    """Check a text as far as that is cheap. Tokens are only counted when it is tokenised.

    Returns:
        Its size in bytes.

    Raises:
        ObjectNotFound: there is no such object.
        InvalidText: it is empty, too large, not UTF-8, or too short for any tokenizer.
        StorageError: the store refused or failed.
    """
    size = _size(store, key)
    if size > MAX_TEXT_BYTES:
        raise InvalidText(
            f"the text has {size:,} bytes, over the limit of {MAX_TEXT_BYTES:,}",
            remedy="Shorten it: a few megabytes are plenty.",
        )
    check_head(bytes(store.read(key, 0, min(size, HEAD_BYTES))), "text")
    _check_holds(size, sequences * sequence_length)
    _check_utf8(store.read(key, 0, min(size, TEXT_PROBE_BYTES)), whole=size <= TEXT_PROBE_BYTES)
    return size


def check_documents(store: ReadableStore, key: str, calibration: CalibrationSpec) -> int:
    """Check a JSON lines or parquet file as far as that is cheap: its first record, or its columns.

    Returns:
        Its size in bytes.

    Raises:
        ObjectNotFound: there is no such object.
        InvalidText: it is empty, of another format, without such a field, or too short for any
            tokenizer.
        StorageError: the store refused or failed.
    """
    size = _size(store, key)
    check_head(bytes(store.read(key, 0, min(size, HEAD_BYTES))), calibration.file_format)
    field = calibration.document_field
    text = Text(store, key, "calibration.uri")
    if calibration.file_format == "parquet":
        check_parquet(text, field, conversations=calibration.chat_template)
        return size
    first = next(jsonl_records(text, field), None)
    if first is None:
        raise InvalidText("the file holds blank lines only", remedy="Use one with documents.")
    check_kind(text, first, conversations=calibration.chat_template)
    if not calibration.chat_template:  # A template may add any amount of text.
        _check_holds(size, calibration.samples * calibration.sequence_length)
    return size


def _size(store: ReadableStore, key: str) -> int:
    """Bytes of a text that exists and is not empty."""
    info = store.stat(key)
    if info is None:
        next(iter(store.list(key)), None)  # Raises if the bucket does not exist either.
        raise ObjectNotFound(
            f"there is no text {store.uri}/{key}",
            remedy="Check the text's URI: it must name one file, not a directory or prefix.",
        )
    if info.size_bytes == 0:
        raise InvalidText("the text is empty", remedy="Use a text with words in it.")
    return info.size_bytes


def _check_holds(size_bytes: int, tokens: int) -> None:
    """No tokenizer makes more tokens than there are bytes."""
    if size_bytes + _EXTRA_TOKENS < tokens:
        raise InvalidText(
            f"the text has {size_bytes:,} bytes, which cannot hold the {tokens:,} tokens asked for",
            remedy="Use a longer text, or ask for fewer or shorter sequences.",
        )


def check_reach(pruning: PruningSpec, config: ModelConfig) -> None:
    """Check that the model's widths allow the sparsity that is asked for.

    Raises:
        InvalidSpec: the sparsity is less than one channel, rounds to nothing, or is more than the
            floors allow; a limit names a layer that the model does not have; or the layout does not
            fit a model whose layers already differ.
    """
    if pruning.removes_experts_alone:
        _check_experts(pruning, config)
        return
    if pruning.removes_experts:
        if plan_sites(config, pruning):  # Else `check_generic` says why.
            check_shared_budget(config, pruning)
        return
    if pruning.layout == "uniform" and pruning.removes_blocks:
        _check_unpruned(config)
    elif pruning.layout == "uniform":
        _check_uniform(config)
    _check_layers(pruning, config)
    if "query_heads" in pruning.structures and config.generic is None:
        _check_query_heads(pruning, config)
    if pruning.removes_blocks:
        check_blocks(config, pruning)
        return
    planned = plan_sites(config, pruning)
    if not planned:
        return  # `check_generic` says why.
    widths = [place.site.structures for place in planned]
    parameters = [place.site.parameters for place in planned]
    rules = [place.rule for place in planned]
    _check_removable(pruning, widths)
    reachable = reachable_sparsity(widths, parameters, rules)
    if reachable <= 0:
        raise out_of_reach(pruning.asked_sparsity, reachable)
    total = sum(width * each for width, each in zip(widths, parameters, strict=True))
    least = min(parameters)
    if pruning.asked_sparsity * total < least:
        enough = rounded_up(least / total)
        raise InvalidSpec(
            f"{pruning.asked_sparsity:.4g} of {total:,} parameters is less than one structure",
            field="pruning.sparsity",
            remedy=f"Ask for at least {enough:g}.",
            mends=[Mend("pruning.sparsity", enough)],
        )
    if pruning.allocation == "uniform":
        allocate_uniformly(widths, pruning.asked_sparsity, rules)
        check_heads_load(pruning, config)
        return
    reachable_budget(pruning.asked_sparsity, widths, parameters, rules)
    _check_step(pruning.asked_sparsity, widths, parameters, rules)


def _check_experts(pruning: PruningSpec, config: ModelConfig) -> None:
    """Check that so many experts can go."""
    if pruning.layout == "uniform":
        kept_experts(pruning, config)
        return
    _check_layers(pruning, config)
    places = plan_experts(config, pruning)
    widths = [place.steps for place in places]
    parameters = [place.parameters for place in places]
    rules = [place.rule for place in places]
    reachable_budget(pruning.asked_sparsity, widths, parameters, rules)
    _check_step(pruning.asked_sparsity, widths, parameters, rules)


def _check_step(
    sparsity: float, widths: list[int], parameters: list[int], rules: list[WidthRule]
) -> None:
    """Check that a sparsity is not nearer to nothing than to the smallest step."""
    total = sum(width * each for width, each in zip(widths, parameters, strict=True))
    steps = [
        (width - rule.widths(width)[1]) * each
        for width, each, rule in zip(widths, parameters, rules, strict=True)
        if rule.floor(width) < width
    ]
    if min(steps) > 2 * sparsity * total:
        raise too_small(sparsity, min(steps) / total)


def _check_uniform(config: ModelConfig) -> None:
    """One width must do for all layers; of a generic model, for all whose key is the same."""
    if config.generic is not None:
        widths_by_key(config)
    elif len({shape_of(block) for block in config.blocks}) > 1:
        raise InvalidSpec(
            "the model's layers already differ in width, so no uniform layout can hold them",
            field="pruning.layout",
            remedy="Use layout 'per_layer'.",
            mends=[Mend("pruning.layout", "per_layer")],
        )


# PyTorch multiplies all experts of a layer at once only if their rows begin at such bytes.
_GROUPED_BYTES = 16


def _check_experts_multiply(pruning: PruningSpec, model: ModelFacts) -> None:
    """Transformers' own classes of mixtures of experts must be able to multiply with the result."""
    config, tensors = model.config, model.index.tensors
    if pruning.layout != "uniform" or "ffn_channels" not in pruning.structures:
        return
    planned = [
        place
        for place in plan_sites(config, pruning)
        if place.site.kind == "ffn" and config.blocks[place.layer].names.router is not None
    ]
    if not planned:
        return
    widths, rules = [p.site.structures for p in planned], [p.rule for p in planned]
    (kept, *_) = allocate_uniformly(widths, pruning.asked_sparsity, rules).widths
    first = planned[0]
    dtype = tensors[tensor_name(config, first.layer, first.site.output.role)].dtype
    aligned = _GROUPED_BYTES // DTYPE_BYTES[dtype]
    if kept % aligned:
        raise InvalidSpec(
            f"experts of {kept} channels in {dtype} cannot be multiplied by transformers' own "
            f"class, which needs multiples of {aligned}",
            field="pruning.multiple_of",
            remedy=f"Set pruning.multiple_of to {aligned}, or use layout 'per_layer'.",
            mends=[Mend("pruning.multiple_of", aligned), Mend("pruning.layout", "per_layer")],
        )


def _check_unpruned(config: ModelConfig) -> None:
    """Without layers alone, the result is loaded by the class that loads the model itself."""
    if config.model_type != config.family:
        raise InvalidSpec(
            "the model was pruned before, and has widths that no class of transformers knows",
            field="pruning.layout",
            remedy="Use layout 'per_layer'.",
            mends=[Mend("pruning.layout", "per_layer")],
        )


def check_generic(pruning: PruningSpec, config: ModelConfig) -> None:
    """Check that what is asked for can be had of a model that runs in transformers' modules.

    Raises:
        InvalidSpec: it is only implemented for the families that are written out.
    """
    if config.generic is None:
        return
    if config.model_type.startswith(EXPERTS_PREFIX):
        raise InvalidSpec(
            "layers of the model have lost different numbers of experts, and it cannot be pruned "
            "again",
            field="model.uri",
            remedy="Prune the dense model again; or remove its FFN channels first, and then "
            "experts.",
        )
    kinds, experts = set(pruning.structures), pruning.removes_experts
    has_ffns = any(sites(config, layer, ["ffn_channels"]) for layer in range(config.layers))
    if pruning.recover is not None and not has_ffns:
        raise InvalidSpec(
            f"architecture '{config.family}' has no FFN that could be trained, only experts",
            field="pruning.recover",
            remedy="Leave recover out; distill trains the whole model.",
            mends=[Mend("pruning.recover", None)],
        )
    if "ffn_channels" in kinds and not has_ffns:
        raise InvalidSpec(
            f"architecture '{config.family}' has no FFN beside its experts whose channels can be "
            "removed, only experts",
            field="pruning.structures",
            remedy="Use structures ['experts'].",
            mends=[Mend("pruning.structures", ["experts"])],
        )
    if not kinds <= {"ffn_channels", "layers"} and not experts:
        raise InvalidSpec(
            f"this is not implemented for the architecture '{config.family}', which runs in "
            "transformers' own modules",
            field="pruning.structures",
            remedy="Use structures ['ffn_channels'] or ['layers'].",
            mends=[Mend("pruning.structures", [kind]) for kind in ("ffn_channels", "layers")],
        )


def _check_layers(pruning: PruningSpec, config: ModelConfig) -> None:
    """Limits of single layers must name layers of the model."""
    beyond = [layer for layer in pruning.max_sparsity_by_layer if layer >= config.layers]
    if beyond:
        raise InvalidSpec(
            f"there is no layer {min(beyond)}: the model's layers are 0 to {config.layers - 1}",
            field="pruning.max_sparsity_by_layer",
            remedy="Correct the layer's number, or leave it out.",
        )


def _check_removable(pruning: PruningSpec, structures: list[int]) -> None:
    """The last structure of a layer always stays, so a single one cannot be removed."""
    if max(structures) > 1:
        return
    other = next(kind for kind in ("ffn_channels", "query_heads") if kind not in pruning.structures)
    raise InvalidSpec(
        f"every layer has only one of {', '.join(pruning.structures)}, and it must stay",
        field="pruning.structures",
        remedy=f"Remove another kind: {other}.",
        mends=[Mend("pruning.structures", [other])],
    )


def shape_of(block: LayerConfig) -> tuple[int, int, tuple[int, ...]]:
    """The part of a layer's shape that pruning may change."""
    return block.query_heads, block.kv_heads, block.ffn_widths


def _check_query_heads(pruning: PruningSpec, config: ModelConfig) -> None:
    if all(block.query_heads_per_kv_head <= 1 for block in config.blocks):
        groups = ["kv_groups" if kind == "query_heads" else kind for kind in pruning.structures]
        raise InvalidSpec(
            "every query head has its own key-value head, so none can be removed alone",
            field="pruning.structures",
            remedy="Use 'kv_groups', which removes a query head along with its key-value head.",
            mends=[Mend("pruning.structures", groups)],
        )


def check_sequence_length(length: int, config: ModelConfig, field: str) -> None:
    """Check that the model has positions for a sequence.

    Raises:
        InvalidSpec: the sequence is longer than the model's context.
    """
    if length > config.max_position_embeddings:
        raise InvalidSpec(
            f"{length} tokens are more than the model's context of "
            f"{config.max_position_embeddings}",
            field=field,
            remedy=f"Ask for at most {config.max_position_embeddings}.",
            mends=[Mend(field, config.max_position_embeddings)],
        )


def inspect_job(
    spec: JobSpec,
    open_store: OpenStore,
    *,
    check_output: bool = True,
    workspace: str | None = None,
    task_downloads: bool = True,
) -> JobFacts:
    """Check a whole job, stopping at the first issue.

    Args:
        spec: The job.
        open_store: Opens the stores that the spec names.
        check_output: False for a job that may resume after it began to publish.
        workspace: URI of the workspace's store; None if it is a temporary one.
        task_downloads: Whether data of tasks may come from a hub.

    Raises:
        StrucPruneError: the first issue, with its field.
    """
    _check_apart(spec, open_store, workspace)
    model = read_job_model(spec, open_store)
    spec = _resolved(spec, model)
    for check in _all_model_checks(spec, model):
        check()
    if check_output:
        with naming_field("output.uri_prefix"):
            check_output_usable(open_store(spec.output.uri_prefix))
    check_tasks(spec.evaluation, open_store, downloads=task_downloads)
    return JobFacts(
        spec=spec,
        model=model,
        calibration_bytes=calibration_bytes(spec.calibration, open_store),
        evaluation_bytes=evaluation_bytes(spec.evaluation, open_store),
    )


def text_versions(spec: JobSpec, open_store: OpenStore) -> dict[str, str]:
    """Version of each text that a job reads, by the field that names it; "" if it is missing."""
    uris = {"calibration.uri": spec.calibration.uri}
    if spec.evaluation is not None:
        uris["evaluation.uri"] = spec.evaluation.uri
    versions = {}
    for field, uri in uris.items():
        if uri is not None:
            with naming_field(field):
                parent, name = split_object(uri)
                store = open_store(parent)
                info = store.stat(name)
                versions[field] = "" if info is None else version_of(store, info)
    of_tasks = task_file_versions(spec, open_store)
    return versions if of_tasks is None else {**versions, "evaluation.task_files": of_tasks}


def job_fingerprint(spec: JobSpec, index: CheckpointIndex, texts: Mapping[str, str]) -> str:
    """SHA-256 (hex) over what determines a job's result, apart from where it is computed.

    Args:
        spec: The job.
        index: The model's files.
        texts: Versions of the texts, from `text_versions`.
    """
    parts: list[object] = [spec.result_fingerprint(), index.version(), sorted(texts.items())]
    if spec.pruning.sizes:
        parts.append([*spec.pruning.sizes])
    return sha256_of_bytes(json.dumps(parts).encode())


def check_texts_unchanged(
    spec: JobSpec, open_store: OpenStore, versions: Mapping[str, str], *fields: str
) -> None:
    """Check that texts still have the versions that they had.

    Args:
        spec: The job.
        open_store: Opens the stores that the spec names.
        versions: The versions, from `text_versions`.
        fields: The texts to check.

    Raises:
        InvalidText: one was written again, or is missing.
    """
    now = text_versions(spec, open_store)
    for field in fields:
        if now.get(field) != versions.get(field):
            raise InvalidText(
                "the text was written again while the job ran",
                field=field,
                remedy="Start the job again, or retry it: the steps that depend on the text are "
                "then computed again.",
            )


def examine_job(
    spec: JobSpec, open_store: OpenStore, *, task_downloads: bool = True
) -> Examination:
    """Check a whole job and collect all issues, except those that follow from another one.

    Args:
        spec: The job.
        open_store: Opens the stores that the spec names.
        task_downloads: Whether data of tasks may come from a hub.
    """
    issues: list[StrucPruneError] = []

    def collect(field: str, check: Callable[[], Any]) -> Any:
        try:
            with naming_field(field):
                return check()
        except StrucPruneError as error:
            if error.as_dict() not in [issue.as_dict() for issue in issues]:  # Of another size.
                issues.append(error)
            return None

    collect("output.uri_prefix", lambda: _check_apart(spec, open_store, None))
    model: ModelFacts | None = collect(
        "model.uri",
        lambda: read_job_model(spec, open_store),
    )
    of_target: JobSpec | None = spec
    if model is not None:
        of_target = collect("pruning.target", partial(_resolved, spec, model))
    spec = of_target or spec
    if model is not None and of_target is not None:
        for model_check in _all_model_checks(spec, model):
            collect("pruning", model_check)
        if not issues:  # A plan can only be made of a valid job.
            for alone in spec.by_size().values():
                collect("runtime", partial(plan_job, alone, model.config))
    fingerprint = None if model is None else _fingerprint_now(spec, model, open_store)
    if not any(issue.field == "output.uri_prefix" for issue in issues):
        collect(
            "output.uri_prefix",
            lambda: check_output_usable(open_store(spec.output.uri_prefix), fingerprint),
        )
    collect("calibration.uri", lambda: calibration_bytes(spec.calibration, open_store))
    collect("evaluation.uri", lambda: evaluation_bytes(spec.evaluation, open_store))
    collect(
        "evaluation.tasks",
        lambda: check_tasks(spec.evaluation, open_store, downloads=task_downloads),
    )
    return Examination(issues, spec, model)


def _check_apart(spec: JobSpec, open_store: OpenStore, workspace: str | None) -> None:
    check_places_apart(spec.model, spec.output, open_store, workspace)


def check_places_apart(
    named: ModelSpec, result: OutputSpec, open_store: OpenStore, workspace: str | None = None
) -> None:
    """`check_apart` of the places that a job names; those that cannot be opened are left out.

    Raises:
        InvalidSpec: as `check_apart`.
    """
    try:
        model, output = open_store(named.uri).uri, open_store(result.uri_prefix).uri
        uri = named.adapter_uri
        adapter = None if uri is None else open_store(uri).uri
    except StrucPruneError:  # Raised again where the store is used.
        return
    check_apart(model, output, workspace, adapter)


def _fingerprint_now(spec: JobSpec, model: ModelFacts, open_store: OpenStore) -> str | None:
    """The job's fingerprint; None if a text cannot be read, which is an issue of its own."""
    try:
        return job_fingerprint(spec, model.index, text_versions(spec, open_store))
    except StrucPruneError:
        return None


def _resolved(spec: JobSpec, model: ModelFacts) -> JobSpec:
    """The job with the sparsity that its target comes to, and a precision if that is known."""
    if spec.pruning.target is not None:  # What no sparsity would mend is said first.
        check_generic(spec.pruning, model.config)
        check_layers_removable(spec.pruning, model.config, model.index.config)
    spec = resolved(spec, model, partial(check_reach, config=model.config))
    return with_planned_precision(spec, model)


def _all_model_checks(spec: JobSpec, model: ModelFacts) -> list[Callable[[], object]]:
    """`_model_checks` of every size."""
    return [
        partial(_of_size, size, check) if size else check
        for size, alone in spec.by_size().items()
        for check in _model_checks(alone, model)
    ]


def _of_size(size: str, check: Callable[[], object]) -> None:
    """A check whose error names the size if it is about the sparsity."""
    try:
        check()
    except InvalidSpec as error:
        if error.field != "pruning.sparsity":
            raise
        raise InvalidSpec(
            f"{size}: {error.message}", field="pruning.sizes", remedy=error.remedy
        ) from error


def _model_checks(spec: JobSpec, model: ModelFacts) -> list[Callable[[], object]]:
    """The checks of a job of one size that need only the spec and the model's small files."""
    config = model.config
    lengths = {"calibration.sequence_length": spec.calibration.sequence_length}
    if spec.evaluation is not None:
        lengths["evaluation.sequence_length"] = spec.evaluation.sequence_length
    checks: list[Callable[[], object]] = [
        partial(check_generic, spec.pruning, config),
        partial(check_layers_removable, spec.pruning, config, model.index.config),
        partial(check_reach, spec.pruning, config),
        partial(_check_experts_multiply, spec.pruning, model),
        *(partial(check_sequence_length, n, config, field) for field, n in lengths.items()),
        *(
            partial(check_export, export, spec.pruning, config, model.index)
            for export in spec.pruning.exports
        ),
    ]
    if spec.calibration.chat_template:
        checks.append(partial(_check_chat_template, model.index))
    return checks


def _check_chat_template(index: CheckpointIndex) -> None:
    check_chat_template(read_tokenizer_config(index.store, index.other_files))


def calibration_bytes(text: CalibrationSpec, open_store: OpenStore) -> int | None:
    """Check the text that a job calibrates on; its size, None if the model writes it.

    Raises:
        StrucPruneError: as `check_text` and `check_documents`, with the field.
    """
    if text.uri is None:
        return None
    with naming_field("calibration.uri"):
        if text.file_format == "text":
            return _text_bytes(text.uri, open_store, text.samples, text.sequence_length)
        parent, name = split_object(text.uri)
        return check_documents(open_store(parent), name, text)


def evaluation_bytes(text: EvaluationSpec | None, open_store: OpenStore) -> int | None:
    """Check the text that a job evaluates on; its size, None if there is none.

    Raises:
        StrucPruneError: as `check_text`, with the field.
    """
    if text is None:
        return None
    with naming_field("evaluation.uri"):
        return _text_bytes(text.uri, open_store, text.sequences, text.sequence_length)


def _text_bytes(uri: str, open_store: OpenStore, sequences: int, sequence_length: int) -> int:
    parent, name = split_object(uri)
    return check_text(
        open_store(parent), name, sequences=sequences, sequence_length=sequence_length
    )


def _check_utf8(data: bytearray, *, whole: bool) -> None:
    try:
        # Not final: a probe may cut a character in two.
        codecs.getincrementaldecoder("utf-8")("strict").decode(bytes(data), final=whole)
    except UnicodeDecodeError as error:
        raise InvalidText(
            f"the text is not UTF-8: {error.reason} at byte {error.start}",
            remedy="Convert it to UTF-8.",
        ) from error
