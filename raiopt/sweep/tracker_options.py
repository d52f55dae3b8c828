"""The options of the group tracker: functions called with the folder of all results."""

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raiopt.results.trackers import Mlflow


def none(outputs: str) -> None:
    """No tracker: runs are kept in their folders only."""


def mlflow(outputs: str, uri: str | None = None, experiment: str = "raiopt", artifacts: str = "small") -> "Mlflow":
    """Runs are also logged in MLflow: pip install 'raiopt[mlflow]'.

    Args:
        outputs: The folder of mlflow.db, if no other location is given.
        uri: sqlite:///FILE, http://HOST:PORT of a server, or another database; None: the value of MLFLOW_TRACKING_URI,
            else sqlite:///OUTPUTS/mlflow.db.
        experiment: The name of the experiment; created if it does not exist.
        artifacts: The files that are logged: small (the picture, the log, the config, the record), all or none.

    Raises:
        ValueError: If an argument is invalid, or MLflow is not installed.
    """
    from raiopt.results.trackers import Mlflow

    if uri is not None and re.search("://[^/@]*:[^/@]*@", uri):
        raise ValueError(
            "tracker.uri must hold no password, for it is written into the folders of the runs: put it into "
            "MLFLOW_TRACKING_PASSWORD, or the whole into MLFLOW_TRACKING_URI."
        )
    place = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs}/mlflow.db"
    return Mlflow(place, experiment, artifacts)
