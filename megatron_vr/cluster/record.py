"""Which jobs were submitted for a run: a small file beside their scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from megatron_vr.cluster.job import RunFiles
from megatron_vr.errors import StageError
from megatron_vr.traces.durable import write_durably


@dataclass(frozen=True)
class Submission:
    """Slurm's number of a job, and when it was given (seconds since 1970)."""

    id: int
    at: float


Record = Mapping[str, tuple[Submission, ...]]


def read_record(files: RunFiles) -> dict[str, tuple[Submission, ...]]:
    """The submissions of each job by its name, oldest first; empty before the first one.

    Raises StageError where the file is damaged.
    """
    try:
        content = json.loads(files.record.read_text(encoding="utf-8"))
        return {name: tuple(Submission(**one) for one in all_) for name, all_ in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise StageError(
            f"{files.record} is damaged ({error}); move it away and end the run's jobs (scancel)"
        ) from None


def add_submission(files: RunFiles, name: str, submission: Submission) -> None:
    """Keep, durably, that `submission` is the newest of job `name`."""
    record = read_record(files)
    record[name] = (*record.get(name, ()), submission)
    content = {name: [asdict(one) for one in all_] for name, all_ in record.items()}
    files.folder.mkdir(parents=True, exist_ok=True)
    write_durably(files.record, json.dumps(content, indent=1) + "\n")
