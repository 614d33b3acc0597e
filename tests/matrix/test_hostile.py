"""Files made to harm: nothing in them runs, nothing is read or written outside, and one line says what is wrong."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from climafuse.backbones import load_backbone
from climafuse.cli.app import app
from climafuse.cli.handler import NOT_GROUNDED
from climafuse.data.store import TrainingStore, prepare
from climafuse.errors import ClimafuseError, spelled_out
from climafuse.model import ClimateTextForCausalLM, ClimateTextProcessor
from climafuse.model.processing import ClimateFeatureExtractor
from tests.matrix.attacks import ATTACKS, SECRET, Ground
from tests.report.pages import Page
from tests.training.runs import save_backbone, settings, write_climate

SECONDS = 10.0  # for one attack
runner = CliRunner()
# What climafuse never looks at, so that what it stands beside works as if it were not there (or what copies files
# without reading them); every other attack must be refused.
HARMLESS = {
    "infer": ("pickle_beside_a_model", "poisoned_model_configuration: auto_map"),
    "ask": ("chat_template: attribute",),
    "load_backbone": (
        "poisoned_tokenizer",
        "document_of_a_backbone: generation_config.json",
        "document_of_a_backbone: tokenizer_config.json infinity",
        "document_of_a_backbone: tokenizer_config.json surrogate",
        *(
            f"poisoned_backbone_configuration: {name}"
            for name in ("auto_map", "quantizer", "generate", "architectures")
        ),
    ),
    "backbone import": ("poisoned_backbone_configuration",),
    "pairs": ("parquet_with_a_pickled_type",),
    # Texts are shown as texts, and what is written takes the place of a link.
    "report": ("texts_of_", "names_in_", "source_of_", "name_of_a_run"),
    "evaluate": ("name_of_a_run",),
    "table": ("texts_of_a_study", "link_in_a_study"),
    "plot": ("texts_of_a_study", "link_in_a_study"),
    "study": ("texts_of_a_study_file",),
    "attribute": ("prompt",),
}


@pytest.fixture(autouse=True, scope="module")
def _watchdog():
    def bark(*_):
        pytest.fail("an attack goes on and on")  # an exception that no `except OSError` takes for its own

    before = signal.signal(signal.SIGALRM, bark)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A climate file, a backbone, a saved model and a store, all of which work."""
    folder = tmp_path_factory.mktemp("sound")
    climate, backbone = write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")
    store = prepare(climate, folder / "store")
    torch.manual_seed(0)
    model = ClimateTextForCausalLM.from_backbone(
        backbone, statistics=store.statistics, dtype="float32", box_degrees=40.0,
        encoder_options={"width": 16, "depth": 1, "heads": 2, "patch": 2},
        fusion_options={"heads": 2, "head_width": 8, "feed_forward": 16},
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    return folder


def _cli(*arguments: Any) -> str | None:
    """Run a command; its error in one line, or None where it worked."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert SECRET not in result.output
    if result.exit_code in (0, NOT_GROUNDED):
        assert spelled_out(result.output) == result.output  # nothing moves the cursor
        return None
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    return lines[0]


def _hand(entry: str, path: Path | str, sound: Path, folder: Path) -> str | None:
    """Hand a path to an entry point; the error's line, or None."""
    out = folder / "out"
    climate = ("--climate", sound / "fields.nc", "--time", "2026-03-10T12:00", "--location", "0,0")
    train = ("train", "--dry-run", "--output", out)
    small = folder / "run.yaml"
    small.write_text(json.dumps(settings(sound / "fields.nc", sound / "backbone", folder / "run")))
    if (
        entry in ("load_backbone", "infer")
        and Path(path, entry[-8:] if entry != "infer" else "model").is_dir()
    ):
        path = Path(path, "backbone" if entry == "load_backbone" else "model")
    match entry:
        case "load_backbone":
            load_backbone(path)
        case "ask":
            backbone = load_backbone(path)
            ClimateTextProcessor(ClimateFeatureExtractor(), backbone.tokenizer).encode("What?", None)
        case "store":
            TrainingStore.open(path)
        case "backbone import":
            return _cli("backbone", "import", path, "--name", "mine")
        case "train":
            return _cli(*train, small, "--set", f"backbone.name={json.dumps(str(path))}", "--json")
        case "config":
            return _cli(*train, path)
        case "--set":
            return _cli(*train, small, "--set", path)
        case "infer":
            return _cli("infer", path, *climate)
        case "resume":
            shutil.copytree(path, folder / "run" / "checkpoint-4")
            return _cli("train", small, "--resume", "--dry-run")
        case "pairs":
            return _cli("data", "prepare", sound / "fields.nc", out, "--pairs", path)
        case "evaluate":
            controls = [] if "controls" in str(list(Path(path).glob("evaluation/*"))) else ["--no-controls"]
            return _cli("evaluate", path, *controls)
        case "report":
            line = _cli(
                "report", path, "--no-attribution", "--samples", 2, "-o", folder / "attack" / "page.html"
            )
            _check_texts(Path(path))
            return line
        case "table" | "plot":
            line = _cli("scale", entry, path)
            _check_texts(Path(path))
            return line
        case "study":
            return _cli("scale", "run", path, "--dry-run")
        case "attribute":
            where = ("--prompt", path, "--map", folder / "attack" / "map.svg")
            return _cli("attribute", sound / "model", *climate, *where)
        case "place":
            return _cli("infer", sound / "model", *climate[:4], "--location", path)
        case "data prepare":
            return _cli("data", "prepare", path, out)
        case _:
            return _cli("data", "inspect", path)
    return None


def _check_texts(folder: Path) -> None:
    """What was made of texts of somebody's holds none of their tags, and nothing that a browser or a reader fetches."""
    pages = [Page(path.read_text(encoding="utf-8")) for path in folder.parent.glob("page.html")]
    for page in pages:
        assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
        for _, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on")]
            assert (attributes.get("src") or "data:").startswith("data:")
            assert (attributes.get("href") or "#").startswith(("#", "data:,"))
        assert len(page.text) < 10**6
    for path in [*folder.glob("table.md"), *folder.glob("model/README.md"), *folder.glob("figure.svg")]:
        if path.is_symlink():
            continue
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "\x1b" not in text
        assert "\n# x" not in text


CASES = [(name, entry) for name, (_, _, entries) in ATTACKS.items() for entry in entries]
SAMPLE = CASES[::24]


def pytest_generate_tests(metafunc):
    if "attack" in metafunc.fixturenames:
        cases = CASES if metafunc.config.option.thorough else SAMPLE
        metafunc.parametrize(("attack", "entry"), cases, ids=[f"{n}-{e}".replace(" ", "-") for n, e in cases])


def test_attack(attack, entry, sound, proven, tmp_path, monkeypatch, cell):
    row, build, _ = ATTACKS[attack]
    cell("hostile", row, entry)
    reached: list[Any] = []
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: reached.append(address))
    monkeypatch.setattr(
        "builtins.input", lambda *_: pytest.fail("somebody was asked whether to trust the code")
    )
    folder, secret = tmp_path / "attack", tmp_path / "elsewhere" / "secret"
    folder.mkdir()
    secret.parent.mkdir()
    secret.write_text(SECRET)
    ground = Ground(
        folder,
        tmp_path / "canary",
        secret,
        *(sound / name for name in ("backbone", "model", "store")),
        *(proven / name for name in ("run", "study")),
    )
    path = build(ground)
    before = _outside(tmp_path)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        line = _hand(entry, path, sound, tmp_path)
    except ClimafuseError as error:
        line = str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert not ground.canary.exists(), "an attack was carried out"
    assert not [address for address in reached if not isinstance(address, str | bytes)], reached
    assert not list((tmp_path / "home").rglob("*.py")), "code was copied along"
    assert secret.read_text() == SECRET, "a file outside was written to"
    assert [path.name for path in secret.parent.iterdir() if path.name != "outside"] == ["secret"]
    harmless = attack.startswith(HARMLESS.get(entry, ("-",)))
    if not harmless:
        assert line is not None, "the attack was not refused"
        assert _outside(tmp_path) == before
    if line is not None:
        assert line.isprintable()
        assert len(line) < 12_000
        assert SECRET not in line


def _outside(folder: Path) -> list[str]:
    """All files of a case but those of the attack itself, of the run it is handed to, and of caches."""
    apart = [folder / name for name in ("attack", "run", "run.yaml", "home/hashes")]
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_relative_to(folder / "home") or path.is_file()
        if not any(path.is_relative_to(place) for place in apart)
    )
