//! Programs that spawn tasks of their own (`docs/spawn.md`): what a task has, gives and costs, every misuse, cancellation,
//! time limits, fairness and priorities. What is compared are results and counts of progress, never times.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Ended, LIMIT, Nacre, finish, wait_at_most};
use nacre_tests::skip::need;
use std::collections::BTreeMap;
use std::process::Stdio;

/// Runs a case of `apps/spawns` with these options of `nacre run`.
fn run(case: &[&str], options: &[&str]) -> Option<Ended> {
    let nacre = need(case[0], Nacre::find())?;
    Some(finish(nacre.run(options, &app("spawns")).args(case), b"").unwrap())
}

/// The output of a case that ends well, with nothing on standard error.
fn output(case: &[&str], options: &[&str]) -> Option<String> {
    let ended = run(case, options)?;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{case:?} {options:?}: {}", ended.text());
    Some(ended.text())
}

/// The same with a standard input on which nothing ever comes, and which doesn't end.
fn output_without_input(case: &[&str], options: &[&str]) -> Option<String> {
    let nacre = need(case[0], Nacre::find())?;
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = nacre.run(options, &app("spawns"));
    command.args(case).stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let in_time = wait_at_most(&child, LIMIT).unwrap();
    if !in_time {
        child.kill().unwrap();
    }
    let ended = child.wait_with_output().unwrap();
    drop(writer);
    let (text, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(in_time, "{case:?} hangs after {text}{errors}");
    assert_eq!((ended.status.code(), &*errors), (Some(0), ""), "{case:?} {options:?}: {text}");
    Some(text.into_owned())
}

/// With no worker, one, and more.
const WORKERS: [&[&str]; 3] = [&["--workers", "0"], &["--workers", "1"], &["--workers", "3"]];

#[test]
fn a_task_is_a_fresh_instance_that_gets_a_message_and_gives_a_result() {
    for workers in WORKERS {
        let options = [workers, &["--env", "SPAWNS=7"]].concat();
        let Some(ended) = run(&["basics"], &options) else { return };
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let expected = "join twice: 0 0, 5 bytes\n\
            part: 0 3 \"ell\"\n\
            beyond: 0 0\n\
            reverse: returned 7 \"hello\"\n\
            dropped: 8 8 8\n\
            fresh: main ran here: 0, SPAWNS=7\n\
            fresh: a file cannot be opened\n\
            fresh: returned 0 \"\"\n\
            empty: returned 7 \"\"\n\
            message of main: 0 0\n\
            leave: exited 42 \"kept\"\n\
            trap: trapped 0 \"\"\n\
            main goes on\n";
        assert_eq!(ended.text(), expected, "{workers:?}");
        let mut lines = ended.stderr.lines();
        let first = lines.next().unwrap_or_default();
        assert!(first.starts_with("task trap: ") && first.contains("unreachable"), "{}", ended.stderr);
        assert!(lines.next().is_some_and(|frame| frame.contains("trap_")), "{}", ended.stderr);
    }
}

#[test]
fn misuse_is_an_error_number() {
    let Some(text) = output(&["bad"], &[]) else { return };
    let expected = "no such export: 44\n\
        wrong type: 45\n\
        no function: 45\n\
        name too long: 37\n\
        name beyond: 21\n\
        name not UTF-8: 25\n\
        message beyond: 21\n\
        message too long: 35\n\
        options beyond: 21\n\
        bad class: 28, reserved: 28\n\
        handle beyond: 21\n\
        unknown handle: 8 8 8\n\
        report beyond: 21\n\
        too early: 73 73 10\n\
        result beyond: 21, too long: 35\n";
    assert_eq!(text, expected);
}

#[test]
fn cancelled_tasks_end_whatever_they_do() {
    for workers in [WORKERS[1], WORKERS[2]] {
        let Some(text) = output_without_input(&["cancel"], workers) else { return };
        let expected = ["loop", "nap", "wait_for_input", "read_input"]
            .map(|name| format!("{name}: cancelled 0 \"\"\n").repeat(2))
            .concat();
        assert_eq!(text, expected + "careless: returned 0 \"\"\n");
    }
}

#[test]
fn time_limits_end_tasks_that_compute_sleep_or_wait() {
    for workers in [WORKERS[1], WORKERS[2]] {
        let Some(text) = output_without_input(&["limits"], workers) else { return };
        let expected = "loop, wall: time limit 0 \"\"\n\
            loop, CPU: time limit 0 \"\"\n\
            it had its CPU time\n\
            nap, wall: time limit 0 \"\"\n\
            read, wall: time limit 0 \"\"\n\
            reverse, both: returned 7 \"ba\"\n";
        assert_eq!(text, expected, "{workers:?}");
    }
}

#[test]
fn a_program_at_its_time_limit_is_ended_with_its_tasks() {
    for case in ["loop", "join-loop"] {
        let Some(ended) = run(&[case], &["--time-limit", "100ms", "--workers", "2"]) else { return };
        assert_eq!((ended.code, ended.text().as_str()), (134, ""), "{case}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("0.1 s") && ended.stderr.contains("--time-limit"), "{}", ended.stderr);
    }
    let Some(text) = output(&["many", "10"], &["--time-limit", "1h"]) else { return };
    assert_eq!(text, "10 tasks, sum 45\n");
}

/// Without workers nobody can interrupt a computation inside the CVM; the host ends it.
#[test]
fn a_time_limit_also_holds_without_workers() {
    let Some(ended) = run(&["loop"], &["--time-limit", "100ms", "--workers", "0"]) else { return };
    assert_eq!((ended.code, ended.text().as_str()), (134, ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("--time-limit"), "{}", ended.stderr);
}

#[test]
fn thousands_of_tasks_give_thousands_of_results() {
    for workers in WORKERS {
        let Some(text) = output(&["many", "1000"], workers) else { return };
        assert_eq!(text, "1000 tasks, sum 499500\n", "{workers:?}");
    }
}

#[test]
fn tasks_spawn_tasks() {
    for workers in WORKERS {
        let Some(text) = output(&["nested", "9"], workers) else { return };
        assert!(text.ends_with("fibonacci 9: 34\n"), "{workers:?}: {text}");
    }
}

/// Far more tasks, each asleep or waiting for two more, than there is memory for stacks: they are begun as others end.
#[test]
fn a_small_cvm_has_few_tasks_under_way_but_any_number_queued() {
    let options = ["--memory", "64MiB", "--workers", "2"];
    let Some(text) = output(&["many", "200"], &options) else { return };
    assert_eq!(text, "200 tasks, sum 19900\n");
}

#[test]
fn what_a_program_may_have_is_bounded() {
    // Some of them may find no memory, and say so.
    let Some(ended) = run(&["too-many"], &["--workers", "2"]) else { return };
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.text(), "few large messages, then error 42\nmany tasks, then error 6\n");
}

#[test]
fn a_task_that_wants_all_memory_leaves_the_program_alive() {
    let Some(text) = output(&["greedy"], &["--memory", "256MiB"]) else { return };
    assert_eq!(text, "greedy: returned 12 \"\"\n");
}

#[test]
fn the_end_of_the_program_ends_its_tasks() {
    for count in ["1", "40"] {
        let Some(text) = output(&["orphans", count], &["--workers", "2"]) else { return };
        assert_eq!(text, "main ends\n");
        let Some(ended) = run(&["orphans-trap", count], &["--workers", "2"]) else { return };
        assert_eq!(ended.code, 134, "{}", ended.stderr);
        assert!(ended.stderr.contains("unreachable"), "{}", ended.stderr);
    }
}

/// How often each letter stands in a text before `last` stands there for the last time.
fn progress(text: &str, last: char) -> BTreeMap<char, usize> {
    let end = text.rfind(last).unwrap_or(0);
    let mut counts = BTreeMap::new();
    text[..end].chars().for_each(|letter| *counts.entry(letter).or_insert(0) += 1);
    counts
}

/// Five tasks compute the same on one worker and say a letter after each of 250 pieces, about two to a slice. When the first
/// has ended the others must not be far behind (how far depends on what else the machine does: a vCPU that the host
/// stops loses its slice); run one after the other, they would not have begun.
#[test]
fn tasks_on_one_worker_progress_evenly() {
    let Some(text) = output(&["fair", "5"], &["--workers", "1"]) else { return };
    let letters: Vec<char> = ('a'..='e').collect();
    let first = letters.iter().copied().min_by_key(|letter| text.rfind(*letter)).unwrap();
    let progress = progress(&text, first);
    for letter in letters {
        let pieces = progress.get(&letter).copied().unwrap_or(0);
        assert!(pieces >= 100, "{letter} did {pieces} of 250 when {first} ended: {text}");
    }
}

/// The same with a last one of a higher class: it hardly waits, and yet the others do not stand still.
#[test]
fn a_higher_class_goes_first() {
    let Some(text) = output(&["high", "5"], &["--workers", "1"]) else { return };
    let progress = progress(&text, 'e');
    let others: usize = ('a'..='d').map(|letter| progress.get(&letter).copied().unwrap_or(0)).sum();
    assert!(others <= 150, "the others did {others} of 1000 pieces meanwhile: {text}");
    assert_eq!(text.trim_end().len(), 1250);
}

#[test]
fn the_example_gives_the_same_for_any_number_of_tasks_and_workers() {
    let Some(nacre) = need("parallel", Nacre::find()) else { return };
    let first_line = |workers: &str, tasks: &[&str]| {
        let mut command = nacre.run(&["--workers", workers], &app("parallel"));
        let ended = finish(command.arg("96").args(tasks), b"").unwrap();
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        ended.text().lines().next().unwrap_or_default().to_string()
    };
    let alone = first_line("1", &["0"]);
    assert!(alone.starts_with("96 x 96 points, 1000 iterations: "), "{alone}");
    for (workers, tasks) in [("0", "3"), ("1", "1"), ("2", "2"), ("2", "7"), ("4", "100")] {
        assert_eq!(first_line(workers, &[tasks]), alone, "{workers} workers, {tasks} tasks");
    }
    assert_eq!(first_line("2", &[]), alone);
}

#[test]
fn statistics_count_tasks() {
    let Some(nacre) = need("spawn statistics", Nacre::find()) else { return };
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("stats.json");
    let options = ["--stats-json", file.to_str().unwrap()];
    let ended = finish(nacre.run(&options, &app("spawns")).args(["many", "25"]), b"").unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let text = std::fs::read_to_string(&file).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tasks = &stats["tasks"];
    assert_eq!((tasks["spawned"].as_u64(), tasks["ended"].as_u64()), (Some(25), Some(26)), "{text}");
    let cpu = |name: &str| tasks[name].as_f64().unwrap();
    assert!(cpu("cpu_min_us") > 0.0 && cpu("cpu_min_us") <= cpu("cpu_mean_us"), "{text}");
    assert!(cpu("cpu_mean_us") <= cpu("cpu_max_us") && cpu("cpu_max_us") <= cpu("cpu_us"), "{text}");
}

/// Imports of a module `nacre` are checked before anything runs.
#[test]
fn unknown_and_ill_typed_imports_are_named() {
    let Some(nacre) = need("nacre imports", Nacre::find()) else { return };
    let work = tempfile::tempdir().unwrap();
    for (import, words) in [
        (r#""fork" (func)"#, ["nacre.fork", "docs/spawn.md"]),
        (r#""join" (func (param i32))"#, ["nacre.join", "nacre.h"]),
    ] {
        let module = work.path().join("module.wat");
        let text = format!(r#"(module (import "nacre" {import}) (func (export "_start")))"#);
        std::fs::write(&module, text).unwrap();
        let ended = finish(&mut nacre.run(&[], &module), b"").unwrap();
        assert_eq!((ended.code, ended.stderr.lines().count()), (1, 1), "{}", ended.stderr);
        assert!(words.iter().all(|word| ended.stderr.contains(word)), "{}", ended.stderr);
    }
}
