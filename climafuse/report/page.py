"""The page of `climafuse demo`: choose a time and a place, ask, see answer, checks and where the answer comes from.

Layout and events only: what happens is in `inquiry.py`, and who may reach the page in `serving.py`. From the page
come texts, truth values and points on a map. To the page go pictures as data and texts that cannot be taken for markup.
"""

from __future__ import annotations

import asyncio
import base64
import html
import importlib
import os
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, TypeVar

from climafuse.backbones import labeled
from climafuse.data.variables import VARIABLES
from climafuse.errors import ClimafuseError, UsageError, spelled_out
from climafuse.report.inquiry import LONGEST_PROMPT, Inquiry, Told, long_name
from climafuse.report.samples import Picture

T = TypeVar("T")

MOST_TIMES = 500  # in the list; others are typed
QUEUE = 32  # who comes when so many wait is told to come again

# What Gradio would otherwise tell or ask its makers when it is imported or used.
_SILENCE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

_VERDICTS = {
    True: ("right", "✓ right"),
    False: ("wrong", "✗ wrong"),
    None: ("open", "? not in the fields"),
}

_COLUMNS = ("fact", "said", "from the fields", "exactly", "verdict")

# A click on the map, as shares of its width and height.
_POINTING = """
element.addEventListener('click', event => {
  const map = event.target.closest('img');
  if (!map) return;
  const at = map.getBoundingClientRect();
  const share = (value, length) => Math.min(Math.max(value / length, 0), 1);
  trigger('click', {x: share(event.clientX - at.left, at.width), y: share(event.clientY - at.top, at.height)});
});
"""

# Gradio writes each rule twice, as it stands and for what is inside the page, but those of a media query only inside.
CSS = """
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; --accent: #0a6485; --quiet: #566370;
  --button-primary-background-fill: #0a6485; --button-primary-background-fill-hover: #084d66;
  --button-primary-border-color: #0a6485; --button-primary-text-color: #fff;
  --checkbox-background-color-selected: #0a6485; --checkbox-border-color-selected: #0a6485;
  --checkbox-border-color-focus: #0a6485; --input-border-color-focus: #0a6485;
  --block-info-text-color: #566370; --body-text-color-subdued: #566370;
  --block-title-text-color: var(--body-text-color); --block-label-text-color: var(--body-text-color); }
.dark .gradio-container { --quiet: #a9b4bf; --block-info-text-color: #a9b4bf; --body-text-color-subdued: #a9b4bf; }
.gradio-container > .main { padding: 1.2rem clamp(0.7rem, 3vw, 2rem) 3rem !important; }
.gradio-container :focus-visible { outline: 3px solid #2d9cc4; outline-offset: 2px; }
.html-container { padding: 0 !important; }
#cf-notice:not(:has(.error)) { display: none; }
.cf { --good: #00704f; --good-soft: #e6f4ee; --bad: #a83a12; --bad-soft: #fdeee6; --unsure: #6a5410;
  --unsure-soft: #fbf3da; --quiet: #566370; overflow-wrap: anywhere; }
.dark .cf { --good: #59d6aa; --good-soft: #12342a; --bad: #ff9d77; --bad-soft: #3d2117; --unsure: #e5c463;
  --unsure-soft: #352c12; --quiet: #a9b4bf; }
.cf h1 { font-size: 1.5rem; margin: 0; }
.cf p { margin: 0.3rem 0; } .cf .quiet { color: var(--quiet); font-size: 0.88rem; }
.cf .locator { display: block; width: 100%; height: auto; cursor: crosshair; border-radius: 8px; margin: 0; }
.cf .told { margin-top: 0.8rem; padding: 1.1rem clamp(0.8rem, 3vw, 1.4rem); border-radius: 12px;
  border: 1px solid var(--border-color-primary); }
.cf .answer { font-size: 1.4rem; font-weight: 650; line-height: 1.35; margin: 0.1rem 0 0.8rem; }
.cf .error { border-left: 5px solid var(--bad); background: var(--bad-soft); color: var(--bad); margin: 0.5rem 0;
  padding: 0.6rem 0.9rem; border-radius: 0 8px 8px 0; font-weight: 500; }
/* As narrow as the page lets it be, whatever the table in it asks for. */
.cf .scroll { overflow-x: auto; display: grid; grid-template-columns: minmax(0, 1fr); margin: 0.6rem 0; }
.cf .facts { border-collapse: collapse; width: 100%; border: 0 !important; margin: 0; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }
.cf .facts tr, .cf .facts thead, .cf .facts tbody { border: 0 !important; }
.cf .facts th, .cf .facts td { text-align: left; vertical-align: top; padding: 0.4rem 0.7rem 0.4rem 0;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.cf .facts thead th { font-size: 0.84rem; color: var(--quiet); font-weight: 600; background: none; }
.cf .badge { font-weight: 650; border-radius: 999px; padding: 0.05rem 0.6rem; white-space: nowrap;
  color: var(--tone); background: var(--tone-soft); }
.cf .right { --tone: var(--good); --tone-soft: var(--good-soft); }
.cf .wrong { --tone: var(--bad); --tone-soft: var(--bad-soft); }
.cf .open { --tone: var(--unsure); --tone-soft: var(--unsure-soft); }
.cf .maps { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr));
  margin: 0.9rem 0 0.4rem; }
.cf .maps img { width: 100%; height: auto; background: #fff; border-radius: 8px; margin: 0; }
.cf figure { margin: 0; max-width: 24rem; }
.cf figcaption { color: var(--quiet); font-size: 0.88rem; line-height: 1.4; padding-top: 0.3rem; }
.cf figcaption strong { color: var(--body-text-color); }
@media (max-width: 40rem) {
  .cf .facts, .cf .facts tbody { display: block; }
  .cf .facts thead { display: none; }
  .cf .facts tr { display: block; padding: 0.4rem 0; border-bottom: 1px solid var(--border-color-primary) !important; }
  .cf .facts td { display: flex; justify-content: space-between; gap: 1rem; padding: 0.15rem 0; border: 0 !important;
    text-align: right; }
  .cf .facts td::before { content: attr(data-label); color: var(--quiet); font-size: 0.88rem; text-align: left; }
}
"""


def load_gradio() -> Any:
    """Import Gradio, silenced.

    Raises:
        UsageError: It is not installed.
    """
    os.environ.update(_SILENCE)
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        raise UsageError(
            "demo",
            expected="Gradio, which draws the page",
            received=f"no module {error.name}",
            remedy="Install it with `pip install 'climafuse[demo]'`.",
        ) from error


def build_page(inquiry: Inquiry) -> Any:
    """Lay the page out.

    Args:
        inquiry: What it asks.

    Returns:
        A `gradio.Blocks`, for `serving.make_app`.

    Raises:
        ClimafuseError: Gradio is not installed, or the fields cannot be shown.
    """
    return inside_loop(lambda: _lay_out(inquiry))


def inside_loop(make: Callable[[], T]) -> T:
    """Make something of Gradio's: where no event loop runs, it makes one for each of its locks and closes none."""

    async def run() -> T:
        return make()

    return asyncio.run(run())


def _lay_out(inquiry: Inquiry) -> Any:
    gr = load_gradio()
    begin_time, begin_place = inquiry.beginning()
    times = inquiry.fields.times()
    listed = [times[round(index * (len(times) - 1) / (MOST_TIMES - 1))] for index in range(MOST_TIMES)]
    begin_map = _located(inquiry, begin_time, begin_place)
    begin_examples = inquiry.examples(begin_time, begin_place)

    def choose(time: str, place: str) -> tuple[Any, Any, Any]:
        try:
            drawn, texts = _located(inquiry, time, place), inquiry.examples(time, place)
        except ClimafuseError as error:
            return error_line(error), gr.skip(), gr.skip()
        return "", drawn, gr.Dataset(samples=[[text] for text in texts])

    def point(time: str, place: str, event: Any) -> tuple[Any, Any, Any, Any]:
        try:
            place = inquiry.place_at(event.x, event.y)
        except (AttributeError, ClimafuseError) as error:  # a click that is none on our map
            return place, error_line(error), gr.skip(), gr.skip()
        return place, *choose(time, place)

    point.__annotations__ = {"event": gr.EventData}  # how Gradio knows who wants the event

    def ask(time: str, place: str, prompt: str, explain: bool, occlude: bool) -> str:
        try:
            told = inquiry.ask(time, place, prompt, explain=bool(explain), occlude=bool(occlude))
            return _block('<div class="told">', answer(told), "</div>")
        except ClimafuseError as error:
            return error_line(error)

    with gr.Blocks(title="climafuse", analytics_enabled=False) as page:
        gr.HTML(heading(inquiry))
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                notice = gr.HTML("", elem_id="cf-notice")
                where = gr.HTML(begin_map, js_on_load=_POINTING)
                with gr.Row():
                    when = gr.Dropdown(
                        [(_spoken_time(time), time) for time in times]
                        if len(times) <= MOST_TIMES
                        else listed,
                        value=begin_time,
                        label="Time",
                        info=None
                        if len(times) <= MOST_TIMES
                        else f"or type any of {len(times):,} times to {times[-1]}",
                        allow_custom_value=len(times) > MOST_TIMES,
                        min_width=220,
                    )
                    place = gr.Textbox(
                        begin_place,
                        label="Place",
                        info="Click on the map, or type a name or coordinates.",
                        max_length=LONGEST_PROMPT,
                        min_width=220,
                    )
            with gr.Column(scale=4, min_width=300):
                prompt = gr.Textbox(
                    begin_examples[0] if begin_examples else "",
                    label="Question",
                    lines=2,
                    max_lines=4,
                    max_length=LONGEST_PROMPT,
                )
                examples = gr.Dataset(
                    components=[gr.Textbox(visible=False)],
                    samples=[[text] for text in begin_examples],
                    label="Questions to try",
                )
                explain = gr.Checkbox(True, label="Show where its words looked")
                occlude = gr.Checkbox(
                    False, label="Hide region after region: what do its words need? (slower)"
                )
                button = gr.Button("Ask", variant="primary")
        told = gr.HTML(_block('<p class="quiet">The answer appears here, checked against the fields.</p>'))

        # One at a time through the model; the rest waits in line. Maps do not wait for answers.
        drawing = {"concurrency_limit": 1, "concurrency_id": "maps", "show_progress": "minimal"}
        asking = {"concurrency_limit": 1, "concurrency_id": "model", "scroll_to_output": True}
        where.click(
            point,
            [when, place],
            [place, notice, where, examples],
            api_visibility="private",
            trigger_mode="once",
            **drawing,
        )
        for chosen in (when.input, place.submit, place.blur):
            chosen(
                choose,
                [when, place],
                [notice, where, examples],
                api_name="choose",
                api_visibility="public" if chosen == when.input else "private",
                **drawing,
            )
        for asked in (button.click, prompt.submit):
            asked(
                ask,
                [when, place, prompt, explain, occlude],
                told,
                api_name="ask",
                api_visibility="public" if asked == button.click else "private",
                **asking,
            )
        examples.click(
            lambda row: row[0], examples, prompt, concurrency_limit=None, api_visibility="private"
        ).then(ask, [when, place, prompt, explain, occlude], told, api_visibility="private", **asking)
    page.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)
    return page


def _located(inquiry: Inquiry, time: str, place: str) -> str:
    picture = inquiry.locator(time, place)
    return _block(_image(picture, "locator"), f'<p class="quiet">{_text(picture.caption)}</p>')


def heading(inquiry: Inquiry) -> str:
    """What is asked, and about what."""
    times, config = inquiry.fields.times(), inquiry.reader.model.config
    identity = config.backbone or {}
    backbone = labeled(PurePath(str(identity.get("id"))).name, identity)
    first, last = (_spoken_time(times[index]) for index in (0, -1))
    about = [
        f"model {inquiry.name}",
        f"{backbone} with {str(config.fusion).replace('_', ' ')}",
        f"{inquiry.fields.source}: {', '.join(map(long_name, config.variables))}",
        f"{len(times):,} times from {first} to {last}",
        f"boxes of {config.spelled_box} degrees",
        *([inquiry.fields.license] if inquiry.fields.license else []),
    ]
    return _block(
        "<h1>Ask the fields</h1>",
        "<p>A frozen language model answers from gridded climate fields. Each fact it states is computed from the "
        "same fields and set beside it.</p>",
        f'<p class="quiet">{_text(" · ".join(about))}</p>',
    )


def answer(told: Told) -> str:
    """An answer with its checks and pictures."""
    rows = "".join(map(_row, told.checks))
    header = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    table = (
        f'<div class="scroll"><table class="facts"><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'
        if rows
        else '<p class="quiet">No checkable fact in this answer: nothing vouches for it.</p>'
    )
    attended = ", ".join(f"{_in_words(label)} {share:.0%}" for label, share in told.attended)
    return "".join(
        (
            f'<p class="quiet">{_text(told.where)}</p><p class="asked">{_text(told.prompt)}</p>',
            f'<p class="answer">{_text(told.text) or "<em>no words</em>"}</p>',
            table,
            f'<div class="maps">{"".join(map(_figure, told.pictures))}</div>',
            f'<p class="quiet">Looked most at: {_text(attended)}.</p>' if attended else "",
            f'<p class="quiet">Answered in {told.seconds:.1f} s.</p>',
        )
    )


def _row(check: dict[str, Any]) -> str:
    tone, verdict = _VERDICTS[check["right"]]
    field, exact = ("–" if check[part] is None else check[part] for part in ("field", "exact"))
    cells = (
        *map(_text, (check["fact"], check["said"], field, exact)),
        f'<span class="badge {tone}">{verdict}</span>',
    )
    named = zip(_COLUMNS, cells, strict=True)
    return f"<tr>{''.join(f'<td data-label={name!r}>{cell}</td>' for name, cell in named)}</tr>"


def _in_words(label: str) -> str:
    """The description of a climate token, with its variables in words."""
    return re.sub(r"\w+", lambda match: long_name(match[0]) if match[0] in VARIABLES else match[0], label)


def _spoken_time(time: str) -> str:
    return time.replace("T", " ")


def error_line(error: Exception) -> str:
    """An error raised on purpose, in one line."""
    return _block(f'<p class="error" role="alert">{_text(str(error))}</p>')


def _figure(picture: Picture) -> str:
    caption = f"<strong>{_text(picture.title)}</strong>: {_text(picture.caption)}"
    return f"<figure>{_image(picture)}<figcaption>{caption}</figcaption></figure>"


def _image(picture: Picture, kind: str = "map") -> str:
    content = base64.b64encode(picture.content).decode("ascii")
    return f'<img class="{kind}" src="data:image/webp;base64,{content}" alt="{_text(picture.alternative)}">'


def _block(*parts: str) -> str:
    return f'<div class="cf">{"".join(parts)}</div>'


# Gradio fills templates of two languages with what it shows; none of their marks gets there.
_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "${}`\\"}


def _text(text: str) -> str:
    """A text of anybody's, as text."""
    return html.escape(spelled_out(text)).translate(_MARKS)
