"""Pushes to a stand-in hub through the hub's own client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_vr.convert.hub import full_name, model_metadata
from megatron_vr.errors import CheckpointError, SettingsError
from tests.convert.hub_client import CARD, SHARDS, SMALL, connect, content, push, sent, write_folder
from tests.convert.hub_server import TOKEN, USER, Hub, Repo, serve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    connect(monkeypatch, tmp_path)
    with serve() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


def test_what_arrives_is_the_folder_byte_for_byte_and_the_card(hub: Hub, folder: Path) -> None:
    address = push(hub, folder)
    repo = hub.repos["org/name"]
    arrived = {name: data for name, data in repo.files.items() if name != ".gitattributes"}
    assert arrived == content(folder) | CARD
    assert len(hub.objects) == len(SHARDS), "the weights go the way of large files"
    assert address == f"{hub.address}/org/name/commit/{repo.commits[-1][0]}"


def test_everything_arrives_in_one_commit(hub: Hub, folder: Path) -> None:
    push(hub, folder)
    assert hub.repos["org/name"].messages == ["initial commit", "a model"]


@pytest.mark.parametrize("private", [True, False])
def test_a_missing_repository_is_made_as_visible_as_asked(
    hub: Hub, folder: Path, private: bool
) -> None:
    push(hub, folder, private=private)
    assert hub.repos["org/name"].private == private


@pytest.mark.parametrize(
    ("there", "told"), [(True, "leave out --public"), (False, "pass --public")]
)
def test_an_existing_repository_of_another_visibility_is_refused(
    hub: Hub, folder: Path, there: bool, told: str
) -> None:
    hub.repos["org/name"] = Repo(private=there)
    with pytest.raises(SettingsError, match=f"org/name is .*{told}"):
        push(hub, folder, private=not there)
    assert hub.repos["org/name"].private == there, "its visibility must stay"
    assert sent(hub) == []


@pytest.mark.parametrize("private", [True, False])
def test_an_existing_repository_of_that_visibility_takes_the_model(
    hub: Hub, folder: Path, private: bool
) -> None:
    hub.repos["org/name"] = Repo(private=private)
    push(hub, folder, private=private)
    assert "config.json" in hub.repos["org/name"].files


def test_weights_of_an_earlier_model_go_in_the_same_commit_and_other_files_stay(
    hub: Hub, folder: Path
) -> None:
    old = {"model.safetensors": b"old", "original/model.safetensors": b"kept", "figure.png": b"p"}
    hub.repos["org/name"] = Repo(private=True)
    hub.repos["org/name"].add("earlier", old)
    push(hub, folder)
    files = hub.repos["org/name"].files
    assert "model.safetensors" not in files, "it would be read beside the new shards"
    assert {"original/model.safetensors", "figure.png", *SHARDS} <= files.keys()
    assert hub.repos["org/name"].messages[1:] == ["earlier", "a model"]


def test_pushing_the_same_again_makes_no_commit(hub: Hub, folder: Path) -> None:
    assert push(hub, folder) == push(hub, folder)
    assert len(hub.repos["org/name"].commits) == 2


def test_a_name_without_an_owner_is_the_users_own(hub: Hub, folder: Path) -> None:
    hub.repos["name"] = Repo(private=False)  # an old repository without an owner
    push(hub, folder, "name")
    assert f"{USER}/name" in hub.repos
    assert full_name("name", endpoint=hub.address) == f"{USER}/name"


def test_hidden_and_temporary_files_stay_here(hub: Hub, folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token").write_text(TOKEN)
    (folder / ".env").write_text(TOKEN)
    (folder / "config.json.tmp").write_text("{")
    push(hub, folder)
    arrived = hub.repos["org/name"].files.keys() - {".gitattributes"}
    assert arrived == SMALL.keys() | SHARDS.keys() | {"model.safetensors.index.json", "README.md"}


def test_the_front_matter_of_a_models_card_is_read_from_the_hub(hub: Hub) -> None:
    hub.repos["org/base"] = Repo(private=False, card={"license": "apache-2.0"})
    hub.repos["org/bare"] = Repo(private=False)
    assert model_metadata("org/base", endpoint=hub.address)["license"] == "apache-2.0"
    assert model_metadata("org/bare", endpoint=hub.address) == {}
    with pytest.raises(CheckpointError, match="card of org/gone failed: HTTP 404"):
        model_metadata("org/gone", endpoint=hub.address)


def test_the_address_and_the_offline_switch_of_the_environment_are_honoured(
    hub: Hub, folder: Path
) -> None:
    code = f"""
from pathlib import Path
from megatron_vr.convert.hub import push_folder
push_folder(Path({str(folder)!r}), "org/name", private=True, extra={{}}, message="m")
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    told = subprocess.run(command, env=offline, capture_output=True, text=True).stderr
    assert "HF_HUB_OFFLINE is set; unset it" in told
    assert hub.requests == []
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert content(folder).items() <= hub.repos["org/name"].files.items()
