"""Llama-3-8B that reads climate fields by cross-attention, trained from a configuration, as `climafuse train` does.

    hf auth login                                     # once, after accepting the licence on the model's page
    python examples/llama3_cross_attention.py         # in runs/llama3_cross_attention
    python examples/llama3_cross_attention.py --backbone ./another-llama --steps 5
    python examples/llama3_cross_attention.py --lora 8  # adapters in the last four blocks, too; climafuse[lora]
    python examples/llama3_cross_attention.py --quantization int8  # or int4: fewer bits for the blocks

All 32 blocks of the language model run, its own head makes the logits, and none of its weights change. What is
trained is the climate encoder and, before the fourth and the second block from the end, a gated cross-attention: each
word asks the climate tokens, which know where and when they are. With --lora, low-rank adapters in the last four
blocks are trained beside the frozen weights.

Memory: the frozen weights alone are 8.03 billion parameters of two bytes (bfloat16), 16.1 GB, on whatever device runs
it; activations, gradients and optimizer states of the trained part come on top. The tests of climafuse run this file
on a tiny random Llama: no figure of it with the 8B weights has been measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from climafuse import Box, find_place, open_climate, sample_path, select_window
from climafuse.errors import BackboneError
from climafuse.model.inference import load_model
from climafuse.training import load_config, read_log
from climafuse.training.pipeline import run

LLAMA = "meta-llama/Meta-Llama-3-8B"
HOW_TO_GET_IT = f"""
{LLAMA} is not free to download: accept its licence at https://huggingface.co/{LLAMA}, then run
`hf auth login`. It is kept in HF_HOME (default ~/.cache/huggingface), which needs about 16 GB of room.
Any other Llama shows the same: --backbone with the name of a hub model or the folder of one."""
QUESTION = "What is the mean temperature?"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        `losses`: of each training step; `answer`: of the saved model; `trained`: what the run reports; `reader`:
        the model, loaded again.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default=LLAMA, help="hub id, name or folder of the language model")
    parser.add_argument("--output", type=Path, default=Path("runs/llama3_cross_attention"), help="folder")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--windows", type=int, default=80, help="training windows")
    parser.add_argument(
        "--lora", type=int, default=None, metavar="RANK", help="rank of adapters; none without"
    )
    parser.add_argument("--quantization", choices=("int8", "int4"), help="bits of the frozen blocks")
    options = parser.parse_args(arguments)

    settings = [
        f"backbone.name={options.backbone}",
        "backbone.dtype=bfloat16",
        f"backbone.quantization={options.quantization or 'null'}",
        "fusion.name=cross_attention",
        "fusion.sites=[-4, -2]",
        "facts.kinds=[mean/t2m, direction]",
        f"data.train_windows={options.windows}",
        "data.validation_windows=8",
        f"training.steps={options.steps}",
        f"training.evaluation_interval={options.steps}",
        "training.windows_per_step=4",
        "training.logging_interval=1",
        # So few steps are not worth storing the states of texts, or choosing a part of the vocabulary.
        "training.reuse_prefix=false",
        "training.sampled_vocabulary=null",
        f"output.directory={options.output}",
        "output.overwrite=true",
    ]
    if options.lora is not None:
        settings += [f"backbone.lora.rank={options.lora}", "backbone.lora.layers={last: 4}"]
    try:
        trained = run(load_config(None, settings))
    except BackboneError as error:
        raise SystemExit(f"{error}\n{HOW_TO_GET_IT}") from error
    losses = [line["loss"] for line in read_log(options.output / "log.jsonl") if "loss" in line]
    print(f"training loss {losses[0]:.3f} -> {losses[-1]:.3f} in {options.steps} steps")

    reader = load_model(trained["model"])
    config = reader.model.config
    fields = open_climate(sample_path("era5"), variables=config.variables)
    place = find_place("Paris, FR")
    box = Box(place.latitude, place.longitude, *config.box_size)
    window = select_window(fields, time="2026-03-31T15:00", box=box, history=config.history)
    (answer,) = reader.answer([window], [QUESTION])
    print(f"{QUESTION} {answer}")
    return {"losses": losses, "answer": answer, "trained": trained, "reader": reader}


if __name__ == "__main__":
    main()
