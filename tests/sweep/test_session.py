"""The session of one command: reachable while the command runs, and only then."""

import pytest

from raiopt.sweep.session import CommandSession, current_session


def test_a_session_lasts_as_long_as_its_command():
    with CommandSession() as outer:
        outer.job_keys.add("a")
        with CommandSession() as inner:
            assert current_session() is inner
            assert (inner.folder, inner.swept, inner.job_keys, inner.failures) == (None, (), set(), [])
        assert current_session() is outer
    with pytest.raises(LookupError):
        current_session()


@pytest.mark.parametrize(
    ("error", "patience"), [(None, float("inf")), (KeyboardInterrupt, 3.0), (ValueError, float("inf"))]
)
def test_the_end_of_a_command_waits_for_the_tracker_but_not_long_after_ctrl_c(error, patience):
    class Tracker:
        waited = None

        def end(self, seconds):
            Tracker.waited = seconds

    session = CommandSession()
    session._tracker = Tracker()  # pyright: ignore[reportAttributeAccessIssue]
    if error is None:
        with session:
            pass
    else:
        with pytest.raises(error), session:
            raise error
    assert Tracker.waited == patience
