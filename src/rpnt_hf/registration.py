"""Registers RPNT with the Auto classes as soon as transformers is there, without importing it.

`import rpnt_hf` costs nothing where no model is used (`rpnt --help`), and Auto classes know the models
whichever of the two packages is imported first. What is registered is in `auto.py`.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Registrar(MetaPathFinder):
    """Watches imports of transformers and of this package, and registers when the outermost has ended.

    Not in the middle of one: the modules of this package that import transformers are themselves what is
    registered, and would be found half imported.
    """

    def __init__(self) -> None:
        self.depth = 0

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "transformers" and not fullname.startswith(f"{__package__}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                import_module(f"{__package__}.auto")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_when_needed() -> None:
    """Registers now where transformers is imported already, else once it is."""
    if "transformers" in sys.modules:
        import_module(f"{__package__}.auto")
    elif not any(isinstance(finder, _Registrar) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Registrar())
