//! Builds the guest image by a cargo of its own (it is another workspace, see docs/decisions/0005-two-workspaces.md) and
//! tells the crate where the two images are: the one for use, and the debug image.
//!
//! The image is measured, so its bytes must follow from sources and compiler alone and not from the folder it is built in. Two
//! things would carry the folder into it: paths of source files in panic messages, and the hash by which the compiler names
//! symbols and types of our crates, which cargo derives from where they are. So the inner cargo calls the compiler
//! by way of this very program (`RUSTC_WRAPPER`), which sets both: see [`compile`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Set for the inner cargo: this program stands in for the compiler, and the repository is there.
const REPOSITORY: &str = "NACRE_GUEST_REPOSITORY";

fn main() {
    if let Some(repository) = env::var_os(REPOSITORY) {
        compile(Path::new(&repository));
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let guest = manifest.join("../guest");
    for watched in [
        "image/src",
        "image/Cargo.toml",
        "image/Cargo.lock",
        "image/build.rs",
        "bytes/src",
        "mm/src",
        "wval/src",
        "wasi/src",
        "sockets/src",
        "engine/src",
        "session/src",
        "tls/src",
        "../abi/src",
        "../attest/src",
        "../migrate/src",
    ] {
        println!("cargo:rerun-if-changed={}", guest.join(watched).display());
    }
    for (features, name) in [("", "nacre-guest"), ("debug-image", "nacre-guest-debug")] {
        let built = build(&guest.join("image"), &out.join("guest"), features);
        fs::copy(built, out.join(name)).expect("the image can be copied");
    }
}

/// Calls the compiler as cargo asked for, but for what would tell the folder: source paths begin with the crate's name, and our
/// crates are told apart by name, version and features.
fn compile(repository: &Path) -> ! {
    let mut arguments = env::args_os().skip(1);
    let mut compiler = Command::new(arguments.next().expect("cargo names the compiler"));
    let mut arguments: Vec<_> = arguments.collect();
    let variable = |name| env::var_os(name).unwrap_or_default();
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    if !folder.as_os_str().is_empty() {
        let (name, version) = (variable("CARGO_PKG_NAME"), variable("CARGO_PKG_VERSION"));
        let package = format!("{}-{}", name.to_string_lossy(), version.to_string_lossy());
        if folder.starts_with(repository) {
            let features = arguments.iter().map(|argument| argument.to_string_lossy().into_owned());
            let features = features.filter(|argument| argument.starts_with("feature="));
            let identity = features.fold(package.clone(), |all, feature| all + "," + &feature);
            for argument in &mut arguments {
                if argument.to_string_lossy().starts_with("metadata=") {
                    *argument = format!("metadata={identity}").into();
                }
            }
        }
        let mut remap = std::ffi::OsString::from("--remap-path-prefix=");
        remap.push(&folder);
        remap.push(format!("=/{package}"));
        arguments.push(remap);
    }
    let status = compiler.args(arguments).status().expect("the compiler can be run");
    std::process::exit(status.code().unwrap_or(1));
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
    let repository = fs::canonicalize(workspace.join("../..")).expect("the repository is there");
    let status = cargo
        .current_dir(workspace.canonicalize().expect("the guest's workspace is there"))
        .env("RUSTC_WRAPPER", env::current_exe().expect("this program has a path"))
        .env(REPOSITORY, repository)
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
