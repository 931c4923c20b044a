"""Benchmarks: each module is a command, `python -m bench.NAME --help`.

Engine: `ops` (every operation), `peers` (other libraries), `approximate` (approximate search),
`torch_chains` (peers of the chains), `isa` (machine code for AMD cards that aren't there;
`isa_compile`, `isa_text`, `isa_estimate`, `isa_plans` are its parts). Compiler: `products` (matrix
products), `training` (a step, with other compilers; `plain_model` and `training_*` are its parts).
Models: `models` (training and generation), `experiments` (tables of runs), `memory` (static
memory), `monitor` (cost of monitoring), `peak` (peak memory), `scaling` (several processes,
predicted), `kills` and `changes` (resuming after kills). `measure` has what they share.
"""

# Imports ebmvk before torch, so that threads and memory are set up as in the commands
from ebmvk.host import terminal

terminal.prepare()
