"""Our HTML pages: everything in them is escaped, and nothing but their own style and script is allowed to run."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from jobs.shell import formatting

_LOADER = jinja2.PackageLoader("jobs.viewing")
# Control characters of keys are replaced; what is markup already stays as it is.
_TEMPLATES = jinja2.Environment(
    loader=_LOADER,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: formatting.printable(value) if type(value) is str else value,
)
_TEMPLATES.filters["share"] = lambda value: formatting.share(value).replace("%", " %")
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["autolink", "image", "link"])


def report(context: Mapping[str, Any]) -> str:
    """A report, which asks nobody for anything: its policy is within it."""
    return _still("report.html.j2", _source("report.js"), context)


def evaluation(context: Mapping[str, Any]) -> str:
    """An evaluation, which has no script."""
    return _still("evaluation.html.j2", "", context)


def training(context: Mapping[str, Any]) -> str:
    """What a training learned, which has no script."""
    return _still("training.html.j2", "", context, _source("training.css"))


def _still(template: str, script: str, context: Mapping[str, Any], more_style: str = "") -> str:
    """A page that needs no server, with its policy within it."""
    style = _source("report.css") + more_style
    policy = _policy(style, script, "img-src data:")
    return _TEMPLATES.get_template(template).render(style=style, script=script, policy=policy, **context)


def markdown(text: str) -> Markup:
    """Markdown of ours as HTML, its title a heading of the third rank.

    What looks like HTML, a link or a picture in it is text, since names are data.
    """
    tokens = _MARKDOWN.parse("\n".join(map(formatting.printable, text.split("\n"))))
    for token in tokens:
        token.tag = "h3" if token.tag == "h1" else token.tag
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def review(scale: str) -> tuple[str, str]:
    """The review page, and the policy to send with it; `scale` is the data URI of the colours of heatmaps."""
    parts = ("review_view.js", "review_draw.js", "review_list.js", "review.js")
    style, script = _source("review.css"), Markup("\n").join(map(_source, parts))
    page = _TEMPLATES.get_template("review.html.j2").render(style=style, script=script, scale=scale)
    return page, _policy(style, script, "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'")


def _source(name: str) -> Markup:
    """A style sheet or script of ours, as it is."""
    return Markup(_LOADER.get_source(_TEMPLATES, name)[0])


def _policy(style: str, script: str, also: str) -> str:
    """A Content-Security-Policy that allows this style and this script, and no other."""
    sources = f"style-src {_hash(style)}; script-src {_hash(script)}"
    return f"default-src 'none'; {sources}; {also}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
