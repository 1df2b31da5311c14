"""Models on the Hugging Face Hub: their names, the commit that a name means, download and upload.

A model there is named `hf://owner/name@revision`, or `owner/name` where no such path lies here. Branches move and tags
can be set anew; so what a run starts from is recorded with the commit that it was (`pinned`), and a run that goes on
takes the same one. Nothing that could run a program is downloaded: configurations and safetensors only.

The work is done by `huggingface_hub`; its environment variables hold (HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tymbal.errors import ModelError, SettingsError
from tymbal.hub_errors import plainly

__all__ = ["SCHEME", "HubModel", "PushedModel", "fetch", "pinned", "upload"]

SCHEME = "hf://"

_NAME = re.compile(r"(?P<name>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@(?P<revision>[^@\s]+))?")
_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "model.safetensors.index.json")
"""What is downloaded of a model: no pickles, and no code."""

_OURS = ("config.json", "preprocessor_config.json", "*.safetensors", "labels.json", "*_tymbal.py")
"""What an upload replaces as a whole, beside the card: files of another model must not stay between them."""


@dataclass(frozen=True)
class HubModel:
    """The name of a model on the Hub.

    Attributes:
        name: `owner/name`, or `name` of those without an owner.
        revision: Branch, tag or commit; None is the branch `main`.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, source: str | Path) -> HubModel | None:
        """The model that a source names; None where it is a path, or can only be one.

        Raises:
            ModelError: It begins with `hf://`, and no name follows.
        """
        text = str(source)
        match = _NAME.fullmatch(text.removeprefix(SCHEME))
        if text.startswith(SCHEME):
            if match is None:
                raise ModelError(
                    f"{text} is no name on the Hub", advice="Write hf://owner/name or hf://owner/name@tag."
                )
            return cls(match["name"], match["revision"])
        if match is None or Path(source).exists() or Path(source).suffix in _FILE_ENDINGS:
            return None
        return cls(match["name"], match["revision"])

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


_FILE_ENDINGS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".onnx")


_FETCHED: dict[HubModel, Path] = {}
"""Where commits lie that this process has fetched: a verb asks for the same one several times."""


def fetch(model: HubModel) -> Path:
    """Downloads a model, or finds it in the cache of `huggingface_hub`.

    Returns:
        The folder in the cache; it is named by the commit.

    Raises:
        ModelError: The Hub has no such model or revision, shows it to others only, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    known = _FETCHED.get(model)
    if known is not None and known.is_dir():
        return known
    with plainly(model.name, model.revision):
        path = Path(snapshot_download(model.name, revision=model.revision, allow_patterns=list(_FILES)))
    _FETCHED[HubModel(model.name, path.name)] = path
    return path


def pinned(source: str | None, begun: Mapping[str, Any] | None = None) -> str | None:
    """A source to start from, with its commit where it is a model of the Hub; any other as it is.

    Args:
        source: What the user gave.
        begun: What the run that is to be continued has recorded. Where it began with a revision of the same model, and
            no other one is asked for, that one stays.

    Raises:
        ModelError: As `fetch`.
    """
    model = None if source is None else HubModel.parse(source)
    if model is None:
        return source
    recorded = (begun or {}).get("from")
    known = HubModel.parse(recorded) if isinstance(recorded, str) else None
    if known is not None and known.name == model.name and model.revision in (None, known.revision):
        return str(recorded)
    return str(HubModel(model.name, fetch(model).name))


@dataclass(frozen=True)
class PushedModel:
    """A model that was uploaded.

    Attributes:
        name: `owner/name`.
        commit: The commit that it is.
        url: Where it is shown.
        private: Whether its owner alone, and whom they allow, can see it.
    """

    name: str
    commit: str
    url: str
    private: bool


def upload(folder: Path, name: str, *, private: bool, message: str) -> PushedModel:
    """Uploads a model folder as one commit, to a repository that is made where there is none.

    Args:
        folder: The folder.
        name: `owner/name`.
        private: Whether only the owner is to see it.
        message: The commit's message.

    Raises:
        SettingsError: The name is none; or the repository is there and seen by others than it is to be.
        ModelError: There is no token, it may not write there, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import RepositoryNotFoundError

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise SettingsError(f"{name!r} is no name on the Hub", advice="Write OWNER/NAME, without hf://.")
    model = HubModel(name)
    if HF_HUB_OFFLINE:
        raise ModelError(f"{name} cannot be uploaded: HF_HUB_OFFLINE is set", advice="Unset it, and run this again.")
    if get_token() is None:
        raise ModelError(
            f"{name} cannot be uploaded: there is no token of the Hub",
            advice="Make one that may write at https://huggingface.co/settings/tokens and give it to `hf auth login`, "
            "or as HF_TOKEN.",
        )
    api = HfApi()
    with plainly(model.name, model.revision):
        try:
            is_private = bool(api.model_info(name).private)
        except RepositoryNotFoundError:
            is_private = private
            api.create_repo(name, private=private, exist_ok=True)
    if is_private != private:
        seen, flag = ("private", "--private") if is_private else ("public", "--no-private")
        raise SettingsError(f"{name} is there already, and {seen}", advice=f"Give {flag}, or another name.")
    with plainly(model.name, model.revision):
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, delete_patterns=list(_OURS)
        )
    return PushedModel(name, commit.oid, f"{api.endpoint}/{name}", private)
