"""ebmvk: energy-based language models on the hypersphere, on any Vulkan device and on any CPU."""
