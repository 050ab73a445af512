// commands.c: the table of commands, finding a command by its name, and what all commands need.
#include "commands.h"

struct Request request;

const Command command_table[] = {
    {"get", cmd_get, 2, READS | FAST, 1, 1, 1, "string", "1.0.0", "Get the value of a key"},
    {"set", cmd_set, -3, WRITES | GROWS, 1, 1, 1, "string", "1.0.0", "Set the string value of a key"},
    {"setnx", cmd_setnx, 3, WRITES | GROWS | FAST, 1, 1, 1, "string", "1.0.0", "Set the value of a key, only if the key does not exist"},
    {"setex", cmd_setex, 4, WRITES | GROWS, 1, 1, 1, "string", "2.0.0", "Set the value and expiration of a key"},
    {"psetex", cmd_psetex, 4, WRITES | GROWS, 1, 1, 1, "string", "2.6.0", "Set the value and expiration in milliseconds of a key"},
    {"getset", cmd_getset, 3, WRITES | GROWS | FAST, 1, 1, 1, "string", "1.0.0", "Set the string value of a key and return its old value"},
    {"getdel", cmd_getdel, 2, WRITES | FAST, 1, 1, 1, "string", "6.2.0", "Get the value of a key and delete the key"},
    {"getex", cmd_getex, -2, WRITES | FAST, 1, 1, 1, "string", "6.2.0", "Get the value of a key and optionally set its expiration"},
    {"mget", cmd_mget, -2, READS | FAST, 1, -1, 1, "string", "1.0.0", "Get the values of all the given keys"},
    {"mset", cmd_mset, -3, WRITES | GROWS, 1, -1, 2, "string", "1.0.1", "Set multiple keys to multiple values"},
    {"msetnx", cmd_msetnx, -3, WRITES | GROWS, 1, -1, 2, "string", "1.0.1", "Set multiple keys to multiple values, only if none of the keys exist"},
    {"append", cmd_append, 3, WRITES | GROWS | FAST, 1, 1, 1, "string", "2.0.0", "Append a value to a key"},
    {"strlen", cmd_strlen, 2, READS | FAST, 1, 1, 1, "string", "2.2.0", "Get the length of the value stored in a key"},
    {"getrange", cmd_getrange, 4, READS, 1, 1, 1, "string", "2.4.0", "Get a substring of the string stored at a key"},
    {"substr", cmd_getrange, 4, READS, 1, 1, 1, "string", "1.0.0", "Get a substring of the string stored at a key"},
    {"setrange", cmd_setrange, 4, WRITES | GROWS, 1, 1, 1, "string", "2.2.0", "Overwrite part of a string at key starting at the specified offset"},
    {"incr", cmd_incr, 2, WRITES | GROWS | FAST, 1, 1, 1, "string", "1.0.0", "Increment the integer value of a key by one"},
    {"decr", cmd_decr, 2, WRITES | GROWS | FAST, 1, 1, 1, "string", "1.0.0", "Decrement the integer value of a key by one"},
    {"incrby", cmd_incrby, 3, WRITES | GROWS | FAST, 1, 1, 1, "string", "1.0.0", "Increment the integer value of a key by the given amount"},
    {"decrby", cmd_decrby, 3, WRITES | GROWS | FAST, 1, 1, 1, "string", "1.0.0", "Decrement the integer value of a key by the given number"},
    {"del", cmd_del, -2, WRITES, 1, -1, 1, "generic", "1.0.0", "Delete a key"},
    {"unlink", cmd_del, -2, WRITES | FAST, 1, -1, 1, "generic", "4.0.0", "Delete a key"},
    {"exists", cmd_exists, -2, READS | FAST, 1, -1, 1, "generic", "1.0.0", "Determine if a key exists"},
    {"touch", cmd_exists, -2, READS | FAST, 1, -1, 1, "generic", "3.2.1", "Count the keys that exist"},
    {"expire", cmd_expire, -3, WRITES | FAST, 1, 1, 1, "generic", "1.0.0", "Set a key's time to live in seconds"},
    {"pexpire", cmd_pexpire, -3, WRITES | FAST, 1, 1, 1, "generic", "2.6.0", "Set a key's time to live in milliseconds"},
    {"expireat", cmd_expireat, -3, WRITES | FAST, 1, 1, 1, "generic", "1.2.0", "Set the expiration for a key as a UNIX timestamp"},
    {"pexpireat", cmd_pexpireat, -3, WRITES | FAST, 1, 1, 1, "generic", "2.6.0", "Set the expiration for a key as a UNIX timestamp in milliseconds"},
    {"persist", cmd_persist, 2, WRITES | FAST, 1, 1, 1, "generic", "2.2.0", "Remove the expiration from a key"},
    {"ttl", cmd_ttl, 2, READS | FAST, 1, 1, 1, "generic", "1.0.0", "Get the time to live for a key in seconds"},
    {"pttl", cmd_pttl, 2, READS | FAST, 1, 1, 1, "generic", "2.6.0", "Get the time to live for a key in milliseconds"},
    {"expiretime", cmd_expiretime, 2, READS | FAST, 1, 1, 1, "generic", "7.0.0", "Get the expiration UNIX timestamp of a key"},
    {"pexpiretime", cmd_pexpiretime, 2, READS | FAST, 1, 1, 1, "generic", "7.0.0", "Get the expiration UNIX timestamp of a key in milliseconds"},
    {"scan", cmd_scan, -2, READS, 0, 0, 0, "generic", "2.8.0", "Incrementally iterate the keys"},
    {"keys", cmd_keys, 2, READS | SLOW, 0, 0, 0, "generic", "1.0.0", "Find all keys matching the given pattern"},
    {"type", cmd_type, 2, READS | FAST, 1, 1, 1, "generic", "1.0.0", "Determine the type stored at key"},
    {"randomkey", cmd_randomkey, 1, READS, 0, 0, 0, "generic", "1.0.0", "Return a random key"},
    {"rename", cmd_rename, 3, WRITES, 1, 2, 1, "generic", "1.0.0", "Rename a key"},
    {"renamenx", cmd_renamenx, 3, WRITES | FAST, 1, 2, 1, "generic", "1.0.0", "Rename a key, only if the new key does not exist"},
    {"dbsize", cmd_dbsize, 1, READS | FAST, 0, 0, 0, "server", "1.0.0", "Return the number of keys"},
    {"flushall", cmd_flush, -1, WRITES, 0, 0, 0, "server", "1.0.0", "Remove all keys"},
    {"flushdb", cmd_flush, -1, WRITES, 0, 0, 0, "server", "1.0.0", "Remove all keys"},
    {"memory", cmd_memory, -2, READS, 0, 0, 0, "server", "4.0.0", "MEMORY USAGE: the memory that a key takes"},
    {"info", cmd_info, -1, LOADING | STALE, 0, 0, 0, "server", "1.0.0", "Get information and statistics about the server"},
    {"command", cmd_command, -1, LOADING | STALE, 0, 0, 0, "server", "2.8.13", "Get details about commands"},
    {"config", cmd_config, -2, LOADING | STALE, 0, 0, 0, "server", "2.0.0", "CONFIG GET, SET and RESETSTAT"},
    {"time", cmd_time, 1, LOADING | STALE | FAST, 0, 0, 0, "server", "2.6.0", "Return the current server time"},
    {"ping", cmd_ping, -1, FAST, 0, 0, 0, "connection", "1.0.0", "Ping the server"},
    {"echo", cmd_echo, 2, FAST | LOADING | STALE, 0, 0, 0, "connection", "1.0.0", "Echo the given string"},
    {"client", cmd_client, -2, LOADING | STALE, 0, 0, 0, "connection", "2.4.0", "CLIENT ID, INFO, LIST, GETNAME, SETNAME and SETINFO"},
    {"hello", cmd_hello, -1, LOADING | STALE | FAST | NO_AUTH, 0, 0, 0, "connection", "6.0.0", "Choose the protocol version"},
    {"auth", cmd_auth, -2, LOADING | STALE | FAST | NO_AUTH, 0, 0, 0, "connection", "1.0.0", "Authenticate to the server"},
    {"select", cmd_select, 2, LOADING | STALE | FAST, 0, 0, 0, "connection", "1.0.0", "Select database 0, the only one"},
    {"quit", cmd_quit, -1, LOADING | STALE | FAST | NO_AUTH, 0, 0, 0, "connection", "1.0.0", "Close the connection"},
    {"reset", cmd_reset, 1, LOADING | STALE | FAST | NO_AUTH, 0, 0, 0, "connection", "6.2.0", "Reset the connection"},
};
const size_t command_table_size = sizeof command_table / sizeof *command_table;

// Names of at most 16 bytes in two words, all in lower case, in an open hash table.
#define TABLE 256u
static struct {
    uint64_t words[2];
    const Command *command;
    size_t length;
} table[TABLE];

static bool fold(Str name, uint64_t words[2]) {
    if (name.n > 16) return false;
    words[0] = words[1] = 0;
    copy_bytes(words, name.p, name.n);
    words[0] |= UINT64_C(0x2020202020202020);
    words[1] |= UINT64_C(0x2020202020202020);
    return true;
}

static unsigned table_slot(const uint64_t words[2]) {
    uint64_t mixed = (words[0] ^ words[1] * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xff51afd7ed558ccd);
    return (unsigned)(mixed >> 56) % TABLE;
}

void commands_init(void) {
    for (size_t i = 0; i < command_table_size; i++) {
        uint64_t words[2];
        Str name = str(command_table[i].name);
        if (!fold(name, words)) continue;
        unsigned slot = table_slot(words);
        while (table[slot].command) slot = (slot + 1) % TABLE;
        table[slot].words[0] = words[0];
        table[slot].words[1] = words[1];
        table[slot].command = &command_table[i];
        table[slot].length = name.n;
    }
}

static const Command *find_command(Str name) {
    uint64_t words[2];
    if (!fold(name, words)) return NULL;
    for (unsigned slot = table_slot(words); table[slot].command; slot = (slot + 1) % TABLE) {
        if (table[slot].words[0] == words[0] && table[slot].words[1] == words[1] && table[slot].length == name.n) {
            return table[slot].command;
        }
    }
    return NULL;
}

static void unknown_command(void) {
    char line[512];
    size_t n = 0;
    const char before[] = "unknown command '", between[] = "', with args beginning with: ";
    Str name = arg(0);
    memcpy(line, before, sizeof before - 1);
    n = sizeof before - 1;
    size_t length = name.n < 128 ? name.n : 128;
    for (size_t i = 0; i < length && name.p[i]; i++) line[n++] = name.p[i];
    memcpy(line + n, between, sizeof between - 1);
    n += sizeof between - 1;
    size_t room = 128;
    for (uint32_t i = 1; i < request.n && room; i++) {
        Str a = arg(i);
        line[n++] = '\'';
        size_t taken = 1;
        for (size_t k = 0; k < a.n && k < room && a.p[k]; k++, taken++) line[n++] = a.p[k];
        line[n++] = '\'';
        line[n++] = ' ';
        taken += 2;
        room = taken < room ? room - taken : 0;
    }
    for (size_t i = 0; i < n; i++) {
        if (line[i] == '\r' || line[i] == '\n') line[i] = ' ';
    }
    reply.errors++;
    reply_raw(STR("-ERR "));
    reply_raw((Str){line, n});
    reply_raw(STR("\r\n"));
}

static bool right_number(int arity, uint32_t n) {
    return arity >= 0 ? n == (uint32_t)arity : n >= (uint32_t)-arity;
}

void execute(Conn *c, const char *base, const Args *args) {
    request = (struct Request){c, base, args->v, args->n};
    server.commands++;
    const Command *command = find_command(arg(0));
    if (unlikely(!command)) {
        unknown_command();
    } else if (unlikely(!right_number(command->arity, args->n))) {
        reply_error_about("ERR wrong number of arguments for '", str(command->name), "' command");
    } else if (unlikely(command->flags & GROWS && server.options.max_memory && mem_used() > server.options.max_memory)) {
        reply_error(error_memory);
    } else {
        command->run();
    }
}

Sub subcommand(const char *command, const char *name, int arity) {
    if (!is_word(arg(1), name)) return SUB_OTHER;
    if (right_number(arity, request.n)) return SUB_YES;
    char full[64];
    size_t n = strlen(command), m = strlen(name);
    memcpy(full, command, n);
    full[n] = '|';
    memcpy(full + n + 1, name, m);
    reply_error_about("ERR wrong number of arguments for '", (Str){full, n + 1 + m}, "' command");
    return SUB_WRONG;
}

void unknown_subcommand(const char *command) {
    char after[64] = "'. Try ";
    size_t n = strlen(after);
    for (const char *p = command; *p; p++) after[n++] = (char)(*p - 32);
    memcpy(after + n, " HELP.", 7);
    reply_error_about("ERR unknown subcommand '", arg(1), after);
}

bool int_arg(uint32_t i, int64_t *value) {
    if (parse_int(arg(i), value)) return true;
    reply_error(error_integer);
    return false;
}

bool expiry_arg(uint32_t i, bool seconds, bool relative, const char *command, int64_t *time) {
    int64_t value;
    if (!int_arg(i, &value)) return false;
    bool fine = value > 0 && !(seconds && value > INT64_MAX / 1000);
    if (fine && seconds) value *= 1000;
    if (fine && relative) fine = !__builtin_add_overflow(value, store.now, &value);
    if (!fine) {
        reply_error_about("ERR invalid expire time in '", str(command), "' command");
        return false;
    }
    *time = value;
    return true;
}

// Matches one element of the pattern against a byte; moves *p behind it.
static bool glob_one(const char **p, const char *end, char c) {
    const char *at = *p;
    bool matches;
    if (*at == '[') {
        at++;
        bool negated = at < end && *at == '^';
        if (negated) at++;
        matches = false;
        for (; at < end && *at != ']'; at++) {
            if (*at == '\\' && end - at >= 2) {
                at++;
                matches |= *at == c;
            } else if (end - at >= 3 && at[1] == '-') {
                unsigned char low = (unsigned char)at[0], high = (unsigned char)at[2], byte = (unsigned char)c;
                matches |= (low <= byte && byte <= high) || (high <= byte && byte <= low);
                at += 2;
            } else {
                matches |= *at == c;
            }
        }
        if (at < end) at++;
        matches ^= negated;
    } else {
        bool any = *at == '?';
        if (*at == '\\' && end - at >= 2) at++;
        matches = any || *at == c;
        at++;
    }
    *p = at;
    return matches;
}

// Only the last star needs to be tried again: time is at most the product of the lengths, with no recursion.
bool glob_match(Str pattern, Str text) {
    const char *p = pattern.p, *p_end = p + pattern.n, *t = text.p, *t_end = t + text.n;
    const char *star = NULL, *star_text = NULL;
    if (text.n == 0) return pattern.n == 0;  // as redis has it: stars match nothing only behind something
    while (t < t_end) {
        const char *next = p;
        if (p < p_end && *p == '*') {
            star = ++p;
            star_text = t;
        } else if (p < p_end && glob_one(&next, p_end, *t)) {
            p = next;
            t++;
        } else if (star) {
            p = star;
            t = ++star_text;
        } else {
            return false;
        }
    }
    while (p < p_end && *p == '*') p++;
    return p == p_end;
}
