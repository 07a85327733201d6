// Operands and products of a warp: see ampere_emulated.h.
#include "emulation.h"

#include "ampere_emulated.h"

void warp_meets() { emulated_wait(EmulatedFibre::AT_SHUFFLE); }

// --- operands and products ---

// What the lanes of a warp lend each other: their words, for as long as `use` runs in all of them.
static const unsigned *emulated_lent[1024];
template <class Use> static void emulated_lend(const unsigned *words, Use use) {
    const unsigned self = emulated.current;
    emulated_lent[self] = words;
    emulated_wait(EmulatedFibre::AT_SHUFFLE);  // until every lane has lent
    use(emulated_lent + (self & ~31u));
    emulated_wait(EmulatedFibre::AT_SHUFFLE);  // until every lane has read
}

void load_matrices(unsigned address, unsigned *words) {
    if (address % 16) __builtin_trap();
    const unsigned lane = emulated_lane();
    emulated_lend(&address, [&](const unsigned *const *addresses) {
        for (unsigned matrix = 0; matrix < 4; matrix++)
            memcpy(words + matrix, emulated_at(addresses[8 * matrix + lane / 4][0] + lane % 4 * 4, 4), 4);
    });
}

// Element `element` of the words of a lane.
static float emulated_half(const unsigned *words, int element, char type) {
    return emulated_number((unsigned short)(words[element / 2] >> (16 * (element % 2))), type);
}

// A lane's own sums over 16 columns of A; `row_of_b` tells which row of B meets one: of 4 words of A, those of B, then
// the metadata, as they lie in `words`.
template <class RowOfB>
static void emulated_product(float (&d)[4], const unsigned *words, char type, RowOfB row_of_b) {
    const int lane = emulated_lane();
    emulated_lend(words, [&](const unsigned *const *lanes) {
        for (int i = 0; i < 4; i++) {
            const int high = i / 2, column = lane % 4 * 2 + i % 2;
            float total = 0.0f;
            for (int k = 0; k < 16; k++) {
                const int b = row_of_b(lanes + lane / 4 * 4, high, k);
                total += emulated_half(lanes[lane / 4 * 4 + k % 8 / 2], 4 * (k / 8) + 2 * high + k % 2, type) *
                         emulated_half(lanes[column * 4 + b % 8 / 2] + 4, 2 * (b / 8) + b % 2, type);
            }
            d[i] += total;
        }
    });
}

void emulated_multiply_dense(float (&d)[4], const unsigned *a, const unsigned *b, char type) {
    const unsigned words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    emulated_product(d, words, type, [](const unsigned *const *, int, int k) { return k; });
}

void emulated_multiply_sparse(float (&d)[4], const unsigned *a, const unsigned *b, unsigned places, int selector,
                              char type) {
    const unsigned words[9] = {a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], places};
    emulated_product(d, words, type, [=](const unsigned *const *quad, int high, int k) {
        const int group = k / 2;
        return group * 4 + emulated_place(quad[2 * selector + group / 4][8], 4 * high + group % 4, k % 2);
    });
}
