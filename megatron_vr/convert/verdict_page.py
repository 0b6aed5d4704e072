"""The page on which `convert check` says what it found."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vr.convert.check import Verdict
from megatron_vr.convert.logits import LogitGap

SHOWN = 12


def page(verdict: Verdict) -> str:
    """The verdict in Markdown, readable as it stands."""
    return "\n".join(_lines(verdict)) + "\n"


def _lines(v: Verdict) -> Iterator[str]:
    yield f"# {'The same model' if v.same else 'NOT the same model'}"
    yield ""
    for name, folder, kind, precisions in zip("AB", (v.a, v.b), v.kinds, v.precisions, strict=True):
        stored = ", ".join(f"{count} {dtype}" for dtype, count in sorted(precisions.items()))
        yield f"- {name}: {folder} ({kind}; tensors: {stored})"
    yield ""
    yield from _tensors(v)
    if v.architecture:
        yield "- **architecture**: differs"
        yield from (f"    - {line}" for line in v.architecture)
    else:
        yield "- **architecture**: the same"
    yield from _logits(v.logits)
    yield f"- **side files**: {v.side_equal} equal" + (", but" if v.side_files else "")
    yield from (f"    - {line}" for line in v.side_files)


def _tensors(v: Verdict) -> Iterator[str]:
    counts = v.counts()
    equal, rounded = counts["equal"], counts["rounded"]
    told = [f"{equal} of {len(v.tensors)} equal bit for bit"]
    if rounded:
        told.append(f"{rounded} equal after rounding to the narrower precision")
    yield f"- **tensors**: {', '.join(told)}"
    faulty = [tensor for tensor in v.tensors if tensor.faulty]
    for tensor in faulty[:SHOWN]:
        largest = f", by {tensor.difference:.3g} at most" if tensor.difference else ""
        yield f"    - {tensor.name}: {tensor.state} ({tensor.detail}{largest})"
    if len(faulty) > SHOWN:
        yield f"    - and {len(faulty) - SHOWN} more"


def _logits(found: LogitGap | None) -> Iterator[str]:
    if found is None:
        yield "- **logits**: not compared"
        return
    prompts = "prompts" if found.tokenised else "random tokens (there is no tokenizer)"
    yield (
        f"- **logits** ({found.compute}, {found.positions} positions of {prompts}): "
        f"{'agree' if found.acceptable else 'DISAGREE'}; difference {found.mean_abs:.2e} on "
        f"average, {found.max_abs:.2e} at most, of logits that spread by {found.spread:.2g}; "
        f"the same token is preferred at {found.top1:.1%}"
    )
