// scale_n mu_n.q + bias_n for a block of queries and points. A workgroup of 16 x 16 has a tile of
// 16 RESULTS_ROWS queries times 16 RESULTS_COLUMNS points. Slices of DEPTH quads of both pass
// through shared memory, as float32.
#version 450
#include "interface.glsl"
#include "store_score.glsl"

const uint TILE_ROWS = 16u * RESULTS_ROWS;
const uint TILE_COLUMNS = 16u * RESULTS_COLUMNS;
const uint DEPTH = 4u;

// Two quads of padding: 8 neighbours access shared memory at once and store 4 quads of 2 rows; 2 q
// + row then gives 8 different groups of banks. (With one quad, two of them would collide.) Reads
// are of one quad or of 16 consecutive ones.
const uint PAD = 2u;
shared vec4 query_slice[DEPTH][TILE_ROWS + PAD];
shared vec4 point_slice[DEPTH][TILE_COLUMNS + PAD];

void load_slices(uint first_quad) {
    uint first_row = gl_WorkGroupID.y * TILE_ROWS;
    uint first_column = gl_WorkGroupID.x * TILE_COLUMNS;
    for (uint n = gl_LocalInvocationIndex; n < DEPTH * TILE_ROWS; n += 256u) {
        uint q = first_quad + n % DEPTH;
        uint row = first_row + n / DEPTH;
        bool inside = q < quads && row < params.rows;
        query_slice[n % DEPTH][n / DEPTH] = inside ? queries[(params.first_row + row) * quads + q] : vec4(0.0);
    }
    for (uint n = gl_LocalInvocationIndex; n < DEPTH * TILE_COLUMNS; n += 256u) {
        uint q = first_quad + n % DEPTH;
        uint column = first_column + n / DEPTH;
        point_slice[n % DEPTH][n / DEPTH] =
            q < quads && column < params.columns ? decode(points[(params.first + column) * quads + q]) : vec4(0.0);
    }
}

void main() {
    if (gl_WorkGroupID.y * TILE_ROWS >= params.rows || gl_WorkGroupID.x * TILE_COLUMNS >= params.columns) return;
    uint my_row = gl_LocalInvocationIndex / 16u;
    uint my_column = gl_LocalInvocationIndex % 16u;
    float sums[RESULTS_ROWS][RESULTS_COLUMNS];
    for (uint i = 0u; i < RESULTS_ROWS; ++i)
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j) sums[i][j] = 0.0;

    for (uint first_quad = 0u; first_quad < quads; first_quad += DEPTH) {
        load_slices(first_quad);
        barrier();
        for (uint q = 0u; q < DEPTH; ++q) {
            vec4 point[RESULTS_COLUMNS];
            for (uint j = 0u; j < RESULTS_COLUMNS; ++j) point[j] = point_slice[q][my_column + 16u * j];
            for (uint i = 0u; i < RESULTS_ROWS; ++i) {
                vec4 query = query_slice[q][my_row + 16u * i];
                for (uint j = 0u; j < RESULTS_COLUMNS; ++j) sums[i][j] = add_products(sums[i][j], query, point[j]);
            }
        }
        barrier();
    }
    for (uint i = 0u; i < RESULTS_ROWS; ++i)
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j)
            store_score(gl_WorkGroupID.y * TILE_ROWS + my_row + 16u * i,
                        gl_WorkGroupID.x * TILE_COLUMNS + my_column + 16u * j, sums[i][j]);
}
