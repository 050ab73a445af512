//! The guest image is measured, so anybody must be able to build it and get the same bytes: builds it from a copy of the sources in
//! another folder and compares.

use anyhow::{Context, Result, ensure};
use nacre_tests::registry::cargo;
use nacre_tests::repository;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What `vmm/build.rs` makes.
const IMAGES: [&str; 2] = ["nacre-guest", "nacre-guest-debug"];

/// Builds the images in another folder and compares them with those that the build of this one made.
///
/// # Errors
/// If they differ, or can't be built.
pub fn check(target_dir: &Path) -> Result<()> {
    // Its depth and its length differ from those of any ordinary checkout.
    let elsewhere = tempfile::Builder::new().prefix("nacre-reproducible-").tempdir()?;
    let copy = elsewhere.path().join("some/other/place");
    copy_sources(&copy)?;
    // Kept between runs: what the registries gave is compiled once.
    let other_target = target_dir.join("reproducible");
    // What the build before has made, which cargo knows without building again; and the smallest build with the same script.
    let here = images(&repository(), target_dir, &["--package", "nacre-cli", "--bin", "nacre"])?;
    let there = images(&copy, &other_target, &["--package", "nacre-vmm"])?;
    for (here, there) in here.iter().zip(&there) {
        let same = fs::read(here)? == fs::read(there)?;
        ensure!(same, "{} and {} differ: the image depends on its folder", here.display(), there.display());
        println!("{}: the same from two folders", here.file_name().unwrap_or_default().to_string_lossy());
    }
    Ok(())
}

/// Builds in a folder and returns the images.
fn images(sources: &Path, target: &Path, what: &[&str]) -> Result<Vec<PathBuf>> {
    let mut build = cargo();
    build.args(["build", "--release", "--message-format", "json"]).args(what);
    build.current_dir(sources).env("CARGO_TARGET_DIR", target).stderr(Stdio::inherit());
    let output = build.output()?;
    ensure!(output.status.success(), "the build in {} failed", sources.display());
    let out = out_dir(&output.stdout).context("cargo names no output folder of nacre-vmm")?;
    Ok(IMAGES.iter().map(|image| out.join(image)).collect())
}

/// Where the build script of `nacre-vmm` has put its files, from cargo's messages.
fn out_dir(messages: &[u8]) -> Option<PathBuf> {
    String::from_utf8_lossy(messages).lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let ours =
            message["reason"] == "build-script-executed" && message["package_id"].as_str()?.contains("/vmm");
        ours.then(|| message["out_dir"].as_str().map(PathBuf::from)).flatten()
    })
}

/// Copies what git knows, as it is in the work tree.
fn copy_sources(to: &Path) -> Result<()> {
    let list = Command::new("git").args(["ls-files", "-z"]).current_dir(repository()).output()?;
    ensure!(list.status.success(), "git ls-files failed: is this a checkout?");
    for name in list.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        let (from, to) = (repository().join(&name), to.join(&name));
        if from.is_file() {
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::copy(&from, &to).with_context(|| name)?;
        }
    }
    Ok(())
}
