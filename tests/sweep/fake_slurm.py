"""Stand-ins for Slurm's programs, which read their output from a file and record their calls."""

import json
import os
import sys
from pathlib import Path
from typing import Any

PROGRAM = """#!{python} -SE
import json, os, re, sys
from pathlib import Path
name, words, place = Path(sys.argv[0]).name, sys.argv[1:], Path(__file__).parent
state = json.loads((place / "state.json").read_text())
with open(place / "calls", "a") as calls:
    calls.write(json.dumps([name, words, dict(os.environ)]) + "\\n")
def stop(text):
    sys.stderr.write(text + "\\n"); sys.exit(1)
if state["down"]:
    stop(name + ": error: " + state["down"])
if name == "sbatch":
    script = Path(words[0]).read_text()
    if state["refusal"]:
        stop("sbatch: error: " + state["refusal"] + "\\nsbatch: error: Batch job submission failed: Refused")
    state["last"] += 1
    array = re.search("--array=0-(\\\\d+)", script)
    called = re.search("--job-name=(.*)", script)[1].strip("'")
    for job in [f"{{state['last']}}_{{n}}" for n in range(int(array[1]) + 1)] if array else [str(state["last"])]:
        state["jobs"][job] = dict(state="PENDING", reason="Priority", name=called)
    print("Submitted batch job", state["last"])
elif name == "squeue":
    wanted = words[words.index("-j") + 1].split(",")
    jobs = {{job: about for job, about in state["jobs"].items() if job.split("_")[0] in wanted}}
    if len(wanted) == 1 and not jobs:
        stop("slurm_load_jobs error: Invalid job id specified")
    for job, about in jobs.items():
        if "all" not in words and about["state"] not in ("PENDING", "RUNNING", "COMPLETING"):
            continue
        if "-r" not in words and about["state"] == "PENDING":
            job = job.split("_")[0] + "_[0-9]"
        print(job, about["state"], about["reason"], about["name"], sep="|")
elif name == "scancel":
    for word in words:
        array, _, places = word.partition("_")
        for job in [f"{{array}}_{{n}}" for n in json.loads(places)] if places else [array]:
            state["jobs"][job]["state"] = "CANCELLED"
elif name == "scontrol" and words[-1] == "config":
    print("Configuration data\\nMaxArraySize            =", state["largest"])
elif name == "scontrol" and words[:3] == ["-o", "show", "job"]:
    if words[3] not in state["jobs"] or not state["jobs"][words[3]].get("known", True):
        stop("slurm_load_jobs error: Invalid job id specified")
    about = {{"ExitCode": "0:0", "TimeLimit": "01:00:00", **state["jobs"][words[3]]}}
    print(f"JobId=1 JobState={{about['state']}} ExitCode={{about['ExitCode']}} TimeLimit={{about['TimeLimit']}} Power=")
elif name == "sacct":
    print(state["sacct"]) if state["sacct"] else stop("Slurm accounting storage is disabled")
(place / "state.json").write_text(json.dumps(state))
"""


class FakeSlurm:
    """The programs, in a folder of their own that has to be put in front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.set(jobs={}, last=0, largest=1001, down="", refusal="", sacct="")
        for name in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sacct"):
            program = folder / name
            program.write_text(PROGRAM.format(python=sys.executable))
            program.chmod(0o755)

    def set(self, **fields: Any) -> None:
        """Changes the output of the programs."""
        path = self.folder / "state.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, **fields}))

    @property
    def jobs(self) -> dict[str, dict[str, str]]:
        """The queue."""
        return json.loads((self.folder / "state.json").read_text())["jobs"]

    def job(self, number: str, state: str | None, **fields: Any) -> None:
        """Changes a job; without a state, it is forgotten."""
        jobs = self.jobs
        about = jobs.pop(number, {"reason": "None", "name": ""})
        self.set(jobs=jobs if state is None else {**jobs, number: {**about, "state": state, **fields}})

    def calls(self, name: str) -> list[list[str]]:
        """Returns the arguments of each call of a program."""
        return [words for program, words, _ in self._calls() if program == name]

    def environment(self, name: str) -> dict[str, str]:
        """Returns the environment of its last call."""
        return [env for program, _, env in self._calls() if program == name][-1]

    def _calls(self) -> list[Any]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if os.path.exists(path) else []
