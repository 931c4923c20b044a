// Matrix products through shared memory. A workgroup of DOWN x GROUP / DOWN invocations has a tile;
// each invocation sums ROWS x COLUMNS of its elements, in the order of the inner axis. Slices of STEP
// elements of that axis pass through shared memory; while one is multiplied, the next is on its way
// to registers. The inner axis has at least STEP elements.
//
// An invocation reads quads of four elements. A_ALONG says which four of a:
//   0  four along the inner axis, whose stride must be 1
//   1  four along the inner axis, with any strides; neighbouring invocations read neighbouring rows
//   2  four neighbouring rows, whose stride must be 1 and whose number a multiple of 4
// B_ALONG: the same for b, with columns instead of rows. Shared memory holds such quads.
#version 450
#extension GL_EXT_control_flow_attributes : require
#include "interface.glsl"
#include "matmul.glsl"

const uint ACROSS = GROUP / DOWN;
const uint TILE_ROWS = DOWN * ROWS;
const uint TILE_COLUMNS = ACROSS * COLUMNS;
const uint STEP = 4u * DEPTH;
const uint A_QUADS = DEPTH * TILE_ROWS;  // of a slice
const uint B_QUADS = DEPTH * TILE_COLUMNS;
const uint A_LOADS = (A_QUADS + GROUP - 1u) / GROUP;  // quads that an invocation reads
const uint B_LOADS = (B_QUADS + GROUP - 1u) / GROUP;

// 8 neighbours access shared memory at once. If they hold DEPTH quads of 8 / DEPTH rows, this
// padding gives them 8 different groups of banks.
const uint PAD = 8u / DEPTH;
const uint A_PITCH = A_ALONG == 2u ? TILE_ROWS / 4u : TILE_ROWS + PAD;
const uint B_PITCH = B_ALONG == 2u ? TILE_COLUMNS / 4u : TILE_COLUMNS + PAD;
shared vec4 a_slice[(A_ALONG == 2u ? STEP : DEPTH) * A_PITCH];
shared vec4 b_slice[(B_ALONG == 2u ? STEP : DEPTH) * B_PITCH];

struct Load {
    uint line, inner;  // of the first element in the tile
    uint slot;         // in the slice
};

// An invocation's load number i. `lines` are rows or columns of the tile. If a slice has fewer quads
// than there are invocations, some read what others read too, and don't store it.
Load load_of(uint i, uint along, uint lines, uint pitch) {
    uint n = (gl_LocalInvocationIndex + GROUP * i) % (DEPTH * lines);
    if (along == 2u) return Load(n % (lines / 4u) * 4u, n / (lines / 4u), n);
    if (along == 1u) return Load(n % lines, n / lines * 4u, n / lines * pitch + n % lines);
    return Load(n / DEPTH, n % DEPTH * 4u, n % DEPTH * pitch + n / DEPTH);
}

bool stores(uint i, uint quads) { return quads % GROUP == 0u || gl_LocalInvocationIndex + GROUP * i < quads; }

uint row_of(uint i) {
    uint me = gl_LocalInvocationIndex / ACROSS;
    return A_ALONG == 2u ? 4u * me + i % 4u + i / 4u * (4u * DOWN) : me + DOWN * i;
}

uint column_of(uint j) {
    uint me = gl_LocalInvocationIndex % ACROSS;
    return B_ALONG == 2u ? 4u * me + j % 4u + j / 4u * (4u * ACROSS) : me + ACROSS * j;
}

// The place of the last line that a load may begin with: those beyond repeat it, and their sums
// aren't stored.
uint last_line(uint along, uint lines) { return along == 2u ? lines - 4u : lines - 1u; }

void main() {
    Places to = places_of_group();
    uvec2 first = tile_of_group(uvec2(TILE_ROWS, TILE_COLUMNS));
    uint a_next_inner = A_ALONG == 0u ? 1u : a_inner;  // strides between the elements of a quad
    uint b_next_inner = B_ALONG == 0u ? 1u : b_inner;
    uint a_element = A_ALONG == 2u ? 1u : a_next_inner;
    uint b_element = B_ALONG == 2u ? 1u : b_next_inner;
    uint a_at[A_LOADS];
    uint b_at[B_LOADS];
    uint a_to[A_LOADS];
    uint b_to[B_LOADS];
    vec4 a_next[A_LOADS];
    vec4 b_next[B_LOADS];

    // The first slice is the one that may be short, so that the loop has no checks.
    uint end = to.begin + (to.end - to.begin - 1u) % STEP + 1u;
    for (uint i = 0u; i < A_LOADS; ++i) {
        Load load = load_of(i, A_ALONG, TILE_ROWS, A_PITCH);
        uint line = to.a + min(first.x + load.line, last_line(A_ALONG, rows)) * (A_ALONG == 2u ? 1u : a_row);
        a_at[i] = line + load.inner * a_next_inner;
        a_to[i] = load.slot;
        for (uint e = 0u; e < 4u; ++e) {
            uint k = to.begin + load.inner + (A_ALONG == 2u ? 0u : e);
            float value = a[line + min(k, end - 1u) * a_next_inner + (A_ALONG == 2u ? e : 0u)];
            a_next[i][e] = k < end ? value : 0.0;
        }
    }
    for (uint i = 0u; i < B_LOADS; ++i) {
        Load load = load_of(i, B_ALONG, TILE_COLUMNS, B_PITCH);
        uint line = to.b + min(first.y + load.line, last_line(B_ALONG, columns)) * (B_ALONG == 2u ? 1u : b_column);
        b_at[i] = line + load.inner * b_next_inner;
        b_to[i] = load.slot;
        for (uint e = 0u; e < 4u; ++e) {
            uint k = to.begin + load.inner + (B_ALONG == 2u ? 0u : e);
            float value = b[line + min(k, end - 1u) * b_next_inner + (B_ALONG == 2u ? e : 0u)];
            b_next[i][e] = k < end ? value : 0.0;
        }
    }

    float sums[ROWS][COLUMNS];
    for (uint i = 0u; i < ROWS; ++i)
        for (uint j = 0u; j < COLUMNS; ++j) sums[i][j] = 0.0;
    uint a_base = gl_LocalInvocationIndex / ACROSS;
    uint b_base = gl_LocalInvocationIndex % ACROSS;
    for (uint i = 0u; i < A_LOADS; ++i)
        if (stores(i, A_QUADS)) a_slice[a_to[i]] = a_next[i];
    for (uint i = 0u; i < B_LOADS; ++i)
        if (stores(i, B_QUADS)) b_slice[b_to[i]] = b_next[i];
    barrier();
    for (uint at = end;; at += STEP) {  // `at`: where the next slice begins
        // In the end the last slice is read and stored again. If a condition prevented that, drivers
        // would wait for the reads where the condition ends, or move the reads to it.
        uint from = min(at, inner - STEP);
        for (uint i = 0u; i < A_LOADS; ++i)
            for (uint e = 0u; e < 4u; ++e) a_next[i][e] = a[a_at[i] + from * a_next_inner + e * a_element];
        for (uint i = 0u; i < B_LOADS; ++i)
            for (uint e = 0u; e < 4u; ++e) b_next[i][e] = b[b_at[i] + from * b_next_inner + e * b_element];
        [[unroll]] for (uint q = 0u; q < DEPTH; ++q) {
            float right[COLUMNS][4];  // where b's quads are along the inner axis
            if (B_ALONG != 2u)
                for (uint j = 0u; j < COLUMNS; ++j) {
                    vec4 quad = b_slice[q * B_PITCH + b_base + ACROSS * j];
                    for (uint e = 0u; e < 4u; ++e) right[j][e] = quad[e];
                }
            if (A_ALONG == 2u) {
                for (uint e = 0u; e < 4u; ++e) {
                    if (B_ALONG == 2u)
                        for (uint j = 0u; j < COLUMNS; j += 4u) {
                            vec4 quad = b_slice[(4u * q + e) * B_PITCH + b_base + ACROSS * (j / 4u)];
                            for (uint f = 0u; f < 4u; ++f) right[j + f][e] = quad[f];
                        }
                    for (uint i = 0u; i < ROWS; i += 4u) {
                        vec4 left = a_slice[(4u * q + e) * A_PITCH + a_base + DOWN * (i / 4u)];
                        for (uint f = 0u; f < 4u; ++f)
                            for (uint j = 0u; j < COLUMNS; ++j)
                                sums[i + f][j] = fma(left[f], right[j][e], sums[i + f][j]);
                    }
                }
            } else {
                if (B_ALONG == 2u)
                    for (uint e = 0u; e < 4u; ++e)
                        for (uint j = 0u; j < COLUMNS; j += 4u) {
                            vec4 quad = b_slice[(4u * q + e) * B_PITCH + b_base + ACROSS * (j / 4u)];
                            for (uint f = 0u; f < 4u; ++f) right[j + f][e] = quad[f];
                        }
                for (uint i = 0u; i < ROWS; ++i) {
                    vec4 left = a_slice[q * A_PITCH + a_base + DOWN * i];
                    for (uint e = 0u; e < 4u; ++e)
                        for (uint j = 0u; j < COLUMNS; ++j) sums[i][j] = fma(left[e], right[j][e], sums[i][j]);
                }
            }
        }
        barrier();
        for (uint i = 0u; i < A_LOADS; ++i)
            if (stores(i, A_QUADS)) a_slice[a_to[i]] = a_next[i];
        for (uint i = 0u; i < B_LOADS; ++i)
            if (stores(i, B_QUADS)) b_slice[b_to[i]] = b_next[i];
        if (at >= to.end) break;
        barrier();
    }
    for (uint i = 0u; i < ROWS; ++i)
        for (uint j = 0u; j < COLUMNS; ++j)
            store_product(to, first.x + row_of(i), first.y + column_of(j), sums[i][j]);
}
