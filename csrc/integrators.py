"""Turns ebmvk/engine/integrators.toml into C++ and GLSL. CMake runs it, shaders/generate.py too.

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
        out.append(f'    {{"{row.name}", {str(row.metropolis).lower()}, {row.friction!r}, {row.evaluations}}},')
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
    out = [
        f"// Made from integrators.toml: {row.name}, {row.source}.",
        f"const uint STAGES = {len(landings)}u;  // evaluations of the energy",
        "",
        "// Shares of the step size h.",
        by_stage("float landing_time", [repr(part.share) for part in landings]),
        by_stage("float landing_kick", [repr(part.kick) for part in landings]),
        "",
        "void move_before_landing(uint stage, float h, Bath bath) {",
    ]
    for number, stage in enumerate(stages):
        # The speed is known after a kick, and where a step of an unadjusted integrator begins.
        known = (stage and stage[0].kind == "kick") or (number == 0 and not row.metropolis)
        lines = [] if known else ["measure_speed();"]
        lines += [call(part) for part in stage]
        if len(stages) == 1:
            out += [f"    {line}" for line in lines]
        elif lines:
            out += [f"    if (stage == {number}u) {{", *(f"        {line}" for line in lines), "    }"]
    out += ["}", "", "void move_after_landing(float h, Bath bath) {", *(f"    {call(part)}" for part in rest), "}"]
    return "\n".join([*out, ""])


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
