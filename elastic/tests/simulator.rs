//! The simulator: the same seed gives the same report, time and work are conserved, and arms that must agree do.

use nacre_elastic::sim::{self, Arm, Bursts, Costs, Report, Scenario};

const FREE: Costs = Costs {
    wake_ns: 0,
    spin_wake_ns: 0,
    ring_ns: 0,
    park_ns: 0,
    reclaim_ns: 0,
    spin_ns: 0,
    hotplug_ns: 0,
    hotplug_keep_ns: 0,
    boot_ns: 0,
};

fn small() -> Scenario {
    let bursts = Bursts { seconds: 5.0, ..Bursts::default() };
    Scenario { cores: 32, cvms: 50, bursts, parallel: Vec::new(), ..Scenario::default() }
}

fn run(scenario: &Scenario) -> Report {
    sim::run(scenario, |_| {}).expect("a possible scenario")
}

#[test]
fn the_seed_decides_everything() {
    let first = run(&small());
    assert_eq!(first, run(&small()));
    assert_ne!(first.arms, run(&Scenario { seed: 2, ..small() }).arms);
}

#[test]
fn work_is_conserved_and_no_arm_is_faster_than_the_work() {
    let mut scenario = small();
    scenario.bursts.load = 0.9;
    let report = run(&scenario);
    assert_eq!(report.arms.len(), Arm::all().len());
    for arm in &report.arms {
        let title = &arm.title;
        assert!(arm.busy_core_s >= report.work_core_s * (1.0 - 1e-6), "{title} lost work");
        assert!(arm.reserved_core_s >= arm.busy_core_s * (1.0 - 1e-6) || title == "static, p95", "{title}");
        assert!(arm.p50_slowdown >= 1.0 && arm.mean_slowdown >= arm.p50_slowdown * 0.9, "{title}");
        assert!(arm.curve.is_sorted_by(|left, right| left.1 <= right.1), "{title}");
        assert!(arm.busy_core_s <= 32.0 * arm.end_s, "{title} had more cores than there are");
    }
    let nacre = &report.arms[0];
    assert!(nacre.reclaims > 0, "at this load CPUs change hands");
    assert!(nacre.busy_core_s < 1.05 * report.work_core_s, "{} of {}", nacre.busy_core_s, report.work_core_s);
}

/// One CVM with a worker for every core, and mechanisms that cost nothing: both engines are the same queue.
#[test]
fn both_engines_agree_where_they_must() {
    let scenario = Scenario {
        cores: 8,
        cvms: 1,
        workers: 8,
        costs: FREE,
        arms: vec![Arm::Nacre, Arm::StaticEqual],
        ..small()
    };
    let report = run(&scenario);
    let (nacre, fixed) = (&report.arms[0], &report.arms[1]);
    assert!(report.tasks > 100 && nacre.p99_slowdown > 1.5, "tasks queue");
    assert_eq!(nacre.response, fixed.response);
}

/// At a tenth of the capacity, elastic CVMs use hardly more CPU than the work, and nobody waits.
#[test]
fn low_load_costs_little_and_is_fast() {
    let mut scenario = small();
    scenario.bursts.load = 0.1;
    scenario.arms = vec![Arm::Nacre, Arm::StaticP95, Arm::Sampled { interval_ms: 1000 }];
    let report = run(&scenario);
    let [nacre, fixed, sampled] = &report.arms[..] else { panic!("three arms") };
    assert!(nacre.reserved_core_s <= 1.05 * report.work_core_s);
    assert!(fixed.reserved_core_s > 5.0 * report.work_core_s);
    assert!(sampled.response.p99_ms > 2.0 * nacre.response.p99_ms);
}

#[test]
fn a_trace_is_played_as_it_is() {
    let folder = tempfolder("trace");
    let trace = folder.join("trace.csv");
    // Two tasks at once on one core: the second waits for the first, and both for the wake.
    std::fs::write(&trace, "time_us,cvm,service_us\n1000,5,500\n1000,5,500\n").expect("a file");
    let scenario = Scenario { cores: 1, trace: Some(trace.clone()), arms: vec![Arm::Nacre], ..small() };
    let report = run(&scenario);
    let response = report.arms[0].response;
    assert_eq!((report.tasks, report.cvms), (2, 1));
    assert!((response.p50_ms - 0.518).abs() < 1e-9 && (response.max_ms - 1.018).abs() < 1e-9, "{response:?}");
    std::fs::write(&trace, "0,0,0\n").expect("a file");
    let error = sim::run(&scenario, |_| {}).expect_err("a wrong trace").to_string();
    assert!(error.starts_with("line 1 of the trace: the service time"), "{error}");
    let scenario = Scenario { trace: Some(folder.join("none.csv")), ..scenario };
    let error = sim::run(&scenario, |_| {}).expect_err("no trace").to_string();
    assert!(error.starts_with("cannot read the trace"), "{error}");
    std::fs::remove_dir_all(folder).expect("it was made");
}

#[test]
fn impossible_scenarios_are_refused() {
    let base = small;
    for (scenario, message) in [
        (Scenario { cores: 0, ..base() }, "cores = 0 is impossible; give 1 to 4096"),
        (Scenario { cvms: 20_000, ..base() }, "cvms = 20000 is impossible; give 1 to 10000"),
        (Scenario { workers: 64, ..base() }, "workers = 64 is impossible; give 1 to 63"),
        (Scenario { arms: vec![], ..base() }, "no arms to simulate; name at least one"),
        (Scenario { min_workers: 1, ..base() }, "minimums add up to 50 CPUs, but the budget is 32"),
        (Scenario { min_workers: 40, ..base() }, "the minimum of 40 workers is above the maximum of 32"),
        (Scenario { parallel: vec![0], ..base() }, "parallel = 0 is impossible"),
        (Scenario { arms: vec![Arm::Sampled { interval_ms: 0 }], ..base() }, "interval_ms = 0 is impossible"),
        (
            Scenario { bursts: Bursts { load: f64::NAN, ..Bursts::default() }, ..base() },
            "load = NaN is impossible; give more than 0, at most 0.99",
        ),
        (
            Scenario { cores: 4096, bursts: Bursts { seconds: 100_000.0, ..Bursts::default() }, ..base() },
            "tasks are too many; shorten the time",
        ),
    ] {
        let error = sim::run(&scenario, |_| {}).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn scenarios_and_reports_are_json() {
    let scenario: Scenario = serde_json::from_str(
        r#"{"cores": 2, "cvms": 1, "costs": {"wake_ns": 5}, "arms": ["nacre", {"sampled": {"interval_ms": 500}}],
            "bursts": {"seconds": 1.0}, "parallel": []}"#,
    )
    .expect("a scenario");
    assert_eq!((scenario.costs.wake_ns, scenario.costs.park_ns), (5, Costs::default().park_ns));
    let report = run(&scenario);
    let text = serde_json::to_string(&report).expect("JSON");
    assert_eq!(serde_json::from_str::<Report>(&text).expect("a report").tasks, report.tasks);
    assert!(serde_json::from_str::<Scenario>(r#"{"coers": 2}"#).is_err(), "misspelt names are refused");
}

#[test]
fn progress_goes_from_0_to_1() {
    let mut told = Vec::new();
    let scenario = Scenario { parallel: vec![2], parallel_seconds: 1.0, ..small() };
    sim::run(&scenario, |fraction| told.push(fraction)).expect("a possible scenario");
    assert!(told.is_sorted() && told.len() > 8 && told.last() == Some(&1.0), "{told:?}");
}

#[test]
fn drawings_name_axes_units_and_arms() {
    let report = run(&Scenario { parallel: vec![2, 4], parallel_seconds: 1.0, ..small() });
    let folder = tempfolder("plots");
    let files = sim::plot::write_svgs(&report, &folder).expect("drawings");
    assert_eq!(files.len(), 4);
    let texts: Vec<String> =
        files.iter().map(|file| std::fs::read_to_string(file).expect("a file")).collect();
    for (text, words) in texts.iter().zip([
        &[
            "Response time of tasks",
            "percentile of tasks",
            "response time (ms",
            "nacre (events)",
            "CVM per burst",
        ],
        &["CPU time per CPU time of work", "core-seconds", "reserved", "burnt", "static, equal"],
        &["Demand and granted cores", "time (s)", "cores", "sampled 1 s", "hotplug"],
        &["One parallel job", "workers", "time over ideal time", "sampled 2 s, step", "nacre (events)"],
    ]) {
        for word in words {
            assert!(text.contains(word), "no {word}");
        }
    }
    std::fs::remove_dir_all(folder).expect("it was made");
}

fn tempfolder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("nacre-elastic-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}
