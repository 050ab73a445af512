//! Results are found where they are, and only there; each way to end has its status and text.

use super::*;

fn left(end: End, stdout: &str) -> Left {
    Left { end, stdout: stdout.into(), stderr: Vec::new(), stdout_cut: false, stderr_cut: false }
}

fn outcome(end: End, stdout: &str) -> (Status, String, usize) {
    let outcome = left(end, stdout).outcome(&ActionLimits::default(), 0);
    (outcome.status, outcome.result.get().to_owned(), outcome.logs.len())
}

#[test]
fn the_last_object_is_the_result_and_the_rest_are_logs() {
    let ok = |stdout: &str| outcome(End::Exit(0), stdout);
    assert_eq!(ok("{\"a\":1}"), (Status::Success, "{\"a\":1}".into(), 0));
    assert_eq!(ok("hello\nworld\n{\"a\":1}\n\n"), (Status::Success, "{\"a\":1}".into(), 2));
    assert_eq!(ok("{\"a\":1}\n{\"b\":2}\n"), (Status::Success, "{\"b\":2}".into(), 1));
    assert_eq!(ok("log\n{\n  \"a\": {\n    \"b\": 1\n  }\n}\n").1, "{\n  \"a\": {\n    \"b\": 1\n  }\n}");
    assert_eq!(ok("  {\"a\":\"}\"}").1, "{\"a\":\"}\"}");
    for nothing in
        ["", "\n", "hello", "[1]", "1", "{\"a\":1} trailing", "x {\"a\":1}", "{broken}", "{\"a\":1"]
    {
        let (status, result, _) = ok(nothing);
        assert_eq!(status, Status::DeveloperError, "{nothing}");
        assert!(result.contains("valid JSON"), "{result}");
    }
}

#[test]
fn errors_of_the_application() {
    assert_eq!(outcome(End::Exit(0), "{\"error\":\"x\"}").0, Status::ApplicationError);
    assert_eq!(outcome(End::Exit(0), "{\"errors\":\"x\"}").0, Status::Success);
    assert_eq!(outcome(End::Exit(0), "{\"a\":{\"error\":1}}").0, Status::Success);
    let (status, result, _) = outcome(End::Exit(7), "whatever");
    assert_eq!(status, Status::ApplicationError);
    assert!(result.contains("code 7"), "{result}");
    let own = outcome(End::Exit(1), "{\"error\":\"my words\"}");
    assert_eq!((own.0, own.1.as_str()), (Status::ApplicationError, "{\"error\":\"my words\"}"));
}

#[test]
fn other_ends() {
    let (status, result, logs) = outcome(End::Trap("unreachable\n  at f\n  at g".into()), "x");
    assert!(
        status == Status::DeveloperError && result.contains("unreachable") && logs == 4,
        "{result} {logs}"
    );
    let (status, result, _) = outcome(End::TimeLimit, "{}");
    assert_eq!(status, Status::DeveloperError);
    assert!(result.contains("exceeded its time limits of 60000 milliseconds"), "{result}");
    assert!(outcome(End::OutOfMemory("x".into()), "").1.contains("exhausted its memory"));
    assert_eq!(outcome(End::Lost("gone".into()), "").0, Status::InternalError);
}

#[test]
fn results_have_a_size() {
    let fits = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_RESULT_BYTES - 8));
    assert_eq!(fits.len(), MAX_RESULT_BYTES);
    assert_eq!(outcome(End::Exit(0), &fits).0, Status::Success);
    let (status, result, _) = outcome(End::Exit(0), &format!("{fits} ").replace("\"}", "x\"}"));
    assert!(status == Status::DeveloperError && result.contains("allowed length"), "{result}");
    let cut = Left { stdout_cut: true, ..left(End::Exit(0), "{\"a\":") };
    assert!(cut.outcome(&ActionLimits::default(), 0).result.get().contains("allowed length"));
}

#[test]
fn logs_have_a_size_and_say_when_they_are_cut() {
    let limits = ActionLimits { logs: 1, ..ActionLimits::default() };
    let noise = Left { stderr: "y\n".repeat(1 << 20).into(), ..left(End::Exit(0), "{}") };
    let logs = noise.outcome(&limits, 0).logs;
    let bytes: usize = logs.iter().map(String::len).sum();
    assert!(bytes < (1 << 20) + 300, "{bytes}");
    assert!(logs.last().unwrap().contains("truncated"));
    let none = ActionLimits { logs: 0, ..limits };
    assert_eq!(left(End::Exit(0), "hello\n{}").outcome(&none, 0).logs.len(), 1);
    let binary = Left { stderr: b"\xff\xfe\r\n".to_vec(), ..left(End::Exit(0), "{}") };
    assert!(binary.outcome(&limits, 0).logs[0].ends_with("stderr: \u{fffd}\u{fffd}"));
}

/// Output made to be slow to search is given up on, not searched for ever.
#[test]
fn hostile_output_is_bounded_work() {
    for stdout in
        ["{\"a\":\n".repeat(200_000) + "}", "{[\n".repeat(500_000) + "}", "{}\n".repeat(300_000) + "x}"]
    {
        let begin = find_result(stdout.as_bytes());
        assert!(matches!(begin, Found::None));
    }
}
