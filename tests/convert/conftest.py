from __future__ import annotations

from tests.models.conftest import megatron

__all__ = ["megatron"]
