"""Whose pages may talk to the MONAI Label server; needs nothing of MONAI Label."""

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[3] / "integrations" / "monailabel" / "avsm_label" / "origins.py"
_SPEC = importlib.util.spec_from_file_location("origins", _FILE)
origins = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(origins)
LOOPBACK = r"https?://(localhost|127\.0\.0\.1)(:\d+)?"


def ask(headers, kind="http", **options):
    """What a request with these headers gets: the app's 200, a refusal's status, or the code of a closed socket."""
    sent = []

    async def served(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers]}
    asyncio.run(origins.OwnOrigins(served, **options)(scope, None, send))
    if sent[0].get("status") == 403:
        assert "pages of other sites" in json.loads(sent[1]["body"])["detail"]
    return sent[0].get("status", sent[0].get("code"))


HOST = ("host", "127.0.0.1:8000")
CASES = [
    ("a program", [], 200),
    ("own page", [("origin", "http://127.0.0.1:8000"), ("sec-fetch-site", "same-origin")], 200),
    ("behind a proxy with TLS", [("origin", "https://127.0.0.1:8000")], 200),
    ("typed address", [("sec-fetch-site", "none")], 200),
    ("form of another site", [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")], 403),
    ("sandboxed frame", [("origin", "null")], 403),
    ("picture of another site", [("sec-fetch-site", "cross-site")], 403),
    ("page beside", [("sec-fetch-site", "same-site")], 403),
    ("other port", [("origin", "http://127.0.0.1:3000")], 403),
    ("name that begins alike", [("origin", "http://127.0.0.1:8000.evil.example")], 403),
    ("own and foreign", [("origin", "http://127.0.0.1:8000"), ("origin", "https://evil.example")], 403),
    ("no host", [("origin", "http://")], 403),
    ("bytes", [("origin", "\xff\xfe")], 403),
]


@pytest.mark.parametrize(("headers", "status"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_foreign_pages_are_refused(headers, status):
    assert ask([HOST, *headers]) == status


def test_named_origins_and_this_machines_are_allowed():
    viewer, here = ("origin", "https://viewer.example.org"), ("origin", "http://localhost:3000")
    assert ask([HOST, viewer], origins=["https://viewer.example.org/"]) == 200
    assert ask([HOST, here], origins=["https://viewer.example.org/"]) == 403
    assert ask([HOST, here], pattern=LOOPBACK) == 200
    assert ask([HOST, ("origin", "http://localhost:3000.evil.example")], pattern=LOOPBACK) == 403


def test_sockets_too():
    assert ask([HOST, ("origin", "https://evil.example")], kind="websocket") == 1008 and ask([], kind="lifespan") == 200
