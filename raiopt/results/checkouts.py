"""The git commit of imported code. Git is never run in foreign repositories, whose config may name programs to run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from raiopt.results.record import GitInfo

ROOT = Path(__file__).parents[2]
"""The folder that contains the package raiopt: its checkout, unless it is installed."""

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@cache
def own_state() -> GitInfo | None:
    """Returns the commit of raiopt's own checkout and whether files differ from it; None if raiopt is installed.

    It is looked up only once, because later changes do not affect the code in a running process. This is the only
    checkout in which git is run.
    """
    commit = commit_of(ROOT) if (ROOT / ".git").exists() else None
    return None if commit is None else GitInfo(commit, _is_changed())


def _is_changed() -> bool | None:
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }  # they may point to another repository
    words = ["git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "--no-optional-locks", "status"]
    try:
        done = subprocess.run(
            [*words, "--porcelain", "-uno", "--ignore-submodules=all"],
            cwd=ROOT,
            env=env,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return bool(done.stdout.strip())


def commits_of(modules: Iterable[str]) -> dict[str, str]:
    """Returns the commit of each of these modules that is imported and in a git checkout."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in modules}
    found = {name: commit_of(Path(file).parent) for name, file in files.items() if file}
    return {name: commit for name, commit in found.items() if commit}


def commit_of(folder: Path) -> str | None:
    """Returns the commit checked out at a folder, None outside a checkout; reads files and does not run git."""
    folder = folder.absolute()
    for place in (folder, *folder.parents):
        if (place / ".git").exists():
            return _head(_git_folder(place / ".git"))
    return None


def _git_folder(path: Path) -> Path:
    """Returns the git folder: .git itself, or, for a worktree or submodule, the folder that the file .git points to."""
    text = _text(path)
    return path.parent / text.removeprefix("gitdir:").strip() if text.startswith("gitdir:") else path


def _head(git: Path) -> str | None:
    head = _text(git / "HEAD").strip()
    if not head.startswith("ref:"):
        return head if _HASH.fullmatch(head) else None
    name = head.removeprefix("ref:").strip()
    if not name.startswith("refs/") or ".." in name:
        return None
    shared = git / (_text(git / "commondir").strip() or ".")  # branches of a worktree are those of its repository
    for folder in (git, shared):
        if _HASH.fullmatch(commit := _text(folder / name).strip()):
            return commit
    for line in _text(shared / "packed-refs").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name and _HASH.fullmatch(commit):
            return commit
    return None


def _text(path: Path) -> str:
    """Returns the content of a file; empty if it is not a regular file, such as a pipe, which could block."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except (OSError, ValueError):
        return ""
