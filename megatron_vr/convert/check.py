"""Whether two folders, Hugging Face or Megatron, hold the same model: one page, one verdict."""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_vr.convert.compare import Compared, compare_tensors
from megatron_vr.convert.dist_reader import CONTENTS
from megatron_vr.convert.hf_reader import HFWeights, Tensors, check_tensors
from megatron_vr.convert.hf_writer import companions
from megatron_vr.convert.logits import (
    Compute,
    LogitGap,
    gap,
    hf_logits,
    megatron_logits,
    prompt_ids,
)
from megatron_vr.convert.maps import expected_tensors
from megatron_vr.convert.megatron_weights import MegatronWeights
from megatron_vr.convert.progress import transfer_bar
from megatron_vr.convert.to_hf import origin_of
from megatron_vr.convert.to_megatron import COMPANIONS
from megatron_vr.models.architecture import Architecture, read_architecture


@dataclass(frozen=True)
class Model:
    """A stored model: its folder, the files that are no weights, and its tensors."""

    folder: Path
    kind: str  # "Hugging Face" or "Megatron"
    side: Path
    architecture: Architecture
    tensors: Tensors

    def precisions(self) -> Counter[str]:
        """How many tensors are stored in each precision."""
        names = self.tensors.names()
        return Counter(str(self.tensors.dtype(name)).removeprefix("torch.") for name in names)

    def logits(self, prompts: Sequence[torch.Tensor], compute: Compute) -> list[torch.Tensor]:
        """Logits of each prompt, by the library the folder is for."""
        if self.kind == "Megatron":
            return megatron_logits(self.folder, self.architecture, prompts, compute)
        return hf_logits(self.folder, prompts, compute)


def open_model(folder: str | Path, base: str | Path | None, allow_pickle: bool) -> Model:
    """The model in `folder`. `base` is the Hugging Face folder of a Megatron checkpoint that does
    not carry one. Raises CheckpointError where it is damaged or not the model of its config."""
    path = Path(folder).absolute()
    if (path / CONTENTS).exists():
        side = origin_of(path, None if (path / COMPANIONS).is_dir() else base)
        architecture = read_architecture(side)
        return Model(path, "Megatron", side, architecture, MegatronWeights(path, architecture))
    architecture = read_architecture(path)
    weights = HFWeights(path, allow_pickle=allow_pickle)
    check_tensors(weights, architecture)
    return Model(path, "Hugging Face", path, architecture, weights)


@dataclass(frozen=True)
class Verdict:
    """What a comparison of A and B found."""

    a: str
    b: str
    kinds: tuple[str, str]
    precisions: tuple[dict[str, int], dict[str, int]]
    architecture: tuple[str, ...]  # fields that differ, in words
    tensors: tuple[Compared, ...]
    side_files: tuple[str, ...]  # what differs, in words
    side_equal: int
    logits: LogitGap | None

    @property
    def same(self) -> bool:
        """Whether A and B are one model. Side files are told, and do not decide."""
        faulty = any(tensor.faulty for tensor in self.tensors)
        agree = self.logits is None or self.logits.acceptable
        return not self.architecture and not faulty and agree

    def counts(self) -> Counter[str]:
        """How many tensors are in each state."""
        return Counter(tensor.state for tensor in self.tensors)

    def as_json(self) -> dict[str, Any]:
        """All of it, with the tensors that are not equal by name."""
        content = asdict(self)
        content["tensors"] = dict(self.counts())
        content["not_equal"] = [asdict(t) for t in self.tensors if t.state != "equal"]
        return content | {"same": self.same}


def check(
    a: str | Path,
    b: str | Path,
    *,
    base: str | Path | None = None,
    prompts: Sequence[str] | None = None,
    with_logits: bool = True,
    compute: Compute | None = None,
    allow_pickle: bool = False,
) -> Verdict:
    """Compare the models in `a` and `b`, tensor by tensor, then by their logits on `prompts`.

    The logits need one model at a time in memory; without `with_logits` memory is that of a few
    tensors. `compute` is the precision of the logits: by default the one both are stored in.
    """
    one, other = open_model(a, base, allow_pickle), open_model(b, base, allow_pickle)
    differing = _architectures(one.architecture, other.architecture)
    expected = expected_tensors(one.architecture)
    total = sum(
        torch.Size(shape).numel() * one.tensors.dtype(name).itemsize
        for name, shape in expected.items()
    )
    with transfer_bar("comparing", total) as advance:
        tensors = compare_tensors(one.tensors, other.tensors, list(expected), advance)
    equal, side = _side_files(one.side, other.side)
    comparable = with_logits and not differing
    return Verdict(
        a=str(one.folder),
        b=str(other.folder),
        kinds=(one.kind, other.kind),
        precisions=(dict(one.precisions()), dict(other.precisions())),
        architecture=differing,
        tensors=tuple(tensors),
        side_files=side,
        side_equal=equal,
        logits=_logits(one, other, prompts, compute) if comparable else None,
    )


def _logits(
    one: Model, other: Model, texts: Sequence[str] | None, compute: Compute | None
) -> LogitGap:
    ids, tokenised = prompt_ids(one.side, texts, one.architecture)
    stored = set(one.precisions()) | set(other.precisions())
    chosen: Compute = compute or ("float32" if stored == {"float32"} else "bfloat16")
    return gap(one.logits(ids, chosen), other.logits(ids, chosen), chosen, tokenised)


def _architectures(a: Architecture, b: Architecture) -> tuple[str, ...]:
    first, second = asdict(a), asdict(b)
    return tuple(
        f"{name}: {first[name]} and {second[name]}" for name in first if first[name] != second[name]
    )


def _side_files(a: Path, b: Path) -> tuple[int, tuple[str, ...]]:
    first, second = ({path.name: path for path in companions(side)} for side in (a, b))
    told = [f"{name} is only in A" for name in sorted(first.keys() - second.keys())]
    told += [f"{name} is only in B" for name in sorted(second.keys() - first.keys())]
    shared = sorted(first.keys() & second.keys())
    differing = [name for name in shared if not filecmp.cmp(first[name], second[name], False)]
    told += [f"{name} differs" for name in differing]
    return len(shared) - len(differing), tuple(told)
