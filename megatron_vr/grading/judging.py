"""Asking one verifier about one answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from megatron_vr.errors import VRError
from megatron_vr.grading import verdict as reasons
from megatron_vr.grading.verdict import Verdict
from megatron_vr.grading.verifier import load_verifier

LONGEST_DETAIL = 200

_KNOWN = {
    reasons.WRONG,
    reasons.NO_ANSWER,
    reasons.UNPARSABLE,
    reasons.TIMED_OUT,
    reasons.RAISED,
}


def judge(path: str, parameters: Mapping[str, Any], expected: str, answer_text: str) -> Verdict:
    """The verdict of the verifier at `path`; what it raises becomes the verdict's reason.

    Raises only the package's own errors, with which a verifier refuses the problem itself.
    """
    verifier = load_verifier(path)
    started = time.perf_counter()
    try:
        accepted, reason = _outcome(verifier(parameters, expected, answer_text))
    except VRError:
        raise
    except (Exception, SystemExit) as error:  # a verifier may be anyone's
        detail = f"{type(error).__name__}: {error}"[:LONGEST_DETAIL]
        accepted, reason = False, f"{reasons.RAISED}: {detail}"
    return Verdict(accepted, reason, time.perf_counter() - started)


def _outcome(returned: object) -> tuple[bool, str]:
    accepted, detail = returned if isinstance(returned, tuple) else (returned, "")
    if not isinstance(accepted, bool | np.bool_) or not isinstance(detail, str):
        raise TypeError(f"a verifier returns a bool or (bool, str), this one {returned!r}")
    if accepted:
        return True, reasons.ACCEPTED
    if detail.partition(":")[0] in _KNOWN:
        return False, detail
    return False, f"{reasons.WRONG}: {detail}" if detail else reasons.WRONG
