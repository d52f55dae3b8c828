"""`raiopt track`: logs runs that are on disk."""

from raiopt.reports.runs import load_runs
from raiopt.verbs import Parser


def main(words: list[str]) -> int:
    """Logs what is not logged yet of the runs in these folders; returns 1 if something could not be logged."""
    parser = Parser("track", "Logs runs that are on disk in MLflow, as tracker=mlflow does when they end.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run, of a sweep, or one that holds such")
    parser.add_argument("settings", nargs="*", metavar="tracker.KEY=VALUE", help="as raiopt list tracker shows them")
    settings = [word for word in words if word.startswith(("tracker.", "outputs="))]
    asked = parser.parse_args([word for word in words if word not in settings])

    from hydra import compose, initialize_config_module

    from raiopt.sweep.tracker_process import TrackerProcess
    from raiopt.sweep.tracking import place_of

    with initialize_config_module("raiopt.conf", version_base="1.3"):
        place = place_of(compose("raiopt", overrides=["tracker=mlflow", *settings]))
    runs = load_runs(asked.folders)
    assert place is not None
    process = TrackerProcess(place)
    for run in runs:
        for part in run.parts:
            process.tell(part)
    return int(not process.end())
