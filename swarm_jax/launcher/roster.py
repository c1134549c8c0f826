"""The servers and trainers of a soak: takes them away and brings others in."""

import signal
from collections.abc import Callable
from dataclasses import dataclass

from swarm_jax.launcher.churn import Action, Churn, Kind
from swarm_jax.launcher.processes import Child, ProcessDied, describe_exit, tail

WAKING_S = 6.0
"""A peer that was stopped serves again after this: until then the directory may still
show its record from before."""

LEAVE_LIMIT_S = 30.0
"""A server that was told to leave is gone by then, or it is reported."""


@dataclass(slots=True)
class Member:
    """A process of the swarm.

    Attributes:
        stage: None for a trainer.
        doomed: It was killed or told to leave, or has ended.
        told_to_leave_s: When.
        wakes_s: When a stopped one goes on.
        serves_s: From when on it may be taken for ONLINE.
        replace_after_s: Pause between its end and its successor's start.
    """

    child: Child
    stage: int | None
    doomed: bool = False
    told_to_leave_s: float | None = None
    wakes_s: float | None = None
    serves_s: float = 0.0
    replace_after_s: float = 0.0


class Roster:
    """Who runs. Times are seconds since any moment, the same for all calls.

    Args:
        start_server: Starts a server, given stage and number of the replica.
        start_trainer: Starts a trainer, given its name.
    """

    def __init__(
        self,
        start_server: Callable[[int, int], Child],
        start_trainer: Callable[[str], Child],
    ):
        self._start_server = start_server
        self._start_trainer = start_trainer
        self._members: dict[str, Member] = {}
        self._numbers: dict[int | None, int] = {}
        self._successors: list[tuple[float, int | None]] = []
        self._slow_leavers: set[str] = set()
        self.joined: list[str] = []
        self.trainers: list[str] = []
        self.finished = False
        self.counts = dict.fromkeys(
            (
                *("kills", "stops", "leaves", "unclean_leaves", "crashes"),
                *("trainer_kills", "trainer_stops", "trainer_leaves"),
            ),
            0,
        )

    def start(self, stage: int | None) -> Child:
        """Starts another server of a stage, or, of None, another trainer."""
        number = self._numbers.get(stage, 0)
        self._numbers[stage] = number + 1
        if stage is not None:
            child = self._start_server(stage, number)
        else:
            child = self._start_trainer(f"trainer-{number}" if number else "trainer")
            self.trainers.append(child.name)
        self._members[child.name] = Member(child, stage)
        return child

    def servers(self) -> list[Child]:
        """All servers there ever were."""
        return [m.child for m in self._members.values() if m.stage is not None]

    def running(self, now_s: float) -> set[str]:
        """Those that neither ended nor sleep nor are about to go."""
        return {
            name
            for name, member in self._members.items()
            if not member.doomed and member.wakes_s is None and member.serves_s <= now_s
        }

    def apply(self, action: Action, now_s: float) -> str:
        """Does what was decided; returns what that was, for people."""
        if action.kind == Kind.KILL_STAGE:
            victims = [
                member
                for member in self._members.values()
                if member.stage == action.stage and member.child.exit_code is None
            ]
        else:
            victims = [self._members[action.target]]
        for member in victims:
            self._take(member, action, now_s)
        names = ", ".join(sorted(member.child.name for member in victims))
        if action.stage is None:
            names += ", which leads"
        if action.kind == Kind.STOP:
            return f"{names}: {action.kind} for {action.pause_s:.1f} s"
        return f"{names}: {action.kind}"

    def tend(self, now_s: float, churn: Churn | None) -> list[str]:
        """Wakes who slept, replaces who is gone; returns what happened, for people.

        Raises:
            ProcessDied: A trainer ended that nobody killed.
        """
        news: list[str] = []
        for name, member in list(self._members.items()):
            if member.wakes_s is not None and now_s >= member.wakes_s:
                self._wake(member, now_s)
                news.append(f"{name}: SIGCONT")
            if member.child.exit_code is not None:
                news += self._ended(member, now_s, churn)
            elif member.told_to_leave_s is not None:
                news += self._still_leaving(member, now_s)
        due = [entry for entry in self._successors if entry[0] <= now_s]
        for entry in due:
            self._successors.remove(entry)
            child = self.start(entry[1])
            if entry[1] is not None:
                self.joined.append(child.name)
            news.append(f"{child.name}: starts")
        return news

    def wake_all(self, now_s: float) -> None:
        """Before the end: a stopped process could not end itself."""
        for member in self._members.values():
            if member.wakes_s is not None:
                self._wake(member, now_s)

    def _take(self, member: Member, action: Action, now_s: float) -> None:
        prefix = "trainer_" if member.stage is None else ""
        if action.kind == Kind.STOP:
            self.counts[prefix + "stops"] += 1
            member.child.popen.send_signal(signal.SIGSTOP)
            member.wakes_s = now_s + action.pause_s
            return
        member.doomed = True
        member.wakes_s = None
        if action.kind == Kind.LEAVE:
            self.counts[prefix + "leaves"] += 1
            member.child.popen.send_signal(signal.SIGTERM)
            member.told_to_leave_s = now_s
            member.replace_after_s = action.pause_s
            return
        self.counts[prefix + "kills"] += 1
        member.child.popen.kill()
        member.told_to_leave_s = None
        self._successors.append((now_s + action.pause_s, member.stage))

    def _wake(self, member: Member, now_s: float) -> None:
        member.child.popen.send_signal(signal.SIGCONT)
        member.wakes_s = None
        member.serves_s = now_s + WAKING_S

    def _ended(self, member: Member, now_s: float, churn: Churn | None) -> list[str]:
        name, code = member.child.name, member.child.exit_code
        if member.told_to_leave_s is not None:
            took_s = now_s - member.told_to_leave_s
            member.told_to_leave_s = None
            self._successors.append((now_s + member.replace_after_s, member.stage))
            if code == 0:
                return [f"{name}: left after {took_s:.1f} s"]
            self.counts["unclean_leaves"] += 1
            return [f"{name} did not leave cleanly: {_last_words(member.child)}"]
        if member.doomed:
            return []
        member.doomed = True
        if member.stage is None and code == 0:
            self.finished = True
            return []
        if member.stage is None:
            raise ProcessDied(member.child.obituary())
        self.counts["crashes"] += 1
        if churn is not None:
            self._successors.append((now_s + churn.pause_s(), member.stage))
        return [f"{name} {_last_words(member.child)}"]

    def _still_leaving(self, member: Member, now_s: float) -> list[str]:
        name = member.child.name
        late = now_s - member.told_to_leave_s > LEAVE_LIMIT_S
        if not late or name in self._slow_leavers:
            return []
        self._slow_leavers.add(name)
        return [f"{name} has not left after {LEAVE_LIMIT_S:.0f} s"]


def _last_words(child: Child) -> str:
    last_line = tail(child.log).splitlines()[-1]
    return f"{describe_exit(child.exit_code)}: {last_line} ({child.log})"
