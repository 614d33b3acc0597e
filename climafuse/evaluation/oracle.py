"""The oracle writes what the fields say: what a model would score that read and wrote without error.

It is not 1 by definition: spoken values are rounded, and words are parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

from climafuse.data.window import Window
from climafuse.facts import Fact, answer_to, asked, extract


class Oracle:
    """Answers questions from the fields themselves, through the same words."""

    def answer(
        self, windows: Sequence[Window], prompts: Sequence[str], *, index: Sequence[int] | None = None
    ) -> list[str]:
        """Answer N prompts; see `ReadsClimate`."""
        tables = [{fact.key: fact for fact in extract(window)} for window in windows]
        return [
            _answer(tables[number], prompt)
            for prompt, number in zip(prompts, range(len(prompts)) if index is None else index, strict=True)
        ]


def _answer(table: dict[tuple[str, str, tuple[tuple[str, str], ...]], Fact], prompt: str) -> str:
    key = asked(prompt)
    if key is None:
        return ""
    fact = table.get(key, Fact("absent", key[1], "absent"))
    return answer_to(prompt, fact) or ""
