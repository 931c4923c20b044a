"""Vulkan kernels; use them through `ebmvk.engine.vulkan`, which checks arguments. Arrays are
C-contiguous."""

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ids = NDArray[np.int64]
_Words = NDArray[np.uint32]

class Unavailable(Exception): ...
class OutOfMemory(Exception): ...
class DeviceLost(Exception): ...
class Torn(Exception): ...
class Unsupported(ValueError): ...

class Capabilities:
    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def driver(self) -> str: ...
    @property
    def api_version(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def heaps(self) -> list[tuple[int, bool]]:
        """Size in bytes, and whether it is the device's own."""

    @property
    def max_storage_range(self) -> int: ...
    @property
    def max_allocation(self) -> int: ...
    @property
    def max_groups(self) -> int: ...
    @property
    def max_group_size(self) -> int: ...
    @property
    def max_bindings(self) -> int: ...
    @property
    def max_shared_bytes(self) -> int: ...
    @property
    def subgroup_size(self) -> int: ...
    @property
    def subgroup_arithmetic(self) -> bool: ...
    @property
    def subgroup_control(self) -> bool: ...
    @property
    def float16(self) -> bool: ...
    @property
    def missing(self) -> str:
        """Why the device cannot be used; empty where it can."""

class Options:
    validate: bool
    instrument: bool
    portable: bool
    guard: bool
    shard_bytes: int
    memory_limit: int
    slice_seconds: float
    timeout_seconds: float
    pretend: str
    cache_dir: str

class Scoring(enum.Enum):
    automatic = ...
    direct = ...
    matvec = ...
    slim = ...
    square = ...

class Storage(enum.Enum):
    float32 = ...
    float16 = ...

class Variant(enum.Enum):
    subgroup = ...
    portable = ...
    resident = ...

class Count:
    @property
    def calls(self) -> int: ...
    @property
    def dispatches(self) -> int: ...
    @property
    def seconds(self) -> float: ...

class Points:
    @property
    def n(self) -> int: ...
    @property
    def d(self) -> int: ...
    @property
    def shards(self) -> int: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def nbytes(self) -> int:
        """Of device memory."""
    def update(self, points: _Floats) -> None: ...

class Engine:
    def __init__(self, index: int, options: Options) -> None: ...
    @property
    def capabilities(self) -> Capabilities: ...
    def points(self, points: _Floats, storage: Storage) -> Points: ...
    def rows(self, operation: str, arguments: Sequence[_Floats]) -> _Floats:
        """An operation that works row by row: (B, d) arrays to (B, d), or to (B,)."""

    def energy_score(
        self, points: Points, x: _Floats, ids: _Ids, logw: _Floats, kappa: _Floats, log_background: _Floats
    ) -> tuple[_Floats, _Floats, _Floats, _Floats]:
        """energy, score, responsibilities, background."""

    def langevin(
        self,
        points: Points,
        x: _Floats,
        v: _Floats,
        ids: _Ids,
        logw: _Floats,
        kappa: _Floats,
        log_background: _Floats,
        kappa_scale: _Floats,
        logw_shift: _Floats,
        step_size: _Floats,
        gamma: _Floats,
        steps: Sequence[int],
        seed: int,
        first_step: int,
        first_chain: int,
        temperature: float,
        scheme: str,
        leapfrogs: int,
    ) -> tuple[_Floats, _Floats, _Floats, _Floats, _Floats, _Floats, _Floats]:
        """x, v, energy, kinetic_temperature, energy_error, acceptance, tangency. The schedule is
        (1, L) or (B, L); unadjusted integrators ignore leapfrogs."""

    def energy_score_backward(
        self,
        points: Points,
        x: _Floats,
        ids: _Ids,
        logw: _Floats,
        kappa: _Floats,
        log_background: _Floats,
        grad_energy: _Floats,
        grad_score: _Floats,
    ) -> tuple[_Floats, _Floats, _Floats, _Floats, _Floats]:
        """Gradients of x, points (N, d), logw, kappa, log_background."""

    def vmf_sample(self, mu: _Floats, cosine_sine: _Floats, seed: int, first_row: int) -> _Floats:
        """cosine_sine (B, 2): of the angle between each sample and its mean."""

    def accumulate(
        self, x: _Floats, ids: _Ids, responsibilities: _Floats, tokens: _Ids, n: int
    ) -> tuple[_Floats, _Ids, _Floats]:
        """(n, d + 1) resultants, each followed by its mass; (M, 2) splat and token; (M,) counts."""

    def topk(
        self, points: Points, queries: _Floats, k: int, scale: _Floats | None, bias: _Floats | None
    ) -> tuple[_Floats, _Ids]: ...
    def probe(self, function: int, arguments: _Words, key: _Words) -> _Words:
        """Functions of the shaders' math.glsl and philox.glsl, row by row; (rows, 4) in and out."""

    def time_copy(self, size: int, times: int, repeats: int) -> list[float]:
        """Seconds of each of `repeats` submissions, here and below: `times` copies of `size` bytes
        on the device."""

    def time_fma(self, rows: int, rounds: int, repeats: int) -> list[float]:
        """`rows` invocations with 128 `rounds` float32 fused multiply-adds each."""

    def time_product(self, rows: int, columns: int, d: int, repeats: int) -> list[float]:
        """The scoring kernel alone: rows x columns scores of dimension d."""

    def counts(self) -> dict[str, Count]: ...
    def set_scoring(self, scoring: Scoring) -> None: ...
    @property
    def allocated(self) -> int:
        """Bytes of device memory held now."""

    def set_coarse(self, coarse: bool | None) -> None:
        """Whether `topk` of float32 points begins with float16 scores; None: where that pays."""

    def set_resident(self, resident: bool | None) -> None:
        """Whether integrators hold a chain's candidates in registers, where these have room; None:
        on a GPU."""

    def coarse_count(self) -> tuple[int, int]:
        """Rows of `topk` that began with float16, and those of them that had to be done again in
        float32."""

    def used_kernels(self) -> list[tuple[str, Variant, Storage]]:
        """The shaders of the manifest that this engine has run."""
    def damaged_guards(self) -> str:
        """With Options.guard: empty where no kernel wrote outside its buffers."""

    def take_messages(self) -> list[str]:
        """With Options.validate: what the validation layer said since the last call."""

def devices() -> list[Capabilities]: ...
def kernels() -> list[tuple[str, Variant, Storage]]:
    """Every shader of the manifest: kernel, variant, storage of its points."""

def tilings(device: Capabilities) -> list[tuple[int, str]]:
    """From how many queries on which tiling of the scores is chosen."""

def loader_version() -> int:
    """As VK_API_VERSION; Unavailable where there is no loader."""

def inject_fault(function: str, nth: int, result: int) -> None:
    """The nth call from now of a Vulkan function returns `result` (a VkResult) and does nothing; 0
    takes it back."""

def calls_of(function: str) -> int:
    """How often a wrapped Vulkan function was called."""

def wrapped_functions() -> list[str]:
    """Functions whose calls can be made to fail, once a device was opened."""
