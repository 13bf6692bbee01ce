"""Configuration files are parsed once in a process: a third of the time of composing, which hundreds of tests do."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra.plugins.config_source import ConfigResult


def keep_yaml() -> None:
    """Hydra's two sources of files give copies of what they have parsed, unless the file has changed since."""
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
