"""The process that measures cases of one part; it tells each row as soon as there is one.

    python -m tools.bench.on_gpu.child MODULE --events FILE --until EPOCH --folder DIR CASE...

It ends with the first case that fails, and after one that left memory taken: whoever started it
starts another for the rest.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tools.bench.on_gpu.place import NotHere, Place

# What may stay allocated between cases, of libraries' workspaces and caches: a fresh process costs
# more than a little room.
LEFT_BYTES = 3 * 2**30
# After the deadline, at which the parent ends it.
LATE_SECONDS = 5.0


def main() -> None:
    """Measure the cases named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--smaller", type=int, default=0)
    parser.add_argument("--parent", type=int, help="end with it; this process leads its own group")
    parser.add_argument("--rehearse", action="store_true")
    chosen = parser.parse_args()
    if chosen.rehearse:
        # Megatron would take Transformer Engine's Adam, which wants a GPU, for all optimizers.
        sys.modules["transformer_engine"] = None  # type: ignore[assignment]
    if chosen.parent is not None:
        threading.Thread(target=_watch, args=(chosen.parent, chosen.until), daemon=True).start()
    place = Place(chosen.rehearse, chosen.until, chosen.folder, chosen.smaller)
    with open(chosen.events, "a", encoding="utf-8") as events:
        for case in chosen.cases:
            if not _measured(chosen.module, case, place, events):
                _leave(1)
            if _taken() > LEFT_BYTES:
                break
    _leave(0)


def _leave(status: int) -> NoReturn:
    """End at once: what libraries do at exit (communicators, threads) can hang or fail, and nothing
    needs it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _watch(parent: int, until: float) -> None:
    """End this process and all that it started once `parent` is gone, which cannot end it then, or
    has let the deadline pass."""
    while os.getppid() == parent and time.time() < until + LATE_SECONDS:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _measured(module: str, case: str, place: Place, events: TextIO) -> bool:
    """Measure one case; whether the process is fit for another."""
    _tell(events, case, "begin")
    try:
        for row in importlib.import_module(module).measure(case, place):
            _tell(events, case, "row", name=row.name, values=dict(row.values))
    except NotHere as reason:
        _tell(events, case, "not run", why=str(reason))
        return True
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        _tell(events, case, "failed", why=last, out_of_memory=out_of_memory)
        traceback.print_exc()
        return False
    _tell(events, case, "done")
    return True


def _tell(events: TextIO, case: str, event: str, **more: Any) -> None:
    told = {"event": event, "case": case, "at": time.time(), **more}
    events.write(json.dumps(told) + "\n")
    events.flush()


def _taken() -> int:
    """Bytes of the GPU that the last case left taken."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    # Wrapped models and their hooks refer to each other in circles.
    gc.collect()
    torch.cuda.empty_cache()
    taken: int = torch.cuda.memory_allocated()
    return taken


if __name__ == "__main__":
    main()
