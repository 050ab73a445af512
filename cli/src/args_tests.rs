//! Tests of the command line, also of commands that are not listed yet.

use super::*;

/// Any argument struct as a command of its own.
#[derive(Debug, Parser)]
struct Only<T: Args> {
    #[command(flatten)]
    args: T,
}

fn parse<T: Args + std::fmt::Debug>(line: &[&str]) -> Result<T, String> {
    let line = std::iter::once("nacre").chain(line.iter().copied());
    Only::<T>::try_parse_from(line).map(|only| only.args).map_err(|error| error.to_string())
}

#[test]
fn clap_finds_no_contradictions() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
    Only::<RunArgs>::command().debug_assert();
    Only::<DemoArgs>::command().debug_assert();
    Only::<BenchArgs>::command().debug_assert();
    Only::<TopArgs>::command().debug_assert();
}

#[test]
fn run_has_defaults() {
    let run: RunArgs = parse(&["app.wasm"]).unwrap();
    assert_eq!(run.cvm.workers, 1);
    assert_eq!(run.cvm.memory.bytes(), 1 << 30);
    assert!(
        run.dirs.is_empty()
            && run.env.is_empty()
            && run.exports.is_empty()
            && run.command_line == ["app.wasm"]
    );
    assert!(!run.stats && !run.json && run.cpu.is_none() && run.stats_json.is_none());
    assert_eq!(run.time_limit, None);
}

#[test]
fn everything_after_the_program_is_the_programs() {
    let run: RunArgs =
        parse(&["--workers", "3", "app.wasm", "--workers", "x", "-v", "--", "--json"]).unwrap();
    assert_eq!(run.cvm.workers, 3);
    assert_eq!(run.command_line, ["app.wasm", "--workers", "x", "-v", "--", "--json"]);
    assert_eq!(run.program(), Path::new("app.wasm"));
    assert!(!run.json);
}

#[test]
fn repeatable_options_repeat() {
    let run: RunArgs = parse(&[
        "--dir",
        "a",
        "--dir",
        "b::/c",
        "--env",
        "A=1",
        "--env=B",
        "--export",
        "/x::y",
        "--memory=2G",
        "--cpu",
        "native",
        "--time-limit",
        "1h30m",
        "--stats",
        "--stats-json",
        "s.json",
        "--json",
        "app.wasm",
    ])
    .unwrap();
    assert_eq!(run.dirs[1], DirMapping { host: "b".into(), guest: "/c".into() });
    assert_eq!(run.env.len(), 2);
    assert_eq!(run.exports[0].host, PathBuf::from("y"));
    assert_eq!(run.cpu, Some(CpuArg::Native));
    assert_eq!(run.time_limit, Some(Duration::from_secs(5400)));
    assert!(run.stats && run.json);
}

#[test]
fn bad_values_are_refused_with_the_reason() {
    for (line, reason) in [
        (&["--workers", "64", "a"][..], "0..=63"),
        (&["--workers", "-1", "a"], "-1"),
        (&["--memory", "1M", "a"], "64MiB to 64GiB"),
        (&["--memory", "4GB", "a"], "GiB"),
        (&["--dir", "a::", "a"], "GUEST is empty"),
        (&["--export", "/", "a"], "GUEST::HOST"),
        (&["--env", "=1", "a"], "no name"),
        (&["--cpu", "pentium", "a"], "x86-64-v3"),
        (&["--time-limit", "5", "a"], "500ms"),
        (&["--time-limit", "0s", "a"], "between 1ms and a year"),
        (&["--bad", "a"], "--bad"),
        (&[], "PROGRAM"),
    ] {
        let error = parse::<RunArgs>(line).unwrap_err();
        assert!(error.contains(reason), "{line:?}: {error}");
    }
}

#[test]
fn the_demo_fills_what_a_service_holds() {
    let demo: DemoArgs = parse(&[]).unwrap();
    assert_eq!((demo.fill, demo.report), (1 << 30, None));
    let demo: DemoArgs = parse(&["--fill", "64MiB", "--report", "plots"]).unwrap();
    assert_eq!((demo.fill, demo.report), (64 << 20, Some(PathBuf::from("plots"))));
    for wrong in ["0", "1KiB", "3GiB", "much"] {
        assert!(parse::<DemoArgs>(&["--fill", wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn migrations_are_measured_between_cvms_and_nodes() {
    let between = |line: &[&str]| match parse::<BenchArgs>(line).unwrap().bench {
        BenchCommand::Migrate(args) => args.between,
        other => panic!("{other:?}"),
    };
    assert_eq!(between(&["migrate"]), []);
    assert_eq!(between(&["migrate", "--between", "nodes"]), [BenchEnds::Nodes]);
    assert!(parse::<BenchArgs>(&["migrate", "--between", "planets"]).is_err());
}

#[test]
fn benchmark_results_go_to_a_file_or_stdout() {
    let json = |line: &[&str]| match parse::<BenchArgs>(line).unwrap().bench {
        BenchCommand::Invoke(args) => args.json,
        BenchCommand::Elastic(args) => args.json,
        BenchCommand::Migrate(args) => args.json,
        BenchCommand::ServeReference | BenchCommand::HoldMemory { .. } => None,
    };
    for bench in ["invoke", "elastic", "migrate"] {
        assert_eq!(json(&[bench]), None);
        assert_eq!(json(&[bench, "--json"]), Some(None));
        assert_eq!(json(&[bench, "--json", "r.json"]), Some(Some("r.json".into())));
    }
}

#[test]
fn what_is_simulated_needs_simulate() {
    assert!(parse::<BenchArgs>(&["elastic", "--cores", "8"]).unwrap_err().contains("--simulate"));
    assert!(parse::<BenchArgs>(&["elastic", "--simulate", "--cores", "8"]).is_ok());
}

#[test]
fn helps_have_examples() {
    use clap::CommandFactory;
    for mut command in
        [Only::<RunArgs>::command(), Only::<DemoArgs>::command(), Only::<CompileArgs>::command()]
    {
        assert!(command.render_help().to_string().contains("Example"));
    }
}
