"""GPUs: public peaks, and the share of each peak that these kernels can reach."""

from __future__ import annotations

from dataclasses import dataclass

from .kernel_work import MMA_FLOPS

BANDWIDTH_FRACTION = 0.90
"""Share of the HBM bandwidth. Long streams of whole sectors reach 90 to 93% of the peak (BabelStream)."""

FEED_FRACTION = 0.35
"""Share of the mma.sync rate, for kernels whose work is not counted. It is the predicted share of
`square_root_product` on an H100, which splits float32 operands when it reads them, as these kernels do."""

FMA_FRACTION = 0.50
"""Share of the FP32 peak, for `fp32`. Six 8-byte reads of shared memory feed 16 multiply-adds of a lane: the
reads take 1.5 times as long as the multiply-adds where an SM issues 128 of them a clock."""

CUBLAS_FRACTION = 0.80
"""Share of the FP32 peak, for batched float32 products of cuBLAS without TF32."""

TRITON_FRACTION = 0.50
"""Share of the tensor peak, for Triton's products, which reach wgmma and tcgen05. Assumed: splitting float32
operands between them takes half of it. The first measurement on a GPU is to replace it."""


@dataclass(frozen=True)
class Gpu:
    """Dense peaks at boost clock, without sparsity.

    Attributes:
        bf16, tf32, fp32: Tflop/s of the tensor cores (bf16, tf32), and of FP32 multiply-adds.
        flops_a_cycle: flops of one SM in bf16.
        hbm: GB/s.  sms: streaming multiprocessors.
        mma_sync: share of the tensor peak that warp-level mma.sync reaches, which our CUDA kernels use.
        sources: titles of the documents with the peaks.
    """

    name: str
    architecture: str
    bf16: float
    tf32: float
    fp32: float
    flops_a_cycle: int
    hbm: float
    sms: int
    mma_sync: float
    sources: tuple[str, ...]

    def rate(self, kind: str) -> float:
        """Return the achievable flop/s of a kind of arithmetic (`Cost.flops`)."""
        tensor = FEED_FRACTION * self.mma_sync
        teraflops = {
            "bf16": tensor * self.bf16,
            "tf32": tensor * self.tf32,
            "fp32": FMA_FRACTION * self.fp32,
            "cublas fp32": CUBLAS_FRACTION * self.fp32,
            "triton bf16": TRITON_FRACTION * self.bf16,
            "triton tf32": TRITON_FRACTION * self.tf32,
            "triton fp32": FMA_FRACTION * self.fp32,
        }
        return 1e12 * teraflops[kind]

    @property
    def bandwidth(self) -> float:
        """Achievable bytes/s."""
        return 1e9 * BANDWIDTH_FRACTION * self.hbm

    @property
    def clock(self) -> float:
        """Cycles/s of the peaks."""
        return 1e12 * self.bf16 / (self.sms * self.flops_a_cycle)

    @property
    def bytes_a_cycle(self) -> float:
        """An SM's share of the achievable bytes of memory per cycle."""
        return self.bandwidth / (self.sms * self.clock)

    @property
    def mma_cycles(self) -> float:
        """Cycles that one of an SM's four tensor cores takes for a product."""
        return 4 * MMA_FLOPS["bf16"] / (self.flops_a_cycle * self.mma_sync)


# flops_a_cycle. A100, H100: from the architecture papers. B200: twice the H100's, like its peak per SM.
# mma_sync. A100: it is the native instruction. H100, H200: only wgmma reaches the peak; microbenchmarks
# ("Dissecting the NVIDIA Hopper Architecture through Microbenchmarking and Multiple Level Analysis",
# arXiv 2501.12084) measure roughly 0.6 of it for mma.sync. B200: only tcgen05 reaches the peak; assumed: the
# H100's rate of mma.sync per SM, which is 0.62 x (148 SMs x 989.4) / (132 SMs x 2250) = 0.31. The first
# measurement on such a GPU is to replace these two.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "A100", "sm_80", 312, 156, 19.5, 2048, 2039, 108, 1.0,
            ("NVIDIA A100 Tensor Core GPU datasheet (80GB SXM)", "NVIDIA A100 Tensor Core GPU Architecture"),
        ),
        Gpu(
            "H100", "sm_90", 989.4, 494.7, 66.9, 4096, 3350, 132, 0.62,
            ("NVIDIA H100 Tensor Core GPU datasheet (SXM5)", "NVIDIA H100 Tensor Core GPU Architecture"),
        ),
        Gpu(
            "H200", "sm_90", 989.4, 494.7, 66.9, 4096, 4800, 132, 0.62,
            ("NVIDIA H200 Tensor Core GPU datasheet (SXM)", "NVIDIA H100 Tensor Core GPU Architecture"),
        ),
        # SMs: not in the brief; the article counts them on the device.
        Gpu(
            "B200", "sm_100", 2250, 1125, 80, 8192, 8000, 148, 0.31,
            (
                "NVIDIA Blackwell Architecture Technical Brief (HGX B200, an eighth)",
                "Chips and Cheese, Nvidia's B200: Keeping the CUDA Juggernaut Rolling",
            ),
        ),
    )
}  # fmt: skip


def gpu_of(device_name: str) -> Gpu | None:
    """Return the GPU of a device's name; None if the table lacks it, or has another board of its kind."""
    if "PCIe" in device_name or "NVL" in device_name or "40GB" in device_name:
        return None
    return next((gpu for name, gpu in GPUS.items() if name in device_name), None)
