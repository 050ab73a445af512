// cmd_keys.c: commands on keys: existence, expiry, enumeration.
#include "commands.h"

#define SCAN_EMPTY 1024  // buckets that a step of SCAN looks at when they are empty

void cmd_del(void) {
    int64_t removed = 0;
    for (uint32_t i = 1; i < request.n; i++) {
        Place place;
        if (!store_find(arg(i), &place)) continue;
        store_delete(&place);
        removed++;
    }
    store.changes += (uint64_t)removed;
    reply_int(removed);
}

void cmd_exists(void) {
    int64_t found = 0;
    for (uint32_t i = 1; i < request.n; i++) found += store_read(arg(i)) != NULL;
    reply_int(found);
}

typedef struct {
    bool nx, xx, gt, lt;
} ExpireOptions;

static bool expire_options(ExpireOptions *o) {
    for (uint32_t i = 3; i < request.n; i++) {
        Str name = arg(i);
        if (is_word(name, "nx")) {
            o->nx = true;
        } else if (is_word(name, "xx")) {
            o->xx = true;
        } else if (is_word(name, "gt")) {
            o->gt = true;
        } else if (is_word(name, "lt")) {
            o->lt = true;
        } else {
            reply_error_about("ERR Unsupported option ", name, "");
            return false;
        }
    }
    if (o->nx && (o->xx || o->gt || o->lt)) {
        reply_error("ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if (o->gt && o->lt) {
        reply_error("ERR GT and LT options at the same time are not compatible");
        return false;
    }
    return true;
}

// EXPIRE and its kin; unlike in SET, a time that has passed is allowed and removes the key.
static void expire(bool seconds, bool relative, const char *command) {
    ExpireOptions o = {0};
    int64_t when;
    if (!expire_options(&o) || !int_arg(2, &when)) return;
    bool fine = !seconds || (when <= INT64_MAX / 1000 && when >= INT64_MIN / 1000);
    if (fine && seconds) when *= 1000;
    if (fine && relative) fine = !__builtin_add_overflow(when, store.now, &when);
    if (!fine) {
        reply_error_about("ERR invalid expire time in '", str(command), "' command");
        return;
    }
    Place place;
    Entry *e = store_find(arg(1), &place);
    int64_t now = e ? entry_expiry(e) : 0;
    if (!e || (o.nx && now) || (o.xx && !now) || (o.gt && (!now || when <= now)) || (o.lt && now && when >= now)) {
        reply_int(0);
        return;
    }
    if (when <= store.now) {
        store_delete(&place);
    } else if (!store_set_expiry(&place, when)) {
        reply_error(error_memory);
        return;
    }
    store.changes++;
    reply_int(1);
}

void cmd_expire(void) {
    expire(true, true, "expire");
}

void cmd_pexpire(void) {
    expire(false, true, "pexpire");
}

void cmd_expireat(void) {
    expire(true, false, "expireat");
}

void cmd_pexpireat(void) {
    expire(false, false, "pexpireat");
}

void cmd_persist(void) {
    Place place;
    Entry *e = store_find(arg(1), &place);
    bool expired = e && entry_expires(e);
    if (expired) store_set_expiry(&place, NEVER);  // never needs memory
    store.changes += expired;
    reply_int(expired);
}

static void time_left(bool seconds, bool relative) {
    Entry *e = store_read(arg(1));
    if (!e || !entry_expires(e)) {
        reply_int(e ? -1 : -2);
        return;
    }
    int64_t time = entry_expiry(e) - (relative ? store.now : 0);
    reply_int(!seconds ? time : time / 1000 + (time % 1000 >= 500));
}

void cmd_ttl(void) {
    time_left(true, true);
}

void cmd_pttl(void) {
    time_left(false, true);
}

void cmd_expiretime(void) {
    time_left(true, false);
}

void cmd_pexpiretime(void) {
    time_left(false, false);
}

typedef struct {
    Str pattern;
    bool all;
    int64_t seen, found;
} Listing;

static void list_key(void *context, Entry *e) {
    Listing *l = context;
    l->seen++;
    if (entry_expires(e) && entry_expiry(e) <= store.now) return;
    if (!l->all && !glob_match(l->pattern, entry_key(e))) return;
    reply_bulk(entry_key(e));
    l->found++;
}

static bool parse_cursor(Str text, uint32_t *cursor) {
    int64_t value = 0;
    // As strtoul: zeros may lead.
    while (text.n > 1 && *text.p == '0') text = (Str){text.p + 1, text.n - 1};
    if (!parse_int(text, &value) || value < 0) {
        uint64_t large = 0;
        bool digits = text.n == 20 || text.n == 19;
        for (size_t i = 0; i < text.n && digits; i++) {
            unsigned digit = (unsigned)text.p[i] - '0';
            digits = digit <= 9 && !__builtin_mul_overflow(large, 10u, &large) &&
                     !__builtin_add_overflow(large, digit, &large);
        }
        if (!digits) {
            reply_error("ERR invalid cursor");
            return false;
        }
        value = (int64_t)large;
    }
    *cursor = (uint32_t)value;
    return true;
}

void cmd_scan(void) {
    uint32_t cursor;
    int64_t count = 10;
    Listing l = {.all = true};
    bool strings = true;
    if (!parse_cursor(arg(1), &cursor)) return;
    for (uint32_t i = 2; i < request.n; i += 2) {
        bool has_value = i + 1 < request.n;
        if (has_value && is_word(arg(i), "count")) {
            if (!int_arg(i + 1, &count)) return;
            if (count < 1) {
                reply_error(error_syntax);
                return;
            }
        } else if (has_value && is_word(arg(i), "match")) {
            l.pattern = arg(i + 1);
            l.all = same(l.pattern, STR("*"));
        } else if (has_value && is_word(arg(i), "type")) {
            strings = is_word(arg(i + 1), "string");
        } else {
            reply_error(error_syntax);
            return;
        }
    }
    size_t start = reply_open();
    // A step ends after empty buckets too, but a table of the smallest size is one step.
    int64_t buckets = count > SCAN_EMPTY ? count : SCAN_EMPTY;
    do {
        cursor = dict_scan(cursor, list_key, &l);
    } while (cursor && --buckets && l.seen < count && !reply.failed);
    if (!strings) {
        reply.to->len = start;
        l.found = 0;
    }
    reply_close(start, l.found);
    // The next cursor comes first in the reply but is known only now.
    char digits[20], before[40] = "*2\r\n$";
    size_t length = format_int(digits, (int64_t)cursor), n = 5;
    n += format_int(before + n, (int64_t)length);
    memcpy(before + n, "\r\n", 2);
    memcpy(before + n + 2, digits, length);
    memcpy(before + n + 2 + length, "\r\n", 2);
    reply_insert(start, (Str){before, n + length + 4});
}

void cmd_keys(void) {
    Listing l = {.pattern = arg(1), .all = same(arg(1), STR("*"))};
    size_t start = reply_open();
    uint32_t cursor = 0;
    do {
        cursor = dict_scan(cursor, list_key, &l);
    } while (cursor && !reply.failed);
    reply_close(start, l.found);
}

void cmd_type(void) {
    Place place;
    reply_status(store_find(arg(1), &place) ? "string" : "none");
}

typedef struct {
    uint64_t random;
    unsigned seen;
    Entry *chosen;
} Choice;

static void choose(void *context, Entry *e) {
    Choice *choice = context;
    if (entry_expires(e) && entry_expiry(e) <= store.now) return;
    choice->seen++;
    choice->random = choice->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    if ((choice->random >> 33) % choice->seen == 0) choice->chosen = e;
}

void cmd_randomkey(void) {
    Choice choice = {0};
    uint32_t cursor;
    platform_random(&choice.random, sizeof choice.random);
    cursor = (uint32_t)choice.random;
    uint32_t tries = dict_buckets() + 1;
    do {
        cursor = dict_scan(cursor, choose, &choice);
    } while (!choice.chosen && --tries);
    if (choice.chosen) {
        reply_bulk(entry_key(choice.chosen));
    } else {
        reply_null();
    }
}

static void rename_key(bool only_new) {
    Place from, to;
    Entry *e = store_find(arg(1), &from);
    if (!e) {
        reply_error("ERR no such key");
        return;
    }
    bool itself = same(arg(1), arg(2)), there = itself || store_find(arg(2), &to);
    if (only_new && there) {
        reply_int(0);
        return;
    }
    if (!itself) {
        // Looking for the new key may have removed it, expired, and moved the old one's place.
        if (!store_put(&to, arg(2), entry_value(e), entry_expiry(e))) {
            reply_error(error_memory);
            return;
        }
        if (store_find(arg(1), &from)) store_delete(&from);
        store.changes++;
    }
    if (only_new) {
        reply_int(1);
    } else {
        reply_ok();
    }
}

void cmd_rename(void) {
    rename_key(false);
}

void cmd_renamenx(void) {
    rename_key(true);
}

void cmd_dbsize(void) {
    reply_int((int64_t)dict_count());
}

void cmd_flush(void) {
    if (request.n > 2 || (request.n == 2 && !is_word(arg(1), "async") && !is_word(arg(1), "sync"))) {
        reply_error(error_syntax);
        return;
    }
    store.changes += dict_count();
    store_flush();
    reply_ok();
}

void cmd_memory(void) {
    Sub usage = subcommand("memory", "usage", -3);
    if (usage == SUB_OTHER) {
        unknown_subcommand("memory");
    } else if (usage == SUB_YES) {
        int64_t samples;
        if (request.n != 3 && !(request.n == 5 && is_word(arg(3), "samples"))) {
            reply_error(error_syntax);
        } else if (request.n == 3 || int_arg(4, &samples)) {
            Place place;
            Entry *e = store_find(arg(2), &place);
            uint64_t keys = dict_count();
            if (e) {
                reply_int((int64_t)(mem_usable(e) + (dict_bytes() + keys - 1) / keys));
            } else {
                reply_null();
            }
        }
    }
}
