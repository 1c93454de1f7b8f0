"""The web page's files: what is sent with them, and that they keep the page's own policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import api.web
from api.web.files import load_files
from strucprune_core.report import html

STATIC = Path(api.web.__file__).parent / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))


@pytest.fixture
def anonymous(client: TestClient) -> TestClient:
    """The page is for everyone: it asks for the key itself."""
    del client.headers["Authorization"]
    return client


def test_the_page_and_its_files(anonymous: TestClient) -> None:
    page = anonymous.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for name in re.findall(r'(?:src|href)="static/([^"]+)"', page.text):
        answer = anonymous.get(f"/static/{name}")
        assert answer.status_code == 200, name
        assert answer.content == (STATIC / name).read_bytes()
    assert anonymous.get("/static/app.js").headers["Content-Type"].startswith("text/javascript")
    assert anonymous.head("/").status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/page.css"])
def test_headers(anonymous: TestClient, path: str) -> None:
    headers = anonymous.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-cache"


def test_the_description_of_the_api(anonymous: TestClient) -> None:
    """Swagger UI, from files of ours only, under the page's policy as far as it works with it."""
    page = anonymous.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 4
    for name in files:
        assert anonymous.get(f"/{name}").status_code == 200, name
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|javascript:|https?:", page.text)
    headers = page.headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["X-Frame-Options"] == "DENY"
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == (
        "nosniff",
        "no-referrer",
    )


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/static/docs.js", "/static-offline-docs/swagger-ui.css"),
        *("/static-offline-docs/nothing", "/healthz", "/metrics", "/nowhere", "/v1/pruning-jobs"),
    ],
)
def test_nothing_may_be_framed_or_taken_for_another_type(anonymous: TestClient, path: str) -> None:
    headers = anonymous.get(path).headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert (headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
    assert headers.get_list("X-Content-Type-Options") == ["nosniff"]


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
def test_known_files_are_not_sent_again(anonymous: TestClient, path: str) -> None:
    etag = anonymous.get(path).headers["ETag"]
    for known in (etag, f'"other", W/{etag}'):
        again = anonymous.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == etag
        assert again.headers["Content-Security-Policy"]
    assert anonymous.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["other.js", "..%2f__init__.py", "%2e%2e%2ffiles.py", "."])
def test_nothing_else_is_served(anonymous: TestClient, name: str) -> None:
    assert anonymous.get(f"/static/{name}").status_code == 404


def test_the_page_is_not_part_of_the_documented_api(anonymous: TestClient) -> None:
    paths = anonymous.get("/openapi.json").json()["paths"]
    assert not {"/", "/static/{name}"} & set(paths)


def test_every_file_is_served() -> None:
    assert set(load_files()) == {path.name for path in STATIC.iterdir()}


def test_etags_follow_the_content() -> None:
    etags = [file.etag for file in load_files().values()]
    assert len(set(etags)) == len(etags)


def test_every_import_is_there() -> None:
    found = [
        (script.name, name)
        for script in SCRIPTS
        for name in re.findall(r'from "([^"]+)"', script.read_text(encoding="utf-8"))
    ]
    assert found
    for script, name in found:
        assert name.startswith("./"), f"{script} imports {name}, which is not ours"
        assert (STATIC / name).is_file(), f"{script} imports {name}"


def test_nothing_is_inline_or_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert "<style" not in page
    assert not re.search(r"\s(style|on\w+)=", page)
    assert not re.search(r"<script(?![^>]*src=)", page)
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text), path.name


def test_the_colours_are_the_reports() -> None:
    palette = (STATIC / "palette.css").read_text(encoding="utf-8")
    own = palette.split("*/\n", 1)[1].strip()
    assert own.startswith(":root {")
    style = Path(html.__file__).parent / "templates/style.css"
    assert own in style.read_text(encoding="utf-8")
