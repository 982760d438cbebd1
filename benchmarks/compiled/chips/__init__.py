"""The chips that programs are compiled for: one table, with where its figures are from.

TPU: the products' rate and the memory's are those of the system pages under
cloud.google.com/tpu/docs (v5e, v5p, v6e). The clock is the one at which the products'
rate of that page is reached by the matrix units it names, one product of 128×128 (v5e,
v5p) or 256×256 (v6e) a cycle in each of four.

GPU: the data sheets "NVIDIA H100 Tensor Core GPU" (SXM5) and "NVIDIA A100 80GB" (SXM4),
dense bfloat16 products. The texts `<name>.txtpb` tell XLA's compiler of the chip, in
the fields of its `GpuTargetConfigProto`: limits of the architecture from the CUDA C++
Programming Guide ("Compute Capabilities"), sizes and clocks from the data sheets, as
XLA's own descriptions of the two, xla/backends/gpu/target_config/specs, have them.
"""

import dataclasses
from pathlib import Path

# What a kernel costs on a GPU beside its work: to be launched, and to fill the chip.
LAUNCH_SECONDS = 2e-6


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip.

    Attributes:
        name: As `--chip` has it.
        platform: JAX's name of the platform, `tpu` or `gpu`.
        flops: bfloat16 operations in a second, by the data sheet.
        bandwidth: Bytes of its memory in a second, by the data sheet.
        clock: Bundles in a second, of a TPU.
        topologies: How many chips, and the name of that topology.
        kinds: What such devices call themselves, as a regular expression.
    """

    name: str
    platform: str
    flops: float
    bandwidth: float
    kinds: str
    clock: float = 0.0
    topologies: tuple[tuple[int, str], ...] = ()

    @property
    def target(self) -> str:
        """The description of a GPU for XLA."""
        return (Path(__file__).parent / f"{self.name}.txtpb").read_text()

    def topology(self, count: int) -> str:
        """Returns the name of the topology of `count` chips.

        Raises:
            ValueError: If there is none.
        """
        names = dict(self.topologies)
        if count not in names:
            known = ", ".join(map(str, names))
            raise ValueError(
                f"`count` (={count}) of {self.name} must be one of {known}"
            )
        return names[count]


_GPU_TOPOLOGIES = ((1, "1x1x1"), (4, "1x1x4"), (8, "1x1x8"))

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            *("v5e", "tpu", 197e12, 819e9, r"TPU v5( lite|e)", 1.5e9),
            ((1, "v5e:1x1"), (4, "v5e:2x2"), (8, "v5e:2x4")),
        ),
        Chip(
            *("v6e", "tpu", 918e12, 1640e9, r"TPU v6( lite|e)", 1.75e9),
            ((1, "v6e:1x1"), (4, "v6e:2x2"), (8, "v6e:2x4")),
        ),
        Chip(
            *("v5p", "tpu", 459e12, 2765e9, "TPU v5p?", 1.75e9),
            ((1, "v5p:1x1x1"), (4, "v5p:2x2x1"), (8, "v5p:2x2x2")),
        ),
        Chip(
            *("h100", "gpu", 989.4e12, 3352e9, "NVIDIA H100.*"),
            topologies=_GPU_TOPOLOGIES,
        ),
        Chip(
            *("a100", "gpu", 312e12, 2039e9, "NVIDIA A100.*"),
            topologies=_GPU_TOPOLOGIES,
        ),
    )
}
