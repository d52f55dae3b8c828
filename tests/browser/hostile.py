"""A sweep in which every text is a script injection, with runs in every state."""

import json
from pathlib import Path

from raiopt.results.record import SCHEMA
from tests.reports.whole_runs import whole_run
from tests.results.sweeps import list_jobs, make

ALERT = "<script>alert(1)</script>"
IMAGE = "\"'><img src=x onerror=alert(2)>"
LINK = '<a href="javascript:alert(3)">b</a>&amp;%{x}${y}{{ 7*7 }}'
NAMES = [ALERT, IMAGE, LINK, "</script><!--\u2028"]


def hostile_sweep(root: Path) -> None:
    """Writes a sweep of four finished runs, and of others that failed, were killed, run, are damaged or missing."""
    texts = {"optim": [ALERT, IMAGE], LINK: [NAMES[3], "5"]}
    overrides = {}
    for number in range(4):
        name, given = (
            f"job{number}",
            {"optim": texts["optim"][number % 2], LINK: texts[LINK][number // 2], "optim.lr": number},
        )
        overrides[name] = given
        named = {"overrides": given, "model": {"name": ALERT, "classes": 4}, "data": {"name": IMAGE, "samples": 40}}
        hostile = {
            "attack": {"optimizers": [LINK]},
            "versions": {ALERT: IMAGE},
            "command": ["raiopt", ALERT, IMAGE],
            "job_number": number,
        }
        whole_run(
            root, name, strength=0.1 * number + 0.2, classes=NAMES, epsilon=0.1 * (number + 1), **named, **hostile
        )
    (root / "job3" / "samples.parquet").write_bytes(b"PAR1 damaged PAR1")
    (root / "job2" / "exhibits.safetensors").unlink()
    make(root, "failed", status="failed", error={"type": "ValueError", "message": ALERT})
    make(root, "killed", status="killed", error={"type": "Killed", "message": IMAGE})
    make(root, "running", status="running")
    make(root, "newer", schema=SCHEMA + 1)
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text(f'{{"name": {json.dumps(LINK)}')
    others = ["failed", "killed", "running", "newer", "damaged", "missing"]
    list_jobs(root, overrides | {name: {"optim": ALERT, "optim.lr": 9} for name in others})
