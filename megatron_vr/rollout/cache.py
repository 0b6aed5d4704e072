"""A key-value cache with room to grow."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A `DynamicLayer` that writes into spare room.

    The stock layer copies all keys and values at every token; this one only when its room, which
    never exceeds `limit` positions, runs out. `keys` and `values` are views of the part in use.
    """

    MARGIN = 64

    is_initialized: bool
    keys: Tensor
    values: Tensor
    _key_room: Tensor
    _value_room: Tensor

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states `[rows, heads, new, dim]` and return all keys and values so far."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._fill(key_states[:, :, :0], value_states[:, :, :0], key_states.shape[-2])
            self.is_initialized = True
        seen = self.keys.shape[-2]
        total = seen + key_states.shape[-2]
        if total > self._key_room.shape[-2]:
            self._fill(self.keys, self.values, total)
        self._key_room[:, :, seen:total] = key_states
        self._value_room[:, :, seen:total] = value_states
        self.keys, self.values = self._key_room[:, :, :total], self._value_room[:, :, :total]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in that order; a row may be taken more than once."""
        keys, values = self.keys[indices], self.values[indices]
        rows, _, seen, _ = keys.shape
        if rows > self._key_room.shape[0]:
            self._fill(keys, values, seen)
            return
        # Fresh memory costs more than the copy: the rows move up inside the room there is.
        self._key_room, self._value_room = self._key_room[:rows], self._value_room[:rows]
        self._key_room[:, :, :seen], self._value_room[:, :, :seen] = keys, values
        self.keys, self.values = self._key_room[:, :, :seen], self._value_room[:, :, :seen]

    def _fill(self, keys: Tensor, values: Tensor, needed: int) -> None:
        """Move to new room for `needed` positions and a margin; `keys` and `values` come first."""
        room = max(needed, min(self.limit, needed + max(self.MARGIN, needed // 4)))
        rows, heads, seen, _ = keys.shape
        self._key_room = keys.new_empty(rows, heads, room, keys.shape[-1])
        self._value_room = values.new_empty(rows, heads, room, values.shape[-1])
        self._key_room[:, :, :seen] = keys
        self._value_room[:, :, :seen] = values
        self.keys, self.values = self._key_room[:, :, :seen], self._value_room[:, :, :seen]


def roomy_cache(config: PretrainedConfig, limit: int) -> DynamicCache:
    """The cache that `config`'s model asks for, its full-attention layers with room for `limit`.

    Layers of other kinds (sliding windows, linear attention) stay as transformers makes them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer(limit) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
