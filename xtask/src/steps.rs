//! Named, timed steps: each is one command whose output is shown while it runs and whose tests are counted. The first step
//! that fails ends the run.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Instant;

/// What has been done so far.
#[derive(Debug)]
pub struct Steps {
    start: Instant,
    done: Vec<(String, f64)>,
    counts: Counts,
}

/// Numbers of tests; a step that runs no tests counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Steps {
    /// Starts the clock.
    pub fn new() -> Steps {
        Steps { start: Instant::now(), done: Vec::new(), counts: Counts::default() }
    }

    /// Runs one step.
    ///
    /// # Errors
    /// If the command fails: the run is to end then.
    pub fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let words =
            command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
        let shown = format!("{} {words}", command.get_program().to_string_lossy());
        println!("\n=== {name} ({:.0} s so far): {shown}", self.start.elapsed().as_secs_f64());
        let start = Instant::now();
        let (success, found) = watch(command).with_context(|| format!("step '{name}': {shown}"))?;
        self.finish(name, start, success, found, &shown)
    }

    /// Runs one step that is a function of ours.
    pub fn call(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n=== {name} ({:.0} s so far)", self.start.elapsed().as_secs_f64());
        let start = Instant::now();
        let result = step();
        let why = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        self.finish(name, start, result.is_ok(), Counts::default(), &why)
    }

    /// Counts a step that can't be done here.
    pub fn skip(&mut self, name: &str, why: &str) {
        println!("\nSKIPPED {name}: {why}");
        self.counts.skipped += 1;
    }

    fn finish(&mut self, name: &str, start: Instant, success: bool, found: Counts, what: &str) -> Result<()> {
        let seconds = start.elapsed().as_secs_f64();
        self.counts = self.counts.with_step(found, success);
        self.done.push((name.to_string(), seconds));
        if !success {
            bail!("step '{name}' failed after {seconds:.0} s: {what}");
        }
        println!("=== {name}: ok, {seconds:.1} s");
        Ok(())
    }

    /// Prints the times and the closing line; whether nothing failed.
    pub fn summary(&self) -> bool {
        println!("\n=== summary");
        for (name, seconds) in &self.done {
            println!("{seconds:8.1} s  {name}");
        }
        println!("{:8.1} s  in all", self.start.elapsed().as_secs_f64());
        let Counts { passed, failed, skipped } = self.counts;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}

impl Counts {
    /// Adds what a step's output told; a step without tests, or one that fails outside its tests, counts as one itself.
    fn with_step(self, found: Counts, success: bool) -> Counts {
        let alone = found == Counts::default();
        Counts {
            // A skipped test returns early and is among the passed of its runner.
            passed: self.passed + found.passed.saturating_sub(found.skipped) + u64::from(alone && success),
            failed: self.failed + found.failed + u64::from(found.failed == 0 && !success),
            skipped: self.skipped + found.skipped,
        }
    }

    /// Takes in one line of output.
    fn read(&mut self, line: &str) {
        if line.starts_with("SKIPPED ") {
            self.skipped += 1;
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(number)), Some(kind)) = (words.next().map(str::parse::<u64>), words.next()) else {
                continue;
            };
            match kind {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                _ => {}
            }
        }
    }
}

/// Runs a command, shows its output line by line and counts the tests in it.
fn watch(command: &mut Command) -> Result<(bool, Counts)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("a piped stdout")?;
    let errors = child.stderr.take().context("a piped stderr")?;
    let (send, lines) = channel::<String>();
    let copy = send.clone();
    let readers = [
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).all(|l| send.send(l).is_ok())
        }),
        std::thread::spawn(move || {
            BufReader::new(errors).lines().map_while(Result::ok).all(|l| copy.send(l).is_ok())
        }),
    ];
    let mut counts = Counts::default();
    let mut screen = std::io::stdout().lock();
    for line in lines {
        counts.read(&line);
        writeln!(screen, "{line}")?;
    }
    let success = child.wait()?.success();
    if readers.into_iter().any(|reader| reader.join().is_err()) {
        bail!("its output could not be read");
    }
    Ok((success, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.read(line));
        counts
    }

    #[test]
    fn results_of_several_runners_add_up() {
        let counts = counted(&[
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.50s",
            "SKIPPED cpython: the registry does not answer",
        ]);
        assert_eq!(counts, Counts { passed: 13, failed: 2, skipped: 1 });
        assert_eq!(Counts::default().with_step(counts, false), Counts { passed: 12, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_step_without_tests_counts_as_one() {
        let done = Counts::default().with_step(Counts::default(), true);
        assert_eq!(done, Counts { passed: 1, failed: 0, skipped: 0 });
        let failed = done.with_step(Counts { passed: 4, failed: 0, skipped: 0 }, false);
        assert_eq!(failed, Counts { passed: 5, failed: 1, skipped: 0 }, "it failed outside its tests");
    }

    #[test]
    fn a_failing_step_ends_the_run() {
        let mut steps = Steps::new();
        steps.run("good", &mut Command::new("true")).unwrap();
        let error =
            steps.run("bad", Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        assert!(
            error.to_string().starts_with("step 'bad' failed after ")
                && error.to_string().contains(" s: sh -c"),
            "{error}"
        );
        assert!(!steps.summary());
    }
}
