"""What `doctor` finds installed."""

from __future__ import annotations

import io
from importlib import metadata

from rich.console import Console

from megatron_vr.report.doctor import examine, print_findings


def test_versions_are_the_installed_ones() -> None:
    found = {finding.name: finding.found for finding in examine()}
    assert found["torch"] == metadata.version("torch")
    assert found["megatron-core"] == metadata.version("megatron-core")


def test_every_part_says_what_it_is_for_and_what_goes_without_it() -> None:
    findings = examine()
    names = [finding.name for finding in findings]
    for part in ("python", "GPUs", "transformer-engine", "apex", "flash-attn", "vllm", "sglang"):
        assert part in names
    for part in ("CUDA", "compute capability", "cuDNN"):
        assert part in names
    for part in ("nvidia-modelopt", "wandb", "tensorboard", "math-verify", "reasoning-gym"):
        assert part in names
    assert "bubblewrap" in names
    assert all(finding.needed_for and finding.without_it for finding in findings)


def test_the_table_names_every_part() -> None:
    findings = examine()
    console = Console(file=io.StringIO(), width=200)
    print_findings(findings, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert [finding.name for finding in findings if finding.name not in printed] == []


def test_a_narrow_terminal_shows_every_name_whole() -> None:
    console = Console(file=io.StringIO(), width=80)
    findings = examine()
    print_findings(findings, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    column = "".join(line.replace("┃", "│").split("│")[0] for line in lines).replace(" ", "")
    assert [f.name for f in findings if f.name.replace(" ", "") not in column] == []
