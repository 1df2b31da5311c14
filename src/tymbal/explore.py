"""A page to look at sounds as a model does: `tymbal explore` serves it on this machine.

    tymbal explore classifier                    drop or record a sound: spectrogram, scores, attention
    tymbal explore run recordings                and its nearest neighbours in a folder, with sound
    tymbal explore run recordings.parquet        the same with what `tymbal embed` wrote, or a store

It needs the extra `explore` (Gradio). The page is reached from this machine alone and fetches nothing from elsewhere;
what is dropped on it is deleted when the next sound comes, or the page is closed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal.errors import SettingsError
from tymbal.pages.serving import address, free_port, own_folder
from tymbal.progress import say, tell
from tymbal.settings import ExploreSettings
from tymbal.settings.fields import changed
from tymbal.stopping import stop_at_once

if TYPE_CHECKING:
    from tymbal.exploring.app import Served
    from tymbal.exploring.library import Library
    from tymbal.exploring.model_view import ModelView

__all__ = ["ExploreResult", "explore"]


@dataclass(frozen=True)
class ExploreResult:
    """A page that was served.

    Attributes:
        url: The address that the page had.
    """

    url: str

    def summary(self) -> str:
        """The address that the page had."""
        return f"served at {self.url}"


def explore(
    model: str | Path,
    store: str | Path | None = None,
    *,
    config: str | Path | None = None,
    until: threading.Event | None = None,
    **settings: Any,
) -> ExploreResult:
    """Serves a page to look at sounds as a model does, until Ctrl-C.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        store: Where neighbours are looked for: a folder of sound, a store, or a `.parquet` file of `tymbal embed`. None
            shows none.
        config: YAML file with settings.
        until: Ends the page when it is set, for programs.
        **settings: See `tymbal.settings.ExploreSettings`.

    Raises:
        AudioError: No sound of the store can be read.
        ModelError: The model cannot be read, or the store or embeddings are not its own.
        SettingsError: A setting is wrong, the address cannot be had, or Gradio is not installed.
        StoreError: The store cannot be read.
    """
    chosen = configuration.resolve(ExploreSettings, settings, config=config)
    configuration.say_useless(chosen)
    _check_gradio()
    port = free_port(chosen.host, chosen.port)
    say(f"Starting: the page will be at {address(chosen.host, port)}")
    with stop_at_once(), _own_uploads() as folder:
        tell(f"Loading {model}")
        view, library, facts = _open(str(model), None if store is None else Path(store), chosen)
        tell("Loading Gradio, which serves the page")
        from tymbal.exploring import app
        from tymbal.exploring.uploads import Uploads

        built = app.build(view, library, Uploads(folder), facts=facts, top=chosen.top, minutes=chosen.minutes)
        most, together = (round(1e9 * size) for size in (chosen.upload_gb, chosen.uploads_gb))
        served = app.serve(
            built, folder, host=chosen.host, port=port, browser=chosen.browser, most=most, most_together=together
        )
        try:
            _wait(served, until or threading.Event())
        finally:
            served.close()
    return ExploreResult(served.url)


def _wait(served: Served, until: threading.Event) -> None:
    say(f"The page is at {served.url}  (Ctrl-C ends it)")
    if not served.local:
        say("Whoever reaches this address can use the page: there is no password.", style="yellow")
    while not until.wait(1.0):
        pass


def _check_gradio() -> None:
    """Refuses at once what would fail when the sounds are embedded."""
    if importlib.util.find_spec("gradio") is None:
        raise SettingsError(
            "the page needs Gradio, which is not installed", advice="Install it: pip install 'tymbal[explore]'"
        )


@contextlib.contextmanager
def _own_uploads() -> Iterator[Path]:
    """A folder for what is dropped, gone at the end. Gradio reads it, and its telemetry, from the environment."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    before = os.environ.get("GRADIO_TEMP_DIR")
    with own_folder("explore") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def _say_useless(chosen: ExploreSettings, library: Library | None) -> None:
    """Says which settings have no effect without sounds to compare with, or beside embeddings that are given."""
    useless = {"top": "nothing to compare with is given", "approximate": "nothing to compare with is given"}
    if library is not None:
        useless = {} if library.record["pooling"] == chosen.pooling else {"pooling": "the embeddings have their own"}
    for name in changed(chosen):
        if name in useless:
            tell(f"{name} has no effect: {useless[name]}", warning=True)


def _open(model: str, store: Path | None, chosen: ExploreSettings) -> tuple[ModelView, Library | None, str]:
    """The model, the sounds to compare with, and what the page says about both."""
    from tymbal.exploring.library import open_library
    from tymbal.exploring.model_view import ModelView
    from tymbal.inference.frontend import ready_model
    from tymbal.inference.streaming import cut_for

    ready = ready_model(model, chosen)
    embedder = ready.embedder(pooling=chosen.pooling)
    description, library = ready.description, None
    if store is not None:
        known = embedder.record()
        mels, pooling = description.features.mel_bins, str(known["pooling"])
        library = open_library(
            store, model=model, fingerprint=known["model"], mels=mels, pooling=pooling, settings=chosen
        )
        embedder = ready.embedder_like(library.record, index=library.name)
    scorer = ready.scorer() if description.labels else None
    _say_useless(chosen, library)
    window = chosen.window if library is None else library.window
    cut = cut_for(description, window=window, hop=chosen.hop)
    if chosen.hop is None:
        cut = cut_for(description, window=window, hop=max(1, cut.length // 2) / cut.rate)
    view = ModelView(embedder, cut, scorer=scorer, batch_size=chosen.batch_size)
    kind = f"{len(description.labels):,} labels" if description.labels else "no classifier"
    facts = f"{model}: windows of {view.window:.3g} s at {cut.rate:,} Hz, {kind}."
    if library is not None:
        facts += f" Neighbours are looked for among {len(library):,} sounds of {library.name}."
    return view, library, facts
