//! `nacre invoke --policy`: a sealed call. The node learns that there was one, and lengths in buckets.

use super::{printable, proved, proved_json, read_policy, session_failure};
use crate::failure::{EXIT_FAILED, Failure};
use crate::node::client::wait;
use crate::node::drive_args::InvokeArgs;
use crate::spinner;
use nacre_client::{ExitKind, Expectations, Invoke, Limits, Outcome, SealedSession};
use nacre_node::limits::ActionLimits;
use nacre_node::outcome::{End, Left};
use nacre_node::records::Status;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Runs the command.
///
/// # Errors
/// What node or CVM say; that the function fails is an exit code.
pub fn command(args: &InvokeArgs, policy: &Path, input: &[u8]) -> Result<ExitCode, Failure> {
    if args.no_wait {
        let why = "does not go with --policy: nobody keeps the result of a sealed call";
        return Err(Failure::usage("--no-wait", why, "leave one of them out"));
    }
    let client = args.target.client()?;
    let policy = read_policy(policy)?;
    let begin = Instant::now();
    let work = async {
        let failure = |error| session_failure(&args.name, error);
        let opened = SealedSession::open(client.node(), &policy, &Expectations::new()).await;
        let mut session = opened.map_err(failure)?;
        let (action, limits) = (args.name.as_str(), Limits::default());
        let call = Invoke { action, args: Vec::new(), env: Vec::new(), limits, stdin: input };
        let outcome = session.invoke(call).await.map_err(failure)?;
        Ok((session, outcome))
    };
    let (session, outcome) = spinner::during(&format!("calling {} (sealed)", args.name), || wait(work))?;
    let took = begin.elapsed();
    let label = format!("sealed: only the CVM sees it; {}", proved(session.verdict()));
    let timing = [("cpu", outcome.cpu), ("queued", outcome.queued), ("ran", outcome.ran), ("all", took)];
    let cold = outcome.cold;
    let (kind, code) = (outcome.exit, outcome.code);
    let interpreted = left(outcome).outcome(&ActionLimits::default(), now_ms());
    let succeeded = interpreted.status == Status::Success;
    if args.json {
        let us: serde_json::Map<String, serde_json::Value> = timing
            .iter()
            .map(|(name, time)| (format!("{name}_us"), (time.as_micros() as u64).into()))
            .collect();
        let object = serde_json::json!({
            "name": args.name,
            "sealed": true,
            "label": label,
            "status": interpreted.status,
            "result": interpreted.result,
            "logs": interpreted.logs,
            "exit": format!("{kind:?}").to_lowercase(),
            "code": code,
            "cold": cold,
            "timing": us,
            "evidence": proved_json(session.evidence(), session.verdict()),
        });
        println!("{object}");
    } else {
        interpreted.logs.iter().for_each(|line| eprintln!("{}", printable(line)));
        let result: serde_json::Value = serde_json::from_str(interpreted.result.get()).unwrap_or_default();
        println!("{}", serde_json::to_string_pretty(&result).unwrap_or_default());
        eprintln!("nacre: {}: {label}", printable(&args.name));
    }
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What a node makes of a plain call, is made here of a sealed one, in the same way.
fn left(outcome: Outcome) -> Left {
    let Outcome { exit, code, stdout, stderr, text, stdout_cut, stderr_cut, .. } = outcome;
    let end = match exit {
        ExitKind::Code => End::Exit(code),
        ExitKind::Trap => End::Trap(text),
        ExitKind::Error => End::Error(text),
        ExitKind::OutOfMemory => End::OutOfMemory(text),
        ExitKind::TimeLimit => End::TimeLimit,
        // The CVM reads all that calls write.
        ExitKind::BrokenPipe => End::Lost(text),
    };
    Left { end, stdout, stderr, stdout_cut, stderr_cut }
}
