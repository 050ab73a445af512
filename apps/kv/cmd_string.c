// cmd_string.c: commands on values.
#include "commands.h"

static void reply_value(const Entry *e) {
    if (e) {
        reply_bulk(entry_value(e));
    } else {
        reply_null();
    }
}

// Replies OK, or that memory is used up.
static void reply_done(bool done) {
    if (likely(done)) {
        store.changes++;
        reply_ok();
    } else {
        reply_error(error_memory);
    }
}

void cmd_get(void) {
    reply_value(store_read(arg(1)));
}

// The options of SET and GETEX.
typedef struct {
    bool nx, xx, get, keep, persist;
    uint32_t time;  // argument with the expiry, 0: none
    bool seconds, relative;
    char unit;  // which of the four was given
} SetOptions;

static bool expiry_option(Str name, SetOptions *o, uint32_t *i) {
    static const struct {
        const char *name;
        bool seconds, relative;
    } units[] = {{"ex", true, true}, {"px", false, true}, {"exat", true, false}, {"pxat", false, false}};
    for (unsigned u = 0; u < 4; u++) {
        if (!is_word(name, units[u].name)) continue;
        if (o->keep || o->persist || (o->unit && o->unit != (char)(u + 1)) || *i + 1 >= request.n) return false;
        o->unit = (char)(u + 1);
        o->seconds = units[u].seconds;
        o->relative = units[u].relative;
        o->time = ++*i;
        return true;
    }
    return false;
}

static bool set_options(uint32_t first, bool set, SetOptions *o) {
    for (uint32_t i = first; i < request.n; i++) {
        Str name = arg(i);
        if (set && !o->xx && is_word(name, "nx")) {
            o->nx = true;
        } else if (set && !o->nx && is_word(name, "xx")) {
            o->xx = true;
        } else if (set && is_word(name, "get")) {
            o->get = true;
        } else if (set && !o->unit && is_word(name, "keepttl")) {
            o->keep = true;
        } else if (!set && !o->unit && is_word(name, "persist")) {
            o->persist = true;
        } else if (!expiry_option(name, o, &i)) {
            reply_error(error_syntax);
            return false;
        }
    }
    return true;
}

void cmd_set(void) {
    Place place;
    int64_t expiry = NEVER;
    if (likely(request.n == 3)) {
        store_find(arg(1), &place);
        reply_done(store_put(&place, arg(1), arg(2), NEVER));
        return;
    }
    SetOptions o = {0};
    if (!set_options(3, true, &o)) return;
    if (o.time && !expiry_arg(o.time, o.seconds, o.relative, "set", &expiry)) return;
    if (o.keep) expiry = KEEP;
    Entry *old = store_find(arg(1), &place);
    size_t start = reply.to->len;
    if (o.get) reply_value(old);
    if ((o.nx && old) || (o.xx && !old)) {
        if (!o.get) reply_null();
        return;
    }
    if (reply.failed) return;
    bool done = store_put(&place, arg(1), arg(2), expiry);
    if (!done || !o.get) {
        reply.to->len = start;
        reply_done(done);
    } else {
        store.changes++;
    }
}

void cmd_setnx(void) {
    Place place;
    if (store_find(arg(1), &place)) {
        reply_int(0);
    } else if (store_put(&place, arg(1), arg(2), NEVER)) {
        store.changes++;
        reply_int(1);
    } else {
        reply_error(error_memory);
    }
}

static void set_for(bool seconds, const char *name) {
    Place place;
    int64_t expiry;
    if (!expiry_arg(2, seconds, true, name, &expiry)) return;
    store_find(arg(1), &place);
    reply_done(store_put(&place, arg(1), arg(3), expiry));
}

void cmd_setex(void) {
    set_for(true, "setex");
}

void cmd_psetex(void) {
    set_for(false, "psetex");
}

void cmd_getset(void) {
    Place place;
    size_t start = reply.to->len;
    reply_value(store_find(arg(1), &place));
    if (reply.failed) return;
    if (store_put(&place, arg(1), arg(2), NEVER)) {
        store.changes++;
    } else {
        reply.to->len = start;
        reply_error(error_memory);
    }
}

void cmd_getdel(void) {
    Place place;
    Entry *e = store_find(arg(1), &place);
    reply_value(e);
    if (!e || reply.failed) return;
    store_delete(&place);
    store.changes++;
}

void cmd_getex(void) {
    Place place;
    SetOptions o = {0};
    int64_t expiry = NEVER;
    if (!set_options(2, false, &o)) return;
    Entry *e = store_find(arg(1), &place);
    if (!e) {
        reply_null();
        return;
    }
    if (o.time && !expiry_arg(o.time, o.seconds, o.relative, "getex", &expiry)) return;
    size_t start = reply.to->len;
    reply_value(e);
    if (reply.failed) return;
    if (o.time && expiry <= store.now) {
        store_delete(&place);
    } else if ((o.time || (o.persist && entry_expires(e))) && !store_set_expiry(&place, expiry)) {
        reply.to->len = start;
        reply_error(error_memory);
    }
}

void cmd_mget(void) {
    reply_array(request.n - 1);
    for (uint32_t i = 1; i < request.n && !reply.failed; i++) reply_value(store_read(arg(i)));
}

// All or nothing: the entries are made first, then put into the table.
static bool set_all(void) {
    uint32_t n = (request.n - 1) / 2;
    Ref *made = mem_alloc(HEAP_CONN, n * sizeof *made);
    if (!made) return false;
    for (uint32_t i = 0; i < n; i++) {
        Entry *e = store_make(arg(1 + 2 * i), arg(2 + 2 * i));
        if (!e) {
            while (i--) store_forget(at(made[i]));
            mem_free(made);
            return false;
        }
        made[i] = ref_of(e);
    }
    bool done = true;
    for (uint32_t i = 0; i < n; i++) {
        if (done) done = store_link(at(made[i]));
        if (!done) store_forget(at(made[i]));
    }
    mem_free(made);
    store.changes += n;
    return done;
}

static bool pairs(const char *command) {
    if (request.n % 2 == 1) return true;
    reply_error_about("ERR wrong number of arguments for '", str(command), "' command");
    return false;
}

void cmd_mset(void) {
    if (!pairs("mset")) return;
    if (set_all()) {
        reply_ok();
    } else {
        reply_error(error_memory);
    }
}

void cmd_msetnx(void) {
    if (!pairs("msetnx")) return;
    for (uint32_t i = 1; i < request.n; i += 2) {
        Place place;
        if (store_find(arg(i), &place)) {
            reply_int(0);
            return;
        }
    }
    if (set_all()) {
        reply_int(1);
    } else {
        reply_error(error_memory);
    }
}

static bool length_fits(uint64_t length) {
    if (length <= MAX_STRING) return true;
    reply_error("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    return false;
}

void cmd_append(void) {
    Place place;
    Str tail = arg(2);
    Entry *e = store_find(arg(1), &place);
    size_t before = e ? entry_value(e).n : 0;
    if (!length_fits((uint64_t)before + tail.n)) return;
    e = store_resize(&place, arg(1), before + tail.n);
    if (!e) {
        reply_error(error_memory);
        return;
    }
    copy_bytes((char *)entry_value(e).p + before, tail.p, tail.n);
    store.changes++;
    reply_int((int64_t)(before + tail.n));
}

void cmd_strlen(void) {
    Entry *e = store_read(arg(1));
    reply_int(e ? (int64_t)entry_value(e).n : 0);
}

void cmd_getrange(void) {
    int64_t start, end;
    if (!int_arg(2, &start) || !int_arg(3, &end)) return;
    Entry *e = store_read(arg(1));
    Str value = e ? entry_value(e) : (Str){"", 0};
    int64_t n = (int64_t)value.n;
    bool empty = start < 0 && end < 0 && start > end;
    if (start < 0) start += n;
    if (end < 0) end += n;
    if (start < 0) start = 0;
    if (end < 0) end = 0;
    if (end >= n) end = n - 1;
    if (empty || start > end || n == 0) {
        reply_bulk((Str){"", 0});
    } else {
        reply_bulk((Str){value.p + start, (size_t)(end - start) + 1});
    }
}

void cmd_setrange(void) {
    Place place;
    int64_t offset;
    if (!int_arg(2, &offset)) return;
    if (offset < 0) {
        reply_error("ERR offset is out of range");
        return;
    }
    Str part = arg(3);
    Entry *e = store_find(arg(1), &place);
    size_t before = e ? entry_value(e).n : 0;
    if (part.n == 0) {
        reply_int((int64_t)before);
        return;
    }
    if (!length_fits((uint64_t)offset + part.n)) return;
    size_t length = (size_t)offset + part.n;
    e = store_resize(&place, arg(1), length > before ? length : before);
    if (!e) {
        reply_error(error_memory);
        return;
    }
    copy_bytes((char *)entry_value(e).p + offset, part.p, part.n);
    store.changes++;
    reply_int((int64_t)entry_value(e).n);
}

static void add(int64_t by) {
    Place place;
    Entry *e = store_find(arg(1), &place);
    int64_t value = 0;
    if (e && !parse_int(entry_value(e), &value)) {
        reply_error(error_integer);
        return;
    }
    if (__builtin_add_overflow(value, by, &value)) {
        reply_error("ERR increment or decrement would overflow");
        return;
    }
    char digits[20];
    Str text = {digits, format_int(digits, value)};
    if (!store_put(&place, arg(1), text, KEEP)) {
        reply_error(error_memory);
        return;
    }
    store.changes++;
    reply_int(value);
}

void cmd_incr(void) {
    add(1);
}

void cmd_decr(void) {
    add(-1);
}

void cmd_incrby(void) {
    int64_t by;
    if (int_arg(2, &by)) add(by);
}

void cmd_decrby(void) {
    int64_t by;
    if (!int_arg(2, &by)) return;
    if (by == INT64_MIN) {
        reply_error("ERR decrement would overflow");
    } else {
        add(-by);
    }
}
