"""Every error a user of climafuse can meet.

Each names four things: the argument, what was expected, what was received, and the remedy. Exit codes are those of
the command line: 2 when the call is wrong, 1 when the data, a model or a run is, 75 when a run was told to stop.

ClimafuseError
├── UsageError                    exit code 2
│   ├── ConfigurationError        unknown key, wrong type or value in a configuration
│   └── PlaceError                place name unknown or ambiguous, coordinates malformed
├── DataError
│   ├── ClimateFileError          a file is missing, truncated, or no climate file at all
│   ├── CanonicalizationError     a dataset cannot be made canonical without guessing
│   ├── VariableNotFoundError     a variable is absent
│   ├── OutOfRangeError           a time or place lies outside the fields
│   ├── MissingValuesError        nothing but missing values where values are needed
│   ├── PairsError                a climate-text pair is malformed
│   ├── DownloadError             a file cannot be had from its service, or not whole
│   │   └── AccessError           the service wants an account, a login or its terms accepted
│   └── StoreError                a training store is incomplete or does not fit its request
├── BackboneError
│   ├── BackboneNotFoundError     no weights where the backbone was looked for
│   └── BackboneMismatchError     another backbone than the one a checkpoint was trained on
├── OutputError                   a file or folder cannot be written
├── ModelInputError               tensors given to a model or module do not fit together
├── CheckpointError               a checkpoint is incomplete, altered, or does not fit the model
└── TrainingError
    ├── MemoryPlanError           a run would need more memory than there is
    ├── NonFiniteError            a loss or gradient is not finite
    ├── MemoryExhaustedError      not even one window at a time fits into memory
    └── RunInterruptedError       a signal ended a run, which can be resumed; exit code 75
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable


class ClimafuseError(Exception):
    """Base of all errors raised on purpose.

    Args:
        argument: The argument, file, variable or key at fault.
        expected: What would have been right.
        received: What was found instead.
        remedy: What the user can do about it, as a sentence.
    """

    exit_code = 1
    told = False  # whether another process of the same job tells it

    def __init__(self, argument: str, *, expected: str, received: object, remedy: str) -> None:
        self.argument = argument
        self.expected = expected
        self.received = received
        self.remedy = remedy
        super().__init__(argument, expected, received, remedy)

    def __str__(self) -> str:
        """One line of bounded length, whatever the parts hold.

        Parts may come from a file that somebody else made. What would move the cursor, color the terminal or turn
        the direction of writing is spelled out.
        """
        argument, expected, received, remedy = map(
            _printable, (self.argument, self.expected, self.received, self.remedy)
        )
        return f"{argument or repr('')}: expected {expected}; received {received}. {remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        """Keyword-only arguments survive pickling, so that loader workers can raise these errors."""
        return _rebuild, (type(self), self.argument, self.expected, self.received, self.remedy)


LONGEST_PART = 2000  # characters


def _printable(part: object) -> str:
    """A part of a message in one line."""
    text = str(part)
    if len(text) > LONGEST_PART:
        text = f"{text[:LONGEST_PART]}… ({len(text):,} characters)"
    return spelled_out(" ".join(text.split()))


def spelled_out(text: str, spell: Callable[[str], str] = ascii) -> str:
    """Text fit for a terminal, whoever wrote it.

    Args:
        text: The text. Its line feeds stay, and so do spaces of any width.
        spell: Writes a character as a literal between quotes: what would move the cursor, color the terminal or turn
            the direction of writing.
    """
    return "".join(
        c if c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" else spell(c)[1:-1] for c in text
    )


def _rebuild(
    kind: type[ClimafuseError], argument: str, expected: str, received: object, remedy: str
) -> ClimafuseError:
    return kind(argument, expected=expected, received=received, remedy=remedy)


class UsageError(ClimafuseError):
    """The call is wrong: an argument or option does not make sense."""

    exit_code = 2


class ConfigurationError(UsageError):
    """An unknown key, or a wrong type or value, in a configuration."""


class PlaceError(UsageError):
    """A place name is unknown or ambiguous, or coordinates are malformed."""


class DataError(ClimafuseError):
    """Climate data or climate-text pairs are at fault."""


class ClimateFileError(DataError):
    """A file is missing, truncated, or no climate file at all."""


class CanonicalizationError(DataError):
    """A dataset cannot be made canonical without guessing."""


class VariableNotFoundError(DataError):
    """A variable is absent."""


class OutOfRangeError(DataError):
    """A time or place lies outside the fields."""


class MissingValuesError(DataError):
    """Nothing but missing values where values are needed."""


class PairsError(DataError):
    """A climate-text pair is malformed."""


class DownloadError(DataError):
    """A file cannot be had from its service, or not whole."""


class AccessError(DownloadError):
    """A service wants an account, a login, or its terms accepted."""


class StoreError(DataError):
    """A training store is incomplete or does not fit the request."""


class BackboneError(ClimafuseError):
    """A language-model backbone cannot be used."""


class BackboneNotFoundError(BackboneError):
    """No weights where the backbone was looked for."""


class BackboneMismatchError(BackboneError):
    """Another backbone than the one a checkpoint was trained on."""


class OutputError(ClimafuseError):
    """A file or folder cannot be written; nothing is left half-written."""


class ModelInputError(ClimafuseError):
    """Tensors given to a model or module do not fit together."""


class CheckpointError(ClimafuseError):
    """A checkpoint is incomplete, altered, or does not fit the model."""


class TrainingError(ClimafuseError):
    """A training run cannot go on."""


class MemoryPlanError(TrainingError):
    """A run would need more memory than there is: it was not begun."""


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite."""


class MemoryExhaustedError(TrainingError):
    """Memory ran out, and nothing is left to make smaller."""


class RunInterruptedError(TrainingError):
    """A signal ended a run. It was saved and can be resumed."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


def is_disk_error(error: Exception) -> bool:
    """Whether writing failed for want of a working disk.

    safetensors and tokenizers report I/O errors in types of their own, and in the words of Rust.
    """
    return isinstance(error, OSError) or "(os error " in str(error)
