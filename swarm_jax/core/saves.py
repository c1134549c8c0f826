"""When the swarm saves a step, and which one it can go back to."""

from collections.abc import Iterable

from swarm_jax.core.reports import Report


def restart_step(reports: Iterable[Report], num_stages: int) -> int:
    """The newest step that every stage has a peer to restore at; 0 is always one."""
    saved: dict[int, set[int]] = {stage: {0} for stage in range(num_stages)}
    for report in reports:
        if report.stage in saved:
            saved[report.stage] |= report.saved
    return max(set.intersection(*saved.values()))


def save_is_due(step: int, saved: int, *, every_steps: int, steps: int) -> bool:
    """Whether the state of ``step`` is to be saved.

    Args:
        saved: The newest step that is saved, or was given up.
        every_steps: Steps between two checkpoints; 0 for none at all.
        steps: Of the run; its end is saved, too.
    """
    if every_steps == 0 or step <= saved:
        return False
    return step == steps or step // every_steps > saved // every_steps


def common_place(reports: Iterable[Report], num_stages: int) -> tuple[int, int] | None:
    """Generation and step of the newest peers of each stage, if they are the same."""
    newest: dict[int, tuple[int, int]] = {}
    for report in reports:
        place = report.generation, report.step
        newest[report.stage] = max(place, newest.get(report.stage, place))
    places = {newest.get(stage) for stage in range(num_stages)}
    return places.pop() if len(places) == 1 else None
