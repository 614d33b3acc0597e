"""Is it grounded? Questions with exact answers, conditions, guessers."""

from climafuse.evaluation.baselines import GUESSERS, guesses
from climafuse.evaluation.grounding import Grounding, ReadsClimate, Sample, evaluate_grounding
from climafuse.evaluation.questions import Question, questions_of, shown, swap_values, truths

__all__ = [
    "GUESSERS",
    "Grounding",
    "Question",
    "ReadsClimate",
    "Sample",
    "evaluate_grounding",
    "guesses",
    "questions_of",
    "shown",
    "swap_values",
    "truths",
]
