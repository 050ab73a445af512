// store.c: entries and expiry. Every chain of the hash table keeps, in `due`, a time before which nothing in it expires
// (in ticks of 128 ms), so that looking for expired keys reads one cache line in a row per eleven keys and touches only
// entries that may be due.
#include "store.h"

#include "platform.h"

#define TICK_SHIFT 7
#define PASS_CHAINS 512      // chains looked at between two looks at the clock
#define PASS_PAUSE_MS 100    // from the end of one pass over the table to the next
#define STEP_PAUSE_MS 10     // between two steps of a pass
#define STEP_PAUSE_FULL_MS 2 // the same if most keys that are looked at have expired

Store store;

// The pass over the table that is under way.
static struct {
    bool running;
    uint32_t next_chain;
    uint32_t earliest;    // due of the chains seen so far, 0: none
    uint32_t next_due;    // earliest due set or left by the last pass, 0: none
    int64_t not_before;   // when the next step is
} pass;

static int64_t base_time;

static uint32_t tick_of(int64_t time) {
    int64_t tick = (time - base_time) >> TICK_SHIFT;
    return tick < 1 ? 1 : tick > UINT32_MAX ? UINT32_MAX : (uint32_t)tick;
}

static void earlier(uint32_t *due, uint32_t tick) {
    if (tick && (!*due || tick < *due)) *due = tick;
}

bool store_init(int64_t now) {
    store.now = now;
    base_time = now - (1 << TICK_SHIFT);
    return dict_init();
}

static size_t entry_bytes(size_t key, size_t value, bool expires) {
    return sizeof(Entry) + (expires ? 8 : 0) + key + value;
}

static void write_head(Entry *e, size_t key, size_t value, bool expires) {
    e->head = (uint64_t)key | (uint64_t)value << LENGTH_BITS | (expires ? ENTRY_EXPIRES : 0);
}

static void write_entry(Entry *e, Str key, Str value, int64_t expiry) {
    write_head(e, key.n, value.n, expiry != NEVER);
    char *p = e->body;
    if (expiry != NEVER) {
        store64(p, (uint64_t)expiry);
        p += 8;
    }
    copy_bytes(p, key.p, key.n);
    copy_bytes(p + key.n, value.p, value.n);
}

// Accounts for an expiry that was set on the entry at `place`.
static void note_expiry(Place *place, int64_t expiry) {
    if (expiry == NEVER) return;
    uint32_t tick = tick_of(expiry);
    earlier(&place->head->due, tick);
    earlier(&pass.next_due, tick);
}

void store_delete(Place *place) {
    Entry *e = place->entry;
    store.expiring -= entry_expires(e);
    dict_remove(place);
    mem_free(e);
}

Entry *store_find(Str key, Place *place) {
    if (!dict_find(key, place)) return NULL;
    Entry *e = place->entry;
    if (unlikely(entry_expires(e)) && entry_expiry(e) <= store.now) {
        store_delete(place);
        store.expired++;
        dict_find(key, place);  // the removal may have merged buckets
        return NULL;
    }
    return e;
}

Entry *store_read(Str key) {
    Place place;
    Entry *e = store_find(key, &place);
    if (e) {
        store.hits++;
    } else {
        store.misses++;
    }
    return e;
}

bool store_put(Place *place, Str key, Str value, int64_t expiry) {
    Entry *old = place->entry;
    if (expiry == KEEP) expiry = old ? entry_expiry(old) : NEVER;
    size_t bytes = entry_bytes(key.n, value.n, expiry != NEVER);
    if (old && mem_rounded(bytes) == mem_usable(old)) {
        bool expired_before = entry_expires(old);
        store.expiring -= expired_before;
        if (expired_before == (expiry != NEVER)) {
            // The key stays where it is.
            if (expiry != NEVER) store64(old->body, (uint64_t)expiry);
            write_head(old, key.n, value.n, expiry != NEVER);
            copy_bytes((char *)entry_key(old).p + key.n, value.p, value.n);
        } else {
            write_entry(old, key, value, expiry);
        }
    } else {
        Entry *fresh = mem_alloc(HEAP_STORE, bytes);
        if (!fresh) return false;
        write_entry(fresh, key, value, expiry);
        if (old) {
            store.expiring -= entry_expires(old);
            dict_replace(place, fresh);
            mem_free(old);
        } else if (!dict_insert(place, fresh)) {
            mem_free(fresh);
            return false;
        }
    }
    store.expiring += expiry != NEVER;
    note_expiry(place, expiry);
    return true;
}

Entry *store_make(Str key, Str value) {
    Entry *fresh = mem_alloc(HEAP_STORE, entry_bytes(key.n, value.n, false));
    if (fresh) write_entry(fresh, key, value, NEVER);
    return fresh;
}

bool store_link(Entry *entry) {
    Place place;
    Entry *old = store_find(entry_key(entry), &place);
    if (!old) return dict_insert(&place, entry);
    store.expiring -= entry_expires(old);
    dict_replace(&place, entry);
    mem_free(old);
    return true;
}

void store_forget(Entry *entry) {
    mem_free(entry);
}

// Room to grow into, so that a value appended to again and again is not copied every time; as redis does.
static size_t with_slack(size_t bytes, size_t grown_by) {
    if (grown_by == 0 || bytes < 64) return bytes;
    size_t slack = bytes < (1 << 20) ? bytes : (1 << 20);
    return bytes + slack;
}

Entry *store_resize(Place *place, Str key, size_t length) {
    Entry *old = place->entry;
    size_t before = old ? entry_value(old).n : 0;
    int64_t expiry = old ? entry_expiry(old) : NEVER;
    size_t bytes = entry_bytes(key.n, length, expiry != NEVER);
    Entry *e = old;
    if (!old) {
        e = mem_alloc(HEAP_STORE, bytes);
        if (!e) return NULL;
        write_entry(e, key, (Str){"", 0}, NEVER);
        if (!dict_insert(place, e)) {
            mem_free(e);
            return NULL;
        }
    } else if (bytes > mem_usable(old)) {
        e = mem_resize(HEAP_STORE, old, with_slack(bytes, length - before));
        if (!e) e = mem_resize(HEAP_STORE, old, bytes);
        if (!e) return NULL;
        dict_replace(place, e);
    }
    write_head(e, key.n, length, expiry != NEVER);
    if (length > before) memset((char *)entry_value(e).p + before, 0, length - before);
    return e;
}

bool store_set_expiry(Place *place, int64_t expiry) {
    Entry *e = place->entry;
    bool expires = expiry != NEVER;
    Str key = entry_key(e), value = entry_value(e);
    if (entry_expires(e) != expires) {
        size_t bytes = entry_bytes(key.n, value.n, expires);
        if (bytes <= mem_usable(e)) {
            memmove(e->body + (expires ? 8 : 0), key.p, key.n + value.n);
            write_head(e, key.n, value.n, expires);
        } else {
            Entry *fresh = mem_alloc(HEAP_STORE, bytes);
            if (!fresh) return false;
            write_entry(fresh, key, value, expiry);
            dict_replace(place, fresh);
            mem_free(e);
            e = fresh;
        }
        if (expires) {
            store.expiring++;
        } else {
            store.expiring--;
        }
    }
    if (expires) store64(e->body, (uint64_t)expiry);
    note_expiry(place, expiry);
    return true;
}

void store_flush(void) {
    mem_drop(HEAP_STORE);
    store.expiring = 0;
    pass.running = false;
    pass.next_due = 0;
    dict_reset();
}

// Looks through one chain from slot to slot; a removal may rearrange the chain, so it starts again then.
// Returns how many keys it removed.
static unsigned expire_chain(uint32_t index) {
    unsigned removed = 0;
    for (bool again = true; again;) {
        again = false;
        if (index >= dict_buckets()) return removed;
        uint32_t earliest = 0;
        Bucket *head = dict_chain(index);
        for (Bucket *b = head; b && !again; b = b->next ? at(b->next) : NULL) {
            for (unsigned i = 0; i < SLOTS && !again; i++) {
                Entry *e = b->tag[i] ? at(b->entry[i]) : NULL;
                if (!e || !entry_expires(e)) continue;
                if (entry_expiry(e) > store.now) {
                    earlier(&earliest, tick_of(entry_expiry(e)));
                    continue;
                }
                Place place = {.head = head, .bucket = b, .slot = i, .entry = e};
                store_delete(&place);
                store.expired++;
                removed++;
                again = true;
            }
        }
        if (!again) head->due = earliest;
    }
    return removed;
}

static void start_pass(void) {
    pass.running = true;
    pass.next_chain = 0;
    pass.earliest = 0;
    pass.next_due = 0;
    dict_moved_due = 0;
}

void store_expire(uint64_t budget_us) {
    if (store_expire_wait() != 0) return;
    if (!pass.running) start_pass();
    uint64_t start = platform_micros();
    uint32_t now = tick_of(store.now);
    uint64_t seen = 0, removed = 0;
    do {
        for (unsigned i = 0; i < PASS_CHAINS && pass.next_chain < dict_buckets(); i++) {
            uint32_t index = pass.next_chain++, due = dict_chain(index)->due;
            if (due && due <= now) {
                seen++;
                removed += expire_chain(index);
            }
            if (index < dict_buckets()) earlier(&pass.earliest, dict_chain(index)->due);
        }
    } while (pass.next_chain < dict_buckets() && platform_micros() - start < budget_us);
    if (pass.next_chain >= dict_buckets()) {
        earlier(&pass.next_due, pass.earliest);
        earlier(&pass.next_due, dict_moved_due);
        pass.running = false;
        pass.not_before = store.now + PASS_PAUSE_MS;
    } else {
        pass.not_before = store.now + (removed > seen ? STEP_PAUSE_FULL_MS : STEP_PAUSE_MS);
    }
}

int64_t store_expire_wait(void) {
    int64_t at_time = pass.not_before;
    if (!pass.running) {
        if (!pass.next_due || !store.expiring) return -1;
        int64_t due = base_time + ((int64_t)pass.next_due << TICK_SHIFT) + (1 << TICK_SHIFT);
        if (due > at_time) at_time = due;
    }
    return at_time <= store.now ? 0 : at_time - store.now;
}
