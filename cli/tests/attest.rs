//! Commands about evidence and manifests that need no node: the real binary, files, exit codes.
#![forbid(unsafe_code)]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A folder for one test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn nacre(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("HOME", self.0.path()).env("NACRE_CONTEXT", self.path("context.json"));
        for name in ["NACRE_LOG", "NACRE_STATE_DIR", "NACRE_NODE", "NACRE_AUTH", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.nacre(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with one line that has these words.
    #[track_caller]
    fn fails(&self, code: i32, args: &[&str], words: &str) {
        let output = self.nacre(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }
}

/// Genuine: AMD signed it. The vectors of `nacre-attest`.
fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../attest/tests/vectors")
}

/// A genuine report and, in a folder, its certificates.
fn genuine(place: &Place) {
    use nacre_attest::chain::BUILT_IN;
    fs::copy(vectors().join("report_milan.hex"), place.path("report.hex")).unwrap();
    fs::create_dir(place.path("certs")).unwrap();
    fs::copy(vectors().join("vcek_milan.der"), place.path("certs/vcek.der")).unwrap();
    fs::write(place.path("certs/ask.der"), BUILT_IN[0].ask).unwrap();
    fs::write(place.path("certs/ark.der"), BUILT_IN[0].ark).unwrap();
    fs::write(place.path("certs/README"), "not a certificate").unwrap();
}

#[test]
fn platforms_are_made_once_and_are_private() {
    let place = Place::new();
    let made = place.json(&["platform", "init", "--dir", "p", "--json"]);
    let root = made["root_sha256"].as_str().unwrap();
    assert!(root.len() == 64 && made["issuer"].as_str().unwrap().contains("NOT CONFIDENTIAL"), "{made}");
    assert_eq!((place.mode("p"), place.mode("p/platform.pem")), (0o700, 0o600));
    place.fails(1, &["platform", "init", "--dir", "p"], "exists already");
    let usual = place.ok(&["platform", "init"]);
    assert!(usual.contains("allow_software_platform = true") && !usual.contains(root), "{usual}");
    assert!(place.path(".local/state/nacre/platform/platform.pem").exists());
}

#[test]
fn manifests_are_made_and_signed() {
    let place = Place::new();
    let made = place.json(&["manifest", "init", "a \"name\"", "--broker", "--json"]);
    for key in ["owner.key", "compiler.key", "broker.key"] {
        assert_eq!(place.mode(key), 0o600, "{key}");
        assert!(fs::read_to_string(place.path(key)).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    }
    let text = fs::read_to_string(place.path("manifest.toml")).unwrap();
    for key in ["owner", "compiler", "broker"] {
        assert!(text.contains(made[key].as_str().unwrap()), "{key}: {text}");
    }
    place.fails(1, &["manifest", "init", "again"], "exists already");
    let signed = place.json(&["manifest", "sign", "manifest.toml", "--key", "owner.key", "--json"]);
    assert_eq!((&signed["version"], &signed["mode"]), (&1.into(), &"sealed".into()));
    let bytes = fs::read(place.path("manifest.signed")).unwrap();
    let manifest = nacre_attest::manifest::SignedManifest::decode(&bytes).unwrap();
    assert_eq!(manifest.verify().unwrap().name, "a \"name\"");
    // Keys are kept: the same owner for another manifest.
    fs::remove_file(place.path("manifest.toml")).unwrap();
    let again = place.json(&["manifest", "init", "b", "--json"]);
    assert_eq!((&again["owner"], &again["broker"]), (&made["owner"], &Value::Null));

    let sign = ["manifest", "sign", "manifest.toml", "--key", "compiler.key"];
    place.fails(1, &sign, "not the key of the manifest's owner");
    let text = fs::read_to_string(place.path("manifest.toml")).unwrap();
    for (bad, words) in [
        (text.replace("version = 1", "vershun = 1"), "vershun"),
        (text.replace("\"sealed\"", "\"half\""), "neither sealed nor open"),
        (text.replace("owner = \"", "owner = \"zz"), "hexadecimal"),
    ] {
        fs::write(place.path("manifest.toml"), bad).unwrap();
        place.fails(1, &["manifest", "sign", "manifest.toml", "--key", "owner.key"], words);
    }
    fs::set_permissions(place.path("owner.key"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(place.path("manifest.toml"), text).unwrap();
    place.fails(1, &["manifest", "sign", "manifest.toml", "--key", "owner.key"], "chmod 600");
    place.fails(2, &["manifest", "init", "", "--dir", "empty"], "NAME");
    assert!(!place.path("empty/owner.key").exists());
}

#[test]
fn measurements_are_of_one_shape_and_make_a_policy() {
    let place = Place::new();
    let digest = |args: &[&str]| {
        let measured = place.json(&[&["measure", "--json"][..], args].concat());
        let all = measured["measurements"].as_array().unwrap().clone();
        assert_eq!(all.len(), 2);
        assert_eq!(all.iter().filter(|one| one["this_machine"] == true).count(), 1);
        assert_ne!(all[0]["digest"], all[1]["digest"], "the extended state is measured");
        (all[0]["digest"].clone(), measured["image_sha256"].clone())
    };
    let usual = digest(&[]);
    assert_eq!(usual, digest(&["--workers", "4", "--memory", "512MiB"]));
    assert_ne!(usual.0, digest(&["--workers", "5"]).0);
    assert_ne!(usual.0, digest(&["--memory", "1GiB"]).0);
    let debug = digest(&["--debug-image"]);
    assert!(debug.0 != usual.0 && debug.1 != usual.1);
    place.fails(2, &["measure", "--workers", "64"], "0..=63");

    place.ok(&["manifest", "init", "a"]);
    place.ok(&["manifest", "sign", "manifest.toml", "--key", "owner.key"]);
    place.ok(&["platform", "init", "--dir", "p"]);
    let text = place.ok(&["measure", "--policy", "--manifest", "manifest.signed", "--platform", "p"]);
    let policy = nacre_attest::policy::Policy::from_toml(&text).unwrap();
    assert_eq!(policy.measurements.len(), 2);
    assert!(policy.allow_software_platform && policy.software_roots.len() == 1 && !policy.allow_debug);
    assert_eq!(policy.manifest.unwrap().minimum_version, 1);
    // What is not said is not allowed, but it parses.
    let bare = nacre_attest::policy::Policy::from_toml(&place.ok(&["measure", "--policy"])).unwrap();
    assert!(!bare.allow_software_platform && bare.manifest.is_none() && bare.platforms.is_empty());
    assert!(
        nacre_attest::policy::Policy::from_toml(&place.ok(&["measure", "--policy", "--debug-image"]))
            .unwrap()
            .allow_debug
    );
}

#[test]
fn genuine_reports_are_shown_and_judged() {
    let place = Place::new();
    genuine(&place);
    let shown = place.ok(&["attest", "show", "report.hex"]);
    assert!(shown.contains("measurement") && shown.contains("chip_id"), "{shown}");
    let fields = place.json(&["attest", "show", "report.hex", "--json"]);
    let measurement = fields["report"]["measurement"].as_str().unwrap().to_owned();
    let judged = place.ok(&["attest", "verify", "report.hex", "--certs", "certs"]);
    assert!(judged.contains("accepted: platform milan") && judged.contains("without --policy"), "{judged}");
    let report_data = fields["report"]["report_data"].as_str().unwrap();
    place.ok(&["attest", "verify", "report.hex", "--certs", "certs", "--nonce", report_data]);
    let zeros = "0".repeat(64);
    place.fails(1, &["attest", "verify", "report.hex", "--certs", "certs", "--nonce", &zeros], "");
    place.fails(2, &["attest", "verify", "report.hex", "--certs", "certs", "--nonce", "xyz"], "hexadecimal");
    place.fails(2, &["attest", "verify", "report.hex"], "--certs");

    let policy = |measurement: &str, snp: u8| {
        let text = format!(
            "measurements = [{{ digest = \"{measurement}\", guest = \"vector\" }}]\nplatforms = [\"milan\"]\n\
             [minimum_tcb.milan]\nbootloader = 3\ntee = 0\nsnp = {snp}\nmicrocode = 115\n"
        );
        fs::write(place.path("policy.toml"), text).unwrap();
        place.nacre(&[
            "attest",
            "verify",
            "report.hex",
            "--certs",
            "certs",
            "--policy",
            "policy.toml",
            "--json",
        ])
    };
    let failed = |output: Output| -> Vec<String> {
        let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(if verdict["accepted"] == true { 0 } else { 1 }));
        let rules = verdict["rules"].as_array().unwrap();
        let failed = rules.iter().filter(|rule| rule["passed"] == false);
        failed.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(failed(policy(&measurement, 8)), Vec::<String>::new());
    assert_eq!(failed(policy(&"0".repeat(96), 8)), ["measurement"]);
    assert_eq!(failed(policy(&measurement, 255)), ["minimum-tcb"]);
    fs::write(place.path("policy.toml"), "").unwrap();
    let empty = ["attest", "verify", "report.hex", "--certs", "certs", "--policy", "policy.toml"];
    assert_eq!(place.nacre(&empty).status.code(), Some(1));
    fs::write(place.path("policy.toml"), "alow_debug = true").unwrap();
    place.fails(1, &empty, "alow_debug");
}

#[test]
fn changed_reports_and_chains_are_rejected() {
    let place = Place::new();
    genuine(&place);
    let verify = ["attest", "verify", "report.hex", "--certs", "certs"];
    let rejected = |rule: &str| {
        let output = place.nacre(&verify);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("REJECTED") && text.contains(rule), "{text}");
    };
    let good = fs::read_to_string(place.path("report.hex")).unwrap();
    // In the measurement.
    let mut bad: Vec<char> = good.trim().chars().collect();
    bad[2 * 0x90] = if bad[2 * 0x90] == '0' { '1' } else { '0' };
    fs::write(place.path("report.hex"), bad.iter().collect::<String>()).unwrap();
    rejected("report-signature");
    fs::write(place.path("report.hex"), &good).unwrap();
    // Another chip's certificate.
    fs::copy(vectors().join("vcek_turin.der"), place.path("certs/vcek.der")).unwrap();
    assert_ne!(place.nacre(&verify).status.code(), Some(0));
    fs::remove_file(place.path("certs/vcek.der")).unwrap();
    rejected("certificate-chain");
    fs::write(place.path("report.hex"), &good[..good.len() / 3]).unwrap();
    place.fails(1, &verify, "is no evidence and no report");
    place.fails(1, &["attest", "show", "nothing"], "no such file");
}

#[test]
fn key_brokers_list_what_they_have() {
    let place = Place::new();
    place.ok(&["manifest", "init", "a"]);
    place.ok(&["manifest", "sign", "manifest.toml", "--key", "owner.key"]);
    let policy = place.ok(&["measure", "--policy", "--manifest", "manifest.signed"]);
    fs::write(place.path("policy.toml"), policy).unwrap();
    fs::write(place.path("a.wat"), r#"(module (memory 1) (func (export "_start")))"#).unwrap();
    fs::write(place.path("secret"), "planted").unwrap();
    fs::set_permissions(place.path("secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let add = |more: &[&str]| {
        let args = [
            "keybroker",
            "add",
            "a",
            "a.wat",
            "--keybroker-store",
            "store",
            "--manifest",
            "manifest.signed",
            "--policy",
            "policy.toml",
            "--owner-key",
            "owner.key",
            "--compiler-key",
            "compiler.key",
            "--secret-file",
            "K=secret",
        ];
        place.nacre(&[&args[..], more].concat())
    };
    // What others may read is no secret.
    let open = add(&[]);
    let text = String::from_utf8(open.stderr).unwrap();
    assert!(open.status.code() == Some(1) && text.contains("chmod 600"), "{text}");
    fs::set_permissions(place.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(add(&[]).status.code(), Some(0));
    assert_eq!(add(&["--version", "7"]).status.code(), Some(0));
    let older = add(&["--version", "6"]);
    let text = String::from_utf8(older.stderr).unwrap();
    assert!(
        older.status.code() == Some(1) && text.contains("version 7") && text.contains("raise the version"),
        "{text}"
    );
    let listed = place.json(&["keybroker", "list", "--store", "store", "--json"]);
    assert_eq!((&listed[0]["version"], &listed[0]["variables"][0]), (&7.into(), &"K".into()));
    assert!(!listed.to_string().contains("planted"));
    assert_eq!(place.mode("store"), 0o700);
    let twice = add(&["--secret", "K=2"]);
    assert_eq!(twice.status.code(), Some(2));
    // A broker does not start with a policy that any CVM satisfies.
    fs::write(place.path("loose.toml"), place.ok(&["measure", "--policy"])).unwrap();
    let run = [
        "keybroker",
        "--store",
        "store",
        "--broker-key",
        "owner.key",
        "--key",
        "u:k",
        "--policy",
        "loose.toml",
    ];
    place.fails(1, &run, "names no owner");
    place.fails(2, &["keybroker", "--store", "store"], "--policy");
}

#[test]
fn sealed_options_belong_together() {
    let place = Place::new();
    for (args, words) in [
        (&["deploy", "a", "a.wasm", "--manifest", "m"][..], "--policy"),
        (&["deploy", "a", "a.wasm", "--secret", "A=1"], "--manifest"),
        (&["deploy", "a", "a.wasm", "--tls"], "--service"),
        (&["rm", "a", "--policy", "p"], "--owner-key"),
        (&["tunnel", "a:1"], "--policy"),
    ] {
        place.fails(2, args, words);
    }
    for command in [
        "platform init",
        "manifest init",
        "manifest sign",
        "measure",
        "attest show",
        "attest verify",
        "attest fetch",
        "keybroker",
        "keybroker add",
        "keybroker list",
        "tunnel",
        "deploy",
        "invoke",
        "rm",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = place.ok(&args);
        assert!(help.contains("Example") && help.contains("--json"), "{command}: {help}");
    }
}
