"""What needs a Hopper GPU and Transformer Engine: a command of its own, `make gpu-test`.

Without them the whole folder is one failure that says so. `--rehearse` runs the tests' programs on
the CPU instead, which shows nothing of a GPU.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.parallel.layout import (
    Layout,
    destroy,
    device_defaults,
    initialise,
    join_world,
)
from tests.gpu.limits import Limits
from tests.gpu.place import ON_GPU, REHEARSAL, Place, forget_fp8, missing
from tests.gpu.report import Report
from tests.gpu.reporter import REFUSAL, Reporter

HERE = Path(__file__).parent
# The files in the order in which they run: what everything else stands on first, so that a run
# without enough time has it. Those that are not named follow by name.
ORDER = ("start", "layers", "packs", "head", "weight_gradients", "fp8")

PLACE = pytest.StashKey[Place]()
REPORT = pytest.StashKey[Report]()
LIMITS = pytest.StashKey[Limits]()
WHY_NOT = pytest.StashKey["str | None"]()
LOST = pytest.StashKey[str]()

Measured = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tests/gpu")
    group.addoption(
        "--gpu-report", metavar="FILE", help="write what was measured as JSON, after each test"
    )
    group.addoption(
        "--gpu-seconds",
        metavar="N",
        type=float,
        help="tests that have not begun after N seconds fail as not run, and one that runs then "
        "is ended (default 240, and no limit with --rehearse)",
    )
    group.addoption(
        "--rehearse",
        action="store_true",
        help="run the programs on the CPU with plain layers; shows nothing of a GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_gpu(why): not to be rehearsed on a CPU")
    rehearsing = bool(config.getoption("--rehearse", default=False))
    config.stash[PLACE] = REHEARSAL if rehearsing else ON_GPU
    if rehearsing:
        # Before torch looks for any.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Megatron would take its AdamW, which needs a GPU, wherever it is installed.
        sys.modules["transformer_engine"] = None  # type: ignore[assignment]
    else:
        # Before CUDA begins.
        os.environ |= device_defaults(os.environ)
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[LIMITS] = Limits.of(worker["gpu_limits"])
        return
    # pytest-xdist would begin with the file that has the most tests.
    vars(config.option)["loadscopereorder"] = False
    seconds = config.getoption("--gpu-seconds", default=None)
    if seconds is None and not rehearsing:
        seconds = 240.0
    begun = Path(tempfile.mkdtemp(prefix="tests-gpu-"))
    config.stash[LIMITS] = Limits(time.monotonic(), seconds, begun)
    config.add_cleanup(lambda: shutil.rmtree(begun))
    file = config.getoption("--gpu-report", default=None)
    if file:
        config.stash[REPORT] = Report(Path(file).absolute(), rehearsing)
        config.stash[REPORT].write("cut off")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["gpu_limits"] = node.config.stash[LIMITS].plain()


class Refusal(pytest.Item):
    """The one failure where nothing can be tested."""

    def __init__(self, *, why: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.why = why

    def runtest(self) -> None:
        """Fail."""
        pytest.fail(self.why, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is told of."""
        return HERE, None, self.name


def why_not(config: pytest.Config) -> str | None:
    """Why nothing can be tested here; asked once."""
    if WHY_NOT not in config.stash:
        rehearsing = config.stash[PLACE].rehearsing
        config.stash[WHY_NOT] = None if rehearsing else missing()
    return config.stash[WHY_NOT]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where nothing can be tested, what the tests import may be missing too."""
    return True if collection_path.suffix == ".py" and why_not(config) is not None else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    own = [item for item in items if HERE in item.path.parents]
    others = [item for item in items if item not in own]
    # Asked while files were looked for; not where none of this folder's was.
    why = why_not(config) if own else config.stash.get(WHY_NOT, None)
    if why is not None:
        told = (
            "tests/gpu needs a GPU of compute capability 9.0 or above and Transformer Engine: "
            f"{why}. Nothing was tested; --rehearse runs the programs on the CPU"
        )
        items[:] = [*others, Refusal.from_parent(session, name=REFUSAL, why=told)]
        return
    items[:] = [*others, *sorted(own, key=_rank)]
    for item in own:
        for marker in item.iter_markers("needs_gpu"):
            if config.stash[PLACE].rehearsing:
                item.add_marker(pytest.mark.skip(reason=f"needs the GPU: {marker.args[0]}"))


def _rank(item: pytest.Item) -> int:
    """Of the item's file in ORDER."""
    name = item.path.stem.removeprefix("test_")
    return ORDER.index(name) if name in ORDER else len(ORDER)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends the process of a test that takes too long: a kernel that hangs does not return."""
    if HERE in item.path.parents:
        seconds = item.config.stash[LIMITS].of_a_test()
        item.add_marker(pytest.mark.timeout(seconds, method="thread"), append=False)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture, which may be a training."""
    lost = item.config.stash.get(LOST, None)
    why = f"not run: the device failed in {lost}" if lost else None
    why = why or item.config.stash[LIMITS].fault(item.nodeid)
    if why is not None:
        pytest.fail(why, pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    if REPORT in session.config.stash:
        session.config.pluginmanager.register(Reporter(session.config.stash[REPORT]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[PLACE].rehearsing:
        terminalreporter.write_line(
            "A REHEARSAL: programs ran on the CPU with plain layers and without FP8. "
            "Nothing about a GPU was shown."
        )
    if REPORT in config.stash:
        terminalreporter.write_line(f"report: {config.stash[REPORT].file}")


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Place:
    """Where to compute."""
    return request.config.stash[PLACE]


@pytest.fixture(scope="session", autouse=True)
def _megatron(place: Place) -> Iterator[None]:
    """Megatron's process groups for this process alone."""
    join_world(timeout_minutes=2)
    initialise(Layout(), seed=1, device=place.device)
    yield
    destroy()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """`measured(name=number, ...)` keeps numbers for the report, also of a test that then fails."""

    def keep(**numbers: Any) -> None:
        request.node.user_properties.extend(numbers.items())

    return keep


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, place: Place, measured: Measured) -> Iterator[None]:
    """Begin with the device's memory free and without FP8's state of other tests."""
    if place.device == "cpu":
        yield
        return
    import torch

    torch.cuda.reset_peak_memory_stats()
    yield
    try:
        torch.cuda.synchronize()
        measured(peak_memory_mib=round(torch.cuda.max_memory_allocated() / 2**20, 1))
        forget_fp8()
        gc.collect()
        torch.cuda.empty_cache()
    except RuntimeError:
        # Nothing works in this process any more.
        request.config.stash[LOST] = request.node.nodeid
        raise
