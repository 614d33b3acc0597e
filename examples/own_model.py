"""Evaluate a model of your own: anything that takes fields and questions and gives texts.

    python examples/own_model.py                      # 24 windows of the bundled ERA5 sample
    python examples/own_model.py --windows 96 --blind # the same model, told nothing of the fields

The model here is the bare language model, told the mean, highest and lowest value of each variable in its prompt: what
one would try before training anything. It has one method, `answer`; that is all the evaluation asks for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from climafuse import extract, load_backbone
from climafuse.data.window import Window
from climafuse.evaluation import evaluate_grounding, questions_of
from climafuse.facts import compare
from climafuse.training import load_config
from climafuse.training.dataset import make_examples, open_store

TOLD = ("mean", "maximum", "minimum", "direction")


class PromptedModel:
    """A language model that reads statistics as words.

    Args:
        backbone: From `load_backbone`.
        blind: Leave the statistics out.
        max_new_tokens: Longest answer.
    """

    def __init__(self, backbone: Any, *, blind: bool = False, max_new_tokens: int = 24) -> None:
        self.model, self.tokenizer = backbone.model.eval(), backbone.tokenizer
        self.blind, self.max_new_tokens = blind, max_new_tokens

    @torch.no_grad()
    def answer(
        self, windows: Sequence[Window], prompts: Sequence[str], *, index: Sequence[int] | None = None
    ) -> list[str]:
        """Answer N prompts, each about the window that `index` tells."""
        told = ["" if self.blind else describe(window) for window in windows]
        texts = []
        for prompt, number in zip(prompts, range(len(prompts)) if index is None else index, strict=True):
            question = f"{told[number]}\n{prompt} Answer in a few words, with the unit.".strip()
            if self.tokenizer.chat_template:
                message = [{"role": "user", "content": question}]
                question = self.tokenizer.apply_chat_template(
                    message, tokenize=False, add_generation_prompt=True
                )
            ids = self.tokenizer(question, return_tensors="pt", add_special_tokens=False)
            output = self.model.generate(
                **ids,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id,
            )
            texts.append(
                self.tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            )
        return texts


def describe(window: Window) -> str:
    """The statistics of a window in words."""
    rows = [compare(fact, fact) for fact in extract(window, kinds=TOLD)]
    return "The fields: " + ", ".join(f"{row['fact']} {row['field']}" for row in rows) + "."


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        All figures.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=24, help="test windows to ask about")
    parser.add_argument("--blind", action="store_true", help="tell the model nothing of the fields")
    parser.add_argument("--backbone", default=None, help="another language model: name or folder")
    options = parser.parse_args(arguments)

    settings = [f"data.test_windows={options.windows}", "facts.questions_per_window=3"]
    settings += ["facts.kinds=[mean, maximum, minimum, direction]", "facts.abstention_fraction=0"]
    if options.backbone is not None:
        settings.append(f"backbone.name={options.backbone}")
    config = load_config(None, settings)
    store = open_store(config)
    examples = make_examples(store, "test", config)
    model = PromptedModel(load_backbone(config.backbone.name, dtype="float32"), blind=options.blind)
    found = evaluate_grounding(
        model,
        store,
        [example.window for example in examples],
        questions_of(example.pairs for example in examples),
        history=config.data.history,
        thorough=False,
    )
    figures = found.to_dict()
    for name in ("true", "shown", "shuffled", "prior", "oracle"):
        print(f"{name:10s} fact F1 {figures['fact_f1'][name]:.3f}")
    for check in figures["verdict"]["checks"]:
        if check["passed"] is not None:
            print(f"{check['name']:20s} {'passes' if check['passed'] else 'fails'}: {check['meaning']}")
    print(figures["verdict"]["words"])
    return figures


if __name__ == "__main__":
    main()
