"""Turns ebmvk/engine/integrators.toml into C++ and GLSL. CMake and shaders/generate.py run it.

integrators.py OUT     writes OUT/integrators.h: each row as a type whose parts are constants
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tables import load, write


def rows() -> list[Any]:
    """The integrators of the table."""
    return list(load("integrators").INTEGRATORS.values())


FIND = """\
// The number of an integrator in All and `table`.
inline std::size_t find(const std::string& name) {
  for (std::size_t i = 0; i < std::size(table); ++i)
    if (name == table[i].name) return i;
  throw std::invalid_argument("no integrator is named " + name);
}""".splitlines()


def header(integrators: list[Any]) -> str:
    """The rows as C++ types, and all of them as one tuple."""
    out = [
        "// Made from integrators.toml.",
        "#pragma once",
        '#include "integrator.h"',
        "",
        "#include <cstddef>",
        "#include <iterator>",
        "#include <stdexcept>",
        "#include <string>",
        "#include <tuple>",
        "",
        "namespace ebmvk::integrators {",
    ]
    for row in integrators:
        out += ["", f"struct {camel(row.name)} {{", f'  static constexpr const char* name = "{row.name}";']
        out.append(f"  static constexpr bool metropolis = {str(row.metropolis).lower()};")
        out.append(f"  static constexpr double friction = {row.friction!r};")
        parts = [f"{{Part::Kind::{part.kind}, {part.share!r}, {part.kick!r}, {part.number}}}" for part in row.parts]
        out += [f"  static constexpr Part parts[] = {{{', '.join(parts)}}};", "};"]
    out += ["", f"using All = std::tuple<{', '.join(camel(row.name) for row in integrators)}>;", ""]
    out += ["inline constexpr Description table[] = {"]
    for row in integrators:
        out.append(
            f'    {{"{row.name}", {str(row.metropolis).lower()}, {row.noises}, {row.friction!r}, {row.evaluations}}},'
        )
    out += ["};", "", *FIND]
    return "\n".join([*out, "", "}  // namespace ebmvk::integrators", ""])


def glsl(row: Any) -> str:
    """The moves of one row as the functions that langevin.comp and ghmc.comp call."""
    stages: list[list[Any]] = [[]]
    for part in row.parts:
        stages[-1].append(part)
        if part.kind == "land":
            stages.append([])
    *stages, rest = stages
    landings = [stage.pop() for stage in stages]
    # What is measured after the last landing serves the moves that follow it, too.
    after: list[list[Any]] = [[] for _ in stages[1:]] + [rest]
    out = [
        f"// Made from integrators.toml: {row.name}, {row.source}.",
        f"const uint STAGES = {len(landings)}u;  // evaluations of the energy",
        f"const uint NOISES = {row.noises}u;",
        '#include "chain.glsl"',
        "",
        "// Shares of the step size h.",
        by_stage("float landing_time", [repr(part.share) for part in landings]),
        by_stage("float landing_kick", [repr(part.kick) for part in landings]),
        "",
        *function("measure_before(uint stage, Bath bath)", [measured(stage) for stage in stages]),
        "",
        *function("measure_after(uint stage, Bath bath)", [measured(stage) for stage in after]),
        "",
    ]
    moves = []
    for number, stage in enumerate(stages):
        # The speed is known after a kick, and at the start of a step of an unadjusted integrator.
        known = (stage and stage[0].kind == "kick") or (number == 0 and not row.metropolis)
        moves.append([*([] if known else ["measure_speed();"]), *calls(stage)])
    out += function("move_before_landing(uint stage, float h, Bath bath)", moves)
    return "\n".join([*out, "", *function("move_after_landing(float h, Bath bath)", [calls(rest)]), ""])


def function(head: str, bodies: list[list[str]]) -> list[str]:
    """A function without a result: one body, or one for each stage."""
    out = [f"void {head} {{"]
    for number, body in enumerate(bodies):
        if len(bodies) == 1:
            out += [f"    {line}" for line in body]
        elif body:
            out += [f"    if (stage == {number}u) {{", *(f"        {line}" for line in body), "    }"]
    return [*out, "}"]


def measured(parts: list[Any]) -> list[str]:
    """The call that measures what the parts need, with their first noise if there is one."""
    noises = [f"{part.number}u" for part in parts if part.kind == "noise"]
    return [f"measure(bath, {(noises or ['NO_NOISE'])[0]});"]


def calls(parts: list[Any]) -> list[str]:
    """The moves between two evaluations. A second noise needs new inner products."""
    out: list[str] = []
    noises = 0
    for part in parts:
        if part.kind == "noise":
            noises += 1
            if noises > 1:
                out += ["settle();", f"measure(bath, {part.number}u);"]
        out.append(call(part))
    return out


def by_stage(name: str, values: list[str]) -> str:
    choice = values[-1]
    if len(set(values)) > 1:
        for number in reversed(range(len(values) - 1)):
            choice = f"stage == {number}u ? {values[number]} : {choice}"
    return f"{name}(uint stage) {{ return {choice}; }}"


def call(part: Any) -> str:
    return {
        "kick": f"kick({part.share!r}, h); measure_speed();",
        "drift": f"geodesic({part.share!r} * h, squared_speed);",
        "noise": f"heat_{part.number + 1}(bath);",
    }[part.kind]


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def main() -> None:
    write(Path(sys.argv[1]) / "integrators.h", header(rows()))


if __name__ == "__main__":
    main()
