//! Bad input: Nacre ends with 1 and one line on stderr that names the thing and what to do. No panic, no backtrace.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Ended, Nacre, finish};
use nacre_tests::skip::{need, skipped};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Exit code 1, and one line with all these words in it, capital letters or not.
fn one_line(what: &str, ended: &Ended, words: &[&str]) {
    let stderr = ended.stderr.trim_end();
    assert_eq!((ended.code, ended.stdout.len()), (1, 0), "{what}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{what}: one line expected: {stderr}");
    let lower = stderr.to_lowercase();
    for word in words {
        assert!(lower.contains(&word.to_lowercase()), "{what}: '{word}' is not in: {stderr}");
    }
}

/// Runs a file with this content.
fn refused(what: &str, name: &str, content: &[u8], words: &[&str]) {
    let Some(nacre) = need(what, Nacre::find()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    std::fs::write(&file, content).unwrap();
    one_line(what, &finish(&mut nacre.run(&[], &file), b"").unwrap(), &[words, &[name]].concat());
}

#[test]
fn not_a_wasm_file() {
    refused("not a wasm file", "notes.wasm", b"Dear diary, today I was no module.", &["not a", "wasm"]);
    refused("an empty file", "empty.wasm", b"", &["not a", "wasm"]);
    refused("an ELF file", "program.wasm", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0", &["not a", "wasm"]);
}

#[test]
fn a_truncated_file() {
    let whole = std::fs::read(app("hello")).unwrap();
    for length in [9, 100, whole.len() / 2, whole.len() - 1] {
        refused(&format!("truncated after {length} bytes"), "cut.wasm", &whole[..length], &[]);
    }
}

#[test]
fn a_component() {
    refused("a component", "part.wasm", b"\0asm\x0d\0\x01\0", &["component", "preview 1"]);
}

#[test]
fn a_missing_file() {
    let Some(nacre) = need("a missing file", Nacre::find()) else { return };
    let ended = finish(&mut nacre.run(&[], Path::new("/nowhere/at-all.wasm")), b"").unwrap();
    one_line("a missing file", &ended, &["/nowhere/at-all.wasm"]);
}

#[test]
fn an_import_nobody_provides() {
    let Some(nacre) = need("a missing import", Nacre::find()) else { return };
    let ended = finish(&mut nacre.run(&[], &app("features/missing-import")), b"").unwrap();
    one_line("a missing import", &ended, &["env", "launch_rocket"]);
}

#[test]
fn no_start_function() {
    let Some(nacre) = need("no _start", Nacre::find()) else { return };
    let ended = finish(&mut nacre.run(&[], &app("features/no-start")), b"").unwrap();
    one_line("no _start", &ended, &["_start"]);
}

#[test]
fn too_little_memory() {
    let Some(nacre) = need("too little memory", Nacre::find()) else { return };
    let ended = finish(&mut nacre.run(&["--memory", "64MiB"], &app("features/needs-memory")), b"").unwrap();
    one_line("too little memory", &ended, &["memory"]);
}

#[test]
fn a_missing_directory() {
    let Some(nacre) = need("a missing directory", Nacre::find()) else { return };
    let ended = finish(&mut nacre.run(&["--dir", "/nowhere/at-all::/data"], &app("hello")), b"").unwrap();
    one_line("a missing directory", &ended, &["/nowhere/at-all"]);
}

#[test]
fn an_export_of_nothing() {
    let Some(nacre) = need("an export of nothing", Nacre::find()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let target = format!("/not-there::{}", dir.path().join("out").display());
    let ended = finish(nacre.run(&["--export", &target], &app("traps")).args(["exit", "0"]), b"").unwrap();
    one_line("an export of nothing", &ended, &["/not-there"]);
}

/// A word that is no option, no size, no number: exit code 2, as for every command.
#[test]
fn wrong_usage_is_2() {
    let Some(nacre) = need("usage", Nacre::find()) else { return };
    for options in [["--memory", "plenty"], ["--workers", "many"], ["--workers", "64"], ["--wrokers", "2"]] {
        let ended = finish(&mut nacre.run(&options, &app("hello")), b"").unwrap();
        assert_eq!(ended.code, 2, "{options:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(options[0]), "{options:?}: {}", ended.stderr);
    }
}

/// A copy of the binary and of a module where every user can read them.
fn public_copy(nacre: &Nacre) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (binary, module) = (dir.path().join("nacre"), dir.path().join("hello.wasm"));
    std::fs::copy(nacre.binary(), &binary).unwrap();
    std::fs::copy(app("hello"), &module).unwrap();
    for (path, mode) in [(dir.path(), 0o777), (&binary, 0o755), (&module, 0o644)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    (dir, binary, module)
}

#[test]
fn no_permission_for_kvm() {
    let Some(nacre) = need("no permission for /dev/kvm", Nacre::find()) else { return };
    let mode = std::fs::metadata("/dev/kvm").unwrap().permissions().mode();
    if !rustix::process::geteuid().is_root() || mode & 0o006 != 0 {
        return skipped(
            "no permission for /dev/kvm",
            "needs root, and a /dev/kvm that not everybody may open",
        );
    }
    let (dir, binary, module) = public_copy(&nacre);
    let mut run = Command::new("setpriv");
    run.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(binary).arg("run").arg(module);
    let ended = finish(run.env("HOME", dir.path()).current_dir(dir.path()), b"").unwrap();
    one_line("no permission for /dev/kvm", &ended, &["/dev/kvm", "permission", "kvm group"]);
}

#[test]
fn no_kvm() {
    let Some(nacre) = need("no /dev/kvm", Nacre::find()) else { return };
    if !rustix::process::geteuid().is_root() {
        return skipped("no /dev/kvm", "needs root to hide it");
    }
    let (dir, binary, module) = public_copy(&nacre);
    let mut run = Command::new("unshare");
    let script = "mkdir hidden && mount -t tmpfs none hidden && mknod -m 666 hidden/null c 1 3 && \
                  mount --move hidden /dev && exec \"$@\" </dev/null";
    run.args(["--mount", "sh", "-c", script, "sh"]).arg(&binary).arg("run").arg(module);
    let ended = finish(run.env("HOME", dir.path()).current_dir(dir.path()), b"").unwrap();
    one_line("no /dev/kvm", &ended, &["/dev/kvm"]);
    let mut demo = Command::new("unshare");
    demo.args(["--mount", "sh", "-c", &script.replace("mkdir", "mkdir -p"), "sh"]).arg(binary).arg("demo");
    let ended = finish(demo.env("HOME", dir.path()).current_dir(dir.path()), b"").unwrap();
    one_line("no /dev/kvm for the demo", &ended, &["/dev/kvm", "enable virtualisation"]);
}

#[test]
fn output_that_nobody_reads_is_no_panic() {
    let Some(nacre) = need("closed output", Nacre::find()) else { return };
    for args in [["measure", "--json"], ["measure", "--policy"]] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let output = nacre.command().args(args).stdout(write).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}: {}", output.status);
        assert!(!output.status.success(), "{args:?}");
    }
}
