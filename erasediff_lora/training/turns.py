"""Taking turns: which of many come next, the more often the more each needs it, and none never."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEAST = 0.1
"""Weight of what needs no turn at all: it comes ten times more seldom than what needs most."""
MEMORY = 0.7
"""Share of an earlier need that is left after a new measurement."""


class Turns:
    """Deals out turns by weight.

    Everyone gathers its weight until its turn comes: the weights of the others decide how long that is, and a weight
    of at least LEAST that it comes.

    Args:
        names: Those who take turns.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.gathered = dict.fromkeys(self.names, 0.0)
        self.first: dict[str, float] = {}
        self.latest: dict[str, float] = {}

    def next(self, count: int) -> list[str]:
        """The `count` that have gathered most, in their order."""
        for name in self.names:
            self.gathered[name] += self.weight(name)
        chosen = set(sorted(self.names, key=lambda name: -self.gathered[name])[:count])
        for name in chosen:
            self.gathered[name] = 0.0
        return [name for name in self.names if name in chosen]

    def weight(self, name: str) -> float:
        """What is left of its need: a running mean over the first measurement of it; 1 before that."""
        if not self.first.get(name):
            return 1.0
        return min(1.0, max(LEAST, self.latest[name] / self.first[name]))

    def measured(self, needs: Mapping[str, float]) -> None:
        """Take note of what some need now."""
        for name, need in needs.items():
            self.first.setdefault(name, need)
            self.latest[name] = MEMORY * self.latest.get(name, need) + (1 - MEMORY) * need

    def state(self) -> dict[str, dict[str, float]]:
        """What `load_state` takes."""
        return {"gathered": self.gathered, "first": self.first, "latest": self.latest}

    def load_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Put what `state` returned back."""
        self.gathered, self.first, self.latest = (dict(state[key]) for key in ("gathered", "first", "latest"))
