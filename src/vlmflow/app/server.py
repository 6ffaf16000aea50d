"""The app's requests, and what answers them. Nothing here waits for the model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vlmflow.app.engine import Engine
from vlmflow.app.exchange import Exchange
from vlmflow.app.files import page, served_files
from vlmflow.app.guard import Application, Guard, RefusedError
from vlmflow.app.jobs import Job, Work
from vlmflow.app.limits import Limits
from vlmflow.app.pictures import SAMPLE_NAMES, KeptPicture, sample_picture, uploaded_picture
from vlmflow.app.store import Store
from vlmflow.errors import InputError, VlmflowError
from vlmflow.lvlm.tokens import refuse_surrogates

SWEEP_SECONDS = 2.0
AT_ONCE = 8
"""Uploads that are received at the same time; further ones wait."""

GONE = "this is not kept any more: links end when the app does, or a few hours after their last use"


class App:
    """One running app: what it keeps, and its routes.

    Parameters
    ----------
    engine : Engine
        The model, and the queue before it.
    limits : Limits
        What is taken and kept.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        half = limits.kept_bytes // 2
        self._uploads = asyncio.Semaphore(AT_ONCE)
        self.pictures: Store[KeptPicture] = Store(half, limits.kept_seconds)
        self.answers: Store[Exchange] = Store(half, limits.kept_seconds)

    def application(self, token: str | None) -> Application:
        """Return the ASGI application."""
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/", self.show_page, methods=get),
            Route("/answers/{answer}", self.show_page, methods=get),
            Route("/files/{name}", self.file, methods=get),
            Route("/about", self.about, methods=get),
            Route("/model", self.wake, methods=post),
            Route("/pictures", self.add_picture, methods=post),
            Route("/pictures/{picture}", self.picture, methods=get),
            Route("/answers", self.ask, methods=post),
            Route("/answers/{answer}/summary", self.summary, methods=get),
            Route("/answers/{answer}/page", self.result, methods=get),
            Route("/answers/{answer}/report.html", self.report, methods=get),
            Route("/answers/{answer}/numbers.zip", self.numbers, methods=get),
            Route("/answers/{answer}/truncated", self.truncate, methods=post),
            Route("/answers/{answer}/removal", self.remove, methods=post),
            Route("/answers/{answer}/trust", self.test, methods=post),
            Route("/jobs/{job}", self.watch, methods=get),
            Route("/jobs/{job}/cancel", self.cancel, methods=post),
        ]
        handlers: Mapping[Any, Callable[[Request, Exception], Any]] = {
            VlmflowError: _refusal,
            HTTPException: _missing,
            RefusedError: _cut_off,
            ClientDisconnect: _cut_off,
            500: _bug,
        }
        inner = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        return Guard(inner, token, self._body_bytes, self.limits.body_seconds)

    async def show_page(self, _request: Request) -> Response:
        """Send the page."""
        return Response(page(), media_type="text/html; charset=utf-8")

    async def file(self, request: Request) -> Response:
        """Send one of the app's own files."""
        entry = served_files().get(request.path_params["name"])
        if entry is None:
            raise HTTPException(404)
        content, kind = entry
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    async def about(self, _request: Request) -> Response:
        """Say what can be asked of which model, once that is known."""
        limits = self.limits
        return JSONResponse(
            {
                **self.engine.about(),
                "samples": [
                    {"picture": name, "question": sample_picture(name)[1]} for name in SAMPLE_NAMES
                ],
                "most": {
                    "pictures": limits.pictures,
                    "picture_bytes": limits.picture_bytes,
                    "new_tokens": limits.new_tokens,
                    "question": limits.question_characters,
                },
            }
        )

    async def wake(self, _request: Request) -> Response:
        """Load the model, if it is not there yet; the page asks for it once it is drawn."""
        self.engine.worker.prepare()
        return JSONResponse({})

    async def add_picture(self, request: Request) -> Response:
        """Keep an uploaded picture or video."""
        name = request.query_params.get("name", "")
        async with self._uploads:
            content = await request.body()
        most, longest = self.limits.picture_pixels, self.limits.video_seconds
        kept = await run_in_threadpool(uploaded_picture, content, name, most, longest)
        width, height = kept.image.size
        return JSONResponse(
            {"picture": self.pictures.add(kept, kept.size), "width": width, "height": height}
        )

    async def picture(self, request: Request) -> Response:
        """Send a small copy of a picture."""
        kept = self._picture(request.path_params["picture"])
        return Response(await run_in_threadpool(kept.display_copy), media_type="image/png")

    async def ask(self, request: Request) -> Response:
        """Queue a question; its answer comes with the job."""
        wanted = await _json(request)
        exchange = self._exchange(wanted)
        name = self.answers.add(exchange, exchange.size)
        answering = self.engine.asking(exchange)

        def work(job: Job) -> None:
            try:
                answering(job)
            except BaseException:  # without an answer there is nothing that a link could open
                self.answers.drop(name)
                raise

        return self._queued(name, work)

    async def summary(self, request: Request) -> Response:
        """Send what is known about an answer beside the report."""
        return JSONResponse(self._answer(request)[1].summary())

    async def result(self, request: Request) -> Response:
        """Send the result's part of the page."""
        exchange = self._measured(request)
        return Response(exchange.page, media_type="text/html; charset=utf-8")

    async def report(self, request: Request) -> Response:
        """Send the report as one file."""
        exchange = self._measured(request)
        content = await run_in_threadpool(self.engine.report, exchange)
        return _download(content, "report.html", "text/html; charset=utf-8")

    async def numbers(self, request: Request) -> Response:
        """Send all numbers as one archive."""
        exchange = self._measured(request)
        return _download(
            await run_in_threadpool(exchange.numbers), "numbers.zip", "application/zip"
        )

    async def truncate(self, request: Request) -> Response:
        """Queue the same question with image tokens removed."""
        wanted = await _json(request)
        return self._queued_for(request, lambda exchange: self.engine.truncating(exchange, wanted))

    async def remove(self, request: Request) -> Response:
        """Queue the removal curve."""
        return self._queued_for(request, self.engine.removing)

    async def test(self, request: Request) -> Response:
        """Queue the test of one map."""
        wanted = await _json(request)
        return self._queued_for(request, lambda exchange: self.engine.testing(exchange, wanted))

    async def watch(self, request: Request) -> Response:
        """Send what a job shows, as server-sent events, until its end."""
        events = _events(self._job(request))
        return StreamingResponse(events, media_type="text/event-stream")

    async def cancel(self, request: Request) -> Response:
        """Stop a job."""
        self.engine.worker.cancel(self._job(request))
        return JSONResponse({})

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async def sweeping() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                self.engine.worker.sweep()

        task = asyncio.create_task(sweeping())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _body_bytes(self, path: str) -> int:
        return self.limits.picture_bytes if path == "/pictures" else self.limits.body_bytes

    def _picture(self, name: str) -> KeptPicture:
        if name in SAMPLE_NAMES:
            return sample_picture(name)[0]
        kept = self.pictures.get(name)
        if kept is None:
            raise HTTPException(404, "this picture is not kept any more; drop it in again")
        return kept

    def _exchange(self, wanted: Mapping[str, Any]) -> Exchange:
        question, names = wanted.get("question"), wanted.get("pictures")
        longest = wanted.get("max_new_tokens", 64)
        limits = self.limits
        if not isinstance(question, str) or not question.strip():
            raise InputError("the question is empty; write something")
        refuse_surrogates(question, "the question")
        if len(question) > limits.question_characters:
            raise InputError(
                f"the question has {len(question):,} characters; ask in at most "
                f"{limits.question_characters:,}"
            )
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError("no pictures were named; drop one in or take a sample")
        if not 1 <= len(names) <= limits.pictures:
            raise InputError(
                f"{len(names)} pictures were given; ask about 1 to {limits.pictures} of them"
            )
        if type(longest) is not int or not 1 <= longest <= limits.new_tokens:
            raise InputError(f"the longest answer has to be 1 to {limits.new_tokens} tokens")
        kept = [self._picture(name) for name in names]
        regions = kept[0].regions if len(kept) == 1 else None
        return Exchange(
            tuple(picture.asked for picture in kept), tuple(names), question, longest, regions
        )

    def _answer(self, request: Request) -> tuple[str, Exchange]:
        name = request.path_params["answer"]
        exchange = self.answers.get(name)
        if exchange is None:
            raise HTTPException(404, GONE)
        return name, exchange

    def _measured(self, request: Request) -> Exchange:
        _, exchange = self._answer(request)
        if exchange.flow is None:
            raise HTTPException(404, "this answer is not measured yet")
        return exchange

    def _job(self, request: Request) -> Job:
        job = self.engine.worker.job(request.path_params["job"])
        if job is None:
            raise HTTPException(404, "this work has ended; ask again")
        return job

    def _queued_for(self, request: Request, work: Callable[[Exchange], Work]) -> Response:
        self._measured(request)
        name, exchange = self._answer(request)
        return self._queued(name, work(exchange))

    def _queued(self, name: str, work: Work) -> Response:
        def counted(job: Job) -> None:
            work(job)
            exchange = self.answers.get(name)
            if exchange is not None:
                self.answers.resize(name, exchange.size)

        return JSONResponse({"answer": name, "job": self.engine.worker.submit(counted).id})


async def _json(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "only JSON is understood here")
    try:
        wanted = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InputError("the request is not JSON") from error
    if not isinstance(wanted, dict):
        raise InputError("the request is not a JSON object")
    return wanted


async def _events(job: Job) -> AsyncIterator[str]:
    async for shown in job.watch():
        # A comment, where nothing has changed: it finds out whether anybody listens.
        yield ": still here\n\n" if shown is None else f"data: {json.dumps(shown)}\n\n"


def _download(content: bytes | str, name: str, kind: str) -> Response:
    headers = {
        "content-disposition": f'attachment; filename="{name}"',
        "content-security-policy": "sandbox; default-src 'none'",
    }
    return Response(content, media_type=kind, headers=headers)


async def _refusal(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


async def _missing(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


async def _cut_off(_request: Request, error: Exception) -> Response:
    """Answer a body that was not read to its end: nothing more can come on this connection."""
    status, reason = 400, "the request broke off"
    if isinstance(error, RefusedError):
        status, reason = error.status, error.reason
    return JSONResponse({"error": reason}, status_code=status, headers={"connection": "close"})


async def _bug(_request: Request, _error: Exception) -> Response:
    says = "something went wrong inside vlmflow; the terminal it was started in says what"
    return JSONResponse({"error": says}, status_code=500)
