"""What a family's table means for one model: its parameters, their shapes and their order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from megatron_vr.convert.families import FAMILIES, LAYER, Weight
from megatron_vr.models.architecture import Architecture

Index = tuple[int, ...]  # () of the whole model, (layer,), or (layer, expert)


def weight_map(architecture: Architecture) -> dict[str, Weight]:
    """The table of a model, by Megatron name."""
    rows = FAMILIES[architecture.family]
    return {
        row.megatron: row
        for row in rows
        if not (architecture.tied and row.megatron == "output_layer.weight")
    }


def dimensions(architecture: Architecture) -> dict[str, int]:
    """Sizes of the letters in a table's shapes."""
    experts = architecture.experts
    return {
        "v": architecture.vocab_size,
        "h": architecture.hidden_size,
        "f": architecture.ffn_hidden_size,
        "d": architecture.head_dim,
        "q": architecture.heads * architecture.head_dim,
        "k": architecture.kv_heads * architecture.head_dim,
        "e": experts.count if experts else 0,
        "m": experts.ffn_hidden_size if experts else 0,
    }


def source_shapes(
    weight: Weight, index: Index, architecture: Architecture
) -> dict[str, tuple[int, ...]]:
    """The Hugging Face names and shapes behind the parameter of one layer and expert."""
    sizes = dimensions(architecture)
    numbers = dict(zip("*#", index, strict=False))
    shapes = {}
    for pattern, shape in weight.sources.items():
        name = re.sub(r"[*#]", lambda mark: str(numbers[mark.group()]), pattern)
        shapes[name] = tuple(sizes[letter] for letter in shape.split())
    return shapes


def stack_shape(weight: Weight, architecture: Architecture) -> Index:
    """The axes before a parameter's own in a checkpoint: (), (layers,) or (layers, experts)."""
    counts = [architecture.layers] if weight.layered else []
    if weight.per_expert and architecture.experts:
        counts.append(architecture.experts.count)
    return tuple(counts)


def parameter_shape(weight: Weight, architecture: Architecture, vocabulary: int) -> tuple[int, ...]:
    """The shape of one whole parameter, its embedding padded to `vocabulary` rows."""
    first, *others = source_shapes(weight, (0, 0), architecture).values()
    if weight.transform == "vocab":
        return (vocabulary, *first[1:])
    return (first[0] + sum(other[0] for other in others), *first[1:])


def parameters(architecture: Architecture) -> Iterator[tuple[Weight, Index]]:
    """Every (parameter, index) of a model: the embedding, the layers in order, and what follows."""
    rows = list(weight_map(architecture).values())
    before = [row for row in rows if row.megatron.startswith("embedding.")]
    layered = [row for row in rows if row.layered]
    for row in before:
        yield row, ()
    for layer in range(architecture.layers):
        for row in layered:
            for expert in range(stack_shape(row, architecture)[1]) if row.per_expert else (None,):
                yield row, (layer,) if expert is None else (layer, expert)
    for row in rows:
        if row not in before and row not in layered:
            yield row, ()


def expected_tensors(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model's Hugging Face folder."""
    expected: dict[str, tuple[int, ...]] = {}
    for weight, index in parameters(architecture):
        expected.update(source_shapes(weight, index, architecture))
    return expected


# Modules with a state of their own that are behind no row: Transformer Engine's attention, and the
# output layer, which a tied model has too.
_STATEFUL = (LAYER + "self_attention.core_attention", "output_layer")
_STATELESS = ("embedding.word_embeddings", LAYER + "mlp.router")


def extra_states(architecture: Architecture) -> Iterator[str]:
    """The names under which Megatron asks a checkpoint for its modules' extra states.

    That is where Transformer Engine keeps FP8 scales; other modules have empty ones, and miss them
    all the same.
    """
    stacks: dict[str, Index] = {
        row.megatron.rpartition(".")[0]: stack_shape(row, architecture)
        for row in weight_map(architecture).values()
    }
    for module in _STATEFUL:
        stacks[module] = (architecture.layers,) if module.startswith(LAYER) else ()
    for module, stack in stacks.items():
        if module not in _STATELESS:
            shape = stack or (1,)
            for place in product(*(range(count) for count in shape)):
                shard = ".".join(map(str, place)) + "_" + ".".join(map(str, shape))
                yield f"{module}._extra_state/shard_{shard}"


_NUMBERED = re.compile(r"^decoder\.layers\.(\d+)\.")


def split_layer(key: str) -> tuple[str, Index]:
    """A checkpoint key without its layer number, and that number if it has one.

    Megatron can store each layer under a key of its own instead of all under one.
    """
    found = _NUMBERED.match(key)
    if found is None:
        return key, ()
    return LAYER + key[found.end() :], (int(found.group(1)),)
