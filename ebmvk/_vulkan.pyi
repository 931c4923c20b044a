"""Vulkan kernels; use them through `ebmvk.engine.vulkan`, which checks arguments. Arrays are
C-contiguous."""

import enum
from collections.abc import Sequence
from typing import Any

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
    """What a device reports, followed by what the engine decides from it. Tests make objects of
    their own and call `decide`."""

    type: str
    vendor: int
    moltenvk: bool
    subgroup_reported: int
    subgroup_min: int
    subgroup_max: int
    subgroup_full: bool
    subgroup_selectable: bool
    def __init__(self) -> None: ...
    def decide(self) -> None: ...
    def pretend(self, profile: str) -> Capabilities:
        """This device, with every limit lowered to that of a profile of `profiles()`."""

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def driver(self) -> str: ...
    @property
    def api_version(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def heaps(self) -> list[tuple[int, bool]]:
        """Of each heap: its size in bytes, and True if it is the device's own memory."""

    @property
    def max_storage_range(self) -> int: ...
    @property
    def max_allocation(self) -> int: ...
    @property
    def max_groups(self) -> int: ...
    @property
    def max_groups_yz(self) -> int: ...
    @property
    def max_push_bytes(self) -> int: ...
    @property
    def storage_alignment(self) -> int: ...
    @property
    def loop_rounds(self) -> int:
        """The most rounds that all loops of an invocation may have together."""

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
    def subgroup_required(self) -> bool:
        """True if pipelines must ask for `subgroup_size`. False if the device has no other size."""

    @property
    def registers(self) -> int:
        """32-bit registers that an invocation may use."""

    @property
    def float16(self) -> bool: ...
    @property
    def missing(self) -> str:
        """Why the device cannot be used; empty if it can."""

class Options:
    validate: bool
    instrument: bool
    portable: bool
    guard: bool
    shard_bytes: int
    allocation_bytes: int
    memory_limit: int
    slice_seconds: float
    timeout_seconds: float
    compile_only: bool
    pretend: str
    """For tests: a profile of `profiles()`."""
    modules: str
    """For tests: a folder of modules NAME.VARIANT.STORAGE.spv that replace all built-in ones."""
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

class PipelineKey:
    """A kernel of the manifest, and the values that it is specialised for."""

    def __init__(self, name: str, group: int, constants: Sequence[int]) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def group(self) -> int:
        """Invocations of a workgroup."""

    @property
    def constants(self) -> list[int]:
        """Values of the constants that the manifest lists under `specialise`, in that order."""

    @property
    def storage(self) -> Storage: ...
    @property
    def resident(self) -> bool: ...

class MachineCode:
    """What the driver reports about a compiled pipeline."""

    @property
    def subgroup_size(self) -> int: ...
    @property
    def statistics(self) -> dict[str, float]:
        """Figures, by the driver's names for them."""

    @property
    def texts(self) -> dict[str, str]:
        """Texts, by the driver's names for them, for example Assembly."""

class Pace:
    """How much work fits into a slice, learned from runs."""

    def __init__(self, assumed: float, slice_seconds: float) -> None:
        """assumed: FLOP/s before anything is measured."""

    def units(self, kernel: str, flops_per_unit: float) -> int: ...
    def learn(self, kernel: str, flops: float, seconds: float, first: bool) -> None:
        """first: True for a program's first run, from which nothing is learned."""

    def throttle(self, seconds: float) -> None:
        """Adds `seconds` to every run from now on."""

class Count:
    @property
    def calls(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def submissions(self) -> int: ...
    @property
    def dispatches(self) -> int: ...
    @property
    def barriers(self) -> int: ...
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...

class Tensor:
    """Values in the memory of an engine's device."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def index(self) -> bool:
        """True for whole numbers (int64 on the host), False for float32."""

    @property
    def below(self) -> int:
        """For whole numbers: a number above all values."""

    @property
    def nbytes(self) -> int: ...

_Rows = NDArray[np.float32] | NDArray[np.int64] | Tensor

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
        """Bytes of device memory."""
    def update(self, points: _Floats) -> None: ...
    def update_some(self, points: _Floats, first: int) -> None: ...
    def update_named(self, points: _Floats, ids: _Ids) -> None:
        """ids must not hold an id twice."""

class Memory:
    """One allocation on the device."""

    @property
    def nbytes(self) -> int: ...
    @property
    def capacity(self) -> int:
        """`nbytes`, rounded up."""

class Module:
    """A compiled kernel."""

    @property
    def name(self) -> str: ...
    @property
    def access(self) -> str: ...
    @property
    def push_words(self) -> int: ...
    @property
    def group(self) -> int: ...

class Ran:
    @property
    def seconds(self) -> float: ...
    @property
    def segment_seconds(self) -> list[float]: ...
    @property
    def submissions(self) -> int: ...
    @property
    def dispatches(self) -> int: ...
    @property
    def barriers(self) -> int: ...
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...

_Range = tuple[Memory, int, int]

class Recording:
    """See `ebmvk.engine.recording`."""

    def kernel(self, module: Module, bindings: Sequence[_Range], push: bytes, groups: tuple[int, int, int]) -> None: ...
    def copy(self, source: _Range, target: _Range) -> None: ...
    def fill(self, target: _Range, word: int) -> None: ...
    def upload(self, target: _Range) -> int: ...
    def download(self, source: _Range) -> int: ...
    def cut(self, seconds: float) -> None: ...
    def finish(self, seconds: float) -> None: ...
    def run(self, uploads: dict[int, NDArray[Any]], downloads: dict[int, NDArray[Any]]) -> Ran: ...
    @property
    def intact(self) -> bool: ...
    @property
    def staging_bytes(self) -> int: ...
    @property
    def estimates(self) -> list[float]: ...

class Engine:
    def __init__(self, index: int, options: Options) -> None: ...
    def memory(self, nbytes: int) -> Memory: ...
    def module(
        self,
        spirv: bytes,
        access: str,
        push_words: int,
        group: int,
        constants: Sequence[int],
        subgroup: bool,
        name: str,
    ) -> Module: ...
    def kernel(self, name: str, group: int, constants: Sequence[int]) -> Module: ...
    def recording(self) -> Recording: ...
    @property
    def storage_range(self) -> int:
        """The most bytes that a kernel can bind in one range."""

    def subgroups(self, group: int) -> bool:
        """True if kernels can rely on full subgroups in workgroups of this size."""

    @property
    def capabilities(self) -> Capabilities: ...
    def points(self, points: _Floats, storage: Storage) -> Points: ...
    def tensor(self, values: _Floats | _Ids) -> Tensor:
        """(B,) or (B, n)."""

    def read(self, tensors: Sequence[Tensor]) -> list[_Floats | _Ids]:
        """A copy of each on the host."""

    @property
    def idle(self) -> int:
        """Bytes of device memory that wait for the next tensors."""

    # Below, rows are arrays or tensors; if one argument is a tensor, so are the results.
    def rows(self, operation: str, arguments: Sequence[_Rows]) -> _Rows:
        """An operation that works row by row: from (B, d) to (B, d) or (B,)."""

    def energy_score_backward(
        self,
        x: _Rows,
        points: Points,
        ids: _Rows,
        logw: _Rows,
        kappa: _Rows,
        log_background: _Rows,
        grad_energy: _Rows,
        grad_score: _Rows,
    ) -> tuple[_Rows, _Floats | tuple[Tensor, Tensor, int], _Rows, _Rows, _Rows]:
        """Gradients of x, points, logw, kappa, log_background. If all arguments are arrays, the
        gradient of the points is an array (N, d). Otherwise it is the ids (M,) of the points that
        occur, ascending, their rows (M, d), and N."""

    def vmf_sample(self, mu: _Rows, cosine_sine: _Rows, seed: int, first_row: int) -> _Rows:
        """cosine_sine (B, 2): cosine and sine of the angle between each sample and its mean."""

    def accumulate(
        self, x: _Rows, ids: _Rows, responsibilities: _Rows, tokens: _Rows, n: int
    ) -> tuple[_Rows, _Rows, _Rows, _Rows]:
        """mass (n,); resultants (n, d); splat and token of each pair (M, 2); counts (M,)."""

    def energy(
        self, x: _Rows, points: Points, ids: _Rows, logw: _Rows, kappa: _Rows, log_background: _Rows
    ) -> tuple[_Rows, _Rows, _Rows]:
        """energy, responsibilities and background of `energy_score`, without the score."""

    # Made from operations.toml by csrc/operations.py:

    def topk(
        self, queries: _Rows, points: Points, k: int, scale: _Rows | None, bias: _Rows | None
    ) -> tuple[_Rows, _Rows]:
        """scores (B, k), ids (B, k)."""

    def energy_score(
        self, x: _Rows, points: Points, ids: _Rows, logw: _Rows, kappa: _Rows, log_background: _Rows
    ) -> tuple[_Rows, _Rows, _Rows, _Rows]:
        """energy (B,), score (B, d), responsibilities (B, K), background (B,)."""

    def langevin(
        self,
        x: _Rows,
        v: _Rows,
        points: Points,
        ids: _Rows,
        logw: _Rows,
        kappa: _Rows,
        log_background: _Rows,
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
    ) -> tuple[_Rows, _Rows, _Rows, _Rows, _Rows, _Rows, _Rows]:
        """x (B, d), v (B, d), energy (B,), kinetic_temperature (B,), energy_error (B,), acceptance
        (B,), tangency (B,)."""

    def candidate_law(self, log_p: _Rows, ids: _Rows) -> tuple[_Rows, _Rows, _Floats]:
        """logp (B, K), log_rest (B,), entropy (B,)."""

    def chain_start(
        self, rows: int, d: int, seed: int, first_chain: int, x_stream: int, v_stream: int, temperature: float
    ) -> tuple[_Rows, _Rows]:
        """x (rows, d), v (rows, d)."""

    def decode(
        self,
        x: _Rows,
        points: Points,
        ids: _Rows,
        logp: _Rows,
        log_rest: _Rows,
        kappa: _Rows,
        shift: _Rows,
        log_p: _Rows,
        seed: int,
        first_chain: int,
        choice_stream: int,
        rest_stream: int,
    ) -> _Ids:
        """tokens (B,)."""

    # End of what is made.

    def probe(self, function: int, arguments: _Words, key: _Words) -> _Words:
        """A function of the shaders' math.glsl or philox.glsl, applied to each row. Arguments and
        results are (rows, 4)."""

    def move_words(self, words: list[int], moves: list[tuple[int, int, int]]) -> list[int]:
        """The words after moves within one device buffer. A move is (from, to, number of words)."""

    def probe_sort(
        self, keys: _Words, tokens: _Words, per_token: int, limit: int
    ) -> tuple[_Words, _Words, _Words, _Words]:
        """Only the sort of entries. Entry e has keys[e] and, if per_token isn't 0, tokens[e //
        per_token]. Entries with the same key and token form a segment. Returns the sorted entries,
        the segments' starts followed by the end of the last segment, their keys, and their tokens.
        Keys from `limit` on are in no segment."""

    def time_copy(self, size: int, times: int, repeats: int) -> list[float]:
        """Seconds of each of `repeats` submissions. Each makes `times` copies of `size` bytes on
        the device."""

    def time_fma(self, rows: int, rounds: int, repeats: int) -> list[float]:
        """Seconds of each of `repeats` submissions. In each, `rows` invocations do 128 * rounds
        float32 fused multiply-adds."""

    def time_product(self, rows: int, columns: int, d: int, repeats: int) -> list[float]:
        """Seconds of each of `repeats` submissions of the scoring kernel alone: rows x columns
        scores of dimension d."""

    def counts(self) -> dict[str, Count]: ...
    def set_scoring(self, scoring: Scoring) -> None: ...
    @property
    def allocated(self) -> int:
        """Bytes of device memory held now."""

    def set_coarse(self, coarse: bool | None) -> None:
        """True if `topk` of float32 points must begin with float16 scores, False if it must not.
        None: it does so when that is faster."""

    def set_resident(self, resident: bool | None) -> None:
        """True if integrators hold a chain's candidates in registers whenever they fit, False if
        never. None: only on a GPU."""

    def throttle(self, seconds: float) -> None:
        """For tests: a clock that adds `seconds` to every run from now on."""

    def coarse_count(self) -> tuple[int, int]:
        """The number of rows of `topk` that began with float16, and how many of them had to be
        computed again in float32."""

    def pipelines(self, queries: int, d: int, k: int) -> list[PipelineKey]:
        """The pipelines that the operations use at these sizes. No pipeline is made."""

    def used_pipelines(self) -> list[PipelineKey]: ...
    def variant_of(self, key: PipelineKey) -> Variant: ...
    def inspect(self, key: PipelineKey) -> MachineCode:
        """Compiles a pipeline as the operations do. Needs Options.compile_only."""

    def inspect_spirv(
        self, spirv: bytes, bindings: int, push_bytes: int, constants: Sequence[int], subgroup_size: int
    ) -> MachineCode:
        """Compiles a module with storage buffers 0 to bindings - 1. constants: the value of each
        specialisation constant, from id 0 on."""

    def used_kernels(self) -> list[tuple[str, Variant, Storage]]:
        """The shaders of the manifest that this engine has run."""
    def damaged_guards(self) -> str:
        """With Options.guard: the first write outside a buffer; empty if there was none."""

    def take_messages(self) -> list[str]:
        """With Options.validate: what the validation layer said since the last call."""

def devices() -> list[Capabilities]: ...
def kernels() -> list[tuple[str, Variant, Storage]]:
    """Every shader of the manifest: kernel, variant, storage of its points."""

def module_of(name: str, variant: Variant, storage: Storage, values: Sequence[int] | None = None) -> bytes:
    """The SPIR-V of a kernel: as built, or with its specialisation constants fixed to `values`."""

def profiles() -> list[str]:
    """Names for Options.pretend."""

def tilings(device: Capabilities) -> list[tuple[int, str]]:
    """Pairs (queries, tiling): the tiling of scores that is chosen from that many queries on."""

def barriers_between(commands: list[list[tuple[int, int, int, bool]]]) -> list[bool]:
    """For each command, True if it needs a barrier before it.

    A command is given by the ranges that it touches: buffer, begin, end, and True if it writes.
    """

def arrange(tensors: list[tuple[int, int, int]], alignment: int) -> tuple[list[int], int]:
    """The offset of each tensor in one allocation, and the size of the allocation. A tensor is
    (bytes, first node, last node)."""

def loader_version() -> int:
    """The version of the Vulkan loader, as VK_API_VERSION. Raises Unavailable if there is none."""

def inject_fault(function: str, nth: int, result: int) -> None:
    """The nth call from now of a Vulkan function will return `result` (a VkResult) and do nothing.
    nth = 0 cancels this."""

def calls_of(function: str) -> int:
    """How often a wrapped Vulkan function was called."""

def wrapped_functions() -> list[str]:
    """Functions whose calls `inject_fault` can make fail, after a device was opened."""
