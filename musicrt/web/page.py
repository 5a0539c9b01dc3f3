"""The page: a tab for each bundle, with what goes in on the left and what comes out on the right."""

from __future__ import annotations

import html
import tempfile
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from musicrt.runtime.errors import MusicRTError
from musicrt.web.settings import Setting
from musicrt.web.studio import Studio

_KEEP = 24 * 3600
"""Seconds for which files of users are kept, if the server runs so long."""


def build_page(studios: Sequence[Studio]) -> gr.Blocks:
    """A page that is ready to be launched. Jobs of one bundle wait in a queue; those of several run side by side."""
    page: gr.Blocks = gr.Blocks(title="MusicRT", analytics_enabled=False, delete_cache=(3600, _KEEP))
    with page:
        gr.Markdown("# MusicRT")
        for number, studio in enumerate(studios):
            with gr.Tab(studio.title):
                _add_studio(studio, number)
    page.queue(default_concurrency_limit=1)
    return page


def run_job(studio: Studio, source: str | None, values: Sequence[Any], progress: gr.Progress) -> Iterator[list[Any]]:
    """What the page shows of a job, in the order of its outputs; once. Raises gr.Error with the words of a MusicRTError."""
    with tempfile.TemporaryDirectory(prefix="musicrt-web-") as name:  # gradio takes copies before it comes back
        try:
            result = studio.run(source, values, Path(name), lambda done, total, what: progress((done, total), desc=what))
        except MusicRTError as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        shown = [result.facts, str(result.audio), str(result.picture), [str(path) for path in result.files]]
        yield [*shown, str(result.video)] if studio.wants_video else shown


def _add_studio(studio: Studio, number: int) -> None:
    system = studio.codec.model.spec
    backend = studio.codec.backend
    gr.Markdown(f"{system.system}, variant {system.variant}, {system.sample_rate} Hz, on {backend.name} in {backend.precision}")
    with gr.Row():
        with gr.Column():
            source = _source(studio)
            with gr.Accordion("Settings", open=True):
                widgets = [_widget(setting) for setting in studio.settings]
            button = gr.Button("Make music" if studio.wants_video else "Encode and decode", variant="primary", elem_classes="run")
        with gr.Column():
            facts = gr.Textbox(label="Result", interactive=False, elem_classes="facts")
            outputs: list[Any] = [
                facts,
                gr.Audio(label="Music" if studio.wants_video else "Decoded", interactive=False, buttons=["download"]),
            ]
            picture = gr.Image(label="Spectrograms", show_label=False, interactive=False, buttons=["fullscreen"], elem_classes="picture")
            outputs += [picture, gr.File(label="Downloads", interactive=False, elem_classes="downloads")]
            if studio.wants_video:
                outputs.append(gr.Video(label="Video with the music", interactive=False, buttons=["download"]))

    def run(given: Mapping[Any, Any], progress: gr.Progress = gr.Progress()) -> Iterator[list[Any]]:  # noqa: B008 - how gradio finds it
        yield from run_job(studio, given[source], [given[widget] for widget in widgets], progress)

    button.click(
        run,
        inputs={source, *widgets},
        outputs=outputs,
        concurrency_limit=1,
        concurrency_id=f"bundle-{number}",
        api_name=f"run_{number}",
    )


def _source(studio: Studio) -> Any:
    if studio.wants_video:
        return gr.Video(label="Video", sources=["upload"], buttons=[])
    return gr.Audio(label="Audio", type="filepath", sources=["upload", "microphone"], buttons=[])


def _widget(setting: Setting) -> Any:
    """What a setting is made with; its value is None where nothing is given."""
    words: dict[str, Any] = {"label": setting.label, "info": setting.flag.help, "elem_classes": f"setting-{setting.name}"}
    kind = setting.flag.kind
    if typing.get_origin(kind) is Literal:
        return gr.Dropdown(list(typing.get_args(kind)), value=setting.default, **words)
    if kind is bool:
        return gr.Checkbox(value=setting.default, **words)
    if kind is Path:
        return gr.File(label=f"{setting.label}: {setting.flag.help}", file_count="single", height=100)
    if setting.default is None:  # a field of numbers can't be empty
        return gr.Textbox(placeholder="left to the system", **words)
    return gr.Number(value=setting.default, **words)
