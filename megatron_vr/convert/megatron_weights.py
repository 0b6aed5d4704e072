"""A Megatron checkpoint's model, seen under the Hugging Face names of its tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_vr.convert.arena import Arena
from megatron_vr.convert.dist_reader import TensorCheckpoint
from megatron_vr.convert.families import Weight
from megatron_vr.convert.maps import (
    Index,
    parameters,
    source_shapes,
    split_layer,
    stack_shape,
    weight_map,
)
from megatron_vr.convert.transforms import to_hf
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture

_MODEL = ("embedding.", "decoder.", "output_layer.")


class MegatronWeights:
    """The tensors of a torch_dist checkpoint, saved at any layout (`hf_reader.Tensors`)."""

    def __init__(
        self, folder: str | Path, architecture: Architecture, arena: Arena | None = None
    ) -> None:
        """Raises CheckpointError when the checkpoint lacks a parameter of this model, or has one
        that is not its."""
        self.folder = Path(folder)
        self.architecture = architecture
        self._checkpoint = TensorCheckpoint(folder, arena)
        self._rows = weight_map(architecture)
        self._check_keys()
        self._origin = {
            name: (weight, index, shape)
            for weight, index in parameters(architecture)
            for name, shape in source_shapes(weight, index, architecture).items()
        }
        self._last: tuple[tuple[str, Index], dict[str, Tensor]] | None = None

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._origin)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the architecture gives a tensor."""
        return self._origin[name][2]

    def dtype(self, name: str) -> torch.dtype:
        """The precision a tensor is stored in."""
        weight, index, _ = self._origin[name]
        return self.parameter_dtype(weight, index)

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the precision it is stored in."""
        weight, index, _ = self._origin[name]
        wanted = (weight.megatron, index)
        # A parameter of several tensors is asked for by each.
        if self._last is None or self._last[0] != wanted:
            self._last = None
            self._last = wanted, self.tensors_of(weight, index)
        return self._last[1][name]

    def release(self) -> None:
        """Forget the parameter read last."""
        self._last = None

    def tensors_of(self, weight: Weight, index: Index) -> dict[str, Tensor]:
        """All tensors of one parameter, by name. Raises CheckpointError for a wrong shape."""
        shapes = source_shapes(weight, index, self.architecture)
        parameter = self._checkpoint.entry(*self._place(weight, index))
        tensors = to_hf(weight.transform, parameter, self.architecture)
        found = dict(zip(shapes, tensors, strict=True))
        for name, tensor in found.items():
            if tuple(tensor.shape) != shapes[name]:
                raise CheckpointError(
                    f"{self.folder}: {weight.megatron} makes {name} of shape "
                    f"{tuple(tensor.shape)}, but the model asks for {shapes[name]}."
                )
        return found

    def parameter_dtype(self, weight: Weight, index: Index) -> torch.dtype:
        """The precision of a parameter's tensors."""
        return self._checkpoint.dtype(self._place(weight, index)[0])

    def _place(self, weight: Weight, index: Index) -> tuple[str, Index]:
        """Key and place of a parameter: Megatron can store layers under keys of their own."""
        if weight.megatron in self._checkpoint:
            return weight.megatron, index
        if not index:
            return weight.megatron, index
        layer, *expert = index
        return weight.megatron.replace("layers.", f"layers.{layer}.", 1), tuple(expert)

    def _check_keys(self) -> None:
        keys = {key for key in self._checkpoint.keys if key.startswith(_MODEL)}
        known = {split_layer(key)[0] for key in keys}
        for verb, names in (("lacks", set(self._rows) - known), ("has", known - set(self._rows))):
            if names:
                unknown = "unknown " if verb == "has" else ""
                raise CheckpointError(
                    f"{self.folder} {verb} {unknown}parameter {min(names)} for a "
                    f"{self.architecture.family} model."
                )
        for key in sorted(keys):
            self._check_stack(key)
        for weight, index in parameters(self.architecture):
            key, _ = self._place(weight, index)
            if key not in self._checkpoint:
                raise CheckpointError(f"{self.folder} lacks parameter {key}.")

    def _check_stack(self, key: str) -> None:
        """Layers and experts must be as many as the model's."""
        name, layer = split_layer(key)
        stack = stack_shape(self._rows[name], self.architecture)[len(layer) :]
        shape = self._checkpoint.shape(key)
        layers = self.architecture.layers
        if shape[: len(stack)] != stack or (layer and layer[0] >= layers):
            raise CheckpointError(
                f"{self.folder}: {key} of shape {shape} is not of a model of {layers} layers"
                + (f" and {stack[-1]} experts." if self._rows[name].per_expert else ".")
            )
