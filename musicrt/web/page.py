"""The page: a tab for each bundle, with what goes in on the left and what comes out on the right."""

from __future__ import annotations

import asyncio
import contextlib
import html
import tempfile
import threading
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from musicrt.runtime.errors import Cancelled, MusicRTError
from musicrt.web.settings import Setting
from musicrt.web.studio import Studio

_KEEP = 24 * 3600
"""Seconds for which files of users are kept, if the server runs so long."""
_WAITING = 64
"""Jobs of a bundle that may wait; more are refused."""
STOPPED = "Stopped before it was done; nothing was kept."


def build_page(studios: Sequence[Studio]) -> gr.Blocks:
    """A page that is ready to be launched. Jobs of one bundle wait in a queue; those of several run side by side.

    Not to be called where an event loop runs: the page is built in one of its own, because gradio opens one for each of its locks where
    none runs, and closes none of them.
    """
    return asyncio.run(_build(studios))


async def _build(studios: Sequence[Studio]) -> gr.Blocks:
    page: gr.Blocks = gr.Blocks(title="MusicRT", analytics_enabled=False, delete_cache=(3600, _KEEP))
    with page:
        gr.Markdown("# MusicRT")
        for number, studio in enumerate(studios):
            with gr.Tab(studio.title):
                _add_studio(studio, number)
    page.queue(default_concurrency_limit=1, max_size=_WAITING)
    return page


async def run_job(studio: Studio, source: str | None, values: Sequence[Any], progress: gr.Progress) -> AsyncGenerator[list[Any], None]:
    """What the page shows of a job, in the order of its outputs; once. Raises gr.Error with the words of a MusicRTError.

    To stop it, its task is cancelled, which gradio does for the session that asks: the work in its thread then ends at its next report,
    and nobody waits for that but the next job of the bundle.
    """
    folder = tempfile.TemporaryDirectory(prefix="musicrt-job-", ignore_cleanup_errors=True)
    left = threading.Event()

    def report(done: int, total: int, what: str) -> None:
        if left.is_set():
            raise Cancelled("stopped on the page")
        progress((done, total), desc=what)

    def clean(ended: asyncio.Task[Any]) -> None:
        if not ended.cancelled():
            ended.exception()  # asyncio complains of one that nobody has looked at
        folder.cleanup()

    work = asyncio.create_task(asyncio.to_thread(studio.run, source, values, Path(folder.name), report))
    try:
        await asyncio.wait([work])  # and not for the work itself, which would be cancelled too while its thread still writes
        try:
            result = work.result()
        except MusicRTError as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        shown = [result.facts, str(result.audio), str(result.picture), [str(path) for path in result.files]]
        yield [*shown, str(result.video)] if studio.wants_video else shown  # gradio takes copies before it comes back
    finally:
        left.set()
        work.add_done_callback(clean)


def _add_studio(studio: Studio, number: int) -> None:
    system = studio.codec.model.spec
    backend = studio.codec.backend
    gr.Markdown(f"{system.system}, variant {system.variant}, {system.sample_rate} Hz, on {backend.name} in {backend.precision}")
    with gr.Row():
        with gr.Column():
            source = _source(studio)
            with gr.Accordion("Settings", open=True):
                widgets = [_widget(setting) for setting in studio.settings]
            with gr.Row():
                button = gr.Button("Make music" if studio.wants_video else "Encode and decode", variant="primary", elem_classes="run")
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_classes="stop")
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

    async def run(given: Mapping[Any, Any], progress: gr.Progress = gr.Progress()) -> AsyncIterator[list[Any]]:  # noqa: B008 - how gradio finds it
        async with contextlib.aclosing(run_job(studio, given[source], [given[widget] for widget in widgets], progress)) as job:
            async for shown in job:
                yield shown

    aside: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    button.click(lambda: gr.Button(interactive=True), outputs=stop, **aside)
    running = button.click(
        run,
        inputs={source, *widgets},
        outputs=outputs,
        concurrency_limit=1,
        concurrency_id=f"bundle-{number}",
        api_name=f"run_{number}",
    )
    for ended in (running.success, running.failure):  # the latter after errors, and when the page is ready again after a stop
        ended(lambda: gr.Button(interactive=False), outputs=stop, **aside)
    stop.click(lambda: [STOPPED, *[None] * (len(outputs) - 1)], outputs=outputs, cancels=[running], **aside)


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
