"""The architectures whose experts can be removed. No torch.

The table is made by `python -m tests.coverage.experts`. For each model type with experts it says
which tensors are an expert's, and what config.json calls the numbers that routing depends on. It
was found by trying on tiny models: the tensors that change with the number of experts are those of
experts and routers. Every entry lost experts and was loaded again in transformers' own class, where
it computed what the dense model computes when its router avoids these experts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from strucprune_core.models import fields
from strucprune_core.models.config import Routing
from strucprune_core.models.fields import RawConfig
from strucprune_core.models.generic.architectures import Architecture, architecture_of

TABLE = "experts.json"

GROUP_KEYS, CHOSEN_GROUP_KEYS = ("n_group", "num_expert_group"), ("topk_group",)
"""What classes call the number of groups of experts, and of those that a token chooses from."""


@dataclass(frozen=True, slots=True)
class ExpertPattern:
    """What is an expert's, in the files of an architecture.

    Attributes:
        count_keys: Keys of config.json for the number of experts of a layer.
        chosen_keys: Keys for the number of experts that see a token; none if the class fixes it.
        chosen: That number where no key says it.
        hidden_key: Key for the width of the residual stream.
        defaults: Values of keys, by the class, where config.json lacks them.
        own: See `config.Experts`.
        sliced: See `config.Experts`.
    """

    count_keys: tuple[str, ...]
    chosen_keys: tuple[str, ...]
    chosen: int
    hidden_key: str
    defaults: tuple[tuple[str, int], ...]
    own: tuple[str, ...]
    sliced: tuple[tuple[str, int], ...]

    def routing(self, raw: RawConfig) -> Routing:
        """How tokens choose among experts.

        Raises:
            InvalidCheckpoint: a number of config.json is none, or two keys for it differ.
        """
        groups = self.number(raw, GROUP_KEYS, 1)
        experts = self.number(raw, self.count_keys, 1)
        if experts % groups:
            raise fields.bad_config(
                f"config.json divides {experts} experts into {groups} groups ({GROUP_KEYS[0]})"
            )
        return Routing(
            count_keys=self.count_keys,
            experts=experts,
            chosen=self.number(raw, self.chosen_keys, self.chosen),
            chosen_from=self._source(raw),
            groups=groups,
            chosen_groups=self.number(raw, CHOSEN_GROUP_KEYS, groups),
        )

    def _source(self, raw: RawConfig) -> str:
        """Where the number of chosen experts comes from, for messages."""
        given = next((key for key in self.chosen_keys if raw.get(key) is not None), None)
        if given is not None:
            return given
        default = "the default of its class in transformers"
        if not self.chosen_keys:
            return default
        return f"{default}: config.json has no {self.chosen_keys[0]}"

    def number(self, raw: RawConfig, keys: tuple[str, ...], least: int) -> int:
        """What these keys of config.json say, else the class's value, else `least`.

        Raises:
            InvalidCheckpoint: that is no number, or two keys differ: which one counts is up to
                the release of transformers.
        """
        defaults = dict(self.defaults)
        given = {
            key: fields.checked_integer(key, raw[key], fields.MAX_WIDTH)
            for key in keys
            if raw.get(key) is not None
        }
        if len(set(given.values())) > 1:
            said = " and ".join(f"{key}: {value}" for key, value in given.items())
            raise fields.bad_config(f"config.json contradicts itself: {said}")
        if given:
            return next(iter(given.values()))
        return next((defaults[key] for key in keys if key in defaults), least)


@dataclass(frozen=True, slots=True)
class ExpertArchitecture:
    """An architecture with experts: its files and modules, and what is an expert's."""

    architecture: Architecture
    pattern: ExpertPattern


@cache
def expert_table() -> dict[str, Any]:
    """The table as it is stored: `transformers` (the version) and `model_types`."""
    text = resources.files("strucprune_core.models.generic").joinpath(TABLE).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def expert_architecture(model_type: str) -> ExpertArchitecture | None:
    """The entry of a model type; None if it is not in the table, or refused there."""
    entry = expert_table()["model_types"].get(model_type, {})
    return expert_architecture_of(entry) if "architecture" in entry else None


def expert_model_types() -> tuple[str, ...]:
    """The model types that can lose experts."""
    entries = expert_table()["model_types"].items()
    return tuple(name for name, entry in entries if "architecture" in entry)


def expert_refusal(model_type: str) -> str | None:
    """Why experts of a model type cannot be removed; None if they can, or if it has none."""
    reason: str | None = expert_table()["model_types"].get(model_type, {}).get("refused")
    return reason


def expert_architecture_of(entry: dict[str, Any]) -> ExpertArchitecture:
    """An entry as stored, made an object."""
    experts = entry["experts"]
    return ExpertArchitecture(
        architecture_of(entry["architecture"]),
        ExpertPattern(
            count_keys=tuple(experts["count_keys"]),
            chosen_keys=tuple(experts["chosen_keys"]),
            chosen=experts["chosen"],
            hidden_key=experts["hidden_key"],
            defaults=tuple(sorted(experts["defaults"].items())),
            own=tuple(experts["own"]),
            sliced=tuple((name, axis) for name, axis in experts["sliced"]),
        ),
    )
