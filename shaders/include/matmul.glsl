// Shared by the kernels of matrix products: out = alpha a b + beta c for each matrix of a batch.
// A batch has up to three axes; batch_1 and batch_2 are the sizes of the inner two. Strides and
// offsets count elements; a stride of 0 repeats one element.
//
// The inner axis may be cut into parts of `part` elements. gl_WorkGroupID.y is then the part's
// number, and each part's sums go to a place of their own in a dense `result`: matmul_join adds them
// up.
//
// interface.glsl must define the bindings a, b, c and result, and the push constants of
// matmul_tiled; the specialisation constant ADDED is 1 if c is added.
#ifndef EBMVK_MATMUL_GLSL
#define EBMVK_MATMUL_GLSL

struct Places {  // where this workgroup's matrices begin, and its part of the inner axis
    uint a, b, c, result, begin, end;
};

Places places_of_group() {
    uint z = gl_WorkGroupID.z;
    uvec3 at = uvec3(z / (batch_1 * batch_2), z / batch_2 % batch_1, z % batch_2);
    Places to;
    to.a = a_offset + at.x * a_batch_0 + at.y * a_batch_1 + at.z * a_batch_2;
    to.b = b_offset + at.x * b_batch_0 + at.y * b_batch_1 + at.z * b_batch_2;
    to.c = c_offset + at.x * c_batch_0 + at.y * c_batch_1 + at.z * c_batch_2;
    to.result = result_offset + at.x * result_batch_0 + at.y * result_batch_1 + at.z * result_batch_2;
    to.result += gl_WorkGroupID.y * gl_NumWorkGroups.z * rows * columns;
    to.begin = gl_WorkGroupID.y * part;
    to.end = min(to.begin + part, inner);
    return to;
}

// The first row and column of this workgroup's tile. Tiles are numbered in bands of up to 8 rows of
// tiles, from column to column, so that workgroups that run together share rows and columns.
uvec2 tile_of_group(uvec2 size) {
    uint down = (rows + size.x - 1u) / size.x;
    uint across = (columns + size.y - 1u) / size.y;
    uint first = gl_WorkGroupID.x / (8u * across) * 8u;
    uint band = min(down - first, 8u);
    uint in_band = gl_WorkGroupID.x - first * across;
    return uvec2(first + in_band % band, in_band / band) * size;
}

void store_product(Places to, uint row, uint column, float sum) {
    if (row >= rows || column >= columns) return;
    float value = sum;
    if (gl_NumWorkGroups.y == 1u) {
        value *= alpha;
        if (ADDED != 0u) value = fma(beta, c[to.c + row * c_row + column * c_column], value);
    }
    result[to.result + row * result_row + column * result_column] = value;
}

#endif
