# ruff: noqa: E501  payloads are long
"""Files that try to run code, to read or write outside their folder, to reach the network, or to eat the machine.

Each attack builds its files in a folder and returns the path to hand to the library. `canary` is a file that appears
only if an attack ran code or wrote outside; `secret` holds a text that appears only if it read outside.
"""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from climafuse.data.store import _digest as store_digest
from climafuse.manifest import _digest as model_digest
from climafuse.manifest import sha256, write_manifest
from tests.data import fixtures

SECRET = "the-secret-of-another-folder"


@dataclass(frozen=True)
class Ground:
    """Where an attack takes place.

    Args:
        folder: Empty, for the files of the attack.
        canary: The path that nothing may create.
        secret: A file outside the folder that nothing may read.
        backbone: A sound backbone, to copy.
        model: A sound saved model, to copy.
        store: A sound training store, to copy.
        run: A run that was evaluated, to copy.
        study: A study of two runs, to copy.
    """

    folder: Path
    canary: Path
    secret: Path
    backbone: Path
    model: Path
    store: Path
    run: Path
    study: Path

    def copy(self, of: str) -> Path:
        """A copy of a sound folder, to be poisoned."""
        return Path(shutil.copytree(getattr(self, of), self.folder / of))

    @property
    def bomb(self) -> bytes:
        """A pickle that creates the canary when it is loaded."""
        return pickle.dumps(Bomb(self.canary))

    @property
    def code(self) -> str:
        """Python that creates the canary when it is imported."""
        return f"import pathlib\npathlib.Path({str(self.canary)!r}).touch()\n"


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


Attack = Callable[[Ground], Path | str]
ATTACKS: dict[str, tuple[str, Attack, tuple[str, ...]]] = {}
"""Name -> what is attacked with (the row of the table), the attack, and the entry points it is handed to."""


def attack(row: str, *entries: str, **variants: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an attack, or one for each variant: `variant=argument`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, argument in variants.items():
            ATTACKS[f"{function.__name__}: {name}"] = (
                row,
                lambda ground, argument=argument: function(ground, argument),
                entries,
            )
        if not variants:
            ATTACKS[function.__name__] = (row, function, entries)
        return function

    return register


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


# ---- Pickles --------------------------------------------------------------------------------------------------


@attack(
    "pickles", "load_backbone", "backbone import", "train",
    bin="pytorch_model.bin", pt="model.pt", ckpt="model.ckpt", pth="consolidated.pth",
)  # fmt: skip
def pickled_weights(ground: Ground, name: str) -> Path:
    folder = ground.copy("backbone")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(ground.bomb)
    return folder


@attack("pickles", "load_backbone")
def pickled_shards(ground: Ground) -> Path:
    folder = ground.copy("backbone")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model-1.bin").write_bytes(ground.bomb)
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model-1.bin"}}')
    return folder


@attack("pickles", "load_backbone", "backbone import")
def index_of_pickles(ground: Ground) -> Path:
    folder = ground.copy("backbone")
    (folder / "model.safetensors").rename(folder / "x.bin")
    (folder / "x.bin").write_bytes(ground.bomb)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "x.bin"}}')
    return folder


@attack("pickles", "load_backbone", "infer", backbone="backbone", model="model")
def pickle_named_safetensors(ground: Ground, of: str) -> Path:
    folder = ground.copy(of)
    (folder / "model.safetensors").write_bytes(ground.bomb)
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


@attack(
    "pickles", "infer", "resume",
    **{name.partition(".")[0]: name for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")},
)  # fmt: skip
def pickle_beside_a_model(ground: Ground, name: str) -> Path:
    folder = ground.copy("model")
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / name).write_bytes(ground.bomb)
    return folder


@attack(
    "pickles",
    "pairs",
    pkl="pairs.pkl",
    jsonl="pairs.jsonl",
    csv="pairs.csv",
    parquet="pairs.parquet",
    npy="p.npy",
)
def pickled_pairs(ground: Ground, name: str) -> Path:
    (ground.folder / name).write_bytes(ground.bomb)
    return ground.folder / name


@attack("pickles", "pairs")
def parquet_with_a_pickled_type(ground: Ground) -> Path:
    """CVE-2023-47248."""
    import pyarrow as pa
    import pyarrow.parquet

    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": ground.bomb,
    }
    fields = [pa.field("time", pa.string()), pa.field("text", pa.string(), metadata=metadata)]
    table = pa.table([["2026-03-01"], ["text"]], schema=pa.schema(fields))
    pyarrow.parquet.write_table(table, ground.folder / "pairs.parquet")
    return ground.folder / "pairs.parquet"


@attack(
    "pickles",
    "data inspect",
    "data prepare",
    npy="fields.npy",
    npz="fields.npz",
    pkl="fields.pkl",
    nc="fields.nc",
)
def pickled_fields(ground: Ground, name: str) -> Path:
    path = ground.folder / name
    if name.startswith("fields.np"):
        with path.open("wb") as file:
            np.save(file, np.array([Bomb(ground.canary)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(ground.bomb)
    return path


def _zarr2_of_objects(ground: Ground, filters: Any, compressor: Any, name: str) -> Path:
    """A Zarr store one of whose arrays is decoded by unpickling."""
    store = ground.folder / "objects.zarr"
    fixtures.write(fixtures.arco(fixtures.truth("t2m")), str(store), "zarr2")
    (store / ".zmetadata").unlink()
    array = json.loads((store / name / ".zarray").read_text())
    array |= {
        "dtype": "|O",
        "filters": filters,
        "compressor": compressor,
        "fill_value": None,
        "chunks": array["shape"],
    }
    (store / name / ".zarray").write_text(json.dumps(array))
    for chunk in (store / name).iterdir():
        if not chunk.name.startswith("."):
            chunk.write_bytes(ground.bomb)
    return store


@attack(
    "pickles", "data inspect", "data prepare",
    coordinate="latitude", time="time", field="2m_temperature",
)  # fmt: skip
def zarr_filter_that_unpickles(ground: Ground, name: str) -> Path:
    return _zarr2_of_objects(ground, [{"id": "pickle"}], None, name)


@attack("pickles", "data inspect")
def zarr_compressor_that_unpickles(ground: Ground) -> Path:
    return _zarr2_of_objects(ground, None, {"id": "pickle"}, "latitude")


@attack("pickles", "data inspect", "data prepare")
def zarr_filter_that_unpickles_behind_texts(ground: Ground) -> Path:
    return _zarr2_of_objects(ground, [{"id": "vlen-utf8"}, {"id": "pickle"}], None, "latitude")


@attack("pickles", "data inspect", pickle="pickle", numcodecs="numcodecs.pickle", python="os.system")
def zarr3_codec_that_unpickles(ground: Ground, codec: str) -> Path:
    store = ground.folder / "codec.zarr"
    fixtures.write(fixtures.arco(fixtures.truth("t2m")), str(store), "zarr3")
    edit(
        store / "latitude" / "zarr.json",
        lambda content: content.update(codecs=[{"name": codec, "configuration": {"protocol": 4}}]),
    )
    for chunk in (store / "latitude" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(ground.bomb)
    return store


# ---- Safetensors ----------------------------------------------------------------------------------------------


def _tensor(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@attack(
    "safetensors headers", "load_backbone", "infer",
    overlap=({"a": _tensor(0, 4), "b": _tensor(0, 4)}, None),
    beyond=({"a": _tensor(0, 2**40, shape=(2**38,))}, None),
    negative=({"a": _tensor(-4, 0)}, None),
    backward=({"a": _tensor(8, 4)}, None),
    hole=({"a": _tensor(4, 8)}, None),
    overflow=({"a": _tensor(0, 4, shape=(2**32, 2**32, 2))}, None),
    dtype=({"a": _tensor(0, 4, dtype="OBJ")}, None),
    metadata=({"__metadata__": {"x": {"y": 1}}, "a": _tensor(0, 4)}, None),
    no_object=([1, 2], None),
    huge_header=({}, 2**62),
    long_header=({}, 10**6),
    nested="nested",
)  # fmt: skip
def broken_header(ground: Ground, what: Any) -> Path:
    header, length = what if what != "nested" else (None, None)
    text = b'{"a":' * 100_000 if header is None else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + bytes(8)
    for of in ("backbone", "model"):
        folder = ground.copy(of)
        (folder / "model.safetensors").write_bytes(content)
        (folder / "manifest.json").unlink(missing_ok=True)
    return ground.folder


# ---- Configurations -------------------------------------------------------------------------------------------

_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


@attack(
    "YAML", "config", "study",
    apply="data: !!python/object/apply:pathlib.Path.touch [{path}]",
    new="data: !!python/object/new:pathlib.Path [{canary}]",
    name_="encoder: {{name: !!python/name:os.system }}",
    module="encoder: {{name: !!python/module:antigravity }}",
    tuple_="data: {{variables: !!python/tuple [t2m]}}",
    system="training: {{steps: !!python/object/apply:os.system ['touch {canary}']}}",
    key="!!python/object/apply:os.system ['touch {canary}']: 1",
    local="data: !include {secret}",
    anchor="data: &a [*a]",
    loop="data: &a {{source: *a}}",
    laughs=_LAUGHS,
    laughs_in_options="encoder: {{options: {{laughs: [" + "[" * 50 + "]" * 50 + "]}}}}",
    deep="data: " + "[" * 20_000,
    huge_integer="training: {{steps: " + "9" * 100_000 + "}}",
    large_integer="training: {{steps: " + "9" * 400 + "}}",
    hexadecimal="training: {{seed: 0x" + "f" * 9000 + "}}",
    sexagesimal="training: {{steps: 1:" + ":".join(["59"] * 2000) + "}}",
    target="encoder: {{_target_: os.system, _args_: ['touch {canary}']}}",
    environment="data: {{source: '${{oc.env:HOME}}'}}",
    encoder="encoder: {{name: 'os:system'}}",
    fusion="fusion: {{name: 'subprocess:Popen', options: {{args: 'touch {canary}', shell: true}}}}",
    document="data: {{}}\n--- \ntraining: {{}}",
    nul="data: {{source: \"\\0\"}}",
    control="\"data\\e[2J\\e[31m\": {{}}",
    binary="data: !!binary {secret}",
    merge="<<: 7\ndata: {{}}",
    list_key="? [a, b]\n: 1",
    date="data: {{source: 2026-99-99}}",
)  # fmt: skip
def yaml(ground: Ground, text: str) -> Path:
    path = ground.folder / "run.yaml"
    canary, secret = (str(path) for path in (ground.canary, ground.secret))
    path.write_text(text.format(canary=canary, secret=secret, path=f"!!python/object/apply:pathlib.Path [{canary}]")
                    if text is not _LAUGHS else text)  # fmt: skip
    return path


@attack("YAML", "--set", tag="data.source=!!python/object/apply:os.system ['touch {canary}']",
        laughs="data.source=" + "[" * 20_000, key="a.b.c.d=1", empty="=", dunder="__class__.x=1",
        control="data.source\x1b[31m=x")  # fmt: skip
def setting(ground: Ground, text: str) -> str:
    return text.replace("{canary}", str(ground.canary))


# ---- Code beside weights --------------------------------------------------------------------------------------

_AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoModel": "evil.Evil"}


def _with_code(ground: Ground, of: str) -> Path:
    folder = ground.copy(of)
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "evil.py").write_text(ground.code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(ground.code)
    return folder


@attack(
    "code beside weights", "load_backbone", "backbone import",
    auto_map={"auto_map": _AUTO_MAP},
    unknown_type={"auto_map": _AUTO_MAP, "model_type": "evil"},
    elsewhere={"auto_map": {"AutoConfig": "someone/evil--evil.Evil"}, "model_type": "evil"},
    trusting={"auto_map": _AUTO_MAP, "model_type": "evil", "trust_remote_code": True},
    kernel={"_attn_implementation": "someone/evil-kernel"},
    kernel_in_the_open={"attn_implementation": "someone/evil-kernel:run"},
    internal={"_attn_implementation_internal": "someone/evil-kernel"},
    quantizer={"quantization_config": {"quant_method": "os.system"}},
    dtype={"dtype": "os.system", "torch_dtype": "os"},
    architectures={"architectures": ["os.system"]},
    huge={"vocab_size": 2**40, "hidden_size": 2**40},
    negative={"num_hidden_layers": -1},
    nested_type={"model_type": ["llama"]},
    generate={"custom_generate": "."},
)  # fmt: skip
def poisoned_backbone_configuration(ground: Ground, keys: dict[str, Any]) -> Path:
    folder = _with_code(ground, "backbone")
    edit(folder / "config.json", lambda content: content.update(keys))
    return folder


@attack(
    "code beside weights", "infer",
    auto_map={"auto_map": _AUTO_MAP},
    unknown_type={"auto_map": _AUTO_MAP, "model_type": "evil"},
    text={"text_config": {"model_type": "evil", "auto_map": _AUTO_MAP}},
    encoder={"encoder": "os:system", "encoder_options": {"command": "touch /tmp/x"}},
    fusion={"fusion": "subprocess:Popen", "fusion_options": {"args": "true"}},
    encoder_module={"encoder": "evil:Evil"},
    backbone_elsewhere={"backbone": {"id": "../../../etc", "content_hash": "x", "architecture": "y"}},
    backbone_uri={"backbone": {"id": "http://127.0.0.1:9/x", "content_hash": "x", "architecture": "y"}},
    backbone_no_text={"backbone": {"id": 7, "content_hash": 7, "architecture": 7}},
    backbone_list={"backbone": ["id", "content_hash", "architecture"]},
    device={"backbone": {"id": "/dev/zero", "content_hash": "x", "architecture": "y"}},
    huge_encoder={"encoder_options": {"width": 2**40}},
    statistics={"statistics": {"variables": {"t2m": {"mean": 1e999, "std": 0}}}},
    statistics_list={"statistics": [1, 2]},
    sites={"sites": [[[[]]]]},
    variables={"variables": [7]},
    dtype={"backbone_dtype": "os.system"},
    history={"history": 10**12},
)  # fmt: skip
def poisoned_model_configuration(ground: Ground, keys: dict[str, Any]) -> Path:
    folder = _with_code(ground, "model")
    edit(folder / "config.json", lambda content: content.update(keys))
    return folder


@attack(
    "code beside weights", "infer",
    device={"cache_implementation": "offloaded_static"},
    code={"custom_generate": "."},
    layers={"dola_layers": "high"},
    method={"to_dict": 7},
    beams={"num_beams": 10**9},
    copies={"num_return_sequences": 10**6},
    form={"return_dict_in_generate": True},
    tokens={"eos_token_id": "x", "pad_token_id": 10**9},
    compile_={"compile_config": {"backend": "os.system"}},
)  # fmt: skip
def poisoned_generation(ground: Ground, keys: dict[str, Any]) -> Path:
    folder = _with_code(ground, "model")
    (folder / "generation_config.json").write_text(json.dumps(keys))
    return folder


@attack(
    "code beside weights", "load_backbone",
    auto_map={"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
    class_={"tokenizer_class": "evil.Evil"},
    path_class={"tokenizer_class": "../evil"},
    processor={"processor_class": "evil.Evil", "auto_map": {"AutoProcessor": "evil.Evil"}},
    files={"fast_tokenizer_files": ["../../secret"], "tokenizer_file": "/etc/passwd", "vocab_file": "/etc/passwd"},
)  # fmt: skip
def poisoned_tokenizer(ground: Ground, keys: dict[str, Any]) -> Path:
    folder = _with_code(ground, "backbone")
    edit(folder / "tokenizer_config.json", lambda content: content.update(keys))
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps(keys))
    return folder


@attack("code beside weights", "load_backbone")
def adapter_of_another_model(ground: Ground) -> Path:
    """transformers would load the base model that the adapter names, not the weights that were hashed."""
    folder = ground.copy("backbone")
    other = ground.folder / "other"
    shutil.copytree(ground.backbone, other)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(other), "task_type": "CAUSAL_LM"})
    )
    return folder


@attack(
    "chat templates", "ask",
    classes="{{ ''.__class__.__mro__[1].__subclasses__() }}",
    globals_="{{ cycler.__init__.__globals__.os.system('touch {canary}') }}",
    import_="{% set x = self.__init__.__globals__['__builtins__']['open']('{canary}', 'w') %}",
    format_="{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    attribute="{{ messages | attr('__class__') }}",
    mutate="{{ messages.append(7) }}",
    include="{% include '{secret}' %}",
    range_="{% for x in range(1000000000000) %}x{% endfor %}",
    syntax="{% for %}",
    undefined="{{ nothing.at.all }}",
    raised="{{ raise_exception('\x1b[31mno') }}",
    power="{{ 9 ** 9 ** 9 | string }}" if False else "{{ 'a' * 10000000000000 }}",
)  # fmt: skip
def chat_template(ground: Ground, text: str) -> Path:
    folder = ground.copy("backbone")
    text = text.replace("{canary}", str(ground.canary)).replace("{secret}", str(ground.secret))
    (folder / "chat_template.jinja").write_text(text)
    return folder


# ---- Archives -------------------------------------------------------------------------------------------------


@attack(
    "archives", "backbone import",
    parent="../../escaped.gguf", absolute="{canary}.gguf", windows="..\\..\\escaped.gguf", link="link", device="/dev/x.gguf",
    bomb="bomb", two="two", encrypted="encrypted", none="none", no_zip="no zip",
)  # fmt: skip
def wheel(ground: Ground, name: str) -> Path:
    path = ground.folder / "evil-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        match name:
            case "link":
                info = zipfile.ZipInfo("model.gguf")
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, str(ground.secret))
            case "bomb":
                with archive.open("model.gguf", "w") as member:
                    for _ in range(64):
                        member.write(bytes(2**20))
            case "two":
                archive.writestr("a.gguf", b"GGUF")
                archive.writestr("b.gguf", b"GGUF")
            case "none":
                archive.writestr("a.py", ground.code)
            case _:
                archive.writestr(name.replace("{canary}", str(ground.canary)), b"GGUF" + bytes(100))
    if name == "encrypted":
        path.write_bytes(
            path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0")
        )
    if name == "no zip":
        path.write_bytes(ground.bomb)
    return path


@attack(
    "archives", "backbone import",
    counts=b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
    string=b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62),
    array=b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**50),
    nested=b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 5000,
    kind=b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 99),
    version=b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    empty=b"", zeros=bytes(4096), short=b"GGUF",
)  # fmt: skip
def gguf(ground: Ground, content: bytes) -> Path:
    (ground.folder / "evil.gguf").write_bytes(content)
    return ground.folder / "evil.gguf"


@attack("archives", "data inspect", "data prepare", tar="fields.tar", zip="fields.zip", nc="fields.nc")
def archive_of_fields(ground: Ground, name: str) -> Path:
    import io
    import tarfile

    path = ground.folder / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../escaped.nc", b"CDF\x01")
    else:
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo(str(ground.canary))
            tar.addfile(member, io.BytesIO())
    return path


@attack(
    "archives", "data inspect", "data prepare",
    gzip="gzip", zlib="zlib", bz2="bz2", lzma="lzma", blosc="blosc", lz4="lz4", zstd="zstd", twice="twice", frames="frames",
    coordinate="coordinate", chunk="chunk",
)  # fmt: skip
def zarr_bomb(ground: Ground, kind: str) -> Path:
    """A chunk that unpacks to a hundred megabytes; one in a bomb, or one whose array says that its chunk is that large."""
    import numcodecs

    store = ground.folder / "bomb.zarr"
    fixtures.write(fixtures.arco(fixtures.truth("t2m")), str(store), "zarr2")
    (store / ".zmetadata").unlink()
    array = store / ("latitude" if kind == "coordinate" else "2m_temperature")
    codec = numcodecs.get_codec(
        {"id": kind if kind in ("zlib", "bz2", "lzma", "blosc", "lz4", "zstd") else "gzip"}
    )
    codec = numcodecs.Zstd() if kind == "frames" else codec
    content = codec.encode(bytes(10**8))
    content = codec.encode(bytes(8)) + content if kind == "frames" else content
    told = {"compressor": codec.get_config(), "filters": None}
    if kind == "twice":
        content, told["filters"] = codec.encode(content), [codec.get_config()]
    edit(array / ".zarray", lambda content: content.update(told))
    if kind == "chunk":
        edit(array / ".zarray", lambda content: content.update(chunks=[10**8, 1, 1]))
    next(path for path in array.iterdir() if path.name[0] != ".").write_bytes(content)
    return store


# ---- References that leave the folder -------------------------------------------------------------------------


def _zarr(ground: Ground, kind: str = "zarr3") -> Path:
    store = ground.folder / "fields.zarr"
    fixtures.write(fixtures.arco(fixtures.truth("t2m")), str(store), kind)
    return store


@attack(
    "references",
    "data inspect",
    "data prepare",
    chunk="chunk",
    array="array",
    metadata="metadata",
    folder="folder",
)
def zarr_link(ground: Ground, what: str) -> Path:
    store = _zarr(ground)
    outside = ground.secret.parent / "outside"
    if what == "folder":  # a whole level of chunks
        shutil.move(store / "2m_temperature" / "c", outside)
        (store / "2m_temperature" / "c").symlink_to(outside)
        return store
    target = {
        "chunk": store / "latitude" / "c" / "0",
        "array": store / "latitude",
        "metadata": store / "latitude" / "zarr.json",
    }[what]
    shutil.move(target, outside)
    target.symlink_to(outside)
    return store


@attack("references", "data inspect")
def zarr_link_to_a_device(ground: Ground) -> Path:
    store = _zarr(ground)
    (store / "latitude" / "c" / "0").unlink()
    (store / "latitude" / "c" / "0").symlink_to("/dev/zero")
    return store


@attack("references", "data inspect", parent="../outside/x", absolute="/outside/x", dots="a/../../outside/x")
def consolidated_key(ground: Ground, key: str) -> Path:
    store = _zarr(ground, "zarr2")
    shutil.copytree(store / "latitude", ground.folder / "outside" / "x")

    def change(content: dict[str, Any]) -> None:
        for name in (".zarray", ".zattrs"):
            content["metadata"][f"{key}/{name}"] = content["metadata"][f"latitude/{name}"]

    edit(store / ".zmetadata", change)
    return store


@attack("references", "data inspect", parent="../", absolute="//", dots="..")
def chunk_separator(ground: Ground, separator: str) -> Path:
    store = _zarr(ground)
    encoding = {"name": "default", "configuration": {"separator": separator}}
    edit(store / "latitude" / "zarr.json", lambda content: content.update(chunk_key_encoding=encoding))
    return store


@attack(
    "references", "data inspect", "data prepare",
    plain="{file}", scheme="reference://{file}", chained="reference::{file}", local="reference::file://{file}",
    empty="reference://", filecache="filecache::reference::file://{file}",
)  # fmt: skip
def kerchunk(ground: Ground, form: str) -> str:
    encoded = base64.b64encode(b"x").decode()
    references = {
        ".zgroup": '{"zarr_format": 2}',
        "latitude/.zarray": json.dumps({"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "|u1", "fill_value": 0,
                                        "order": "C", "compressor": None, "filters": None}),
        "latitude/.zattrs": '{"_ARRAY_DIMENSIONS": ["latitude"]}',
        "latitude/0": [f"file://{ground.secret}", 0, 4],
        "longitude/0": ["http://127.0.0.1:9/x"],
        "time/0": f"base64:{encoded}",
    }  # fmt: skip
    path = ground.folder / "references.json"
    path.write_text(json.dumps({"version": 1, "refs": references}))
    return form.format(file=path)


@attack("references", "data inspect", "data prepare")
def folder_of_references(ground: Ground) -> Path:
    """As kerchunk writes them in Parquet: consolidated metadata, and chunks that are said to lie elsewhere."""
    store = _zarr(ground, "zarr2")
    for path in store.rglob("*"):
        if path.is_file() and not path.name.startswith(".z"):
            path.unlink()
    return store


@attack("references", "load_backbone", "backbone import", parent="../../secret.safetensors", absolute="{secret}",
        up="..", here=".", number=7, none=None, nested=["model.safetensors"], nul="a\0b", long="x" * 5000)  # fmt: skip
def index_of_shards(ground: Ground, name: Any) -> Path:
    folder = ground.copy("backbone")
    name = name.replace("{secret}", str(ground.secret)) if isinstance(name, str) else name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    return folder


@attack("references", "store", "data inspect", parent="../secret", absolute="{secret}", device="/dev/zero", up="..",
        null="/dev/null")  # fmt: skip
def file_of_a_store(ground: Ground, name: str) -> Path:
    folder = ground.copy("store")

    def change(content: dict[str, Any]) -> None:
        content["files"][name.replace("{secret}", str(ground.secret))] = [0, "0" * 64]
        content["digest"] = store_digest(content)

    edit(folder / "manifest.json", change)
    return folder


@attack(
    "references",
    "store",
    statistics="statistics.json",
    zarr="fields.zarr",
    chunk="fields.zarr/fields/c.0.0.0.0",
)
def link_in_a_store(ground: Ground, name: str) -> Path:
    folder = ground.copy("store")
    shutil.move(folder / name, ground.secret.parent / "outside")
    (folder / name).symlink_to(ground.secret.parent / "outside")
    return folder


@attack(
    "references", "store", "data inspect",
    shape={"shape": [2**40, 2**40, 1, 1]}, negative={"shape": [-1, 2, 3, 4]}, short={"shape": [1]}, text={"shape": "x"},
    variables={"variables": 7}, splits={"splits": {"train": [[0, 2**60]]}}, other={"splits": {"x": []}},
    files={"files": [1, 2]}, entry={"files": {"fields.zarr": 7}}, calendar={"calendar": "lunar"}, none={"provenance": None},
    tolerance={"tolerance_seconds": "x"}, pairs={"pairs": {"train": 1}}, format_={"format": "x"},
)  # fmt: skip
def manifest_of_a_store(ground: Ground, keys: dict[str, Any]) -> Path:
    folder = ground.copy("store")

    def change(content: dict[str, Any]) -> None:
        content.update(keys)
        content["digest"] = store_digest(content)

    edit(folder / "manifest.json", change)
    return folder


@attack(
    "references", "infer",
    parent={"files": {"../secret": {"size": 0, "sha256": "x"}}}, device={"files": {"/dev/zero": {"size": 0, "sha256": "x"}}},
    list_={"files": [1]}, entry={"files": {"config.json": 7}}, versions={"versions": 7, "format": 9}, none={"files": None},
)  # fmt: skip
def manifest_of_a_model(ground: Ground, keys: dict[str, Any]) -> Path:
    folder = ground.copy("model")
    write_manifest(folder, kind="model")

    def change(content: dict[str, Any]) -> None:
        content.update(keys)
        content["digest"] = model_digest(content)

    edit(folder / "manifest.json", change)
    return folder


@attack(
    "references", "load_backbone",
    parent={"id": "x", "files": {"../../secret": {"size": 7, "sha256": "x"}}}, list_=[1, 2], text="x", none={},
    files={"id": "x", "files": 7}, entry={"id": "x", "files": {"config.json": 7}}, id_={"id": {"a": 1}, "files": {}},
)  # fmt: skip
def manifest_of_a_backbone(ground: Ground, content: Any) -> Path:
    folder = ground.copy("backbone")
    (folder / "climafuse-manifest.json").write_text(json.dumps(content))
    return folder


def transcript_of(run: Path) -> Path:
    """What the model of a run has answered, known by its weights and whatever else its answers depend on."""
    (path,) = (run / "evaluation").glob(f"model-{sha256(run / 'model' / 'model.safetensors')[:12]}-*.jsonl")
    return path


@attack(
    "references", "evaluate",
    transcript="transcript", folder="", controls="controls", control="controls/text_only",
)  # fmt: skip
def link_in_a_run(ground: Ground, name: str) -> Path:
    """An evaluation would be written to wherever the link leads."""
    run = ground.copy("run")
    place = transcript_of(run) if name == "transcript" else run / "evaluation" / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(ground.secret if name == "transcript" else ground.secret.parent)
    return run


@attack("references", "table", "plot", **{name: name for name in ("figure", "table")})
def link_in_a_study(ground: Ground, name: str) -> Path:
    """What is drawn and written takes the place of the link, not of what it leads to."""
    study = ground.copy("study")
    for path in study.glob(f"{name}.*"):
        path.unlink()
    for suffix in ("png", "svg", "md"):
        (study / f"{name}.{suffix}").symlink_to(ground.secret)
    return study


@attack("references", "table", "plot", "report", "evaluate", results="results.json", run="run.json")
def secret_for_a_record(ground: Ground, name: str) -> Path:
    folder = ground.copy("study" if name == "results.json" else "run")
    (folder / name).unlink()
    (folder / name).symlink_to(ground.secret)
    return folder


# ---- Text that is more than text ------------------------------------------------------------------------------

_DOCUMENTS = {
    "nested": b"[" * 200_000, "objects": b'{"a":' * 100_000, "integer": b"9" * 100_000, "utf16": "{}".encode("utf-16"),
    "nul": b"\0" * 100, "number": b"7", "list": b"[]", "nothing": b"", "infinity": b'{"format": Infinity}',
    "control": b'{"\x1b[2J": 1}', "surrogate": b'{"model_type": "\\ud800"}',
}  # fmt: skip


@attack("text", "infer", **{f"{name} {document}": (name, document) for name in ("config.json", "manifest.json", "generation_config.json")
                            for document in _DOCUMENTS})  # fmt: skip
def document_of_a_model(ground: Ground, what: tuple[str, str]) -> Path:
    folder = ground.copy("model")
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / what[0]).write_bytes(_DOCUMENTS[what[1]])
    return folder


@attack("text", "load_backbone",
        **{f"{name} {document}": (name, document)
           for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json",
                        "climafuse-manifest.json", "generation_config.json")
           for document in _DOCUMENTS})  # fmt: skip
def document_of_a_backbone(ground: Ground, what: tuple[str, str]) -> Path:
    folder = ground.copy("backbone")
    (folder / what[0]).write_bytes(_DOCUMENTS[what[1]])
    return folder


@attack("text", "store", **{f"{name} {document}": (name, document) for name in ("manifest.json", "statistics.json")
                            for document in _DOCUMENTS})  # fmt: skip
def document_of_a_store(ground: Ground, what: tuple[str, str]) -> Path:
    folder = ground.copy("store")
    (folder / what[0]).write_bytes(_DOCUMENTS[what[1]])
    if what[0] != "manifest.json":
        from climafuse.manifest import sha256

        def change(content: dict[str, Any]) -> None:
            path = folder / what[0]
            content["files"][what[0]] = [path.stat().st_size, sha256(path)]
            content["digest"] = store_digest(content)

        edit(folder / "manifest.json", change)
    return folder


@attack("text", "pairs", **_DOCUMENTS, twice=b'{"time": "2026-03-01", "text": "a", "text": "b"}',
        long=b'{"time": "' + b"x" * 2**21 + b'"}', place=b'{"time": "2026-03-01", "text": "a", "place": "' + b"x" * 2**20 + b'"}',
        escape=b'{"time": "\\u001b[2J\\u202e", "text": "a"}', facts=b'{"time": "2026-03-01", "text": "a", "facts": "' + b"[" * 50_000 + b'"}',
        integer_sample=b'{"time": "2026-03-01", "text": "a", "sample": "' + b"9" * 5000 + b'"}')  # fmt: skip
def document_of_pairs(ground: Ground, content: bytes) -> Path:
    (ground.folder / "pairs.jsonl").write_bytes(content + b"\n")
    return ground.folder / "pairs.jsonl"


@attack("text", "data inspect", "data prepare", escape="\x1b[2J\x1b]0;owned\x07", bidirectional="\u202efdp.exe",
        newline="a\nerror: b", carriage="\rok", bell="\x07\x08\x08", long="x" * 200)  # fmt: skip
def name_of_a_file(ground: Ground, name: str) -> Path:
    path = ground.folder / f"{name}.nc"
    path.write_bytes(b"nonsense")
    return path


@attack(
    "text",
    "data inspect",
    escape="\x1b[2J",
    newline="K\nerror: fake",
    long="u" * 10**6,
    html="<script>alert(1)</script>",
)
def units_of_a_field(ground: Ground, units: str) -> Path:
    dataset = fixtures.era5(fixtures.truth("t2m"))
    dataset["t2m"].attrs["units"] = units
    return Path(fixtures.write(dataset, str(ground.folder / "fields.nc"), "netcdf4"))


@attack("text", "place", long="x" * 2**20, commas="," * 10_000, digits="1" * 100_000 + ",2", control="\x1b[2J", nul="\0",
        spaces=" " * 100_000 + "1", letters="é" * 100_000)  # fmt: skip
def place(ground: Ground, name: str) -> str:
    return name


@attack(
    "text",
    "glob",
    everything="/**/*",
    brackets="[" * 1000,
    stars="*" * 200 + "x",
    device="/dev/*",
    up="../*" * 3,
)
def pattern(ground: Ground, name: str) -> str:
    return name


# ---- Texts that are shown: on a page, on a model card, in a picture, on a terminal --------------------------------

MARKUP = "</td></title></style></p><script>alert(1)</script><img src=http://127.0.0.1:9/x onerror=alert(1)>\"'{{ 7 * 7 }}"
_TEXTS = {
    "markup": MARKUP, "terminal": "\x1b[2J\x1b]0;owned\x07\r\u202e", "comment": "--><script>alert(1)</script><!--",
    "link": "[click](javascript:alert(1)) ![x](http://127.0.0.1:9/x) `x` | x |\n# x", "formula": "$\\frac{$ _{x",
    "zero": "a\0b", "long": "x" * 100_000, "many": "x " * 50_000,
}  # fmt: skip


def _put(content: Any, text: str, depth: int = 0) -> Any:
    """A text in place of all texts of a record but those that tell what is what."""
    kept = {"condition", "truth", "time", "format", "weights_sha256", "status", "id", "metric", "goal"}
    if isinstance(content, dict):
        return {key: value if key in kept else _put(value, text) for key, value in content.items()}
    if isinstance(content, list):
        return [_put(entry, text) for entry in content]
    return text if isinstance(content, str) else content


@attack("texts that are shown", "report", **_TEXTS)
def texts_of_an_evaluation(ground: Ground, text: str) -> Path:
    run = ground.copy("run")
    edit(run / "evaluation" / "evaluation.json", lambda content: _put(content, text))
    edit(run / "run.json", lambda content: _put(content, text) | {"license": text})
    return run


@attack("texts that are shown", "report", **_TEXTS)
def names_in_an_evaluation(ground: Ground, text: str) -> Path:
    """Of conditions, variables, kinds and checks: what is asked of a table by name."""
    run = ground.copy("run")

    def change(content: dict[str, Any]) -> None:
        for key in ("conditions", "fact_f1", "withheld", "polling", "differences", "controls"):
            content[key] = content[key] | {f"{text}{name}": entry for name, entry in content[key].items()}
        for row in content["conditions"].values():
            for part in ("by_kind", "by_variable", "by_kind_and_variable", "numeric_error"):
                row[part] = row[part] | {text: 0.5, f"{text}/t2m": 0.5, "mean/" + text: 0.5}
        content["abstention"]["by_reason"] = {text: {"num_questions": 1, "abstained": 0.5}}

    edit(run / "evaluation" / "evaluation.json", change)
    return run


@attack("texts that are shown", "report", markup=MARKUP, uri="http://127.0.0.1:9/x.nc", device="/dev/zero")
def source_of_an_evaluation(ground: Ground, source: str) -> Path:
    run = ground.copy("run")
    edit(run / "evaluation" / "evaluation.json", lambda content: content["data"].update(source=source))
    return run


@attack(
    "texts that are shown",
    "report",
    "evaluate",
    markup="<script>alert(1)<",
    terminal="\x1b[2J",
    newline="a\nerror: b",
)
def name_of_a_run(ground: Ground, name: str) -> Path:
    return ground.copy("run").rename(ground.folder / name)


@attack("texts that are shown", "table", "plot", **_TEXTS)
def texts_of_a_study(ground: Ground, text: str) -> Path:
    study = ground.copy("study")

    def change(content: dict[str, Any]) -> None:
        content["study"] |= {"name": text, "question": text}
        content["runs"][0] |= {"label": text, "settings": {"fusion.name": text, "fusion.sites": text}}
        content["runs"].append(
            content["runs"][0] | {"status": "failed", "why": text, "settings": {"data.source": text}}
        )
        content["machine"]["processor"] = content["date"] = text

    edit(study / "results.json", change)
    return study


@attack(
    "texts that are shown",
    "study",
    **{name: text for name, text in _TEXTS.items() if name not in ("zero", "many")},
)
def texts_of_a_study_file(ground: Ground, text: str) -> Path:
    path = ground.folder / "study.yaml"
    runs = [{"data.source": text}, {"backbone.name": text}]
    path.write_text(json.dumps({"name": "small", "question": text, "runs": runs}, ensure_ascii=False))
    return path


@attack(
    "texts that are shown",
    "attribute",
    **{name: text for name, text in _TEXTS.items() if name not in ("long", "many")},
)
def prompt(ground: Ground, text: str) -> str:
    return text
