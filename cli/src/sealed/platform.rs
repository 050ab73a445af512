//! `nacre platform init`: a development root.

use super::args::{PlatformArgs, PlatformCommand, PlatformInitArgs};
use crate::failure::Failure;
use crate::node;
use nacre_attest::software::{SoftwareError, SoftwarePlatform};
use nacre_attest::software_mark;
use nacre_attest::verify::hex;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// Why there is no new root.
pub fn command(args: &PlatformArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        PlatformCommand::Init(args) => init(args),
    }
}

fn init(args: &PlatformInitArgs) -> Result<ExitCode, Failure> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => node::state_dir(args.state_dir.clone())?.join("platform"),
    };
    let platform = SoftwarePlatform::init(&dir).map_err(failure)?;
    let root = hex(&platform.root_sha256());
    if args.json {
        let object = serde_json::json!({
            "dir": dir.to_string_lossy(), "issuer": software_mark::ISSUER, "root_sha256": root,
        });
        println!("{object}");
    } else {
        println!("{}: {}", dir.display(), software_mark::ISSUER);
        println!("For policies that are to accept it:");
        println!("allow_software_platform = true\nsoftware_roots = [\"{root}\"]");
    }
    Ok(ExitCode::SUCCESS)
}

/// What a software platform's error is for the user.
pub fn failure(error: SoftwareError) -> Failure {
    match error {
        SoftwareError::Exists(path) => {
            Failure::new(path.display(), "exists already; name another folder with --dir")
        }
        SoftwareError::File { path, error } => Failure::new(
            path.display(),
            format_args!("{}; name another folder", crate::program::io_reason(&error)),
        ),
        SoftwareError::Permissions(path) => {
            Failure::new(path.display(), "holds keys and is open to other users; chmod 600 it")
        }
        SoftwareError::Content(path) => Failure::new(
            path.display(),
            "is not a software platform's file; restore it, or make a new platform in another folder",
        ),
        error @ (SoftwareError::NodeName | SoftwareError::Crypto(_)) => Failure::new("platform", error),
    }
}
