"""Is it grounded? Questions with exact answers, conditions, guessers, controls, intervals, a verdict."""

from climafuse.evaluation.asking import Ask, ReadsClimate, ScoresTexts, TextLikelihood, Transcript
from climafuse.evaluation.baselines import GUESSERS, guesses, remember
from climafuse.evaluation.grounding import Grounding, Outcome, Sample, evaluate_grounding
from climafuse.evaluation.oracle import Oracle
from climafuse.evaluation.questions import Question, questions_of, truths
from climafuse.evaluation.verdict import Difference, verdict
from climafuse.evaluation.views import CONDITIONS, swap_values

__all__ = [
    "CONDITIONS",
    "GUESSERS",
    "Ask",
    "Difference",
    "Grounding",
    "Oracle",
    "Outcome",
    "Question",
    "ReadsClimate",
    "Sample",
    "ScoresTexts",
    "TextLikelihood",
    "Transcript",
    "evaluate_grounding",
    "guesses",
    "questions_of",
    "remember",
    "swap_values",
    "truths",
    "verdict",
]
