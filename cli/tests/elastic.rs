//! Elastic CPU on real machines: reclaim, grants, force, shared budgets, dormant workers, and garbage on the shared page.
//! Nothing here measures time; whatever is waited for is waited for by its own sign.
#![forbid(unsafe_code)]

use nacre_abi::VcpuId;
use nacre_abi::elastic::ElasticWord;
use nacre_abi::hypercall::PARK_FOREVER;
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_cli::program::Program as Compiled;
use nacre_vmm::elastic::{ElasticError, Ended};
use nacre_vmm::hooks::{Hooks, VcpuFd};
use nacre_vmm::program::{Exit, Program, ProgramEvent, ProgramSpec};
use nacre_vmm::vcpu::Shared;
use nacre_vmm::{CpuConfig, CpuLimits, CpuManager, Cvm, CvmConfig, CvmError, ElasticConfig};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Nothing here takes that long unless it hangs.
const LIMIT: Duration = Duration::from_secs(120);

fn config(workers: u32, elastic: ElasticConfig) -> CvmConfig {
    CvmConfig { workers, memory_bytes: 512 << 20, elastic, ..CvmConfig::default() }
}

fn launch(workers: u32, elastic: ElasticConfig) -> Option<Cvm> {
    if let Err(error) = nacre_vmm::kvm::available() {
        nacre_tests::skip::skipped("elastic CPU", &error.to_string());
        return None;
    }
    Some(Cvm::launch(config(workers, elastic)).unwrap())
}

/// Enough time for any machine to reach a safe point.
fn patient() -> ElasticConfig {
    ElasticConfig { grace: LIMIT, ..ElasticConfig::default() }
}

fn max(workers: u32) -> CpuLimits {
    CpuLimits { max: Some(workers), ..CpuLimits::default() }
}

fn worker(number: u32) -> VcpuId {
    VcpuId::new(number).unwrap()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LIMIT, "never: {what}");
        std::thread::yield_now();
    }
}

fn compiled(text: &str) -> Compiled {
    let wasm = wat::parse_str(text).unwrap();
    compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap()
}

/// Says "started", computes `rounds` rounds without a call or a wait, says 16 digits that depend on each of them.
fn computing(rounds: u64) -> Compiled {
    compiled(&format!(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1) (data (i32.const 64) "started\n")
          (func $print (param $at i32) (param $len i32)
            (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
          (func (export "_start") (local $x i64) (local $n i64) (local $i i32) (local $d i32)
            (call $print (i32.const 64) (i32.const 8))
            (local.set $x (i64.const 42)) (local.set $n (i64.const {rounds}))
            (loop $again
              (local.set $x (i64.add (i64.mul (i64.rotl (local.get $x) (i64.const 7)) (i64.const 6364136223846793005)) (local.get $n)))
              (br_if $again (i64.ne (i64.const 0) (local.tee $n (i64.sub (local.get $n) (i64.const 1))))))
            (loop $digit
              (local.set $d (i32.wrap_i64 (i64.and (local.get $x) (i64.const 15))))
              (i32.store8 (i32.sub (i32.const 143) (local.get $i))
                (i32.add (local.get $d) (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $d) (i32.const 10)))))
              (local.set $x (i64.shr_u (local.get $x) (i64.const 4)))
              (br_if $digit (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 16))))
            (call $print (i32.const 128) (i32.const 16))))"#
    ))
}

/// The digits that [`computing`] says.
fn result_of(rounds: u64) -> String {
    let mut x: u64 = 42;
    for n in (1..=rounds).rev() {
        x = x.rotate_left(7).wrapping_mul(6364136223846793005).wrapping_add(n);
    }
    format!("{x:016x}")
}

fn spec(code: &Compiled) -> ProgramSpec<'_> {
    ProgramSpec { code: code.file(), args: vec!["test".into()], ..ProgramSpec::default() }
}

/// Starts it and waits until it runs.
fn started<'c>(cvm: &'c Cvm, code: &Compiled) -> Program<'c> {
    let program = cvm.load(&spec(code)).unwrap();
    program.start().unwrap();
    assert_eq!(heard(&program, 8), "started\n");
    program
}

/// The next `wanted` bytes it says.
fn heard(program: &Program<'_>, wanted: usize) -> String {
    let mut text = Vec::new();
    while text.len() < wanted {
        match program.next_event().unwrap() {
            ProgramEvent::Output { bytes, .. } => text.extend(bytes),
            ProgramEvent::Exited(exit) => panic!("{exit:?} instead of output"),
            _ => {}
        }
    }
    String::from_utf8(text).unwrap()
}

/// Waits for its end and checks what it computed.
#[track_caller]
fn ends_with(program: &Program<'_>, result: &str) {
    assert_eq!(heard(program, 16), result);
    loop {
        if let ProgramEvent::Exited(exit) = program.next_event().unwrap() {
            assert_eq!(exit, Exit::Code(0));
            return;
        }
    }
}

/// Waits until exactly one worker has a CPU; which.
fn the_active(cvm: &Cvm) -> VcpuId {
    let mut active = 0;
    until("one active worker", || {
        active = cvm.cpu().unwrap().active;
        active.count_ones() == 1
    });
    worker(active.trailing_zeros())
}

/// Waits until no worker has or wants a CPU, and vCPU 0 sleeps without a deadline.
fn settle(cvm: &Cvm) {
    until("an idle CVM", || {
        let cpu = cvm.cpu().unwrap();
        let forever = cvm.window().mailbox(VcpuId::NORMAL)[0].load(Ordering::Relaxed) == PARK_FOREVER;
        cpu.active | cpu.waiting == 0 && forever
    });
}

#[test]
fn a_reclaimed_worker_parks_and_its_task_goes_on_elsewhere() {
    let Some(cvm) = launch(2, patient()) else { return };
    const ROUNDS: u64 = 1_000_000_000;
    let program = started(&cvm, &computing(ROUNDS));
    for round in 0..20 {
        let here = the_active(&cvm);
        let reclaimed = cvm.reclaim(here).unwrap().wait(LIMIT).expect("it parks");
        if round == 0 || reclaimed.ended != Ended::WasNotActive {
            assert_eq!((reclaimed.worker, reclaimed.ended), (here, Ended::Parked), "round {round}");
        }
        assert_ne!(the_active(&cvm), here, "round {round}");
        cvm.allow(here).unwrap();
    }
    ends_with(&program, &result_of(ROUNDS));
    let guest = cvm.stats().unwrap().guest;
    assert!(guest.task_moves >= 10 && guest.reclaims >= 10, "{guest:?}");
    let cpu = cvm.cpu().unwrap();
    assert_eq!((cpu.sum(|vcpu| vcpu.reclaims) >= 10, cpu.sum(|vcpu| vcpu.forced)), (true, 0));
    assert!(cvm.take_reclaims().len() >= 10);
}

/// Lets vCPU 0 into the guest only while the gate is open.
#[derive(Default)]
struct Gate {
    /// Whether it is closed, and whether vCPU 0 stands before it.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn close(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        while !state.1 {
            let (next, time) = self.changed.wait_timeout(state, LIMIT).unwrap();
            assert!(!time.timed_out(), "vCPU 0 does not come out of the guest");
            state = next;
        }
    }

    fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }
}

impl Hooks for Gate {
    fn entering(&self, id: VcpuId, _: &VcpuFd, _: &Shared) {
        let mut state = self.state.lock().unwrap();
        while id == VcpuId::NORMAL && state.0 {
            state.1 = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
    }
}

/// A reclaim needs nobody but the worker itself: compiled code looks at the word that the host writes.
#[test]
fn a_worker_that_computes_parks_while_vcpu_0_stands_still() {
    if launch(1, patient()).is_none() {
        return;
    }
    let gate = Arc::new(Gate::default());
    let hooks: Option<Arc<dyn Hooks>> = Some(gate.clone());
    let cvm = Cvm::launch(CvmConfig { hooks, ..config(2, patient()) }).unwrap();
    // One that ended would park, too.
    let endless = started(&cvm, &computing(u64::MAX));
    let here = the_active(&cvm);
    gate.close();
    let reclaimed = cvm.reclaim(here).unwrap().wait(LIMIT);
    gate.open();
    assert_eq!(reclaimed.expect("it parks").ended, Ended::Parked);
    assert!(endless.events.try_recv().is_none());
    cvm.allow(here).unwrap();
    drop(endless);
    let small = computing(1000);
    ends_with(&started(&cvm, &small), &result_of(1000));
}

/// Without workers vCPU 0 computes itself, and no other vCPU could make it look up.
#[test]
fn the_only_vcpu_answers_while_it_computes() {
    let Some(cvm) = launch(0, patient()) else { return };
    let endless = started(&cvm, &computing(u64::MAX));
    std::thread::scope(|scope| {
        let (say, said) = std::sync::mpsc::channel();
        let cvm = &cvm;
        scope.spawn(move || {
            (0..20).for_each(|_| drop(cvm.stats().unwrap()));
            say.send(()).unwrap();
        });
        if said.recv_timeout(LIMIT).is_err() {
            cvm.stop();
            panic!("no answer while vCPU 0 computes");
        }
    });
    assert!(endless.events.try_recv().is_none());
    // It is told to end in the same way.
    drop(endless);
    let small = computing(1000);
    ends_with(&started(&cvm, &small), &result_of(1000));
}

#[test]
fn without_a_grant_everything_waits_and_with_one_it_goes_on() {
    let Some(cvm) = launch(2, patient()) else { return };
    const ROUNDS: u64 = 300_000_000;
    let code = computing(ROUNDS);
    let program = started(&cvm, &code);
    cvm.set_limits(max(0)).unwrap();
    until("no active worker", || cvm.cpu().unwrap().active == 0);
    let second = cvm.load(&spec(&code)).unwrap();
    second.start().unwrap();
    // Each question is an event that could wake somebody; none may.
    let resumes = cvm.stats().unwrap().guest.task_resumes;
    for _ in 0..100 {
        assert_eq!(cvm.stats().unwrap().guest.task_resumes, resumes);
        assert_eq!(cvm.cpu().unwrap().active, 0);
    }
    assert!(program.events.try_recv().is_none() && second.events.try_recv().is_none());
    assert!(cvm.window().elastic().get(ElasticWord::Demand) >= 2, "both wait");
    cvm.set_limits(max(1)).unwrap();
    ends_with(&program, &result_of(ROUNDS));
    assert_eq!(heard(&second, 8), "started\n");
    ends_with(&second, &result_of(ROUNDS));
    settle(&cvm);
    assert_eq!(cvm.window().elastic().get(ElasticWord::Demand), 0);
}

/// One libcall of the compiled code fills 128 MiB without a safe point.
#[test]
fn a_worker_that_does_not_park_in_time_is_stopped_and_goes_on_later() {
    let elastic = ElasticConfig { grace: Duration::ZERO, ..ElasticConfig::default() };
    let Some(cvm) = launch(2, elastic) else { return };
    let filling = compiled(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2050) (data (i32.const 64) "started\n")
          (func (export "_start") (local $n i32)
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (loop $again
              (local.set $n (i32.add (local.get $n) (i32.const 1)))
              (memory.fill (i32.const 65536) (local.get $n) (i32.const 134217728))
              (if (i32.ne (i32.load8_u (i32.const 100000000)) (i32.and (local.get $n) (i32.const 255))) (then (unreachable)))
              (br_if $again (i32.lt_u (local.get $n) (i32.const 150))))))"#,
    );
    let small = computing(1000);
    let program = started(&cvm, &filling);
    let (mut forced, over) = (0, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let done = &over;
        scope.spawn(move || {
            let exit = loop {
                match program.next_event() {
                    Ok(ProgramEvent::Exited(exit)) => break Ok(exit),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            };
            done.store(true, Ordering::Relaxed);
            assert_eq!(exit.unwrap(), Exit::Code(0));
        });
        // Whether the grace time or the safe point comes first is a race: a few of the one kind are enough.
        while forced < 3 && !over.load(Ordering::Relaxed) {
            let active = cvm.cpu().unwrap().active;
            if active == 0 {
                // Its worker is on its way back.
                std::thread::yield_now();
                continue;
            }
            let here = worker(active.trailing_zeros());
            let ended = cvm.reclaim(here).unwrap().wait(LIMIT).expect("it ends").ended;
            if ended == Ended::Forced {
                forced += 1;
                assert_ne!(cvm.cpu().unwrap().waiting & here.bit(), 0, "it wants to go on");
                // Nothing but its own task waits for it.
                let other = started(&cvm, &small);
                ends_with(&other, &result_of(1000));
            }
            cvm.allow(here).unwrap();
        }
    });
    assert!(forced > 0, "no worker was stopped by force");
    assert_eq!(cvm.cpu().unwrap().sum(|vcpu| vcpu.forced), forced);
}

#[test]
fn two_cvms_share_one_cpu() {
    let manager = CpuManager::new(CpuConfig::new(1)).unwrap();
    let elastic = || ElasticConfig { manager: Some(manager.clone()), ..ElasticConfig::default() };
    let Some(first) = launch(2, elastic()) else { return };
    let second = launch(2, elastic()).unwrap();
    const ROUNDS: u64 = 200_000_000;
    let code = computing(ROUNDS);
    let programs: Vec<_> = [&first, &second, &first, &second]
        .into_iter()
        .map(|cvm| {
            let program = cvm.load(&spec(&code)).unwrap();
            program.start().unwrap();
            program
        })
        .collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                most = most.max(manager.occupied());
                std::thread::yield_now();
            }
            most
        });
        let result = result_of(ROUNDS);
        for program in &programs {
            assert_eq!(heard(program, 8), "started\n");
            ends_with(program, &result);
        }
        over.store(true, Ordering::SeqCst);
        assert_eq!(watch.join().unwrap(), 1, "workers with a CPU at once");
    });
    let reclaims = [&first, &second].map(|cvm| cvm.cpu().unwrap().sum(|vcpu| vcpu.reclaims));
    assert!(reclaims.iter().sum::<u64>() > 0, "the CPU never changed hands");
}

#[test]
fn demand_brings_a_second_cpu() {
    let manager = CpuManager::new(CpuConfig::new(1)).unwrap();
    let elastic = ElasticConfig { manager: Some(manager.clone()), grace: LIMIT, ..ElasticConfig::default() };
    let Some(cvm) = launch(3, elastic) else { return };
    const ROUNDS: u64 = 400_000_000;
    let code = computing(ROUNDS);
    let first = started(&cvm, &code);
    let second = cvm.load(&spec(&code)).unwrap();
    second.start().unwrap();
    until("a demand or a worker that waits", || {
        let cpu = cvm.cpu().unwrap();
        cpu.demand != 0 || cpu.waiting != 0
    });
    assert_eq!(cvm.cpu().unwrap().active.count_ones(), 1);
    manager.set_cpus(2).unwrap();
    until("two active workers", || cvm.cpu().unwrap().active.count_ones() == 2);
    assert_eq!(heard(&second, 8), "started\n");
    let result = result_of(ROUNDS);
    ends_with(&first, &result);
    ends_with(&second, &result);
    settle(&cvm);
    let cpu = cvm.cpu().unwrap();
    assert_eq!((cpu.active, cpu.waiting), (0, 0));
    assert_eq!(cvm.window().elastic().get(ElasticWord::Demand), 0);
}

/// The threads of an idle CVM do not run at all: the kernel's CPU clocks stand still while another CVM works.
#[test]
fn dormant_workers_cost_nothing() {
    let Some(idle) = launch(63, ElasticConfig::default()) else { return };
    let code = computing(1_000_000);
    for _ in 0..4 {
        ends_with(&started(&idle, &code), &result_of(1_000_000));
    }
    settle(&idle);
    let busy = launch(1, ElasticConfig::default()).unwrap();
    // A thread that has just gone to sleep is still being accounted: the first look does not count.
    ends_with(&started(&busy, &code), &result_of(1_000_000));
    let count = |cvm: &Cvm| {
        let cpu = cvm.cpu().unwrap();
        (cpu.sum(|vcpu| vcpu.wakes), cpu.cpu_time())
    };
    let before = count(&idle);
    ends_with(&started(&busy, &computing(500_000_000)), &result_of(500_000_000));
    assert_eq!(count(&idle), before);
    // And they still work.
    ends_with(&started(&idle, &code), &result_of(1_000_000));
}

/// Also the last worker can be woken: it alone may run.
#[test]
fn the_last_of_63_workers_runs_too() {
    let Some(cvm) = launch(63, patient()) else { return };
    for number in 1..63 {
        // None of them has run yet.
        let _ = cvm.reclaim(worker(number)).unwrap();
    }
    let program = started(&cvm, &computing(300_000_000));
    assert_eq!(the_active(&cvm), worker(63));
    ends_with(&program, &result_of(300_000_000));
}

/// Whatever is on the shared page, no task is lost and none computes something else.
#[test]
fn garbage_on_the_shared_page_costs_only_time() {
    let Some(cvm) = launch(3, ElasticConfig::default()) else { return };
    const ROUNDS: u64 = 30_000_000;
    let (code, result) = (computing(ROUNDS), result_of(ROUNDS));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scribble = scope.spawn(|| {
            let page = cvm.window().elastic();
            let words = [
                ElasticWord::Grant,
                ElasticWord::Reclaim,
                ElasticWord::SpinLimit,
                ElasticWord::Demand,
                ElasticWord::DemandSeen,
            ];
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            while !over.load(Ordering::SeqCst) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let word = words[(random >> 20) as usize % words.len()];
                // Small numbers, single bits, everything.
                let value = match random >> 60 {
                    0..4 => random >> 32 & 3,
                    4..8 => 1 << (random >> 32 & 63),
                    8..10 => 0,
                    10..12 => u64::MAX,
                    _ => random,
                };
                page.set(word, value);
                cvm.ring(worker((random >> 40) as u32 % 4));
                std::thread::yield_now();
            }
            // The truth again, and somebody to see it.
            page.set(ElasticWord::Grant, 3);
            page.set(ElasticWord::Reclaim, 0);
            page.set(ElasticWord::DemandSeen, 0);
            cvm.ring(VcpuId::NORMAL);
        });
        for _ in 0..5 {
            let programs: Vec<_> = (0..4).map(|_| cvm.load(&spec(&code)).unwrap()).collect();
            programs.iter().for_each(|program| program.start().unwrap());
            for program in &programs {
                assert_eq!(heard(program, 8), "started\n");
                ends_with(program, &result);
            }
        }
        over.store(true, Ordering::SeqCst);
        scribble.join().unwrap();
    });
    ends_with(&started(&cvm, &code), &result);
}

/// What is left of a CVM that ended says nothing about, and does nothing to, one that came after it.
#[test]
fn a_cvm_that_ended_is_not_taken_for_another() {
    let manager = CpuManager::new(CpuConfig::new(2)).unwrap();
    let elastic = || ElasticConfig { manager: Some(manager.clone()), ..ElasticConfig::default() };
    let Some(first) = launch(1, elastic()) else { return };
    let code = computing(100_000_000);
    let running = started(&first, &code);
    first.stop();
    let second = launch(1, elastic()).unwrap();
    let program = started(&second, &code);
    assert_eq!(first.cpu().unwrap_err(), ElasticError::Gone);
    assert_eq!(first.set_limits(max(0)).unwrap_err(), ElasticError::Gone);
    assert_eq!(first.reclaim(worker(1)).unwrap_err(), ElasticError::Gone);
    drop(running);
    drop(first);
    ends_with(&program, &result_of(100_000_000));
    let cpu = second.cpu().unwrap();
    assert_eq!((cpu.workers, cpu.sum(|vcpu| vcpu.reclaims)), (1, 0));
    settle(&second);
    assert_eq!(manager.occupied(), 0);
}

#[test]
fn workers_can_be_pinned() {
    let manager = CpuManager::new(CpuConfig { pin: vec![0], ..CpuConfig::new(1) }).unwrap();
    let elastic = ElasticConfig { manager: Some(manager), ..ElasticConfig::default() };
    let Some(cvm) = launch(2, elastic) else { return };
    const ROUNDS: u64 = 20_000_000;
    let code = computing(ROUNDS);
    let programs = [started(&cvm, &code), started(&cvm, &code)];
    programs.iter().for_each(|program| ends_with(program, &result_of(ROUNDS)));
}

#[test]
fn what_is_impossible_is_refused_with_a_remedy() {
    let refused = |limits: CpuLimits, elastic: ElasticConfig| {
        let config = config(2, ElasticConfig { limits, ..elastic });
        match Cvm::launch(config).map(drop) {
            Err(CvmError::Elastic(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    if let Err(error) = nacre_vmm::kvm::available() {
        return nacre_tests::skip::skipped("elastic limits", &error.to_string());
    }
    let plain = ElasticConfig::default;
    assert!(refused(max(3), plain()).contains("has 2 workers, not 3"));
    assert!(refused(CpuLimits { min: 2, ..max(1) }, plain()).contains("lower the minimum"));
    assert!(refused(CpuLimits { weight: 0, ..max(1) }, plain()).contains("1 to 10000"));
    let slow = ElasticConfig { spin_limit: Duration::from_secs(1), ..plain() };
    assert!(refused(max(1), slow).contains("at most 10ms"));
    let one = CpuManager::new(CpuConfig::new(1)).unwrap();
    let promised = CpuLimits { min: 2, ..CpuLimits::default() };
    assert!(refused(promised, ElasticConfig { manager: Some(one), ..plain() }).contains("raise the budget"));
    assert!(CpuManager::new(CpuConfig::new(0)).unwrap_err().to_string().contains("0 CPUs is impossible"));
    let pinned = CpuConfig { pin: vec![5000], ..CpuConfig::new(1) };
    assert_eq!(CpuManager::new(pinned).unwrap_err(), ElasticError::Pin(5000));

    let cvm = launch(2, plain()).unwrap();
    assert_eq!(cvm.reclaim(worker(3)).unwrap_err(), ElasticError::NoSuchWorker(3, 2));
    assert_eq!(cvm.reclaim(VcpuId::NORMAL).unwrap_err(), ElasticError::NoSuchWorker(0, 2));
    assert!(cvm.set_limits(max(9)).is_err());
    // What is refused changes nothing.
    ends_with(&started(&cvm, &computing(1000)), &result_of(1000));
    cvm.stop();
    assert_eq!(cvm.reclaim(worker(1)).unwrap_err(), ElasticError::Gone);
    let _: Arc<CpuManager> = CpuManager::new(CpuConfig::machine()).unwrap();
}
