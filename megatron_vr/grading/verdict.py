"""What grading says about one answer."""

from __future__ import annotations

from dataclasses import dataclass

ACCEPTED = "accepted"
WRONG = "wrong"
NO_ANSWER = "no answer"
UNPARSABLE = "unparsable"
TIMED_OUT = "timed out"
CRASHED = "verifier crashed"
RAISED = "verifier raised"


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is in Y_x, and why (not).

    `reason` is one of this module's constants; after "wrong", "unparsable" and "verifier raised"
    a colon and details may follow. "timed out", "verifier crashed" and "verifier raised" mean
    that the verifier could not decide. `seconds` is the time the verifier took, 0 where it was
    not asked or crashed.
    """

    accepted: bool
    reason: str
    seconds: float
