//! What this machine's KVM lets a host do to a vCPU: each injection on its own, into a CVM that computes.

use crate::inject::{Injection, read_tsc};
use crate::programs::{Job, Work, code};
use anyhow::Result;
use kvm_ioctls::VcpuFd;
use nacre_abi::VcpuId;
use nacre_vmm::hooks::Hooks;
use nacre_vmm::program::ProgramSpec;
use nacre_vmm::vcpu::Shared;
use nacre_vmm::{Cvm, CvmConfig};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Injects one thing into worker 1 whenever that was interrupted.
struct Single {
    injection: Injection,
    due: AtomicBool,
    shared: OnceLock<Weak<Shared>>,
    answers: Mutex<BTreeMap<String, u64>>,
    tsc_moved: AtomicU64,
}

impl Hooks for Single {
    fn starting(&self, shared: &Arc<Shared>) {
        let _ = self.shared.set(Arc::downgrade(shared));
    }

    fn entering(&self, id: VcpuId, vcpu: &VcpuFd, _: &Shared) {
        if !id.is_worker() || !self.due.swap(false, Ordering::SeqCst) {
            return;
        }
        let before = read_tsc(vcpu).unwrap_or(0);
        let answer = match self.injection.apply(vcpu) {
            Ok(()) => "accepted".to_string(),
            Err(error) => error.to_string(),
        };
        self.tsc_moved.store(read_tsc(vcpu).unwrap_or(0).abs_diff(before), Ordering::SeqCst);
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(answer).or_default() += 1;
    }
}

/// Tries all injections; a line each.
///
/// # Errors
/// If there is no CVM.
pub fn probe() -> Result<String> {
    let code = code()?;
    let mut text = String::new();
    let exception = |vector: u8, error: Option<u32>| Injection::Exception {
        vector,
        error,
        address: (vector == 14).then_some(0x1234_5000),
    };
    let mut all: Vec<Injection> = (0..32)
        .filter(|vector| ![2, 15, 22, 23, 24, 25, 26, 27, 31].contains(vector))
        .map(|vector| {
            exception(vector, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30].contains(&vector).then_some(0))
        })
        .collect();
    all.extend([Injection::Nmi, Injection::Interrupt(32), Injection::Interrupt(255)]);
    all.extend([Injection::Time(1 << 40), Injection::Time(-(1 << 40))]);
    for injection in all {
        let hooks = Arc::new(Single {
            injection,
            due: AtomicBool::new(false),
            shared: OnceLock::new(),
            answers: Mutex::default(),
            tsc_moved: AtomicU64::new(0),
        });
        let words = Arc::new(Mutex::new(String::new()));
        let printed = words.clone();
        let on_print =
            Box::new(move |text: &str| printed.lock().unwrap_or_else(PoisonError::into_inner).push_str(text));
        let cvm = Cvm::launch(CvmConfig { hooks: Some(hooks.clone()), on_print, ..CvmConfig::default() })?;
        let job = Job { work: Work::Compute, number: 0xfff_ffff, calls: false };
        let spec = ProgramSpec {
            code: code.file(),
            args: vec!["work".into(), job.argument()],
            ..ProgramSpec::default()
        };
        let program = cvm.load(&spec)?;
        let over = AtomicBool::new(false);
        let end = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_micros(300));
                    if let Some(shared) = hooks.shared.get().and_then(Weak::upgrade) {
                        // Not before the worker has set itself up: that it can't survive, and is not asked here.
                        let inside_ns = shared.vcpus[1].counters.run_ns.load(Ordering::Relaxed);
                        hooks.due.store(inside_ns > 3_000_000, Ordering::SeqCst);
                        shared.vcpus[1].interrupt();
                    }
                }
            });
            let end = program.run_to_end();
            over.store(true, Ordering::SeqCst);
            end
        });
        let result = match end {
            Ok((exit, out, err)) => job.expected().difference(&exit, &out, &err).unwrap_or("right".into()),
            Err(error) => format!("{error} {}", words.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        let answers = hooks.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let moved = hooks.tsc_moved.load(Ordering::SeqCst);
        writeln!(text, "{injection:?}: {answers:?}; {result}; its TSC moved by {moved}")?;
    }
    Ok(text)
}
