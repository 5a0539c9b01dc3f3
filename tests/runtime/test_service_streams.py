"""Streams of a service, and its asyncio face: bounded on the way, stopped by who reads, and never in the way of the event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest

from musicrt.runtime.errors import BusyError, Cancelled, DeadlineError, InputError
from musicrt.runtime.model import load
from musicrt.runtime.serving.service import Service
from tests.conftest import refused
from tests.reference import signals
from tests.runtime.slow_codec import SOON, SlowCodec, number, until


def test_blocks_come_in_order_with_others_running_beside() -> None:
    with Service(SlowCodec(), workers=2) as service:
        stream = service.stream("decode_stream", number(10), blocks=6)
        assert service.submit("decode", number(1)).result(SOON)[0] == 1
        assert [float(block[0]) for block in stream] == [10, 11, 12, 13, 14, 15]
        assert stream.request.ran > 0
        with pytest.raises(StopIteration):
            next(stream)


def test_a_slow_reader_stops_the_worker_not_the_memory() -> None:
    codec = SlowCodec()
    with Service(codec) as service:
        stream = service.stream("decode_stream", number(0), blocks=9, ready=2)
        until(lambda: codec.made == 3)  # two lie ready, and one is held by the worker
        threading.Event().wait(0.05)
        assert codec.made == 3
        waiting = service.submit("decode", number(1))
        assert len(list(stream)) == 9
        assert waiting.result(SOON)[0] == 1


def test_closed_early_or_dropped_it_frees_its_worker() -> None:
    codec = SlowCodec()
    with Service(codec) as service:
        with service.stream("decode_stream", number(0), blocks=99) as stream:
            next(stream)
        with pytest.raises(Cancelled):
            next(stream)
        assert service.submit("decode", number(1)).result(SOON)[0] == 1
        for _ in service.stream("decode_stream", number(0), blocks=99):
            break
        gc.collect()
        assert service.submit("decode", number(2)).result(SOON)[0] == 2
        assert codec.ended == 2


def test_nothing_keeps_a_stream_that_was_read() -> None:
    with Service(SlowCodec()) as service:
        stream = service.stream("decode_stream", number(0))
        assert len(list(stream)) == 4
        request = weakref.ref(stream.request)
        gc.disable()
        try:
            del stream
            until(lambda: request() is None)
        finally:
            gc.enable()


def test_nobody_holds_a_worker_longer_than_patience() -> None:
    codec = SlowCodec()
    with Service(codec, patience=0.2) as service:
        stream = service.stream("decode_stream", number(0), blocks=99, ready=1)
        assert service.submit("decode", number(1)).result(SOON)[0] == 1
        assert float(next(stream)[0]) == 0  # what lay ready is still given
        with refused(DeadlineError, "nobody took a block for 0.2 s"):
            next(stream)
        assert codec.ended == 1


def test_errors_come_where_they_happened() -> None:
    codec = SlowCodec(running=False)
    with Service(codec) as service:
        with refused(InputError, "NaN"):
            codec.let()
            next(service.stream("decode_stream", number(np.nan)))
        codec.wait_for_begin()
        held = service.stream("decode_stream", number(0), deadline=0.2)
        codec.wait_for_begin()
        with refused(DeadlineError, "the queue"):
            next(service.stream("decode_stream", number(0), deadline=0.1))
        threading.Event().wait(0.15)
        codec.let()
        with refused(DeadlineError, "at work"):
            next(held)


# asyncio


def test_requests_are_awaited_together() -> None:
    async def work() -> None:
        async with Service(SlowCodec(), workers=2) as service:
            results = await asyncio.gather(*(service.submit("decode", number(value)) for value in range(5)))
            assert [float(result[0]) for result in results] == [0, 1, 2, 3, 4]
            with refused(InputError, "NaN"):
                await service.submit("decode", number(np.nan))

    asyncio.run(work())


def test_a_cancelled_task_cancels_its_request_between_two_steps() -> None:
    codec = SlowCodec(running=False)

    async def work() -> None:
        async with Service(codec) as service:
            request = service.submit("decode", number(0), steps=9)
            task = asyncio.ensure_future(request)
            await asyncio.to_thread(codec.wait_for_begin)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            codec.let()
            with refused(Cancelled, "decode was cancelled"):
                await asyncio.wrap_future(request)
            codec.let()
            assert (await service.submit("decode", number(2)))[0] == 2
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.submit("decode", number(3), steps=9), 0.05)
            codec.let()

    asyncio.run(work())
    assert codec.order == [0, 2, 3]


def test_a_stream_is_read_by_async_for_and_given_up_with_its_task() -> None:
    codec = SlowCodec()

    async def read(service: Service, blocks: int, pause: float) -> list[float]:
        read = []
        async for block in service.stream("decode_stream", number(0), blocks=blocks):
            read.append(float(block[0]))
            await asyncio.sleep(pause)
        return read

    async def work() -> None:
        async with Service(codec) as service:
            assert await read(service, 5, 0.0) == [0, 1, 2, 3, 4]
            task = asyncio.create_task(read(service, 1000, 0.01))
            await asyncio.to_thread(until, lambda: codec.made > 8)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await service.submit("decode", number(1)))[0] == 1
            async with service.stream("decode_stream", number(0), blocks=1000) as stream:
                async for block in stream:
                    if block[0] == 3:
                        break
            assert (await service.submit("decode", number(2)))[0] == 2

    asyncio.run(work())
    assert codec.ended == 3


def test_waiting_for_a_block_ends_with_the_task() -> None:
    codec = SlowCodec(running=False)

    async def work() -> None:
        async with Service(codec) as service:
            stream = service.stream("decode_stream", number(0))
            task = asyncio.ensure_future(anext(stream))
            await asyncio.to_thread(codec.wait_for_begin)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            codec.let()
            with pytest.raises(Cancelled):
                await asyncio.wrap_future(stream.request)

    asyncio.run(work())
    assert (codec.made, codec.ended) == (0, 1)


def test_a_full_queue_refuses_in_a_coroutine_too() -> None:
    codec = SlowCodec(running=False)

    async def work() -> None:
        async with Service(codec, queue=1) as service:
            first = service.submit("decode", number(0))
            await asyncio.to_thread(codec.wait_for_begin)
            second = service.submit("decode", number(1))
            with pytest.raises(BusyError):
                service.stream("decode_stream", number(2))
            codec.let(2)
            await asyncio.gather(first, second)

    asyncio.run(work())


def test_the_event_loop_goes_on_while_a_real_codec_works() -> None:
    """A task that wakes up every 2 ms does so all along: the longest gap is a fraction of what a blocked loop would show."""
    pytest.importorskip("onnxruntime")
    gaps: list[float] = []

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.002)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def work() -> None:
        with load(threads=1) as codec:
            latents = codec.encode(signals.audio("music", 2.0, 44100))
            async with Service(codec, workers=1) as service:
                ticker = asyncio.create_task(tick())
                request = service.submit("decode", latents, steps=3, seed=7)
                audio = await request
                streamed = [block async for block in service.stream("decode_stream", latents, steps=3, seed=7, window=1.0, overlap=0.2)]
                ticker.cancel()
                assert audio.shape == np.concatenate(streamed, axis=1).shape
                assert len(gaps) > 10
                assert max(gaps) < request.ran

    asyncio.run(work())
