"""ebmvk: energy-based language models on the hypersphere, on any Vulkan device and on any CPU."""

__version__ = "0.1.0"
