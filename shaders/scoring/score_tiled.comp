// scale_n mu_n.q + bias_n for a block of queries and points. A workgroup of 16 x 16 has a tile of
// 16 RESULTS_ROWS queries times 16 RESULTS_COLUMNS points; neighbouring workgroups have the same
// points, so that these are read from memory once. Slices of DEPTH quads of both pass through shared
// memory, as float32: while one is multiplied, the next is on its way to registers. A flat tile has
// little to multiply, so its slices are twice as deep, and shared memory holds one instead of two.
#version 450
#extension GL_EXT_control_flow_attributes : require
#include "interface.glsl"
#include "append_scores.glsl"

const uint TILE_ROWS = 16u * RESULTS_ROWS;
const uint TILE_COLUMNS = 16u * RESULTS_COLUMNS;
const bool FLAT = RESULTS_ROWS < 4u;
const uint DEPTH = FLAT ? 4u : 2u;
const uint SLOTS = FLAT ? 1u : 2u;  // for slices
const uint QUERY_LOADS = (DEPTH * TILE_ROWS + 255u) / 256u;  // quads that an invocation reads
const uint POINT_LOADS = (DEPTH * TILE_COLUMNS + 255u) / 256u;

// 8 neighbours access shared memory at once and store DEPTH quads of 8 / DEPTH rows; with this
// padding, these are in 8 different groups of banks. Reads are of one quad or of 16 consecutive ones.
const uint PAD = 8u / DEPTH;
const uint QUERY_PITCH = TILE_ROWS + PAD;
const uint POINT_PITCH = TILE_COLUMNS + PAD;
shared vec4 query_slices[SLOTS * DEPTH * QUERY_PITCH];
shared vec4 point_slices[SLOTS * DEPTH * POINT_PITCH];

// The quad of a slice that an invocation reads as its load number i: the line in x, the quad of the
// line in y. If there are fewer quads than invocations, some read what others read too, and don't
// store it.
uvec2 load_of(uint i, uint lines) {
    uint n = (gl_LocalInvocationIndex + 256u * i) % (DEPTH * lines);
    return uvec2(n / DEPTH, n % DEPTH);
}

bool stores(uint i, uint lines) {
    return DEPTH * lines % 256u == 0u || gl_LocalInvocationIndex + 256u * i < DEPTH * lines;
}

void main() {
    uint first_row = gl_WorkGroupID.x * TILE_ROWS;
    uint first_column = gl_WorkGroupID.y * TILE_COLUMNS;
    if (first_row >= params.rows || first_column >= params.columns) return;
    uint query_at[QUERY_LOADS];
    uint point_at[POINT_LOADS];
    uint query_to[QUERY_LOADS];
    uint point_to[POINT_LOADS];
    vec4 next_query[QUERY_LOADS];
    QUAD next_point[POINT_LOADS];

    // The first slice is the one that may be short, so that the loop has no checks. Lines beyond the
    // last repeat it, and their sums are not used.
    uint end = (quads - 1u) % DEPTH + 1u;
    for (uint i = 0u; i < QUERY_LOADS; ++i) {
        uvec2 load = load_of(i, TILE_ROWS);
        uint row = params.first_row + min(first_row + load.x, params.rows - 1u);
        query_at[i] = row * quads + min(load.y, quads - 1u);
        query_to[i] = load.y * QUERY_PITCH + load.x;
        vec4 query = queries[query_at[i]];
        next_query[i] = load.y < end ? query : vec4(0.0);
    }
    for (uint i = 0u; i < POINT_LOADS; ++i) {
        uvec2 load = load_of(i, TILE_COLUMNS);
        uint column = params.first + min(first_column + load.x, params.columns - 1u);
        point_at[i] = column * quads + min(load.y, quads - 1u);
        point_to[i] = load.y * POINT_PITCH + load.x;
        QUAD point = points[point_at[i]];
        next_point[i] = load.y < end ? point : QUAD(0);
    }
    for (uint i = 0u; i < QUERY_LOADS; ++i)
        if (stores(i, TILE_ROWS)) query_slices[query_to[i]] = next_query[i];
    for (uint i = 0u; i < POINT_LOADS; ++i)
        if (stores(i, TILE_COLUMNS)) point_slices[point_to[i]] = decode(next_point[i]);
    barrier();

    clear_sums();
    uint my_row = gl_LocalInvocationIndex / 16u;
    uint my_column = gl_LocalInvocationIndex % 16u;
    uint last = quads - min(quads, DEPTH);
    uint slot = 0u;  // of the slice that is multiplied
    for (uint at = end;; at += DEPTH) {  // `at`: where the next slice begins
        // In the end the last slice is read and stored again. If a condition prevented that, drivers
        // would wait for the reads where the condition ends, or move the reads to it.
        uint from = min(at, last);
        for (uint i = 0u; i < QUERY_LOADS; ++i) next_query[i] = queries[query_at[i] + from];
        for (uint i = 0u; i < POINT_LOADS; ++i) next_point[i] = points[point_at[i] + from];
        [[unroll]] for (uint depth = 0u; depth < DEPTH; ++depth) {
            uint q = slot * DEPTH + depth;
            vec4 point[RESULTS_COLUMNS];
            for (uint j = 0u; j < RESULTS_COLUMNS; ++j) point[j] = point_slices[q * POINT_PITCH + my_column + 16u * j];
            for (uint i = 0u; i < RESULTS_ROWS; ++i) {
                vec4 query = query_slices[q * QUERY_PITCH + my_row + 16u * i];
                for (uint e = 0u; e < 4u; ++e)
                    for (uint j = 0u; j < RESULTS_COLUMNS; ++j)
                        sums[i][j] = add_product(sums[i][j], query[e], point[j][e]);
            }
        }
        if (SLOTS == 1u)
            barrier();
        else
            slot = 1u - slot;
        for (uint i = 0u; i < QUERY_LOADS; ++i)
            if (stores(i, TILE_ROWS)) query_slices[slot * DEPTH * QUERY_PITCH + query_to[i]] = next_query[i];
        for (uint i = 0u; i < POINT_LOADS; ++i)
            if (stores(i, TILE_COLUMNS)) point_slices[slot * DEPTH * POINT_PITCH + point_to[i]] = decode(next_point[i]);
        if (at >= quads) break;
        barrier();
    }
    append_scores(first_row + my_row, 16u, first_column + my_column, 16u);
}
