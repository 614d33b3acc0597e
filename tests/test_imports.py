"""Imports go down only. Read from the syntax tree, so that an import inside a function counts too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "climafuse"

# From the ground up: a part may import itself and what lies below; parts of one layer do not see each other.
LAYERS = [
    {"errors", "text_file"},
    {"climate_tokens", "json_file", "json_values", "memory", "pace", "registry"},
    {"manifest"},
    {"data"},
    {"facts", "encoders", "fusion", "backbones"},
    {"model"},
    {"auto_classes", "planning"},
    {"training"},
    {"evaluation"},
    {"scaling"},
    {"report"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Absolute names of all modules a file imports, `import a`, `from a import b` and relative ones."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from climafuse import data` imports the module climafuse.data.
            found |= {f"{module}.{alias.name}" if module == "climafuse" else module for alias in node.names}
    return found


def _part(module: str) -> str | None:
    """ "data" of "climafuse.data.window"; None outside the package and for names of the package itself."""
    names = module.split(".")
    return names[1] if names[0] == "climafuse" and len(names) > 1 else None


def _violations(part: str, modules: set[str]) -> list[str]:
    wrong = []
    for module in sorted(modules):
        other = _part(module)
        if other is None or other == part or other == "__version__":
            continue
        assert other in HEIGHT, f"{module}: give the new part a layer in tests/test_imports.py"
        if HEIGHT[other] >= HEIGHT[part] or (part == "facts" and other not in {"data", "errors"}):
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part == "__init__":
        return  # the public face: names only, loaded when asked for
    assert part in HEIGHT, f"give {part} a layer in tests/test_imports.py"
    assert _violations(part, _imports(path)) == []


def test_the_check_sees_a_violation():
    assert _violations("data", {"climafuse.data.window", "climafuse.errors", "numpy"}) == []
    assert _violations("data", {"climafuse.model.modeling"}) == ["climafuse.model.modeling"]
    assert _violations("fusion", {"climafuse.encoders"}) == ["climafuse.encoders"]
    assert _violations("facts", {"climafuse.registry"}) == ["climafuse.registry"]


def test_no_file_is_reached_by_pickle_or_remote_code():
    """Weights are safetensors, state is JSON: nothing in the package unpickles or runs code from a hub."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "yaml.load",
                "yaml.unsafe_load",
                "pickle.load",
            }:
                pytest.fail(f"{path}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(
                    k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
                ), path


@pytest.mark.parametrize(
    "module", ["climafuse", "climafuse.errors", "climafuse.registry", "climafuse.cli.app"]
)
def test_light_modules_stay_light(module):
    """A second of --help is mostly imports: none of the heavy libraries may be among them."""
    heavy = ["torch", "transformers", "xarray", "numpy", "pandas", "matplotlib", "zarr"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
