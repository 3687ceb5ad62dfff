"""The one place where hardware is looked at: device, memory, threads, BLAS, and the choices that follow from them.

`detect()` is cheap and imports no MLX. `prepare()` must run before the first `import mlx.core` of a process: on Linux
MLX's CPU wheel links the reference BLAS (2.5 GFLOPS), and a real BLAS loaded first with global symbols takes its place.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

THREADS_VARIABLE = "MLX_TASKS_THREADS"
_BLAS_LIBRARIES = ("libmkl_rt.so.3", "libmkl_rt.so.2", "libopenblas.so.0")


@dataclass(frozen=True)
class Hardware:
    """What this machine computes with.

    Attributes:
        kind: metal, cuda or cpu.
        chip: the processor's or accelerator's own name.
        memory_gb: memory the device can use (unified on Apple silicon), in GiB.
        cores: cores this process may run on.
        threads: BLAS threads (MLX_TASKS_THREADS, or 2 where there are four cores and more, else 1: all of MLX's CPU but
            the matrix products is serial, and BLAS threads that wait for a busy core cost more than they bring).
        dtype: of training and sampling. float16 and bfloat16 matmuls are 80 to 90 times slower on MLX's CPU.
        act_fn: what `model.act_fn: auto` means here. SiLU's scalar exp dominates a CPU step; ReLU does not.
        max_micro_batch: images of one forward and backward pass; a larger batch is accumulated.
    """

    kind: Literal["metal", "cuda", "cpu"]
    chip: str
    memory_gb: float
    cores: int
    threads: int
    dtype: Literal["float32", "bfloat16"]
    act_fn: Literal["relu", "silu"]
    max_micro_batch: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for records and logs."""
        return asdict(self)


@functools.cache
def detect() -> Hardware:
    """This machine, looked at once a process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    threads = _thread_count(cores)
    if sys.platform == "darwin" and platform.machine() == "arm64":
        memory = int(_sysctl("hw.memsize") or 0) / 2**30
        # Two thirds of unified memory is what Metal lets one process wire.
        return Hardware(
            "metal",
            _sysctl("machdep.cpu.brand_string") or "Apple",
            memory,
            cores,
            threads,
            "float32",
            "silu",
            64 if memory < 17 else 256,
        )
    cuda = _cuda_device()
    if cuda is not None:
        name, memory = cuda
        return Hardware("cuda", name, memory, cores, threads, "float32", "silu", 512)
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return Hardware("cpu", _cpu_name(), memory, cores, threads, "float32", "relu", 128)


def prepare() -> Hardware:
    """Load a real BLAS before MLX where MLX would take the reference one, and pin its threads. Safe to call twice."""
    hardware = detect()
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, str(hardware.threads))
    # A busy machine must not change how sums are split, or a resumed run would not equal an unbroken one.
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    if hardware.kind == "cpu" and sys.platform == "linux":
        _load_blas()
        _keep_freed_memory()
    return hardware


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of unmapping them.

    MLX's CPU allocator is malloc; a convolution's 20 MB scratch goes back to the kernel after each use, and taking it
    again page by page costs as much again as the convolution itself (benchmarks/freed_memory.py).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)
    mallopt(m_top_pad, 1 << 26)


def blas() -> str | None:
    """The BLAS that `prepare` loads for MLX's CPU wheel; None where it finds none, or MLX needs none."""
    return _load_blas() if detect().kind == "cpu" and sys.platform == "linux" else None


@functools.cache
def _load_blas() -> str | None:
    if "mlx.core" in sys.modules:
        logger.warning("blas=late fix='call hardware.prepare() before importing mlx.core'")
    # MKL's interface layer must match MLX's 32-bit integers and must not start a second OpenMP runtime.
    os.environ.setdefault("MKL_INTERFACE_LAYER", "LP64")
    folders = ["", f"{sys.prefix}/lib/"]
    for name in _BLAS_LIBRARIES:
        for folder in folders:
            try:
                ctypes.CDLL(folder + name, mode=ctypes.RTLD_GLOBAL)
                return name
            except OSError:
                continue
    logger.warning("blas=reference fix='pip install mkl, or apt-get install libopenblas0-pthread: 30 times faster'")
    return None


def _thread_count(cores: int) -> int:
    asked = os.environ.get(THREADS_VARIABLE)
    if asked is None:
        return 2 if cores >= 4 else 1
    if not asked.isdigit() or int(asked) < 1:
        raise ValueError(f"{THREADS_VARIABLE} must be a whole number of at least 1, got {asked!r}")
    return int(asked)


def _sysctl(name: str) -> str | None:
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cuda_device() -> tuple[str, float] | None:
    """(name, GiB) of the first CUDA device, if MLX's CUDA build is installed beside it."""
    import importlib.util

    if importlib.util.find_spec("mlx_cuda") is None and not _has_distribution("mlx-cuda"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
    name, _, mebibytes = line.rpartition(",")
    return name.strip(), float(mebibytes) / 1024


def _has_distribution(prefix: str) -> bool:
    from importlib.metadata import distributions

    return any((d.metadata["Name"] or "").startswith(prefix) for d in distributions())


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
