"""Data sets on the Hugging Face Hub as lists of clips: `hf://datasets/owner/name@revision/config:split`.

    tymbal prepare hf://datasets/ashraq/esc50 -o store
    tymbal prepare hf://datasets/owner/birds@v1/HSN:test -o store

Parquet with sounds in it, and AudioFolder: what `datasets` makes and the Hub shows. Which files belong to which
configuration and split is what the card says, else the files' names and folders. The list is a table in the cache
folder, one a commit, whose files lie where `huggingface_hub` would download them; `tymbal.audio.embedded` reads them
there, or on the Hub. Nothing of a data set is run: there are no loading scripts, and of lists only cells are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from tymbal.audio.embedded import has_sounds, hub_address
from tymbal.audio.manifest import Clip
from tymbal.errors import ManifestError
from tymbal.files import replace_file
from tymbal.hub_errors import plainly
from tymbal.machine import cache_folder
from tymbal.progress import counted, tell

__all__ = [
    "HubDataset",
    "chosen_files",
    "commit_in",
    "is_hub_dataset",
    "is_hub_list",
    "keep_header",
    "kept_header",
    "tables_of",
    "write_list",
]

_NAME = re.compile(
    r"hf:/{1,2}datasets/(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)"
    r"(?:@(?P<revision>[^/:\s]+))?(?:/(?P<config>[^:\s]+?))?/?(?::(?P<split>[\w.-]+))?"
)
_BEGIN = re.compile(r"hf:/{1,2}datasets/")
_LISTED = re.compile(r".*[/\\]hub-lists[/\\](?P<name>[^/\\]+--[^/\\]+)[/\\](?P<commit>[0-9a-f]{40})[/\\].*")
_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class HubDataset:
    """The name of a data set on the Hub.

    Attributes:
        name: `owner/name`.
        revision: Branch, tag or commit; None is the branch `main`.
        config: Its configuration, or a folder; None is the default one, or all.
        split: The split that is wanted; None is all.
        columns: What columns are called there, by Tymbal's names.
    """

    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    columns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, source: str | Path) -> HubDataset:
        """The data set that a source names.

        Raises:
            ManifestError: It names none.
        """
        match = _NAME.fullmatch(str(source).replace("\\", "/"))
        if match is None:
            raise ManifestError(
                f"{source} is no name of a data set on the Hub",
                advice="Write hf://datasets/owner/name, with @revision, /config and :split behind it where wanted.",
            )
        return cls(match["name"], match["revision"], match["config"], match["split"])

    def __str__(self) -> str:
        ends = ((self.revision, "@"), (self.config, "/"), (self.split, ":"))
        return f"hf://datasets/{self.name}" + "".join(f"{mark}{end}" for end, mark in ends if end)

    def list_at(self, commit: str) -> Path:
        """Where the list of its clips lies, at a commit."""
        named = [f"{ours}={theirs}" for ours, theirs in self.columns]
        parts = (self.config or "all", self.split or "all", *named)
        name = "-".join(re.sub(r"[^\w.=-]", "-", part) for part in parts)
        return cache_folder() / "hub-lists" / self.name.replace("/", "--") / commit / f"{name}.parquet"


def is_hub_dataset(source: object) -> bool:
    """Whether a source begins as the name of a data set on the Hub; a path joins its slashes."""
    return isinstance(source, str | Path) and _BEGIN.match(str(source).replace("\\", "/")) is not None


def is_hub_list(source: object) -> bool:
    """Whether a path is that of a list of a data set's clips, whose columns have Tymbal's names."""
    return isinstance(source, str | Path) and _LISTED.fullmatch(str(source)) is not None


def commit_in(recorded: str | None, dataset: HubDataset) -> str | None:
    """The commit of a data set that a record was begun with; None where it is of something else."""
    match = _LISTED.fullmatch(recorded or "")
    return match["commit"] if match and match["name"] == dataset.name.replace("/", "--") else None


def chosen_files(dataset: HubDataset, recorded: str | None = None) -> tuple[Path, list[tuple[Path, str | None]]]:
    """The files of a data set and the split of each, by its card, else by their names.

    Args:
        dataset: The data set. A branch that has moved on stays where a preparation was begun.
        recorded: The source that was recorded then.

    Returns:
        The folder in which the commit would lie if it was downloaded, and in it the files.

    Raises:
        ManifestError: The Hub has no such data set, configuration or split, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    revision = dataset.revision or commit_in(recorded, dataset)
    with plainly(dataset.name, revision, kind="data set"):
        info = HfApi().dataset_info(dataset.name, revision=revision)
    names = sorted(sibling.rfilename for sibling in info.siblings or ())
    cache = Path(HF_HUB_CACHE).absolute() / f"datasets--{dataset.name.replace('/', '--')}"
    root = cache / "snapshots" / str(info.sha)
    configs = info.card_data.get("configs") if info.card_data is not None else None
    wanted = list(_of_split(_of_config(dataset, names, configs or []), dataset))
    if not wanted:
        raise ManifestError(
            f"{dataset} has no files of this {'split' if dataset.split else 'configuration'}",
            advice=f"Its files are: {_some(names)}.",
        )
    return root, [(root / name, split) for name, split in wanted]


def _of_config(dataset: HubDataset, names: Sequence[str], configs: Any) -> list[tuple[str, str | None]]:
    """The files of a configuration, and the splits that the card gives them."""
    known = [each for each in configs if isinstance(each, dict) and each.get("data_files")]
    by_name = {str(each.get("config_name")): each for each in known}
    if dataset.config is not None and dataset.config not in by_name:
        inside = [(name, None) for name in names if name.startswith(f"{dataset.config}/")]
        if not inside:
            some = _some(by_name) or _some({name.partition("/")[0] for name in names if "/" in name})
            raise ManifestError(
                f"hf://datasets/{dataset.name} has no configuration or folder {dataset.config}",
                advice=f"It has: {some or 'none'}.",
            )
        return [*inside]
    chosen = [by_name[dataset.config]] if dataset.config else [each for each in known if each.get("default")] or known
    if len(chosen) > 1:
        raise ManifestError(
            f"hf://datasets/{dataset.name} has several configurations",
            advice=f"Name one, as hf://datasets/{dataset.name}/{next(iter(by_name))}. It has: {_some(by_name)}.",
        )
    if not chosen:
        return [(name, None) for name in names]
    found: dict[str, str | None] = {}
    for pattern, split in _patterns(chosen[0]["data_files"]):
        found |= {name: split for name in names if fnmatchcase(name, pattern.removeprefix("./"))}
    return list(found.items())


def _patterns(data_files: Any) -> Iterator[tuple[str, str | None]]:
    """The patterns of files in a card, and the split of each."""
    for each in data_files if isinstance(data_files, list) else [data_files]:
        paths, split = (each.get("path"), each.get("split")) if isinstance(each, dict) else (each, None)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                yield path, None if split is None else str(split)


def _of_split(files: Iterable[tuple[str, str | None]], dataset: HubDataset) -> Iterator[tuple[str, str | None]]:
    """The files of the split that is wanted; names of AudioFolder's tables belong to all."""
    for name, split in files:
        own = split or _split_in(name)
        if dataset.split in (None, own) or (own is None and name.rpartition("/")[2] in _TABLES):
            yield name, own


def _split_in(name: str) -> str | None:
    """The split that the name of a file tells, as `datasets` writes it: data/test_5s-00000-of-00002.parquet."""
    *folders, file = name.split("/")
    match = re.fullmatch(r"([\w.]+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet", file)
    if match:
        return match[1]
    known = ("train", "validation", "valid", "val", "dev", "test")
    begin = re.split(r"[-_.]", file.lower(), maxsplit=1)[0]
    return next((part for part in (begin, *reversed(folders)) if part.lower() in known), None)


def write_list(dataset: HubDataset, root: Path, clips: Sequence[Clip], *, labelled: bool) -> Path:
    """Writes the list of a data set's clips into the cache folder, and says what it is.

    Args:
        dataset: The data set.
        root: The folder that its commit would lie in.
        clips: Its clips.
        labelled: Whether a column gives labels; where none does, class folders may.

    Returns:
        The list, which every verb takes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "file": pa.array([clip.file for clip in clips], pa.string()),
        "start": pa.array([clip.start for clip in clips], pa.float64()),
        "end": pa.array([clip.end for clip in clips], pa.float64()),
        "group": pa.array([clip.group for clip in clips], pa.string()),
        "split": pa.array([clip.split for clip in clips], pa.string()),
    }
    if labelled:
        columns["label"] = pa.array([list(clip.labels) for clip in clips], pa.list_(pa.string()))
    path = dataset.list_at(root.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as aside:
        pq.write_table(pa.table(columns), aside)
    tell(f"{dataset}: {counted(len(clips), 'clip')} at commit {root.name[:12]}")
    return path


def tables_of(files: Sequence[tuple[Path, str | None]]) -> list[Path]:
    """AudioFolder's tables among files, downloaded: they are small.

    Raises:
        ManifestError: The Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    found = []
    for path, _ in files:
        if path.name not in _TABLES:
            continue
        root = next(each for each in path.parents if each.parent.name == "snapshots")
        name = root.parent.parent.name.removeprefix("datasets--").replace("--", "/", 1)
        with plainly(name, root.name, kind="data set"):
            inside = path.relative_to(root).as_posix()
            found.append(Path(hf_hub_download(name, inside, repo_type="dataset", revision=root.name)))
    return [path for path in found if path.suffix != ".parquet" or not has_sounds(path)]


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10:,} more" if len(listed) > 10 else "")


def kept_header(file: str) -> dict[str, Any] | None:
    """What was found out about a sound of the Hub before; None of any other, or where nothing was.

    To know how long a sound is all of it has to be fetched. A commit never changes, so that once is enough: a
    preparation that was stopped, or another one, does without.
    """
    place = _headers_of(file)
    return None if place is None else _headers(place).get(file)


def keep_header(file: str, header: dict[str, Any]) -> None:
    """Keeps what was found out about a sound of the Hub; several processes may."""
    place = _headers_of(file)
    if place is None:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({**header, "file": file}) + "\n"
    with place.open("ab", buffering=0) as opened:  # a line at once: no process writes into another's
        opened.write(line.encode())


def _headers_of(file: str) -> Path | None:
    address = hub_address(Path(file))
    if address is None:
        return None
    digest = hashlib.blake2b(address.encode(), digest_size=12).hexdigest()
    return cache_folder() / "hub-lists" / "headers" / f"{digest}.jsonl"


@lru_cache(maxsize=4)
def _headers(place: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = place.read_bytes().splitlines()
    except OSError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            header = json.loads(line)
            found[header["file"]] = header
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a full disk
    return found
