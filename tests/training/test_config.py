"""The configuration refuses whatever it does not understand, and says where it stands."""

# ruff: noqa: RUF009  (`setting` returns a dataclass field)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.errors import ConfigurationError
from climafuse.training.config import (
    DataConfig,
    EncoderConfig,
    RunConfig,
    TrainingConfig,
    load_config,
    read_yaml,
    setting,
)


def read(text: str, *overrides: str) -> RunConfig:
    return read_yaml(RunConfig, text, source="run.yaml", overrides=overrides)


def test_defaults_round_trip_with_and_without_comments() -> None:
    config = load_config()
    assert config == RunConfig()
    assert read(config.to_yaml()) == config
    assert read(config.to_yaml(comments=True)) == config
    assert f"steps: {config.training.steps}  # optimizer steps\n" in config.to_yaml(comments=True)


@settings(deadline=None, max_examples=30)  # the first example pays for imports
@given(
    rate=st.floats(min_value=0, max_value=1e300, allow_nan=False),
    source=st.text(max_size=20),
    pairs=st.none() | st.text(max_size=10),
    options=st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.integers() | st.booleans() | st.none() | st.lists(st.integers(), max_size=3),
    ),
    sites=st.sampled_from(["input", "output", (0, 7), {"last": 2}]),
)
def test_any_configuration_round_trips(
    rate: float, source: str, pairs: str | None, options: dict[str, Any], sites: Any
) -> None:
    config = RunConfig(
        data=DataConfig(source=source, pairs=pairs),
        encoder=EncoderConfig(options=options),
        training=TrainingConfig(learning_rate=rate),
    )
    config = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, sites=sites))
    assert read(config.to_yaml(comments=True)) == config


@pytest.mark.parametrize("spelled", ["5e-5", "5.0e-05", "0.00005", "+5E-5", ".5e-4", '"5e-5"'])
def test_every_spelling_of_a_number_is_a_number(spelled: str) -> None:
    # YAML 1.1 reads `5e-5` as text; the earlier system trained with that text as its learning rate.
    assert read(f"training: {{learning_rate: {spelled}}}").training.learning_rate == 5e-5
    assert read("", f"training.learning_rate={spelled}").training.learning_rate == 5e-5
    assert read(f"encoder: {{options: {{rates: [{spelled}]}}}}").encoder.options["rates"] == [5e-5]


def test_whole_numbers() -> None:
    assert read("training: {steps: 1e3}").training.steps == 1000
    assert read("training: {learning_rate: 1}").training.learning_rate == 1.0
    assert type(read("training: {learning_rate: 1}").training.learning_rate) is float
    with pytest.raises(ConfigurationError, match="a whole number"):
        read("training: {steps: 1.5}")


def test_unknown_key_names_path_line_and_nearest_name() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("data:\n  history: 2\ntraining:\n  # a comment\n  lerning_rate: 1e-3\n")
    assert caught.value.argument == "training.lerning_rate (run.yaml, line 5)"
    assert caught.value.remedy == "Did you mean 'learning_rate'?"
    assert caught.value.exit_code == 2


def test_unknown_section_and_unknown_override() -> None:
    with pytest.raises(ConfigurationError, match=r"traning \(run\.yaml, line 1\).*Did you mean 'training'"):
        read("traning: {}")
    with pytest.raises(ConfigurationError, match=r"training\.step \(--set\).*Did you mean 'steps'"):
        read("", "training.step=3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: yes}", r"training\.steps \(run\.yaml, line 1\).*a whole number.*bool True"),
        ("training: {steps: null}", "null"),
        ("training: {steps: many}", "str 'many'"),
        ("data: {source: no}", "bool False.*quotes"),  # YAML's Norway problem
        ("training: {learning_rate: .nan}", "finite"),
        ("training: {learning_rate: .inf}", "finite"),
        ("training: {learning_rate: -1}", "at least 0"),
        ("data: {box_degrees: 200}", "at most 180"),
        ("data: {box_degrees: [11]}", r"data\.box_degrees \(run\.yaml, line 1\)"),
        ("data: {box_degrees: [11, 400]}", "width of at most 360"),
        ("data: {box_degrees: 0}", "height above 0"),
        ('data: {places: {"0,215": 0.7, "48,2": 0.4}}', r"data\.places.*sum to at most 1"),
        ('data: {places: {"0,215": 0}}', "shares above 0"),
        (
            "data: {periods: {train: 1979-01}}",
            r"data\.periods.*keys with values or null|data\.periods\.train",
        ),
        ("data: {anomalies: year}", "one of month, all"),
        ("training: {schedule: cosin}", "one of cosine.*Did you mean 'cosine'"),
        ("data: {variables: t2m}", "a list, each text"),
        ("data: {variables: [t2m, 3]}", r"variables\[1\]"),
        ("data: {variables: [t2m, t2m]}", r"data\.variables.*each once"),
        ("data: {fractions: [0.5, 0.5]}", "Give 3 values"),
        ("data: {fractions: [0.5, 0.4, 0.3]}", r"data\.fractions \(run\.yaml, line 1\).*add up to 1"),
        ("data: 5", "a section of keys"),
        ("encoder: {options: [1]}", "keys with values"),
        ("fusion: {sites: 1.5}", "text or .*float 1.5"),
        ("training: {windows_per_step: 16, accumulation: 3}", "a divisor of windows_per_step = 16"),
        ("training: {schedule_by: seconds}", "max_seconds"),
        ("training: {steps: 600, warmup_steps: 600}", "fewer than steps"),
        ("- a\n- b", "sections of keys"),
        ("training: {steps: 1", r"run\.yaml, line \d"),
        ("a: b: c", "line 1.*YAML"),
        ("training:\n  steps: 5\n  steps: 6\n", r"training\.steps \(run\.yaml, line 3\).*line 2"),
    ],
)
def test_wrong_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(text)


def test_a_section_with_everything_commented_out_is_its_defaults() -> None:
    assert read("training:\n  # steps: 5\n") == RunConfig()


def test_overrides_win_and_reach_into_options() -> None:
    config = read(
        "training: {steps: 50}", "training.steps=70", "fusion.options.num_heads=4", "fusion.sites=[1, 2]"
    )
    assert config.training.steps == 70
    assert config.fusion.options == {"num_heads": 4}
    assert config.fusion.sites == (1, 2)


@pytest.mark.parametrize("override", ["training.steps", "=3", "training..steps=3", "training.steps=[1"])
def test_malformed_overrides(override: str) -> None:
    with pytest.raises(ConfigurationError, match="--set"):
        read("", override)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output: {directory: runs/x}\n")
    assert load_config(path, ["training.steps=3"]).output.directory == "runs/x"
    with pytest.raises(ConfigurationError, match="FileNotFoundError"):
        load_config(tmp_path / "absent.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"run\.yaml"):
        load_config(path)


def test_derived_settings() -> None:
    config = TrainingConfig(steps=300, windows_per_step=12, accumulation=3)
    assert config.microbatch == 4
    assert config.warmup == 15  # a twentieth of 300
    assert TrainingConfig(steps=10).warmup == 0


def test_the_reader_reads_any_dataclass() -> None:
    @dataclass(frozen=True)
    class Inner:
        mode: Literal["a", 2] = setting("a", "")
        scale: float | None = None

    # Resolving names needs module scope, as everywhere with postponed annotations.
    globals()["Inner"] = Inner

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = setting(Inner, "")
        pairs: tuple[tuple[int, str], ...] = ()
        table: dict[str, float] = setting({}, "")

    outer = read_yaml(Outer, "inner: {mode: 2, scale: 1e2}\npairs: [[1, a], [2, b]]\ntable: {x: 1}")
    assert outer == Outer(Inner(2, 100.0), ((1, "a"), (2, "b")), {"x": 1.0})
    with pytest.raises(ConfigurationError, match=r"pairs\[1\]\[0\]"):
        read_yaml(Outer, "pairs: [[1, a], [b, 2]]")


def test_every_setting_says_what_it_means() -> None:
    for section in dataclasses.fields(RunConfig):
        for entry in dataclasses.fields(section.default_factory):  # type: ignore[arg-type]
            assert entry.metadata["meaning"], f"{section.name}.{entry.name}"
