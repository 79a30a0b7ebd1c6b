"""YAML trees, references by name, overlays and overrides, and what pydantic's errors become."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from resv_sim import library
from resv_sim.errors import ConfigError
from resv_sim.validation import ByKind, validated
from resv_sim.yaml_source import Node, read_value, read_yaml, write_yaml


class Unit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bits_per_cycle: int = Field(default=16, ge=1, le=64)
    tile_bytes: int = 4096


class Chip(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "chip"
    frequency_hz: float = Field(default=8e8, gt=0, description="clock of the cores")
    unit: Unit = Unit()
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _check(self) -> Chip:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        return self


class Board(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    power_w: float


KINDS: dict[str, type[BaseModel]] = {"chip": Chip, "board": Board}


class Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    lengths: tuple[int, ...] = (1,)
    machines: dict[str, Annotated[Any, ByKind("machine", lambda: KINDS)]] = {}
    spare: Unit | None = None
    parts: tuple[Unit, ...] = ()


def tree(text: str, folder: Path) -> Node:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def message(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        validated(Plan, tree(text, folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of a model, a chain of platforms and a price table."""
    files = {
        "models/small.yaml": "name: small\nvision: eye\n",
        "models/eye.yaml": "name: eye\nn_layers: 2\n",
        "platforms/one.yaml": "kind: chip\nunit: {bits_per_cycle: 16, tile_bytes: 64}\nenergy: cheap\n",
        "platforms/two.yaml": "base: one\nunit:\n  bits_per_cycle: 8\n",
        "platforms/snake.yaml": "base: tail\n",
        "platforms/tail.yaml": "base: snake\n",
        "energy/cheap.yaml": "name: cheap\npj: 1.0\n",
    }
    root = tmp_path / "shelf"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(library, "bundled_root", lambda: root)
    return root


# -- YAML ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1e9), ("1.5e-3", 1.5e-3), ("-2E+4", -2e4), (".5", 0.5), ("1_000", 1000), ("3", 3), ("true", True),
        ("1e", "1e"), ("e9", "e9"), ("none", "none"), ("null", None), ("", None), ("[1, 2e3]", [1, 2e3]),
        ("{a: 1}", {"a": 1}), ("'7'", "7"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_yaml_1_2_reads_numbers(text: str, value: object) -> None:
    got = read_value(text, "here").plain()
    assert got == value
    assert type(got) is type(value)


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    node = tree("a: 1\nb:\n  c: [1,\n    2]\n  d: x\n", tmp_path)
    lines = {path: node.deepest(path).origin.rsplit(":", 1)[1] for path in [("a",), ("b",), ("b", "d")]}
    assert lines == {("a",): "1", ("b",): "2", ("b", "d"): "5"}
    assert node.deepest(("b", "c", 1)).origin.endswith(":4")
    assert node.deepest(("b", "nothing", "below")).origin.endswith(":2")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\na: 2\n", 2, "the key 'a' is given twice"),
        ("a: 1\n2: x\n", 2, "the key '2' is not text"),
        ("a: &x 1\nb: *x\n", 2, "aliases"),
        ("a: {b: 1}\n<<: {c: 2}\n", 2, "is not text"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: !!python/name:os.system x\n", 1, "python/name"),
    ],
)
def test_what_hides_mistakes_is_refused_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"plan\.yaml:{line}: .*{words}"):
        tree(text, tmp_path)


@pytest.mark.parametrize("text", ["", "- 1\n", "word\n"])
def test_a_file_must_hold_a_mapping(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a mapping"):
        tree(text, tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        read_yaml(tmp_path / "binary.yaml")


def test_plain_data_survives_writing_and_reading(tmp_path: Path) -> None:
    data = {"a": 1e9, "b": [1, 2.5, None, True], "c": {"d": "1e9", "e": "µ"}}
    assert tree(write_yaml(data), tmp_path).plain() == data


# -- finding and referring -------------------------------------------------------------------------------


def test_an_existing_path_is_taken_before_a_bundled_name(shelf: Path, tmp_path: Path) -> None:
    own = tmp_path / "one.yaml"
    own.write_text("kind: board\n", encoding="utf-8")
    assert library.find(str(own), "platforms") == own
    assert library.find("one", "platforms") == shelf / "platforms" / "one.yaml"
    assert library.find("one.yaml", "platforms") == shelf / "platforms" / "one.yaml"


def test_an_unknown_name_lists_the_bundled_ones(shelf: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(one, snake, tail, two\)\. Did you mean 'two'\?"):
        library.find("twoo", "platforms")


def test_a_reference_becomes_the_file_it_names_also_in_chains(shelf: Path, tmp_path: Path) -> None:
    plan = library.expand(tree("model: small\nplatforms:\n  x: two\n", tmp_path)).plain()
    assert plan["model"] == {"name": "small", "vision": {"name": "eye", "n_layers": 2}}
    unit = {"bits_per_cycle": 8, "tile_bytes": 64}
    assert plan["platforms"]["x"] == {"kind": "chip", "unit": unit, "energy": {"name": "cheap", "pj": 1.0}}


def test_an_overlay_changes_what_it_names_and_keeps_the_rest(shelf: Path, tmp_path: Path) -> None:
    text = "platforms:\n  x: {base: two, unit: {tile_bytes: 32}, energy: {pj: 2.0}}\n"
    x = library.expand(tree(text, tmp_path)).plain()["platforms"]["x"]
    assert x["unit"] == {"bits_per_cycle": 8, "tile_bytes": 32}
    assert x["energy"] == {"name": "cheap", "pj": 2.0}


def test_an_origin_is_the_file_that_wrote_the_value(shelf: Path, tmp_path: Path) -> None:
    node = library.expand(tree("platforms:\n  x: {base: two, name: n}\n", tmp_path))
    assert "two.yaml:3" in node.deepest(("platforms", "x", "unit", "bits_per_cycle")).origin
    assert "one.yaml:2" in node.deepest(("platforms", "x", "unit", "tile_bytes")).origin
    assert "plan.yaml:2" in node.deepest(("platforms", "x", "name")).origin


def test_a_reference_in_a_circle_is_refused(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refers back to itself"):
        library.expand(tree("platforms: {x: snake}\n", tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("platforms: {x: {base: 3}}\n", r"plan\.yaml:1: platforms\.x\.base must be a name, not a number"),
        ("model: smal\n", r"plan\.yaml:1: model: no configuration 'smal'.*Did you mean 'small'"),
    ],
)
def test_a_bad_reference_says_where(shelf: Path, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        library.expand(tree(text, tmp_path))


# -- overrides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("a.b=2e3", ("a", "b"), 2e3),
        ("a.new.deep=x=y", ("a", "new", "deep"), "x=y"),
        ("list.1=7", ("list", 1), 7),
        ("list=[1]", ("list",), [1]),
        ("a=null", ("a",), None),
        ("empty.c=1", ("empty", "c"), 1),
    ],
)
def test_an_override_replaces_one_value(
    setting: str, path: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    before = tree("a: {b: 1, c: 2}\nlist: [4, 5, 6]\nempty:\n", tmp_path)
    after = library.with_override(before, setting)
    assert after.deepest(path).plain() == value
    assert after.deepest(path).origin == f"--set {setting.partition('=')[0]}"
    assert before.plain() == {"a": {"b": 1, "c": 2}, "list": [4, 5, 6], "empty": None}


def test_an_override_reaches_into_what_a_name_refers_to(shelf: Path, tmp_path: Path) -> None:
    node = library.with_override(tree("platforms: {x: two}\n", tmp_path), "platforms.x.unit.tile_bytes=1")
    node = library.with_override(node, "platforms.x.energy.pj=9")
    x = library.expand(node).plain()["platforms"]["x"]
    assert x["unit"] == {"bits_per_cycle": 8, "tile_bytes": 1}
    assert x["energy"] == {"name": "cheap", "pj": 9}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("a", "must be KEY=VALUE"),
        ("=1", "must be KEY=VALUE"),
        ("a..b=1", "must be KEY=VALUE"),
        ("a.b.c=1", r"--set a\.b\.c: a\.b is a number; nothing lies below it"),
        ("list.3=1", "must be an index from 0 to 2"),
        ("list.x=1", "must be an index from 0 to 2"),
        ("a={", "--set a: not valid YAML"),
    ],
)
def test_a_bad_override_is_refused(setting: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        library.with_override(tree("a: {b: 1}\nlist: [4, 5, 6]\n", tmp_path), setting)


# -- validation ------------------------------------------------------------------------------------------


def test_a_mapping_becomes_the_model_of_its_kind(tmp_path: Path) -> None:
    text = "machines:\n  a: {kind: chip, unit: {bits_per_cycle: 8}}\n  b: {kind: board, power_w: 3}\n"
    plan = validated(Plan, tree(text, tmp_path))
    assert plan.machines == {"a": Chip(unit=Unit(bits_per_cycle=8)), "b": Board(power_w=3.0)}
    again = Plan.model_validate(plan.model_dump(mode="json"))
    assert again == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("machines:\n  a:\n    kind: chip\n    unit:\n      bits_per_cycel: 8\n",
         ["plan.yaml:5: machines.a.unit.bits_per_cycel: unknown key. Did you mean 'bits_per_cycle'?", "tile_bytes"]),
        ("machines:\n  a: {kind: chip, frequency_mhz: 8}\n",
         ["Did you mean 'frequency_hz'?", "unit is part of the name"]),
        ("spare: {tile_kb: 4}\n", ["plan.yaml:1: spare.tile_kb", "Did you mean 'tile_bytes'?"]),
        ("parts:\n  - {tile_bytes: 4}\n  - {tile_byte: 4}\n", ["plan.yaml:3: parts.1.tile_byte", "'tile_bytes'"]),
        ("machines: {a: {kind: chp}}\n",
         ["plan.yaml:1: machines.a", "no machine of kind 'chp' (chip, board)", "'chip'"]),
        ("machines: {a: {power_w: 1}}\n", ["machines.a", "a key 'kind', one of chip, board"]),
        ("machines: {a: word}\n", ["machines.a", "a key 'kind', one of chip, board"]),
        ("machines:\n  a: {kind: board}\n", ["plan.yaml:2: machines.a.power_w: must be given"]),
        ("machines:\n  a: {kind: chip, unit: {bits_per_cycle: 65}}\n",
         ["plan.yaml:2: machines.a.unit.bits_per_cycle = 65: input should be less than or equal to 64."]),
        ("machines:\n  a: {kind: chip, low: 3}\n", ["plan.yaml:2: machines.a: low (3) must not be above high (1)."]),
        ("lengths: [1, x]\n", ["lengths.1 = 'x'", "valid integer"]),
        ("lenghts: [1]\n", ["plan.yaml:1: lenghts: unknown key. Did you mean 'lengths'?"]),
        ("lengths: [x]\nspare: {tile_bytes: y}\n", ["lengths.0", "(1 more"]),
    ],
)  # fmt: skip
def test_an_error_says_where_what_and_what_is_allowed(text: str, words: list[str], tmp_path: Path) -> None:
    got = message(text, tmp_path)
    assert all(word in got for word in words), got


def test_an_override_is_named_as_the_origin_of_its_error(tmp_path: Path) -> None:
    node = library.with_override(tree("spare: {}\n", tmp_path), "spare.bits_per_cycle=0")
    with pytest.raises(ConfigError, match=r"^--set spare\.bits_per_cycle: spare\.bits_per_cycle = 0: input should be"):
        validated(Plan, node)
