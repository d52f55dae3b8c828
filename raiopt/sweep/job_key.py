"""The name of a job's folder: the same question has the same key, however it was typed."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from omegaconf import DictConfig, OmegaConf

from raiopt.results.folder import SCHEMA
from raiopt.results.records import VOLATILE


def job_key(config: DictConfig) -> str:
    """Returns ten hexadecimal digits that stand for the question which a job's config asks."""
    kept = OmegaConf.masked_copy(config, [str(key) for key in config if key not in VOLATILE])
    container = OmegaConf.to_container(kept, resolve=True)
    assert isinstance(container, dict)
    return key_of({str(key): value for key, value in container.items()})


def key_of(resolved: Mapping[str, Any]) -> str:
    """Returns the key of a resolved config; the number of the folders' layout is a part of it."""
    asked = {key: value for key, value in resolved.items() if key not in VOLATILE}
    asked["stages"] = list((resolved.get("stages") or {}).items())  # their order is a part of the question
    return hashlib.sha256(json.dumps([SCHEMA, asked], sort_keys=True).encode()).hexdigest()[:10]


def checked_name(name: str) -> str:
    """Returns the name of a run or sweep if it can be a folder's name below `outputs`."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"name={name!r} must be letters, digits, '.', '-' or '_', the first a letter or digit.")
    return name


def register_resolvers() -> None:
    """Makes the names of folders available to the config as ${raiopt....:}.

    They are cached with the config, so that all jobs of a sweep see one time of its start.
    """

    def sweep_folder(outputs: str, name: str | None) -> str:
        if not outputs:
            raise ValueError(f"outputs={outputs!r} must name a folder; the usual one is outputs=outputs.")
        return f"{outputs}/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}" if name is None else f"{outputs}/{checked_name(name)}"

    def run_folder(outputs: str, name: str | None, key: str) -> str:
        folder = sweep_folder(outputs, name)
        return folder if name is None else f"{folder}/{key}"

    def key(*, _root_: DictConfig) -> str:
        return job_key(_root_)

    OmegaConf.register_new_resolver("raiopt.sweep_folder", sweep_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("raiopt.run_folder", run_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("raiopt.job_key", key, replace=True)
