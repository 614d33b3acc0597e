"""Asking a model, and keeping what it said: an evaluation that was stopped goes on where it was.

A model is any object with `answer`: windows and prompts in, texts out. One with `score`, too, tells how likely it
holds given texts. What two conditions ask alike, in fields and prompt, is asked once.

Questions go to the model in portions: what is asked together shares work, and a portion is what is lost where an
evaluation is stopped, and how often it tells how far it is. What is asked together may change the last bit of a number,
and now and then a word. So portions are a matter of what is asked only, not of the clock nor of where it was stopped;
one is kept by the content of all of it, and used whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from climafuse.data.window import Window
from climafuse.errors import OutputError, UsageError
from climafuse.facts.parse import Key

T = TypeVar("T")
_MOST = 2**40  # nats, tokens or bytes of a text
_HEAD = 2**16  # bytes of the line that tells the identity
_PORTION = 64  # questions; more are hardly faster, and a slow model must tell now and then how far it is
Progress = Callable[[int, int], None]


class ReadsClimate(Protocol):
    """Any model that answers prompts about windows: fields and prompt in, text out."""

    def answer(
        self, windows: Sequence[Window], prompts: Sequence[str], *, index: Sequence[int] | None = None
    ) -> list[str]:
        """Answer N prompts, each about the window that `index` tells."""
        ...


class Likelihood(Protocol):
    """How likely a model held each token of a text; see `climafuse.model.TokenScores`."""

    log_probabilities: np.ndarray
    right: np.ndarray
    num_bytes: int


@runtime_checkable
class ScoresTexts(Protocol):
    """A model that tells how likely it holds answers."""

    def score(
        self,
        windows: Sequence[Window],
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        index: Sequence[int] | None = None,
    ) -> Sequence[Likelihood]:
        """Score N answers to N prompts, each about the window that `index` tells."""
        ...


@dataclass(frozen=True)
class Ask:
    """One question about one window.

    Args:
        window: What is shown.
        prompt: What is asked.
        answer: The right words, whose likelihood is wanted; "" where they are not.
        subject: What the prompt asks for, where the model is told that.
    """

    window: Window
    prompt: str
    answer: str = ""
    subject: tuple[Key, ...] = ()


@dataclass(frozen=True)
class TextLikelihood:
    """Likelihood of texts; they add up.

    Args:
        nats: Sum of -log p over the tokens.
        num_tokens: Tokens.
        num_right: Tokens that the model held most likely of all.
        num_bytes: Bytes of the texts.
    """

    nats: float = 0.0
    num_tokens: int = 0
    num_right: int = 0
    num_bytes: int = 0

    def __add__(self, other: TextLikelihood) -> TextLikelihood:
        return TextLikelihood(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Transcript:
    """What a model said, written to a file as it comes.

    Args:
        path: A file of lines of JSON; None keeps all in memory. Its name is made longer by a hash of the identity, so
            that transcripts of other identities lie beside it as they are.
        identity: What the answers depend on beside fields and prompt: the weights, the longest answer, ….

    `path` is the file; `unused` tells of each other one of that name in what its identity differs.

    Raises:
        OutputError: The file cannot be read or written.
    """

    def __init__(self, path: str | Path | None = None, identity: Mapping[str, Any] | None = None) -> None:
        self.path: Path | None = None
        self.unused: dict[Path, str] = {}
        self._kept: dict[str, Any] = {}
        self._said: dict[str, Any] = {}
        if path is None:
            return
        named, own = Path(path), {**(identity or {}), "portion": _PORTION}
        head = json.dumps({"identity": own}, sort_keys=True)
        digest = hashlib.sha256(head.encode()).hexdigest()[:8]
        self.path = named.with_stem(f"{named.stem}-{digest}")
        with _writing(self.path):
            if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
                # It would be written through to whatever it stands for.
                raise OSError(errno.EINVAL, "a link, a folder or a device, no file of this evaluation")
            pattern = f"{glob.escape(named.stem)}*{glob.escape(named.suffix)}"
            beside = sorted(set(named.parent.glob(pattern)) - {self.path})
            self.unused = {other: _in_what(other, json.loads(head)["identity"]) for other in beside}
            lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
            if lines and lines[0].decode(errors="replace") == head:
                # The last line may have been cut off in the midst; it has no end and is not among these.
                whole = len(lines[0]) + 1
                for line in lines[1:]:
                    entry = _entry(line)
                    if entry is None:  # damaged: what comes from here on is asked anew
                        break
                    self._kept[entry[0]] = entry[1]
                    whole += len(line) + 1
                with self.path.open("r+b") as file:
                    file.truncate(whole)
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(head + "\n", encoding="utf-8")

    def answers(
        self, model: ReadsClimate, asks: Sequence[Ask], *, progress: Progress | None = None
    ) -> list[str]:
        """Answer questions, those that were answered before from the transcript."""

        def say(part: Sequence[Ask]) -> list[str]:
            windows, index = _distinct([ask.window for ask in part], key=id)
            return model.answer(windows, [ask.prompt for ask in part], index=index)

        keys = [_key("answer", ask.window, ask.prompt, *map(repr, ask.subject)) for ask in asks]
        return self._fill(keys, asks, say, _is_answer, progress)

    def likelihoods(
        self, model: ScoresTexts, asks: Sequence[Ask], *, progress: Progress | None = None
    ) -> list[TextLikelihood]:
        """Likelihood of the right words of each question."""

        def score(part: Sequence[Ask]) -> list[tuple[Any, ...]]:
            windows, index = _distinct([ask.window for ask in part], key=id)
            scores = model.score(
                windows, [ask.prompt for ask in part], [ask.answer for ask in part], index=index
            )
            return [
                (-float(s.log_probabilities.sum()), len(s.right), int(s.right.sum()), int(s.num_bytes))
                for s in scores
            ]

        keys = [_key("score", ask.window, ask.prompt, ask.answer) for ask in asks]
        found = self._fill(keys, asks, score, _is_likelihood, progress)
        return [TextLikelihood(*entry) for entry in found]

    def _fill(
        self,
        keys: Sequence[str],
        asks: Sequence[Ask],
        compute: Callable[[Sequence[Ask]], Sequence[Any]],
        fits: Callable[[Any], bool],
        progress: Progress | None,
    ) -> list[Any]:
        wanted = dict(zip(keys, asks, strict=True))
        # Alike prompts side by side: a model can share the work.
        order = sorted(wanted, key=lambda key: (wanted[key].prompt, wanted[key].answer))
        if all(key in self._said for key in order):
            order = []
        portions = [order[first : first + _PORTION] for first in range(0, len(order), _PORTION)]
        missing = []
        for part in portions:
            kept = {key: self._kept.get(name) for key, name in _names(part).items()}
            if all(map(fits, kept.values())):
                self._said.update(kept)
            else:
                missing.append(part)
        done, total = len(wanted) - sum(map(len, missing)), len(wanted)
        if progress is not None:
            progress(done, total)
        for part in missing:
            found = compute([wanted[key] for key in part])
            _check(found, len(part), fits)
            self._keep(dict(zip(part, found, strict=True)))
            done += len(part)
            if progress is not None:
                progress(done, total)
        return [self._said[key] for key in keys]

    def _keep(self, said: Mapping[str, Any]) -> None:
        self._said.update(said)
        if self.path is not None:
            entries = zip(_names(list(said)).values(), said.values(), strict=True)
            lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            with _writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(lines)


def _names(part: Sequence[str]) -> dict[str, str]:
    """What is asked together, by what it is kept: all of it counts."""
    together = hashlib.sha256("".join(part).encode()).hexdigest()
    return {key: together[:16] + key[:16] for key in part}


def _check(found: Any, expected: int, fits: Callable[[Any], bool]) -> None:
    """Refuse what is no answer of a model."""
    num = len(found) if isinstance(found, Sequence) and not isinstance(found, str) else None
    wrong = None if num is None else next((entry for entry in found if not fits(entry)), None)
    if num != expected or wrong is not None or None in found:
        raise UsageError(
            "model",
            expected=f"{expected} answers to as many questions, in their order, each a text (or its scores)",
            received=repr(found)[:60]
            if num is None
            else f"{num} of them"
            if num != expected
            else repr(wrong)[:60],
            remedy='Return one for each prompt; "" where the model has nothing to say.',
        )


def _in_what(path: Path, identity: Mapping[str, Any]) -> str:
    """In what the identity of a transcript differs from another, in words."""
    found: Any = None
    if path.is_file() and not path.is_symlink():
        with (
            contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError),
            path.open("rb") as file,
        ):
            found = json.loads(file.readline(_HEAD))["identity"]
    if not isinstance(found, dict):
        return "nothing tells what was asked"
    before, now = _flat(found), _flat(identity)
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    told = (f"{name} {_short(before.get(name))}, now {_short(now.get(name))}" for name in names)
    return ", ".join(told) or "a copy of what is used"


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Versions one by one, not in one."""
    return {
        name: value
        for key, entry in identity.items()
        for name, value in (entry.items() if isinstance(entry, dict) else [(key, entry)])
    }


def _short(value: Any) -> str:
    return "unknown" if value is None else str(value)[:20]


def _entry(line: bytes) -> tuple[str, Any] | None:
    """Key, and the answer or the numbers of a likelihood; None where a line holds neither."""
    try:
        key, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):  # no JSON, no UTF-8, no pair, or nested without end
        return None
    return (key, value) if isinstance(key, str) and (_is_answer(value) or _is_likelihood(value)) else None


def _is_answer(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a character, which no model writes
        return False


def _is_likelihood(value: Any) -> bool:
    """Nats, tokens, tokens right and bytes, as a model may have them."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    nats, *counts = value
    if type(nats) not in (int, float) or any(type(count) is not int for count in counts):
        return False
    num_tokens, num_right, num_bytes = counts
    return (
        abs(nats) < _MOST
        and math.isfinite(nats)
        and 0 <= num_right <= num_tokens < _MOST
        and 0 < num_bytes < _MOST
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            str(path),
            expected="a file that can be written, with room on the disk",
            received=error.strerror or str(error),
            remedy="Make room and evaluate again: what was answered before is kept.",
        ) from error


def _key(what: str, window: Window, *texts: str) -> str:
    digest = hashlib.sha256(what.encode())
    for array in (window.fields, window.latitude, window.longitude, window.time):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(
            np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array).encode()
        )
    digest.update(repr((window.variables, texts)).encode())
    return digest.hexdigest()[:32]


def _distinct(items: Sequence[T], *, key: Callable[[T], Hashable]) -> tuple[list[T], list[int]]:
    """Each item once, and for each of the given ones its number among them."""
    numbers: dict[Hashable, int] = {}
    distinct: list[T] = []
    index = []
    for item in items:
        if key(item) not in numbers:
            numbers[key(item)] = len(distinct)
            distinct.append(item)
        index.append(numbers[key(item)])
    return distinct, index
