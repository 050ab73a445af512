// store.h: keys, values and their expiry over the hash table. Values are byte strings beside their key in one piece of
// memory. A key that has expired is never seen again: whoever looks it up removes it, and store_expire goes over
// the table for the rest, a bounded time per call and only when something can be due.
#ifndef KV_STORE_H
#define KV_STORE_H

#include "dict.h"

#define NEVER INT64_C(0)
#define KEEP INT64_C(-1)
#define MAX_STRING ((size_t)512 << 20)

typedef struct {
    int64_t now;        // Unix time in milliseconds, as the event loop last saw it
    uint64_t expiring;  // keys with a time of expiry
    uint64_t expired;   // keys removed because of it, ever
    uint64_t hits, misses;
    uint64_t changes;
} Store;

extern Store store;

bool store_init(int64_t now);

// The entry of a key, or NULL. The place is for the calls below and holds until one of them returns.
Entry *store_find(Str key, Place *place);

// The same for commands that read: counts hits and misses.
Entry *store_read(Str key);

// Sets a value at the place where the key was looked for. `expiry`: Unix time in milliseconds, NEVER or KEEP.
// False if there is no memory; nothing has changed then.
bool store_put(Place *place, Str key, Str value, int64_t expiry);

// Makes an entry that store_link adds later and store_forget frees instead; for commands that set all or nothing.
Entry *store_make(Str key, Str value);
bool store_link(Entry *entry);
void store_forget(Entry *entry);

// Changes the value's length, keeping what fits and the expiry; what is added is zeros. The key may be new.
// The entry, or NULL if there is no memory.
Entry *store_resize(Place *place, Str key, size_t length);

// Sets or, by NEVER, clears the expiry of the entry at `place`; false if there is no memory.
bool store_set_expiry(Place *place, int64_t expiry);

void store_delete(Place *place);
void store_flush(void);

// Removes expired keys for at most about `budget_us` microseconds.
void store_expire(uint64_t budget_us);

// Milliseconds until store_expire should be called; -1: nothing to do until a key gets an expiry.
int64_t store_expire_wait(void);

#endif
