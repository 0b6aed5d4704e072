"""What a released model's card says of its base, and where it is read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.algorithm.plan import Node, make_plan
from megatron_vr.algorithm.release import card_facts
from megatron_vr.algorithm.run import Prepared
from megatron_vr.errors import CheckpointError
from tests.convert.hub_client import connect
from tests.convert.hub_server import Hub, Repo, serve
from tests.report.synthetic import Written, write_run
from tests.report.tiny_models import write_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    connect(monkeypatch, tmp_path)
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "policy", seed=1)


def prepared(written: Written) -> Prepared:
    return Prepared(written.settings, 1, make_plan(written.settings, {}))


def base_node(written: Written) -> Node:
    return next(node for node in prepared(written).plan.nodes if node.stage == "base")


def test_a_base_in_a_folder_is_known_by_its_name_and_its_own_card(
    tmp_path: Path, model: Path
) -> None:
    base = tmp_path / "secret-place" / "my-base"
    shutil.copytree(model, base)
    changes = ["model.random=null", f"model.path={base}"]
    written = write_run(tmp_path / "run", *changes, models={"export-policy": model})
    facts = card_facts(prepared(written), "variational", 1, "org/name")
    assert (facts.base.kind, facts.base.name, facts.base.licence) == ("folder", "my-base", {})
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: x/y\n---\n")
    facts = card_facts(prepared(written), "variational", 1, "org/name")
    assert facts.base.licence == {"license": "mit"}
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="my-base is no folder here any more"):
        card_facts(prepared(written), "variational", 1, "org/name")


def test_a_base_of_the_hub_keeps_its_id_and_its_licence_is_asked_for(
    hub: Hub, tmp_path: Path, model: Path
) -> None:
    changes = ["model.random=null", "model.path=lab/base-4B"]
    written = write_run(tmp_path / "run", *changes, models={"export-policy": model})
    downloaded = base_node(written).path / "model"
    downloaded.mkdir()

    def found() -> Any:
        facts = card_facts(prepared(written), "variational", 1, "o/n", endpoint=hub.address)
        assert (facts.base.kind, facts.base.name) == ("hub", "lab/base-4B")
        return facts.base.licence

    with pytest.raises(CheckpointError, match=r"lab/base-4B failed: HTTP 404.*model card at .*"):
        found()
    hub.repos["lab/base-4B"] = Repo(private=False)
    assert found() == {}
    other = {"license": "other", "license_name": "lab-1.0", "license_link": "LICENSE"}
    hub.repos["lab/base-4B"].card = {**other, "tags": ["x"], "language": "en"}
    assert found() == other
    (downloaded / "README.md").write_text("---\nlicense: mit\n---\n")
    assert found() == {"license": "mit"}, "the card beside the base is that of its version"
