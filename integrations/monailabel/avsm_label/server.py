"""The HTTP side: MONAI Label's endpoints that this app serves, with requests checked and mistakes told as 4xx.

MONAI Label lets an app bring its own server (``--uvicorn_app avsm_label.server:app``). Its own one answers most bad
requests with 500, accepts the path of any file as an image, and has endpoints that do not concern this app (slides,
proxies, logs, upload of weights, sessions with files outside the studies): those are not here.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from monailabel.config import settings
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, info, scoring, train
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import app_instance
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .errors import RequestError, refusal
from .origins import OwnOrigins
from .parameters import RESERVED

__all__ = ["app"]

_LOOPBACK = r"https?://(localhost|127\.0\.0\.1)(:\d+)?"


def _started() -> MONAILabelApp:
    """The app, built before the first request; a bad setting or folder ends the start with one line."""
    try:
        return app_instance()
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise SystemExit(f"error: {reason}") from error


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Tell the app that it runs in its server."""
    instance = app_instance()
    instance.server_mode(True)
    instance.on_init_complete()
    yield


async def _form_params(request: Request) -> dict[str, Any]:
    """The JSON text in the form field ``params``, or ``info`` where that is the field's name."""
    form = await request.form()
    text = form.get("params", form.get("info", "{}"))
    return _object(text if isinstance(text, str) else None)


async def _body_params(request: Request) -> dict[str, Any]:
    """The JSON object that is the body."""
    body = await request.body()
    return _object(body.decode(errors="replace") if body.strip() else "{}")


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (json.JSONDecodeError, TypeError) as error:
        raise RequestError(f"params: not JSON ({error}); give an object of parameters") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RequestError(f"params: {text[:60]!r} is not a JSON object; give one of parameters")
    return found


def _no_reserved(params: dict[str, Any], where: str) -> None:
    for key in sorted(RESERVED & params.keys()):
        raise RequestError(f"{key}: cannot be given in params; {where}")


async def check_infer(request: Request) -> None:
    """Refuse an inference that cannot be served, before anything is read."""
    query, instance = request.query_params, app_instance()
    task = instance.task("models", request.path_params["model"])
    if query.get("session_id"):
        raise RequestError("session_id: sessions are not served; upload the image by PUT /datastore/image")
    form = await request.form()
    for name in ("file", "label"):
        if form.get(name):
            where = "image" if name == "file" else "label"
            raise RequestError(f"{name}: is not taken here; upload it by PUT /datastore/{where} and name its image")
    if not query.get("image"):
        raise RequestError("image: is missing; give the id of an image, .../infer/MODEL?image=ID")
    instance.datastore().get_image_uri(query["image"])
    if query.get("output") == "dicom_seg":
        raise RequestError("output: dicom_seg needs DICOM studies; give image, json or all")
    params = await _form_params(request)
    _no_reserved(params, "name the image in the address")
    task.check({**params, "image": query["image"]})


async def check_batch(request: Request) -> None:
    """Refuse a batch inference whose parameters cannot be served for any image."""
    if request.method != "POST":
        return
    task = app_instance().task("models", request.path_params["model"])
    params = await _body_params(request)
    _no_reserved(params, "name the images in the address, ?images=all, labeled or unlabeled")
    if params.get("device") == "cuda":
        params.pop("device")  # MONAI Label's own default
    task.check({**params, "image": None})


async def check_train(request: Request) -> None:
    """Refuse a training that cannot be started."""
    if request.method != "POST":
        return
    instance, params, model = app_instance(), await _body_params(request), request.path_params.get("model")
    if model is None:
        # OHIF's form: all trainers at once, each with parameters under its name.
        for name in params:
            _train_params(instance.task("trainers", name), params[name])
        return
    _train_params(instance.task("trainers", model), params)


def _train_params(task: Any, params: Any) -> None:
    if not isinstance(params, dict):
        raise RequestError(f"params: {params!r} is not a JSON object; give one of parameters")
    _no_reserved(params, "the task is named in the address")
    task.check(params)


async def check_strategy(request: Request) -> None:
    """Refuse a strategy's parameters that cannot be served."""
    task = app_instance().task("strategies", request.path_params["strategy"])
    params = await _body_params(request)
    _no_reserved(params, "a strategy finds the image itself")
    if hasattr(task, "check"):
        task.check(params)


async def check_scoring(request: Request) -> None:
    """Refuse a scoring method that does not exist; this app has none."""
    if "method" in request.path_params:
        app_instance().task("scoring", request.path_params["method"])


async def check_datastore(request: Request) -> None:
    """Refuse parameters of uploads that are no JSON object."""
    if request.method == "PUT":
        await _form_params(request)


_started()
app = FastAPI(
    title="AVSM in MONAI Label", openapi_url="/openapi.json", docs_url=None, redoc_url=None, lifespan=lifespan
)
_ORIGINS = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
_PATTERN = None if _ORIGINS else _LOOPBACK
app.add_middleware(
    CORSMiddleware, allow_origins=_ORIGINS, allow_origin_regex=_PATTERN, allow_methods=["*"], allow_headers=["*"]
)
app.add_middleware(OwnOrigins, origins=_ORIGINS, pattern=_PATTERN)
# A page of another site must not reach this server under a name of its own (DNS rebinding).
app.add_middleware(
    TrustedHostMiddleware, allowed_hosts=os.environ.get("AVSM_LABEL_HOSTS", "127.0.0.1,localhost").split(",")
)
for endpoint, check in (
    (info, None),
    (infer, check_infer),
    (batch_infer, check_batch),
    (train, check_train),
    (activelearning, check_strategy),
    (scoring, check_scoring),
    (datastore, check_datastore),
):
    app.include_router(endpoint.router, dependencies=[Depends(check)] if check else [])


@app.exception_handler(Exception)
async def unexpected(_: Request, error: Exception) -> JSONResponse:
    """A fault of the server; its traceback is in the log."""
    return JSONResponse({"detail": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}, 500)


@app.middleware("http")
async def mistakes(request: Request, call_next: Any) -> Any:
    """Tell a client's mistakes, wherever they were found, with their reason."""
    try:
        return await call_next(request)
    except Exception as error:
        found = refusal(error)
        if found is None:
            raise
        return JSONResponse({"detail": str(found)}, found.status)


@app.get("/", include_in_schema=False)
async def documentation() -> HTMLResponse:
    """The endpoints, to be tried out in a browser."""
    return get_swagger_ui_html(openapi_url=app.openapi_url, title=app.title)
