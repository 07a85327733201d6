/* Runs the kernels between the fences of AddressSanitizer and UndefinedBehaviorSanitizer: every level, pattern, type
 * and many shapes, each buffer exactly as large as the interface says. Compares with a plain loop.
 *
 *     see tests/kernels/test_cpu_sanitized.py, which builds it with all kernel sources
 */
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tamis_cpu.h"

static uint32_t state = 1;
static uint32_t next_random() { return state = state * 1664525u + 1013904223u, state >> 8; }
static float small() { return (float)((int)(next_random() % 17) - 8); } /* exact in bfloat16, and so are the sums */

static void put(std::vector<uint8_t> &to, size_t index, float value, int dtype) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (dtype == TAMIS_F32)
        memcpy(&to[index * 4], &value, 4);
    else
        to[index * 2] = (uint8_t)(bits >> 16), to[index * 2 + 1] = (uint8_t)(bits >> 24);
}

static float get(const std::vector<uint8_t> &from, size_t index, int dtype) {
    uint32_t bits = 0;
    if (dtype == TAMIS_F32)
        memcpy(&bits, &from[index * 4], 4);
    else
        bits = (uint32_t)from[index * 2] << 16 | (uint32_t)from[index * 2 + 1] << 24;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Random 2:4 or dense tiles, and the plain weight that they mean. */
static std::vector<uint8_t> make_tiles(int64_t n, int64_t k, int dtype, int pattern, std::vector<float> &plain) {
    const int64_t rows = (n + 15) / 16 * 16, tiles_k = (k + 31) / 32, size = dtype == TAMIS_F32 ? 4 : 2;
    const int64_t bytes = pattern == TAMIS_DENSE ? 512 * size : 64 + 256 * size;
    std::vector<uint8_t> packed((size_t)(rows / 16 * tiles_k * bytes));
    plain.assign((size_t)(n * k), 0.0f);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t group = 0; group < tiles_k * 8; group++) {
            const int64_t base = (row / 16 * tiles_k + group / 8) * bytes, g = group % 8, lane = row % 16;
            static const int pairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {2, 1}, {3, 1}, {2, 3}};
            const int *pair = pairs[next_random() % 6];
            for (int place = 0; place < 4; place++) {
                const int slot = pair[0] == place ? 0 : pair[1] == place ? 1 : -1;
                const int64_t column = group * 4 + place;
                const bool inside = row < n && column < k;
                if (pattern == TAMIS_DENSE || slot >= 0) {
                    const float value = inside ? small() : 0.0f;
                    if (inside) plain[(size_t)(row * k + column)] = value;
                    int64_t at; /* element index within the values */
                    if (pattern == TAMIS_DENSE)
                        at = size == 4 ? (g * 4 + place) * 16 + lane : (g * 2 + place / 2) * 32 + lane * 2 + place % 2;
                    else
                        at = size == 4 ? (g * 2 + slot) * 16 + lane : g * 32 + lane * 2 + slot;
                    const int64_t start = base + (pattern == TAMIS_DENSE ? 0 : 64);
                    std::vector<uint8_t> one(4);
                    put(one, 0, value, dtype);
                    memcpy(&packed[(size_t)(start + at * size)], one.data(), (size_t)size);
                }
            }
            if (pattern == TAMIS_TWO_FOUR) {
                uint32_t word;
                memcpy(&word, &packed[(size_t)(base + lane * 4)], 4);
                word |= (uint32_t)pair[0] << (2 * g) | (uint32_t)pair[1] << (16 + 2 * g);
                memcpy(&packed[(size_t)(base + lane * 4)], &word, 4);
            }
        }
    return packed;
}

static int failures = 0;

/* The nearest bfloat16, as between layers of those levels that multiply in bfloat16. */
static double narrowed(double x) {
    float value = (float)x;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&value, &bits, 4);
    return value;
}

/* A matrix beside a layer's own input, with its values. */
struct Beside {
    tamis_piece piece;
    std::vector<uint8_t> data;
};

/* Two of them behind `own` columns, the last one without room behind its last value. */
static std::vector<Beside> make_pieces(int layer, int64_t own, int64_t rows) {
    std::vector<Beside> made;
    for (int i = 0; i < 2; i++) {
        const int64_t column = (own + 15) / 16 * 16 + i * 16 * (next_random() % 2);
        const int64_t columns = 1 + next_random() % 40, stride = columns + next_random() % 3;
        const int dtype = (int)(next_random() % 2);
        Beside one = {{{nullptr, stride, dtype, 0}, column, columns, layer, 0}, {}};
        one.data.resize((size_t)(((rows - 1) * stride + columns) * (dtype == TAMIS_F32 ? 4 : 2)));
        for (int64_t j = 0; j < (rows - 1) * stride + columns; j++) put(one.data, (size_t)j, small(), dtype);
        made.push_back(one);
        own = column + columns;
    }
    return made;
}

static void check(int isa, int dtype, int pattern, int64_t rows, const std::vector<int64_t> &sizes, int threads, int io,
                  int joined) {
    const size_t count = sizes.size() - 1;
    std::vector<std::vector<Beside>> beside(count);
    std::vector<int64_t> ks(sizes.begin(), sizes.end() - 1);
    std::vector<tamis_piece> pieces;
    for (size_t i = 0; i < count; i++)
        if (joined >> i & 1) {
            beside[i] = make_pieces((int)i, sizes[i], rows);
            for (Beside &one : beside[i]) {
                one.piece.matrix.data = one.data.data();
                pieces.push_back(one.piece);
                ks[i] = one.piece.column + one.piece.columns;
            }
        }
    std::vector<std::vector<uint8_t>> packed(count);
    std::vector<std::vector<float>> plain(count), bias(count);
    std::vector<tamis_linear> layers(count);
    const tamis_epilogue relu = {TAMIS_RELU, 0, 0};
    for (size_t i = 0; i < count; i++) {
        packed[i] = make_tiles(sizes[i + 1], ks[i], dtype, pattern, plain[i]);
        bias[i].resize((size_t)sizes[i + 1]);
        for (float &b : bias[i]) b = small();
        layers[i] = {packed[i].data(), bias[i].data(), &relu, sizes[i + 1], ks[i], dtype, pattern, 1, 0};
    }
    const size_t k = (size_t)sizes[0], n = (size_t)sizes[count], size = io == TAMIS_F32 ? 4 : 2;
    std::vector<uint8_t> x((size_t)rows * k * size), y((size_t)rows * n * size, 0xff);
    for (size_t i = 0; i < (size_t)rows * k; i++) put(x, i, small(), io);
    tamis_chain chain = {layers.data(), nullptr, pieces.data(), nullptr, 0, {nullptr, (int64_t)k, io, 0},
                         {nullptr, (int64_t)n, io, 0}, (int64_t)k, (int32_t)count, (int32_t)pieces.size(), isa, threads};
    const int64_t need = tamis_chain_workspace(&chain, rows);
    std::vector<uint8_t> workspace((size_t)need, 0xff);
    chain.workspace = workspace.data();
    chain.workspace_bytes = need;
    const int status = tamis_chain_run(&chain, x.data(), y.data(), rows);
    chain.workspace_bytes = need - 1;
    if (tamis_chain_run(&chain, x.data(), y.data(), rows) != TAMIS_SMALL_WORKSPACE) failures++, puts("small workspace");
    if (status) failures++, printf("status %d\n", status);

    std::vector<double> h((size_t)rows * k), next;
    for (size_t i = 0; i < h.size(); i++) h[i] = get(x, i, io);
    const bool coarse = isa >= TAMIS_AVX512_BF16 && dtype == TAMIS_BF16;
    for (size_t l = 0; l < count; l++) {
        const size_t own = (size_t)sizes[l], kk = (size_t)ks[l], nn = (size_t)sizes[l + 1];
        next.assign((size_t)rows * kk, 0.0); /* zeros between the parts, whatever the weights there */
        for (size_t r = 0; r < (size_t)rows; r++) {
            for (size_t c = 0; c < own; c++) next[r * kk + c] = coarse && l ? narrowed(h[r * own + c]) : h[r * own + c];
            for (const Beside &one : beside[l])
                for (size_t c = 0; c < (size_t)one.piece.columns; c++)
                    next[r * kk + (size_t)one.piece.column + c] =
                        get(one.data, r * (size_t)one.piece.matrix.stride + c, one.piece.matrix.dtype);
        }
        h.swap(next);
        next.assign((size_t)rows * nn, 0.0);
        for (size_t r = 0; r < (size_t)rows; r++)
            for (size_t c = 0; c < nn; c++) {
                double sum = bias[l][c];
                for (size_t j = 0; j < kk; j++) sum += h[r * kk + j] * plain[l][c * kk + j];
                next[r * nn + c] = sum < 0 ? 0 : sum;
            }
        h.swap(next);
    }
    double largest = 1, worst = 0;
    for (double v : h) largest = std::fabs(v) > largest ? std::fabs(v) : largest;
    for (size_t i = 0; i < h.size(); i++) {
        const double error = std::fabs(get(y, i, io) - h[i]);
        if (!(error <= worst)) worst = error;
    }
    const double allowed = (count > 1 || io == TAMIS_BF16) ? 0.004 : 1e-6;
    if (!(worst <= allowed * largest)) {
        failures++;
        printf("isa %d dtype %d pattern %d rows %ld k %zu n %zu threads %d: error %g of %g\n", isa, dtype, pattern,
               (long)rows, k, n, threads, worst, largest);
    }
}

int main() {
    const int64_t rows[] = {1, 2, 3, 7, 16, 17, 33, 70, 130};
    const std::vector<int64_t> sizes[] = {{1, 1},    {5, 17},     {32, 16},      {33, 33},          {100, 50},
                                          {2100, 9}, {700, 130}, {13, 40, 17, 1}, {70, 33, 64, 31, 16}};
    const int mask = tamis_cpu_isa_mask();
    int checks = 0;
    for (int isa = 0; isa <= TAMIS_AMX; isa++)
        if (mask >> isa & 1)
            for (int dtype = 0; dtype < 2; dtype++)
                for (int pattern = 0; pattern < 2; pattern++)
                    for (const std::vector<int64_t> &s : sizes)
                        for (int64_t r : rows) {
                            if (s.size() == 2 && s[0] * s[1] * r > 3000000) continue;
                            check(isa, dtype, pattern, r, s, 1 + checks % 3, checks / 2 % 2, checks / 3 % 8);
                            checks++;
                        }
    printf("%d checks, %d failures, levels %x\n", checks, failures, (unsigned)mask);
    return failures != 0;
}
