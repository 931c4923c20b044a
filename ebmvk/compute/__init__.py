"""Training steps as planned programs: torch code in, kernels for any Vulkan device out.

capture.py traces a step, lower.py turns the trace into the program of ir.py, and the rest makes
it small, places it in memory and runs it.
"""
