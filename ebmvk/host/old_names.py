"""Modules that have moved still work by their old names: `import ebmvk.doctor` gives
`ebmvk.cli.doctor`.
"""

from __future__ import annotations

import importlib
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

_COMMANDS = (
    "analyze_corpus", "attention", "certify", "compare_decoding", "compose", "doctor", "embed", "export", "harness",
    "init_tokenizer", "neighbors", "prepare_corpus", "pretrain", "sweep",
)  # fmt: skip
MOVED = {f"ebmvk.{name}": f"ebmvk.cli.{name}" for name in _COMMANDS} | {
    "ebmvk.harness_model": "ebmvk.evaluation.harness_model",
}


class OldNames(MetaPathFinder, Loader):
    """Finds moved modules by their old names. It is asked after all other finders."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself: under both names it is one object."""
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__  # the import system overwrites it
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        module.__spec__ = spec.loader_state

    def get_code(self, name: str) -> CodeType:
        """For `python -m`: a program that runs the command."""
        program = f"import sys, {MOVED[name]} as command; sys.exit(command.main())"
        code: CodeType = compile(program, name, "exec")
        return code
