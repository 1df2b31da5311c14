"""Models that go to the Hub and come back, by the real client, from a server on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tymbal
from hub_server import Hub, client_settings, hub_server
from small_model import small_model
from tones import tone_store
from training_setup import TINY, make_store
from tymbal.config import read_run_yaml
from tymbal.errors import ModelError, SettingsError
from tymbal.models.hub import HubModel, pinned
from tymbal.push import push

NAME = "someone/robins"
SHORT: dict[str, Any] = {**TINY, "max_steps": 2}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub, and a token of `someone` that may write; downloads are cached in the test's own folder."""
    with hub_server() as server:
        for name, value in client_settings(server, tmp_path).items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", "hf_writes")
        yield server


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return small_model(tmp_path / "classifier", labels=("robin", "wren"), pooling="mean")


def card(hub: Hub) -> tuple[dict[str, Any], str]:
    """The head and the text of the card of the newest commit."""
    text = hub.repositories[NAME].commits[-1][1]["README.md"].decode()
    _, head, rest = text.split("---\n", 2)
    return yaml.safe_load(head), rest


def test_push__gives_a_private_model_that_comes_back_the_same(hub: Hub, classifier: Path) -> None:
    result = push(classifier, NAME, license="cc-by-4.0")
    commit = hub.repositories[NAME].commits[-1][0]
    assert (result.commit, result.private, result.url) == (commit, True, f"{hub.url}/{NAME}")
    assert hub.repositories[NAME].private
    assert f"hf://{NAME}@{commit}" in result.summary() and "for its owner alone" in result.summary()
    ours = tymbal.load_model(classifier)
    for source in (f"hf://{NAME}", NAME, f"hf://{NAME}@{commit}", f"{NAME}@main"):
        theirs = tymbal.load_model(source)
        assert theirs.description.labels == ("robin", "wren")
        state = theirs.module.state_dict()
        assert all(value.equal(state[name]) for name, value in ours.module.state_dict().items())


def test_push__the_card_says_what_it_was_and_hides_paths(hub: Hub, tmp_path: Path) -> None:
    store = tone_store(tmp_path / "secret" / "tones", clips=12).path
    run = tymbal.pretrain(store, tmp_path / "run", **SHORT).run
    quick = {"random": False, "device": "cpu", "cache": False}
    tymbal.probe(run, store, run / "probe.json", **{**quick, "random": True})
    push(run, NAME, license="other", message="First")
    head, text = card(hub)
    assert (head["license"], head["library_name"]) == ("other", "transformers")
    assert "3 classes, learned from 24 clips, asked about 12" in text
    assert re.search(r"\| ridge \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", text)
    assert json.loads((run / "probe.json").read_text())["verdict"]["text"] in text
    assert f"--from {NAME}" in text and "MODEL" not in text
    files = hub.repositories[NAME].commits[-1][1]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert "| data | tones |" in text or "## Data\n\ntones" in text
    assert {"config.json", "model.safetensors", "objective.safetensors"} <= files.keys()


def test_push__replaces_all_of_an_earlier_model(hub: Hub, tmp_path: Path) -> None:
    upright = {**SHORT, "patch": "32x4"}  # which stock transformers cannot hold
    run = tymbal.pretrain(make_store(tmp_path / "store").path, tmp_path / "run", **upright).run
    push(run, NAME, license="mit")
    push(small_model(tmp_path / "stock", labels=("robin", "wren"), pooling="cls"), NAME, license="mit")
    before, after = (commit[1].keys() for commit in hub.repositories[NAME].commits[-2:])
    own = {"objective.safetensors", "modeling_tymbal.py"}
    assert own <= before
    assert not own & after and "labels.json" in after
    assert {".gitattributes", "README.md"} <= after


def test_push__asks_for_a_licence(hub: Hub, classifier: Path) -> None:
    with pytest.raises(SettingsError, match=r"needs a licence[\s\S]*--license .*cc-by-4\.0"):
        push(classifier, NAME)
    with pytest.raises(SettingsError, match="license is 'CC BY', which is not an identifier"):
        push(classifier, NAME, license="CC BY")
    assert not hub.repositories and not hub.asked


def test_push__never_shows_to_all_what_is_to_be_private(hub: Hub, classifier: Path) -> None:
    assert not push(classifier, NAME, license="mit", private=False).private
    assert not hub.repositories[NAME].private
    commits = len(hub.repositories[NAME].commits)
    with pytest.raises(SettingsError, match=r"there already, and public[\s\S]*--no-private"):
        push(classifier, NAME, license="mit")
    assert len(hub.repositories[NAME].commits) == commits


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("", NAME, r"there is no token[\s\S]*HF_TOKEN"),
        ("hf_wrong", NAME, r"does not accept the token for someone/robins[\s\S]*another one is set"),
        ("hf_reads", NAME, r"does not allow this with the token"),
        ("hf_writes", "another/robins", r"does not allow this with the token"),
        ("hf_writes", "robins", r"'robins' is no name on the Hub[\s\S]*OWNER/NAME"),
        ("hf_writes", "someone/a--b", r"someone/a--b is .*nor a name on the Hugging Face Hub"),
    ],
)
def test_push__what_the_hub_refuses_is_said_plainly(
    token: str, name: str, message: str, classifier: Path, request: pytest.FixtureRequest
) -> None:
    hub: Hub = request.getfixturevalue("hub")
    request.getfixturevalue("monkeypatch").setenv("HF_TOKEN", token)
    with pytest.raises((ModelError, SettingsError), match=message):
        push(classifier, name, license="mit")
    assert not hub.repositories


def test_push__a_table_that_is_no_probe_is_refused(hub: Hub, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SettingsError, match="no table of a probe"):
        push(classifier, NAME, license="mit", probes=(str(tmp_path / "other.json"),))


def test_load_model__of_the_hub_says_plainly_what_is_missing(
    hub: Hub, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(classifier, NAME, license="mit")
    with pytest.raises(ModelError, match=r"robins has no revision v2"):
        tymbal.load_model(f"hf://{NAME}@v2")
    with pytest.raises(ModelError, match=r"neither a file nor a folder here, and the Hugging Face Hub shows no model"):
        tymbal.load_model("someone/wrens")
    with pytest.raises(ModelError, match=r"hf://a/b/c is no name on the Hub"):
        tymbal.load_model("hf://a/b/c")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(ModelError, match=r"shows no model[\s\S]*A private model takes a token"):
        tymbal.load_model(f"hf://{NAME}")


def test_load_model__of_the_hub_without_a_network(hub: Hub, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = push(classifier, NAME, license="mit").commit
    first = tymbal.load_model(f"hf://{NAME}")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for source in (f"hf://{NAME}", f"hf://{NAME}@{commit}"):  # from the cache
        assert tymbal.load_model(source).description == first.description
    with pytest.raises(ModelError, match=r"nor in the cache[\s\S]*127.0.0.1:9 cannot be reached[\s\S]*hf download"):
        tymbal.load_model("hf://someone/wrens")
    with pytest.raises(ModelError, match=r"127.0.0.1:9 cannot be reached"):
        push(classifier, NAME, license="mit")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids to ask"):
        tymbal.load_model("hf://someone/wrens")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        push(classifier, NAME, license="mit")


def test_pretrain__records_the_commit_that_it_started_from(hub: Hub, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store").path
    first = push(tymbal.pretrain(store, tmp_path / "a", **SHORT).run, NAME, license="mit").commit
    run = tymbal.pretrain(store, tmp_path / "run", from_=f"hf://{NAME}", **SHORT).run
    assert read_run_yaml(run).settings["from"] == f"hf://{NAME}@{first}"
    push(tymbal.pretrain(store, tmp_path / "b", **SHORT, seed=1).run, NAME, license="mit")
    # Whatever is newest by now: the same command finds the run as it was begun.
    assert tymbal.pretrain(store, tmp_path / "run", from_=f"hf://{NAME}", **SHORT).steps == 2
    assert tymbal.pretrain(store, tmp_path / "run", from_=NAME, **SHORT).steps == 2
    with pytest.raises(SettingsError, match=r"from: '.*@\w{40}' -> '.*@\w{40}'"):
        tymbal.pretrain(store, tmp_path / "run", from_=f"hf://{NAME}@main", **SHORT)
    again = tymbal.pretrain(store, tmp_path / "again", config=run / "run.yaml").run
    ours, theirs = (tymbal.load_model(each).module.state_dict() for each in (run, again))
    assert all(ours[name].equal(theirs[name]) for name in ours)
    push(run, NAME, license="mit")
    assert card(hub)[0]["base_model"] == NAME


def test_finetune__records_the_commit_that_it_started_from(hub: Hub, tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store", clips=12).path
    commit = push(small_model(tmp_path / "model"), NAME, license="mit").commit
    quick = {"max_steps": 2, "device": "cpu", "precision": "float32", "report_to": ()}
    run = tymbal.finetune(store, tmp_path / "run", from_=NAME, **quick).run
    settings = read_run_yaml(run).settings
    assert (settings["from"], settings["recipe"]) == (f"hf://{NAME}@{commit}", "none")
    assert tymbal.finetune(store, tmp_path / "run", from_=NAME, **quick).steps == 2


def test_pinned__leaves_what_an_earlier_version_recorded(hub: Hub) -> None:
    assert pinned("MIT/ast", {"from": "MIT/ast"}) == "MIT/ast"
    assert pinned(None) is None
    assert not hub.asked


def test_hub_model__is_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    assert HubModel.parse("owner/name") is None
    assert HubModel.parse("hf://owner/name") == HubModel("owner/name")
    assert HubModel.parse("owner/other@v1.0") == HubModel("owner/other", "v1.0")
    assert str(HubModel("owner/other", "v1.0")) == "hf://owner/other@v1.0"
    for path in ("a/b/c", "../a", "/a/b", "model.pth", "runs/model.safetensors", "~/a", ""):
        assert HubModel.parse(path) is None


def test_command__pushes_and_pulls(hub: Hub, classifier: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_writes"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tymbal", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    pushed = run("push", str(classifier), NAME, "--license", "cc-by-4.0")
    assert pushed.returncode == 0, pushed.stderr
    assert f"{hub.url}/{NAME}" in pushed.stdout
    converted = run("convert", f"hf://{NAME}", str(tmp_path / "copy"))
    assert converted.returncode == 0, converted.stderr
    assert tymbal.load_model(tmp_path / "copy").description.labels == ("robin", "wren")
    refused = run("push", str(classifier), NAME)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Traceback" not in refused.stderr and "needs a licence" in refused.stderr
