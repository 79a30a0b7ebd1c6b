"""Experiments as users write them: the bundled ones load, overrides act, and mistakes across fields are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from dre_sim.platforms import PLATFORMS, VRexConfig
from energy_models.tables import PriceTable
from resv.policies import POLICIES
from resv.trace import ModelShape
from resv.workload_plan import ProbeWorkload, SessionWorkload
from resv_sim import library
from resv_sim.config import Experiment, descriptions, load_experiment
from resv_sim.errors import ConfigError
from resv_sim.validation import load

SMALL = """
name: small
model: tiny
workload: {kind: probes, kv_lengths_tokens: [100]}
policies: {full: full, mine: {kind: resv, hash_bits: 16}}
platforms: {a: agx_orin, b: {base: vrex8, hcu: {bits_per_cycle: 8}}}
runs:
  - {platform: a, policy: full}
  - {platform: b, policy: mine}
baseline: {platform: a, policy: full}
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


# -- what is bundled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", library.bundled())
def test_every_bundled_experiment_loads_and_its_resolved_form_is_itself(name: str, tmp_path: Path) -> None:
    experiment, source = load_experiment(name)
    assert experiment.name == name
    assert experiment.description
    assert source.endswith(f"{name}.yaml")
    path = tmp_path / "resolved.yaml"
    path.write_text(experiment.as_yaml(), encoding="utf-8")
    assert load_experiment(str(path))[0] == experiment


@pytest.mark.parametrize("name", library.bundled("models"))
def test_every_bundled_model_is_a_model_shape(name: str) -> None:
    assert load(name, "models", ModelShape).name == name


@pytest.mark.parametrize("name", library.bundled("energy"))
def test_every_bundled_price_table_is_one(name: str) -> None:
    assert load(name, "energy", PriceTable).name == name


@pytest.mark.parametrize("name", library.bundled("platforms"))
def test_every_bundled_platform_loads_on_its_own_and_names_a_price_table(name: str) -> None:
    kind = library.resolved(name, "platforms").plain()["kind"]
    platform = load(name, "platforms", PLATFORMS[kind][0])
    assert platform.name == name
    assert platform.energy in library.bundled("energy")


@pytest.mark.parametrize("name", library.bundled("policies"))
def test_every_bundled_policy_loads_and_writes_out_the_defaults_of_its_class(name: str) -> None:
    policy = load(name, "policies", POLICIES[name])
    assert policy == POLICIES[name]()


def test_every_platform_and_policy_kind_has_a_bundled_file() -> None:
    assert set(POLICIES) <= set(library.bundled("policies"))
    kinds = {library.resolved(name, "platforms").plain()["kind"] for name in library.bundled("platforms")}
    assert kinds == set(PLATFORMS)


def test_the_main_experiment_is_the_published_comparison() -> None:
    experiment, _ = load_experiment("orin_vs_dre.yaml")
    assert experiment.model.name == "llama3_8b"
    assert experiment.model.vision is not None
    assert experiment.workload.kv_lengths_tokens == (1000, 5000, 10_000, 20_000, 40_000)
    assert experiment.workload.stages == ("frame", "decode")
    rivals = ["flexgen_stream", "infinigen", "infinigenp", "rekv_vrex", "resv"]
    assert [run.label for run in experiment.runs] == [*(f"agx_orin+{rival}" for rival in rivals), "vrex8+resv"]
    assert experiment.baseline.label == "agx_orin+flexgen_stream"
    assert experiment.video.file is None


def test_a_workload_yields_the_plan_of_one_stream() -> None:
    probes, _ = load_experiment("orin_vs_dre", ["workload.batch=4"])
    assert probes.workload.plan() == ProbeWorkload(stages=("frame", "decode"))
    session, _ = load_experiment("coin_session")
    assert session.workload.plan() == SessionWorkload()


def test_descriptions_are_one_line_each_and_say_more_than_the_name() -> None:
    for family in ("", "models", "platforms", "policies"):
        for name, text in descriptions(family).items():
            assert name
            assert "\n" not in text
            assert text not in ("", name)


# -- references and overrides ----------------------------------------------------------------------------


def test_names_inline_mappings_and_overlays_become_models(small: str) -> None:
    experiment, _ = load_experiment(small)
    assert experiment.policies["mine"] == POLICIES["resv"](hash_bits=16)
    platform = experiment.platforms["b"]
    assert isinstance(platform, VRexConfig)
    assert platform.hcu.bits_per_cycle == 8
    assert platform.memory.name == "lpddr5_6400_256bit"
    assert experiment.energy["a"].name == "agx_orin"


def test_an_override_reaches_prices_and_memories_through_their_names(small: str) -> None:
    settings = ["platforms.b.energy.actions.dram_read_bytes.cost_pj=1e2", "platforms.b.memory.n_channels=8"]
    changed, base = load_experiment(small, settings)[0], load_experiment(small)[0]
    assert changed.energy["b"].actions["dram_read_bytes"].cost_pj == 100.0
    assert changed.platforms["b"].energy == base.platforms["b"].energy
    assert changed.platforms["b"].memory.n_channels == 8
    assert changed.energy["a"] == base.energy["a"]


def test_a_price_table_of_the_experiment_goes_before_the_platforms_own(small: str) -> None:
    experiment, _ = load_experiment(small, ["energy.a=agx_orin_nameplate"])
    assert experiment.energy["a"].name == "agx_orin_nameplate"


def test_a_single_price_under_energy_is_laid_over_the_platforms_table(small: str) -> None:
    price = "actions.dram_read_bytes.cost_pj=1e2"
    assert load_experiment(small, [f"energy.b.{price}"]) == load_experiment(small, [f"platforms.b.energy.{price}"])


def test_later_overrides_win(small: str) -> None:
    experiment, _ = load_experiment(small, ["trace.seed=1", "trace.seed=2"])
    assert experiment.trace.seed == 2


def test_the_hash_follows_every_value_and_nothing_else(small: str) -> None:
    hashes = {
        load_experiment(small, settings)[0].config_hash()
        for settings in (
            [],
            ["trace.seed=1"],
            ["platforms.b.energy.actions.dram_read_bytes.cost_pj=101"],
            ["name=other"],
        )
    }
    assert len(hashes) == 4
    assert load_experiment(small, ["trace.seed=0"])[0].config_hash() == load_experiment(small)[0].config_hash()


def test_an_experiment_is_frozen(small: str) -> None:
    experiment, _ = load_experiment(small)
    with pytest.raises(ValidationError, match="frozen"):
        experiment.name = "other"


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("runs.0.policy=none", ["no policy 'none' (full, mine)"]),
        ("runs.1.platform=c", ["no platform 'c' (a, b)"]),
        ("baseline.platform=b", ["no baseline among the runs 'b+full'"]),
        ("runs=[]", ["runs", "at least 1"]),
        ("runs=[{platform: a, policy: full}, {platform: a, policy: full}]", ["may stand there once"]),
        ("energy.c=agx_orin", ["no platform for the price table 'c'"]),
        ("platforms.b.energy=agx", ["--set platforms.b.energy", "no configuration 'agx'"]),
        ("platforms.a.memory_mb=3", ["memory_mb: unknown key"]),
        ("policies.mine.kind=rsv", ["policies.mine", "no policy of kind 'rsv'", "Did you mean 'resv'?"]),
        ("policies.mine.hamming_threshold=17", ["policies.mine", "17", "16"]),
        ("policies.mine.recent_kb=4", ["--set policies.mine.recent_kb", "Did you mean 'recent_bytes'?"]),
        ("policies.mine.wicsum.ratio=0", ["policies.mine.wicsum.ratio = 0", "greater than 0"]),
        ("policies.mine.wicsum.ratio=1.01", ["policies.mine.wicsum.ratio = 1.01", "less than or equal to 1"]),
        ("workload.kind=probe", ["no workload of kind 'probe'", "Did you mean 'probes'?"]),
        ("workload.kv_lengths_tokens=[5, 3]", ["workload", "must ascend"]),
        ("workload.stages=[frme]", ["workload.stages.0 = 'frme'", "'frame'"]),
        ("workload.frames=3", ["workload.frames: unknown key", "kv_lengths_tokens"]),
        ("video.fps=0", ["video.fps = 0", "greater than 0"]),
        ("model.rope_theta=.inf", ["--set model.rope_theta", "model.rope_theta = inf", "must be a finite number"]),
        ("platforms.a.peak_flops.fp16=.nan", ["platforms.a.peak_flops.fp16 = nan", "greater than or equal to 1000000"]),
        ("platforms.a.peak_flops.fp16=-1e12", ["platforms.a.peak_flops.fp16", "greater than or equal to 1000000"]),
        ("platforms.a.l2_bytes_per_s=1e-300", ["platforms.a.l2_bytes_per_s", "greater than or equal to 1000000"]),
        ("platforms.a.offload.link.efficiency=1e-12", ["offload.link.efficiency", "greater than or equal to 0.001"]),
        ("video.fps_hz=1", ["--set video.fps_hz", "Did you mean 'fps'?"]),
        ("trace.seed=-1", ["trace.seed = -1", "greater than or equal to 0"]),
        ("model.n_kv_heads=3", ["model", "n_query_heads (4) must be a multiple of n_kv_heads (3)"]),
        ("model.vision=siglip", ["no configuration 'siglip'"]),
        ("name=a b", ["name = 'a b'"]),
        ("nam=x", ["nam: unknown key. Did you mean 'name'?"]),
    ],
)
def test_a_mistake_is_named_with_where_and_what_is_allowed(setting: str, words: list[str], small: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(small, [setting])
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_section_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("name: bare\nmodel: tiny\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bare\.yaml:1: policies: must be given"):
        load_experiment(str(path))


def test_sections_are_pydantic_all_the_way_down() -> None:
    assert not any(dataclasses.is_dataclass(field.annotation) for field in Experiment.model_fields.values())
