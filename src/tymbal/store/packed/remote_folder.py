"""A folder on an object store or web server: `s3://`, `gs://`, `az://`, `https://`.

`obstore` (extra `remote`) speaks to them. Credentials and servers are those of the environment, under the names that
each cloud's own tools know (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_ACCOUNT_NAME`, …), for S3 also a profile of `~/.aws`. What fails on the way, as a connection that is
reset or an answer of 500, is asked again for a while; what stays wrong is a `StoreError` with the address.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tymbal.errors import SettingsError, StoreError
from tymbal.files import read_json, sole_writer, write_json, write_text
from tymbal.machine import cache_folder
from tymbal.progress import Progress
from tymbal.store.packed.format import DESCRIPTION, FAILURES, INDEX, SHARDS, WORK

__all__ = ["Outgoing", "RemoteFolder", "place_of"]

Result = TypeVar("Result")

_TRIES = 5
_RETRIES = 4  # of each, by the library, where the server says that it failed
_FIRST_PAUSE = 0.2  # seconds, doubled from one to the next
_SCHEMES = ("s3", "gs", "az", "https", "http")
_CLIENT = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "180s"}
_PART = 8 << 20
_CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or a profile in ~/.aws; "
    "AWS_SKIP_SIGNATURE=true for public data; AWS_ENDPOINT_URL for a server that is not Amazon's.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to the file of a key; GOOGLE_SKIP_SIGNATURE=true for public data.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY; AZURE_SKIP_SIGNATURE=true for public data.",
}
_UNKNOWN = re.compile("NoSuchBucket|bucket does not exist|ContainerNotFound")
_UNSIGNED = re.compile(
    "169.254.169.254|latest/api/token|metadata.google.internal|credential|Account must be specified|token request"
)


def place_of(url: str) -> Path:
    """The path within a folder of the cache that belongs to an address; on another server it has another."""
    servers = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ACCOUNT_NAME")
    key = blake2b(repr([url, *map(os.environ.get, servers)]).encode(), digest_size=6).hexdigest()
    parts = [part.replace(":", "_") for part in url.replace("://", "/").split("/") if part not in ("", ".", "..")]
    return Path(*parts[:-1], f"{parts[-1]}-{key}")


class RemoteFolder:
    """The objects below an address, by name.

    A process that was forked from one which has asked cannot ask: threads do not survive a fork.

    Args:
        url: The address, as `tymbal.files.address` gives it.

    Raises:
        SettingsError: It is no address of a kind that is known, or `obstore` is missing.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        if scheme not in _SCHEMES:
            known = ", ".join(f"{name}://" for name in _SCHEMES[:-1])
            raise SettingsError(f"{scheme}:// is no kind of address that is known", path=url, advice=f"Known: {known}.")
        parts = urlsplit(url)
        if not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc or ".." in rest.split("/"):
            raise SettingsError(
                "is no address of a folder",
                path=url,
                advice="Write it as s3://BUCKET/FOLDER or https://SERVER/FOLDER, without names, signatures or '..'; "
                "credentials come from the environment.",
            )
        self.url = url
        self.scheme = scheme
        self._client: Any = None
        self._process = 0

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of an object, or those from `start` to before `stop`.

        Raises:
            FileNotFoundError: It is not there.
            StoreError: It may not be read, is shorter, or nobody answers.
        """
        import obstore

        options: Any = None if start is None or stop is None else {"range": (start, stop)}
        data = self._asked(name, lambda client: obstore.get(client, name, options=options).bytes())
        if start is not None and stop is not None and len(data) != stop - start:
            raise StoreError(f"ends after {start + len(data)} bytes", path=f"{self.url}/{name}", advice=_COPY_AGAIN)
        return bytes(data)

    def etag(self, name: str) -> str | None:
        """What the server says identifies the content of an object; None where the object or the word is missing."""
        import obstore

        try:
            found: dict[str, str | None] = self._asked(name, lambda client: obstore.head(client, name))
        except FileNotFoundError:
            return None
        return found["e_tag"]

    def write(self, name: str, content: Path | bytes, *, new: bool = False) -> str | None:
        """Writes an object, which appears whole or not at all.

        Args:
            name: Its name.
            content: A file, or the bytes.
            new: Refuse where one of this name is there already.

        Returns:
            What the server says identifies the content.

        Raises:
            FileExistsError: It is there, and was to be new.
            StoreError: It may not be written, or nobody answers.
        """
        import obstore

        mode: Any = "create" if new else "overwrite"
        more: dict[str, Any] = {} if new else {"chunk_size": _PART, "max_concurrency": 4}
        done: dict[str, str | None] = self._asked(
            name, lambda client: obstore.put(client, name, content, mode=mode, **more)
        )
        return done["e_tag"]

    def delete(self, name: str) -> None:
        """Deletes an object."""
        import obstore

        self._asked(name, lambda client: obstore.delete(client, name))

    def names(self) -> list[str]:
        """Names of the objects and, with a slash at the end, of the folders directly below the address."""
        import obstore

        listed: Any = self._asked("", obstore.list_with_delimiter)
        prefix = urlsplit(self.url).path.strip("/")
        folders = [str(each).removeprefix(prefix).strip("/") + "/" for each in listed["common_prefixes"]]
        return [*folders, *(str(each["path"]).removeprefix(prefix).strip("/") for each in listed["objects"])]

    def _asked(self, name: str, ask: Callable[[Any], Result]) -> Result:
        """The answer to a request, asked again after a pause where the way to the server failed.

        Raises:
            FileNotFoundError: There is no such object, and no such bucket would be another error.
            FileExistsError: The object is there already.
            StoreError: Anything else.
        """
        from obstore import exceptions as problems

        attempt = 0
        while True:
            attempt += 1
            try:
                return ask(self._opened())
            except FileNotFoundError as error:
                if _UNKNOWN.search(str(error)):
                    raise self._error("there is no such bucket", "", self._credentials()) from None
                raise FileNotFoundError(f"{self.url}/{name}") from None
            except problems.AlreadyExistsError:
                raise FileExistsError(f"{self.url}/{name}") from None
            except (PermissionError, problems.PermissionDeniedError, problems.UnauthenticatedError) as error:
                raise self._error(f"may not be read or written: {_brief(error)}", name, self._credentials()) from None
            except problems.BaseError as error:
                unsigned = _UNSIGNED.search(str(error)) is not None
                if unsigned:
                    raise self._error("no credentials were found", "", self._credentials()) from None
                if attempt == _TRIES or not isinstance(error, problems.GenericError):
                    what = f"cannot be reached, tried {attempt} times: {_brief(error)}"
                    advice = "Look at the address and the network. The same command continues."
                    raise self._error(what, name, advice) from None
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))

    def _opened(self) -> Any:
        """The client of this process."""
        if self._client is None:
            self._client, self._process = self._connected(), os.getpid()
        if self._process != os.getpid():
            raise StoreError(
                "a worker process cannot read it",
                path=self.url,
                advice="Set workers to 0: threads read stores elsewhere already, some batches ahead.",
            )
        return self._client

    def _connected(self) -> Any:
        try:
            from obstore.store import HTTPStore, from_url
        except ImportError:
            raise SettingsError(
                "addresses elsewhere need the package obstore", path=self.url, advice="pip install 'tymbal[remote]'"
            ) from None
        endpoints = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")]
        plain = self.scheme == "http" or any(each.startswith("http://") for each in endpoints)
        client: Any = {**_CLIENT, "allow_http": plain}
        retry: Any = {"max_retries": _RETRIES}
        if self.scheme.startswith("http"):
            return HTTPStore.from_url(self.url, client_options=client, retry_config=retry)
        more: dict[str, Any] = _aws_profile() if self.scheme == "s3" else {}
        return from_url(self.url, client_options=client, retry_config=retry, **more)

    def _credentials(self) -> str:
        return _CREDENTIALS.get(self.scheme, "The server wants a name or a key, which web addresses cannot give.")

    def _error(self, what: str, name: str, advice: str) -> StoreError:
        return StoreError(what, path=f"{self.url}/{name}" if name else self.url, advice=advice)


_COPY_AGAIN = "Copy the store there again, or make it again with `tymbal prepare`."


def _brief(error: Exception) -> str:
    """The first line of what the library says, without the document that a server sends along."""
    return re.split(r"\n|<\?xml|<html|: <", str(error), maxsplit=1)[0].strip(" :-")[:300]


def _aws_profile() -> dict[str, Any]:
    """Keys and region of the profile that AWS_PROFILE names, or the default one, where the environment has none."""
    named = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    if any(os.environ.get(name) for name in (*named, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")):
        return {}
    profile = os.environ.get("AWS_PROFILE", "default")
    files = {
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"): profile,
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"): profile if profile == "default" else f"profile {profile}",
    }
    values: dict[str, str] = {}
    for file, section in files.items():
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(file).expanduser())
        except (configparser.Error, OSError, RuntimeError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot be read: {error}", path=file) from None
        values |= dict(parser[section]) if parser.has_section(section) else {}
    keys = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"]
    if not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
        keys.append("region")
    return {key.removeprefix("aws_"): values[key] for key in keys if values.get(key)}


class Outgoing:
    """A store that is prepared here, in the cache, to be written elsewhere.

    Every object appears whole or not at all, and the description last, without which a folder is no store. Stopped, the
    same command continues: what has been written already is known by what the server says identifies it.

    Args:
        url: The address of the store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.folder = cache_folder() / "outgoing" / place_of(url)
        self._remote = RemoteFolder(url)
        if self._remote.scheme.startswith("http"):
            raise SettingsError("web addresses are for reading", path=url, advice="Write to s3://, gs:// or az://.")
        self._written = self.folder.with_name(f"{self.folder.name}.written.json")
        self._token = self.folder.with_name(f"{self.folder.name}.claim")

    def is_finished(self) -> bool:
        """Whether there is a store at the address."""
        return self._remote.etag(DESCRIPTION) is not None

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Path]:
        """Yields the folder to prepare into, when nobody else prepares for the address.

        Raises:
            StoreError: Somebody does, or something else lies there.
        """
        with sole_writer(self.folder):
            strange = set(self._remote.names()) - {f"{SHARDS}/", INDEX, FAILURES, f"{WORK}/"}
            if strange:
                raise StoreError(
                    f"is no store, and not empty: it holds {min(strange)}",
                    path=self.url,
                    advice="Choose a new address for the store.",
                )
            if not self._token.is_file():
                write_text(self._token, secrets.token_hex(8))
            token = self._token.read_bytes()
            try:
                self._remote.write(_CLAIM, token, new=True)
            except FileExistsError:
                if self._remote.read(_CLAIM) != token:
                    raise StoreError(
                        "somebody else prepares a store there, or has begun to",
                        path=self.url,
                        advice=f"Wait until it is done, or choose another address. If nobody does, delete {_CLAIM}.",
                    ) from None
            yield self.folder

    def publish(self) -> None:
        """Writes the finished store in the folder to its address, and then deletes it here.

        Raises:
            StoreError: Something cannot be written.
        """
        names = [path.relative_to(self.folder).as_posix() for path in sorted((self.folder / SHARDS).glob("*.npy"))]
        names += [name for name in (INDEX, FAILURES) if (self.folder / name).is_file()]
        written = self._written_before()
        with Progress(len(names), f"Writing to {self.url}", unit="files") as progress:
            for name in names:
                if name not in written or self._remote.etag(name) != written[name]:
                    written[name] = self._remote.write(name, self.folder / name)
                    write_json(self._written, written)
                progress.advance()
        self._remote.write(DESCRIPTION, self.folder / DESCRIPTION)
        self._remote.delete(_CLAIM)
        shutil.rmtree(self.folder)
        for path in (self._written, self._token):
            path.unlink(missing_ok=True)

    def _written_before(self) -> dict[str, str | None]:
        try:
            written = read_json(self._written)
        except (OSError, ValueError):
            return {}
        return written if isinstance(written, dict) else {}


_CLAIM = f"{WORK}/claim"
