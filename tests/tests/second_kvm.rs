//! The KVM backend on a second, different KVM (kvm_amd under emulation, `tests/second-kvm/`): the guest may not depend on
//! anything that only one machine's KVM does. All cases run in one boot.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use nacre_tests::apps::app;
use nacre_tests::job::{Nacre, finish};
use nacre_tests::registry::install_debs;
use nacre_tests::repository;
use nacre_tests::skip::need;
use std::collections::BTreeMap;
use std::process::Command;

const PACKAGES: [&str; 4] = ["qemu-system-x86", "linux-image-cloud-amd64", "cpio", "busybox-static"];

/// Output and exit code by case.
type Cases = BTreeMap<String, (String, i32)>;

/// Boots, runs `cases.sh` and returns its whole output.
fn output() -> Result<String> {
    let nacre = Nacre::find()?;
    install_debs(&PACKAGES)?;
    let work = tempfile::tempdir()?;
    let folder = repository().join("tests/second-kvm");
    let mut boot = Command::new(folder.join("boot"));
    boot.arg("-f").arg(format!("{}:bin/nacre", nacre.binary().display()));
    // Compiling under emulation would take minutes.
    for name in ["hello", "traps", "primes"] {
        let code = work.path().join(format!("{name}.cwasm"));
        let compiled = finish(nacre.command().arg("compile").arg(app(name)).arg("-o").arg(&code), b"")?;
        ensure!(compiled.code == 0, "compiling {name}: {}", compiled.stderr);
        boot.arg("-f").arg(format!("{}:{name}.cwasm", code.display()));
    }
    let ended = finish(boot.arg(folder.join("cases.sh")), b"")?;
    ensure!(ended.code == 0, "boot ended with {}: {}{}", ended.code, ended.text(), ended.stderr);
    Ok(ended.text())
}

fn cases(output: &str) -> Result<Cases> {
    let mut found = Cases::new();
    for part in output.split("\ncase ").skip(1) {
        let (name, rest) = part.split_once('\n').context("a case has a line")?;
        let (text, rest) =
            rest.rsplit_once("code ").with_context(|| format!("case {name} has no code: {rest}"))?;
        let code = rest.lines().next().unwrap_or("").parse()?;
        found.insert(name.to_string(), (text.to_string(), code));
    }
    Ok(found)
}

#[test]
fn programs_traps_and_workers_run_on_another_kvm() {
    let Some(output) = need("second KVM", output()) else { return };
    assert!(output.contains("svm: yes\n"), "not the machine it should be:\n{output}");
    let cases = cases(&output).unwrap();
    let case = |name: &str| cases.get(name).unwrap_or_else(|| panic!("no case {name} in:\n{output}"));
    let hello = "Hello from WebAssembly!\nargument 1: one\nargument 2: two words\n".to_string();
    assert_eq!(case("hello"), &(hello, 0));
    assert_eq!(case("exit"), &(String::new(), 42));
    for (name, words) in
        [("trap", ["out of bounds", "trap_oob"]), ("division", ["divide by zero", "trap_div0"])]
    {
        let (text, code) = case(name);
        assert_eq!(*code, 134, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{name}: {text}");
    }
    let (text, code) = case("memory");
    assert!(*code == 42 && text.contains("out of memory, as expected\n"), "{text}");
    let (text, code) = case("workers");
    assert!(*code == 0 && text.starts_with("primes below 200000: 17984\n"), "{text}");
    assert_eq!(case("directory"), &("KEY=value\n".to_string(), 0));
    assert!(output.contains("same: yes\n"), "the directory came out changed:\n{output}");
}
