// cmd_server.c: commands about the connection and the server, and what INFO and COMMAND tell.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "commands.h"

// What clients take us for: the replies are those of this version.
#define REDIS_VERSION "7.0.15"

void cmd_ping(void) {
    if (request.n > 2) {
        reply_error("ERR wrong number of arguments for 'ping' command");
    } else if (request.n == 2) {
        reply_bulk(arg(1));
    } else {
        reply_raw(STR("+PONG\r\n"));
    }
}

void cmd_echo(void) {
    reply_bulk(arg(1));
}

void cmd_quit(void) {
    request.conn->closing = true;
    reply_ok();
}

void cmd_select(void) {
    int64_t db;
    if (!int_arg(1, &db)) return;
    if (db < INT32_MIN || db > INT32_MAX) {
        reply_error("ERR value is out of range, value must between -2147483648 and 2147483647");
    } else if (db == 0) {
        reply_ok();
    } else {
        reply_error("ERR DB index is out of range");
    }
}

void cmd_time(void) {
    char digits[20];
    int64_t now = platform_now();
    reply_array(2);
    reply_bulk((Str){digits, format_int(digits, now / 1000)});
    reply_bulk((Str){digits, format_int(digits, now % 1000 * 1000)});
}

static const char no_password[] =
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?";
static const char wrong_password[] = "WRONGPASS invalid username-password pair or user is disabled.";

// There are no passwords: who may connect is decided outside.
void cmd_auth(void) {
    if (request.n > 3) {
        reply_error(error_syntax);
    } else if (request.n == 2) {
        reply_error(no_password);
    } else if (same(arg(1), STR("default"))) {
        reply_ok();
    } else {
        reply_error(wrong_password);
    }
}

static bool set_name(Str name) {
    for (size_t i = 0; i < name.n; i++) {
        if (name.p[i] < '!' || name.p[i] > '~') {
            reply_error("ERR Client names cannot contain spaces, newlines or special characters.");
            return false;
        }
    }
    Conn *c = request.conn;
    char *copy = name.n ? mem_alloc(HEAP_CONN, name.n) : NULL;
    if (name.n && !copy) {
        reply_error(error_memory);
        return false;
    }
    copy_bytes(copy, name.p, name.n);
    mem_free(c->name);
    c->name = copy;
    c->name_len = name.n;
    return true;
}

void cmd_reset(void) {
    Conn *c = request.conn;
    c->version = reply.version = 2;
    mem_free(c->name);
    c->name = NULL;
    c->name_len = 0;
    reply_status("RESET");
}

void cmd_hello(void) {
    Conn *c = request.conn;
    int64_t version = c->version;
    if (request.n > 1) {
        if (!parse_int(arg(1), &version)) {
            reply_error("ERR Protocol version is not an integer or out of range");
            return;
        }
        if (version != 2 && version != 3) {
            reply_error("NOPROTO unsupported protocol version");
            return;
        }
    }
    uint32_t name = 0;
    for (uint32_t i = 2; i < request.n; i++) {
        uint32_t more = request.n - 1 - i;
        if (is_word(arg(i), "auth") && more >= 2) {
            if (!same(arg(i + 1), STR("default"))) {
                reply_error(wrong_password);
                return;
            }
            i += 2;
        } else if (is_word(arg(i), "setname") && more >= 1) {
            name = ++i;
        } else {
            reply_error_about("ERR Syntax error in HELLO option '", arg(i), "'");
            return;
        }
    }
    if (name && !set_name(arg(name))) return;
    c->version = reply.version = (int)version;
    reply_map(7);
    reply_text("server");
    reply_text("redis");
    reply_text("version");
    reply_text(REDIS_VERSION);
    reply_text("proto");
    reply_int(version);
    reply_text("id");
    reply_int((int64_t)c->id);
    reply_text("mode");
    reply_text("standalone");
    reply_text("role");
    reply_text("master");
    reply_text("modules");
    reply_array(0);
}

// Lines of text under construction; what does not fit is left out.
typedef struct {
    char text[4096];
    size_t n;
} Text;

__attribute__((format(printf, 2, 3))) static void put(Text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->text + t->n, sizeof t->text - t->n, format, args);
    va_end(args);
    if (n > 0) t->n = t->n + (size_t)n < sizeof t->text ? t->n + (size_t)n : sizeof t->text - 1;
}

static void client_line(Text *t, const Conn *c) {
    put(t, "id=%llu addr=? laddr=? fd=%d name=%.*s age=%lld idle=%lld flags=N db=0 sub=0 psub=0 multi=-1 qbuf=%llu ",
        (unsigned long long)c->id, c->watch.fd, (int)(c->name_len < 512 ? c->name_len : 512), c->name ? c->name : "",
        (long long)(store.now - c->since) / 1000, (long long)(store.now - c->last) / 1000, (unsigned long long)c->in.len);
    put(t, "omem=%llu resp=%d\n", (unsigned long long)c->out.cap, c->version);
}

static void client_list(void) {
    // As redis writes it: one verbatim string. Its length is that of all lines, so they are made first.
    size_t start = reply.to->len, bytes;
    for (const Conn *c = server.conns; c && !reply.failed; c = c->next) {
        Text t = {.n = 0};
        client_line(&t, c);
        reply_raw((Str){t.text, t.n});
    }
    bytes = reply.to->len - start;
    char header[40];
    bool plain = reply.version == 2;
    int n = snprintf(header, sizeof header, plain ? "$%llu\r\n" : "=%llu\r\ntxt:", (unsigned long long)bytes + (plain ? 0 : 4));
    reply_insert(start, (Str){header, (size_t)n});
    reply_raw(STR("\r\n"));
}

void cmd_client(void) {
    Conn *c = request.conn;
    Sub sub;
    if ((sub = subcommand("client", "id", 2))) {
        if (sub == SUB_YES) reply_int((int64_t)c->id);
    } else if ((sub = subcommand("client", "getname", 2))) {
        if (sub == SUB_YES && c->name) reply_bulk((Str){c->name, c->name_len});
        if (sub == SUB_YES && !c->name) reply_null();
    } else if ((sub = subcommand("client", "setname", 3))) {
        if (sub == SUB_YES && set_name(arg(2))) reply_ok();
    } else if ((sub = subcommand("client", "setinfo", 4))) {
        if (sub == SUB_YES) reply_ok();
    } else if ((sub = subcommand("client", "info", 2))) {
        Text t = {.n = 0};
        client_line(&t, c);
        if (sub == SUB_YES) reply_verbatim((Str){t.text, t.n});
    } else if ((sub = subcommand("client", "list", -2))) {
        if (sub == SUB_YES) client_list();
    } else {
        unknown_subcommand("client");
    }
}

typedef struct {
    const char *name;
    char value[32];
} Parameter;

static unsigned parameters(Parameter out[]) {
    unsigned n = 0;
    const Parameter fixed[] = {
        {"save", ""},          {"appendonly", "no"}, {"databases", "1"},       {"maxmemory-policy", "noeviction"},
        {"timeout", "0"},      {"port", "0"},        {"hz", "10"},             {"proto-max-bulk-len", "536870912"},
    };
    for (unsigned i = 0; i < sizeof fixed / sizeof *fixed; i++) out[n++] = fixed[i];
    out[n].name = "maxmemory";
    snprintf(out[n++].value, 32, "%llu", (unsigned long long)server.options.max_memory);
    out[n].name = "maxclients";
    snprintf(out[n++].value, 32, "%u", server.options.max_clients);
    return n;
}

static void config_get(void) {
    Parameter all[16];
    unsigned n = parameters(all), matching = 0;
    bool chosen[16] = {false};
    for (unsigned i = 0; i < n; i++) {
        for (uint32_t k = 2; k < request.n && !chosen[i]; k++) chosen[i] = glob_match(arg(k), str(all[i].name));
        matching += chosen[i];
    }
    reply_map(matching);
    for (unsigned i = 0; i < n; i++) {
        if (!chosen[i]) continue;
        reply_text(all[i].name);
        reply_text(all[i].value);
    }
}

int64_t parse_size(Str text) {
    static const struct {
        const char *unit;
        int64_t factor;
    } units[] = {{"gb", 1 << 30}, {"mb", 1 << 20}, {"kb", 1 << 10}, {"g", 1000000000}, {"m", 1000000}, {"k", 1000}, {"b", 1}, {"", 1}};
    for (unsigned i = 0; i < sizeof units / sizeof *units; i++) {
        size_t n = strlen(units[i].unit);
        int64_t value;
        if (text.n <= n || !is_word((Str){text.p + text.n - n, n}, units[i].unit)) continue;
        if (!parse_int((Str){text.p, text.n - n}, &value) || value < 0) continue;
        if (!__builtin_mul_overflow(value, units[i].factor, &value)) return value;
    }
    return -1;
}

static void config_set(void) {
    for (uint32_t i = 2; i < request.n; i += 2) {
        if (i + 1 == request.n || !is_word(arg(i), "maxmemory") || parse_size(arg(i + 1)) < 0) {
            reply_error_about("ERR CONFIG SET failed (only maxmemory can be set) - can't set '", arg(i), "'");
            return;
        }
    }
    for (uint32_t i = 3; i < request.n; i += 2) server.options.max_memory = (uint64_t)parse_size(arg(i));
    reply_ok();
}

void cmd_config(void) {
    Sub sub;
    if ((sub = subcommand("config", "get", -3))) {
        if (sub == SUB_YES) config_get();
    } else if ((sub = subcommand("config", "set", -4))) {
        if (sub == SUB_YES) config_set();
    } else if ((sub = subcommand("config", "resetstat", 2))) {
        if (sub == SUB_YES) {
            server.commands = server.accepted = server.rejected = server.received = server.sent = 0;
            store.hits = store.misses = store.expired = reply.errors = 0;
            reply_ok();
        }
    } else {
        unknown_subcommand("config");
    }
}

#define ULL(x) ((unsigned long long)(x))

static void info_server(Text *t) {
    long long up = (store.now - server.started) / 1000;
    put(t, "# Server\r\nredis_version:" REDIS_VERSION "\r\nredis_mode:standalone\r\nserver_name:nacre-kv\r\narch_bits:%d\r\n"
        "uptime_in_seconds:%lld\r\nuptime_in_days:%lld\r\nserver_time_usec:%lld\r\n",
        (int)sizeof(void *) * 8, up, up / 86400, (long long)store.now * 1000);
}

static void info_clients(Text *t) {
    put(t, "# Clients\r\nconnected_clients:%u\r\nmaxclients:%u\r\nblocked_clients:0\r\n", server.clients, server.options.max_clients);
}

static void info_memory(Text *t) {
    put(t, "# Memory\r\nused_memory:%llu\r\nused_memory_dataset:%llu\r\nused_memory_rss:%llu\r\n", ULL(mem_used()),
        ULL(mem_of_heap(HEAP_STORE)), ULL(mem_footprint()));
    put(t, "used_memory_clients:%llu\r\nused_memory_index:%llu\r\nmaxmemory:%llu\r\nmaxmemory_policy:noeviction\r\n"
        "mem_fragmentation_ratio:%.2f\r\nmem_allocator:nacre-kv\r\n",
        ULL(mem_of_heap(HEAP_CONN)), ULL(dict_bytes()), ULL(server.options.max_memory), (double)mem_footprint() / (double)mem_used());
}

static void info_stats(Text *t) {
    put(t, "# Stats\r\ntotal_connections_received:%llu\r\ntotal_commands_processed:%llu\r\ntotal_net_input_bytes:%llu\r\n"
        "total_net_output_bytes:%llu\r\nrejected_connections:%llu\r\nexpired_keys:%llu\r\nevicted_keys:0\r\n"
        "keyspace_hits:%llu\r\nkeyspace_misses:%llu\r\ntotal_error_replies:%llu\r\n",
        ULL(server.accepted), ULL(server.commands), ULL(server.received), ULL(server.sent), ULL(server.rejected),
        ULL(store.expired), ULL(store.hits), ULL(store.misses), ULL(reply.errors));
}

static void info_persistence(Text *t) {
    put(t, "# Persistence\r\nloading:0\r\nrdb_changes_since_last_save:%llu\r\naof_enabled:0\r\n", ULL(store.changes));
}

static void info_replication(Text *t) {
    put(t, "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n");
}

static void info_keyspace(Text *t) {
    put(t, "# Keyspace\r\n");
    if (dict_count()) put(t, "db0:keys=%llu,expires=%llu,avg_ttl=0\r\n", ULL(dict_count()), ULL(store.expiring));
}

void cmd_info(void) {
    static const struct {
        const char *name;
        void (*write)(Text *);
    } sections[] = {
        {"server", info_server}, {"clients", info_clients},         {"memory", info_memory},     {"persistence", info_persistence},
        {"stats", info_stats},   {"replication", info_replication}, {"keyspace", info_keyspace},
    };
    Text t = {.n = 0};
    for (unsigned s = 0; s < sizeof sections / sizeof *sections; s++) {
        bool wanted = request.n == 1;
        for (uint32_t i = 1; i < request.n && !wanted; i++) {
            Str a = arg(i);
            wanted = is_word(a, sections[s].name) || is_word(a, "all") || is_word(a, "default") || is_word(a, "everything");
        }
        if (!wanted) continue;
        if (t.n) put(&t, "\r\n");
        sections[s].write(&t);
    }
    reply_verbatim((Str){t.text, t.n});
}

static void describe(const Command *command) {
    static const struct {
        unsigned flag;
        const char *name;
    } names[] = {{WRITES, "+write"}, {READS, "+readonly"},  {GROWS, "+denyoom"}, {LOADING, "+loading"},
                 {STALE, "+stale"},  {NO_AUTH, "+no_auth"}, {FAST, "+fast"}};
    unsigned flags = 0;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) flags += (command->flags & names[i].flag) != 0;
    reply_array(10);
    reply_text(command->name);
    reply_int(command->arity);
    reply_set(flags);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        if (!(command->flags & names[i].flag)) continue;
        reply_raw(str(names[i].name));
        reply_raw(STR("\r\n"));
    }
    reply_int(command->first);
    reply_int(command->last);
    reply_int(command->step);
    reply_set(0);    // access categories
    reply_array(0);  // tips
    reply_array(0);  // key specifications
    reply_array(0);  // sub-commands
}

static void document(const Command *command) {
    reply_text(command->name);
    reply_map(3);
    reply_text("summary");
    reply_text(command->summary);
    reply_text("since");
    reply_text(command->since);
    reply_text("group");
    reply_text(command->group);
}

static const Command *named(Str name) {
    for (size_t i = 0; i < command_table_size; i++) {
        if (is_word(name, command_table[i].name)) return &command_table[i];
    }
    return NULL;
}

static void command_docs(void) {
    size_t n = 0;
    for (uint32_t i = 2; i < request.n; i++) n += named(arg(i)) != NULL;
    reply_map(request.n == 2 ? (int64_t)command_table_size : (int64_t)n);
    for (size_t i = 0; request.n == 2 && i < command_table_size; i++) document(&command_table[i]);
    for (uint32_t i = 2; i < request.n; i++) {
        if (named(arg(i))) document(named(arg(i)));
    }
}

static void command_info(uint32_t first) {
    bool all = first >= request.n;
    reply_array(all ? (int64_t)command_table_size : (int64_t)(request.n - first));
    for (size_t i = 0; all && i < command_table_size; i++) describe(&command_table[i]);
    for (uint32_t i = first; i < request.n; i++) {
        const Command *command = named(arg(i));
        if (command) {
            describe(command);
        } else if (reply.version == 2) {
            reply_raw(STR("*-1\r\n"));
        } else {
            reply_null();
        }
    }
}

void cmd_command(void) {
    Sub sub;
    if (request.n == 1) {
        command_info(1);
    } else if ((sub = subcommand("command", "count", 2))) {
        if (sub == SUB_YES) reply_int((int64_t)command_table_size);
    } else if ((sub = subcommand("command", "docs", -2))) {
        command_docs();
    } else if ((sub = subcommand("command", "info", -2))) {
        command_info(2);
    } else if ((sub = subcommand("command", "list", 2))) {
        if (sub != SUB_YES) return;
        reply_array((int64_t)command_table_size);
        for (size_t i = 0; i < command_table_size; i++) reply_text(command_table[i].name);
    } else {
        unknown_subcommand("command");
    }
}
