"""What needs a Hopper GPU and Transformer Engine: a command of its own, `make gpu-test`.

Without them the whole folder is one failure that says so. `--rehearse` runs the tests' programs on
the CPU instead, which shows nothing of a GPU.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.parallel.layout import Layout, destroy, initialise, join_world
from tests.gpu.place import ON_GPU, REHEARSAL, Place, forget_fp8, missing
from tests.gpu.report import Report

HERE = Path(__file__).parent
# Compiling fused kernels counts; a kernel that never ends must not take all the time there is.
SECONDS_OF_A_TEST = 120

PLACE = pytest.StashKey[Place]()
REPORT = pytest.StashKey[Report]()
BEGAN = pytest.StashKey[float]()
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
        default=240.0,
        help="tests that have not begun after N seconds fail as not run (default 240)",
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
    config.stash[BEGAN] = time.monotonic()
    if rehearsing:
        # Before torch looks for any.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    file = config.getoption("--gpu-report", default=None)
    if file and not hasattr(config, "workerinput"):
        config.stash[REPORT] = Report(Path(file).absolute(), rehearsing)
        config.stash[REPORT].write("cut off")


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    own = [item for item in items if HERE in item.path.parents]
    if not own:
        return
    rehearsing = config.stash[PLACE].rehearsing
    why = None if rehearsing else missing()
    if why is not None:
        told = (
            "tests/gpu needs a GPU of compute capability 9.0 or above and Transformer Engine: "
            f"{why}. Nothing was tested; --rehearse runs the programs on the CPU"
        )
        items[:] = [item for item in items if item not in own]
        items.append(Refusal.from_parent(session, name="tests/gpu can run here", why=told))
        if REPORT in config.stash:
            config.stash[REPORT].reason = told
        return
    for item in own:
        item.add_marker(pytest.mark.timeout(SECONDS_OF_A_TEST, method="thread"))
        for marker in item.iter_markers("needs_gpu"):
            if rehearsing:
                item.add_marker(pytest.mark.skip(reason=f"needs the GPU: {marker.args[0]}"))


def pytest_sessionstart(session: pytest.Session) -> None:
    if REPORT in session.config.stash:
        session.config.pluginmanager.register(_Reporter(session.config.stash[REPORT]))


class _Reporter:
    """Tells the report what pytest tells."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: dict[str, list[pytest.TestReport]] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._report.begins(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seen = self._seen.setdefault(report.nodeid, [])
        seen.append(report)
        if report.when == "setup" and report.passed:
            return
        failed = [phase for phase in seen if phase.failed]
        skipped = [phase for phase in seen if phase.skipped]
        passed = "rehearsed" if self._report.rehearsal else "passed"
        outcome = "failed" if failed else "needs the GPU" if skipped else passed
        said = None
        if failed or skipped:
            lines = str((failed or skipped)[0].longreprtext).strip().splitlines()
            said = lines[-1] if lines else None
        seconds = sum(phase.duration for phase in seen)
        self._report.ends(report.nodeid, outcome, seconds, said, dict(report.user_properties))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._report.write("passed" if exitstatus == 0 else f"failed (exit code {exitstatus})")


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
    config = request.config
    if LOST in config.stash:
        pytest.fail(f"not run: the device failed in {config.stash[LOST]}", pytrace=False)
    limit = config.getoption("--gpu-seconds", default=240.0)
    if time.monotonic() - config.stash[BEGAN] > limit and not place.rehearsing:
        pytest.fail(f"not run: --gpu-seconds {limit:g} are over", pytrace=False)
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
        config.stash[LOST] = request.node.nodeid
        raise
