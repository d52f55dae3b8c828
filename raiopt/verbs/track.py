"""`raiopt track`: logs existing runs to MLflow."""

from raiopt.reports.runs import load_runs
from raiopt.verbs import Parser


def main(words: list[str]) -> int:
    """Logs the runs in folders that are not logged yet; returns 1 if something could not be logged."""
    parser = Parser("track", "Logs runs that are on disk in MLflow, as tracker=mlflow does when they end.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run, of a sweep, or with such folders in it")
    parser.add_argument("settings", nargs="*", metavar="tracker.KEY=VALUE", help="see raiopt list tracker")
    settings = [word for word in words if word.startswith(("tracker.", "outputs="))]
    asked = parser.parse_args([word for word in words if word not in settings])

    from hydra import compose, initialize_config_module

    from raiopt.sweep.session import place_of
    from raiopt.sweep.tracker_process import TrackerProcess

    with initialize_config_module("raiopt.conf", version_base="1.3"):
        place = place_of(compose("raiopt", overrides=["tracker=mlflow", *settings]))
    runs = load_runs(asked.folders)
    assert place is not None
    process = TrackerProcess(place)
    for run in runs:
        for part in run.parts:
            process.log(part)
    return int(not process.end())
