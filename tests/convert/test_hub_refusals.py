"""Pushes that must not happen, or that fail: what is told, and that nothing is half there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_vr.convert.hub import model_files
from megatron_vr.errors import CheckpointError, SettingsError
from tests.convert.hub_client import SHARDS, connect, content, push, sent, write_folder
from tests.convert.hub_server import TOKEN, Hub, Repo, serve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    connect(monkeypatch, tmp_path)
    with serve() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "repo", ["", "a/b/c", "org/", "/name", "org/na me", "org/../x", "org/name.git", "org/ñ", "a--b"]
)
def test_a_bad_name_is_refused_before_anything_is_sent(hub: Hub, folder: Path, repo: str) -> None:
    with pytest.raises(SettingsError, match="is no name of a repository"):
        push(hub, folder, repo)
    assert hub.requests == []


def test_without_a_token_the_message_says_how_to_get_one(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(monkeypatch, tmp_path, token=None)
    with pytest.raises(SettingsError, match=r"`hf auth login`, or set HF_TOKEN"):
        push(hub, folder)
    assert hub.requests == []


def test_a_token_that_is_not_valid_is_told(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(monkeypatch, tmp_path, token="hf_expired0000000000000000")
    with pytest.raises(CheckpointError, match=r"org/name failed: HTTP 401.*hf auth login") as told:
        push(hub, folder)
    assert "hf_expired" not in str(told.value), "a token has no place in a message"


@pytest.mark.parametrize(
    ("where", "status", "advice"),
    [
        ("/api/repos/create", 403, "use a token that may write there"),
        ("/api/repos/create", 409, "may not see it"),
        ("/api/models/org/name", 403, "use a token that may write there"),
        ("/preupload/", 403, "use a token that may write there"),
        ("/upload/", 403, "use a token that may write there"),
        ("/objects/batch", 404, "check ORG/NAME"),
        ("/commit/", 403, "use a token that may write there"),
        ("/commit/", 404, "check ORG/NAME"),
        ("/commit/", 412, "run the same command again"),
        ("/commit/", 413, "run the same command again later"),
    ],
)
def test_a_refusal_is_one_line_that_says_where_why_and_what_to_do(
    hub: Hub, folder: Path, where: str, status: int, advice: str
) -> None:
    hub.refusals[where] = (status, "", "the hub's\nown words".replace("\n", " "))
    with pytest.raises(CheckpointError) as told:
        push(hub, folder)
    message = str(told.value)
    assert message.startswith(f"pushing to org/name failed: HTTP {status}: the hub's own words")
    assert advice in message
    assert "\n" not in message and TOKEN not in message
    made = hub.repos.get("org/name")
    assert made is None or made.messages == ["initial commit"], "nothing may be half there"


def test_a_gated_repository_of_others_is_not_taken_for_a_missing_one(
    hub: Hub, folder: Path
) -> None:
    hub.refusals["/api/models/org/name"] = (404, "GatedRepo", "ask for access")
    with pytest.raises(CheckpointError, match="ask for access"):
        push(hub, folder)
    assert sent(hub) == []


def test_a_hub_that_is_not_there_is_told(hub: Hub, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hub.address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CheckpointError, match=r"pushing to org/name failed: .*refused"):
        push(hub, folder)


@pytest.mark.parametrize("moment", ["/preupload/", "/upload/", "/commit/"])
def test_a_hub_that_dies_in_the_middle_leaves_no_commit_and_the_same_push_goes_on(
    hub: Hub, folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's waits between tries
    hub.dies_at = moment
    with pytest.raises(CheckpointError, match=r"pushing to org/name failed: .*run the same"):
        push(hub, folder)
    assert hub.repos["org/name"].messages == ["initial commit"]
    hub.dies_at, hub.dead = None, False
    push(hub, folder)
    assert content(folder).items() <= hub.repos["org/name"].files.items()


def test_a_commit_of_someone_else_during_the_push_is_not_built_upon(hub: Hub, folder: Path) -> None:
    theirs = {"model.safetensors": b"theirs"}
    hub.repos["org/name"] = Repo(private=True)
    hub.meanwhile = lambda: hub.repos["org/name"].add("theirs", theirs)
    with pytest.raises(CheckpointError, match=r"HTTP 412.*run the same command again"):
        push(hub, folder)
    assert hub.repos["org/name"].files == theirs


def test_files_that_the_repository_ignores_are_told(hub: Hub, folder: Path) -> None:
    hub.ignored = ("config.json",)
    with pytest.raises(CheckpointError, match=r"org/name did not take config\.json: .*gitignore"):
        push(hub, folder)


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "pytorch_model.bin", "training_args.bin", "data.PKL", "state.distcp"),
        *("optimizer.safetensors", "adapter_model.safetensors", "rng_state_0.pth", "modeling.py"),
        *("trainer_state.json", "checkpoints/"),
    ],
)
def test_what_is_no_part_of_a_model_is_named_and_nothing_is_sent(
    hub: Hub, folder: Path, name: str
) -> None:
    if name.endswith("/"):
        (folder / name).mkdir()
    else:
        save_file({"a": torch.zeros(1)}, folder / name)
    with pytest.raises(CheckpointError, match=f"{name.rstrip('/')} is no part of a model"):
        push(hub, folder)
    assert hub.requests == []


def test_a_link_is_refused(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("mine")
    (folder / "vocab.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(CheckpointError, match=r"vocab\.txt is no part of a model"):
        push(hub, folder)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
        (lambda folder: (folder / next(iter(SHARDS))).unlink(), "is missing"),
        (lambda folder: os.truncate(folder / next(iter(SHARDS)), 900), "truncated"),
        (lambda folder: [path.unlink() for path in folder.glob("model*")], "neither"),
    ],
)
def test_a_folder_that_is_no_finished_model_is_refused_before_anything_is_sent(
    hub: Hub, folder: Path, spoil: object, told: str
) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=told):
        push(hub, folder)
    assert hub.requests == []


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is not a finished model"):
        model_files(tmp_path / "nowhere")
