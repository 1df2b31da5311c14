"""The page itself, in Gradio: which part is drawn anew when. What the parts show is decided in `drawing`.

The one module that imports Gradio. Nothing leaves the machine: no telemetry, no link to share, no fonts or scripts from
elsewhere (Gradio brings its own since 6.17.2, and the fonts are the system's).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tymbal.errors import SettingsError, TymbalError
from tymbal.exploring import drawing
from tymbal.exploring.library import Library
from tymbal.exploring.model_view import Look, ModelView, Survey
from tymbal.exploring.uploads import Guard, Uploads
from tymbal.pages.page import embedded_style, note
from tymbal.pages.serving import LOOPBACK

__all__ = ["Served", "build", "serve"]

_PLACES = (".gradio-container", ".dark .gradio-container, .gradio-container.dark")  # in the light and in the dark
_WAITING = "Going through the recording …"
_DROP = "Drop a sound above, or record one. It stays on this machine and is deleted when you close the page."
_PROGRESS = gr.Progress()  # Gradio fills it in where it is a default


@dataclass(frozen=True)
class Served:
    """A page that is served.

    Attributes:
        url: The address of the page.
        local: Whether it is reached from this machine alone.
        close: Ends it.
    """

    url: str
    local: bool
    close: Callable[[], None]


def build(
    view: ModelView, library: Library | None, uploads: Uploads, *, facts: str, top: int, minutes: float
) -> gr.Blocks:
    """Puts the page together.

    Args:
        view: The model.
        library: The sounds to compare with; None is none.
        uploads: Takes note of what is dropped.
        facts: The model and the sounds of the page, in a line.
        top: Neighbours that are shown.
        minutes: How much of a recording is looked at.
    """
    with gr.Blocks(title="Tymbal explorer", analytics_enabled=False, fill_width=True) as page:
        _html(f'<h1>Tymbal explorer</h1><p class="soft">{escape(facts)}</p>')
        _wire(page, _lay_out(), _Answers(view, library, uploads, top, 60 * minutes))
    return page


class _Layout(NamedTuple):
    """The components of the page, and its state: a look, the recording around it, and the chosen patch."""

    sound: gr.Audio
    other: gr.UploadButton
    notice: gr.HTML
    at: gr.Slider
    scores: gr.HTML
    recording: gr.HTML
    window: gr.HTML
    kind: gr.Radio
    token_map: gr.HTML
    neighbours: gr.HTML
    look: gr.State
    survey: gr.State
    patch: gr.State


def _lay_out() -> _Layout:
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            sound = gr.Audio(
                label="Sound",
                sources=["upload", "microphone"],
                type="filepath",
                buttons=[],
                editable=False,
                # The browser's own player takes any length; a drawn waveform would be decoded as a whole.
                waveform_options=gr.WaveformOptions(show_recording_waveform=False),
                elem_id="sound",
            )
            # Browsers do not know every format as sound (CAF, W64, the sound of an MP4): here anything can be given.
            other = gr.UploadButton("A file of another format", size="sm", elem_id="other")
            notice = _html(note(_DROP), elem_id="notice")
            at = gr.Slider(1, 2, 1, step=1, label="Window", visible=False, elem_id="at")
            scores = _html(elem_id="scores")
        with gr.Column(scale=5, min_width=320):
            recording = _html(elem_id="recording", script=_file("explore.js"))
            window = _html(elem_id="window", script=_file("explore.js"))
            kinds = [(name, key) for key, name in drawing.MAPS.items()]
            kind = gr.Radio(kinds, value="like", label="Map", visible=False, elem_id="kind")
            token_map = _html(elem_id="map", script=_file("explore.js"))
    neighbours = _html(elem_id="neighbours")
    states = (gr.State(None), gr.State(None), gr.State((0, 0)))
    return _Layout(sound, other, notice, at, scores, recording, window, kind, token_map, neighbours, *states)


def _wire(page: gr.Blocks, on: _Layout, answers: _Answers) -> None:
    """Connects events (a sound dropped, a patch clicked, a slider moved) with what they redraw."""
    shown = [on.look, on.patch, on.notice, on.scores, on.window, on.token_map, on.neighbours]
    still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    reported: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    on.other.upload(lambda path: path, on.other, on.sound, **still)
    dropped = on.sound.change(
        answers.drop,
        [on.sound, on.kind],
        [*shown, on.survey, on.recording, on.at, on.kind],
        show_progress_on=[on.notice],
        **reported,
    )
    surveyed = dropped.then(
        answers.survey,
        [on.sound, on.look],
        [on.survey, on.recording, on.notice, on.at],
        show_progress_on=[on.recording],
        **reported,
    )
    surveyed.then(answers.trace, [on.survey, on.look], on.recording, **still)
    on.at.release(answers.move, [on.sound, on.at, on.kind, on.survey], [*shown, on.recording], **still)
    on.recording.select(answers.pick, [on.sound, on.kind, on.survey], [*shown, on.recording, on.at], **still)
    for place in (on.window, on.token_map):
        place.select(answers.choose, [on.look, on.kind], [on.window, on.token_map, on.patch], **still)
    on.kind.change(answers.change, [on.look, on.kind, on.patch], on.token_map, **still)
    page.unload(answers.leave)


@dataclass(frozen=True)
class _Answers:
    """The handlers of the page's events: each returns new content in the order in which `_wire` names it.

    Attributes:
        view: The model.
        library: The sounds to compare with; None is none.
        uploads: Takes note of what is dropped.
        top: Neighbours that are shown.
        most: Seconds of a recording that are looked at.
    """

    view: ModelView
    library: Library | None
    uploads: Uploads
    top: int
    most: float

    def show(self, path: str | None, number: int, kind: str) -> list[Any]:
        """A window of a sound, or the reason why it cannot be shown."""
        if path is None:
            return [None, (0, 0), note(_DROP), "", "", "", ""]
        try:
            look = self.view.look(Path(path), number)
        except TymbalError as error:
            return [None, (0, 0), note(_message(error, path), warning=True), "", "", "", ""]
        return [look, look.loudest, "", drawing.scores(look, self.view), *self._maps(look, kind, look.loudest),
                self._neighbours(look)]  # fmt: skip

    def drop(self, path: str | None, kind: str, request: gr.Request) -> list[Any]:
        """Another sound, or none."""
        self.uploads.hold(str(request.session_hash), None if path is None else Path(path))
        shown = self.show(path, 0, kind)
        drawn = shown[0] is not None
        waiting = note(_WAITING) if drawn else ""
        return [*shown, None, waiting, gr.Slider(visible=False, value=1), gr.Radio(visible=drawn)]

    def survey(
        self, path: str | None, look: Look | None, request: gr.Request, progress: gr.Progress = _PROGRESS
    ) -> list[Any]:
        """The whole recording, behind its first window."""
        hidden = gr.Slider(visible=False)
        if path is None or look is None:
            return [None, "", gr.skip(), hidden]
        session, file = str(request.session_hash), Path(path)
        try:
            survey = self.view.survey(
                file,
                most=self.most,
                advance=lambda share: progress(share, desc=_WAITING),
                go_on=lambda: self.uploads.holds(session, file),
            )
        except TymbalError as error:
            return [None, "", note(_message(error, path), warning=True), hidden]
        if survey is None:
            return [gr.skip()] * 4
        windows = self.view.count(survey.seconds)
        return [
            survey,
            gr.skip(),
            gr.skip(),
            gr.Slider(visible=windows > 1, minimum=1, maximum=max(windows, 2), value=1),
        ]

    def trace(self, survey: Survey | None, look: Look | None) -> Any:
        """The recording around the window that is looked at by now."""
        return gr.skip() if survey is None or look is None else drawing.recording(survey, look, self.view)

    def move(self, path: str | None, window: int, kind: str, survey: Survey | None) -> list[Any]:
        """Another window, counted from 1."""
        shown = self.show(path, int(window) - 1, kind)
        return [*shown, self.trace(survey, shown[0])]

    def pick(self, path: str | None, kind: str, survey: Survey | None, event: gr.EventData) -> list[Any]:
        """Another window, clicked in the recording."""
        window = int(event.column) + 1
        return [*self.move(path, window, kind, survey), window]

    def choose(self, look: Look | None, kind: str, event: gr.EventData) -> list[Any]:
        """Another patch."""
        if look is None:
            return ["", "", (0, 0)]
        rows, columns = look.tokens.shape[:2]
        patch = min(max(int(event.row), 0), rows - 1), min(max(int(event.column), 0), columns - 1)
        return [*self._maps(look, kind, patch), patch]

    def change(self, look: Look | None, kind: str, patch: tuple[int, int]) -> str:
        """Another kind of map."""
        return "" if look is None else drawing.token_map(look, self.view, kind=kind, patch=(patch[0], patch[1]))

    def leave(self, request: gr.Request) -> None:
        """The end of a session."""
        self.uploads.hold(str(request.session_hash), None)

    def _maps(self, look: Look, kind: str, patch: tuple[int, int]) -> list[str]:
        drawn = drawing.window(look, self.view, patch=patch)
        return [drawn, drawing.token_map(look, self.view, kind=kind, patch=patch)]

    def _neighbours(self, look: Look) -> str:
        """What stands below: the neighbours of the window, and its views."""
        return self._nearest(look) + drawing.views(look)

    def _nearest(self, look: Look) -> str:
        title = "<h2>Neighbours <small>of this window</small></h2>"
        if self.library is None:
            return title + note("There is nothing to compare with. Give it too: tymbal explore MODEL STORE")
        try:
            return title + drawing.cards(self.library.nearest(look.embedding, self.top), self.library, self.view)
        except TymbalError as error:
            return title + note(str(error), warning=True)


def serve(
    page: gr.Blocks, folder: Path, *, host: str, port: int, browser: bool, most: int, most_together: int
) -> Served:
    """Serves a page until it is closed.

    Args:
        page: The page.
        folder: The folder of uploads.
        host: Address.
        port: Port.
        browser: Open it in a browser.
        most: Bytes that one upload may have.
        most_together: Bytes that all uploads may have together.

    Raises:
        SettingsError: The address or port cannot be had.
    """
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "Menlo", "Consolas", "monospace")
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=mono)
    # Another site's script that has its own name point to this machine is not answered.
    names = [*LOOPBACK, "[::1]", host] if host in LOOPBACK else ["*"]
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inline=False,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=most,  # what the page says by itself; the guard holds for all that is sent
            app_kwargs={
                "middleware": [
                    Middleware(TrustedHostMiddleware, allowed_hosts=names),
                    Middleware(Guard, folder=folder, most=most, most_together=most_together),
                ]
            },
            theme=theme,
            css=embedded_style(".gradio-container", ".dark .gradio-container, .gradio-container.dark")
            + _file("explore.css"),
        )
    except OSError:
        raise SettingsError(
            f"the page cannot be served at {host}:{port}: the port was taken meanwhile",
            advice="Run the same command again, or choose another --port.",
        ) from None
    return Served(url, host in LOOPBACK, partial(page.close, verbose=False))


def _html(value: str = "", *, elem_id: str | None = None, script: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, elem_classes="tymbal", apply_default_css=False, js_on_load=script)


def _message(error: TymbalError, path: str | None) -> str:
    """An error about what was dropped, without the place where it lies for the moment."""
    name = "" if path is None else Path(path).name
    return f"{name}: {error.what}" + (f"\n{error.advice}" if error.advice else "")


def _file(name: str) -> str:
    return resources.files("tymbal.exploring").joinpath(name).read_text(encoding="utf-8")
