// dict.h: the hash table: keys to entries. It grows and shrinks one bucket at a time (linear hashing, Litwin 1980): no
// pause, however large it is, and no second table beside it. A bucket is one cache line: eleven entries with one byte
// of each one's hash, and the link to an overflow bucket, which is rare. Buckets lie in segments of 64 KiB.
//
// Bucket i of level l holds the keys whose hash ends with the l bits of i. Read from its lowest bit on, a hash is a
// number; a bucket is then a range of numbers, and a split cuts the range in two. That number is the cursor of a scan,
// and why scans stay complete while the table changes its size.
#ifndef KV_DICT_H
#define KV_DICT_H

#include "alloc.h"

// A key with its value in one piece of memory: the lengths and the flag, then the time of expiry in milliseconds if there
// is one, the key, the value.
typedef struct {
    uint64_t head;
    char body[];
} Entry;

#define LENGTH_BITS 30
#define LENGTH_MASK ((UINT64_C(1) << LENGTH_BITS) - 1)
#define ENTRY_EXPIRES (UINT64_C(1) << 60)

static inline bool entry_expires(const Entry *e) {
    return (e->head & ENTRY_EXPIRES) != 0;
}

static inline Str entry_key(const Entry *e) {
    return (Str){e->body + (entry_expires(e) ? 8 : 0), e->head & LENGTH_MASK};
}

static inline Str entry_value(const Entry *e) {
    Str key = entry_key(e);
    return (Str){key.p + key.n, e->head >> LENGTH_BITS & LENGTH_MASK};
}

// When the entry expires (Unix time in milliseconds), 0: never.
static inline int64_t entry_expiry(const Entry *e) {
    return entry_expires(e) ? (int64_t)load64(e->body) : 0;
}

#define SLOTS 11
typedef struct {
    uint8_t tag[12];  // a byte of the hash, never 0; 0: the slot is free. The last one belongs to no slot and is 0
    Ref next;         // overflow bucket
    uint32_t due;     // of the whole chain, in its first bucket: nothing in it expires before; 0: nothing expires
    Ref entry[SLOTS];
} Bucket;

_Static_assert(sizeof(Bucket) == 64, "one cache line");

// Where a key is, or, if entry is NULL, would be.
typedef struct {
    uint64_t hash;
    Bucket *head;    // first bucket of the chain
    Bucket *bucket;  // the one that has it
    unsigned slot;
    Entry *entry;
} Place;

bool dict_init(void);

// Forgets everything; the memory of its entries has been dropped by the caller.
void dict_reset(void);

uint64_t dict_count(void);
uint32_t dict_buckets(void);
uint64_t dict_bytes(void);

// Finds a key. The place holds until the next insertion or removal.
bool dict_find(Str key, Place *place);

// Adds an entry whose key was not found at `place`, whose buckets it fills in; false if there is no memory.
bool dict_insert(Place *place, Entry *entry);

// Puts another entry in the place of one with the same key.
static inline void dict_replace(Place *place, Entry *entry) {
    place->bucket->entry[place->slot] = ref_of(entry);
    place->entry = entry;
}

// Takes out the entry at `place`; its memory is the caller's.
void dict_remove(Place *place);

// Hands every entry of the bucket at `cursor` to `each`, which may change nothing, and returns the next cursor, 0 at the
// end. Keys that are there all the time are seen at least once.
uint32_t dict_scan(uint32_t cursor, void (*each)(void *context, Entry *entry), void *context);

// The first bucket of chain `index`.
Bucket *dict_chain(uint32_t index);

// What a merge of two buckets takes from the order of the chains: the earliest `due` that has moved to a lower index.
extern uint32_t dict_moved_due;

#endif
