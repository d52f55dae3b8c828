"""The command in an untrusted folder, and its child processes: no code of that folder runs."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from tests.sweep.fake_slurm import FakeSlurm

SMALL = ["data.limit=4", "solver.steps=1", "threads=1", "outputs=outputs"]
COMMAND = "import sys\nfrom raiopt.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
TRACKED = ["tracker=mlflow", "tracker.uri=http://127.0.0.1:9"]
MLFLOW = "from raiopt.results import trackers\ntrackers.find_spec = lambda name: type('Spec', (), {'origin': 'file'})\n"
VERBS = {
    "run": SMALL,
    "sweep": ["-m", "seed=0,1", *SMALL],
    "sweep that goes on": ["-m", "name=s", "seed=0,1,{seed}", *SMALL],
    "tracker": [*SMALL, *TRACKED],
    "report": ["report", "outputs/s", "--force"],
    "list": ["list", "runs"],
    "show": ["show", "outputs/s"],
    "export": ["export", "{run}", "--png", "images", "--force"],
    "rerun": ["rerun", "{run}"],
    "doctor": ["doctor", "--images", "1"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with the command as a script, and `theirs`, where a sweep was run; commands do not see our variables."""
    base = tmp_path_factory.mktemp("foreign")
    (base / "bin").mkdir()
    (base / "bin" / "command.py").write_text(COMMAND)
    (base / "site").mkdir()
    (base / "site" / "sitecustomize.py").write_text(MLFLOW)
    (base / "ran").mkdir()
    (base / "theirs").mkdir()
    done = command(base, "-m", "name=s", "seed=0,1", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return base


def command(base, *words, start=None, **environment):
    """Runs the command in `theirs`, as its console script does: without -P, and with the script's folder in front."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    start = start or [sys.executable, base / "bin" / "command.py"]
    return subprocess.run(
        [*start, *words], cwd=base / "theirs", capture_output=True, text=True, env={**env, **environment}
    )


def filled(words, base):
    run = min((base / "theirs").glob("outputs/s/*/run.json")).parent.relative_to(base / "theirs")
    jobs = len(list((base / "theirs").glob("outputs/s/*/run.json")))
    return [word.format(run=run, seed=jobs) for word in words]


def ran(base):
    """Returns what ran since the last call."""
    found = sorted(path.name for path in (base / "ran").iterdir())
    for name in found:
        (base / "ran" / name).unlink()
    return found


def leave_modules(base, names):
    for path in (base / "theirs").glob("*.py"):
        path.unlink()
    for name in names:
        (base / "theirs" / f"{name}.py").write_text(f"open({str(base / 'ran' / name)!r}, 'w').close()\n")


def installed():
    return [name for name in packages_distributions() if name.isidentifier()]


@pytest.fixture
def modules(base):
    """Modules in `theirs` with the names of those of Python, of all that is installed, and of ours."""
    leave_modules(base, {*sys.stdlib_module_names, *installed(), "raiopt", "ray", "mlflow", "sitecustomize"})
    yield
    leave_modules(base, [])


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("verb", VERBS)
def test_no_module_of_the_current_folder_is_imported(base, verb):
    environment = {"PYTHONPATH": str(base / "site")} if verb == "tracker" else {}
    done = command(base, *filled(VERBS[verb], base), **environment)
    assert ran(base) == []
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_dash_m_imports_no_module_of_the_current_folder(base):
    leave_modules(
        base, installed()
    )  # Python itself takes its own modules, and the package that is asked for, from here
    (base / "theirs" / "raiopt.py").unlink()
    done = command(base, "-m", "name=dash_m", "seed=0,1", *SMALL, start=[sys.executable, "-m", "raiopt"])
    leave_modules(base, [])
    assert ran(base) == []
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("modules")
def test_a_slurm_job_imports_no_module_of_the_current_folder(base, tmp_path):
    FakeSlurm(tmp_path / "slurm")
    path = {"PATH": f"{tmp_path / 'slurm'}:{os.environ['PATH']}"}
    code = """if 1:
        import sys
        sys.path.remove("")
        from raiopt.sweep.slurm import SlurmExecutor
        from raiopt.sweep.slurm_options import SlurmOptions
        from raiopt.sweep.task import Task
        task = Task(key="k", folder=sys.argv[1] + "/k", config={}, hydra={}, about={})
        SlurmExecutor(sys.argv[1], SlurmOptions()).start([task])
    """
    done = command(base, str(tmp_path), start=[sys.executable, "-c", code], **path)
    assert (done.returncode, done.stderr) == (0, "")
    script = min((tmp_path / ".slurm").glob("*.sh"))
    line = next(line for line in script.read_text().splitlines() if line.startswith("srun"))
    begin = line[line.index(sys.executable) :]
    job = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_NODEID": "0"}
    command(base, start=["sh", "-c", begin], **path, **job)
    assert ran(base) == []


def configure(repository, place):
    """Makes a repository whose every setting that names a program leaves a mark when git heeds it."""

    def program(name):
        return f"touch {place / name}; false"

    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x"]
    (repository / "kept.txt").write_text("before\n")
    (repository / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    for words in (["init", "-q"], ["add", "kept.txt", ".gitattributes"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=repository, check=True)
    names = """filter.evil.clean filter.evil.smudge filter.evil.process diff.evil.textconv diff.evil.command
        diff.external merge.evil.driver core.fsmonitor core.sshCommand core.pager core.editor core.askPass core.gitProxy
        pager.status credential.helper gpg.program sequence.editor"""
    aliases = [f"alias.{name}" for name in ("status", "rev-parse", "st")]
    for name in [*names.split(), *aliases]:
        value = f"!{program(name)}" if name.startswith(("alias", "credential")) else program(name)
        subprocess.run(["git", "config", name, value], cwd=repository, check=True)
    (repository / "hooks").mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "post-checkout", "pre-commit", "reference-transaction"):
        (repository / "hooks" / name).write_text(f"#!/bin/sh\n{program(name)}\n")
        (repository / "hooks" / name).chmod(0o755)
    subprocess.run(["git", "config", "core.hooksPath", repository / "hooks"], cwd=repository, check=True)
    (repository / "kept.txt").write_text("after!\n")  # its content has to be looked at


@pytest.fixture(scope="module")
def repository(base):
    configure(base / "theirs", base / "ran")
    ran(base)
    yield
    shutil.rmtree(base / "theirs" / ".git")


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("verb", ["run", "sweep", "report", "list", "show", "rerun", "doctor"])
def test_nothing_that_the_repository_of_the_current_folder_configures_runs(base, verb):
    done = command(base, *filled(VERBS[verb], base))
    assert ran(base) == []
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("repository")
def test_a_plain_git_status_there_would_run_code(base):
    subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=base / "theirs", capture_output=True)
    assert {"core.fsmonitor", "filter.evil.clean"} & set(ran(base))


def test_processes_of_user_code_have_the_current_folder(tmp_path):
    """A worker does not pass on the setting that excludes the current folder from its imports."""
    (tmp_path / "beside.py").touch()
    (tmp_path / "script.py").write_text("import beside\n")
    (tmp_path / "own.py").write_text(
        "import subprocess, sys\nfrom torch import nn\ndef net():\n"
        "    subprocess.run([sys.executable, 'script.py'], check=True)\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))\n"
    )
    words = ["-m", "seed=0,1", "model=python", "model.factory=own:net", "model.deterministic=false", *SMALL]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "raiopt", *words], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
