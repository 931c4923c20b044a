"""Lists the Vulkan devices of this machine and what each offers, without opening one."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from ebmvk.engine.missing import extension_error
from ebmvk.errors import DeviceError

if TYPE_CHECKING:
    from ebmvk import _vulkan


@dataclass(frozen=True)
class Device:
    """A physical device. index: its number in `vulkan:<index>`. type: cpu, integrated, discrete,
    virtual or other.
    """

    index: int
    name: str
    type: str
    driver: str
    memory_bytes: int


_PREFERENCE = ("discrete", "integrated", "virtual", "other", "cpu")
"""Types from the one to take first to the one to take last. A laptop with two GPUs may list
either first."""


def preference(device: Device | _vulkan.Capabilities) -> int:
    """The place of a device's type among the types to take, 0 for the best."""
    return _PREFERENCE.index(device.type)


def devices() -> list[Device]:
    """The usable devices, in the driver's order.

    Raises:
        DeviceError: the extension isn't built, or the machine has no Vulkan at all.
    """
    return [
        Device(found.index, found.name, found.type, found.driver, found.memory_bytes)
        for found in _found()
        if not found.missing
    ]


@dataclass(frozen=True)
class Heap:
    """A memory heap. device_local: True for the device's own memory, False for the host's."""

    bytes: int
    device_local: bool


@dataclass(frozen=True)
class Description:
    """What a device is and offers.

    missing: why it can't be used; empty if it can. scoring: {number of queries: the tile (queries x
    points) that a workgroup of the scoring kernel computes from that number on}.
    """

    index: int
    name: str
    type: str
    driver: str
    api: str
    usable: bool
    missing: str
    heaps: list[Heap]
    features: dict[str, bool]
    limits: dict[str, int]
    scoring: dict[str, str]


@dataclass(frozen=True)
class Survey:
    """The version of the Vulkan loader, and the devices that it lists."""

    loader: str
    devices: list[Description]


def survey() -> Survey:
    """The loader and all devices in full, also those that can't be used.

    Raises DeviceError as `devices` does.
    """
    found = _found()
    return Survey(_version(extension().loader_version()), [_describe(device) for device in found])


def _describe(device: _vulkan.Capabilities) -> Description:
    return Description(
        device.index,
        device.name,
        device.type,
        device.driver,
        _version(device.api_version),
        not device.missing,
        device.missing,
        [Heap(*heap) for heap in device.heaps],
        {
            "float16": device.float16,
            "subgroup_arithmetic": device.subgroup_arithmetic,
            "subgroup_control": device.subgroup_control,
            "subgroup_required": device.subgroup_required,
        },
        {
            "storage_range": device.max_storage_range,
            "allocation": device.max_allocation,
            "bindings": device.max_bindings,
            "groups": device.max_groups,
            "group_size": device.max_group_size,
            "shared_bytes": device.max_shared_bytes,
            "subgroup_size": device.subgroup_size,
            "registers": device.registers,
        },
        {f"from_{queries}": tiling for queries, tiling in extension().tilings(device)},
    )


def _version(word: int) -> str:
    """A VK_API_VERSION number as text, such as 1.3.204."""
    return f"{word >> 22 & 127}.{word >> 12 & 1023}.{word & 4095}"


def extension() -> ModuleType:
    """The extension module. Raises DeviceError, with the likely cause, if it can't be imported."""
    try:
        from ebmvk import _vulkan
    except ImportError as error:
        raise extension_error("_vulkan", error) from error
    return _vulkan


def _found() -> list[_vulkan.Capabilities]:
    native = extension()
    try:
        found: list[_vulkan.Capabilities] = native.devices()
    except native.Unavailable as error:
        raise DeviceError(
            f"no Vulkan: {error}",
            hint="install a Vulkan driver, or use --device cpu",
            why="the loader or the driver is missing",
        ) from error
    return found


def choose(index: int | None) -> int:
    """The index, if it is given. Otherwise the index of the device to prefer: a discrete card
    before an integrated GPU, and a software renderer last. The driver's order decides between
    equals.

    Raises:
        DeviceError: index is None and no device can be used.
    """
    if index is not None:
        return index
    found = _found()
    usable = [device for device in found if not device.missing]
    if not usable:
        reasons = "; ".join(f"{device.name}: {device.missing}" for device in found) or "the loader lists none"
        raise DeviceError(
            "there is no usable Vulkan device",
            why=reasons,
            hint="install a Vulkan driver (vulkaninfo --summary lists devices), or use --device cpu",
        )
    return min(usable, key=preference).index
