//! A CVM that runs, and the code in it: brought in at the first call of a module, shared by all later ones, taken out when
//! others need the room.

use super::machine::{Code, Ended, LoadFailed, Machine};
use super::sealed::Sealing;
use crate::compile::{CompileError, Compiler};
use crate::names::Digest;
use crate::outcome::End;
use crate::records::ModuleRef;
use crate::store::Store;
use crate::tenants::Tenant;
use nacre_compile::program::Program;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Why there is no code in the CVM.
#[derive(Debug)]
pub(super) enum NoCode {
    Compile(CompileError),
    Ended(Ended),
    /// The guest does not take it: how a call of it ends.
    Refused(End),
}

impl From<LoadFailed> for NoCode {
    fn from(failed: LoadFailed) -> Self {
        match failed {
            LoadFailed::Ended(ended) => Self::Ended(ended),
            LoadFailed::Refused(end) => Self::Refused(end),
        }
    }
}

struct Loaded {
    code: Arc<OnceCell<Code>>,
    bytes: u64,
    last_used: u64,
}

#[derive(Default)]
struct Codes {
    loaded: HashMap<Digest, Loaded>,
    /// Counts uses.
    clock: u64,
}

/// A CVM and what is in it.
pub(super) struct Live {
    pub(super) machine: Arc<Machine>,
    pub(super) since: Instant,
    pub(super) sealing: Sealing,
    /// The hash of the manifest it was launched with.
    pub(super) manifest: Option<[u8; 32]>,
    codes: Mutex<Codes>,
    max_bytes: u64,
    _shown: Option<Box<dyn Any + Send + Sync>>,
}

impl Live {
    /// `generation` tells it from others of its tenant, `max_bytes` is how much code it keeps.
    pub(super) fn new(
        machine: Machine,
        generation: u64,
        manifest: Option<[u8; 32]>,
        max_bytes: u64,
        shown: Option<Box<dyn Any + Send + Sync>>,
    ) -> Self {
        Self {
            machine: Arc::new(machine),
            since: Instant::now(),
            sealing: Sealing::new(generation),
            manifest,
            codes: Mutex::default(),
            max_bytes,
            _shown: shown,
        }
    }

    fn codes(&self) -> MutexGuard<'_, Codes> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn module_count(&self) -> usize {
        self.codes().loaded.len()
    }

    /// The module's code in this CVM, and how long it took to bring it in if it was not there.
    pub(super) async fn code(
        &self,
        store: &Arc<Store>,
        compiler: &Compiler,
        tenant: &Tenant,
        module: &ModuleRef,
    ) -> Result<(Code, Option<Duration>), NoCode> {
        let cell = {
            let mut codes = self.codes();
            codes.clock += 1;
            let now = codes.clock;
            let new = || Loaded { code: Arc::default(), bytes: 0, last_used: 0 };
            let loaded = codes.loaded.entry(module.digest).or_insert_with(new);
            loaded.last_used = now;
            // There may be room for it by now.
            if loaded.code.get().is_some_and(|code| code.refusal().is_some()) {
                loaded.code = Arc::default();
            }
            loaded.code.clone()
        };
        if let Some(code) = cell.get() {
            return Ok((code.clone(), None));
        }
        let begin = Instant::now();
        let bring_in = async || {
            let program = program(store, compiler, tenant, module).await.map_err(NoCode::Compile)?;
            let bytes = program.file().len() as u64;
            self.make_room(module.digest, bytes);
            if let Some(code) = self.machine.begin_load(&program).map_err(NoCode::Ended)? {
                return Ok(code);
            }
            let machine = self.machine.clone();
            let load = tokio::task::spawn_blocking(move || machine.load(&program)).await;
            let code = load.map_err(|error| NoCode::Ended(Ended(error.to_string())))??;
            Ok::<_, NoCode>(code)
        };
        let code = cell.get_or_try_init(bring_in).await?.clone();
        Ok((code, Some(begin.elapsed())))
    }

    /// Takes out what was not used for longest, until the rest and `bytes` of `digest` fit.
    fn make_room(&self, digest: Digest, bytes: u64) {
        let mut codes = self.codes();
        if let Some(loaded) = codes.loaded.get_mut(&digest) {
            loaded.bytes = bytes;
        }
        let mut total: u64 = codes.loaded.values().map(|loaded| loaded.bytes).sum();
        while total > self.max_bytes {
            let others = codes.loaded.iter().filter(|(other, loaded)| **other != digest && loaded.bytes > 0);
            let Some(oldest) = others.min_by_key(|(_, loaded)| loaded.last_used).map(|(digest, _)| *digest)
            else {
                return;
            };
            total -= codes.loaded.remove(&oldest).map_or(0, |loaded| loaded.bytes);
        }
    }
}

/// The compiled code of a module that the store has.
pub(super) async fn program(
    store: &Arc<Store>,
    compiler: &Compiler,
    tenant: &Tenant,
    module: &ModuleRef,
) -> Result<Arc<Program>, CompileError> {
    let (digest, store) = (module.digest, store.clone());
    let read = async move || {
        let read = move || store.modules().read(&digest).map_err(|error| error.to_string());
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.to_string()))
    };
    compiler.code(tenant.name(), digest, read).await
}
