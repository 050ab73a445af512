//! Rebuilding the committed modules of `apps/` from their sources, with compilers from the package registries. The results
//! are the same bytes on every machine: pinned compilers, relative paths, no debug sections.

use anyhow::{Context, Result, ensure};
use nacre_tests::apps::without_debug_sections;
use nacre_tests::cache::Cache;
use nacre_tests::kv;
use nacre_tests::programs::ZigCc;
use nacre_tests::registry::{npm_install, tool, unpack_debs};
use nacre_tests::repository;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stack of the programs of which many run at once, as tasks or calls: the compiler's default is 16 MiB.
const SMALL_STACK: &str = "-Wl,-z,stack-size=65536";

/// Programs in C: the folder, and its sources and options.
const C_APPS: [(&str, &[&str]); 10] = [
    ("action", &["action.c"]),
    ("darts", &["darts.c", SMALL_STACK]),
    ("hello", &["hello.c"]),
    ("primes", &["primes.c"]),
    ("traps", &["traps.c"]),
    ("checks", &["main.c", "files.c", "dirs.c", "waits.c"]),
    ("parallel", &["parallel.c", SMALL_STACK]),
    ("spawns", &["spawns.c", SMALL_STACK]),
    ("echo", &["echo.c"]),
    ("kv", &KV),
];

/// The key-value store: the sources of its native build with the other platform layer.
const KV: [&str; kv::CORE.len() + 3] = {
    let mut words = ["platform_wasi.c"; kv::CORE.len() + 3];
    words.split_at_mut(kv::CORE.len()).0.copy_from_slice(&kv::CORE);
    words[kv::CORE.len() + 1] = "-msimd128";
    words[kv::CORE.len() + 2] = "-O3";
    words
};

/// Debian's Rust for WASI with what its compiler and linker load; used without installing them.
const RUST_PACKAGES: [&str; 5] =
    ["rustc", "libstd-rust-1.63", "libstd-rust-dev-wasm32", "libllvm14", "lld-14"];

/// A built module: where it belongs, relative to `apps/`, and its bytes.
type Built = (PathBuf, Vec<u8>);

/// Rebuilds all modules in place.
pub fn rebuild() -> Result<()> {
    for (path, bytes) in build_all()? {
        let target = repository().join("apps").join(&path);
        let same = fs::read(&target).is_ok_and(|old| old == bytes);
        println!("apps/{}: {} bytes{}", path.display(), bytes.len(), if same { "" } else { ", changed" });
        fs::write(target, bytes)?;
    }
    Ok(())
}

/// Rebuilds all modules elsewhere; whether they are what is committed.
pub fn check() -> Result<bool> {
    let mut fine = true;
    for (path, bytes) in build_all()? {
        let same = fs::read(repository().join("apps").join(&path)).is_ok_and(|old| old == bytes);
        println!("apps/{}: {}", path.display(), if same { "as committed" } else { "DIFFERENT" });
        fine &= same;
    }
    Ok(fine)
}

fn build_all() -> Result<Vec<Built>> {
    let cache = Cache::open()?;
    let mut built = c_apps(&cache)?;
    built.push(rust_app(&cache)?);
    built.push(assemblyscript_app()?);
    built.extend(features()?);
    Ok(built)
}

fn c_apps(cache: &Cache) -> Result<Vec<Built>> {
    let zig = ZigCc::get(cache)?;
    let work = tempfile::tempdir()?;
    let mut built = Vec::new();
    for (name, sources) in C_APPS {
        let output = work.path().join(name);
        let mut command = zig.command();
        command
            .args(["-Wall", "-Wextra", "-Werror", "-I", "../include"])
            .args(sources)
            .arg("-o")
            .arg(&output);
        tool(command.current_dir(repository().join("apps").join(name)))?;
        built.push((format!("{name}/{name}.wasm").into(), without_debug_sections(&fs::read(output)?)?));
    }
    Ok(built)
}

fn rust_app(cache: &Cache) -> Result<Built> {
    let root = cache.entry("rust-wasi-1.63", |draft| unpack_debs(&RUST_PACKAGES, draft))?.join("usr");
    let work = tempfile::tempdir()?;
    let output = work.path().join("wordcount.wasm");
    let mut command = Command::new(root.join("bin/rustc"));
    command
        .env("LD_LIBRARY_PATH", root.join("lib/x86_64-linux-gnu"))
        .current_dir(repository().join("apps/wordcount"));
    command.arg("--sysroot").arg(&root).args([
        "--target",
        "wasm32-wasi",
        "--edition",
        "2021",
        "-O",
        "-Cpanic=abort",
    ]);
    command.args(["-Ccodegen-units=1", "-Clinker-flavor=wasm-ld", "wordcount.rs"]);
    command.arg(format!("-Clinker={}", root.join("bin/wasm-ld-14").display())).arg("-o").arg(&output);
    tool(&mut command)?;
    Ok(("wordcount/wordcount.wasm".into(), without_debug_sections(&fs::read(output)?)?))
}

fn assemblyscript_app() -> Result<Built> {
    let work = tempfile::tempdir()?;
    let source = repository().join("apps/mandelbrot");
    for file in ["package.json", "mandelbrot.ts"] {
        fs::copy(source.join(file), work.path().join(file))?;
    }
    npm_install(work.path())?;
    let mut command = Command::new(work.path().join("node_modules/.bin/asc"));
    command.args([
        "mandelbrot.ts",
        "-O3",
        "--debug",
        "--config",
        "node_modules/@assemblyscript/wasi-shim/asconfig.json",
    ]);
    tool(command.args(["-o", "mandelbrot.wasm"]).current_dir(work.path()))?;
    let module = fs::read(work.path().join("mandelbrot.wasm"))?;
    Ok(("mandelbrot/mandelbrot.wasm".into(), without_debug_sections(&module)?))
}

/// The text modules; they keep their names.
fn features() -> Result<Vec<Built>> {
    let mut built = Vec::new();
    for file in fs::read_dir(repository().join("apps/features"))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "wat") {
            built.push(feature(&path)?);
        }
    }
    ensure!(!built.is_empty(), "apps/features has no text modules");
    built.sort();
    Ok(built)
}

fn feature(path: &Path) -> Result<Built> {
    let name = path.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
    let bytes = wat::parse_file(path).with_context(|| format!("apps/features/{name}.wat"))?;
    Ok((format!("features/{name}.wasm").into(), bytes))
}
