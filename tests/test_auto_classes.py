"""`import climafuse` and the Auto classes, in processes of their own: what they know depends on what was imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from climafuse.backbones import load_backbone
from climafuse.model import ClimateTextForCausalLM, ClimateTextProcessor
from tests.model.build import ENCODER, statistics
from tests.tiny import tiny_model, tiny_tokenizer

AUTO = "from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor"
LIGHT = "import climafuse, sys; assert not sys.modules.keys() & {'torch', 'transformers', 'numpy'}"
LOAD = [
    "print(type(AutoProcessor.from_pretrained(folder)).__name__)",
    "print(type(AutoConfig.from_pretrained(folder)).__name__)",
    "print(type(AutoModelForCausalLM.from_pretrained(folder)).__name__)",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("auto")
    tiny_model().save_pretrained(root / "backbone")
    tiny_tokenizer().save_pretrained(root / "backbone")
    model = ClimateTextForCausalLM.from_backbone(
        load_backbone(root / "backbone", dtype="float32"), statistics=statistics(), encoder_options=ENCODER
    )
    model.save_pretrained(root / "model")
    ClimateTextProcessor.of(model.config, model.tokenizer).save_pretrained(root / "model")
    return root / "model"


@pytest.mark.parametrize(
    "lines",
    [
        [LIGHT, AUTO, *LOAD],
        pytest.param([AUTO, "import climafuse", *reversed(LOAD)], marks=pytest.mark.slow),
        pytest.param([LIGHT, AUTO, LOAD[2], LOAD[0]], marks=pytest.mark.slow),
        pytest.param(["import climafuse.model", AUTO, *LOAD], marks=pytest.mark.slow),
    ],
    ids=["climafuse first", "transformers first", "the model first", "all of climafuse first"],
)
def test_importing_climafuse_is_enough(folder: Path, lines: list[str]) -> None:
    code = "\n".join([f"folder = {str(folder)!r}", *lines])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = {
        LOAD[0]: "ClimateTextProcessor",
        LOAD[1]: "ClimateTextConfig",
        LOAD[2]: "ClimateTextForCausalLM",
    }
    assert done.stdout.split() == [expected[line] for line in lines if line in expected]
