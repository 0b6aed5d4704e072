"""No field of a family's configuration is overlooked: each is read, fixed or inert."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import parse_architecture
from megatron_vr.models.config_fields import FIELDS
from tests.models.reference import VOCABULARY, tiny_model

GROUPS = ("read", "fixed", "inert")
READ = sorted((family, name) for family, fields in FIELDS.items() for name in fields.read)
FIXED = sorted((family, name) for family, fields in FIELDS.items() for name in fields.fixed)

# What else must be so for a field to matter.
SLIDING = {"use_sliding_window": True, "sliding_window": 7, "layer_types": None}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BESIDE: dict[str, dict[str, Any]] = {
    "use_sliding_window": {"sliding_window": 7, "layer_types": None, "max_window_layers": 0},
    "sliding_window": SLIDING | {"sliding_window": None, "max_window_layers": 0},
    "max_window_layers": SLIDING | {"max_window_layers": 4},
    "rope_theta": {"rope_parameters": None},
    "original_max_position_embeddings": {"rope_parameters": LLAMA3},
}

# Other values than a model's own. A dtype is what weights are loaded in, the rest of the ignored
# are notes about the file or the form of the output.
CHANGED: dict[str, Any] = {
    "initializer_range": 0.5,
    "use_cache": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "problem_type": "regression",
    "id2label": {0: "a"},
    "label2id": {"a": 0},
    "bos_token_id": 4,
    "eos_token_id": 5,
    "pad_token_id": 6,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
}
NOTES = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "return_dict"}


@cache
def config_of(family: str) -> dict[str, Any]:
    found: dict[str, Any] = tiny_model(family, False).config.to_dict()
    return found


def groups_of(family: str, name: str) -> list[str]:
    return [group for group in GROUPS if name in getattr(FIELDS[family], group)]


@pytest.mark.parametrize("family", FIELDS)
def test_every_field_of_the_configuration_class_is_in_exactly_one_list(family: str) -> None:
    for name, default in AutoConfig.for_model(family).to_dict().items():
        groups = groups_of(family, name)
        assert len(groups) == 1, (
            f"{family}: field {name} (default {default!r}) is in {groups or 'no list'}; read it, "
            "fix its values, or show that it changes no logit"
        )


@pytest.mark.parametrize("family", FIELDS)
def test_every_field_that_the_models_code_reads_is_in_a_list(family: str) -> None:
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    source = inspect.getsource(modeling) + inspect.getsource(masking_utils)
    read = re.findall(r"\bconfig\.([a-z]\w*)\b(?!\()", source)
    read += re.findall(r"attr\((?:self\.)?config, \"(\w+)\"", source)
    assert {"hidden_act", "head_dim", "is_causal"} <= set(read), "the search finds too little"
    for name in sorted(set(read)):
        assert groups_of(family, name), f"{family}: the model reads {name}, which is in no list"


@pytest.mark.parametrize(("family", "name"), READ)
def test_a_read_field_changes_the_architecture_or_is_refused(family: str, name: str) -> None:
    config = config_of(family) | BESIDE.get(name, {})
    assert parse_architecture(config, "as it is").family == family
    with pytest.raises(CheckpointError, match=r"sliding_window|rope_|" + name):
        parse_architecture(config | {name: ["absurd"]}, "config.json")


@pytest.mark.parametrize(("family", "name"), FIXED)
def test_a_fixed_field_may_be_absent_and_is_else_refused_by_name_and_value(
    family: str, name: str
) -> None:
    config = {key: value for key, value in config_of(family).items() if key != name}
    parse_architecture(config, "config.json")
    for value in FIELDS[family].fixed[name].values:
        parse_architecture(config | {name: value}, "config.json")
    with pytest.raises(CheckpointError, match=rf"config\.json: {name}='absurd' is not supported"):
        parse_architecture(config | {name: "absurd"}, "config.json")


@pytest.mark.parametrize("family", FIELDS)
def test_an_inert_field_changes_no_logit_of_transformers(family: str) -> None:
    inert = FIELDS[family].inert
    assert not inert - CHANGED.keys() - NOTES, "a field whose effect nobody measured"
    model = tiny_model(family, False)
    changed = {name: value for name, value in CHANGED.items() if name in inert}
    config = AutoConfig.for_model(**model.config.to_dict() | changed)
    other = AutoModelForCausalLM.from_config(config).eval()
    other.load_state_dict(model.state_dict())
    ids = torch.arange(24)[None] % VOCABULARY
    with torch.no_grad():
        assert other(ids).logits.equal(model(ids).logits)
    same = parse_architecture(model.config.to_dict(), "")
    assert parse_architecture(model.config.to_dict() | changed, "") == same
