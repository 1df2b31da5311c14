"""What the Hugging Face Hub and the network answer, as errors that say what to do; of models and of data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tymbal.errors import ManifestError, ModelError, TymbalError

__all__ = ["plainly"]

Kind = Literal["model", "data set"]

_RAISED: dict[Kind, type[TymbalError]] = {"model": ModelError, "data set": ManifestError}
_REVISION = "Give a branch, a tag or a commit that it has, or none for its newest."


@contextmanager
def plainly(name: str, revision: str | None = None, *, kind: Kind = "model") -> Iterator[None]:
    """Turns what `huggingface_hub` and the network raise into errors that say what to do.

    Args:
        name: `owner/name` of what was asked for.
        revision: The branch, tag or commit that was asked for.
        kind: What it is.

    Raises:
        ModelError: Something failed, of a model.
        ManifestError: Something failed, of a data set.
    """
    from huggingface_hub import errors

    # The error of the HTTP client, which one that is depends on the version.
    of_client: type[Exception] = vars(errors)["HTTPError"]
    try:
        yield
    except (of_client, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise _plain_error(cause, name, revision, kind) from error


def _plain_error(error: BaseException, name: str, revision: str | None, kind: Kind) -> TymbalError:
    """What an error of the Hub or of the network means."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    token = "a token: hf auth login, or HF_TOKEN" if get_token() is None else "a token that may: another one is set"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    nowhere = f"{name} is neither a file nor a folder here"
    page, download = (f"datasets/{name}", f"--repo-type dataset {name}") if kind == "data set" else (name, name)
    if isinstance(error, errors.HFValidationError):
        what, advice = f"{nowhere}, nor a name on the Hugging Face Hub: {said}", "Check the path."
    elif isinstance(error, errors.RevisionNotFoundError):
        what, advice = f"{name} has no revision {revision} on the Hugging Face Hub", _REVISION
    elif isinstance(error, errors.GatedRepoError):
        what, advice = f"{name} is given on request only", f"Ask for it at {ENDPOINT}/{page}, and give {token}."
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = f"{nowhere}, and the Hugging Face Hub shows no {kind} of this name"
        advice = f"Check the name or the path. A private {kind} takes {token}."
    elif status in (401, 403):
        refused = "does not accept the token" if status == 401 else "does not allow this with the token"
        what, advice = f"the Hugging Face Hub {refused} for {name}", f"Give {token}."
    elif status is not None:
        what, advice = f"the Hugging Face Hub refused what was asked for {name}: {said}", "Try again later."
    else:
        why = "HF_HUB_OFFLINE forbids to ask" if HF_HUB_OFFLINE else f"{ENDPOINT} cannot be reached ({said})"
        what = f"{nowhere}, nor in the cache, and the Hugging Face Hub was not asked: {why}"
        advice = f"Check the path or the network; or download it where there is one: hf download {download}"
    return _RAISED[kind](what, advice=advice)
