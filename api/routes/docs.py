"""The API's own description as a page. It loads nothing from elsewhere, so it works without a network."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"


@router.get("/")
async def root() -> RedirectResponse:
    """To the page."""
    return RedirectResponse("/docs")


@router.get("/docs")
def docs() -> HTMLResponse:
    """The page: /openapi.json, readable."""
    page = resources.files("api").joinpath("static", "docs.html").read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})
