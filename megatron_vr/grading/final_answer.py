"""Where in a text the final answer stands. Pure."""

from __future__ import annotations

from megatron_vr.problems.stratos import last_boxed


def final_answer(text: str) -> str | None:
    r"""The last `\boxed{…}`, else the last line that is not blank, else None.

    A box is returned as `\boxed{…}`, so that what is inside is read as LaTeX and a line is not.
    """
    inside = last_boxed(text)
    if inside is not None:
        return f"\\boxed{{{inside}}}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None
