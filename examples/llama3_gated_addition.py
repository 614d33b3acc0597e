"""Llama-3-8B that reads climate fields by gated addition, composed and trained in Python.

    hf auth login                                     # once, after accepting the licence on the model's page
    python examples/llama3_gated_addition.py          # in runs/llama3_gated_addition
    python examples/llama3_gated_addition.py --backbone ./another-llama --steps 5
    python examples/llama3_gated_addition.py --quantization int8  # or int4: fewer bits for the blocks

All 32 blocks of the language model run, its own head makes the logits, and none of its weights change. What is
trained is the climate encoder and, before each of the last four blocks, a gated addition: the climate tokens are
pooled by a few learned queries, projected, and added to the states of the text behind a gate that starts at zero.

Memory: the frozen weights alone are 8.03 billion parameters of two bytes (bfloat16), 16.1 GB, on whatever device runs
it; activations, gradients and optimizer states of the trained part come on top. The tests of climafuse run this file
on a tiny random Llama: no figure of it with the 8B weights has been measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from climafuse import ClimateTextForCausalLM, ClimateTextProcessor, load_backbone
from climafuse.errors import BackboneError
from climafuse.training import load_config
from climafuse.training.dataset import ExampleCollator, make_examples, open_store
from climafuse.training.optim import parameter_groups

LLAMA = "meta-llama/Meta-Llama-3-8B"
HOW_TO_GET_IT = f"""
{LLAMA} is not free to download: accept its licence at https://huggingface.co/{LLAMA}, then run
`hf auth login`. It is kept in HF_HOME (default ~/.cache/huggingface), which needs about 16 GB of room.
Any other Llama shows the same: --backbone with the name of a hub model or the folder of one."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        `bare_equal`: whether the untrained model gave the bare Llama's logits bit for bit; `losses`: of each
        training step; `answer`: to `question`; `model`: folder of the trained model.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default=LLAMA, help="hub id, name or folder of the language model")
    parser.add_argument("--output", type=Path, default=Path("runs/llama3_gated_addition"), help="folder")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--windows", type=int, default=80, help="training windows")
    parser.add_argument("--quantization", choices=("int8", "int4"), help="bits of the frozen blocks")
    options = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        backbone = load_backbone(
            options.backbone, dtype="bfloat16", device=device, quantization=options.quantization
        )
    except BackboneError as error:
        raise SystemExit(f"{error}\n{HOW_TO_GET_IT}") from error

    # Questions about windows of the bundled ERA5 sample, with answers that are true of the fields.
    config = load_config(None, ["facts.kinds=[mean/t2m, direction]", f"data.train_windows={options.windows}"])
    store = open_store(config)
    train, test = (make_examples(store, split, config) for split in ("train", "test"))

    torch.manual_seed(0)
    model = ClimateTextForCausalLM.from_backbone(
        backbone,
        statistics=store.statistics,
        fusion="gated_addition",
        sites={"last": 4},  # the blocks below see text only, and need no graph
        history=config.data.history,
        box_degrees=config.data.box_degrees,
    ).to(device)
    processor = ClimateTextProcessor.of(model.config, model.tokenizer)
    example = test[0]
    question = processor([example.window], [example.pairs[0].prompt]).to(device)
    with torch.no_grad():
        text = {name: question[name] for name in ("input_ids", "attention_mask")}
        bare_equal = torch.equal(model.eval()(**question).logits, model.backbone(**text).logits)
    print(f"untrained, at {model.sites}: the bare language model bit for bit: {bare_equal}")

    collate = ExampleCollator(processor)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.training))
    losses = []
    model.train()
    for step in range(options.steps):
        batch = collate([train[(4 * step + number) % len(train)] for number in range(4)])
        del batch["sample"]  # for error messages of the trainer, not for the model
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1} of {options.steps}, loss {losses[-1]:.3f}")

    generated = model.eval().generate(**question, max_new_tokens=24, do_sample=False)
    answer = processor.decode_answers(generated, question["input_ids"].shape[1])[0]
    print(f"{example.pairs[0].prompt} {answer} (right: {example.pairs[0].text})")
    model.save_pretrained(options.output)  # encoder and fusions only
    processor.save_pretrained(options.output)
    return {"bare_equal": bare_equal, "losses": losses, "answer": answer, "model": options.output}


if __name__ == "__main__":
    main()
