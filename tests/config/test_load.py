from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_vr.config.checks import check_settings
from megatron_vr.config.comparisons import arms
from megatron_vr.config.evaluate_settings import EvaluateSettings
from megatron_vr.config.load import load_as, load_settings
from megatron_vr.errors import SettingsError

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
TOY = ROOT / "examples" / "toy.yaml"


def written(tmp_path: Path, *lines: str) -> Path:
    """A settings file that adds `lines` to the demo's."""
    path = tmp_path / "settings.yaml"
    path.write_text("\n".join([f"extends: {TOY}", *lines]) + "\n")
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    settings = load_settings(path)
    split = settings.parallel
    # Where jobs run it there is Transformer Engine; tests/cluster looks at their numbers of ranks.
    ranks = split.tensor * split.pipeline * split.context
    check_settings(settings, ranks, on_gpu=True, installed_here=False)
    assert arms(settings)


def test_an_unknown_key_names_file_line_and_the_nearest_key(tmp_path: Path) -> None:
    path = written(tmp_path, "train:", "  batch_sise: 3")
    assert complaint(path) == (
        f"{path}:3: unknown setting `train.batch_sise`; did you mean `train.batch_size`?"
    )


def test_a_key_in_the_wrong_place_names_the_right_one(tmp_path: Path) -> None:
    path = written(tmp_path, "estimator: gml")
    assert "did you mean `weights.estimator`?" in complaint(path)


def test_an_ill_typed_value_names_key_value_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, "", "train:", "  batch_size: many")
    message = complaint(path)
    assert message.startswith(f"{path}:4: `train.batch_size` is 'many': ")
    assert "integer" in message


def test_an_unknown_choice_lists_the_valid_ones(tmp_path: Path) -> None:
    message = complaint(written(tmp_path, "weights: {estimator: acc}"))
    assert "'accuracy', 'gml' or 'likelihood'" in message


def test_a_fault_inside_a_source_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "problems:", "  test:", "    - kind: toy", "      cuont: 3")
    message = complaint(path)
    assert f"{path}:5: unknown setting `problems.test.0.cuont`" in message
    assert "did you mean `problems.test.0.count`?" in message


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {batch_size: 0}", "wieghts: {}")
    assert len(complaint(path).splitlines()) == 2


def test_an_override_is_laid_over_the_file() -> None:
    settings = load_settings(TOY, ["train.steps=7", "weights={estimator: gml}"])
    assert settings.train.steps == 7
    assert settings.weights.estimator == "gml"
    assert settings.weights.ratio == "geometric-mean"


def test_a_wrong_override_is_quoted() -> None:
    assert "override 'train.stpes=7'" in complaint(TOY, "train.stpes=7")
    assert "is not key=value" in complaint(TOY, "train.steps")


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    assert "`seed` is given twice" in complaint(written(tmp_path, "run:", "  seed: 1", "  seed: 2"))


def test_a_missing_file_and_bad_yaml_are_one_clear_error(tmp_path: Path) -> None:
    assert "cannot read the settings file" in complaint(tmp_path / "absent.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("run: [")
    assert "is not valid YAML" in complaint(bad)


def test_resolved_settings_load_again_as_themselves(tmp_path: Path) -> None:
    settings = load_settings(TOY)
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(path) == settings


def test_yaml_never_makes_objects(tmp_path: Path) -> None:
    path = written(tmp_path, "run: !!python/object/apply:os.system ['true']")
    assert "is not valid YAML" in complaint(path)


@pytest.mark.parametrize(
    ("overrides", "processes", "told"),
    [
        (["parallel.tensor=2"], 3, "does not divide the 3 processes"),
        (["parallel.sequence=true"], 1, "needs parallel.tensor > 1"),
        (
            ["parallel.context=2", "train.micro_batch_tokens=4098"],
            2,
            "train.micro_batch_tokens is 4098, which is not a multiple of 4",
        ),
        (
            [
                *("model.fp8=blockwise", "parallel.tensor=2", "parallel.sequence=true"),
                "train.micro_batch_tokens=4098",
            ],
            2,
            r"train.micro_batch_tokens is 4098, but .* a multiple of 256, 128 for each of 2 ranks "
            r"that share one; use 4352",
        ),
        (
            ["model.fp8=tensorwise", "parallel.context=2", "train.micro_batch_tokens=4100"],
            2,
            "a multiple of 32, 16 for each of 2 ranks that share one; use 4128",
        ),
        (["evaluation.problems=validation", "problems.validation=[]"], 1, "has no source"),
        (["traces.sampler=policy", "weights.estimator=gml"], 1, "rollouts' own verdicts"),
        (["policy.start=last"], 1, "nothing comes before"),
        (
            [
                "traces.max_new_tokens=90",
                "traces.drop_longer_than=80",
                "train.micro_batch_tokens=70",
            ],
            1,
            "train.micro_batch_tokens is 70",
        ),
        (["train.steps=50"], 1, "train.optimizer.warmup_steps is 50, but train.steps is 50"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    overrides: list[str], processes: int, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        check_settings(load_settings(TOY, overrides), processes, on_gpu=False)


def test_a_comparison_is_checked_like_the_run(tmp_path: Path) -> None:
    path = written(tmp_path, "comparisons: {mine: {weights.estimatr: gml}}")
    with pytest.raises(SettingsError, match=r"comparisons\.mine.*mean `weights\.estimator`"):
        arms(load_settings(path))
    taken = written(tmp_path, "comparisons: {start: {}}")
    with pytest.raises(SettingsError, match="`start` is taken"):
        arms(load_settings(taken))


def test_a_nested_comparison_leaves_its_siblings_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "comparisons: {mine: {traces: {sampler: policy}}}")
    row = arms(load_settings(path))["mine"]
    assert row.traces.sampler == "policy"
    assert row.traces.max_new_tokens == load_settings(TOY).traces.max_new_tokens


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{mine: {run.seed: 7}}", "changes `run`"),
        ("{mine: {parallel.tensor: 2}}", "changes `parallel`"),
        ("{../mine: {}}", "becomes a folder"),
    ],
)
def test_a_comparison_that_is_no_row_of_this_run_is_refused(
    tmp_path: Path, row: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        arms(load_settings(written(tmp_path, f"comparisons: {row}")))


def test_a_file_that_extends_itself_or_is_no_text_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(SettingsError, match=r"circle: .*a\.yaml → .*b\.yaml → .*a\.yaml"):
        load_settings(tmp_path / "a.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"run: {folder: caf\xe9}\n")
    with pytest.raises(SettingsError, match=r"latin\.yaml is not UTF-8"):
        load_settings(tmp_path / "latin.yaml")


def test_the_shipped_settings_of_an_evaluation_are_valid_and_a_misspelt_one_is_named() -> None:
    path = TOY.parent / "evaluate" / "vllm.yaml"
    settings = load_as(EvaluateSettings, path, ["samples=4"])
    assert (settings.engine.kind, settings.samples) == ("vllm", 4)
    with pytest.raises(SettingsError, match=r"unknown setting `sampling\.top_k`.*top_p"):
        load_as(EvaluateSettings, path, ["sampling.top_k=3"])
