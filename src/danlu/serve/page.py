"""The one page of the service: the look of the report pages, a form, a script of its own; nothing from elsewhere.

The page is the same for every model and holds nothing of it: its script asks /health what an item looks like. What a
browser may run is named by its hash in the policy, so that a text which got into the page would not run.
"""

import base64
import functools
import hashlib
import re
from pathlib import Path

import danlu.gallery
from danlu.gallery.charts import stylesheet

__all__ = ["page", "page_policy"]


@functools.cache
def page() -> str:
    """The page as HTML."""
    here, gallery = Path(__file__).parent, Path(danlu.gallery.__file__).parent
    text = (here / "page.html").read_text(encoding="utf-8")
    css = stylesheet() + (gallery / "page.css").read_text(encoding="utf-8")
    script = (gallery / "page.js").read_text(encoding="utf-8")
    for place, content in (("/* the style of the report pages */", css), ("/* their script */", script)):
        text = text.replace(place, content)
    return text


@functools.cache
def page_policy() -> str:
    """The Content-Security-Policy of the page: its own scripts and styles by their hashes, requests to this service."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page(), flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
