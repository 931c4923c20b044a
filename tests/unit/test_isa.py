"""Reading RADV's disassembly, and estimating times from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.isa_estimate import CHIPS, RX_6650_XT, Plan, cost, estimate, iterations, lds_bytes, registers, throughput
from bench.isa_text import Instruction, count, parse

CODE = """Assembly
BB0:
	s_mov_b32 s0, s3                                            ; be800303
	s_cbranch_scc1 BB9                                          ; bf850006
BB1:
	v_mov_b32_e32 v1, 0                                         ; 7e020280
BB2:
	s_cbranch_scc0 BB4                                          ; bf840001
BB3:
	buffer_load_dword v9, v8, s[4:7], 0 offen                   ; e0301000 80010908
	s_waitcnt vmcnt(0)                                          ; bf8c3f70
	v_mul_f32_e32 v1, v9, v1                                    ; 10020309
BB4:
	ds_read_b128 v[2:5], v0                                     ; dbfc0000 02000000
	ds_write_b64 v0, v[2:3]                                     ; d9340000 00000200
	s_waitcnt lgkmcnt(1)                                        ; bf8cc17f
BB5:
	v_fma_f32 v1, v2, v3, v1                                    ; d54b0001 04060702
	v_fmac_f32_e32 v1, v4, v5                                   ; 56020b04
	v_mad_u32_u24 v6, v0, 16, v7                                ; d5430006 041d2100
	v_dual_fmac_f32 v10, v2, v3 :: v_dual_mov_b32 v11, v4       ; c8002716 0a082d14
	s_cbranch_vccnz BB5                                         ; bf87fffa
BB6:
	buffer_load_dwordx4 v[12:15], v8, s[4:7], 0 offen           ; e0381000 80010c08
	s_waitcnt vmcnt(0)                                          ; bf8c3f70
	s_barrier                                                   ; bf8a0000
	s_branch BB2                                                ; bf82ffee
BB9:
	buffer_store_dword v1, v8, s[4:7], 0 offen                  ; e0701000 80010108
	s_endpgm                                                    ; bf810000
"""


def test_instructions_are_counted_by_class() -> None:
    """An integer product isn't a multiply-add; a dual instruction is two."""
    kinds = count(parse(CODE).instructions)
    assert kinds == {
        "fma": 3, "valu": 4, "lds": 2, "load": 2, "store": 1, "barrier": 1, "branch": 5, "wait": 3, "salu": 1,
    }  # fmt: skip


def test_loops_are_nested_and_own_their_instructions() -> None:
    code = parse(CODE)
    outer, inner = code.all_loops()
    assert (outer.first, outer.last, outer.depth) == (2, 6, 1)
    assert (inner.first, inner.last, inner.depth) == (5, 5, 2)
    assert outer.inside == [inner]
    assert count(outer.own)["load"] == 2
    assert count(inner.own) == {"fma": 3, "valu": 2, "branch": 1}
    assert [instruction.opcode for instruction in code.outside][:3] == ["s_mov_b32", "s_cbranch_scc1", "v_mov_b32_e32"]


def test_the_hottest_loop_has_the_multiply_adds() -> None:
    assert count(parse(CODE).hottest())["fma"] == 3
    without = "\n".join(line for line in CODE.splitlines() if "fma" not in line)
    assert count(parse(without).hottest())["load"] == 2
    assert len(parse("BB0:\n\ts_endpgm ; bf810000\n").hottest()) == 1


def test_what_a_branch_skips_with_a_load_is_optional() -> None:
    """The whole code, which an early exit skips, isn't optional, nor is the rest of a loop at its
    end."""
    optional = [instruction.opcode for instruction in parse(CODE).instructions if instruction.optional]
    assert optional == ["buffer_load_dword", "s_waitcnt", "v_mul_f32_e32"]


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="RADV's disassembly"):
        parse("ACO IR\nBB0\n")


def test_operands_name_their_registers() -> None:
    assert registers("v[2:4], -v7, s[0:1], |v1|, 0x10") == [["v2", "v3", "v4"], ["v7"], [], ["v1"], []]


@pytest.mark.parametrize(
    ("opcode", "size"),
    [("ds_read_b128", 16), ("ds_write_b64", 8), ("ds_read2_b32", 8), ("ds_load_2addr_b64", 16), ("ds_add_u32", 4)],
)
def test_shared_memory_accesses_have_their_bytes(opcode: str, size: int) -> None:
    assert lds_bytes(opcode) == size


@pytest.mark.parametrize(
    ("family", "wave", "vgprs", "lds", "group", "waves"),
    [
        ("navi23", 32, 1, 0, 32, 16),  # slots
        ("navi23", 64, 104, 16896, 256, 4),  # registers: 512 / 104
        ("navi23", 32, 160, 28160, 256, 6),
        ("navi23", 64, 16, 9728, 64, 3.25),  # shared memory: 13 workgroups for 4 SIMDs
        ("navi31", 64, 104, 0, 256, 7),  # 768 / 108
        ("vega10", 64, 104, 16896, 256, 2),  # 256 / 104
        ("vega10", 64, 4, 0, 64, 10),
    ],
)
def test_occupancy_follows_registers_shared_memory_and_slots(
    family: str, wave: int, vgprs: int, lds: int, group: int, waves: float
) -> None:
    assert CHIPS[family].waves(wave, vgprs, lds, group) == waves


def test_registers_are_free_up_to_the_slots() -> None:
    assert [CHIPS["navi23"].free(wave) for wave in (32, 64)] == [64, 32]
    assert CHIPS["navi31"].free(32) == 96
    assert CHIPS["navi23"].waves(32, 64, 0, 32) == 16 > CHIPS["navi23"].waves(32, 65, 0, 32)


def walk(text: str, wave: int = 32) -> tuple[float, float, float]:
    instructions = parse("BB0:\n" + "\n".join(f"\t{line}" for line in text.splitlines())).instructions
    found = cost(RX_6650_XT, instructions, wave, load_latency=600)
    return found.vector, found.lds, found.latency


def test_an_instruction_waits_for_the_registers_it_reads() -> None:
    free = walk("v_add_f32_e32 v1, v2, v3\nv_add_f32_e32 v4, v5, v6")
    chained = walk("v_add_f32_e32 v1, v2, v3\nv_add_f32_e32 v4, v1, v6")
    assert free == (2, 0, 2)
    assert chained == (2, 0, RX_6650_XT.latency_alu + 1)
    # fmac adds to its result, so it waits for it
    assert walk("v_fmac_f32_e32 v1, v2, v3\nv_fmac_f32_e32 v1, v5, v6") == chained


def test_a_wave_of_64_lanes_and_a_root_take_longer() -> None:
    assert walk("v_add_f32_e32 v1, v2, v3", wave=64)[0] == 2
    assert walk("v_sqrt_f32_e32 v1, v2")[0] == 4


def test_a_wait_is_for_all_loads_but_the_last_few() -> None:
    loads = "buffer_load_dword v1, v8, s[4:7], 0 offen\n" * 2
    assert walk(loads)[2] == 2
    assert walk(loads + "s_waitcnt vmcnt(1)")[2] == 601
    assert walk(loads + "s_waitcnt vmcnt(0)")[2] == 602
    assert walk(loads + "s_waitcnt lgkmcnt(0)")[2] == 2
    assert walk("ds_read_b128 v[2:5], v0\ns_waitcnt lgkmcnt(0)")[1:] == (4, 1 + RX_6650_XT.latency_lds + 4)


def test_throughput_lies_below_both_bounds() -> None:
    """One wave needs its latency; many are held up by the busiest unit only."""
    assert throughput(1, [10, 5], 100) == pytest.approx(1 / 100)
    for waves in (2, 5, 16):
        assert throughput(waves, [10, 5], 100) < min(waves / 100, 1 / 10)
    assert throughput(10_000, [10, 5], 100) == pytest.approx(1 / 10, rel=1e-3)
    assert throughput(0.5, [10, 5], 100) == pytest.approx(0.5 / 100)
    one, two = (throughput(waves, [10, 5], 100) for waves in (1, 2))
    assert throughput(1.25, [10, 5], 100) == pytest.approx(0.75 * one + 0.25 * two)


PLAN = Plan(groups=64, memory=(3,), around=7, other=9, traffic=1e9)


def test_a_plan_says_how_often_loops_run() -> None:
    code = parse(CODE)
    assert [times for _, times in iterations(code, PLAN)] == [3, 9]
    with pytest.raises(ValueError, match="1 memory loops found, and the plan has 2"):
        iterations(code, replace(PLAN, memory=(3, 4)))


def test_a_plan_is_checked_with_its_multiply_adds() -> None:
    code = parse(CODE)
    right = replace(PLAN, multiply_adds=9 * 3)
    estimate(RX_6650_XT, code, 32, 16, 64, right)
    with pytest.raises(ValueError, match="27 multiply-adds counted, and 40 are needed"):
        estimate(RX_6650_XT, code, 32, 16, 64, replace(right, multiply_adds=40))


def test_an_estimate_is_the_longer_of_waves_and_bytes() -> None:
    code = parse(CODE)
    slow = estimate(RX_6650_XT, code, 32, 16, 64, PLAN)
    assert slow.bound == "memory"
    assert slow.seconds == slow.parts["memory"] == pytest.approx(1e9 / 280e9)
    cached = estimate(RX_6650_XT, code, 32, 16, 64, replace(PLAN, kept=1000))
    assert cached.seconds == pytest.approx(1e9 / 993e9)
    busy = estimate(RX_6650_XT, code, 32, 16, 64, replace(PLAN, traffic=0, groups=10**6))
    assert busy.seconds > max(busy.parts["vector unit"], busy.parts["latency"])


def test_skipped_instructions_cost_nothing() -> None:
    whole, skipped = (
        estimate(RX_6650_XT, parse(CODE), 32, 16, 64, replace(PLAN, skips=skips)).parts["latency"]
        for skips in (False, True)
    )
    assert skipped < 0.7 * whole  # one of two loads


def test_the_peak_is_that_of_the_card() -> None:
    assert RX_6650_XT.flops == pytest.approx(10.8e12, rel=0.01)
    assert RX_6650_XT.least_seconds(65.5e9, 131e6) == pytest.approx(6.1e-3, rel=0.01)


def test_an_opcode_without_a_pattern_is_other() -> None:
    assert Instruction("exp_mrt0", "").kind == "other"
