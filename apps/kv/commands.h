// commands.h: the commands and their table.
#ifndef KV_COMMANDS_H
#define KV_COMMANDS_H

#include "server.h"
#include "store.h"

// The request that is being executed.
extern struct Request {
    Conn *conn;
    const char *base;
    const Arg *v;
    uint32_t n;
} request;

static inline Str arg(uint32_t i) {
    return (Str){request.base + request.v[i].at, request.v[i].len};
}

// What a command does to the data, as COMMAND tells it.
enum {
    WRITES = 1,    // changes data
    READS = 2,
    FAST = 4,
    GROWS = 8,     // refused when memory is used up
    LOADING = 16,  // allowed at any time
    STALE = 32,
    SLOW = 64,
    NO_AUTH = 128,
};

typedef struct Command Command;
struct Command {
    const char *name;
    void (*run)(void);
    int arity;  // with the command's own name; negative: at least that many
    unsigned flags;
    int first, last, step;  // positions of keys; 0: none
    const char *group, *since, *summary;
};

extern const Command command_table[];
extern const size_t command_table_size;

void commands_init(void);

// Executes one request of a connection; the reply goes to `reply`.
void execute(Conn *c, const char *base, const Args *args);

// Sub-commands: whether the first argument is `name` with `arity` (as above) arguments; replies if only the number is wrong.
typedef enum { SUB_OTHER, SUB_YES, SUB_WRONG } Sub;
Sub subcommand(const char *command, const char *name, int arity);
void unknown_subcommand(const char *command);

// Reads an argument as a number; replies with an error if it is none.
bool int_arg(uint32_t i, int64_t *value);

// Reads an expiry: argument `i` in seconds or milliseconds, from now or from 1970 on. Zero and below are errors.
bool expiry_arg(uint32_t i, bool seconds, bool relative, const char *command, int64_t *time);

// Bytes with redis' units (k, kb, m, mb, g, gb); negative: not a size.
int64_t parse_size(Str text);

// Shell-like patterns: * ? [a-z] [^a] and backslash.
bool glob_match(Str pattern, Str text);

void cmd_get(void), cmd_set(void), cmd_setnx(void), cmd_setex(void), cmd_psetex(void), cmd_getset(void), cmd_getdel(void),
    cmd_getex(void), cmd_mget(void), cmd_mset(void), cmd_msetnx(void), cmd_append(void), cmd_strlen(void),
    cmd_getrange(void), cmd_setrange(void), cmd_incr(void), cmd_decr(void), cmd_incrby(void), cmd_decrby(void);
void cmd_del(void), cmd_exists(void), cmd_expire(void), cmd_pexpire(void), cmd_expireat(void), cmd_pexpireat(void),
    cmd_persist(void), cmd_ttl(void), cmd_pttl(void), cmd_expiretime(void), cmd_pexpiretime(void), cmd_scan(void),
    cmd_keys(void), cmd_type(void), cmd_randomkey(void), cmd_rename(void), cmd_renamenx(void), cmd_dbsize(void),
    cmd_flush(void), cmd_memory(void);
void cmd_ping(void), cmd_echo(void), cmd_info(void), cmd_command(void), cmd_config(void), cmd_client(void), cmd_hello(void),
    cmd_auth(void), cmd_select(void), cmd_quit(void), cmd_reset(void), cmd_time(void);

#endif
