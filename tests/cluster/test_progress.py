"""progress.json: how far a stage is, kept beside the work and never in its way."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.plan import make_plan
from megatron_vr.algorithm.progress import Bar, Talk, Whole
from megatron_vr.algorithm.progress_file import Counted, StageProgress, read_progress
from megatron_vr.algorithm.sampling_parts import PartSampler, missing_parts
from megatron_vr.algorithm.stages.train import _Steps
from megatron_vr.config.load import load_settings
from megatron_vr.errors import StageError
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from megatron_vr.traces.fingerprint import make_fingerprint
from megatron_vr.traces.store import PROGRESS, StageFolder
from megatron_vr.training.metrics import StepMetrics
from tests.algorithm.scripted_sampling import Samples, Scripted, answer
from tests.algorithm.tiny_run import TOY


def left_by(folder: Path) -> StageProgress:
    found = read_progress(folder)
    assert found is not None
    return found


def test_a_bar_leaves_what_was_done_of_all(tmp_path: Path) -> None:
    whole = Whole(tmp_path, total=30, before=10, others=lambda: 3)
    with Talk(True).bar("a stage", 15, "traces", whole) as bar:
        bar(4)
        bar.earlier(2)
        bar.tokens(500)
        bar(1)
    found = left_by(tmp_path)
    assert (found.done, found.total, found.unit) == (10 + 4 + 2 + 1 + 3, 30, "traces")
    assert (found.began_done, found.made, found.tokens) == (12, 5, 500)
    assert os.listdir(tmp_path) == [PROGRESS]


def test_a_stage_that_fails_leaves_how_far_it_came(tmp_path: Path) -> None:
    with (
        pytest.raises(StageError),
        Talk(True).bar("a stage", 15, "steps", Whole(tmp_path, 15)) as bar,
    ):
        bar(7)
        raise StageError("no")
    assert left_by(tmp_path).done == 7


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    with Talk(False).bar("a stage", 15, "steps", Whole(tmp_path, 15)) as bar:
        bar(7)
    assert os.listdir(tmp_path) == []


def test_rates_are_of_this_attempt_and_the_rest_takes_as_long() -> None:
    # 60 of 100 were there; 20 more came in 10 s, 5 of them made here from 400 tokens.
    found = StageProgress(80, 100, "traces", 1000.0, 60, 1010.0, tokens=400, made=5)
    assert found.per_second == pytest.approx(2.0)
    assert found.tokens_per_second == pytest.approx(160.0)
    assert found.seconds_left == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("done", "at", "total"), [(60, 1010.0, 100), (80, 1000.0, 100), (60, 1000.0, None)]
)
def test_nothing_is_told_of_speed_before_something_was_done(
    done: int, at: float, total: int | None
) -> None:
    found = StageProgress(done, total, "traces", 1000.0, 60, at)
    assert found.per_second is None
    assert found.tokens_per_second is None
    assert found.seconds_left is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"done": 1}', '"text"', '{"other": 1}'])
def test_a_damaged_file_is_no_progress(tmp_path: Path, text: str) -> None:
    (tmp_path / PROGRESS).write_text(text)
    assert read_progress(tmp_path) is None


def test_no_file_is_no_progress(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "nothing") is None


def test_a_file_that_cannot_be_written_is_told_once_and_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{PROGRESS}.tmp").mkdir()
    with Talk(True).bar("a stage", 15, "steps", Whole(tmp_path, 15)) as bar:
        bar(15)
    told = capfd.readouterr().err
    assert told.count("cannot be written") == 1
    assert str(tmp_path / PROGRESS) in told
    assert "status" in told


def test_a_file_system_that_hangs_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_vr.algorithm.progress_file.LAST_SECONDS", 0.2)
    pipe = tmp_path / f"{PROGRESS}.tmp"
    os.mkfifo(pipe)  # who opens it to write waits for a reader
    with Talk(True).bar("a stage", 15, "steps", Whole(tmp_path, 15)) as bar:
        bar(15)
    writer = next(thread for thread in threading.enumerate() if thread.name == "progress")
    assert writer.is_alive() and writer.daemon
    released = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer.join(30)
    os.close(released)
    assert not writer.is_alive()


def stage(path: Path, steps: int = 1) -> StageFolder:
    return StageFolder(path / "stage", make_fingerprint("train", {"steps": steps}, {}))


def test_it_is_neither_a_result_nor_somebody_elses(tmp_path: Path) -> None:
    first = stage(tmp_path)
    first.open()
    for name in (PROGRESS, f"{PROGRESS}.tmp"):
        (first.path / name).write_text("{}")
    # Nothing was made under the old settings, so the new ones take the folder.
    stage(tmp_path, steps=2).open()
    assert (first.path / PROGRESS).exists()
    assert not (first.path / f"{PROGRESS}.tmp").exists()
    # Remains of a stage without its fingerprint are no stranger's files.
    (first.path / "fingerprint.json").unlink()
    stage(tmp_path, steps=3).open()
    assert os.listdir(first.path) == ["fingerprint.json"]


def test_generations_of_an_earlier_attempt_count_as_done_and_not_for_the_speed(
    tmp_path: Path,
) -> None:
    folder = stage(tmp_path)
    folder.open()
    first = Scripted()
    PartSampler(missing_parts(folder, Samples()), lambda amount: None).run(
        first, lambda: len(first.finished) == 7
    )
    counted = Counted("samples", 20, 0, lambda: 0)
    bar = Bar(lambda amount: None, counted)
    second, left = Scripted(), missing_parts(folder, Samples())
    sampler = PartSampler(left, bar, earlier=bar.earlier, tokens=bar.tokens)
    sampler.run(second, lambda: False)
    found = counted.progress()
    assert found.made == len(second.finished) < 20
    assert found.done == sum(part.generations for part in left)
    assert found.began_done == found.done - found.made > 0
    assert found.tokens == sum(len(answer(name).token_ids) for name in second.finished)


def test_parts_made_by_other_processes_count(tmp_path: Path) -> None:
    settings = load_settings(TOY, [f"run.folder={tmp_path}", "comparisons={}"])
    node = next(node for node in make_plan(settings, {}).nodes if node.stage == "sample")
    node.folder.open()
    samples = Samples()
    # Parts 0 and 3 were there; of 1, 2 and 4 the main one of two processes makes 1 and 4.
    for index in (0, 3):
        whole = [part for part in missing_parts(node.folder, samples) if part.index == index]
        PartSampler(whole, lambda amount: None).run(Scripted(), lambda: False)
    during: list[int] = []

    class Main(World):
        """The first of two processes, the other of which is played by the test."""

        def from_main(self, value: object) -> object:  # type: ignore[override]
            return value

    def look(span: range) -> None:
        if 8 in span:
            part = next(p for p in missing_parts(node.folder, Samples()) if p.index == 2)
            PartSampler([part], lambda amount: None).run(Scripted(), lambda: False)
            during.append(2)

    class Alone(Context):
        def meet(self, what: str) -> None:
            """The other process is not there."""

    context = Alone(Main(0, 2), Talk(True), Interrupt())
    context.sample_parts(node, Scripted(), Samples(hindrance=look), "samples")
    found = left_by(node.path)
    assert during == [2]
    assert (found.done, found.total, found.made, found.began_done) == (20, 20, 8, 8)


def test_steps_before_the_first_one_told_are_an_earlier_attempts() -> None:
    counted = Counted("steps", 100, 0, lambda: 0)
    steps = _Steps(Bar(lambda amount: None, counted))
    values = dict.fromkeys((field.name for field in fields(StepMetrics)), 0.0)
    for step in (41, 42, 43):
        values |= {"step": step, "tokens_per_second": 500.0, "seconds": 0.2}
        steps.told(StepMetrics(**values))  # type: ignore[arg-type]
    found = counted.progress()
    assert (found.done, found.began_done, found.made) == (43, 40, 3)
    assert found.tokens == 300


def test_the_file_is_json_that_says_its_units(tmp_path: Path) -> None:
    with Talk(True).bar("a stage", 3, "steps", Whole(tmp_path, 3)) as bar:
        bar(3)
    content = json.loads((tmp_path / PROGRESS).read_text())
    assert set(content) == {field.name for field in fields(StageProgress)}
