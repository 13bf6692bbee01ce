"""What makes composing in the process of the tests take a third of its time, hundreds of times over.

Processes that tests start do without.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.hydra import Hydra
from hydra.plugins.config_source import ConfigResult


def compose_faster() -> None:
    """Hydra parses each file once, unless it has changed since, and asks for its mode where something may say it.

    It composes everything to ask; only files of sweeps/ and the command line say it.
    """
    ask = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        told = any(override.lstrip("+").startswith(("sweeps", "hydra.mode")) for override in overrides)
        return ask(self, config_name, overrides) if told else None

    Hydra.get_mode = get_mode
    FileConfigSource.load_config = _kept(FileConfigSource.load_config, _stamp)
    ImportlibResourcesConfigSource.load_config = _kept(ImportlibResourcesConfigSource.load_config, lambda *_: None)


def _kept(load: Callable[[Any, str], ConfigResult], stamp: Callable[[Any, str], Any]) -> Callable[..., ConfigResult]:
    results: dict[Any, ConfigResult] = {}

    def load_config(self: Any, config_path: str) -> ConfigResult:
        key = (self.path, self.provider, config_path, stamp(self, config_path))
        if key not in results:
            results[key] = load(self, config_path)
        kept = results[key]
        return dataclasses.replace(kept, config=copy.deepcopy(kept.config), header=dict(kept.header))

    return load_config


def _stamp(source: FileConfigSource, config_path: str) -> tuple[int, int]:
    path = Path(source.path, source._normalize_file_name(config_path))
    found = path.stat() if path.exists() else None
    return (found.st_mtime_ns, found.st_size) if found else (0, 0)
