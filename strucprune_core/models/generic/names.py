"""From tensors as files name and store them to the parameters of transformers' modules.

transformers renames tensors when it loads a model, and joins some (the matrices of all experts
become one parameter). The same rules are applied here to the tensors of one decoder layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.fields import FIELD


class ParameterNames:
    """The loading rules of one model.

    Args:
        model: The model, with or without memory behind its parameters.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known = model.state_dict()
        rules = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._by_pattern = {
            pattern: rule for rule in self._converters for pattern in rule.source_patterns
        }

    def parameter_of(self, name: str) -> tuple[str, str | None]:
        """The parameter that a tensor becomes (part of), and the pattern of the rule that joins it.

        A name that is no parameter of the model means that the model has no such tensor.
        """
        found, pattern = rename_source_key(
            name, self._renamings, self._converters, self._model.base_model_prefix, self._known
        )
        if found not in self._known and name in self._known:
            found, pattern = rename_source_key(
                name, [], [], self._model.base_model_prefix, self._known
            )
        return found, pattern

    def parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters by name, from tensors by name: those of a whole layer, or of all of them.

        Raises:
            InvalidCheckpoint: a tensor is none of the model's.
        """
        plain: dict[str, Tensor] = {}
        joined: dict[str, Any] = {}
        for name in sorted(tensors, key=dot_natural_key):
            parameter, pattern = self.parameter_of(name)
            if parameter not in self._known:
                raise InvalidCheckpoint(
                    f"transformers expects no tensor {shown(name)} in this model",
                    field=FIELD,
                    remedy="Give the config.json that was saved with these weights.",
                )
            if pattern is None:
                plain[parameter] = tensors[name]
                continue
            rule = joined.get(parameter)
            if rule is None:
                rule = joined[parameter] = deepcopy(self._by_pattern[pattern])
            rule.add_tensor(parameter, name, pattern, tensors[name])
        for parameter, rule in joined.items():
            made = rule.convert(parameter, model=self._model, config=self._model.config)
            for name, value in made.items():
                plain[name] = value[0] if isinstance(value, list) else value
        return plain
