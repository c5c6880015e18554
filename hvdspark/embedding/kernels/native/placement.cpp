// Where keys live, and the way there.
#include "kernels.h"

extern "C" {
// Tables of a key space, as placement.py declares it. A key is a table's number << id_bits | id.
struct Tables {
    int64_t id_bits, count;
    const int64_t* sizes;    // 0: unbounded, ids are hashed
    const int64_t* factors;  // of the permutation of a bounded one, below its size; as shifts
    const int64_t* shifts;
    const uint64_t* salts;
    const int64_t* homes;  // the bucket of all ids; -1: any
};
}

namespace {

INLINE int64_t table_of(const Tables& tables, int64_t key) { return key >> tables.id_bits; }
INLINE int64_t id_of(const Tables& tables, int64_t key) { return key & ((int64_t{1} << tables.id_bits) - 1); }

INLINE bool are_tables(const Tables& tables, const int64_t* keys, int64_t count) {
    bool known = true;
    for (int64_t i = 0; i < count; i++)
        known &= static_cast<uint64_t>(table_of(tables, keys[i])) < static_cast<uint64_t>(tables.count);
    return known;
}

// (id * factor + shift) mod size; all below size, which is below 2**62.
INLINE int64_t position(const Tables& tables, int64_t table, int64_t id) {
    const uint64_t size = static_cast<uint64_t>(tables.sizes[table]);
    const uint64_t left = static_cast<uint64_t>(id), right = static_cast<uint64_t>(tables.factors[table]);
    const uint64_t product = size <= (uint64_t{1} << 32)
                                 ? left * right % size
                                 : static_cast<uint64_t>(static_cast<unsigned __int128>(left) * right % size);
    const uint64_t moved = product + static_cast<uint64_t>(tables.shifts[table]);
    return static_cast<int64_t>(moved >= size ? moved - size : moved);
}

}  // namespace

// The bucket in [0, 1 << bucket_bits) of each key. Returns 0 where a key is of no table, else 1.
KERNEL int64_t kernels_buckets(const Tables* tables, const int64_t* keys, int64_t count, int64_t bucket_bits, int64_t* buckets) {
    if (!are_tables(*tables, keys, count)) return 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t table = table_of(*tables, keys[i]), id = id_of(*tables, keys[i]);
        if (tables->homes[table] >= 0)
            buckets[i] = tables->homes[table];
        else if (tables->sizes[table])
            buckets[i] = (position(*tables, table, id) << bucket_bits) / tables->sizes[table];
        else
            buckets[i] = static_cast<int64_t>(mix(static_cast<uint64_t>(id) ^ tables->salts[table]) >> (64 - bucket_bits));
    }
    return 1;
}

// The place of each key, of bounded tables, in the permutation of its table. Returns 0 where a key is of no table, else 1.
KERNEL int64_t kernels_positions(const Tables* tables, const int64_t* keys, int64_t count, int64_t* positions) {
    if (!are_tables(*tables, keys, count)) return 0;
    for (int64_t i = 0; i < count; i++)
        positions[i] = position(*tables, table_of(*tables, keys[i]), id_of(*tables, keys[i]));
    return 1;
}

// Sort by owner, as they come within one: order[place[i]] = i. ends: int64 [world_size], how many come before the end of
// each owner's. Returns 0 where an owner is not in [0, world_size); 2 where all are one owner's, and need no order: none is
// written; else 1.
KERNEL int64_t kernels_route(const int64_t* owners, int64_t count, int64_t world_size, int64_t* order, int64_t* place,
                             int64_t* ends) {
    std::memset(ends, 0, world_size * sizeof(int64_t));
    for (int64_t i = 0; i < count; i++) {
        if (static_cast<uint64_t>(owners[i]) >= static_cast<uint64_t>(world_size)) return 0;
        ends[owners[i]]++;
    }
    int64_t first = 0;
    bool alone = false;
    for (int64_t owner = 0; owner < world_size; owner++) {
        const int64_t size = ends[owner];
        alone |= size == count;
        ends[owner] = first;
        first += size;
    }
    if (alone) {
        for (int64_t owner = 0; owner < world_size; owner++) ends[owner] = owner + 1 < world_size ? ends[owner + 1] : count;
        return 2;
    }
    for (int64_t i = 0; i < count; i++) {
        place[i] = ends[owners[i]]++;
        order[place[i]] = i;
    }
    return 1;
}

// counts[slots[i]] += 1, each slot at most once; fresh[i]: whether it was 0.
KERNEL void kernels_meet(int32_t* counts, const int64_t* slots, int64_t count, uint8_t* fresh) {
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count) __builtin_prefetch(counts + slots[i + AHEAD], 1);
        fresh[i] = counts[slots[i]]++ == 0;
    }
}
