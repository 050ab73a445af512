//! `nacre migrate`: moves a tenant to another node, and shows how it goes.

use super::client::{Client, segment};
use super::migrate_args::MigrateArgs;
use crate::failure::{EXIT_FAILED, Failure};
use crate::values::format_size;
use hyper::{Method, StatusCode};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const JSON: &str = "application/json";
const PATH: &str = "/v1/migrations";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// How often the user has pressed Ctrl-C.
static PRESSED: AtomicU32 = AtomicU32::new(0);

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or("-")
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}

/// What a node says of others: nothing in it may act on the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `nacre migrate`.
///
/// # Errors
/// What the node says; that the tenant did not move is an exit code.
pub fn command(args: &MigrateArgs) -> Result<ExitCode, Failure> {
    let client = args.target.client()?;
    if args.list {
        return list(&client, args.json);
    }
    let (name, to) = (args.name.as_deref().unwrap_or_default(), args.to.as_deref().unwrap_or_default());
    let order = serde_json::json!({
        "name": name, "to": to, "mode": args.mode.word(), "bandwidth": args.bandwidth, "lanes": args.lanes,
    });
    let installed = ctrlc::set_handler(|| {
        PRESSED.fetch_add(1, Ordering::SeqCst);
    });
    installed.map_err(|error| Failure::new("nacre", format_args!("no handler for Ctrl-C: {error}")))?;
    let begun =
        client.send(Method::POST, PATH, JSON, order.to_string().into_bytes())?.success(name)?.json()?;
    let path = format!("{PATH}/{}", segment(text(&begun, "id")));
    let Some(view) = follow(&client, &path, args.json)? else {
        let why = "it goes on without this command; nacre migrate --list shows it";
        return Err(Failure::new(name, why));
    };
    let moved = text(&view, "step") == "complete";
    if args.json {
        println!("{view}");
    } else {
        tell(&view);
    }
    if moved {
        if PRESSED.load(Ordering::SeqCst) > 0 {
            eprintln!("nacre: {}: it was too late to cancel; it has moved", printable(name));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.json {
        eprintln!("nacre: {}: {}", printable(name), printable(text(&view, "error")));
    }
    Ok(ExitCode::from(EXIT_FAILED))
}

/// Until it is over; none if the user does not want to wait.
fn follow(client: &Client, path: &str, json: bool) -> Result<Option<Value>, Failure> {
    let bar = if std::io::stderr().is_terminal() && !json { bar() } else { ProgressBar::hidden() };
    let mut cancelled = false;
    loop {
        let view = client.send(Method::GET, path, JSON, Vec::new())?.success("migration")?.json()?;
        let step = text(&view, "step");
        draw(&bar, &view, cancelled);
        if matches!(step, "complete" | "aborted" | "lost") {
            bar.finish_and_clear();
            return Ok(Some(view));
        }
        match PRESSED.load(Ordering::SeqCst) {
            0 => {}
            1 if cancelled => {}
            1 => {
                cancelled = true;
                let answer = client.send(Method::DELETE, path, JSON, Vec::new())?;
                // It may have ended in this moment.
                if answer.status != StatusCode::CONFLICT {
                    answer.success("migration")?;
                }
            }
            _ => {
                bar.finish_and_clear();
                return Ok(None);
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {percent}%") {
        bar.set_style(style);
    }
    bar
}

fn draw(bar: &ProgressBar, view: &Value, cancelled: bool) {
    bar.set_length(number(view, "total_bytes").max(1));
    bar.set_position(number(view, "sent_bytes"));
    bar.set_message(line(view, cancelled));
    bar.tick();
}

/// One line about a migration.
fn line(view: &Value, cancelled: bool) -> String {
    let mut line = if cancelled { "cancelling: ".to_owned() } else { String::new() };
    line += text(view, "step");
    if number(view, "round") > 0 {
        line += &format!(
            ", round {}: {} of {}, {}/s written, {}/s sent",
            number(view, "round"),
            format_size(number(view, "sent_bytes")),
            format_size(number(view, "total_bytes")),
            format_size(number(view, "dirty_rate")),
            format_size(number(view, "bandwidth")),
        );
    }
    if let Some(ms) = view["estimated_ms"].as_u64() {
        line += &format!(", {:.1} s left", ms as f64 / 1e3);
    }
    line
}

/// A table of the steps, and what it came to.
fn tell(view: &Value) {
    println!("{:<12} {:>12} {:>12}", "STEP", "AT", "TOOK");
    let steps: Vec<(&str, f64)> = view["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| (text(step, "step"), step["at_ms"].as_f64().unwrap_or(0.0)))
        .collect();
    for (index, (step, at)) in steps.iter().enumerate() {
        let took = steps.get(index + 1).map(|(_, next)| format!("{:.1} ms", next - at)).unwrap_or_default();
        println!("{:<12} {:>12} {took:>12}", printable(step), format!("{at:.1} ms"));
    }
    if text(view, "step") == "complete" {
        let downtime = view["downtime_ms"].as_f64().unwrap_or(0.0);
        let (sent, to) = (format_size(number(view, "sent_bytes")), printable(text(view, "to")));
        println!(
            "{} is at {to} now: {sent} in {} rounds, {downtime:.1} ms parked",
            text(view, "tenant"),
            number(view, "round")
        );
    }
}

fn list(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let all = client.send(Method::GET, PATH, JSON, Vec::new())?.success("migrations")?.json()?;
    if json {
        println!("{all}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<32} {:<16} {:<24} {:<14} STEP", "ID", "TENANT", "TO", "MODE");
    for view in all.as_array().into_iter().flatten() {
        let why = view["error"].as_str().map(|error| format!(": {}", printable(error))).unwrap_or_default();
        println!(
            "{:<32} {:<16} {:<24} {:<14} {}{why}",
            text(view, "id"),
            printable(text(view, "tenant")),
            printable(text(view, "to")),
            text(view, "mode"),
            text(view, "step"),
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let view = serde_json::json!({"step": "copying", "round": 2, "sent_bytes": 1048576, "total_bytes": 2097152,
            "dirty_rate": 1024, "bandwidth": 4096, "estimated_ms": 1500});
        let said = line(&view, true);
        for word in ["cancelling: copying", "round 2", "1.5 s left"] {
            assert!(said.contains(word), "{said}");
        }
        assert_eq!(line(&serde_json::json!({"step": "preparing", "round": 0}), false), "preparing");
    }
}
