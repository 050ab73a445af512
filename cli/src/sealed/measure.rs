//! `nacre measure`: what a CVM proves about itself, computed from the guest image in this program.

use super::args::MeasureArgs;
use super::{platform, read_manifest};
use crate::failure::Failure;
use crate::values::format_size;
use nacre_attest::software::SoftwarePlatform;
use nacre_attest::verify::hex;
use nacre_vmm::evidence::{LaunchShape, measurement};
use nacre_vmm::image;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::process::ExitCode;

/// The extended state that CVMs have (XCR0), on processors with and without AVX-512.
const XCR0: [(u64, &str); 2] = [(0xe7, "with AVX-512"), (0x7, "without AVX-512")];

struct Measured {
    xcr0: u64,
    kind: &'static str,
    digest: String,
    is_here: bool,
}

/// Runs the command.
///
/// # Errors
/// If no CVM has this shape.
pub fn command(args: &MeasureArgs) -> Result<ExitCode, Failure> {
    let here = if std::arch::is_x86_feature_detected!("avx512f") { XCR0[0].0 } else { XCR0[1].0 };
    let mut all = Vec::new();
    for (xcr0, kind) in XCR0 {
        let shape = LaunchShape {
            vcpus: u32::from(args.workers) + 1,
            memory_bytes: args.memory.bytes(),
            debug_image: args.debug_image,
            xcr0,
        };
        let digest = measurement(shape).map_err(|error| {
            Failure::new("measure", format_args!("{error}; choose other --workers and --memory"))
        })?;
        all.push(Measured { xcr0, kind, digest: hex(&digest), is_here: xcr0 == here });
    }
    if args.policy {
        print!("{}", policy(args, &all)?);
        return Ok(ExitCode::SUCCESS);
    }
    let image = if args.debug_image { image::DEBUG } else { image::RELEASE };
    let image = hex(&Sha256::digest(image));
    if args.json {
        let measurements: Vec<_> = all
            .iter()
            .map(|one| json!({ "xcr0": one.xcr0, "processors": one.kind, "digest": one.digest, "this_machine": one.is_here }))
            .collect();
        let object = json!({
            "guest": guest(args),
            "image_sha256": image,
            "debug_image": args.debug_image,
            "workers": args.workers,
            "memory_bytes": args.memory.bytes(),
            "measurements": measurements,
        });
        println!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("guest {}, image SHA-256 {image}", guest(args));
    println!("{} workers, {} of memory", args.workers, format_size(args.memory.bytes()));
    for one in &all {
        let mark = if one.is_here { ", as this machine" } else { "" };
        println!("{}  on processors {}{mark} (XCR0 {:#x})", one.digest, one.kind, one.xcr0);
    }
    Ok(ExitCode::SUCCESS)
}

fn guest(args: &MeasureArgs) -> String {
    format!("{}{}", env!("CARGO_PKG_VERSION"), if args.debug_image { "-debug" } else { "" })
}

fn policy(args: &MeasureArgs, all: &[Measured]) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{words}");
    };
    let shape = format!("{} workers, {}", args.workers, format_size(args.memory.bytes()));
    line(format_args!("# Guests that are accepted: {shape}, as nacre measure prints them."));
    line(format_args!("measurements = ["));
    for one in all {
        let guest = format!("{} ({shape}, {})", guest(args), one.kind);
        line(format_args!("    {{ digest = \"{}\", guest = \"{guest}\" }},", one.digest));
    }
    line(format_args!("]"));
    if args.debug_image {
        line(format_args!("# The debug image tells its secrets to the host."));
        line(format_args!("allow_debug = true"));
    }
    match &args.platform {
        Some(dir) => {
            let root = hex(&SoftwarePlatform::open(dir).map_err(platform::failure)?.root_sha256());
            line(format_args!("# A software platform protects nothing: for development only."));
            line(format_args!("allow_software_platform = true"));
            line(format_args!("software_roots = [\"{root}\"]"));
        }
        None => {
            line(format_args!("# Processors that are accepted, and the firmware they need at least:"));
            line(format_args!("# platforms = [\"milan\", \"genoa\"]"));
            line(format_args!("# [minimum_tcb.milan]"));
            line(format_args!("# bootloader = 4\n# tee = 0\n# snp = 24\n# microcode = 219"));
        }
    }
    line(format_args!(""));
    match &args.manifest {
        Some(path) => {
            let signed = read_manifest(path)?;
            let manifest = signed.verify().map_err(|error| Failure::new(path.display(), error))?;
            line(format_args!("[manifest]"));
            line(format_args!("owner = \"{}\"", hex(manifest.owner.as_bytes())));
            line(format_args!("minimum_version = {}", manifest.version));
            line(format_args!("mode = \"{}\"", manifest.mode.name()));
        }
        None => {
            line(format_args!("# Whose CVMs are accepted; sealed sessions need it."));
            line(format_args!("# [manifest]\n# owner = \"...\"\n# minimum_version = 1\n# mode = \"sealed\""));
        }
    }
    Ok(text)
}
