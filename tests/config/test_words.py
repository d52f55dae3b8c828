"""Stages given as overrides: the config that results, invalid overrides, and the command with stages."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from raiopt.cli import main
from raiopt.config.explain import typed
from raiopt.config.groups import OPTIONS
from raiopt.config.jobs import build
from raiopt.config.saved import UnsafeConfig, saved_job
from raiopt.config.words import GROUPS, JOB_SETTINGS, PARTS, VALUES, quoted, staged, words_of
from raiopt.sweep.job_key import job_key
from tests.config.test_saved import folder_with
from tests.test_readme import composed

SMALL = ["data.limit=8", "solver.steps=2", "threads=1", "optim.epsilon=0.3"]
NAMED = ("fast", "standard", "thorough")
SETTINGS = {
    "solver.steps": st.integers(0, 99),
    "solver.stop": st.sampled_from(["fooled", "never"]),
    "solver.target": st.lists(st.sampled_from(["next", "likely", 3]), min_size=1, max_size=3),
    "optim.lr": st.floats(0, 9),
    "optim.InnerOpt.momentum": st.floats(0, 1),
}
OF_ONE_BALL = {"l2": "l2", "l1": "l1", "l1q": "l1", "l0": "l0", "ddn": "l2", "alma": "l2", "cw": "l2"}


@cache
def asked(*words: str) -> Any:
    """What the command composes, without its part for Hydra."""
    config = composed(list(words))
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def with_stages(stages: Any, *words: str) -> Any:
    config = asked(*words).copy()
    config.stages = stages
    return config


def one(*stage: str, job: tuple[str, ...] = ()) -> Any:
    """The job's config after a stage with these overrides."""
    return staged(with_stages({"one": list(stage)}, *job))["one"]


def plain(config: Any, *but: str) -> Any:
    found: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in found.items() if key not in but}


@given(st.fixed_dictionaries({}, optional=SETTINGS))
def test_a_stage_is_the_job_with_its_own_settings(settings):
    expected = asked().copy()
    for key, value in settings.items():
        OmegaConf.update(expected, key, value)
    words = [f"{key}={typed(value)}" for key, value in settings.items()]
    assert plain(one(*words), "stages") == plain(expected, "stages")


@pytest.mark.parametrize("group", GROUPS)
def test_an_option_of_a_stage_equals_that_of_the_command(group):
    for name in OPTIONS[group]:
        words = [f"{group}={name}"]
        expected = plain(asked(*words), "stages")
        ball = OF_ONE_BALL.get(name.partition("_")[0], "linf") if "ball" not in expected["optim"] else "linf"
        job = () if ball == "linf" else ("optim=signed", f"optim.ball={ball}", "optim.epsilon=0.1")
        found = plain(one(*words, job=job), "stages")
        if group == "optim":
            epsilon = expected["optim"]["epsilon"]
            assert found["optim"].pop("epsilon") == 0.1
            assert expected["optim"].pop("epsilon") == epsilon
            for config in (found, expected):
                config["optim"].pop("ball", None)
        assert found == expected


@pytest.mark.parametrize(
    ("job", "stage", "kept"),
    [
        (["optim=l2_projected", "optim.epsilon=3"], "optim=signed", {"ball": "l2", "epsilon": 3.0}),
        (["optim=l1_frank_wolfe"], "optim=l2_normed", {"ball": "l1", "epsilon": 12.0, "param_ndim": -1}),
        (["optim=signed", "optim.ball=l1", "optim.param_ndim=1"], "optim=chain", {"ball": "l1", "param_ndim": 1}),
        (["optim=signed", "optim.ball=null"], "optim=top_q", {"ball": None, "epsilon": 0.1}),
        (["optim.lr=7", "optim/InnerOpt=adam"], "optim=signed", {"lr": 0.1, "ball": "linf"}),
    ],
)
def test_another_optimizer_searches_the_ball_of_the_job(job, stage, kept):
    found = one(stage, job=tuple(job)).optim
    assert {name: found[name] for name in kept} == kept
    assert found.InnerOpt._target_ == "torch.optim.SGD"


def test_a_stage_inherits_unset_settings():
    config = one("criterion=margin", "optim/InnerOpt=adam", job=("optim.lr=3", "solver.steps=9", "init=uniform_linf"))
    assert (config.optim.lr, config.solver.steps, config.init.epsilon) == (3, 9, 0.1)
    assert config.optim.InnerOpt._target_ == "torch.optim.Adam"
    assert one("optim=square", "solver.steps=7", job=("solver.steps=9",)).optim.steps == 7


def test_empty_stages_are_none_and_the_order_is_kept():
    assert staged(asked()) == {}
    assert list(staged(with_stages({"b": [], "a": []}))) == ["b", "a"]
    keys = [job_key(with_stages(stages), {}) for stages in ({"a": [], "b": []}, {"b": [], "a": []}, {"a": []}, {})]
    assert len(set(keys)) == 4


REFUSED = [
    ("steps=3", "a stage can only change optim, criterion, init, schedule, solver. Did you mean solver.steps?"),
    ("solver.stepz=3", "solver.stepz is not an option. Did you mean solver.steps?"),
    ("optim.stepp=x", "optim.stepp is not an option. optim has grad_scale, grad_bias, lr, InnerOpt."),
    ("optim.lrs=3", "optim.lrs is not an option. Did you mean optim.lr?"),
    ("optim=sgned", "optim='sgned' must be one of .* Did you mean 'signed'?"),
    ("optm=signed", "a stage can only change optim, criterion, init, schedule, solver. Did you mean optim?"),
    ("model=python", "a stage can only change optim, criterion, init, schedule, solver."),
    ("perturbation=patch", "a stage can only change optim, criterion, init, schedule, solver."),
    ("seed=3", "a stage can only change optim, criterion, init, schedule, solver."),
    ("solver=gradient_ascent", "a stage can only change optim, criterion, init, schedule, solver."),
    ("solver.steps=many", "solver.steps=many: it must be an integer."),
    ("solver.steps=1,2", "it must be one key=value, without +, ~, @ or several values."),
    ("+solver.steps=1", "it must be one key=value, without +, ~, @ or several values."),
    ("~solver.steps", "it must be one key=value, without +, ~, @ or several values."),
    ("init@criterion=zero", "it must be one key=value, without +, ~, @ or several values."),
    ("solver.steps", "it cannot be read; it must be key=value."),
    ("solver.steps=[", "it cannot be read; it must be key=value."),
    ("solver/steps=3", "solver/steps is not a group of options; write a setting with dots."),
    ("optim.InnerOpt=adam", "write it with a slash: optim/InnerOpt=adam."),
    ("optim=ddn", "its ball is l2, and the job's is linf. Take an optim that has optim.ball, or"),
    ("solver.steps=${seed}", "names that begin with an underscore and references"),
    ("optim._target_=os.system", "names that begin with an underscore and references"),
    ("optim.InnerOpt={_target_:os.system}", "optim/InnerOpt is a group of options"),
    ("optim={_target_:os.system}", "names that begin with an underscore and references"),
    ("optim={lr:3}", "optim={'lr': 3} must be one of"),
    ("solver.target=[{_target_:os.system}]", "names that begin with an underscore and references"),
    *((f"{key}=1", f"{key} belongs to the job, and is the same in all stages.") for key in JOB_SETTINGS),
]


@pytest.mark.parametrize(("word", "message"), REFUSED)
def test_invalid_stage_settings_are_refused(word, message):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=f"^stages.one: .*{pattern}"):
        one(word)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"NaN": []}, "stages: 'NaN' must not be inf, nan, null, true or false"),
        ({"1st": []}, "stages: '1st' must be letters, digits, '-' or '_', the first a letter."),
        ({"a": ["solver.steps=1", "solver.steps=2"]}, "stages.a: solver.steps=2: solver.steps is given twice."),
        ({"a": ["optim=linf_frank_wolfe", "optim/InnerOpt=adam"]}, "the optim of this stage has no inner optimizer."),
    ],
)
def test_invalid_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        staged(with_stages(stages))


@pytest.mark.parametrize("stages", [{"a": "solver.steps=1"}, ["solver.steps=1"], {"a": [1]}])
def test_stages_of_another_type_are_refused(stages):
    with pytest.raises(ValueError, match=r"must be a (mapping|list)"):
        words_of(OmegaConf.create({"stages": stages}))


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: name not in VALUES),
        st.lists(st.sampled_from(["solver.steps=3", "optim/InnerOpt=adam", "solver.target=[next,3]", "optim.lr=1e-3"])),
        min_size=1,
    )
)
def test_words_of_stages_need_no_quotes(stages):
    parse, value = OverridesParser.create().parse_override, typed(stages)
    assert parse(quoted(f"stages={value}")).value() == stages
    for name, words in stages.items():
        assert parse(quoted(f"stages.{name}={typed(words)}")).value() == words
        assert parse(quoted(f"++stages.{name}={json.dumps(words)}")).value() == words


@pytest.mark.parametrize("name", NAMED)
def test_the_named_lists_build_in_every_ball_and_are_read_from_a_folder(name, tmp_path):
    for optim in ("linf_projected", "l2_projected", "l1_projected"):
        config = asked(f"experiment={name}", f"optim={optim}", "optim.epsilon=0.5")
        job = saved_job(folder_with(tmp_path, config))
        ours = build(config, {"optim": optim, "perturbation": "additive"})
        assert [stage.name for stage in job.stages] == [stage.name for stage in ours.stages] == list(config.stages)
        assert job.optimizers[0] == ours.optimizers[0] == optim
        assert [stage.words for stage in job.stages] == list(config.stages.values())


@pytest.mark.parametrize("word", ["model=python", "model.factory=canary:make", "optim._target_=os.system", "x=${seed}"])
def test_stages_from_untrusted_configs_are_checked(tmp_path, word):
    config: Any = OmegaConf.to_container(asked())
    config["stages"] = {"fine": ["solver.steps=3"], "bad": [word]}
    folder = folder_with(tmp_path, config)
    lines = (folder / ".hydra" / "config.yaml").read_text().splitlines()
    with pytest.raises(UnsafeConfig) as refused:
        saved_job(folder)
    near = {number for number, line in enumerate(lines, 1) if "bad:" in line or word in line}
    assert int(re.findall(r"line (\d+)", str(refused.value))[0]) in near


def test_options_with_user_functions_cannot_be_chosen_in_a_stage():
    factories = {group for group, known in OPTIONS.items() for option in known.values() if "factory" in option.settings}
    assert factories.isdisjoint({*PARTS, *GROUPS})


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def folders(outputs: str = "outputs") -> list[Path]:
    return sorted(path.parent for path in Path(outputs).glob("**/run.json"))


def record(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.usefixtures("elsewhere")
def test_a_job_in_stages_leaves_them_in_its_folder_and_repeats(capsys):
    stages = "stages={ce:[solver.steps=1],dlr:[criterion=dlr,optim.lr=0.1],none:[optim=square,criterion=margin]}"
    assert main([*SMALL, "name=a", stages]) == 0
    printed = capsys.readouterr().out
    (folder,) = folders()
    left = record(folder)["stages"]
    assert [stage["name"] for stage in left] == ["ce", "dlr", "none"]
    assert left[1]["words"] == ["criterion=dlr", "optim.lr=0.1"]
    assert [stage["gradient_free"] for stage in left] == [False, False, True]
    assert "on 8 images of digits, ce, then dlr, then none, Linf 0.3" in printed
    row = r"stage ce \d of 8 attacked successfully, \d+\.\d % remain robust, \d+ passes"
    assert re.search(row, " ".join(printed.split()))
    stage = pl.read_parquet(folder / "samples.parquet").group_by("stage").agg(pl.col("verified").sum())
    assert all(each["broken"] == dict(stage.rows()).get(each["name"], 0) for each in left)
    assert len(stage) > 1
    assert main(["show", str(folder)]) == 0
    assert "stage dlr" in capsys.readouterr().out
    assert main(["rerun", str(folder), "--outputs", "again"]) == 0
    assert "Repeated bit for bit." in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    assert main([*SMALL, "name=a", stages]) == 0
    assert len(folders()) == 1
    assert "nothing was run again" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_a_sweep_over_stages_and_inherited_settings(capsys):
    words = ["stages={ce:[solver.steps=1],dlr:[criterion=dlr]}", "hydra.launcher.n_jobs=1"]
    assert main(["-m", *SMALL[::2], SMALL[3], "name=a", *words, "solver.steps=0,2"]) == 0
    assert [record(folder)["stages"][0]["words"] for folder in folders()] == [["solver.steps=1"]] * 2
    passes = sorted(record(folder)["stages"][1]["backward_passes"] for folder in folders())
    assert passes[0] == 0 < passes[1]
    swept = "stages.ce=[solver.steps=0],[solver.steps=2]"
    assert main(["-m", *SMALL, "name=b", words[1], "experiment=fast", "+stages.ce=[]", swept]) == 0
    assert len(folders("outputs/b")) == 2
    assert pl.read_csv("outputs/b/sweep.csv")["stages.ce"].to_list() == ['["solver.steps=0"]', '["solver.steps=2"]']
    capsys.readouterr()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("many", [True, False])
def test_a_wrong_setting_is_reported_before_any_work(capsys, many):
    words = [*["-m"] * many, *SMALL, "stages={ce:[solver.stepz=1]}", *["solver.steps=1,2"] * many]
    assert main([word for word in words if word != "solver.steps=2"]) == 1
    assert "stages.ce: solver.stepz=1: solver.stepz is not an option. Did you mean solver.steps?" in (
        capsys.readouterr().err
    )
    assert not Path("outputs").exists() or not many


@pytest.mark.parametrize("option", ["square", "apgd", "linf_projected"])
def test_a_stage_may_replace_a_user_defined_optim_of_unknown_ball(option):
    own = with_stages({"one": [f"optim={option}"]})
    own.optim = {"_target_": "mine.Optim", "_partial_": True, "epsilon": 0.25, "lr": 0.5}
    changed = staged(own)["one"].optim
    assert changed._target_ == OPTIONS["optim"][option].target
    assert changed.epsilon == 0.25
