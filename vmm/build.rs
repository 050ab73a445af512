//! Builds the guest image by a cargo of its own (it is another workspace, see docs/decisions/0005-two-workspaces.md) and
//! tells the crate where the two images are: the one for use, and the debug image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let guest = manifest.join("../guest");
    for watched in [
        "image/src",
        "image/Cargo.toml",
        "image/Cargo.lock",
        "image/build.rs",
        "mm/src",
        "wval/src",
        "wasi/src",
        "sockets/src",
        "engine/src",
        "../abi/src",
    ] {
        println!("cargo:rerun-if-changed={}", guest.join(watched).display());
    }
    for (features, name) in [("", "nacre-guest"), ("debug-image", "nacre-guest-debug")] {
        let built = build(&guest.join("image"), &out.join("guest-target"), features);
        fs::copy(built, out.join(name)).expect("the image can be copied");
    }
}

/// Builds the image and returns its path.
fn build(workspace: &Path, target_dir: &Path, features: &str) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").expect("set by cargo"));
    // The outer cargo's settings are not meant for this build: flags, targets, its job server.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let keep = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR"]
            .iter()
            .any(|kept| name.starts_with(kept));
        let drop = [
            "RUSTFLAGS",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "TARGET",
            "HOST",
            "MAKEFLAGS",
            "PROFILE",
            "OPT_LEVEL",
            "DEBUG",
            "NUM_JOBS",
            "OUT_DIR",
        ];
        if (name.starts_with("CARGO") && !keep) || drop.contains(&name.as_str()) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            "x86_64-unknown-linux-gnu",
            "--features",
            features,
            "--target-dir",
        ])
        .arg(target_dir)
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "the guest image does not build (see above)");
    target_dir.join("x86_64-unknown-linux-gnu/release/nacre-guest")
}
