"""The integrators of Langevin chains: integrators.toml as data, with the parts that backends run.

The build runs this file on its own, so it imports only the standard library.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("integrators.toml")

Kind = Literal["kick", "drift", "noise", "land"]


@dataclass(frozen=True)
class Part:
    """What a backend does for one or several moves of a step.

    kick: v += share h force. drift: a geodesic move for the time share h. noise: friction and noise
    for the time share h; `number` is 0 for the first noise of a step and 1 for the second.
    land: a geodesic move for the time share h; x is normalised; the force is evaluated there;
    v += kick h force; v is projected onto the tangent space.
    """

    kind: Kind
    share: float
    kick: float = 0.0
    number: int = 0


@dataclass(frozen=True)
class Integrator:
    """One row of the table.

    parts: of a step; with `metropolis`, of a leapfrog. friction: the share of h in each O. noises:
    how often a step draws noise.
    """

    name: str
    source: str
    metropolis: bool
    moves: tuple[tuple[str, Fraction], ...]
    parts: tuple[Part, ...]

    @property
    def noises(self) -> int:
        return sum(letter == "O" for letter, _ in self.moves)

    @property
    def friction(self) -> float:
        return 1 / self.noises

    @property
    def evaluations(self) -> int:
        """Evaluations of the force per step; with `metropolis`, per leapfrog."""
        return sum(part.kind == "land" for part in self.parts)


def read(path: Path = TABLE) -> dict[str, Integrator]:
    """All integrators of a table, by name. Raises ValueError if a row isn't a valid splitting."""
    return {name: _row(name, row) for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def _row(name: str, row: dict[str, Any]) -> Integrator:
    where = f"{TABLE.name}: [{name}]"
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"{where}: expected a lower-case identifier")
    if unknown := set(row) - {"moves", "metropolis", "source"}:
        raise ValueError(f"{where} has unknown keys {sorted(unknown)}")
    if not row.get("source"):
        raise ValueError(f"{where} has no source; add the publication that the splitting comes from")
    moves = tuple(_move(where, text) for text in row["moves"])
    metropolis = bool(row.get("metropolis", False))
    _check(where, moves, metropolis)
    return Integrator(name, row["source"], metropolis, moves, _parts(moves[1:-1] if metropolis else moves))


def _move(where: str, text: str) -> tuple[str, Fraction]:
    letter, _, share = text.partition(" ")
    try:
        return letter, Fraction(share)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f'{where}: {text!r} is not a letter and a number, such as "B 1/2"') from error


def _check(where: str, moves: tuple[tuple[str, Fraction], ...], metropolis: bool) -> None:
    letters = "".join(letter for letter, _ in moves)
    if set(letters) != set("ABO"):
        raise ValueError(f"{where}: {letters!r} must have each of the letters A, B and O, and no other")
    if moves != moves[::-1]:
        raise ValueError(f"{where}: the moves are not a palindrome, so a step can't be reversed")
    for letter in "ABO":
        total = sum(share for other, share in moves if other == letter)
        if total != 1:
            raise ValueError(f"{where}: the shares of {letter} sum to {total}; expected 1")
    if letters.count("O") > 2:
        raise ValueError(f"{where}: a step has {letters.count('O')} O; expected at most 2")
    if any(a == b for a, b in pairwise(letters)):
        raise ValueError(f"{where}: {letters!r} repeats a letter; join the two moves")
    if metropolis and not (letters[0] == letters[-1] == "O"):
        raise ValueError(f"{where}: with metropolis, a step begins and ends with O")


def _parts(moves: tuple[tuple[str, Fraction], ...]) -> tuple[Part, ...]:
    """Turn moves into parts. If the force is needed at the position after an A, this A becomes a
    `land`, together with a B that follows it directly.
    """
    parts: list[Part] = []
    noises, landed = 0, False
    for at, (letter, share) in enumerate(moves):
        after = "".join(other for other, _ in moves[at + 1 :])
        if letter == "A":
            # The force is needed before the next A, or at the end of the step.
            landed = "B" in after.partition("A")[0] or "A" not in after
            kick = float(moves[at + 1][1]) if landed and after.startswith("B") else 0.0
            parts.append(Part("land" if landed else "drift", float(share), kick))
        elif letter == "B":
            if not (at and landed and moves[at - 1][0] == "A"):
                parts.append(Part("kick", float(share)))
        else:
            parts.append(Part("noise", float(share), number=noises))
            noises += 1
    return tuple(parts)


INTEGRATORS = read()
"""All integrators. Their names are the values of `scheme` in `Backend.langevin`."""
