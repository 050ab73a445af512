// dict.c: linear hashing as described in dict.h.
#include "dict.h"

#include "hash.h"
#include "platform.h"

#if defined(__wasm_simd128__)
#include <wasm_simd128.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define SEGMENT_SHIFT 10
#define SEGMENT (1u << SEGMENT_SHIFT)
#define SEGMENT_BYTES (SEGMENT * sizeof(Bucket))
#define SEGMENTS 65536u  // 64 Mi buckets
#define FIRST_LEVEL 10   // never fewer buckets than one segment
#define GROW_LOAD 7      // entries per bucket above which it grows
#define SHRINK_LOAD 3    // and below which it shrinks
#define SLOT_MASK ((1u << SLOTS) - 1)

uint64_t hash_secret[2];
uint32_t dict_moved_due;

static Ref segments[SEGMENTS];
static uint32_t level = FIRST_LEVEL;  // 2^level buckets at the round's start
static uint32_t split;                // buckets of them that are split already
static uint32_t segment_count;
static uint64_t count, overflow_count;

// A bit for each slot that has this tag.
static inline unsigned match(const Bucket *b, uint8_t tag) {
#if defined(__wasm_simd128__)
    return wasm_i8x16_bitmask(wasm_i8x16_eq(wasm_v128_load(b), wasm_i8x16_splat((int8_t)tag))) & SLOT_MASK;
#elif defined(__SSE2__)
    __m128i tags = _mm_loadu_si128((const __m128i *)(const void *)b);
    return (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(tags, _mm_set1_epi8((char)tag))) & SLOT_MASK;
#else
    unsigned found = 0;
    for (unsigned i = 0; i < SLOTS; i++) found |= (unsigned)(b->tag[i] == tag) << i;
    return found;
#endif
}

static inline uint8_t tag_of(uint64_t hash) {
    uint8_t tag = (uint8_t)(hash >> 56);
    return tag ? tag : 1;
}

static inline uint32_t buckets(void) {
    return (1u << level) + split;
}

static inline Bucket *bucket_at(uint32_t index) {
    return (Bucket *)at(segments[index >> SEGMENT_SHIFT]) + (index & (SEGMENT - 1));
}

static inline uint32_t index_of(uint64_t hash) {
    uint32_t index = (uint32_t)hash & ((1u << level) - 1);
    return index < split ? (uint32_t)hash & ((2u << level) - 1) : index;
}

Bucket *dict_chain(uint32_t index) {
    return bucket_at(index);
}

uint64_t dict_count(void) {
    return count;
}

uint32_t dict_buckets(void) {
    return buckets();
}

uint64_t dict_bytes(void) {
    return (uint64_t)segment_count * SEGMENT_BYTES + overflow_count * sizeof(Bucket);
}

static bool add_segment(void) {
    if (segment_count == SEGMENTS) return false;
    void *fresh = mem_alloc(HEAP_STORE, SEGMENT_BYTES);
    if (!fresh) return false;
    memset(fresh, 0, SEGMENT_BYTES);
    segments[segment_count++] = ref_of(fresh);
    return true;
}

// The first segment is not part of the heap that is dropped with the keys: there is always one.
bool dict_init(void) {
    void *first = mem_alloc(HEAP_CONN, SEGMENT_BYTES);
    if (!first) return false;
    segments[0] = ref_of(first);
    platform_random(hash_secret, sizeof hash_secret);
    dict_reset();
    return true;
}

void dict_reset(void) {
    memset(at(segments[0]), 0, SEGMENT_BYTES);
    level = FIRST_LEVEL;
    split = 0;
    segment_count = 1;
    count = overflow_count = 0;
}

bool dict_find(Str key, Place *place) {
    uint64_t hash = hash_bytes(key.p, key.n);
    uint8_t tag = tag_of(hash);
    Bucket *b = bucket_at(index_of(hash));
    place->hash = hash;
    place->head = b;
    for (;;) {
        for (unsigned found = match(b, tag); found; found &= found - 1) {
            unsigned slot = (unsigned)__builtin_ctz(found);
            Entry *e = at(b->entry[slot]);
            if (likely((e->head & LENGTH_MASK) == key.n && same_bytes(entry_key(e).p, key.p, key.n))) {
                place->bucket = b;
                place->slot = slot;
                place->entry = e;
                return true;
            }
        }
        if (likely(!b->next)) break;
        b = at(b->next);
    }
    place->entry = NULL;
    return false;
}

// A list of empty overflow buckets, linked by `next`.
typedef struct {
    Bucket *first;
} Spare;

static void spare_push(Spare *spare, Bucket *b) {
    b->next = spare->first ? ref_of(spare->first) : 0;
    spare->first = b;
}

static Bucket *overflow_bucket(Spare *spare) {
    Bucket *b = spare ? spare->first : NULL;
    if (b) {
        spare->first = b->next ? at(b->next) : NULL;
    } else {
        b = mem_alloc(HEAP_STORE, sizeof *b);
        if (!b) return NULL;
        overflow_count++;
    }
    memset(b, 0, sizeof *b);
    return b;
}

static void spare_free(Spare *spare) {
    while (spare->first) {
        Bucket *b = spare->first;
        spare->first = b->next ? at(b->next) : NULL;
        mem_free(b);
        overflow_count--;
    }
}

// Adds to a chain; says where. NULL if an overflow bucket is needed and cannot be had.
static Bucket *chain_add(Bucket *b, uint8_t tag, Ref entry, Spare *spare, unsigned *slot) {
    for (;;) {
        unsigned free = match(b, 0);
        if (likely(free)) {
            *slot = (unsigned)__builtin_ctz(free);
            b->tag[*slot] = tag;
            b->entry[*slot] = entry;
            return b;
        }
        if (!b->next) {
            Bucket *fresh = overflow_bucket(spare);
            if (!fresh) return NULL;
            b->next = ref_of(fresh);
        }
        b = at(b->next);
    }
}

// Deals the entries of one detached bucket out to two chains by one bit of their hashes.
static void deal(const Bucket *from, Bucket *low, Bucket *high, uint64_t bit, Spare *spare) {
    uint64_t touched = 0;
    for (unsigned i = 0; i < SLOTS; i++) {
        // All misses at once, before the first hash waits for its own.
        if (from->tag[i]) touched += load64(at(from->entry[i]));
    }
    __asm__ volatile("" : : "r"(touched));
    for (unsigned i = 0; i < SLOTS; i++) {
        if (!from->tag[i]) continue;
        Str key = entry_key(at(from->entry[i]));
        bool up = (hash_bytes(key.p, key.n) & bit) != 0;
        unsigned slot;
        // Never short of a bucket: splitting needs at most as many overflow buckets as the chain had.
        chain_add(up ? high : low, from->tag[i], from->entry[i], spare, &slot);
    }
}

// Splits the next bucket in turn. Without memory it stays as it is; chains get longer then, nothing else.
static void grow(void) {
    uint32_t fresh = buckets();
    if (fresh >> SEGMENT_SHIFT >= segment_count && !add_segment()) return;
    Bucket *low = bucket_at(split), *high = bucket_at(fresh), detached = *low;
    Spare spare = {NULL};
    memset(low, 0, sizeof *low);
    memset(high, 0, sizeof *high);
    low->due = high->due = detached.due;
    for (;;) {
        deal(&detached, low, high, UINT64_C(1) << level, &spare);
        if (!detached.next) break;
        Bucket *next = at(detached.next);
        detached = *next;
        spare_push(&spare, next);
    }
    spare_free(&spare);
    if (++split == 1u << level) {
        level++;
        split = 0;
    }
}

// The other way round: merges the last bucket into the one it was split from.
static void shrink(void) {
    uint32_t last = buckets() - 1, half = split ? level : level - 1;
    Bucket *low = bucket_at(last & ((1u << half) - 1)), *high = bucket_at(last);
    // One overflow bucket at most is needed beyond those of the two chains.
    Bucket *extra = overflow_bucket(NULL);
    if (!extra) return;
    Spare spare = {NULL};
    spare_push(&spare, extra);
    Bucket detached = *high;
    for (;;) {
        for (unsigned i = 0; i < SLOTS; i++) {
            unsigned slot;
            if (detached.tag[i]) chain_add(low, detached.tag[i], detached.entry[i], &spare, &slot);
        }
        if (!detached.next) break;
        Bucket *next = at(detached.next);
        detached = *next;
        spare_push(&spare, next);
    }
    spare_free(&spare);
    if (high->due && (!low->due || high->due < low->due)) low->due = high->due;
    if (high->due && (!dict_moved_due || high->due < dict_moved_due)) dict_moved_due = high->due;
    if (split == 0) {
        level--;
        split = 1u << level;
    }
    split--;
    // No coming and going at its edge: between growing and shrinking half of all keys must go or come.
    if (buckets() == (segment_count - 1) * SEGMENT) mem_free(at(segments[--segment_count]));
}

bool dict_insert(Place *place, Entry *entry) {
    if (unlikely(count >= (uint64_t)buckets() * GROW_LOAD)) {
        grow();
        place->head = bucket_at(index_of(place->hash));
    }
    place->bucket = chain_add(place->head, tag_of(place->hash), ref_of(entry), NULL, &place->slot);
    if (!place->bucket) return false;
    place->entry = entry;
    count++;
    return true;
}

void dict_remove(Place *place) {
    Bucket *hole = place->bucket;
    hole->tag[place->slot] = 0;
    hole->entry[place->slot] = 0;
    if (unlikely(place->head->next)) {
        // Overflow buckets stay full: the last one's last entry fills the hole.
        Bucket *before = place->head, *last = at(before->next);
        while (last->next) {
            before = last;
            last = at(last->next);
        }
        unsigned taken = ~match(last, 0) & SLOT_MASK;
        if (taken && last != hole) {
            unsigned slot = (unsigned)__builtin_ctz(taken);
            hole->tag[place->slot] = last->tag[slot];
            hole->entry[place->slot] = last->entry[slot];
            last->tag[slot] = 0;
            last->entry[slot] = 0;
            taken &= taken - 1;
        }
        if (!taken) {
            before->next = 0;
            mem_free(last);
            overflow_count--;
        }
    }
    place->entry = NULL;
    count--;
    if (unlikely(count < (uint64_t)buckets() * SHRINK_LOAD && buckets() > 1u << FIRST_LEVEL)) shrink();
}

static uint32_t reversed(uint32_t v) {
    v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
    v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
    v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(v);
}

uint32_t dict_scan(uint32_t cursor, void (*each)(void *context, Entry *entry), void *context) {
    uint32_t index = index_of(reversed(cursor));
    uint32_t bits = index < split || index >= 1u << level ? level + 1 : level;
    for (const Bucket *b = bucket_at(index);; b = at(b->next)) {
        for (unsigned taken = ~match(b, 0) & SLOT_MASK; taken; taken &= taken - 1) {
            each(context, at(b->entry[__builtin_ctz(taken)]));
        }
        if (!b->next) break;
    }
    uint32_t range = 32 - bits;
    return ((cursor >> range) + 1) << range;
}
