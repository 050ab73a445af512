//! Real programs, third-party and ours, under Nacre and under the reference engine: same output, same exit code, same files.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::cache::Cache;
use nacre_tests::job::{Job, Nacre, Outcome};
use nacre_tests::programs::{self, Program, script};
use nacre_tests::skip::need;
use nacre_tests::tree::{self, Node, Tree};
use std::path::{Path, PathBuf};

/// Runs the job under both engines; `None` if the test is skipped.
fn compare(name: &str, job: impl FnOnce(&Cache) -> anyhow::Result<Job>) -> Option<Outcome> {
    let outcome = || {
        let nacre = Nacre::find()?;
        let cache = Cache::open()?;
        job(&cache)?.same_under_both(&nacre, &cache)
    };
    need(name, outcome())
}

fn scripts(names: &[&str]) -> Tree {
    names.iter().map(|name| (PathBuf::from(name), Node::File(std::fs::read(script(name)).unwrap()))).collect()
}

#[test]
fn cpython_runs_json_hashlib_re_and_a_large_bytearray() {
    let outcome = compare("cpython", |cache| {
        let args = ["/py/work.py", "/py/work.sql", "/py/out.txt"];
        let job = Job::new(Program::CPython.module(cache)?, &args).options(&["--memory", "1GiB"]);
        Ok(job.dir("/py", scripts(&["work.py", "work.sql"])))
    });
    let Some(Outcome { ended, dirs }) = outcome else { return };
    assert_eq!(ended.code, 7, "{}", ended.stderr);
    assert!(ended.text().contains("bytearray 100000000 50000000"), "{}", ended.text());
    assert!(dirs["/py"].contains_key(Path::new("out.txt")));
}

#[test]
fn sqlite_leaves_a_byte_identical_database() {
    let outcome = compare("sqlite", |cache| {
        let module = Program::Sqlite.module(cache)?;
        let make = Job::new(&module, &["/db/bank.db", "/db/make.sql"]).dir("/db", scripts(&["make.sql"]));
        let mut made = make.under_reference(cache)?;
        assert_eq!(made.ended.code, 0, "making the database: {}", made.ended.stderr);
        let mut tree = made.dirs.remove("/db").unwrap_or_default();
        assert!(tree.contains_key(Path::new("bank.db")));
        tree.extend(scripts(&["work.sql"]));
        Ok(Job::new(module, &["/db/bank.db", "/db/work.sql"]).dir("/db", tree))
    });
    let Some(Outcome { ended, dirs }) = outcome else { return };
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.text().contains("\nok\nafter|2000|"), "{}", ended.text());
    let Some(Node::File(database)) = dirs["/db"].get(Path::new("bank.db")) else {
        panic!("no database came out")
    };
    assert!(
        database.starts_with(b"SQLite format 3\0") && database.len() > 500_000,
        "{} bytes",
        database.len()
    );
}

#[test]
fn quickjs_runs_a_benchmark() {
    let outcome = compare("quickjs", |cache| {
        Ok(Job::new(Program::QuickJs.module(cache)?, &["/js/bench.js"]).dir("/js", scripts(&["bench.js"])))
    });
    let Some(Outcome { ended, .. }) = outcome else { return };
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.text().ends_with("async 2,4,6\n"), "{}", ended.text());
}

#[test]
fn lua_throws_and_catches_wasm_exceptions() {
    let outcome = compare("lua", |cache| {
        let job = Job::new(Program::Lua.module(cache)?, &["/lua/work.lua", "one", "two"]);
        Ok(job.dir("/lua", scripts(&["work.lua"])))
    });
    let Some(Outcome { ended, .. }) = outcome else { return };
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.text().starts_with("caught\t4416\t"), "{}", ended.text());
}

#[test]
fn a_c_program_computes() {
    let job = |_: &Cache| Ok(Job::new(app("primes"), &["3000000", "2"]));
    let Some(Outcome { ended, .. }) = compare("primes", job) else { return };
    assert!(ended.text().starts_with("primes below 3000000: 216816\n"), "{}", ended.text());
}

#[test]
fn a_rust_program_reads_a_tree_and_writes_into_it() {
    let mut tree = scripts(&["work.sql", "work.py", "bench.js"]);
    tree.insert("deep".into(), Node::Directory);
    tree.insert("deep/er".into(), Node::Directory);
    let licence = std::fs::read(nacre_tests::repository().join("LICENSE")).unwrap();
    tree.insert("deep/er/licence".into(), Node::File(licence));
    let job = |_: &Cache| Ok(Job::new(app("wordcount"), &["/texts"]).dir("/texts", tree));
    let Some(Outcome { ended, dirs }) = compare("wordcount", job) else { return };
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.text().ends_with(", 4 files\n"), "{}", ended.text());
    assert!(dirs["/texts"].contains_key(Path::new("words.tsv")));
}

#[test]
fn an_assemblyscript_program_draws() {
    let job = |_: &Cache| Ok(Job::new(app("mandelbrot"), &["60", "500"]));
    let Some(Outcome { ended, .. }) = compare("mandelbrot", job) else { return };
    assert_eq!(ended.text().lines().count(), 24, "{}", ended.text());
}

#[test]
fn every_wasi_call_behaves_as_under_the_reference_engine() {
    let job = |_: &Cache| {
        let job = Job::new(app("checks"), &["/data", "wörd with spaces"]).env("CHECKS", "a=b c");
        Ok(job.dir("/data", Tree::new()).stdin(b"ready\n"))
    };
    let Some(Outcome { ended, .. }) = compare("checks", job) else { return };
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.text().ends_with(" checks, 0 failed\n"), "{}", ended.text());
}

#[test]
fn links_and_empty_directories_come_in_and_out() {
    let mut tree = tree::of_files(&[("a", b"one"), ("empty", b"")]);
    tree.insert("hollow".into(), Node::Directory);
    tree.insert("way".into(), Node::Link("a".into()));
    let job =
        |_: &Cache| Ok(Job::new(app("hello"), &[]).dir("/first", tree.clone()).dir("/second", Tree::new()));
    let Some(Outcome { dirs, .. }) = compare("export", job) else { return };
    assert_eq!(tree::difference(&tree, &dirs["/first"]), Vec::<String>::new());
    assert!(dirs["/second"].is_empty());
}

/// The recipes themselves, so that a broken one fails with its own name and not with a test that uses it.
#[test]
fn all_third_party_programs_can_be_had() {
    let get = || -> anyhow::Result<()> {
        let cache = Cache::open()?;
        programs::reference(&cache)?;
        for program in Program::ALL {
            let module = std::fs::read(program.module(&cache)?)?;
            anyhow::ensure!(module.starts_with(b"\0asm\x01\0\0\0"), "{program:?} is not a Wasm module");
        }
        Ok(())
    };
    need("third-party programs", get());
}
