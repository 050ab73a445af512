//! Seeds on KVM: `NACRE_HOSTILE_SEED=n` runs one of them twenty times, `NACRE_LONG=1` many more than CI does.
#![forbid(unsafe_code)]

use nacre_hostile::MARK;
use nacre_hostile::plan::Plan;
use nacre_hostile::sweep::sweep;
use nacre_tests::skip::skipped;

/// Seeds in CI and in the long run.
const SEEDS: (u64, u64) = (300, 5_000);

#[test]
fn what_must_hold_holds_on_every_seed() {
    if let Err(error) = nacre_vmm::kvm::available() {
        return skipped("hostile host", &error.to_string());
    }
    let (seeds, repeat) = match std::env::var("NACRE_HOSTILE_SEED").map(|seed| seed.parse::<u64>()) {
        Ok(seed) => {
            let seed = seed.expect("NACRE_HOSTILE_SEED is a number");
            println!("{}", Plan::from_seed(seed));
            (seed..seed + 1, 20)
        }
        Err(_) => (0..if nacre_tests::long() { SEEDS.1 } else { SEEDS.0 }, 1),
    };
    let summary = sweep(seeds, repeat, 2).unwrap();
    println!("{summary}");
    assert!(summary.failures.is_empty(), "see above for what failed and how to repeat it");
    // Most of them must come through, or nothing was tested.
    let right: u64 =
        summary.verdicts.iter().filter(|(name, _)| name.ends_with(": right")).map(|(_, n)| n).sum();
    assert!(repeat > 1 || right * 2 > summary.seeds, "{summary}");
}

/// The released binary is made without this package.
#[test]
fn the_released_binary_can_not_misbehave() {
    let contains = |path: &std::path::Path| {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes())
    };
    let ours = std::path::Path::new(env!("CARGO_BIN_EXE_nacre-hostile"));
    assert!(contains(ours), "the mark is where it should be");
    let released = match std::env::var_os("NACRE_BIN") {
        Some(path) => path.into(),
        None => ours.with_file_name("nacre"),
    };
    assert!(!contains(&released), "{} contains the hostile host", released.display());
}
