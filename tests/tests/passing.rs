//! What passes through a CVM unchanged: arguments, environment, stdin, stdout, stderr, exit codes, and all of it while
//! the program runs; a closed pipe and Ctrl-C end it properly.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Nacre, finish, wait_at_most};
use nacre_tests::live::{Live, left_in_group};
use nacre_tests::skip::need;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn arguments_reach_the_program_as_they_are() {
    let Some(nacre) = need("arguments", Nacre::find()) else { return };
    let args = ["--workers", "--", "a b", "", "ünï", "--help", "*"];
    let ended = finish(nacre.run(&[], &app("hello")).args(args), b"").unwrap();
    let mut expected = String::from("Hello from WebAssembly!\n");
    for (i, arg) in args.iter().enumerate() {
        expected += &format!("argument {}: {arg}\n", i + 1);
    }
    assert_eq!((ended.code, ended.text()), (0, expected), "{}", ended.stderr);
}

#[test]
fn the_environment_is_what_was_given_and_nothing_else() {
    let Some(nacre) = need("environment", Nacre::find()) else { return };
    let mut run = nacre.run(&["--env", "A=1=2", "--env", "EMPTY=", "--env", "Ü=ö"], &app("hello"));
    run.env("FROM_THE_HOST", "leaked").args(["--env", "A", "EMPTY", "Ü", "FROM_THE_HOST", "PATH"]);
    let ended = finish(&mut run, b"").unwrap();
    assert_eq!(
        ended.text(),
        "A=1=2\nEMPTY=\nÜ=ö\nFROM_THE_HOST is not set\nPATH is not set\n",
        "{}",
        ended.stderr
    );
}

#[test]
fn exit_codes_pass_through() {
    let Some(nacre) = need("exit codes", Nacre::find()) else { return };
    for code in [0, 1, 2, 42, 125, 255] {
        let ended = finish(nacre.run(&[], &app("hello")).args(["--exit", &code.to_string()]), b"").unwrap();
        assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.len()), (code, "", 0));
    }
    let ended = finish(nacre.run(&[], &app("traps")).args(["exit", "77"]), b"").unwrap();
    assert_eq!((ended.code, ended.stderr.as_str()), (77, ""), "proc_exit from a nested call");
}

#[test]
fn stderr_is_not_stdout() {
    let Some(nacre) = need("stderr", Nacre::find()) else { return };
    let ended = finish(nacre.run(&[], &app("hello")).args(["--stderr", "to the side"]), b"").unwrap();
    assert_eq!((ended.code, ended.stdout.len(), ended.stderr.as_str()), (0, 0, "to the side\n"));
}

/// 40 MB through every buffer on the way, checked by the program's checksum.
#[test]
fn all_of_a_large_stdin_arrives() {
    let Some(nacre) = need("large stdin", Nacre::find()) else { return };
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 24) as u8
    };
    let input: Vec<u8> = (0..40_000_000).map(|_| next()).collect();
    let sum =
        input.iter().fold(0xcbf29ce484222325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3));
    let ended = finish(nacre.run(&[], &app("hello")).arg("--count"), &input).unwrap();
    assert_eq!(ended.text(), format!("40000000 bytes, fnv1a {sum:016x}\n"), "{}", ended.stderr);
}

/// Each answer is read before the next line is said, so it came while the program was waiting for more.
#[test]
fn lines_go_in_and_out_while_the_program_runs() {
    let Some(nacre) = need("streaming", Nacre::find()) else { return };
    let mut live = Live::start(nacre.run(&[], &app("hello")).arg("--cat")).unwrap();
    for i in 1..=100 {
        live.say(&format!("line {i}")).unwrap();
        assert_eq!(live.hear().unwrap(), format!("{i}: line {i}"));
    }
    let (code, rest, stderr) = live.end().unwrap();
    assert_eq!((code, rest, stderr.as_str()), (0, vec!["end after 100 lines".to_string()], ""));
}

#[test]
fn a_closed_pipe_ends_an_endless_program() {
    let Some(nacre) = need("closed pipe", Nacre::find()) else { return };
    let mut run = nacre.run(&[], &app("traps"));
    run.arg("output").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = run.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert_eq!(first, "line 1 of many\n");
    drop(lines);
    let in_time = wait_at_most(&child, Duration::from_secs(60)).unwrap();
    if !in_time {
        child.kill().unwrap();
    }
    let code = nacre_tests::job::code_of(child.wait().unwrap());
    assert!(in_time, "it went on without a reader");
    assert_eq!(code, 141, "as a shell reports the end by a closed pipe");
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
}

#[test]
fn interrupt_ends_a_busy_program_and_leaves_nothing() {
    let Some(nacre) = need("interrupt while computing", Nacre::find()) else { return };
    let mut live = Live::start(nacre.run(&["--workers", "2"], &app("traps")).arg("loop")).unwrap();
    assert_eq!(live.hear().unwrap(), "looping");
    let group = live.pid();
    live.signal(Signal::INT).unwrap();
    assert_eq!(live.end().unwrap().0, 130);
    assert_eq!(left_in_group(group).unwrap(), Vec::<i32>::new());
}

#[test]
fn interrupt_ends_a_program_that_waits_for_input() {
    let Some(nacre) = need("interrupt while waiting", Nacre::find()) else { return };
    let mut live = Live::start(nacre.run(&[], &app("hello")).arg("--cat")).unwrap();
    live.say("there?").unwrap();
    assert_eq!(live.hear().unwrap(), "1: there?");
    let group = live.pid();
    live.signal(Signal::INT).unwrap();
    // Its stdin is still open: only the signal can have ended it.
    assert_eq!(live.end_with_open_stdin().unwrap().0, 130);
    assert_eq!(left_in_group(group).unwrap(), Vec::<i32>::new());
}

#[test]
fn interrupt_restores_the_terminal() {
    let Some(nacre) = need("terminal", Nacre::find()) else { return };
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let terminal = open();
    let before = tcgetattr(&terminal).unwrap();
    let mut run = nacre.run(&[], &app("traps"));
    run.arg("loop").stdin(Stdio::from(open())).stdout(Stdio::from(open())).stderr(Stdio::from(open()));
    let mut child = run.spawn().unwrap();
    let mut screen = BufReader::new(std::fs::File::from(master));
    let mut text = String::new();
    while !text.contains("looping") {
        assert!(screen.read_line(&mut text).unwrap() > 0, "the terminal closed early: {text}");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::INT).unwrap();
    let in_time = wait_at_most(&child, Duration::from_secs(60)).unwrap();
    if !in_time {
        child.kill().unwrap();
    }
    assert_eq!(nacre_tests::job::code_of(child.wait().unwrap()), 130, "{text}");
    let after = tcgetattr(&terminal).unwrap();
    assert_eq!(
        (before.local_modes, before.input_modes, before.output_modes, before.control_modes),
        (after.local_modes, after.input_modes, after.output_modes, after.control_modes)
    );
}
