// lua_run: runs one Lua script; error() and pcall use setjmp and longjmp, which become Wasm exceptions.
//
//   lua_run SCRIPT [ARG...]
#include <stdio.h>
#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"

// The tag that longjmp throws. The C library refers to it and expects the linker's user to define it.
__asm__(
    ".globl __c_longjmp\n"
    ".tagtype __c_longjmp i32\n"
    "__c_longjmp:\n");

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    lua_State *lua = luaL_newstate();
    if (!lua) return 3;
    luaL_openlibs(lua);
    lua_newtable(lua);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(lua, argv[i]);
        lua_rawseti(lua, -2, i - 1);
    }
    lua_setglobal(lua, "arg");
    int failed = luaL_dofile(lua, argv[1]);
    if (failed) fprintf(stderr, "lua_run: %s\n", lua_tostring(lua, -1));
    lua_close(lua);
    return failed;
}
