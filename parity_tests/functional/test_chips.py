"""The chips whose rates are known: their files, and which one a program is for."""

import importlib.resources

import jax
import pytest
from jax.sharding import AbstractMesh

from dynconv_jax.functional import chips
from dynconv_jax.functional.chips import KINDS, PLATFORMS, Chip, chip_for, chip_of_kind

RATES = importlib.resources.files("dynconv_jax.functional") / "rates"
ZEN4 = (RATES / "zen4.toml").read_text()

# What devices call themselves, and the chip it is.
NAMES = {
    ("tpu", "TPU v5 lite"): "v5e",
    ("tpu", "TPU v5e"): "v5e",
    ("tpu", "TPU v6 lite"): "v6e",
    ("tpu", "TPU v5p"): "v5p",
    ("tpu", "TPU v5"): "v5p",
    ("gpu", "NVIDIA H100 80GB HBM3"): "h100",
    ("gpu", "NVIDIA A100-SXM4-40GB"): "a100",
    ("cpu", "AuthenticAMD family 25 model 17: AMD EPYC 9554"): "zen4",
}


@pytest.mark.parametrize(("platform", "kind"), NAMES)
def test_a_device_is_known_by_what_it_calls_itself(platform, kind):
    found = chip_of_kind(platform, kind)
    assert found is not None and found.name == NAMES[platform, kind]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_has_one_default(platform):
    found = [chip for chip in chips.chips().values() if chip.platform == platform]
    assert sum(chip.is_default for chip in found) == 1
    assert chip_of_kind(platform, "Nonesuch 9000") is None


@pytest.mark.parametrize("name", chips.chips())
def test_a_file_says_where_its_rates_come_from(name):
    source = chips.chips()[name].source
    assert any(word in source for word in ("Measured", "estimate", "Data sheet"))


def test_a_program_for_another_platform_is_for_its_default_chip():
    assert chip_for("tpu").is_default
    assert chip_for("gpu").is_default


def test_a_program_over_a_mesh_is_for_the_chip_of_the_mesh():
    class Device:
        device_kind = "TPU v6 lite"
        num_cores = 1
        platform = "tpu"

    mesh = AbstractMesh((2,), ("data",), abstract_device=Device())  # type: ignore[call-arg]
    with jax.sharding.use_abstract_mesh(mesh):
        assert chip_for("tpu").name == "v6e"
        assert chip_for("gpu").is_default


@pytest.mark.parametrize(("names", "expected"), [("xy", "x"), (("", "y"), "y")])
def test_without_proc_the_processor_is_what_the_system_calls_it(
    names, expected, monkeypatch
):
    def no_file(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(chips.Path, "read_text", no_file)
    monkeypatch.setattr(chips.host, "processor", lambda: names[0])
    monkeypatch.setattr(chips.host, "machine", lambda: names[1])
    assert chips.processor.__wrapped__() == expected


DAMAGED = {
    "a field that is missing": (ZEN4.replace("cache = 0.032", ""), "cache must be"),
    "a field of another type": (ZEN4.replace("= true", '= "yes"'), "is_default must"),
    "an unknown field": ("speed = 1.0\n" + ZEN4, "speed must be"),
    "a rate that is missing": (
        "\n".join(line for line in ZEN4.splitlines() if not line.startswith("taps")),
        r"\[rates\].*taps is missing or unknown",
    ),
    "an unknown rate": (
        f"{ZEN4}\nbytes = 1.0\n",
        r"\[rates\].*bytes is missing or unknown",
    ),
    "a form with some rates only": (
        ZEN4.replace("form_rates = {}", "") + "\n[form_rates.rows]\ntaps = 1.0\n",
        r"\[rows\].*arithmetic.* is missing or unknown",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name):
    text, message = DAMAGED[name]
    with pytest.raises(ValueError, match=f"rates/x.toml.*{message}"):
        Chip.from_toml("x", text)


def test_a_form_may_have_rates_of_its_own():
    rows = "\n".join(f"{kind} = 2.0" for kind in KINDS)
    shared = ZEN4.replace("form_rates = {}", "")
    chip = Chip.from_toml("x", f"{shared}\n[form_rates.rows]\n{rows}\n")
    assert chip.rates_of("rows")["windows"] == 2.0
    assert chip.rates_of("patches") == chip.rates
