"""To the hub and back. The hub is a local server that keeps what is committed; nothing leaves the machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from climafuse.backbones import load_backbone
from climafuse.errors import BackboneNotFoundError, CheckpointError, ConfigurationError
from climafuse.model import ClimateTextForCausalLM, publishing
from tests.model.build import ENCODER, make_batch, make_model, make_processor, open_gates, statistics
from tests.tiny import tiny_model, tiny_tokenizer

SECRET = "hf_not_to_be_written_anywhere"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload needs: small files come inside the commit."""

    files: dict[str, bytes]
    asked: list[tuple[str, str]]

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path))
        self._answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        self.asked.append(("POST", self.path))
        assert self.headers["Authorization"] == f"Bearer {SECRET}"
        here = f"http://{self.headers['Host']}"
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        if self.path.endswith("/repos/create"):
            self._answer({"url": f"{here}/me/model", "id": "me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            files = [
                {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {"commitUrl": f"{here}/me/model/commit/c0ffee", "commitOid": "c0ffee", "success": True}
            )
        else:
            self._answer({}, 200)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder_backbone(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "me" / "tiny-llama"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_what_is_published_is_complete_and_names_no_place_of_the_machine(
    hub: type[Hub], folder_backbone: Path, tmp_path: Path
) -> None:
    model = ClimateTextForCausalLM.from_backbone(
        folder_backbone, dtype="float32", statistics=statistics(), encoder_options=ENCODER, lora={"rank": 2}
    )
    open_gates(model, 0.5)
    address = model.push_to_hub("me/model", token=SECRET, license="mit", private=True)
    assert address.endswith("/me/model/commit/c0ffee")
    assert set(hub.files) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    for name, content in hub.files.items():
        for secret in (SECRET, str(tmp_path), str(Path.home())):
            assert secret.encode() not in content, name
    assert b"license: mit" in hub.files["README.md"]
    assert b"fact F1" not in hub.files["README.md"]  # nobody has measured it
    evaluation = {"data": {"source": str(tmp_path / "fields.nc")}, "conditions": {"true": {"f1": 0.921}}}
    model.push_to_hub("me/model", token=SECRET, evaluation=evaluation)
    assert b"| true | 0.921 |" in hub.files["README.md"]
    assert str(tmp_path).encode() not in hub.files["README.md"]

    # Elsewhere: the backbone is asked for by name, and recognized by its hash.
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name, content in hub.files.items():
        (other / name).write_bytes(content)
    with pytest.raises(BackboneNotFoundError, match="tiny-llama"):
        AutoModelForCausalLM.from_pretrained(other)
    loaded = AutoModelForCausalLM.from_pretrained(other, backbone=str(folder_backbone))
    batch = make_batch(model)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)
    assert AutoProcessor.from_pretrained(other).feature_extractor.variables == model.config.variables
    # The model at hand still finds its own.
    assert model.config.backbone["id"] == str(folder_backbone)


def test_options_that_would_be_ignored_are_refused(hub: type[Hub]) -> None:
    with pytest.raises(ConfigurationError, match="max_shard_size, tags"):
        make_model().push_to_hub("me/model", token=SECRET, max_shard_size="1MB", tags=["x"])
    assert hub.asked == []


def test_a_model_of_the_hub_is_loaded_from_what_was_downloaded(
    folder_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "cache")
    make_processor(model).save_pretrained(tmp_path / "cache")
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "cache")

    monkeypatch.setattr(publishing, "snapshot_download", download)
    from tests.tiny import tiny_backbone

    loaded = ClimateTextForCausalLM.from_pretrained("me/model", backbone=tiny_backbone(), revision="v1")
    batch = make_batch(model)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    # Neither code nor pickles are asked for.
    files = ["config.json", "model.safetensors", "generation_config.json"]
    assert asked == [("me/model", {"allow_patterns": files, "revision": "v1"})]


@pytest.mark.parametrize("name", ["no/such-model", "nowhere", "./no/folder", "/no/folder"])
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        ClimateTextForCausalLM.from_pretrained(name)


def test_a_path_does_not_travel_in_the_configuration(folder_backbone: Path) -> None:
    backbone = load_backbone(folder_backbone, dtype="float32")
    model = ClimateTextForCausalLM.from_backbone(backbone, statistics=statistics())
    assert backbone.model.config._name_or_path == str(folder_backbone)
    assert str(folder_backbone) not in json.dumps(publishing.public_config(model.config).to_dict())
    assert json.dumps(model.config.to_dict()).count(str(folder_backbone)) == 1  # its identity, to find it by
