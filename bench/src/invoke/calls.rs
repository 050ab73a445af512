//! Warm calls of a module that is loaded once, against instances made for each call on the host: latency, throughput, CPU time,
//! what goes between host and guest for one call, and the first call of a module in a warm CVM.

use super::arm;
use crate::host::{HostEngine, HostProgram, binary_form};
use crate::machine::process_cpu;
use crate::programs::{container, large};
use crate::report::{Row, Target, Unit};
use crate::summary::Summary;
use crate::{BenchError, Progress};
use nacre_vmm::program::Exit;
use nacre_vmm::{Call, CallError, CallResult, Cvm, CvmConfig, Module};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 1 << 30;
/// Calls on their way at the same time.
const IN_FLIGHT: [usize; 4] = [1, 2, 16, 64];
/// How long each measurement takes.
const TIME: Duration = Duration::from_millis(300);
/// Before it, to fill what is kept between calls.
const WARM_UP: Duration = Duration::from_millis(100);
const INPUT: &[u8] = b"{\"name\": \"a value\", \"other\": [1, 2, 3]}";
/// The first call of a loaded module over a warm one, in nanoseconds.
const COLD_TARGET: Target = Target::Value(1e6);

/// How many programs are called.
pub(super) const PROGRAMS: usize = 3;

/// What is called: name, and binary or text form.
fn programs() -> [(&'static str, Vec<u8>); PROGRAMS] {
    [
        ("echo", include_bytes!("../../programs/echo.wat").to_vec()),
        ("hello (C)", include_bytes!("../../../apps/hello/hello.wasm").to_vec()),
        ("24 MiB of data", large(24).into_bytes()),
    ]
}

/// What one closed loop gave.
#[derive(Default)]
struct Loop {
    latencies_ns: Vec<f64>,
    per_second: f64,
    cpu_ns_per_call: f64,
}

impl Loop {
    fn of(latencies_ns: Vec<f64>, elapsed: Duration, cpu: Duration) -> Loop {
        let calls = latencies_ns.len().max(1) as f64;
        let cpu_ns_per_call = cpu.as_nanos() as f64 / calls;
        Loop { per_second: calls / elapsed.as_secs_f64(), cpu_ns_per_call, latencies_ns }
    }
}

pub(super) fn measure(rounds: usize, progress: &dyn Progress) -> Result<Vec<Row>, BenchError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = cores.saturating_sub(1).clamp(1, 63) as u32;
    let cvm =
        Arc::new(Cvm::launch(CvmConfig { workers, memory_bytes: MEMORY_BYTES, ..CvmConfig::default() })?);
    let mut rows = Vec::new();
    for (name, source) in programs() {
        let same = HostEngine::same()?.load(&source)?;
        let pooled = HostEngine::pooled()?.load(&source)?;
        let code = container(&binary_form(&source)?, &same.code()?, 0)?;
        let mut all = Samples::default();
        for _ in 0..rounds {
            progress.step("calls");
            all.round(&cvm, &code, [&same, &pooled], cores)?;
        }
        rows.extend(all.rows(name));
    }
    Ok(rows)
}

/// What the rounds of one program gave.
#[derive(Default)]
struct Samples {
    /// By number in flight: throughput, CPU time per call, medians and all latencies.
    cvm: [Arm; IN_FLIGHT.len()],
    /// One thread; as many as there are CPUs, the better of the two engines.
    host: [Arm; 2],
    cold_ns: Vec<f64>,
    /// Per call, one in flight and most: messages, wakes of vCPU 0, doorbells, sleeps of the thread that reads.
    hops: [[Vec<f64>; 4]; 2],
}

#[derive(Default)]
struct Arm {
    per_second: Vec<f64>,
    cpu_ns: Vec<f64>,
    medians_ns: Vec<f64>,
    latencies_ns: Vec<f64>,
}

impl Arm {
    fn add(&mut self, measured: Loop) {
        self.per_second.push(measured.per_second);
        self.cpu_ns.push(measured.cpu_ns_per_call);
        self.medians_ns.extend(Summary::of(&measured.latencies_ns).map(|summary| summary.median));
        self.latencies_ns.extend(measured.latencies_ns);
    }
}

impl Samples {
    fn round(
        &mut self,
        cvm: &Arc<Cvm>,
        code: &[u8],
        host: [&HostProgram; 2],
        cores: usize,
    ) -> Result<(), BenchError> {
        let module = cvm.load_module(code)?;
        let first = one(cvm, &module)?;
        closed_loop(cvm, &module, IN_FLIGHT[IN_FLIGHT.len() - 1], WARM_UP)?;
        for (index, count) in IN_FLIGHT.into_iter().enumerate() {
            let (link, guest) = (cvm.link_stats(), cvm.stats()?.guest);
            let measured = closed_loop(cvm, &module, count, TIME)?;
            let (link_after, guest_after) = (cvm.link_stats(), cvm.stats()?.guest);
            let calls = measured.latencies_ns.len().max(1) as f64;
            if let Some(hops) = [0, IN_FLIGHT.len() - 1].iter().position(|at| *at == index) {
                let counts = [
                    link_after.sent - link.sent + link_after.received - link.received,
                    link_after.wakes - link.wakes,
                    guest_after.doorbells - guest.doorbells,
                    link_after.sleeps - link.sleeps,
                ];
                for (samples, count) in self.hops[hops].iter_mut().zip(counts) {
                    samples.push(count as f64 / calls);
                }
            }
            self.cvm[index].add(measured);
        }
        let warm = Summary::of(&self.cvm[0].latencies_ns).map_or(0.0, |summary| summary.median);
        self.cold_ns.push(first.as_nanos() as f64 - warm);
        for (arm, threads) in self.host.iter_mut().zip([1, cores]) {
            let [same, pooled] = host;
            let (same, pooled) = (host_loop(same, threads)?, host_loop(pooled, threads)?);
            arm.add(if same.per_second > pooled.per_second { same } else { pooled });
        }
        Ok(())
    }

    fn rows(self, name: &str) -> Vec<Row> {
        let [host_one, host_all] = &self.host;
        let mut rows = Vec::new();
        for (arm, count) in self.cvm.iter().zip(IN_FLIGHT) {
            let latency = format!("warm call of {name}, {count} in flight");
            rows.extend(
                Row::new(latency, arm::CVM, Unit::Nanoseconds, &arm.latencies_ns)
                    .map(|row| row.against(arm::HOST_BEST, &arm.medians_ns, &host_one.medians_ns)),
            );
            let throughput = format!("warm calls of {name}, {count} in flight");
            let row = Row::new(throughput, arm::CVM, Unit::PerSecond, &arm.per_second)
                .map(|row| row.against(arm::HOST_BEST, &arm.per_second, &host_all.per_second));
            rows.extend(row.map(|row| {
                if count == IN_FLIGHT[IN_FLIGHT.len() - 1] {
                    row.target(Target::RatioAtLeast(1.0))
                } else {
                    row
                }
            }));
            let cpu = format!("CPU time of a warm call of {name}, {count} in flight");
            rows.extend(
                Row::new(cpu, arm::CVM, Unit::Nanoseconds, &arm.cpu_ns)
                    .map(|row| row.against(arm::HOST_BEST, &arm.cpu_ns, &host_all.cpu_ns)),
            );
        }
        let cold = format!("first call of {name}, loaded, over a warm one");
        rows.extend(
            Row::new(cold, arm::CVM, Unit::Nanoseconds, &self.cold_ns).map(|row| row.target(COLD_TARGET)),
        );
        for (hops, count) in self.hops.iter().zip([IN_FLIGHT[0], IN_FLIGHT[IN_FLIGHT.len() - 1]]) {
            let names = ["messages", "wakes of vCPU 0", "doorbells", "sleeps of the reader"];
            for (samples, what) in hops.iter().zip(names) {
                let name = format!("{what} per call of {name}, {count} in flight");
                rows.extend(Row::new(name, arm::CVM, Unit::Count, samples));
            }
        }
        rows
    }
}

fn request() -> Call<'static> {
    Call { stdin: INPUT, max_output: 1 << 20, ..Call::default() }
}

/// One call, waited for.
fn one(cvm: &Cvm, module: &Module) -> Result<Duration, BenchError> {
    let (sender, results) = mpsc::channel();
    let begin = Instant::now();
    let made = cvm.call(module, request(), move |result| {
        // The receiver waits.
        let _ = sender.send((begin.elapsed(), result));
    });
    made.map_err(failed)?;
    let (elapsed, result) = results.recv().map_err(|_| BenchError::program("a call", "gave no result"))?;
    check(&result)?;
    Ok(elapsed)
}

fn failed(error: CallError) -> BenchError {
    BenchError::program("a call", error.to_string())
}

fn check(result: &CallResult) -> Result<(), BenchError> {
    match result.exit {
        Exit::Code(0) => Ok(()),
        ref other => Err(BenchError::program("a call", format!("ended with {other:?}"))),
    }
}

/// A loop of calls, each of which is followed by the next as soon as its result is there.
struct Driver {
    cvm: Arc<Cvm>,
    module: Module,
    until: Instant,
    latencies_ns: Mutex<Vec<f64>>,
    /// Told at the end of each of the loops, with what went wrong.
    ended: mpsc::Sender<Result<(), BenchError>>,
}

impl Driver {
    fn next(self: Arc<Driver>) {
        let begin = Instant::now();
        if begin >= self.until {
            // The receiver waits for as many as there are.
            let _ = self.ended.send(Ok(()));
            return;
        }
        let this = self.clone();
        let made = self.cvm.call(&self.module, request(), move |result| {
            let latency = begin.elapsed().as_nanos() as f64;
            this.latencies_ns.lock().unwrap_or_else(PoisonError::into_inner).push(latency);
            match check(&result) {
                Ok(()) => this.next(),
                Err(error) => drop(this.ended.send(Err(error))),
            }
        });
        if let Err(error) = made {
            let _ = self.ended.send(Err(failed(error)));
        }
    }
}

fn closed_loop(cvm: &Arc<Cvm>, module: &Module, count: usize, time: Duration) -> Result<Loop, BenchError> {
    let (ended, ends) = mpsc::channel();
    let (begin, cpu) = (Instant::now(), process_cpu());
    let driver = Arc::new(Driver {
        cvm: cvm.clone(),
        module: module.clone(),
        until: begin + time,
        latencies_ns: Mutex::default(),
        ended,
    });
    for _ in 0..count {
        driver.clone().next();
    }
    for _ in 0..count {
        ends.recv().map_err(|_| BenchError::program("a call", "gave no result"))??;
    }
    let (elapsed, cpu) = (begin.elapsed(), process_cpu() - cpu);
    let latencies = std::mem::take(&mut *driver.latencies_ns.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Loop::of(latencies, elapsed, cpu))
}

/// The same on the host: so many threads, each of which makes an instance, runs it and drops it, one after the other.
fn host_loop(program: &HostProgram, threads: usize) -> Result<Loop, BenchError> {
    let (begin, cpu) = (Instant::now(), process_cpu());
    let body = || {
        let mut latencies = Vec::new();
        while begin.elapsed() < TIME {
            let call = Instant::now();
            program.call(Vec::new(), INPUT.to_vec())?;
            latencies.push(call.elapsed().as_nanos() as f64);
        }
        Ok::<_, BenchError>(latencies)
    };
    let latencies = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(body)).collect();
        let mut all = Vec::new();
        for thread in running {
            all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok::<_, BenchError>(all)
    })?;
    Ok(Loop::of(latencies, begin.elapsed(), process_cpu() - cpu))
}
